"""Transition energies as transition models: how each is trained and sampled. Papers 000, section 5, and 004."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor

from ebmtraj.datasets.coordinates import Rotation
from ebmtraj.datasets.windows import Batch, Past
from ebmtraj.energies.transition import TiltedPairEnergy, TiltedTransition
from ebmtraj.errors import EbmtrajError
from ebmtraj.fields import Field
from ebmtraj.samplers.buffer import ReplayBuffer
from ebmtraj.samplers.langevin import LangevinConfig, frozen, langevin
from ebmtraj.training.losses import contrastive_divergence
from ebmtraj.training.trainable import Stage
from ebmtraj.trajectories.model import TransitionModel, check_network
from ebmtraj.trajectories.residual import ResidualConfig, ResidualModel


@dataclass(frozen=True)
class TiltedConfig(ResidualConfig):
    """The default transition energy: an explicit base and a noise-conditional energy of its residual."""


class TiltedModel(ResidualModel):
    """Objective `dsm`: fit the base by its likelihood, freeze it, train the residual's energy by score matching."""

    name = "dsm"
    Config = TiltedConfig
    second = "energy"

    def __init__(
        self, state_fields: Sequence[Field], action_fields: Sequence[Field], *, actions: bool, config: TiltedConfig
    ) -> None:
        super().__init__(state_fields, action_fields, actions=actions, config=config)
        self.tilted = TiltedTransition(
            self.delta_size,
            self.context_size,
            width=config.width,
            depth=config.depth,
            mildness=config.mildness,
            bound=config.bound,
            base=config.base,
            base_context=config.base_context,
        )


@dataclass(frozen=True)
class PairConfig:
    """The paper's transition energy, trained by contrastive divergence (paper 000, Algorithm 1).

    By default the network tilts a unit Gaussian of the whitened increment, and every chain, in training and in rollouts,
    starts from that Gaussian. The paper's own setting is `space=state negatives=pair matrices=false whiten=false scale=1
    prior=0 start=uniform keep=0.95 alpha=1 beta1=0 sampler.step_size=10 sampler.noise=0.005 sampler.steps=20
    rollout_steps=20`, each with `--set network.` before it. Raises `EbmtrajError` for a setting out of its range, and for a
    sampler with a ladder.
    """

    width: int = 128  # units of a hidden layer
    depth: int = 3  # hidden layers
    spectral: bool = True  # spectral normalisation of every layer
    matrices: bool = True  # see quaternions as rotation matrices; the paper's pair has them as they are
    space: Literal["state", "delta"] = "delta"  # second half of the pair: the next state (paper) or the increment to it
    negatives: Literal["pair", "next"] = "next"  # chains move the whole pair (paper) or only its second half
    scale: float = 200.0  # of the network's energy, which spectral normalisation leaves nearly flat
    prior: float = 1.0  # precision of the Gaussian over the second half that the network tilts; 0: none (paper)
    start: Literal["normal", "uniform", "still"] = "normal"  # of fresh chains and rollouts; still: no change
    alpha: float = 0.001  # weight of the L2 penalty on the network's energies
    buffer: int = 10_000  # replay buffer, in samples
    keep: float = 0.95  # share of chains that start from the buffer; the others start afresh
    reach: float = 3.0  # uniform noise covers this many standard deviations; chains stay within twice that
    beta1: float = 0.5  # of Adam
    whiten: bool = True  # decorrelate the increments, which conditions the chain
    rotation: Rotation = "world"  # how a quaternion's change is written, see `Increments`
    sampler: LangevinConfig = field(default_factory=lambda: LangevinConfig(steps=30, step_size=0.1))
    rollout_steps: int = 30  # Langevin steps that draw the next state once trained; best as many as in training

    def __post_init__(self) -> None:
        check_network(self.width, self.depth)
        if self.buffer < 1 or not 0 <= self.keep <= 1 or self.reach <= 0 or self.rollout_steps < 0 or self.alpha < 0:
            raise EbmtrajError(
                f"network: buffer = {self.buffer}, keep = {self.keep}, reach = {self.reach}, alpha = {self.alpha}, "
                f"rollout_steps = {self.rollout_steps}; it needs buffer >= 1, 0 <= keep <= 1, reach > 0, alpha >= 0 and "
                "rollout_steps >= 0"
            )
        if self.prior < 0:
            raise EbmtrajError(f"network.prior = {self.prior}; it needs prior >= 0")
        if not 0 <= self.beta1 < 1:
            raise EbmtrajError(f"network.beta1 = {self.beta1}; it needs 0 <= beta1 < 1")
        if self.sampler.ladder is not None:
            raise EbmtrajError("network.sampler.ladder: model cd's energy has no noise levels; drop the ladder")


