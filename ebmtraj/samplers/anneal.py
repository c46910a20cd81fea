"""Noise ladders and the deterministic predictors that step down them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from ebmtraj.errors import EbmtrajError


@dataclass(frozen=True)
class Ladder:
    """Noise levels from `sigma_max` down to `sigma_min` (Karras et al. 2022, equation 5)."""

    levels: int = 11  # one more than the steps between them
    sigma_max: float = 5.0
    sigma_min: float = 0.02
    rho: float = 7.0  # how much the levels crowd at the low end
    predictor: Literal["heun", "euler", "none"] = "heun"

    def __post_init__(self) -> None:
        if self.levels < 2 or not 0 < self.sigma_min < self.sigma_max or self.rho <= 0:
            raise EbmtrajError(
                f"noise ladder: levels = {self.levels}, sigma_min = {self.sigma_min}, sigma_max = {self.sigma_max}, "
                f"rho = {self.rho}; it needs levels >= 2, 0 < sigma_min < sigma_max and rho > 0"
            )

    def sigmas(self, device: torch.device | None = None) -> Tensor:
        """The levels, highest first, `(levels,)`, float32."""
        ramp = torch.linspace(0, 1, self.levels, dtype=torch.float64)
        low, high = self.sigma_min ** (1 / self.rho), self.sigma_max ** (1 / self.rho)
        return ((high + ramp * (low - high)) ** self.rho).to(torch.float32).to(device)


def predict(
    gradient: Callable[[Tensor, Tensor], Tensor], x: Tensor, sigma: Tensor, following: Tensor, predictor: str
) -> Tensor:
    """One step of the probability flow dx/ds = s grad E(x; s) from level `sigma` to the `following` one.

    `gradient(x, sigma)` is the input gradient of the noise-conditional energy, `(B, *event) -> (B, *event)`; the score is
    its negative, so this is algorithm 1 of Karras et al. 2022 with s(t) = 1.
    """
    slope = sigma * gradient(x, sigma)
    ahead = x + (following - sigma) * slope
    if predictor == "euler":
        return ahead
    return x + (following - sigma) * 0.5 * (slope + following * gradient(ahead, following))
