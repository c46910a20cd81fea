"""Encoders and decoders of images and vectors: dense layers for small events, convolutions for large images."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn

from ebmtraj.nets.mlp import hidden_sizes

SMALL = 1024  # entries of an event up to which layers are dense


def coders(
    shape: Sequence[int], codes: int, latent: int, width: int, depth: int, told: int = 0
) -> tuple[nn.Module, nn.Module]:
    """An encoder, events `(B, *shape)` -> `(B, codes)`, and a decoder, `(B, latent)` -> `(B, *shape)`.

    Both take a second argument: a one-hot class `(B, told)`, or None. `width`: of dense layers, or channels of the
    innermost convolution; `depth` counts dense layers. Events of up to 1024 entries have dense layers.
    """
    event, size = tuple(shape), math.prod(shape)
    if size <= SMALL or len(event) != 3:
        encoder = _Dense(size, codes, told, width, depth, (codes,))
        return encoder, _Dense(latent, size, told, width, depth, event)
    sides = [(event[1], event[2])]
    while max(sides[-1]) > 4:
        sides.append(((sides[-1][0] + 1) // 2, (sides[-1][1] + 1) // 2))
    return _ConvEncoder(event, sides, told, codes, width), _ConvDecoder(event, sides, told, latent, width)


class _Dense(nn.Module):
    """Fully connected layers on flat inputs and, where there is one, a one-hot class."""

    def __init__(self, inputs: int, outputs: int, told: int, width: int, depth: int, event: tuple[int, ...]) -> None:
        super().__init__()
        sizes = [inputs + told, *hidden_sizes(width, depth)]
        layers = [layer for a, b in pairwise(sizes) for layer in (nn.Linear(a, b), nn.SiLU())]
        self.body = nn.Sequential(*layers, nn.Linear(width, outputs))
        self.event = event

    def forward(self, x: Tensor, told: Tensor | None = None) -> Tensor:
        flat = x.flatten(1)
        out: Tensor = self.body(flat if told is None else torch.cat([flat, told], dim=1))
        return out.view(len(x), *self.event)


class _ConvEncoder(nn.Module):
    def __init__(self, shape: tuple[int, ...], sides: list[tuple[int, int]], told: int, codes: int, width: int) -> None:
        super().__init__()
        widths = [max(16, width >> (len(sides) - 1 - i)) for i in range(len(sides))]
        layers: list[nn.Module] = [nn.Conv2d(shape[0] + told, widths[0], 3, padding=1), nn.SiLU()]
        for a, b in pairwise(widths):
            layers += [nn.Conv2d(a, b, 3, stride=2, padding=1), nn.GroupNorm(8, b), nn.SiLU()]
        self.body = nn.Sequential(*layers, nn.Flatten(), nn.Linear(widths[-1] * sides[-1][0] * sides[-1][1], codes))

    def forward(self, x: Tensor, told: Tensor | None = None) -> Tensor:
        if told is not None:
            x = torch.cat([x, told[:, :, None, None].expand(-1, -1, *x.shape[2:])], dim=1)
        out: Tensor = self.body(x)
        return out


class _ConvDecoder(nn.Module):
    def __init__(self, shape: tuple[int, ...], sides: list[tuple[int, int]], told: int, codes: int, width: int) -> None:
        super().__init__()
        widths = [max(16, width >> (len(sides) - 1 - i)) for i in range(len(sides))]
        self.first = (widths[-1], *sides[-1])
        self.input = nn.Linear(codes + told, widths[-1] * sides[-1][0] * sides[-1][1])
        layers: list[nn.Module] = []
        for i in range(len(sides) - 1, 0, -1):
            layers += [nn.Upsample(size=sides[i - 1]), nn.Conv2d(widths[i], widths[i - 1], 3, padding=1)]
            layers += [nn.GroupNorm(8, widths[i - 1]), nn.SiLU()]
        self.body = nn.Sequential(nn.SiLU(), *layers, nn.Conv2d(widths[0], shape[0], 3, padding=1))

    def forward(self, z: Tensor, told: Tensor | None = None) -> Tensor:
        out: Tensor = self.body(self.input(z if told is None else torch.cat([z, told], dim=1)).view(len(z), *self.first))
        return out
