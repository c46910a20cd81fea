"""Generated images as a grid, and their chains as a film."""

from __future__ import annotations

import io
import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ebmtraj.errors import EbmtrajError
from ebmtraj.report.video import encode_gif
from ebmtraj.runs import write_atomic

TILE = 64  # pixels a side that small images are enlarged to
MOST = 400  # images in a grid


def image_grid(pixels: NDArray[np.float32], columns: int | None = None, gap: int = 2) -> Image.Image:
    """Lay out images (N, C, H, W) in [0, 1] in rows, each enlarged by a whole number to about 64 pixels a side.

    Shows the first 400. Raises `EbmtrajError` for none, or for channels that are neither grey nor red, green and blue.
    """
    pixels = np.asarray(pixels)[:MOST]
    if pixels.ndim != 4 or not len(pixels) or pixels.shape[1] not in (1, 3):
        raise EbmtrajError(f"images of shape {pixels.shape} can't be drawn; expected (N, 1 or 3, H, W) with N above 0")
    count, channels, height, width = pixels.shape
    zoom = max(1, TILE // max(height, width))
    across = columns or math.ceil(math.sqrt(count))
    down = math.ceil(count / across)
    bytes_ = np.round(255 * pixels.clip(0, 1)).astype(np.uint8).transpose(0, 2, 3, 1)
    bytes_ = np.broadcast_to(bytes_, (count, height, width, 3)) if channels == 1 else bytes_
    large = bytes_.repeat(zoom, axis=1).repeat(zoom, axis=2)
    tall, wide = large.shape[1] + gap, large.shape[2] + gap
    page = np.full((down * tall - gap, across * wide - gap, 3), 255, np.uint8)
    for i, tile in enumerate(large):
        row, column = divmod(i, across)
        page[row * tall : row * tall + tall - gap, column * wide : column * wide + wide - gap] = tile
    return Image.fromarray(page)


def write_grid(pixels: NDArray[np.float32], path: Path, columns: int | None = None) -> Path:
    """Write a grid of images (N, C, H, W) in [0, 1] as a PNG; raises `EbmtrajError` as `image_grid`."""
    buffer = io.BytesIO()
    image_grid(pixels, columns).save(buffer, "PNG", optimize=True)
    write_atomic(path, buffer.getvalue())
    return path


def write_chain(states: Sequence[NDArray[np.float32]], path: Path, seconds: float = 4.0, most: int = 60) -> Path:
    """Write chains as an endless GIF of about `seconds`: each state (N, C, H, W) in [0, 1] is a picture, `most` at most."""
    if not states:
        raise EbmtrajError(f"{path}: there is no chain to show")
    picks = sorted({round(i) for i in np.linspace(0, len(states) - 1, min(most, len(states)))})
    pages = [image_grid(states[i]) for i in picks]
    write_atomic(path, encode_gif(pages, round(1000 * seconds / len(pages) / 10) * 10))
    return path
