"""Gaussians and mixtures of them, fitted in closed form or by expectation maximisation: strong on small images."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from ebmtraj.energies.image_base import MixtureBase
from ebmtraj.errors import EbmtrajError
from ebmtraj.images.data import ImageData
from ebmtraj.images.model import ImageModel, Watch
from ebmtraj.training.trainable import Stage


@dataclass(frozen=True)
class DensityConfig:
    """A Gaussian. Raises `EbmtrajError` for a setting out of its range."""

    floor: float = 0.02  # added to every variance, of a spread of 1

    def __post_init__(self) -> None:
        if self.floor <= 0:
            raise EbmtrajError(f"network.floor = {self.floor} must be above 0")


@dataclass(frozen=True)
class MixtureConfig(DensityConfig):
    """A mixture of full Gaussians. Raises `EbmtrajError` for a setting out of its range."""

    floor: float = 0.03
    components: int = 40  # in all, or of each class where labels are given

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.components < 1:
            raise EbmtrajError(f"network.components = {self.components} must be above 0")


class Density(ImageModel):
    """A density that is fitted once to all training images; under noise of any level it is known, too."""

    Config: ClassVar[type] = DensityConfig
    config: Any
    closed_form = True  # fitted by `prepare`: there is nothing to take steps on

    def __init__(self, shape: Sequence[int], classes: Sequence[str], *, conditional: bool, config: Any) -> None:
        super().__init__(shape, classes, conditional=conditional, config=config)
        self.base = MixtureBase(self.shape, self.components, len(self.classes) if self.by_class else 0)

    @property
    def components(self) -> int:
        """Gaussians in all, or of each class."""
        return 1

    @property
    def by_class(self) -> bool:
        """Whether each class has components of its own."""
        return self.conditional

    def prepare(self, data: ImageData, most: int = 20_000) -> None:
        """Scale pixels, and fit."""
        super().prepare(data, most)
        batch = data.at(torch.arange(min(most, len(data)), device=data.device))
        self.base.fit(self.unit(batch.x), batch.label if self.by_class else None, self.config.floor)

    def stages(self) -> list[Stage]:
        """None: `prepare` has fitted it."""
        return []

    def energy(self, unit: Tensor, label: Tensor | None, level: Tensor) -> Tensor:
        """-log p(x), or -log p(x, y), under noise of this level, up to a constant of the size."""
        value: Tensor = self.base(unit, label, level)
        return value

    def gradient(self, unit: Tensor, label: Tensor | None, level: Tensor) -> Tensor:
        """Gradient of the energy in the image."""
        return self.base.gradient(unit, label, level)

    @torch.no_grad()
    def sample(
        self, count: int, generator: torch.Generator, labels: Tensor | None = None, *, watch: Watch | None = None
    ) -> Tensor:
        """Draw images exactly, `(count, C, H, W)`."""
        labels = self.check_labels(count, labels)
        return self.pixels(self.base.sample(count, labels, 0.0, generator).view(count, *self.shape))


class GaussianModel(Density):
    """One Gaussian; with --conditional one for each class."""

    name = "gaussian"


class ClassGaussianModel(Density):
    """A Gaussian for each class, whose mixture is the density of all; as quadratic discriminants they classify, too."""

    name = "class-gaussian"
    labelled = True
    classifies = True

    @property
    def by_class(self) -> bool:
        """Always."""
        return True

    def logits(self, pixels: Tensor, level: Tensor | float | None = None) -> Tensor:
        """log p(x, y) up to a constant, `(B, K)`, without noise unless a level is given."""
        unit, level = self.unit(pixels), torch.as_tensor(0.0 if level is None else level, device=pixels.device)
        labels = torch.arange(len(self.classes), device=pixels.device)
        return torch.stack([-self.energy(unit, label.expand(len(unit)), level) for label in labels], dim=1)


class MixtureModel(Density):
    """A mixture of Gaussians; with --conditional one for each class."""

    name = "gmm"
    Config = MixtureConfig
    conditional_defaults: ClassVar[dict[str, Any]] = {"components": 4}

    @property
    def components(self) -> int:
        """As the recipe says."""
        return int(self.config.components)