class PairModel(TransitionModel):
    """Objective `cd`: the paper's energy and algorithm."""

    name = "cd"
    spreads = False  # the replay buffer is a process's own
    Config = PairConfig
    config: PairConfig

    def __init__(
        self, state_fields: Sequence[Field], action_fields: Sequence[Field], *, actions: bool, config: PairConfig
    ) -> None:
        super().__init__(state_fields, action_fields, actions=actions, config=config)
        second = self.state_size if config.space == "state" else self.delta_size
        self.energy = TiltedPairEnergy(
            self.context_size,
            second,
            prior=config.prior,
            width=config.width,
            depth=config.depth,
            spectral=config.spectral,
            scale=config.scale,
        )
        self.buffer = ReplayBuffer(config.buffer, (self.context_size + second,))

    def stages(self) -> list[Stage]:
        """Contrastive divergence throughout."""
        return [Stage("energy", 1.0, self.energy, self._loss, beta1=self.config.beta1)]

    def extra_state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """The replay buffer."""
        return self.buffer.state()

    def load_extra_state(self, tensors: dict[str, Tensor], numbers: dict[str, Any]) -> None:
        """The inverse of `extra_state`, with tensors of the same shapes."""
        self.buffer.load(tensors, numbers)

    def pair(self, state: Tensor, action: Tensor | None, next_state: Tensor) -> Tensor:
        """The event that the energy sees, `(B, C + D)`."""
        context = self.context(state, action)
        if self.config.space == "state":
            return torch.cat((context, self.normaliser.normalise_state(next_state)), dim=-1)
        return torch.cat((context, self.normaliser.delta(state, next_state)), dim=-1)

    def _fresh(self, pair: Tensor, generator: torch.Generator) -> Tensor:
        """Where chains start that do not come from the buffer; `pair` is that of no change."""
        if self.config.start == "normal":
            return torch.empty_like(pair).normal_(generator=generator)
        if self.config.start == "uniform":
            return torch.empty_like(pair).uniform_(-self.config.reach, self.config.reach, generator=generator)
        return pair

    def _project(self, x: Tensor) -> Tensor:
        return x.clamp(-2 * self.config.reach, 2 * self.config.reach)

    def _move_next(self, pair: Tensor, start: Tensor, sampler: LangevinConfig, generator: torch.Generator) -> Tensor:
        """`pair` with its second half at the end of a chain from that of `start`; the first half is held, `(B, C + D)`."""
        first = self.context_size
        with frozen(self.energy), torch.no_grad():
            context = self.energy.prepare(pair[:, :first])
            moved, _ = langevin(
                self.energy, start[:, first:], sampler, context=context, project=self._project, generator=generator
            )
        return torch.cat((pair[:, :first], moved), dim=-1)

    def _loss(self, batch: Batch, generator: torch.Generator) -> tuple[Tensor, dict[str, Tensor]]:
        positive = self.pair(batch.state, batch.action, batch.next_state)
        if not self.training:  # the loss says nothing of sample quality: judge by fresh chains
            score = self._energy_score(batch, positive, generator)
            return score, {"validation": score}
        fresh = self._fresh(self.pair(batch.state, batch.action, batch.state), generator)
        start = self.buffer.start(fresh, generator, self.config.keep)
        if self.config.negatives == "next":
            negative = self._move_next(positive, start, self.config.sampler, generator)
        else:
            negative, _ = langevin(self.energy, start, self.config.sampler, project=self._project, generator=generator)
        self.buffer.push(negative)
        # the Gaussian has no parameters, so only the network's share enters the loss and its penalty
        return contrastive_divergence(self.energy.tilt, positive, negative, self.config.alpha)

    @torch.no_grad()
    def _energy_score(self, batch: Batch, positive: Tensor, generator: torch.Generator, most: int = 1024) -> Tensor:
        """Energy score of two draws a transition (Gneiting and Raftery 2007), `()`."""
        state = batch.state[:most]
        action = None if batch.action is None else batch.action[:most]
        a, b = (self._draw(state, action, generator) for _ in range(2))
        truth = positive[:most, self.context_size :]
        near = 0.5 * ((a - truth).norm(dim=-1) + (b - truth).norm(dim=-1))
        return (near - 0.5 * (a - b).norm(dim=-1)).mean()

    def _draw(self, state: Tensor, action: Tensor | None, generator: torch.Generator) -> Tensor:
        """The pair's second half, drawn by fresh chains, `(B, D)`."""
        still = self.pair(state, action, state)
        sampler = dataclasses.replace(self.config.sampler, steps=self.config.rollout_steps)
        return self._move_next(still, self._fresh(still, generator), sampler, generator)[:, self.context_size :]

    @torch.no_grad()
    def sample_next(
        self, state: Tensor, action: Tensor | None, generator: torch.Generator, past: Past | None = None
    ) -> Tensor:
        """Run a chain over the second half of the pair, the first held."""
        drawn = self._draw(state, action, generator)
        if self.config.space == "state":
            return self.normaliser.increments.project(self.normaliser.restore_state(drawn), state)
        return self.normaliser.advance(state, drawn)
