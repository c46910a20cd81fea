"""Model `concept`: an energy of images and one factor of theirs at every noise level, made to be composed.

Paper 000, section 7.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor

from ebmtraj.energies.compose import Term
from ebmtraj.energies.concept import ConceptEnergy
from ebmtraj.energies.image_base import spread_out
from ebmtraj.errors import EbmtrajError
from ebmtraj.images.data import ImageBatch, ImageData
from ebmtraj.images.joint import denoising_error
from ebmtraj.images.model import ImageModel, Watch
from ebmtraj.samplers.anneal import Ladder
from ebmtraj.samplers.langevin import LangevinConfig, langevin
from ebmtraj.training.checkpoint import load_weights
from ebmtraj.training.losses import NoiseConfig
from ebmtraj.training.run import read_run
from ebmtraj.training.trainable import Stage


@dataclass(frozen=True)
class ConceptConfig:
    """Two small convolutional encoders: an energy, and the logits of a factor.

    Raises `EbmtrajError` for a setting out of its range, and for a sampler without a ladder.
    """

    width: int = 24  # channels of the energy's first convolution
    evidence_width: int = 16  # of the factor's
    prior: str = ""  # a run of this model whose E(x) is taken as it is, so that only the factor is learnt
    prior_share: float = 0.35  # of the steps, for E(x); the rest is for the factor
    # noise levels in training, of the energy
    noise: NoiseConfig = field(default_factory=lambda: NoiseConfig(mean=0.0, std=1.4))
    evidence_noise: NoiseConfig = field(default_factory=lambda: NoiseConfig(mean=-0.4, std=1.4))  # and of the factor
    sampler: LangevinConfig = field(
        default_factory=lambda: LangevinConfig(
            steps=6, step_size=0.15, ladder=Ladder(levels=20, sigma_max=20.0, sigma_min=0.02)
        )
    )
    guidance: float = 8.0  # how much more than in the data a factor counts when samples are asked for by it
    validation_draws: int = 4  # noise levels for each validation image

    def __post_init__(self) -> None:
        for name in ("width", "evidence_width", "validation_draws"):
            if getattr(self, name) < 1:
                raise EbmtrajError(f"network.{name} = {getattr(self, name)} must be above 0")
        if not self.guidance > 0:
            raise EbmtrajError(f"network.guidance = {self.guidance} must be above 0")
        if not 0 < self.prior_share < 1:
            raise EbmtrajError(f"network.prior_share = {self.prior_share}; it needs 0 < prior_share < 1")
        if self.sampler.ladder is None:
            raise EbmtrajError("network.sampler: this model is sampled down a noise ladder; set network.sampler.ladder")


class ConceptModel(ImageModel):
    """E(x, s) by denoising score matching, and E(x, s | c) - E(x, s) by the factor's cross-entropy under noise."""

    name = "concept"
    Config = ConceptConfig
    config: ConceptConfig
    classifies = True
    labelled = True
    training_defaults: ClassVar[dict[str, Any]] = {
        "steps": 3400,
        "batch": 64,
        "learning_rate": 2e-3,
        "warmup": 50,
        "ema": 0.99,
        "check_every": 200,
        "validation": 512,
    }

    def __init__(self, shape: Sequence[int], classes: Sequence[str], *, conditional: bool, config: ConceptConfig) -> None:
        super().__init__(shape, classes, conditional=conditional, config=config)
        widths = {"width": config.width, "evidence_width": config.evidence_width}
        self.net = ConceptEnergy(self.shape, self.classes, **widths)

    @torch.no_grad()
    def prepare(self, data: ImageData, most: int = 20_000) -> None:
        """As every model; and take the prior of another run, with its scaling of pixels, where the settings name one.

        Raises `EbmtrajError` where that run holds another model, or one of images of another shape.
        """
        if not self.config.prior:
            super().prepare(data, most)
            return
        path, header, tensors = read_run(Path(self.config.prior), "image")
        if header.get("model") != self.name or list(header.get("shape", [])) != list(self.shape):
            raise EbmtrajError(
                f"network.prior = {path}: it holds a {header.get('model')} of {header.get('shape')}; give a run of "
                f"--condition on images of {list(self.shape)}"
            )
        start = "net.prior."
        own = {name.removeprefix(start): value for name, value in tensors.items() if name.startswith(start)}
        load_weights(self.net.prior, own, path)
        for name in ("shift", "scale"):
            getattr(self, name).copy_(tensors[name])

    def stages(self) -> list[Stage]:
        """The energy of all images, then what tells their factor."""
        share = 0.0 if self.config.prior else self.config.prior_share
        if not share:
            return [Stage("evidence", 1.0, self.net.evidence, self._telling)]
        return [
            Stage("prior", share, self.net.prior, self._matching),
            Stage("evidence", 1 - share, self.net.evidence, self._telling),
        ]

    def energy(self, unit: Tensor, label: Tensor | None, level: Tensor) -> Tensor:
        """E(x, s) or E(x, s | c), `(B,)`."""
        value: Tensor = self.net(unit, label, level)
        return value

    def gradient(self, unit: Tensor, label: Tensor | None, level: Tensor) -> Tensor:
        """Gradient of the energy in the image, `(B, C, H, W)`."""
        return self.net.gradient(unit, label, level)

    def logits(self, pixels: Tensor, level: Tensor | float | None = None) -> Tensor:
        """log p(c | x) of images under next to no noise, or as much as `level` says, `(B, K)`."""
        at = torch.as_tensor(0.1 if level is None else level, device=pixels.device, dtype=pixels.dtype)
        return self.net.evidence.log_shares(self.unit(pixels), at)

    @torch.no_grad()
    def sample(
        self, count: int, generator: torch.Generator, labels: Tensor | None = None, *, watch: Watch | None = None
    ) -> Tensor:
        """Draw images down the noise ladder, `(count, C, H, W)`, of p(x | c) where the model is conditional."""
        labels = self.check_labels(count, labels)
        energy = self.net if labels is None else self.net.prior & self.config.guidance * Term(self.net.evidence)
        return annealed(self, energy, count, generator, labels, watch=watch)

    def _matching(self, batch: ImageBatch, generator: torch.Generator) -> tuple[Tensor, dict[str, Tensor]]:
        x, level, noised = self._noised(batch, self.config.noise, generator)
        loss = denoising_error(x, noised, self.net.prior.gradient(noised, None, level), level).mean()
        return loss, {"score_matching": loss.detach()}

    def _telling(self, batch: ImageBatch, generator: torch.Generator) -> tuple[Tensor, dict[str, Tensor]]:
        assert batch.label is not None
        x, level, noised = self._noised(batch, self.config.evidence_noise, generator)
        loss = self.net.evidence(noised, batch.label.repeat(len(x) // len(batch.label)), level).mean()
        return loss, {"evidence": -loss.detach()}

    def _noised(self, batch: ImageBatch, noise: NoiseConfig, generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
        """Images, levels and the images under noise of these; several levels an image where there are few images."""
        x = self.unit(batch.x)
        if not self.training:
            x = x.repeat(max(1, min(self.config.validation_draws, 4096 // len(x))), 1, 1, 1)
        level = noise.draw(len(x), generator)
        return x, level, x + spread_out(level, x) * torch.empty_like(x).normal_(generator=generator)


def annealed(
    model: ImageModel,
    energy: Any,
    count: int,
    generator: torch.Generator,
    labels: Tensor | None = None,
    *,
    config: LangevinConfig | None = None,
    watch: Watch | None = None,
) -> Tensor:
    """Draw images of an energy in the model's unit coordinates down a noise ladder, `(count, C, H, W)` pixels."""
    sampler: LangevinConfig = config or model.config.sampler
    assert sampler.ladder is not None

    def seen(x: Tensor) -> Tensor:
        if watch is not None:
            watch(model.pixels(x))
        return x

    start = torch.empty((count, *model.shape), device=generator.device).normal_(generator=generator)
    start = start * (1 + sampler.ladder.sigma_max**2) ** 0.5
    x, _ = langevin(energy, start, sampler, context=labels, project=seen, generator=generator)
    last = torch.tensor(sampler.ladder.sigma_min, device=x.device)
    return model.pixels(x - last**2 * energy.gradient(x, labels, last))
