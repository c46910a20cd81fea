"""Pictures on a torus: moved by any part of a pixel, and an encoder to which all places are alike."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ebmtraj.nets.conv import modulated
from ebmtraj.nets.mlp import LevelFeatures

RATES = (1, 1, 2, 4)  # of the convolutions: together they see 17 pixels


def moved(x: Tensor, by: Tensor) -> Tensor:
    """Pictures `(B, C, H, W)` whose content at `by` `(B, 2)`, right and down in shares of the sides, comes to lie at 0.

    Waves are turned, so that parts of a pixel are possible and white noise stays white, but for the highest waves.
    """
    high, wide = x.shape[2:]
    down, right = torch.fft.fftfreq(high, 1 / high, device=x.device), torch.fft.rfftfreq(wide, 1 / wide, device=x.device)
    turns = down[:, None] * by[:, 1, None, None] + right * by[:, 0, None, None]
    waves = torch.fft.rfft2(x) * torch.polar(torch.ones_like(turns), 2 * torch.pi * turns).unsqueeze(1)
    return torch.fft.irfft2(waves, s=(high, wide))


class TorusEncoder(nn.Module):
    """`(B, C, H, W)` at noise levels `(B,)` -> `(B, outputs)`, the same for a picture moved on the torus by whole pixels.

    Dilated convolutions in place of halved pictures, and sums over places.
    """

    def __init__(self, channels: int, outputs: int, *, width: int = 16, extra: int = 0, told: int = 64) -> None:
        """`extra` numbers are told at every layer beside the level."""
        super().__init__()
        self.level = LevelFeatures()
        self.told = nn.Linear(self.level.size + extra, told)
        self.convs = nn.ModuleList(nn.Conv2d(width if i else channels, width, 3, dilation=r) for i, r in enumerate(RATES))
        self.points = nn.ModuleList(nn.Conv2d(width, 2 * width, 1) for _ in RATES)
        gains = [nn.Linear(told, 2 * each) for each in (width, 2 * width) for _ in RATES]
        self.gains = nn.ModuleList(gains)
        for gain in gains:
            nn.init.normal_(gain.weight, std=0.02)
            nn.init.zeros_(gain.bias)
        sums = [nn.Linear(2 * width, outputs, bias=False) for _ in RATES]
        self.sums = nn.ModuleList(sums)
        for layer in sums:
            nn.init.normal_(layer.weight, std=1e-2)
        self.dense = nn.Linear(width, 4 * width)
        self.output = nn.Linear(4 * width, outputs)
        self.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # faster on a CPU

    def forward(self, x: Tensor, level: Tensor, extra: Tensor | None = None) -> Tensor:
        """The outputs `(B, outputs)`, given the `extra` numbers `(B, extra)` where there are any."""
        told = self.level(level) if extra is None else torch.cat((self.level(level), extra), dim=-1)
        told = F.silu(self.told(told))
        gains = [(1 + gain, bias) for gain, bias in (layer(told).chunk(2, dim=-1) for layer in self.gains)]
        out = x.new_zeros(())
        for i, (conv, rate, point, total) in enumerate(zip(self.convs, RATES, self.points, self.sums, strict=True)):
            h = F.silu(modulated(conv(wrapped(x, rate)), gains[i]))
            x = x + h if i else h
            out = out + total(F.silu(modulated(point(x), gains[len(RATES) + i])).sum((2, 3)))
        out = out + self.output(F.silu(self.dense(x.mean((2, 3)))))
        return out


def wrapped(x: Tensor, by: int = 1) -> Tensor:
    """Pictures `(B, C, H, W)` with `by` pixels of the other side joined to each; faster on a CPU than circular padding."""
    x = torch.cat((x[..., -by:, :], x, x[..., :by, :]), dim=-2)
    return torch.cat((x[..., -by:], x, x[..., :by]), dim=-1)
