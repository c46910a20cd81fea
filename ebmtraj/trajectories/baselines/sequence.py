"""A sequence model: a recurrent network over the last moves, with a mixture density of the next one.

Graves 2013; Ha and Schmidhuber 2018.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from ebmtraj.datasets.coordinates import Rotation
from ebmtraj.datasets.normaliser import check_scaling
from ebmtraj.datasets.windows import Batch, Past
from ebmtraj.errors import EbmtrajError
from ebmtraj.fields import Field
from ebmtraj.nets.mixture import Mixture, choose, pick
from ebmtraj.nets.sequence import RecurrentMixture
from ebmtraj.training.losses import mixture_nll
from ebmtraj.training.trainable import Stage
from ebmtraj.trajectories.history import check_history, forgotten, moves
from ebmtraj.trajectories.model import TransitionModel, check_likelihood, check_network


@dataclass(frozen=True)
class SequenceConfig:
    """A recurrent network with a mixture density (Graves 2013; the model of Ha and Schmidhuber 2018 on states).

    Raises `EbmtrajError` for a setting out of its range.
    """

    history: int = 4  # moves before the present state that it runs over
    history_noise: float = 0.0  # on those moves, in training, in standard deviations of the data
    forget: float = 0.1  # share of the training transitions whose past is cut short, as it is when a rollout begins
    learn: Literal["last", "every"] = "every"  # each window teaches its last step, or every step of it
    components: int = 8  # Gaussians of the mixture
    width: int = 256  # units of the recurrent network and of the head
    depth: int = 2  # of the head
    low: float = -5.0  # bounds of the log standard deviations: an unbounded one collapses onto a point
    high: float = 2.0  # the upper one
    spread: float = 0.5  # of the components' means before training, in standard deviations of the data
    whiten: bool = False  # decorrelate the increments first
    gaussianise: bool | Literal["auto"] = "auto"  # or bring each one's distribution to a Gaussian's; auto: if that fits
    rotation: Rotation = "world"  # how a quaternion's change is written, see `Increments`

    def __post_init__(self) -> None:
        check_network(self.width, self.depth)
        check_scaling(self.whiten, self.gaussianise)
        check_likelihood(self.low, self.high)
        check_history(self.history, self.history_noise, self.forget)
        if self.history < 1:
            raise EbmtrajError(f"network.history = {self.history}; a sequence model needs at least 1 (without: model mdn)")
        if self.components < 1 or self.spread < 0:
            raise EbmtrajError(
                f"network: components = {self.components}, spread = {self.spread}; it needs components >= 1 and spread >= 0"
            )


class SequenceModel(TransitionModel):
    """Runs over the window of moves anew at each step; a component is drawn, then an increment from it."""

    name = "gru"
    Config = SequenceConfig
    training_defaults: ClassVar[dict[str, Any]] = {
        "batch": 128,  # of windows, from each step of which it learns
        "learning_rate": 2e-3,
        "constant": 0.2,
    }
    config: SequenceConfig

    def __init__(
        self, state_fields: Sequence[Field], action_fields: Sequence[Field], *, actions: bool, config: SequenceConfig
    ) -> None:
        super().__init__(state_fields, action_fields, actions=actions, config=config)
        self.net = RecurrentMixture(
            self.delta_size + self.action_size + 1,
            self.context_size,
            self.delta_size,
            components=config.components,
            width=config.width,
            depth=config.depth,
            low=config.low,
            high=config.high,
            spread=config.spread,
        )

    def stages(self) -> list[Stage]:
        """Likelihood throughout."""
        return [Stage("likelihood", 1.0, self.net, self._loss)]

    def _loss(self, batch: Batch, generator: torch.Generator) -> tuple[Tensor, dict[str, Tensor]]:
        past, noise = batch.past or self.no_past(batch.state), 0.0
        every = self.training and self.config.learn == "every"
        if self.training:
            noise = self.config.history_noise
            past = past if every else forgotten(past, self.config.forget, generator)
        before = self._moves(batch.state, past, noise, generator)
        z = self.normaliser.delta(batch.state, batch.next_state)
        if not every:
            loss = self._nll(z, self.net(before, past.valid, self.context(batch.state, batch.action))).mean()
            return loss, {"validation": loss.detach()}
        states = torch.cat((past.state, batch.state.unsqueeze(1)), dim=1)
        actions = None
        if past.action is not None and batch.action is not None:
            actions = torch.cat((past.action, batch.action.unsqueeze(1)), dim=1)
        hidden = self.net.states(before, past.valid)
        mixture = self.net.head(torch.cat((hidden, self.context(states, actions)), dim=-1).flatten(0, 1))
        following = torch.cat((states[:, 1:], batch.next_state.unsqueeze(1)), dim=1)
        each = self._nll(self.normaliser.delta(states, following).flatten(0, 1), mixture).view(states.shape[:2])
        known = torch.cat((past.valid, torch.ones_like(past.valid[:, :1])), dim=1)
        loss = each[known].mean()
        return loss, {"validation": loss.detach()}

    def _moves(self, state: Tensor, past: Past, noise: float = 0.0, generator: torch.Generator | None = None) -> Tensor:
        return moves(self.normaliser, state, past, controls=self.actions, noise=noise, generator=generator)

    @torch.no_grad()
    def sample_next(
        self, state: Tensor, action: Tensor | None, generator: torch.Generator, past: Past | None = None
    ) -> Tensor:
        """Draw a component, then from its Gaussian."""
        past = past or self.no_past(state)
        mixture = self.net(self._moves(state, past), past.valid, self.context(state, action))
        component = choose(mixture.log_weight, generator)
        mean, log_std = pick(mixture.mean, component), pick(mixture.log_std, component)
        noise = torch.empty_like(mean).normal_(generator=generator)
        return self.normaliser.advance(state, mean + noise * torch.exp(log_std))

    def _nll(self, z: Tensor, mixture: Mixture) -> Tensor:
        z, mean, log_std = self.normaliser.moving(z, mixture.mean, mixture.log_std)
        return mixture_nll(z, mixture.log_weight, mean, log_std)
