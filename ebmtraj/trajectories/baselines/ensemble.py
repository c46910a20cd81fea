"""An ensemble of Gaussians (PETS)."""

from __future__ import annotations

import math
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
from ebmtraj.nets.ensemble import EnsembleGaussianMLP
from ebmtraj.nets.mixture import choose, pick
from ebmtraj.training.losses import gaussian_nll, mixture_nll
from ebmtraj.training.trainable import Stage
from ebmtraj.trajectories.history import check_history
from ebmtraj.trajectories.model import TransitionModel, check_likelihood, check_network

POISSON = tuple(sum(math.exp(-1) / math.factorial(k) for k in range(n + 1)) for n in range(8))  # its cumulative law, mean 1


@dataclass(frozen=True)
class EnsembleConfig:
    """Probabilistic networks that differ in their initial weights and in the data that they see (Chua et al. 2018).

    Raises `EbmtrajError` for a setting out of its range.
    """

    members: int = 5  # networks
    width: int = 128  # units of a hidden layer
    depth: int = 3  # hidden layers
    bootstrap: bool = True  # each member sees a resample of the training data, as in PETS; False: all see all of it
    beta: float = 0.5  # of beta-NLL (Seitzer et al. 2022); 0 is the plain likelihood, as in PETS
    low: float = -5.0  # bounds of the log standard deviation
    high: float = 2.0  # the upper one
    whiten: bool = False  # decorrelate the increments first
    gaussianise: bool | Literal["auto"] = False  # or bring each one's distribution to a Gaussian's; auto: if that fits
    rotation: Rotation = "world"  # how a quaternion's change is written, see `Increments`
    history: int = 0  # states before the present one that are seen, as the moves between them
    previous_control: bool = False  # with the actions that were taken there; for models that are given actions
    history_noise: float = 0.1  # on those moves, in training: a rollout's own are not quite the data's
    forget: float = 0.1  # share of the training transitions whose past is cut short, as it is when a rollout begins

    def __post_init__(self) -> None:
        check_network(self.width, self.depth)
        check_history(self.history, self.history_noise, self.forget, self.previous_control)
        check_scaling(self.whiten, self.gaussianise)
        check_likelihood(self.low, self.high, self.beta)
        if self.members < 1:
            raise EbmtrajError(f"network.members = {self.members}; it needs at least 1")


class EnsembleModel(TransitionModel):
    """PETS (Chua et al. 2018): `members` Gaussians; each rollout's member is drawn anew at every step (their TS1)."""

    name = "ensemble"
    Config = EnsembleConfig
    training_defaults: ClassVar[dict[str, Any]] = {"learning_rate": 2e-3, "constant": 0.2}
    config: EnsembleConfig
    digit: Tensor
    salt: Tensor

    def __init__(
        self, state_fields: Sequence[Field], action_fields: Sequence[Field], *, actions: bool, config: EnsembleConfig
    ) -> None:
        super().__init__(state_fields, action_fields, actions=actions, config=config)
        self.members = config.members
        self.net = EnsembleGaussianMLP(
            config.members,
            self.context_size + self.moves_size,
            self.delta_size,
            width=config.width,
            depth=config.depth,
            low=config.low,
            high=config.high,
        )
        self.register_buffer("digit", 2 * torch.randint(2**61, (2 * self.state_size,)) + 1)
        self.register_buffer("salt", torch.randint(2**62, (config.members,)))

    def stages(self) -> list[Stage]:
        """Likelihood throughout."""
        return [Stage("likelihood", 1.0, self.net, self._loss)]

    def resample(self, batch: Batch) -> Tensor:
        """How often each transition is in each member's resample of the data, `(M, B)`, Poisson with mean 1.

        That is the bootstrap of a large data set (Oza and Russell 2001). The count is a hash of the transition's own bits,
        so it is the same whenever the transition is drawn.
        """
        bits = torch.cat((batch.state, batch.next_state), dim=-1).view(torch.int32).long()
        code = (bits * self.digit).sum(-1, keepdim=True) ^ self.salt  # (B, M); integers wrap around
        for shift in (29, 32):  # one bit in, half of all bits out
            code = (code ^ (code >> shift)) * 0x2545F4914F6CDD1D
        uniform = ((code >> 40) & 0xFFFFFF).float() / 2**24
        counts = torch.zeros_like(uniform)
        for bound in POISSON:
            counts += uniform >= bound
        return counts.T

    def _loss(self, batch: Batch, generator: torch.Generator) -> tuple[Tensor, dict[str, Tensor]]:
        z = self.normaliser.delta(batch.state, batch.next_state)
        mean, log_std = self.net(self.seen_of(batch, generator))
        if not self.training:  # judge by what a step is drawn from: the members' mixture
            even = mean.new_full((len(z), self.config.members), -math.log(self.config.members))
            validation = mixture_nll(z, even, mean.transpose(0, 1), log_std.transpose(0, 1)).mean()
            return validation, {"validation": validation}
        loss = gaussian_nll(z, mean, log_std, self.config.beta)
        if self.config.bootstrap:
            loss = loss * self.resample(batch)
        return loss.mean(), {}

    def expected_move(self, state: Tensor, seen: Tensor) -> Tensor:
        """The mean of each member's Gaussian, see `TransitionModel.expected_move`."""
        return self.net.mean(seen)

    @torch.no_grad()
    def sample_next(
        self, state: Tensor, action: Tensor | None, generator: torch.Generator, past: Past | None = None
    ) -> Tensor:
        """Draw a member for each element, then from that member's Gaussian."""
        mean, log_std = self.net(self.seen(state, action, past))
        member = choose(mean.new_zeros(len(state), self.config.members), generator)
        mean, log_std = pick(mean.transpose(0, 1), member), pick(log_std.transpose(0, 1), member)
        noise = torch.empty_like(mean).normal_(generator=generator)
        return self.normaliser.advance(state, mean + noise * torch.exp(log_std))
