"""The contract of a generator with a latent space: encode, decode, log prior, sample."""

from __future__ import annotations

import abc
import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor

from ebmtraj.errors import EbmtrajError
from ebmtraj.generators.data import Events
from ebmtraj.training.trainable import Stage, Trainable

LOG_2PI = math.log(2 * math.pi)


class Generator(Trainable):
    """p(z) and x = decode(z), for events `(B, *event)` in the data's own units and latents `(B, latent)`.

    A subclass sets `name`, `Config` and `latent`, and gives `stages`, `encode` and `decode`. Its prior is a unit Gaussian
    unless it says otherwise. An energy that tilts it looks at `view(z)`, which real events have as `view_of(x)`: the
    latent itself, unless real events are better told from generated ones in a later layer.
    """

    name: ClassVar[str]
    Config: ClassVar[type]
    training_defaults: ClassVar[Mapping[str, Any]] = {}  # of the recipe's `training`, where they differ from the usual ones
    point_defaults: ClassVar[Mapping[str, Any]] = {}  # of the recipe's `network` and `training`, for points of a plane
    images_only: ClassVar[bool] = False
    latent: int
    shift: Tensor
    scale: Tensor

    def __init__(self, shape: Sequence[int], levels: int, config: Any) -> None:
        """`shape` of an event; `levels`: steps between its least and greatest value 0 and 1, 0 where it is continuous.

        Raises `EbmtrajError` where the generator is for images and these are none.
        """
        super().__init__()
        self.shape, self.levels, self.config = tuple(int(size) for size in shape), levels, config
        if self.images_only and len(self.shape) != 3:
            raise EbmtrajError(f"model {self.name} is for images, not events of shape {self.shape}; use vae or flow")
        self.register_buffer("shift", torch.zeros(self.shape[0], *[1] * (len(self.shape) - 1)))
        self.register_buffer("scale", torch.ones(self.shape[0], *[1] * (len(self.shape) - 1)))

    @torch.no_grad()
    def prepare(self, data: Events, most: int = 20_000) -> None:
        """Take mean and spread of each channel of the training data."""
        x = data.x[:most]
        over = (0, *range(2, x.dim()))
        self.shift.copy_(x.mean(over).view_as(self.shift))
        self.scale.copy_(x.std(over).clamp_min(1e-3).view_as(self.scale))

    def unit(self, x: Tensor) -> Tensor:
        """Events `(B, *event)` shifted and scaled to mean 0 and spread 1; raises `EbmtrajError` for another shape."""
        if tuple(x.shape[1:]) != self.shape:
            raise EbmtrajError(f"events of shape {tuple(x.shape[1:])}; this generator makes {self.shape}")
        return (x - self.shift) / self.scale

    def event(self, unit: Tensor) -> Tensor:
        """The inverse of `unit`."""
        return unit * self.scale + self.shift

    @abc.abstractmethod
    def encode(self, x: Tensor, generator: torch.Generator) -> Tensor:
        """A latent of each event, drawn where there are many, `(B, latent)`."""

    @abc.abstractmethod
    def decode(self, z: Tensor) -> Tensor:
        """The event of each latent, `(B, *event)`, differentiable in z."""

    def log_prior(self, z: Tensor) -> Tensor:
        """Normalised log p(z), `(B,)`."""
        return -0.5 * (z.square() + LOG_2PI).sum(1)

    def sample_latent(self, count: int, generator: torch.Generator) -> Tensor:
        """Draws of the prior, `(count, latent)`."""
        return torch.empty((count, self.latent), device=self.shift.device).normal_(generator=generator)

    @torch.no_grad()
    def sample(self, count: int, generator: torch.Generator) -> Tensor:
        """Events `(count, *event)`."""
        return self.shown(self.decode(self.sample_latent(count, generator)))

    def shown(self, x: Tensor) -> Tensor:
        """Events `(B, *event)` as the data could have them: pixels clamped to [0, 1]."""
        return x.clamp(0, 1) if self.levels else x

    @property
    def view_shape(self) -> tuple[int, ...]:
        """Of what an energy looks at, without the batch."""
        return (self.latent,)

    def view(self, z: Tensor) -> Tensor:
        """What an energy looks at, `(B, *view)`, differentiable in z."""
        return z

    def view_of(self, x: Tensor, generator: torch.Generator) -> Tensor:
        """The same of real events, `(B, *view)`, drawn where there are many."""
        return self.encode(x, generator)

    def smooth(self, x: Tensor, generator: torch.Generator) -> Tensor:
        """Whole-numbered events `(B, *event)` spread evenly over the step about each value (Uria et al. 2013)."""
        if not self.levels:
            return x
        return x + (torch.empty_like(x).uniform_(generator=generator) - 0.5) / self.levels

    def stages(self) -> list[Stage]:
        """Its training; raises `EbmtrajError` for one that is not trained here."""
        raise EbmtrajError(f"generator {self.name} is not trained here")

    def header(self) -> dict[str, Any]:
        """What a checkpoint must say so that `load_generator` gives this generator back."""
        return {
            "kind": "generator",
            "model": self.name,
            "network": dataclasses.asdict(self.config),
            "shape": list(self.shape),
            "levels": self.levels,
        }
