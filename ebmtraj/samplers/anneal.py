"""Noise ladders and the deterministic predictors that step down them."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from ebmtraj.errors import EbmtrajError


@dataclass(frozen=True)
class Ladder:
    """Noise levels from `sigma_max` down to `sigma_min`, and how to step from one to the next.

    By `rho` as in Karras et al. 2022, equation 5, or evenly in `angle`, the arc tangent of the level: for data of unit
    spread, where signal and noise are sine and cosine, the path is nearly straight in it (Salimans & Ho 2022, appendix D),
    and three midpoint steps do what ten Heun steps do by levels. Raises `EbmtrajError` unless levels >= 2, 0 < sigma_min <
    sigma_max and rho > 0.
    """

    levels: int = 11  # one more than the steps between them
    sigma_max: float = 5.0
    sigma_min: float = 0.02
    rho: float = 7.0  # how much the levels crowd at the low end
    spacing: Literal["rho", "angle"] = "rho"
    predictor: Literal["heun", "euler", "midpoint", "none"] = "heun"  # midpoint steps in the angle, for data of unit spread

    def __post_init__(self) -> None:
        if self.levels < 2 or not 0 < self.sigma_min < self.sigma_max or self.rho <= 0:
            raise EbmtrajError(
                f"noise ladder: levels = {self.levels}, sigma_min = {self.sigma_min}, sigma_max = {self.sigma_max}, "
                f"rho = {self.rho}; it needs levels >= 2, 0 < sigma_min < sigma_max and rho > 0"
            )

    def sigmas(self, device: torch.device | None = None) -> Tensor:
        """The levels, highest first, `(levels,)`, float32."""
        ramp = torch.linspace(0, 1, self.levels, dtype=torch.float64)
        if self.spacing == "angle":
            low, high = math.atan(self.sigma_min), math.atan(self.sigma_max)
            return torch.tan(high + ramp * (low - high)).to(torch.float32).to(device)
        low, high = self.sigma_min ** (1 / self.rho), self.sigma_max ** (1 / self.rho)
        return ((high + ramp * (low - high)) ** self.rho).to(torch.float32).to(device)


def predict(
    gradient: Callable[[Tensor, Tensor], Tensor], x: Tensor, sigma: Tensor, following: Tensor, predictor: str
) -> Tensor:
    """One step of the probability flow dx/ds = s grad E(x; s) from level `sigma` to the `following` one.

    `gradient(x, sigma)` is the input gradient of the noise-conditional energy, `(B, *event) -> (B, *event)`; the score is
    its negative, so this is algorithm 1 of Karras et al. 2022 with s(t) = 1.
    """
    if predictor == "midpoint":
        return _midpoint(gradient, x, torch.atan(sigma), torch.atan(following))
    slope = sigma * gradient(x, sigma)
    ahead = x + (following - sigma) * slope
    if predictor == "euler":
        return ahead
    return x + (following - sigma) * 0.5 * (slope + following * gradient(ahead, following))


def _midpoint(gradient: Callable[[Tensor, Tensor], Tensor], x: Tensor, angle: Tensor, following: Tensor) -> Tensor:
    """A midpoint step in the angle a = arctan s: with u = x cos a, du/da = tan(a) (grad E / cos a - u)."""

    def slope(u: Tensor, angle: Tensor) -> Tensor:
        cosine, level = torch.cos(angle), torch.tan(angle)
        return level * (gradient(u / cosine, level) / cosine - u)

    step = following - angle
    u = x * torch.cos(angle)
    half = u + 0.5 * step * slope(u, angle)
    return (u + step * slope(half, angle + 0.5 * step)) / torch.cos(following)
