"""Sprites: one white shape on black whose shape, scale, orientation and place are known, as in dSprites, rendered here.

Factors have dSprites' values (Matthey et al. 2017): 3 shapes, 6 scales from 0.5 to 1, 40 orientations over a whole turn and
32 x 32 places. A store holds a seeded draw of the 737,280 combinations, none twice.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ebmtraj.datasets.image_writer import RawImages
from ebmtraj.datasets.images import stratified_splits
from ebmtraj.errors import EbmtrajError

SHAPES = ("square", "ellipse", "heart")
FACTORS = ("shape", "scale", "orientation", "x", "y")
SCALES = np.linspace(0.5, 1.0, 6)
ORIENTATIONS = np.linspace(0.0, 2 * np.pi, 40)  # rad; the last is the first again, as in dSprites
PLACES = np.linspace(0.0, 1.0, 32)
COUNTS = (len(SHAPES), len(SCALES), len(ORIENTATIONS), len(PLACES), len(PLACES))
SIZES = (16, 32, 64)
IMAGES, SHARES = 20_000, (0.1, 0.2)  # validation and test
_BATCH = 1_000_000  # points at once


def render_sprites(factors: ArrayLike, size: int) -> NDArray[np.uint8]:
    """Pictures of sprites.

    factors (N, 5): shape (0, 1, 2), scale, orientation (rad), x and y in [0, 1] (right and down) -> (N, 1, size, size) from
    0 to 255. A centre moves over the inner half of the picture, so that no sprite leaves it. Raises `EbmtrajError` for
    factors of another shape or range.
    """
    values = np.asarray(factors, np.float64)
    if values.ndim != 2 or values.shape[1] != len(FACTORS) or not np.isin(values[:, 0], range(len(SHAPES))).all():
        raise EbmtrajError(f"sprites: factors have shape {values.shape}; give (N, 5): {', '.join(FACTORS)}, shape 0, 1 or 2")
    if not (values[:, 1] > 0).all() or (values[:, [1, 3, 4]] > 1).any() or (values[:, 3:] < 0).any():
        raise EbmtrajError("sprites: scale lies in (0, 1], x and y in [0, 1]")
    fine = max(2, 5 - size // 16)  # points a pixel and side, by which edges are smoothed
    points = ((np.arange(size * fine) + 0.5) / (size * fine)).astype(np.float32)
    pictures = np.empty((len(values), 1, size, size), np.uint8)
    rows = max(1, _BATCH // len(points) ** 2)
    for number, inside in enumerate((_square, _ellipse, _heart)):
        members = np.flatnonzero(values[:, 0] == number)
        for start in range(0, len(members), rows):
            chosen = members[start : start + rows]
            scale, angle, x, y = values[chosen, 1:].astype(np.float32).T[:, :, None, None]
            right, down = points[None, None, :] - (0.25 + 0.5 * x), points[None, :, None] - (0.25 + 0.5 * y)
            along = (np.cos(angle) * right + np.sin(angle) * down) / scale
            across = (np.cos(angle) * down - np.sin(angle) * right) / scale
            covered = inside(along, across).reshape(-1, size, fine, size, fine).mean((2, 4))
            pictures[chosen, 0] = np.round(255 * covered).astype(np.uint8)
    return pictures


def _square(x: NDArray[np.float32], y: NDArray[np.float32]) -> NDArray[np.bool_]:
    return np.maximum(np.abs(x), np.abs(y)) <= 0.16


def _ellipse(x: NDArray[np.float32], y: NDArray[np.float32]) -> NDArray[np.bool_]:
    return np.square(x / 0.22) + np.square(y / 0.12) <= 1.0


def _heart(x: NDArray[np.float32], y: NDArray[np.float32]) -> NDArray[np.bool_]:
    x, y = np.square(x / 0.17), 0.1 - y / 0.17
    ball = x + y * y - 1
    return ball * ball * ball <= x * y * y * y


def sprites(size: int, root: Path | None = None, count: int = IMAGES, seed: int = 0) -> RawImages:
    """A draw of `count` sprites of `size` x `size` pixels, labelled by shape, with their factors."""
    drawn = np.random.default_rng(seed).choice(int(np.prod(COUNTS)), count, replace=False)
    shape, scale, orientation, x, y = np.unravel_index(drawn, COUNTS)
    factors = np.stack([shape, SCALES[scale], ORIENTATIONS[orientation], PLACES[x], PLACES[y]], axis=1)
    labels = shape.astype(np.int64)
    return RawImages(
        source="sprites" if size == SIZES[0] else f"sprites-{size}",
        pixels=render_sprites(factors, size),
        split=stratified_splits(labels, SHARES),
        labels=labels,
        classes=SHAPES,
        factors=factors.astype(np.float32),
        factor_names=FACTORS,
        origin={"rendered": "ebmtraj.datasets.sprites", "seed": seed},
    )


def corner(name: str, size: int = 16, count: int = 10_000, seed: int = 0) -> RawImages:
    """A part of the combinations for zero-shot generalisation (paper 000, section 7): squares, in all orientations.

    "sizes" (D1): each size at the centre; "places" (D2): the smallest at each place; "seen": both, as many of one as of the
    other, `count` in all, with some repeated.
    """
    random = np.random.default_rng(seed)
    middle = len(PLACES) // 2
    n = count // 2 if name == "seen" else count
    kinds = []
    if name != "places":
        kinds.append((random.integers(len(SCALES), size=n), np.full(n, middle), np.full(n, middle)))
    if name != "sizes":
        kinds.append((np.zeros(n, int), random.integers(len(PLACES), size=n), random.integers(len(PLACES), size=n)))
    scale, x, y = (np.concatenate(each) for each in zip(*kinds, strict=True))
    angle = ORIENTATIONS[random.integers(len(ORIENTATIONS), size=len(scale))]
    factors = np.stack([np.zeros(len(scale)), SCALES[scale], angle, PLACES[x], PLACES[y]], axis=1)
    labels = np.zeros(len(scale), np.int64)
    return RawImages(
        source=f"sprites-{name}",
        pixels=render_sprites(factors, size),
        split=stratified_splits(labels, SHARES),
        labels=labels,
        classes=SHAPES[:1],
        factors=factors.astype(np.float32),
        factor_names=FACTORS,
        origin={"rendered": "ebmtraj.datasets.sprites", "part": name, "seed": seed},
    )


def part(name: str) -> Callable[[Path | None], RawImages]:
    """The source of this part, see `corner`."""

    def load(root: Path | None) -> RawImages:
        return corner(name)

    return load


def of_size(size: int) -> Callable[[Path | None], RawImages]:
    """The source of this size."""
    return partial(sprites, size)
