"""The official dSprites file (Matthey et al. 2017), read as a stream: 737,280 pictures of 64 x 64 take 3 GB at once.

Its metadata is a pickle, which is never read; pictures and factors are plain arrays.
"""

from __future__ import annotations

import math
import zipfile
import zlib
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ebmtraj.datasets.bounds import FREE
from ebmtraj.datasets.image_writer import RawImages
from ebmtraj.datasets.images import cache_folder, stratified_splits
from ebmtraj.datasets.sprites import FACTORS, IMAGES, SHAPES, SHARES
from ebmtraj.errors import EbmtrajError

FILE = "dsprites_ndarray_co1sh3sc6or40x32x32_64x64.npz"
HOME = "https://github.com/google-deepmind/dsprites-dataset"
_ROWS = 4096  # pictures read at once


def dsprites(root: Path | None = None, count: int = IMAGES, seed: int = 0) -> RawImages:
    """A seeded draw of `count` official pictures, none twice, labelled by shape, with their factors.

    The file is looked for in `root`, $EBMTRAJ_DATA or ~/.cache/ebmtraj. Raises `EbmtrajError` if it is missing or damaged.
    """
    path = cache_folder(root) / FILE
    if not path.is_file():
        raise EbmtrajError(f"{path} is not there; get it from {HOME}, or use sprites-64, which is rendered here")
    try:
        with zipfile.ZipFile(path) as archive:
            factors = _plain(archive, "latents_values")
            if factors.ndim != 2 or factors.shape[1] != 6:
                raise ValueError(f"latents_values has shape {factors.shape}")
            chosen = np.sort(np.random.default_rng(seed).choice(len(factors), min(count, len(factors)), replace=False))
            pictures = _rows(archive, "imgs", chosen, len(factors))
    except (OSError, KeyError, ValueError, EOFError, RuntimeError, zlib.error, zipfile.BadZipFile) as error:
        raise EbmtrajError(f"{path} can't be read as dSprites: {error}; get it again from {HOME}") from None
    own = factors[chosen, 1:].copy()
    own[:, 0] -= 1  # shapes are counted from 1 there
    labels = own[:, 0].astype(np.int64)
    return RawImages(
        source="dsprites",
        pixels=pictures[:, None],
        split=stratified_splits(labels, SHARES),
        labels=labels,
        classes=SHAPES,
        levels=1,
        factors=own.astype(np.float32),
        factor_names=FACTORS,
        origin={"file": FILE, "seed": seed},
    )


def _open(archive: zipfile.ZipFile, name: str) -> tuple[Any, tuple[int, ...], np.dtype[Any]]:
    stream = archive.open(f"{name}.npy")
    read = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
    shape, fortran, dtype = read[np.lib.format.read_magic(stream)](stream)
    if fortran or dtype.hasobject:
        raise ValueError(f"{name} is no plain array")
    return stream, shape, dtype


def _plain(archive: zipfile.ZipFile, name: str) -> NDArray[Any]:
    stream, shape, dtype = _open(archive, name)
    size = math.prod(shape) * dtype.itemsize
    if not 0 <= size <= FREE:
        raise ValueError(f"{name} is of shape {shape}")
    with stream:
        return np.frombuffer(stream.read(size), dtype).reshape(shape)


def _rows(archive: zipfile.ZipFile, name: str, chosen: NDArray[np.int64], count: int) -> NDArray[np.uint8]:
    """The chosen rows, which rise, of an array of pictures."""
    stream, shape, dtype = _open(archive, name)
    if shape != (count, 64, 64) or dtype != np.uint8:
        raise ValueError(f"{name} is {dtype} of shape {shape}")
    found = np.empty((len(chosen), 64, 64), np.uint8)
    with stream:
        for start in range(0, count, _ROWS):
            rows = min(_ROWS, count - start)
            part = np.frombuffer(stream.read(rows * 64 * 64), np.uint8)
            if part.size != rows * 64 * 64:
                raise ValueError(f"{name} is cut short")
            first, last = np.searchsorted(chosen, (start, start + rows))
            found[first:last] = part.reshape(rows, 64, 64)[chosen[first:last] - start]
    return found
