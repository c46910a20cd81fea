"""Points in the plane whose density is known: 25 Gaussians, a Swiss roll and a checkerboard.

Gaussians and roll are those of Gulrajani et al. 2017, which paper 004 uses, at their scale: a spread of about 1.
"""

from __future__ import annotations

import abc
import difflib
import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ebmtraj.datasets.blocks import SPLITS
from ebmtraj.errors import EbmtrajError

Points = NDArray[np.float64]
_QUADRATURE = 2000  # points along the roll


@dataclass(frozen=True)
class Toy(abc.ABC):
    """A distribution over the plane with a support of no width, and Gaussian noise about it."""

    name: ClassVar[str]
    sigma: ClassVar[float]  # of the noise; 0: points lie on the support
    reach: ClassVar[float]  # within how many sigma of the support a point counts as good
    bound: ClassVar[float]  # of a picture, about 0, either side

    @abc.abstractmethod
    def draw(self, count: int, rng: np.random.Generator) -> Points:
        """Points (N, 2)."""

    @abc.abstractmethod
    def distance(self, points: Points) -> Points:
        """From each point (N, 2) to the support, (N,)."""

    @abc.abstractmethod
    def log_density(self, points: Points) -> Points:
        """Normalised log density, (N, 2) -> (N,)."""

    @property
    def modes(self) -> Points | None:
        """Places of the modes (M, 2), where they are points."""
        return None

    def share_within(self, points: ArrayLike, reach: float | None = None) -> float:
        """Share of points (N, 2) within `reach` sigma of the support."""
        return float((self.distance(as_points(points)) <= (self.reach if reach is None else reach) * self.sigma).mean())

    def modes_hit(self, points: ArrayLike, reach: float | None = None) -> int:
        """How many modes have at least one point (N, 2) within `reach` sigma; raises `EbmtrajError` where none are known."""
        if self.modes is None:
            raise EbmtrajError(f"toy {self.name} has no modes that could be counted")
        distance = np.linalg.norm(as_points(points)[:, None] - self.modes, axis=-1)
        near = (self.reach if reach is None else reach) * self.sigma
        return len(np.unique(distance.argmin(1)[distance.min(1) <= near]))


class Gaussians(Toy):
    """25 Gaussians of the same weight on a 5 x 5 grid, 40 sigma apart."""

    name = "25-gaussians"
    sigma = 0.05 / 8**0.5
    reach = 4.0
    bound = 1.8

    @property
    def modes(self) -> Points:
        """Centres (25, 2)."""
        side = np.arange(-4.0, 5.0, 2.0) / 8**0.5
        return np.stack(np.meshgrid(side, side, indexing="ij"), axis=-1).reshape(-1, 2)

    def draw(self, count: int, rng: np.random.Generator) -> Points:
        """A centre, and noise."""
        return self.modes[rng.integers(25, size=count)] + self.sigma * rng.standard_normal((count, 2))

    def distance(self, points: Points) -> Points:
        """To the nearest centre."""
        return np.asarray(np.linalg.norm(points[:, None] - self.modes, axis=-1).min(1))

    def log_density(self, points: Points) -> Points:
        """Of the mixture."""
        return _mixture(points, self.modes, self.sigma)


class SwissRoll(Toy):
    """(t cos t, t sin t) with t uniform on [1.5 pi, 4.5 pi] and noise 0.25, over 7.5."""

    name = "swiss-roll"
    sigma = 0.25 / 7.5
    reach = 2.0
    bound = 2.4

    @staticmethod
    def curve(t: Points) -> Points:
        """Points of the roll itself, (N,) -> (N, 2)."""
        return np.stack([t * np.cos(t), t * np.sin(t)], axis=-1) / 7.5

    def draw(self, count: int, rng: np.random.Generator) -> Points:
        """A place on the roll, and noise."""
        return self.curve(np.pi * rng.uniform(1.5, 4.5, count)) + self.sigma * rng.standard_normal((count, 2))

    def distance(self, points: Points) -> Points:
        """To the roll: the nearest of many places on it, then two steps of Newton's method."""
        t = self._places()
        near = t[np.concatenate([_squares(part, self.curve(t)).argmin(1) for part in _parts(points)])]
        for _ in range(2):
            first = np.stack([np.cos(near) - near * np.sin(near), np.sin(near) + near * np.cos(near)], axis=-1) / 7.5
            second = np.stack([-2 * np.sin(near) - near * np.cos(near), 2 * np.cos(near) - near * np.sin(near)], -1) / 7.5
            left = self.curve(near) - points
            curvature = (first**2).sum(1) + (left * second).sum(1)
            step = np.where(curvature > 0, (left * first).sum(1) / np.where(curvature > 0, curvature, 1), 0)
            near = np.clip(near - step, 1.5 * np.pi, 4.5 * np.pi)
        return np.asarray(np.linalg.norm(points - self.curve(near), axis=1))

    def log_density(self, points: Points) -> Points:
        """By quadrature along the roll, whose step is a fifth of sigma."""
        return _mixture(points, self.curve(self._places()), self.sigma)

    @staticmethod
    def _places() -> Points:
        return np.pi * (1.5 + 3 * (np.arange(_QUADRATURE) + 0.5) / _QUADRATURE)


