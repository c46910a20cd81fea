"""Diffusion over the increment (EDM). Karras et al. 2022."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from ebmtraj.datasets.coordinates import Rotation
from ebmtraj.datasets.normaliser import check_scaling
from ebmtraj.datasets.windows import Batch, Past
from ebmtraj.errors import EbmtrajError
from ebmtraj.fields import Field
from ebmtraj.nets.vector_field import Denoiser
from ebmtraj.samplers.anneal import Ladder, predict
from ebmtraj.training.losses import NoiseConfig, denoising_score_matching
from ebmtraj.training.trainable import Stage
from ebmtraj.trajectories.model import TransitionModel, check_network


@dataclass(frozen=True)
class DiffusionConfig:
    """Diffusion as Karras et al. 2022 do it, on normalised increments, whose spread is 1 (their sigma_data).

    Raises `EbmtrajError` for a setting out of its range, and for a ladder without a predictor.
    """

    width: int = 256  # units of a hidden layer
    depth: int = 3  # hidden layers
    bound: float = 8.0  # increments are clamped here, in standard deviations
    whiten: bool = False  # decorrelate the increments first
    gaussianise: bool | Literal["auto"] = "auto"  # or bring each one's distribution to a Gaussian's; auto: if that fits
    rotation: Rotation = "world"  # how a quaternion's change is written, see `Increments`
    # levels in training; higher than for images, as the increment's mean is learnt where noise hides all else
    noise: NoiseConfig = field(default_factory=lambda: NoiseConfig(mean=0.8, std=1.4))
    ladder: Ladder = field(default_factory=lambda: Ladder(levels=19, sigma_max=80.0, sigma_min=0.002))  # Karras et al.'s

    def __post_init__(self) -> None:
        check_network(self.width, self.depth)
        check_scaling(self.whiten, self.gaussianise)
        if self.bound <= 0:
            raise EbmtrajError(f"network.bound = {self.bound}; it needs bound > 0")
        if self.ladder.predictor == "none":
            raise EbmtrajError("network.ladder.predictor = none samples nothing; use heun or euler")


class DiffusionModel(TransitionModel):
    """Preconditioning, noise levels, weights and deterministic Heun sampler of EDM; sees what the energy sees."""

    name = "edm"
    Config = DiffusionConfig
    training_defaults: ClassVar[dict[str, Any]] = {"learning_rate": 4e-3, "constant": 0.2}
    config: DiffusionConfig

    def __init__(
        self, state_fields: Sequence[Field], action_fields: Sequence[Field], *, actions: bool, config: DiffusionConfig
    ) -> None:
        super().__init__(state_fields, action_fields, actions=actions, config=config)
        self.net = Denoiser(self.delta_size, self.context_size, width=config.width, depth=config.depth)

    def stages(self) -> list[Stage]:
        """Denoising throughout."""
        return [Stage("denoising", 1.0, self.net, self._loss)]

    def _loss(self, batch: Batch, generator: torch.Generator) -> tuple[Tensor, dict[str, Tensor]]:
        z = self.normaliser.delta(batch.state, batch.next_state).clamp(-self.config.bound, self.config.bound)
        context = self.net.prepare(self.context(batch.state, batch.action))
        loss = denoising_score_matching(self.net, z, context, self.config.noise, generator).mean()
        return loss, {"validation": loss.detach()}

    @torch.no_grad()
    def sample_next(
        self, state: Tensor, action: Tensor | None, generator: torch.Generator, past: Past | None = None
    ) -> Tensor:
        """Follow the probability flow from noise down the ladder, then to level 0 (Karras et al. 2022, algorithm 1)."""
        context, ladder = self.net.prepare(self.context(state, action)), self.config.ladder

        def gradient(x: Tensor, level: Tensor) -> Tensor:
            return self.net.gradient(x, context, level)

        x = ladder.sigma_max * state.new_empty(len(state), self.delta_size).normal_(generator=generator)
        sigmas = ladder.sigmas(state.device)
        for k in range(ladder.levels - 1):
            x = predict(gradient, x, sigmas[k], sigmas[k + 1], ladder.predictor)
        z = predict(gradient, x, sigmas[-1], torch.zeros_like(sigmas[-1]), "euler")
        return self.normaliser.advance(state, z.clamp(-self.config.bound, self.config.bound))
