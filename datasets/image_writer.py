"""Writing an image store: all is checked before anything is written, and a store is there as a whole or not at all."""

from __future__ import annotations

import glob
import os
import shutil
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import zarr
from numpy.typing import NDArray
from zarr.codecs import BloscCodec, Crc32cCodec

from ebmtraj.datasets.blocks import SPLITS, Floats, Indices
from ebmtraj.datasets.images import FORMAT, SCHEMA, ImageStore, content_hash
from ebmtraj.datasets.zarr_files import format_of, occupied, open_group, with_seal, writing
from ebmtraj.errors import EbmtrajError
from ebmtraj.locks import is_held, only_writer
from ebmtraj.seal import of_arrays

CHUNK_BYTES = 4_000_000
SIDES = (4, 512)  # pixels a side


@dataclass(frozen=True)
class RawImages:
    """What a store is made of; raises `EbmtrajError` where shapes, range or labels do not fit."""

    source: str
    pixels: NDArray[np.uint8]  # (N, C, H, W) from 0 to levels
    split: NDArray[np.int8]  # (N,) index into `SPLITS`
    labels: Indices | None = None  # (N,) index into `classes`
    classes: tuple[str, ...] = ()
    levels: int = 255  # the value of white
    factors: Floats | None = None  # (N, F) what each image was rendered from
    factor_names: tuple[str, ...] = ()
    origin: Mapping[str, Any] = field(default_factory=dict)  # files with their hashes, or how it was rendered

    def __post_init__(self) -> None:
        count, what = len(self.pixels), f"images of {self.source}"
        if self.pixels.ndim != 4 or self.pixels.dtype != np.uint8 or not count:
            raise EbmtrajError(f"{what}: expected bytes of shape (N, C, H, W), got {self.pixels.dtype} {self.pixels.shape}")
        channels, *sides = self.pixels.shape[1:]
        if channels not in (1, 3) or not all(SIDES[0] <= side <= SIDES[1] for side in sides):
            raise EbmtrajError(
                f"{what}: {channels} channels of {sides[0]} x {sides[1]} pixels; 1 or 3 of {SIDES[0]} to {SIDES[1]} are read"
            )
        if self.pixels.max() > self.levels:
            raise EbmtrajError(f"{what}: pixels go up to {self.pixels.max()}, but white is {self.levels}; rescale them")
        if self.split.shape != (count,) or not np.isin(self.split, range(len(SPLITS))).all():
            raise EbmtrajError(f"{what}: split has shape {self.split.shape}; give one of {', '.join(SPLITS)} an image")
        if (self.labels is None) != (not self.classes) or (self.factors is None) != (not self.factor_names):
            raise EbmtrajError(f"{what}: labels need the names of their classes, and factors their own names")
        if self.labels is not None:
            check_labels(self.labels, count, self.classes, what)
        if self.factors is not None and self.factors.shape != (count, len(self.factor_names)):
            raise EbmtrajError(f"{what}: factors have shape {self.factors.shape}, not ({count}, {len(self.factor_names)})")


def check_labels(labels: NDArray[Any], count: int, classes: tuple[str, ...], what: str) -> None:
    """Raise `EbmtrajError` where labels are not `(count,)`, one an image, or one is out of range."""
    if labels.shape != (count,):
        raise EbmtrajError(f"{what}: {count} images, but labels of shape {labels.shape}; give one label an image")
    wrong = np.flatnonzero((labels < 0) | (labels >= len(classes)))
    if len(wrong):
        first = int(wrong[0])
        raise EbmtrajError(f"{what}: label {labels[first]} of image {first} is out of range 0 to {len(classes) - 1}")


def write_images(path: str | Path, raw: RawImages, *, overwrite: bool = False) -> ImageStore:
    """Write a store in a local folder.

    Raises `EbmtrajError` where something is there (with `overwrite`, where it is no image store), or on a full disk.
    """
    target = check_image_target(path, overwrite=overwrite)
    arrays: dict[str, NDArray[Any]] = {"pixels": np.ascontiguousarray(raw.pixels), "split": raw.split.astype(np.int8)}
    if raw.labels is not None:
        arrays["label"] = raw.labels.astype(np.int64)
    if raw.factors is not None:
        arrays["factors"] = raw.factors.astype(np.float32)
    attributes: dict[str, Any] = {
        "format": FORMAT,
        "schema": SCHEMA,
        "source": raw.source,
        "shape": list(raw.pixels.shape[1:]),
        "levels": raw.levels,
        "classes": list(raw.classes),
        "factor_names": list(raw.factor_names),
        "origin": dict(raw.origin),
    }
    attributes["content_hash"] = content_hash(attributes, arrays)
    with writing(str(target)):
        target.parent.mkdir(parents=True, exist_ok=True)
        for left in target.parent.glob(f".{glob.escape(target.name)}.*.partial"):
            if left.is_dir() and not _may_be_begun(left) and not is_held(left):  # of a process that was killed
                shutil.rmtree(left, ignore_errors=True)
        prefix = f".{target.name}.{os.getpid()}-"
        made = Path(tempfile.mkdtemp(prefix=prefix, suffix=".partial", dir=target.parent))
        try:
            with only_writer(made, "image store"):
                group = zarr.create_group(str(made), zarr_format=3, overwrite=True)
                for name, values in arrays.items():
                    _write(group, name, values)
                seals = {name: of_arrays([(name, values)]) for name, values in arrays.items()}
                group.attrs.put(with_seal(attributes, arrays=seals))
                _move(made, target, overwrite)
        finally:
            shutil.rmtree(made, ignore_errors=True)
    return ImageStore.open(target)


def _may_be_begun(partial: Path) -> bool:
    """Whether an unfinished store is empty, and so perhaps not locked yet, and the process in its name is alive."""
    process = partial.name.removesuffix(".partial").rpartition(".")[2].partition("-")[0]
    if any(partial.iterdir()) or not process.isdecimal():
        return False
    try:
        os.kill(int(process), 0)
    except ProcessLookupError:
        return False
    except (OSError, OverflowError):  # it is another user's
        return True
    return True


def check_image_target(path: str | Path, *, overwrite: bool = False) -> Path:
    """Where a store may be written; raises `EbmtrajError` where something is there that must stay."""
    target = Path(path).expanduser()
    if not occupied(str(target)):
        return target
    group = open_group(str(target), "r")
    if group is None or format_of(str(target), group) != FORMAT:
        raise EbmtrajError(f"{target} holds something that is not an image store; choose another path")
    if not overwrite:
        raise EbmtrajError(f"image store {target} exists; use --overwrite to replace it")
    return target


def _write(group: zarr.Group, name: str, values: NDArray[Any]) -> None:
    rows = max(1, min(len(values), CHUNK_BYTES // max(1, values[0].nbytes)))
    group.create_array(
        name,
        data=values,
        chunks=(rows, *values.shape[1:]),
        compressors=[BloscCodec(cname="zstd", clevel=5, typesize=values.itemsize), Crc32cCodec()],
        config={"write_empty_chunks": True},  # so that a missing chunk is seen
    )


def _move(made: Path, target: Path, overwrite: bool) -> None:
    """Put the finished folder in its place; where another process was faster, its store stays."""
    if overwrite and target.exists():
        shutil.rmtree(target)
    try:
        os.rename(made, target)
    except OSError:
        if not target.is_dir() or not any(target.iterdir()):
            raise
