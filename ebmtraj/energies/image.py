"""Noise-conditional energies of images, with or without a class label.

All have one form, in unit coordinates (pixels shifted and scaled to mean 0 and spread about 1) at noise level s:

    E(x, s | y) = base(x, s | y) + e(u, s | y) / s,  u = x / sqrt(1 + s^2)

where e is a network's and the base a density that is known at every level: N(0, 1 + s^2), for which this is the energy of
`energies.transition.ResidualEnergy`, or a mixture of Gaussians. exp(-E) is an exponential tilt of the base (paper 004).
"""

from __future__ import annotations

import abc
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ebmtraj.energies.base import Composable
from ebmtraj.energies.image_base import MixtureBase, UnitGaussian, spread_out
from ebmtraj.nets.mlp import LevelFeatures, silu_with_slope

Base = UnitGaussian | MixtureBase


class Tilt(nn.Module, abc.ABC):
    """The network's share e(u, s | y) of the energy; labels `(B,)` int64, -1 or None where there is none."""

    @abc.abstractmethod
    def forward(self, u: Tensor, label: Tensor | None, level: Tensor) -> Tensor:
        """e `(B,)` of events `(B, *event)` at levels `(B,)`."""

    @abc.abstractmethod
    def gradient(self, u: Tensor, label: Tensor | None, level: Tensor) -> Tensor:
        """Its gradient in u, `(B, *event)`, differentiable in the parameters where gradients are enabled."""


class ImageEnergy(Composable, nn.Module):
    """A base and its tilt: the energy that sampler and objective are given."""

    base: Base
    tilt: Tilt

    def __init__(self, base: Base, tilt: Tilt) -> None:
        super().__init__()
        self.base, self.tilt = base, tilt

    def forward(self, x: Tensor, label: Tensor | None, level: Tensor) -> Tensor:
        """Energies `(B,)` of events `(B, *event)` at level `()` or `(B,)`."""
        level = level.expand(len(x))
        u = x * torch.rsqrt(1 + spread_out(level, x) ** 2)
        value: Tensor = self.base(x, label, level) + self.tilt(u, label, level) / level
        return value

    def tilt_gradient(self, u: Tensor, label: Tensor | None, level: Tensor) -> Tensor:
        """Gradient of e in u, `(B, *event)`; what denoising score matching trains."""
        return self.tilt.gradient(u, label, level)

    def gradient(self, x: Tensor, label: Tensor | None, level: Tensor) -> Tensor:
        """Gradient of the energy in x, `(B, *event)`."""
        level = level.expand(len(x))
        s = spread_out(level, x)
        shrink = torch.rsqrt(1 + s**2)
        return self.base.gradient(x, label, level) + self.tilt.gradient(x * shrink, label, level) * shrink / s

    def start(
        self, count: int, shape: tuple[int, ...], label: Tensor | None, level: float, generator: torch.Generator
    ) -> Tensor:
        """Where chains set out at the top of a noise ladder: the base under that noise, `(count, *shape)`."""
        if isinstance(self.base, MixtureBase):
            return self.base.sample(count, label, level, generator).view(count, *shape)
        return (1 + level**2) ** 0.5 * torch.empty((count, *shape), device=generator.device).normal_(generator=generator)


class Guided(Composable, nn.Module):
    """(1 + w) E(x | y) - w E(x): the class counts for more than in the data (Ho and Salimans 2022)."""

    def __init__(self, energy: ImageEnergy, weight: float) -> None:
        super().__init__()
        self.energy, self.weight = energy, weight

    def forward(self, x: Tensor, label: Tensor | None, level: Tensor) -> Tensor:
        """Energies `(B,)`."""
        value: Tensor = (1 + self.weight) * self.energy(x, label, level) - self.weight * self.energy(x, None, level)
        return value

    def gradient(self, x: Tensor, label: Tensor | None, level: Tensor) -> Tensor:
        """Gradient in x, `(B, *event)`."""
        told, free = (self.energy.gradient(x, each, level) for each in (label, None))
        return (1 + self.weight) * told - self.weight * free


class MLPTilt(Tilt):
    """e = u . G + g with G and g the outputs of one swish network, whose layers each class shifts and scales.

    The input gradient is a product of matrices, so that training on it needs no second autograd pass.
    """

    def __init__(self, event: tuple[int, ...], classes: int, *, width: int = 512, depth: int = 2) -> None:
        """`classes` 0: no labels. A row of the gains and biases is kept for images without one."""
        super().__init__()
        self.size = int(torch.Size(event).numel())
        self.level_features = LevelFeatures()
        self.input = nn.Linear(self.size, width)
        self.input_level = nn.Linear(self.level_features.size, width, bias=False)
        self.hidden = nn.ModuleList(nn.Linear(width, width) for _ in range(depth - 1))
        self.output = nn.Linear(width, self.size + 1)
        self.gains = nn.ModuleList(ClassGain(classes, width) for _ in range(depth)) if classes else None
        nn.init.normal_(self.output.weight, std=1e-3)
        nn.init.zeros_(self.output.bias)

    def _layers(self, u: Tensor, label: Tensor | None, level: Tensor) -> tuple[Tensor, list[Tensor], list[Tensor | None]]:
        """What enters the last layer, and the slope and gain of each layer before it."""
        h = self.input(u.flatten(1)) + self.input_level(self.level_features(level))
        slopes, gains = [], []
        for i in range(len(self.hidden) + 1):
            gain = None
            if self.gains is not None:
                gain, bias = cast(ClassGain, self.gains[i])(label, len(u))
                h = h * gain + bias
            value, slope = silu_with_slope(h)
            slopes.append(slope)
            gains.append(gain)
            if i < len(self.hidden):
                h = self.hidden[i](value)
        return value, slopes, gains

    def forward(self, u: Tensor, label: Tensor | None, level: Tensor) -> Tensor:
        """e `(B,)`."""
        value, _, _ = self._layers(u, label, level)
        out = self.output(value)
        return (u.flatten(1) * out[:, : self.size]).sum(1) + out[:, self.size]

    def gradient(self, u: Tensor, label: Tensor | None, level: Tensor) -> Tensor:
        """Gradient of e in u: as many products back as forward."""
        value, slopes, gains = self._layers(u, label, level)
        weight = self.output.weight
        direct = F.linear(value, weight[: self.size], self.output.bias[: self.size])
        back = u.flatten(1) @ weight[: self.size] + weight[self.size]
        for i in reversed(range(len(slopes))):
            back = back * slopes[i]
            gain = gains[i]
            if gain is not None:
                back = back * gain
            back = back @ (cast(Tensor, self.hidden[i - 1].weight) if i else self.input.weight)
        return (direct + back).view_as(u)


class ClassGain(nn.Module):
    """A gain, 1 at first, and a bias for each unit and class; those of images without a label stand in the last row."""

    def __init__(self, classes: int, width: int) -> None:
        super().__init__()
        self.classes = classes
        self.table = nn.Embedding(classes + 1, 2 * width)
        nn.init.normal_(self.table.weight, std=0.02)

    def forward(self, label: Tensor | None, rows: int) -> tuple[Tensor, Tensor]:
        """Gain and bias, `(B, width)` each or, without labels, `(1, width)`."""
        last = self.table.weight[-1:]
        found = last if label is None else self.table(torch.where(label < 0, self.classes, label))
        gain, bias = found.chunk(2, dim=-1)
        return 1 + gain, bias