class Checkerboard(Toy):
    """Uniform on the 8 black fields of a 4 x 4 board over [-2, 2]^2."""

    name = "checkerboard"
    sigma = 0.0
    reach = 0.0
    bound = 2.4

    def draw(self, count: int, rng: np.random.Generator) -> Points:
        """A black field, and a place in it."""
        column, pair = rng.integers(4, size=count), rng.integers(2, size=count)
        corner = np.stack([column, 2 * pair + column % 2], axis=-1)
        return corner - 2 + rng.uniform(size=(count, 2))

    def distance(self, points: Points) -> Points:
        """To the nearest black field."""
        column, pair = np.divmod(np.arange(8), 2)
        corners = np.stack([column, 2 * pair + column % 2], axis=-1) - 2.0
        outside = np.abs(points[:, None] - corners - 0.5) - 0.5
        return np.asarray(np.linalg.norm(np.maximum(outside, 0), axis=-1).min(1))

    def log_density(self, points: Points) -> Points:
        """1/8 on black fields, 0 beside them."""
        return np.where(self.distance(points) == 0, -np.log(8), -np.inf)


TOYS: Mapping[str, Toy] = {toy.name: toy for toy in (Gaussians(), SwissRoll(), Checkerboard())}


def toy(name: str) -> Toy:
    """The toy of this name; raises `EbmtrajError` for another one."""
    if name not in TOYS:
        close = difflib.get_close_matches(name, TOYS, n=1)
        raise EbmtrajError(f"unknown toy {name!r}; " + (f"did you mean {close[0]}?" if close else f"use {', '.join(TOYS)}"))
    return TOYS[name]


def sample(name: str, count: int, seed: int = 0, split: str = "train") -> Points:
    """Points (N, 2) of a toy; each seed and each split ("train", "validation", "test") has draws of its own.

    Raises `EbmtrajError` for an unknown name or split.
    """
    if split not in SPLITS:
        raise EbmtrajError(f"unknown split {split!r}; use one of {', '.join(SPLITS)}")
    if count < 1 or seed < 0:
        raise EbmtrajError(f"toy {name}: count = {count}, seed = {seed}; it needs count >= 1 and seed >= 0")
    return toy(name).draw(count, np.random.default_rng([seed, SPLITS.index(split)]))


def toy_hash(name: str, count: int, seed: int) -> str:
    """A name for the exact points of the training split."""
    return hashlib.sha256(np.round(sample(name, count, seed), 9).tobytes()).hexdigest()


def as_points(points: ArrayLike) -> Points:
    """Points (N, 2) as float64; raises `EbmtrajError` for another shape."""
    found = np.asarray(points, np.float64)
    if found.ndim != 2 or found.shape[1] != 2 or not len(found):
        raise EbmtrajError(f"points of a plane are (N, 2), not {found.shape}")
    return found


def _squares(points: Points, centres: Points) -> Points:
    return np.asarray(((points[:, None] - centres) ** 2).sum(-1))


def _parts(points: Points, most: int = 1000) -> list[Points]:
    return [points[start : start + most] for start in range(0, len(points), most)]


def _mixture(points: Points, centres: Points, sigma: float) -> Points:
    """Log density of a mixture of round Gaussians of the same weight."""
    found = []
    for part in _parts(as_points(points)):
        exponent = -_squares(part, centres) / (2 * sigma**2)
        most = exponent.max(1)
        found.append(most + np.log(np.exp(exponent - most[:, None]).mean(1)))
    return np.concatenate(found) - np.log(2 * np.pi * sigma**2)
