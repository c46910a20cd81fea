"""A mixture density network. Bishop 1994."""

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
from ebmtraj.nets.mixture import MixtureMLP, choose, pick
from ebmtraj.training.losses import mixture_nll
from ebmtraj.training.trainable import Stage
from ebmtraj.trajectories.model import TransitionModel, check_likelihood, check_network


@dataclass(frozen=True)
class MixtureConfig:
    """A mixture of diagonal Gaussians over the normalised increment (Bishop 1994), fitted by its likelihood.

    Raises `EbmtrajError` for a setting out of its range.
    """

    components: int = 16  # Gaussians of the mixture
    width: int = 256  # units of a hidden layer
    depth: int = 3  # hidden layers
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
        if self.components < 1 or self.spread < 0:
            raise EbmtrajError(
                f"network: components = {self.components}, spread = {self.spread}; it needs components >= 1 and spread >= 0"
            )


class MixtureModel(TransitionModel):
    """Weights, means and spreads of the increment; a component is drawn anew each step, then from it."""

    name = "mdn"
    Config = MixtureConfig
    training_defaults: ClassVar[dict[str, Any]] = {"learning_rate": 2e-3, "constant": 0.2}
    config: MixtureConfig

    def __init__(
        self, state_fields: Sequence[Field], action_fields: Sequence[Field], *, actions: bool, config: MixtureConfig
    ) -> None:
        super().__init__(state_fields, action_fields, actions=actions, config=config)
        self.net = MixtureMLP(
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
        z = self.normaliser.delta(batch.state, batch.next_state)
        mixture = self.net(self.context(batch.state, batch.action))
        z, mean, log_std = self.normaliser.moving(z, mixture.mean, mixture.log_std)
        loss = mixture_nll(z, mixture.log_weight, mean, log_std).mean()
        return loss, {"validation": loss.detach()}

    @torch.no_grad()
    def sample_next(
        self, state: Tensor, action: Tensor | None, generator: torch.Generator, past: Past | None = None
    ) -> Tensor:
        """Draw a component, then from its Gaussian."""
        mixture = self.net(self.context(state, action))
        component = choose(mixture.log_weight, generator)
        mean, log_std = pick(mixture.mean, component), pick(mixture.log_std, component)
        noise = torch.empty_like(mean).normal_(generator=generator)
        return self.normaliser.advance(state, mean + noise * torch.exp(log_std))
