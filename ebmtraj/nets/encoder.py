"""A small convolutional encoder that is told a noise level at every layer. Gain and bias by level: Perez et al. 2018."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ebmtraj.nets.conv import convolution, modulated
from ebmtraj.nets.mlp import LevelFeatures


class Encoder(nn.Module):
    """`(B, C, H, W)` at noise levels `(B,)` -> `(B, outputs)`.

    Each stage halves the image and adds one convolution beside a shortcut, until its side is at most 4; a dense layer
    follows. One small network of the level gives the gain and bias of every channel.
    """

    def __init__(
        self,
        shape: tuple[int, int, int],
        outputs: int,
        *,
        width: int = 48,
        stride: int = 2,
        normalise: bool = False,
        pool: bool = False,
        extra: int = 0,
        told: int = 64,
    ) -> None:
        """`width` channels first, up to four times as many later; the first convolution has `stride` 1 or 2.

        `normalise`: group normalisation, with which classes are learnt far sooner, at a higher price a step. `pool`: the
        mean over places enters the dense layer, so that what is learnt at one place holds at others. `extra` numbers are
        told at every layer beside the level.
        """
        super().__init__()
        channels, height, across = shape
        layers = [convolution(channels, width, 5 if stride == 2 else 3, stride=stride)]
        widths, self.shortcut = [width], [False]
        height, across = math.ceil(height / stride), math.ceil(across / stride)
        if stride == 2:
            layers.append(convolution(width, width))
            widths.append(width)
            self.shortcut.append(True)
        most = width * (4 if stride == 1 else 2)
        while max(height, across) > 4:
            following = min(2 * widths[-1], most)
            layers += [convolution(widths[-1], following, stride=2), convolution(following, following)]
            widths += [following, following]
            self.shortcut += [False, True]
            height, across = (height + 1) // 2, (across + 1) // 2
        self.layers = nn.ModuleList(layers)
        self.norms = nn.ModuleList(
            nn.GroupNorm(8, each) if normalise and i and each % 8 == 0 else nn.Identity() for i, each in enumerate(widths)
        )
        self.pool = pool
        self.dense = nn.Linear(widths[-1] * (1 if pool else height * across), 2 * most)
        self.output = nn.Linear(2 * most, outputs)
        self.level = LevelFeatures()
        self.told = nn.Linear(self.level.size + extra, told)
        gains = [nn.Linear(told, 2 * each) for each in (*widths, 2 * most)]
        self.gains = nn.ModuleList(gains)
        for layer in gains:
            nn.init.normal_(layer.weight, std=0.02)
            nn.init.zeros_(layer.bias)

    def forward(self, x: Tensor, level: Tensor, extra: Tensor | None = None) -> Tensor:
        """The outputs `(B, outputs)`, given the `extra` numbers `(B, extra)` where there are any."""
        told = self.level(level) if extra is None else torch.cat((self.level(level), extra), dim=-1)
        told = F.silu(self.told(told))
        gains = [(1 + gain, bias) for gain, bias in (layer(told).chunk(2, dim=-1) for layer in self.gains)]
        for layer, norm, shortcut, gain in zip(self.layers, self.norms, self.shortcut, gains, strict=False):
            h = F.silu(modulated(norm(layer(x)), gain))
            x = x + h if shortcut else h
        flat = x.mean((2, 3)) if self.pool else x.flatten(1)
        out: Tensor = self.output(F.silu(modulated(self.dense(flat), gains[-1])))
        return out


def class_codes(classes: tuple[str, ...], few: int = 40, waves: int = 6) -> Tensor:
    """What each class is to a network whose outputs are weighted by it, `(K, F)`.

    Which one it is or, where there are more than `few` and their names hold numbers such as "0.5,0.25", smooth functions of
    these numbers: then classes near one another are alike. Of several numbers, all products.
    """
    try:
        numbers = torch.tensor([[float(part) for part in name.split(",")] for name in classes], dtype=torch.float64)
    except ValueError:
        numbers = None
    if len(classes) <= few or numbers is None:
        return torch.eye(len(classes))
    low, high = numbers.min(0).values, numbers.max(0).values
    unit = 2 * (numbers - low) / (high - low).clamp_min(1e-9) - 1
    codes = torch.ones(len(classes), 1, dtype=torch.float64)
    for column in unit.T.unsqueeze(-1):
        if float(column.max()) > float(column.min()):
            waved = torch.cos((column + 1) * torch.arange(1, waves + 1) * (torch.pi / 2))
            each = torch.cat((torch.ones_like(column), column, column**2, waved), dim=1)
            codes = (codes.unsqueeze(2) * each.unsqueeze(1)).flatten(1)
    return codes.float()
