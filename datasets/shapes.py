"""Ten shapes, 28 x 28, each moved, turned, scaled, lit and under noise: a set that Gaussians of classes do not solve.

Every image has nuisance factors of its own, which say nothing of its class: centre, angle, size, brightness of shape and
ground. A Gaussian of a class's pixels can't follow a shape that moves.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ebmtraj.datasets.image_writer import RawImages
from ebmtraj.datasets.images import stratified_splits

Values = NDArray[np.float64]
SHAPES = ("square", "disc", "ellipse", "heart", "triangle", "cross", "ring", "star", "ell", "tee")
FACTORS = ("x", "y", "angle", "scale", "shade", "ground")
SIZE, FINE = 28, 4  # pixels a side, and points a pixel and side by which edges are smoothed
IMAGES, SHARES = 6000, (0.1, 0.2)  # validation and test
LOW = np.array([0.38, 0.38, -np.pi / 12, 0.24, 0.6, 0.0])  # of each factor, drawn uniformly
HIGH = np.array([0.62, 0.62, np.pi / 12, 0.34, 1.0, 0.2])
NOISE = 0.3  # standard deviation of each pixel's own, before it is clipped to [0, 1]


def _inside(shape: int, x: Values, y: Values) -> NDArray[np.bool_]:
    """Whether points lie in a shape that fills about [-0.8, 0.8], x to the right and y down."""
    a, b = np.abs(x), np.abs(y)
    if shape == 0:
        return np.maximum(a, b) <= 0.62
    if shape == 1:
        return x * x + y * y <= 0.49
    if shape == 2:
        return np.square(x / 0.9) + np.square(y / 0.45) <= 1
    if shape == 3:
        u, v = np.square(x / 0.72), 0.1 - y / 0.72
        return (u + v * v - 1) ** 3 <= u * v**3
    if shape == 4:
        return (y <= 0.5) & (a <= (y + 0.8) * 0.6)
    if shape == 5:
        return (np.minimum(a, b) <= 0.22) & (np.maximum(a, b) <= 0.8)
    if shape == 6:
        return (x * x + y * y <= 0.64) & (x * x + y * y >= 0.2)
    if shape == 7:
        return _star(x, y)
    if shape == 8:
        return ((np.abs(x + 0.4) <= 0.24) & (b <= 0.8)) | ((np.abs(y - 0.56) <= 0.24) & (a <= 0.64))
    return ((a <= 0.24) & (b <= 0.8)) | ((np.abs(y + 0.56) <= 0.24) & (a <= 0.7))


def _star(x: Values, y: Values, outer: float = 0.9, inner: float = 0.38) -> NDArray[np.bool_]:
    """Five points; a fifth of the turn is folded onto the half of it, whose edge is one line."""
    fifth = 2 * np.pi / 5
    angle = np.abs((np.arctan2(y, x) + np.pi / 2 + fifth / 2) % fifth - fifth / 2)
    radius = np.hypot(x, y)
    along, across = inner * np.cos(fifth / 2) - outer, inner * np.sin(fifth / 2)
    return along * radius * np.sin(angle) - across * (radius * np.cos(angle) - outer) >= 0


def render_shapes(labels: NDArray[np.int64], factors: Values, noise: Values) -> NDArray[np.uint8]:
    """Pictures from 0 to 255, `(N,), (N, 6), (N, 28, 28) -> (N, 1, 28, 28)`; noise is standard normal."""
    points = (np.arange(SIZE * FINE) + 0.5) / (SIZE * FINE)
    pictures = np.empty((len(labels), 1, SIZE, SIZE), np.uint8)
    for i, (x, y, angle, scale, shade, ground) in enumerate(factors):
        right, down = points[None, :] - x, points[:, None] - y
        along = (np.cos(angle) * right + np.sin(angle) * down) / scale
        across = (np.cos(angle) * down - np.sin(angle) * right) / scale
        covered = _inside(int(labels[i]), along, across).reshape(SIZE, FINE, SIZE, FINE).mean((1, 3))
        picture = ground + (shade - ground) * covered + NOISE * noise[i]
        pictures[i, 0] = np.round(255 * np.clip(picture, 0, 1)).astype(np.uint8)
    return pictures


def shapes(root: Path | None = None, count: int = IMAGES, seed: int = 0) -> RawImages:
    """As many images of each shape, with their factors; 10 % are for validation and 20 % for tests."""
    generator = np.random.default_rng(seed)
    labels = np.arange(count, dtype=np.int64) % len(SHAPES)
    factors = LOW + (HIGH - LOW) * generator.random((count, len(FACTORS)))
    noise = generator.standard_normal((count, SIZE, SIZE))
    return RawImages(
        source="sprites-28",
        pixels=render_shapes(labels, factors, noise),
        split=stratified_splits(labels, SHARES),
        labels=labels,
        classes=SHAPES,
        factors=factors.astype(np.float32),
        factor_names=FACTORS,
        origin={"rendered": "ebmtraj.datasets.shapes", "seed": seed},
    )
