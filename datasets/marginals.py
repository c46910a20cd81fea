"""Gaussianising marginals: a monotone map of each dimension that brings its distribution to a unit Gaussian's."""

from __future__ import annotations

import torch
from torch import Tensor, nn

REACH = 3.0  # standard deviations that the outermost knots stand for; beyond them the map goes on straight
KNOTS = 61


class Marginals(nn.Module):
    """Piecewise linear maps z -> y, one a dimension, fitted to quantiles; the identity until `fit`.

    Sticking joints put a spike of no change into an increment's distribution, and contacts give it heavy tails. On the
    quantile scale the spike is as wide as its probability and the tails are a Gaussian's, so that a smooth model can
    learn both. The marginal step of Gaussianisation (Chen & Gopinath 2000) and of copula models.
    """

    knots: Tensor  # (D, K), increasing
    levels: Tensor  # (K,), what they are mapped to

    def __init__(self, size: int) -> None:
        super().__init__()
        levels = torch.linspace(-REACH, REACH, KNOTS)
        self.register_buffer("levels", levels)
        self.register_buffer("knots", levels.repeat(size, 1))

    @torch.no_grad()
    def fit(self, values: Tensor, least: float = 1e-4) -> None:
        """Take the quantiles of rows `(R, D)` of about unit spread; knots stay `least` apart, so that slopes are finite."""
        probabilities = 0.5 * (1 + torch.erf(self.levels.double() / 2**0.5))
        ordered = values.double().sort(dim=0).values
        place = probabilities * (len(ordered) - 1)
        low = place.floor().long()
        high = (low + 1).clamp_max(len(ordered) - 1)
        knots = torch.lerp(ordered[low], ordered[high], (place - low).unsqueeze(-1)).T
        # around the middle, so that a spike of equal values is spread to both sides alike
        middle = KNOTS // 2
        steps = knots.diff(dim=1).clamp_min(least)
        up, down = steps[:, middle:].cumsum(1), steps[:, :middle].flip(1).cumsum(1).flip(1)
        centre = knots[:, middle : middle + 1]
        self.knots.copy_(torch.cat((centre - down, centre, centre + up), dim=1))

    def forward(self, z: Tensor) -> Tensor:
        """`(..., D) -> (..., D)` on the Gaussian's scale."""
        i = self._segment(self.knots, z)
        low, high = self._ends(z.shape, i)
        return self.levels[i] + (z - low) / (high - low) * (self.levels[1] - self.levels[0])

    def inverse(self, y: Tensor) -> Tensor:
        """The inverse of the map."""
        width = self.levels[1] - self.levels[0]
        i = ((y - self.levels[0]) / width).long().clamp(0, KNOTS - 2)
        low, high = self._ends(y.shape, i)
        return low + (y - self.levels[i]) / width * (high - low)

    def _segment(self, knots: Tensor, z: Tensor) -> Tensor:
        flat = z.reshape(-1, z.shape[-1]).T.contiguous()
        return (torch.searchsorted(knots, flat, right=True) - 1).clamp(0, KNOTS - 2).T.reshape(z.shape)

    def _ends(self, shape: torch.Size, segment: Tensor) -> tuple[Tensor, Tensor]:
        flat = segment.reshape(-1, shape[-1]).T
        low, high = self.knots.gather(1, flat), self.knots.gather(1, flat + 1)
        return low.T.reshape(shape), high.T.reshape(shape)
