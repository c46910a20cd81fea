"""Image models with an energy (or a free field) at every noise level, trained by denoising score matching.

Vincent 2011; Karras et al. 2022; the tilt: paper 004.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from ebmtraj.energies.image import Base, Guided, ImageEnergy, MLPTilt, Tilt
from ebmtraj.energies.image_base import MixtureBase, UnitGaussian
from ebmtraj.energies.image_conv import SMALL, Network, NetworkTilt, chosen_network
from ebmtraj.errors import EbmtrajError
from ebmtraj.images.data import ImageBatch, ImageData
from ebmtraj.images.model import ImageModel, Watch
from ebmtraj.nets.conv import ConvNet
from ebmtraj.nets.resnet import ResNet
from ebmtraj.samplers.anneal import Ladder
from ebmtraj.samplers.langevin import LangevinConfig, langevin
from ebmtraj.training.losses import NoiseConfig, denoising_score_matching
from ebmtraj.training.trainable import Stage

LADDER = Ladder(levels=16, sigma_max=20.0, sigma_min=0.02)
BaseName = Literal["auto", "unit", "whole", "gaussian", "mixture"]


@dataclass(frozen=True)
class NoiseConditionalConfig:
    """A network's tilt of a base that is known at every noise level.

    Raises `EbmtrajError` for a setting out of its range, for guidance without unlabelled images, and for a sampler without a
    ladder.
    """

    network: Network = "auto"  # auto: mlp for images of at most 1,024 entries, else resnet
    width: int = 512  # of dense layers
    depth: int = 2  # hidden layers
    channels: int = 64  # of the first convolution
    base: BaseName = "auto"  # what is tilted, see `chosen_base`; given labels, all but unit and whole are each class's own
    components: int = 20  # of a mixture, or of each class
    floor: float = 0.3  # added to the variances of a fitted base
    noise: NoiseConfig = field(default_factory=lambda: NoiseConfig(mean=-0.4, std=1.2))
    sampler: LangevinConfig = field(default_factory=lambda: LangevinConfig(steps=0, ladder=LADDER))
    unlabelled: float = 0.1  # share of the training images whose label is hidden, so that there is an E(x), too
    guidance: float = 0.0  # how much more than in the data the class counts when sampling, see `Guided`
    validation_draws: int = 16  # noise levels for each validation image

    def __post_init__(self) -> None:
        for name in ("width", "depth", "channels", "components", "floor", "validation_draws"):
            if getattr(self, name) <= 0:
                raise EbmtrajError(f"network.{name} = {getattr(self, name)} must be above 0")
        if not 0 <= self.unlabelled <= 1:
            raise EbmtrajError(f"network.unlabelled = {self.unlabelled}; it needs 0 <= unlabelled <= 1")
        if self.guidance < 0 or (self.guidance > 0 and self.unlabelled == 0):
            raise EbmtrajError(
                f"network: guidance = {self.guidance}, unlabelled = {self.unlabelled}; guidance takes E(x), too: "
                "set unlabelled above 0"
            )
        if self.sampler.ladder is None:
            raise EbmtrajError("network.sampler: this model is sampled down a noise ladder; set network.sampler.ladder")


def chosen_base(base: BaseName, shape: tuple[int, int, int], conditional: bool) -> BaseName:
    """What `auto` is, for small images: a mixture of Gaussians for p(x), one Gaussian of all classes for p(x | y) (whole).

    By validation: Gaussians of each class make samples of less spread, and N(0, 1), which `auto` is for large images, does
    not tell how improbable light is in pixels that are always dark, so that inverted images pass for real ones.
    """
    if base != "auto":
        return base
    if math.prod(shape) > SMALL:
        return "unit"
    return "whole" if conditional else "mixture"


class NoiseConditionalModel(ImageModel):
    """Objective `dsm`: the noise-conditional energy of a base and a network's tilt, by denoising score matching."""

    name = "dsm"
    Config = NoiseConditionalConfig
    config: NoiseConditionalConfig
    training_defaults: ClassVar[dict[str, Any]] = {
        "steps": 2000,
        "batch": 128,
        "learning_rate": 2e-3,
        "warmup": 50,
        "ema": 0.995,
        "check_every": 100,
    }
    conditional_defaults: ClassVar[dict[str, Any]] = {"guidance": 0.05, "floor": 0.03}

    def __init__(
        self, shape: Sequence[int], classes: Sequence[str], *, conditional: bool, config: NoiseConditionalConfig
    ) -> None:
        super().__init__(shape, classes, conditional=conditional, config=config)
        count = len(self.classes) if conditional else 0
        kind = chosen_base(config.base, self.shape, conditional)
        components = 1 if kind in ("gaussian", "whole") else config.components
        own = 0 if kind == "whole" else count
        base: Base = UnitGaussian() if kind == "unit" else MixtureBase(self.shape, components, own)
        self.net = ImageEnergy(base, self.make_tilt(count))

    def make_tilt(self, classes: int) -> Tilt:
        """The network, for so many classes (0: no labels)."""
        config = self.config
        kind = chosen_network(config.network, self.shape)
        if kind == "mlp":
            return MLPTilt(self.shape, classes, width=config.width, depth=config.depth)
        if kind == "conv":
            return NetworkTilt(ConvNet(self.shape, 1, classes=classes, levels=True, width=config.channels))
        return NetworkTilt(ResNet(self.shape, 1, classes=classes, levels=True, width=config.channels, normalise=True))

    def prepare(self, data: ImageData, most: int = 20_000) -> None:
        """As every model; and fit the base."""
        super().prepare(data, most)
        if isinstance(self.net.base, MixtureBase):
            batch = data.at(torch.arange(min(most, len(data)), device=data.device))
            self.net.base.fit(self.unit(batch.x), batch.label if self.net.base.classes else None, self.config.floor)

    def stages(self) -> list[Stage]:
        """Score matching throughout."""
        return [Stage(self.name, 1.0, self.net.tilt, self._loss)]

    def energy(self, unit: Tensor, label: Tensor | None, level: Tensor) -> Tensor:
        """E(x, s) or E(x, s | y), `(B,)`."""
        value: Tensor = self.net(unit, label, level)
        return value

    def gradient(self, unit: Tensor, label: Tensor | None, level: Tensor) -> Tensor:
        """Gradient of the energy in the image, `(B, C, H, W)`."""
        return self.net.gradient(unit, label, level)

    @torch.no_grad()
    def sample(
        self, count: int, generator: torch.Generator, labels: Tensor | None = None, *, watch: Watch | None = None
    ) -> Tensor:
        """Draw images down the noise ladder, `(count, C, H, W)`."""
        labels = self.check_labels(count, labels)

        def seen(x: Tensor) -> Tensor:
            if watch is not None:
                watch(self.pixels(x))
            return x

        ladder = self.config.sampler.ladder
        start = self.net.start(count, self.shape, labels, ladder.sigma_max if ladder else 1.0, generator)
        guided = labels is not None and self.config.guidance > 0
        energy = Guided(self.net, self.config.guidance) if guided else self.net
        x, _ = langevin(energy, start, self.config.sampler, context=labels, project=seen, generator=generator)
        return self.pixels(x)

    def _loss(self, batch: ImageBatch, generator: torch.Generator) -> tuple[Tensor, dict[str, Tensor]]:
        x, label = self.unit(batch.x), batch.label if self.conditional else None
        if not self.training:  # few images: several levels of noise each, always the same
            draws = max(1, min(self.config.validation_draws, 4096 // len(x)))
            x, label = x.repeat(draws, 1, 1, 1), None if label is None else label.repeat(draws)
        elif label is not None and self.config.unlabelled > 0:
            hidden = torch.rand(len(x), generator=generator, device=x.device) < self.config.unlabelled
            label = label.masked_fill(hidden, -1)
        loss = denoising_score_matching(self.net, x, label, self.config.noise, generator, self.net.base.gradient).mean()
        return loss, {"validation": loss.detach()}
