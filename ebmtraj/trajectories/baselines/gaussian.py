"""A Gaussian over the increment, fitted by its likelihood. Seitzer et al. 2022."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from ebmtraj.datasets.coordinates import Rotation
from ebmtraj.datasets.normaliser import check_scaling
from ebmtraj.datasets.windows import Batch, Past
from ebmtraj.fields import Field
from ebmtraj.nets.mlp import GaussianMLP
from ebmtraj.training.losses import gaussian_nll
from ebmtraj.training.trainable import Stage
from ebmtraj.trajectories.model import TransitionModel, check_likelihood, check_network


@dataclass(frozen=True)
class GaussianConfig:
    """A diagonal Gaussian over the normalised increment, fitted by its likelihood."""

    width: int = 128  # units of a hidden layer
    depth: int = 3  # hidden layers
    beta: float = 0.5  # of beta-NLL (Seitzer et al. 2022); 0 is the plain likelihood
    low: float = -5.0  # bounds of the log standard deviation
    high: float = 2.0  # the upper one
    whiten: bool = False  # decorrelate the increments first
    gaussianise: bool | Literal["auto"] = False  # or bring each one's distribution to a Gaussian's; auto: if that fits
    rotation: Rotation = "world"  # how a quaternion's change is written, see `Increments`

    def __post_init__(self) -> None:
        check_network(self.width, self.depth)
        check_scaling(self.whiten, self.gaussianise)
        check_likelihood(self.low, self.high, self.beta)


class GaussianModel(TransitionModel):
    """Mean and spread of the increment, sampled anew each step."""

    name = "gaussian"
    Config = GaussianConfig
    config: GaussianConfig

    def __init__(
        self, state_fields: Sequence[Field], action_fields: Sequence[Field], *, actions: bool, config: GaussianConfig
    ) -> None:
        super().__init__(state_fields, action_fields, actions=actions, config=config)
        self.net = GaussianMLP(
            self.context_size,
            self.delta_size,
            width=config.width,
            depth=config.depth,
            low=config.low,
            high=config.high,
        )

    def stages(self) -> list[Stage]:
        """Likelihood throughout."""
        return [Stage("likelihood", 1.0, self.net, self._loss)]

    def _loss(self, batch: Batch, generator: torch.Generator) -> tuple[Tensor, dict[str, Tensor]]:
        z = self.normaliser.delta(batch.state, batch.next_state)
        mean, log_std = self.net(self.context(batch.state, batch.action))
        with torch.no_grad():
            validation = gaussian_nll(z, mean, log_std).mean()
        return gaussian_nll(z, mean, log_std, self.config.beta).mean(), {"validation": validation}

    @torch.no_grad()
    def sample_next(
        self, state: Tensor, action: Tensor | None, generator: torch.Generator, past: Past | None = None
    ) -> Tensor:
        """Mean plus spread times a draw."""
        mean, log_std = self.net(self.context(state, action))
        noise = torch.empty_like(mean).normal_(generator=generator)
        return self.normaliser.advance(state, mean + noise * torch.exp(log_std))
