"""Model `pair`: the sum of two energies, finetuned jointly, for pairs of value and place that were never seen together.

Paper 000, section 7.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.nn import functional as F

from ebmtraj.energies.image_base import spread_out
from ebmtraj.energies.value_place import Parts, ValuePlaceEnergy
from ebmtraj.errors import EbmtrajError
from ebmtraj.images.concept import annealed
from ebmtraj.images.data import ImageBatch
from ebmtraj.images.joint import denoising_error
from ebmtraj.images.model import ImageModel, Watch
from ebmtraj.samplers.anneal import Ladder
from ebmtraj.samplers.langevin import LangevinConfig
from ebmtraj.training.losses import NoiseConfig
from ebmtraj.training.objectives import improved_contrastive_divergence
from ebmtraj.training.trainable import Stage


@dataclass(frozen=True)
class PairConfig:
    """Two small encoders whose outputs are added, or one that is told both.

    Raises `EbmtrajError` for a setting out of its range, and for a sampler without a ladder.
    """

    parts: Parts = "sum"  # the sum of two energies, or one network told both, see `ValuePlaceEnergy`
    width: int = 16  # channels of the first convolution; half as many more for one network in place of two
    apart: float = 0.3  # share of the steps in which each energy learns from its own images alone
    kl: float = 0.05  # share of the steps, the last, with contrastive divergence and its KL term beside score matching
    kl_weight: float = 1e-3  # of the divergence beside score matching
    kl_level: float = 0.3  # noise level at which these chains run
    kl_chain: LangevinConfig = field(default_factory=lambda: LangevinConfig(steps=5, step_size=0.01))  # of its negatives
    noise: NoiseConfig = field(default_factory=lambda: NoiseConfig(mean=0.0, std=1.4))  # noise levels in training
    sampler: LangevinConfig = field(
        default_factory=lambda: LangevinConfig(
            steps=4, step_size=0.3, temperature=0.1, ladder=Ladder(levels=20, sigma_max=20.0, sigma_min=0.02)
        )
    )
    validation_draws: int = 4  # noise levels for each validation image

    def __post_init__(self) -> None:
        if self.apart < 0 or self.kl < 0 or self.apart + self.kl >= 1 or self.width < 1 or self.kl_level <= 0:
            raise EbmtrajError(
                f"network: apart = {self.apart}, kl = {self.kl}, width = {self.width}, kl_level = {self.kl_level}; "
                "it needs apart + kl below 1, and the others above 0"
            )
        if self.sampler.ladder is None:
            raise EbmtrajError("network.sampler: this model is sampled down a noise ladder; set network.sampler.ladder")


class PairModel(ImageModel):
    """E(x | value, place), trained where only the first value occurs at all places and all values at one place."""

    name = "pair"
    Config = PairConfig
    config: PairConfig
    labelled = True
    training_defaults: ClassVar[dict[str, Any]] = {
        "steps": 1000,
        "batch": 64,
        "learning_rate": 2e-3,
        "warmup": 50,
        "ema": 0.99,
        "check_every": 250,
        "validation": 512,
    }

    def __init__(self, shape: Sequence[int], classes: Sequence[str], *, conditional: bool, config: PairConfig) -> None:
        super().__init__(shape, classes, conditional=conditional, config=config)
        try:
            numbers = [[float(part) for part in name.split(",")] for name in self.classes]
        except ValueError:
            numbers = []
        if not numbers or any(len(row) != 3 for row in numbers):
            raise EbmtrajError("model pair needs a value and a place of each image; give --condition scale,x,y")
        self.net = ValuePlaceEnergy(self.shape, self.classes, parts=config.parts, width=config.width)

    def stages(self) -> list[Stage]:
        """Each energy by itself, both together by score matching, and that with contrastive divergence and its KL term."""
        config = self.config
        apart = config.apart if config.parts == "sum" else 0.0
        found = [
            ("apart", apart, self._apart),
            ("together", 1 - apart - config.kl, self._together),
            ("kl", config.kl, self._kl),
        ]
        return [Stage(name, share, self.net, loss) for name, share, loss in found if share > 0]

    def energy(self, unit: Tensor, label: Tensor | None, level: Tensor) -> Tensor:
        """E(x, s | value, place), `(B,)`; raises `EbmtrajError` without labels."""
        value: Tensor = self.net(unit, self._needed(label), level)
        return value

    def gradient(self, unit: Tensor, label: Tensor | None, level: Tensor) -> Tensor:
        """Gradient of the energy in the image, `(B, C, H, W)`; raises `EbmtrajError` without labels."""
        return self.net.gradient(unit, self._needed(label), level)

    def _needed(self, label: Tensor | None) -> Tensor:
        if label is None:
            raise EbmtrajError("model pair has no energy without a value and a place; give labels")
        return label

    @torch.no_grad()
    def sample(
        self, count: int, generator: torch.Generator, labels: Tensor | None = None, *, watch: Watch | None = None
    ) -> Tensor:
        """Draw images down the noise ladder, `(count, C, H, W)`."""
        return annealed(self, self.net, count, generator, self.check_labels(count, labels), watch=watch)

    def _noised(self, batch: ImageBatch, generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor | None]:
        """Images, labels, levels, images under noise of these, and by how much the network of the value sees them moved."""
        assert batch.label is not None
        x, label = self.unit(batch.x), batch.label
        if not self.training:
            draws = max(1, min(self.config.validation_draws, 4096 // len(x)))
            x, label = x.repeat(draws, 1, 1, 1), label.repeat(draws)
        level = self.config.noise.draw(len(x), generator)
        noised = x + spread_out(level, x) * torch.empty_like(x).normal_(generator=generator)
        away = torch.rand((len(x), 2), generator=generator, device=x.device) if self.training else None
        return x, label, level, noised, away

    def _apart(self, batch: ImageBatch, generator: torch.Generator) -> tuple[Tensor, dict[str, Tensor]]:
        """The energy of the value on images of all values at one place, that of the place on those of one value."""
        x, label, level, noised, away = self._noised(batch, generator)
        first = self.net.values[label] == 0  # the value that is seen at all places
        errors = []
        for i, own in enumerate((~first, first)):
            seen = None if away is None else away[own]
            slope = self.net.alone(i).gradient(noised[own], label[own], level[own], seen)
            errors.append(denoising_error(x[own], noised[own], slope, level[own]))
        loss = torch.cat(errors).mean()
        return loss, {"score_matching": loss.detach()}

    def _together(self, batch: ImageBatch, generator: torch.Generator) -> tuple[Tensor, dict[str, Tensor]]:
        x, label, level, noised, away = self._noised(batch, generator)
        errors = denoising_error(x, noised, self.net.gradient(noised, label, level, away), level)
        loss = by_value(errors, self.net.values[label], len(self.net.value_codes))
        return loss, {"score_matching": loss.detach(), "validation": loss.detach()}

    def _kl(self, batch: ImageBatch, generator: torch.Generator) -> tuple[Tensor, dict[str, Tensor]]:
        """Score matching, and contrastive divergence with the KL term that it leaves out, at one level of noise."""
        loss, logs = self._together(batch, generator)
        if not self.training:
            return loss, logs
        level = torch.tensor(self.config.kl_level, device=loss.device)
        x, label = self.unit(batch.x), batch.label
        positive, start = (x + level * torch.empty_like(x).normal_(generator=generator) for _ in range(2))
        energy = _AtLevel(self.net, level)
        divergence, more, _ = improved_contrastive_divergence(
            energy, positive, start, self.config.kl_chain, context=label, generator=generator
        )
        return loss + self.config.kl_weight * divergence, {**logs, "entropy": more["entropy"]}


def by_value(errors: Tensor, values: Tensor, kinds: int) -> Tensor:
    """Mean over values of the mean of their errors `(B,)`; values `(B,)` from 0 to `kinds` - 1, absent ones are left out.

    Else the value that is seen at all places, most of the data, is what the energy of the place takes for usual.
    """
    own = F.one_hot(values, kinds).to(errors)
    count = own.sum(0)
    return ((errors @ own) / count.clamp_min(1)).sum() / (count > 0).sum()


class _AtLevel(torch.nn.Module):
    """A noise-conditional energy at one level."""

    def __init__(self, net: ValuePlaceEnergy, level: Tensor) -> None:
        super().__init__()
        self.net, self.level = net, level

    def forward(self, x: Tensor, label: Tensor) -> Tensor:
        """Energies `(B,)`."""
        value: Tensor = self.net(x, label, self.level)
        return value

    def gradient(self, x: Tensor, label: Tensor) -> Tensor:
        """Gradient in x, `(B, *event)`."""
        return self.net.gradient(x, label, self.level)
