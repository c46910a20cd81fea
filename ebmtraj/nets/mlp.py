"""Fully connected networks with swish (SiLU) between their layers."""

from __future__ import annotations

import itertools
from functools import lru_cache

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.parametrizations import spectral_norm

from ebmtraj.errors import EbmtrajError

MOST_LAYERS = 1000


def hidden_sizes(width: int, depth: int) -> list[int]:
    """As many times `width` as there are hidden layers; raises `EbmtrajError` for more of them than any network has."""
    if depth > MOST_LAYERS:
        raise EbmtrajError(f"network: depth = {depth:,}; there are at most {MOST_LAYERS:,} hidden layers")
    return [width] * depth


class MLP(nn.Sequential):
    """`depth` hidden layers of `width` units, `(B, inputs) -> (B, outputs)`."""

    def __init__(
        self,
        inputs: int,
        outputs: int,
        *,
        width: int = 128,
        depth: int = 3,
        spectral: bool = False,
        small: bool = False,
    ) -> None:
        """`spectral` bounds every layer's Lipschitz constant by 1; `small` starts the last layer near 0."""
        sizes = [inputs, *hidden_sizes(width, depth), outputs]
        layers: list[nn.Module] = []
        for i, (a, b) in enumerate(itertools.pairwise(sizes)):
            linear = nn.Linear(a, b)
            if small and i == depth:
                nn.init.normal_(linear.weight, std=1e-3)
                nn.init.zeros_(linear.bias)
            layers.append(spectral_norm(linear) if spectral else linear)
            if i < depth:
                layers.append(nn.SiLU())
        super().__init__(*layers)


class LevelFeatures(nn.Module):
    """Sines and cosines of the logarithm of a noise level, `(...,) -> (..., 2 * count)`."""

    frequencies: Tensor

    def __init__(self, count: int = 8) -> None:
        super().__init__()
        self.size = 2 * count
        self.register_buffer("frequencies", 2.0 ** (torch.arange(count) / 2 - 1.5))

    def forward(self, level: Tensor) -> Tensor:
        """Features of levels above 0."""
        phase = level.log().unsqueeze(-1) * self.frequencies
        return torch.cat((phase.sin(), phase.cos()), dim=-1)


@lru_cache(maxsize=256)  # a ladder asks for the same few levels in every chain
def _features_at(frequencies: tuple[float, ...], level: float, dtype: torch.dtype) -> Tensor:
    phase = torch.tensor(level, dtype=dtype).log() * torch.tensor(frequencies, dtype=dtype)
    return torch.cat((phase.sin(), phase.cos()))


def known_features(features: LevelFeatures, level: float) -> Tensor:
    """What `LevelFeatures` gives for one level on a CPU, `(2 * count,)`, looked up where it was asked for before."""
    return _features_at(tuple(2.0 ** (i / 2 - 1.5) for i in range(features.size // 2)), level, features.frequencies.dtype)


def silu_with_slope(x: Tensor) -> tuple[Tensor, Tensor]:
    """SiLU and its derivative, elementwise, of any shape."""
    gate = torch.sigmoid(x)
    value = x * gate
    return value, gate + value * (1 - gate)


class TimeFeatures(nn.Module):
    """Sines and cosines of a time in [0, 1], `(...,) -> (..., 2 * count)`; periods from 4 down to about 1/3."""

    frequencies: Tensor

    def __init__(self, count: int = 8) -> None:
        super().__init__()
        self.size = 2 * count
        self.register_buffer("frequencies", torch.pi * 2.0 ** (torch.arange(count) / 2 - 1))

    def forward(self, time: Tensor) -> Tensor:
        """Features of times."""
        phase = time.unsqueeze(-1) * self.frequencies
        return torch.cat((phase.sin(), phase.cos()), dim=-1)


def softly_bounded(raw: Tensor, low: float, high: float) -> Tensor:
    """`raw`, of any shape, brought between `low` and `high` by softplus, which keeps the gradient alive beyond them."""
    below = high - F.softplus(high - raw)
    return low + F.softplus(below - low)


class GaussianMLP(nn.Module):
    """Mean and log standard deviation of a diagonal Gaussian, `(B, inputs) -> (B, outputs), (B, outputs)`."""

    def __init__(
        self,
        inputs: int,
        outputs: int,
        *,
        width: int = 128,
        depth: int = 3,
        low: float = -3.5,
        high: float = 1.5,
    ) -> None:
        """`low` and `high` bound the log standard deviation, so that no residual can explode or vanish."""
        super().__init__()
        self.net = MLP(inputs, 2 * outputs, width=width, depth=depth)
        self.low, self.high = low, high

    def forward(self, inputs: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and log standard deviation."""
        mean, raw = self.net(inputs).chunk(2, dim=-1)
        return mean, softly_bounded(raw, self.low, self.high)
