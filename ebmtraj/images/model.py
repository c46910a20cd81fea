"""What every model of images shares: shape, classes, scaling of pixels, and what it may be asked for."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor

from ebmtraj.errors import EbmtrajError
from ebmtraj.images.data import ImageData
from ebmtraj.training.trainable import Trainable

Watch = Callable[[Tensor], None]


class ImageModel(Trainable):
    """p(x) or p(x, y) over images of one size, in whatever form.

    Pixels `(B, C, H, W)` are in [0, 1]; networks and samplers work in unit coordinates, see `unit`. Labels are `(B,)` int64.
    A subclass sets `name` and `Config`, builds its networks in `__init__`, and gives `stages` and what it can of the rest;
    what it can't raises `EbmtrajError` that says so.
    """

    name: ClassVar[str]
    Config: ClassVar[type]
    training_defaults: ClassVar[dict[str, Any]] = {}  # of the recipe's `training`, where they differ from the usual ones
    conditional_defaults: ClassVar[dict[str, Any]] = {}  # of the recipe's `network`, for models that are given labels
    classifies: ClassVar[bool] = False  # whether it has `logits`
    labelled: ClassVar[bool] = False  # whether it can only be trained with labels
    closed_form: ClassVar[bool] = False  # whether `prepare` fits all of it, so that there is nothing to take steps on
    shift: Tensor
    scale: Tensor

    def __init__(self, shape: Sequence[int], classes: Sequence[str], *, conditional: bool, config: Any) -> None:
        """`shape` (C, H, W); with `conditional`, p(x | y) is learnt and samples may be asked for by label.

        Raises `EbmtrajError` where labels are needed and the images have none.
        """
        super().__init__()
        self.shape: tuple[int, int, int] = (int(shape[0]), int(shape[1]), int(shape[2]))
        self.classes, self.conditional, self.config = tuple(classes), conditional, config
        if (conditional or self.labelled) and not self.classes:
            raise EbmtrajError(f"model {self.name}: these images have no labels; " + ("drop --conditional" * conditional))
        self.register_buffer("shift", torch.zeros(self.shape[0], 1, 1))
        self.register_buffer("scale", torch.ones(self.shape[0], 1, 1))

    @torch.no_grad()
    def prepare(self, data: ImageData, most: int = 20_000) -> None:
        """Take what must be known of the training data before the first step: mean and spread of each channel."""
        x = data.at(torch.arange(min(most, len(data)), device=data.device)).x
        self.shift.copy_(x.mean((0, 2, 3)).view_as(self.shift))
        self.scale.copy_(x.std((0, 2, 3)).clamp_min(1e-3).view_as(self.scale))

    def unit(self, pixels: Tensor) -> Tensor:
        """Pixels shifted and scaled to mean 0 and spread 1 over the training images, `(B, C, H, W)`.

        Raises `EbmtrajError` for images of another size.
        """
        if pixels.shape[1:] != self.shape:
            raise EbmtrajError(f"images of shape {tuple(pixels.shape[1:])}; this model was trained on {self.shape}")
        return (pixels - self.shift) / self.scale

    def pixels(self, unit: Tensor) -> Tensor:
        """The inverse of `unit`, clamped to [0, 1]."""
        return (unit * self.scale + self.shift).clamp(0, 1)

    def energy(self, unit: Tensor, label: Tensor | None, level: Tensor) -> Tensor:
        """E(x, s), or E(x, s | y) given labels, `(B,)`, of images in unit coordinates at noise level `()` or `(B,)`."""
        raise EbmtrajError(f"model {self.name} has no energy")

    def gradient(self, unit: Tensor, label: Tensor | None, level: Tensor) -> Tensor:
        """Gradient of the energy in the image, `(B, C, H, W)`."""
        raise EbmtrajError(f"model {self.name} has no energy")

    def denoise(self, unit: Tensor, level: Tensor, label: Tensor | None = None) -> Tensor:
        """The expected clean image given one under noise of this level: x - s^2 grad E (Tweedie), `(B, C, H, W)`."""
        s = level.reshape(-1, *[1] * (unit.dim() - 1))
        return unit - s**2 * self.gradient(unit, label, level)

    def log_density(self, pixels: Tensor, level: Tensor | float = 0.1, label: Tensor | None = None) -> Tensor:
        """log p(x) of images under noise of this level in unit coordinates, up to a constant of the level, `(B,)`."""
        return -self.energy(self.unit(pixels), label, torch.as_tensor(level, device=pixels.device))

    def logits(self, pixels: Tensor, level: Tensor | float | None = None) -> Tensor:
        """Unnormalised log p(y | x), `(B, K)`, where the model `classifies`."""
        raise EbmtrajError(f"model {self.name} does not classify; train a joint one: ebmtraj train jem")

    def validation(self, data: ImageData) -> float:
        """Validation loss of a model in `closed_form`: the mean of -log p(x), or -log p(x | y), without noise."""
        return float(-self.log_density(data.pixels, 0.0, data.label if self.conditional else None).mean())

    def sample(
        self, count: int, generator: torch.Generator, labels: Tensor | None = None, *, watch: Watch | None = None
    ) -> Tensor:
        """Draw images, `(count, C, H, W)` pixels, of the given classes `(count,)` where there are labels.

        `watch` is shown the state of the chains in pixels as they go, where there are chains.
        """
        raise EbmtrajError(f"model {self.name} does not generate images")

    def check_labels(self, count: int, labels: Tensor | None) -> Tensor | None:
        """The labels `(count,)` that samples are drawn for: a conditional model draws classes evenly where none are given.

        Raises `EbmtrajError` for labels that are out of range, too many or too few, or asked of a model without classes.
        """
        if labels is None:
            own = torch.arange(count, device=self.shift.device) * len(self.classes) // max(1, count)
            return own if self.conditional else None
        if not self.conditional:
            raise EbmtrajError(f"model {self.name} was trained without labels; train one with --conditional")
        if len(labels) != count or (count and not 0 <= int(labels.min()) <= int(labels.max()) < len(self.classes)):
            raise EbmtrajError(
                f"labels: {len(labels)} for {count} images, from {len(self.classes)} classes; give one an image, from 0 to "
                f"{len(self.classes) - 1}"
            )
        return labels.to(self.shift.device)

    def header(self) -> dict[str, Any]:
        """What a checkpoint must say so that `load_image_model` gives this model back."""
        return {
            "kind": "image",
            "model": self.name,
            "conditional": self.conditional,
            "network": dataclasses.asdict(self.config),
            "shape": list(self.shape),
            "classes": list(self.classes),
        }
