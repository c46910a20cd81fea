"""A small convolutional encoder that is told a noise level at every layer. Gain and bias by level: Perez et al. 2018."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ebmtraj.nets.conv import convolution, modulated
from ebmtraj.nets.mlp import LevelFeatures
from ebmtraj.nets.torus import wrapped


class Encoder(nn.Module):
    """`(B, C, H, W)` at noise levels `(B,)` -> `(B, outputs)`, by convolutions.

    A stage at each side of H, H/2, ... down to 4 has a convolution that enters it and one beside a shortcut; a dense layer
    follows. One small network of the level gives the gain and bias of every channel.
    """

    def __init__(
        self,
        shape: tuple[int, int, int],
        outputs: int,
        *,
        width: int = 24,
        details: bool = False,
        torus: bool = False,
        normalise: bool = False,
        pool: bool = False,
        extra: int = 0,
        told: int = 64,
    ) -> None:
        """`width` channels first, up to four times as many later.

        `details`: the sum over places of a pointwise layer of every stage is added to the outputs, and the first stage has
        its second convolution, too. `torus`: pictures lie on one, so that convolutions see no border, and what is learnt at
        one place holds at every other as far as halving the picture lets it. `normalise`: group normalisation, with which
        factors are learnt far sooner; on a torus it hides how large things are. `pool`: the mean over places enters the
        dense layer, so that it is blind to them. `extra` numbers are told at every layer beside the level.
        """
        super().__init__()
        channels, high, wide = shape
        sides, widths = [(high, wide)], [width]
        while max(sides[-1]) > 4:
            sides.append(((sides[-1][0] + 1) // 2, (sides[-1][1] + 1) // 2))
            widths.append(min(2 * widths[-1], 4 * width))
        stages, self.pool, hidden = range(len(widths)), pool, 2 * widths[-1]
        before = [channels, *widths]
        kind = _Circular if torus else convolution
        self.enter = nn.ModuleList(kind(before[i], widths[i], stride=2 if i else 1) for i in stages)
        self.stay = nn.ModuleList(kind(each, each) if i or details else nn.Identity() for i, each in enumerate(widths))
        self.norms = nn.ModuleList(
            nn.GroupNorm(8, each) if normalise and i and each % 8 == 0 else nn.Identity()
            for i, each in enumerate(widths)
            for _ in range(2)
        )
        self.dense = nn.Linear(widths[-1] * (1 if pool else sides[-1][0] * sides[-1][1]), hidden)
        summed = widths if details else []
        self.points = nn.ModuleList(nn.Conv2d(each, each, 1) for each in summed)
        sums = [nn.Linear(each, outputs, bias=False) for each in summed]
        self.sums = nn.ModuleList(sums)
        for layer in sums:
            nn.init.normal_(layer.weight, std=1e-2)
        self.output = nn.Linear(hidden, outputs)
        self.level = LevelFeatures()
        self.told = nn.Linear(self.level.size + extra, told)
        gains = [nn.Linear(told, 2 * each) for each in (*(each for each in widths for _ in range(2)), hidden, *summed)]
        self.gains = nn.ModuleList(gains)
        for gain in gains:
            nn.init.normal_(gain.weight, std=0.02)
            nn.init.zeros_(gain.bias)
        self.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # faster on a CPU

    def forward(self, x: Tensor, level: Tensor, extra: Tensor | None = None) -> Tensor:
        """The outputs `(B, outputs)`, given the `extra` numbers `(B, extra)` where there are any."""
        told = self.level(level) if extra is None else torch.cat((self.level(level), extra), dim=-1)
        told = F.silu(self.told(told))
        gains = [(1 + gain, bias) for gain, bias in (layer(told).chunk(2, dim=-1) for layer in self.gains)]
        stages = []
        for i, (enter, stay) in enumerate(zip(self.enter, self.stay, strict=True)):
            x = F.silu(modulated(self.norms[2 * i](enter(x)), gains[2 * i]))
            if not isinstance(stay, nn.Identity):
                x = x + F.silu(modulated(self.norms[2 * i + 1](stay(x)), gains[2 * i + 1]))
            stages.append(x)
        rest = gains[2 * len(stages) :]
        flat = x.mean((2, 3)) if self.pool else x.flatten(1)
        out: Tensor = self.output(F.silu(modulated(self.dense(flat), rest[0])))
        for h, point, total, gain in zip(stages, self.points, self.sums, rest[1:], strict=False):
            out = out + total(F.silu(modulated(point(h), gain)).sum((2, 3)))
        return out


class _Circular(nn.Conv2d):
    """A 3 x 3 convolution on a torus."""

    def __init__(self, inputs: int, outputs: int, *, stride: int = 1) -> None:
        super().__init__(inputs, outputs, 3, stride=stride)

    def forward(self, input: Tensor) -> Tensor:
        """As the base."""
        return super().forward(wrapped(input))


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
