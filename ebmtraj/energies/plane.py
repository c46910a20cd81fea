"""Energies over the plane whose density is known at every noise level: mixtures of round Gaussians, to compose and test."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from ebmtraj.energies.base import Composable
from ebmtraj.errors import EbmtrajError

BOUND = 3.0  # of pictures and grids: [-BOUND, BOUND]^2
LEAVES: Mapping[str, tuple[str, ...]] = {  # what an expression may name, and the numbers that follow its colon
    "gaussian": ("x", "y", "std"),
    "ring": ("radius", "std"),
    "bar": ("x", "y", "angle", "length", "std"),
    "grid": ("side", "std"),
}


class PlaneMixture(Composable, nn.Module):
    """-log density of a mixture of round Gaussians of one spread, and of the same under noise of a level."""

    centres: Tensor  # (M, 2)
    event = (2,)

    def __init__(self, centres: Tensor, std: float) -> None:
        """`centres` (M, 2), all of the same weight; raises `EbmtrajError` unless the spread `std` is above 0."""
        super().__init__()
        if not std > 0:
            raise EbmtrajError(f"a mixture of spread {std}; it needs a spread above 0")
        self.register_buffer("centres", centres)
        self.std = std

    def _parts(self, x: Tensor, level: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
        """Log of each Gaussian's share of the density (B, M), offsets (B, M, 2) and variance."""
        variance = torch.as_tensor(self.std**2, dtype=x.dtype, device=x.device) + (0 if level is None else level**2)
        variance = variance.reshape(-1, 1)
        off = x.unsqueeze(1) - self.centres
        logs = -0.5 * off.square().sum(-1) / variance - torch.log(2 * math.pi * variance) - math.log(len(self.centres))
        return logs, off, variance

    def forward(self, x: Tensor, context: object = None, level: Tensor | None = None) -> Tensor:
        """Energies `(B,)` of points `(B, 2)`."""
        return -self._parts(x, level)[0].logsumexp(1)

    def gradient(self, x: Tensor, context: object = None, level: Tensor | None = None) -> Tensor:
        """Gradient in x, `(B, 2)`."""
        logs, off, variance = self._parts(x, level)
        return (logs.softmax(1).unsqueeze(-1) * off).sum(1) / variance


def plane_energy(name: str, numbers: list[float]) -> PlaneMixture:
    """The energy of a leaf in `LEAVES`; raises `EbmtrajError` for a length or spread that is not above 0."""
    given = dict(zip(LEAVES[name], numbers, strict=True))
    for key in ("std", "radius", "length", "side"):
        if key in given and not given[key] > 0:
            raise EbmtrajError(f"{name}: {key} = {given[key]:g} must be above 0")
    if name == "gaussian":
        centres = torch.tensor([[given["x"], given["y"]]])
    elif name == "ring":
        angle = 2 * torch.pi * torch.arange(64) / 64
        centres = given["radius"] * torch.stack((angle.cos(), angle.sin()), dim=1)
    elif name == "bar":
        along = given["length"] * torch.linspace(-0.5, 0.5, 32)
        turn = math.radians(given["angle"])
        centres = torch.stack((given["x"] + along * math.cos(turn), given["y"] + along * math.sin(turn)), dim=1)
    else:
        place = given["side"] * torch.linspace(-0.5, 0.5, 3)
        centres = torch.cartesian_prod(place, place)
    return PlaneMixture(centres, given["std"])


def grid_density(energy: nn.Module, bins: int, fine: int = 8, bound: float = BOUND, level: Tensor | None = None) -> Tensor:
    """exp(-E) by integration on a grid, as the probability of each of `bins` x `bins` fields `(bins, bins)`, float64.

    Rows go with y, upwards. Each field is the mean of `fine` x `fine` points, and all add up to 1.
    """
    count = bins * fine
    place = (torch.arange(count, dtype=torch.float32) + 0.5) / count * 2 * bound - bound
    y, x = torch.meshgrid(place, place, indexing="ij")
    points = torch.stack((x.flatten(), y.flatten()), dim=1)
    with torch.no_grad():
        values = torch.cat([energy(part, None, level) for part in points.split(65_536)]).double()
    density = torch.exp(values.min() - values).view(bins, fine, bins, fine).sum((1, 3))
    return density / density.sum()


def sampled_density(points: Tensor, bins: int, bound: float = BOUND) -> Tensor:
    """Share of points `(N, 2)` in each field `(bins, bins)`, float64; those outside of the grid count, but lie in none."""
    index = ((points.double() + bound) / (2 * bound) * bins).floor().long()
    inside = ((index >= 0) & (index < bins)).all(1)
    flat = index[inside, 1] * bins + index[inside, 0]
    return torch.bincount(flat, minlength=bins * bins).double().view(bins, bins) / len(points)


def total_variation(p: Tensor, q: Tensor) -> float:
    """Half the sum of absolute differences of two tables of probabilities, of any shape; what lacks to 1 lies elsewhere."""
    missing = abs(float(p.sum()) - float(q.sum()))
    return 0.5 * (float((p - q).abs().sum()) + missing)
