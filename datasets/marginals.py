"""Gaussianising marginals: a monotone map of each dimension that brings its distribution to a unit Gaussian's."""

from __future__ import annotations

import torch
from torch import Tensor, nn

LEVELS = (-5.0, -4.5, -4.0, -3.5, *(round(0.1 * i, 1) for i in range(-30, 31)), 3.5, 4.0, 4.5, 5.0)  # standard deviations
LEAST = 1e-3  # slope dz/dy, so that a spike is spread, and no further
WIDENING = 0.1  # of the range seen, on either side: what lies beyond is never given back


class Marginals(nn.Module):
    """Piecewise linear maps z -> y, one a dimension, fitted to quantiles; the identity until `fit`.

    Sticking joints put a spike of no change into an increment's distribution, and contacts give it heavy tails. On the
    quantile scale the spike is as wide as its probability and the tails are a Gaussian's, so that a smooth model can
    learn both. The marginal step of Gaussianisation (Chen & Gopinath 2000) and of copula models.

    Beyond the quantiles that the rows can tell, the map goes on straight, and z at least as fast as y: a Gaussian's tail
    or a heavier one, so that nothing new, however far, lies further out in y than it does itself.
    """

    knots: Tensor  # (D, K), increasing
    levels: Tensor  # (K,), what they are mapped to
    low: Tensor  # (D,), least z that the inverse gives
    high: Tensor  # (D,), and the greatest

    def __init__(self, size: int) -> None:
        super().__init__()
        levels = torch.tensor(LEVELS)
        self.register_buffer("levels", levels)
        self.register_buffer("knots", levels.repeat(size, 1))
        self.register_buffer("low", torch.full((size,), -torch.inf))
        self.register_buffer("high", torch.full((size,), torch.inf))

    @torch.no_grad()
    def fit(self, values: Tensor, low: Tensor, high: Tensor) -> None:
        """Take the quantiles of `values` `(R, D)` of about unit spread, a sample of rows between `low` and `high` `(D,)`."""
        levels = self.levels.double()
        ordered = values.double().sort(dim=0).values
        place = torch.special.ndtr(levels) * len(ordered) - 0.5  # row i of R stands for the quantile (i + 0.5) / R
        known = (place >= 0) & (place <= len(ordered) - 1)
        place = place.clamp(0, len(ordered) - 1)
        before, after = place.floor().long(), place.ceil().long()
        knots = torch.lerp(ordered[before], ordered[after], (place - before).unsqueeze(-1)).T
        knots[:, 0], knots[:, -1] = low, high
        centre = knots[:, len(levels) // 2].unsqueeze(1)
        told, widths, middle = known[1:] & known[:-1], levels.diff(), len(levels) // 2
        steps = torch.maximum(knots.diff(dim=1), LEAST * widths)
        inner = (steps / widths)[:, told]  # the outermost slopes that rows tell of go on, or a unit Gaussian's
        for side, slope in ((slice(0, middle), inner[:, :1]), (slice(middle, None), inner[:, -1:])):
            beyond = slope.clamp_min(1.0) if told.any() else torch.ones_like(centre)
            steps[:, side] = torch.maximum(steps[:, side], torch.where(told, 0.0, beyond * widths)[:, side])
        # around the middle, so that a spike of equal values is spread to both sides alike
        up, down = steps[:, middle:].cumsum(1), steps[:, :middle].flip(1).cumsum(1).flip(1)
        self.knots.copy_(torch.cat((centre - down, centre, centre + up), dim=1))
        wide = WIDENING * (high - low)
        self.low.copy_(low - wide)
        self.high.copy_(high + wide)

    def reset(self) -> None:
        """Back to the identity."""
        self.knots.copy_(self.levels.expand_as(self.knots))
        self.low.fill_(-torch.inf)
        self.high.fill_(torch.inf)

    @property
    def fitted(self) -> bool:
        """Whether these maps are another thing than the identity."""
        return not bool(torch.equal(self.knots, self.levels.expand_as(self.knots)))

    def log_slope(self, z: Tensor) -> Tensor:
        """log dy/dz, `(..., D) -> (..., D)`: what a density over y is multiplied by to be one over z."""
        i = self._segment(z)
        low, high = self._ends(i)
        return torch.log((self.levels[i + 1] - self.levels[i]) / (high - low))

    def forward(self, z: Tensor) -> Tensor:
        """`(..., D) -> (..., D)` on the Gaussian's scale."""
        i = self._segment(z)
        low, high = self._ends(i)
        return self.levels[i] + (z - low) / (high - low) * (self.levels[i + 1] - self.levels[i])

    def inverse(self, y: Tensor) -> Tensor:
        """The inverse of the map, `(..., D)`, kept to the range seen, widened by a tenth of it on either side."""
        i = (torch.bucketize(y.contiguous(), self.levels, right=True) - 1).clamp(0, len(self.levels) - 2)
        low, high = self._ends(i)
        z = low + (y - self.levels[i]) / (self.levels[i + 1] - self.levels[i]) * (high - low)
        return torch.minimum(torch.maximum(z, self.low), self.high)

    def _segment(self, z: Tensor) -> Tensor:
        """Which segment holds z, `(..., D)`; the outermost ones go on."""
        rows = z.reshape(-1, z.shape[-1]).T.contiguous()
        found = torch.searchsorted(self.knots, rows, right=True) - 1
        return found.clamp(0, len(self.levels) - 2).T.reshape(z.shape)

    def _ends(self, segment: Tensor) -> tuple[Tensor, Tensor]:
        rows = segment.reshape(-1, segment.shape[-1]).T
        low, high = self.knots.gather(1, rows), self.knots.gather(1, rows + 1)
        return low.T.reshape(segment.shape), high.T.reshape(segment.shape)
