"""Convolutions with swish: what networks of images are made of, and a small plain one."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.parametrizations import spectral_norm

from ebmtraj.nets.mlp import LevelFeatures


def convolution(inputs: int, outputs: int, side: int = 3, *, stride: int = 1, spectral: bool = False) -> nn.Module:
    """A convolution that keeps the size of its images (or divides it by `stride`, rounded up)."""
    layer = nn.Conv2d(inputs, outputs, side, stride=stride, padding=side // 2)
    return spectral_norm(layer) if spectral else layer


def linear(inputs: int, outputs: int, *, spectral: bool = False) -> nn.Module:
    """A linear layer, with its largest singular value held at 1 where `spectral`."""
    layer = nn.Linear(inputs, outputs)
    return spectral_norm(layer) if spectral else layer


class Gains(nn.Module):
    """A gain and a bias for each channel, by class (paper 000, section 4.1) and by noise level, 1 and 0 at first.

    `classes` 0: no labels; a last row is for images without one (label -1 or None). `levels`: whether noise levels are seen.
    """

    def __init__(self, channels: int, classes: int = 0, levels: bool = False, std: float = 0.02) -> None:
        super().__init__()
        self.classes = classes
        self.table = nn.Embedding(classes + 1, 2 * channels) if classes else None
        self.features = LevelFeatures() if levels else None
        self.level = nn.Linear(LevelFeatures().size, 2 * channels, bias=False) if levels else None
        for layer in (self.table, self.level):
            if layer is not None:
                nn.init.normal_(layer.weight, std=std)

    def forward(self, label: Tensor | None, level: Tensor | None) -> tuple[Tensor, Tensor] | None:
        """Gain and bias, `(B, channels)` each or `(1, channels)`; None where there is nothing to depend on.

        Labels are `(B,)` int64, levels `(B,)`.
        """
        total: Tensor | None = None
        if self.table is not None:
            last = self.table.weight[-1:]
            total = last if label is None else self.table(torch.where(label < 0, self.classes, label))
        if self.level is not None and self.features is not None and level is not None:
            by_level = self.level(self.features(level))
            total = by_level if total is None else total + by_level
        if total is None:
            return None
        gain, bias = total.chunk(2, dim=-1)
        return 1 + gain, bias


def modulated(h: Tensor, gains: tuple[Tensor, Tensor] | None) -> Tensor:
    """`h` `(B, C, H, W)` or `(B, C)` times the gains and plus the biases of its channels."""
    if gains is None:
        return h
    gain, bias = (each.reshape(*each.shape, *[1] * (h.dim() - 2)) for each in gains)
    return h * gain + bias


class ConvNet(nn.Module):
    """Plain convolutions, halving the image until its side is at most 4, then one linear layer.

    `(B, C, H, W) -> (B, outputs)`, given labels `(B,)` where there are `classes` and noise levels `(B,)` where `levels`.
    """

    def __init__(
        self,
        shape: tuple[int, int, int],
        outputs: int,
        *,
        classes: int = 0,
        levels: bool = False,
        width: int = 32,
        spectral: bool = False,
    ) -> None:
        super().__init__()
        channels, height, across = shape
        layers = [convolution(channels, width, spectral=spectral)]
        widths = [width]
        while max(height, across) > 4:
            following = min(2 * widths[-1], 4 * width)
            layers.append(convolution(widths[-1], following, stride=2, spectral=spectral))
            widths.append(following)
            height, across = (height + 1) // 2, (across + 1) // 2
        self.layers = nn.ModuleList(layers)
        self.gains = nn.ModuleList(Gains(each, classes, levels) for each in widths)
        self.output = linear(widths[-1] * height * across, outputs, spectral=spectral)

    def forward(self, x: Tensor, label: Tensor | None = None, level: Tensor | None = None) -> Tensor:
        """The outputs `(B, outputs)`."""
        for layer, gains in zip(self.layers, self.gains, strict=True):
            x = F.silu(modulated(layer(x), gains(label, level)))
        out: Tensor = self.output(x.flatten(1))
        return out
