"""Bounds on files from elsewhere: nothing is allocated on the word of a header, and nothing is followed out of a folder."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import zarr

from ebmtraj.errors import EbmtrajError
from ebmtraj.runs import refuse_links

FREE = 64 * 2**20  # bytes that anything may expand to
RATIO = 1000  # beyond that: times what it takes on disk, which is more than recorded numbers are ever compressed by
CHUNK = 512 * 2**20  # bytes of a chunk, which is decoded as a whole
TEXT = 16 * 2**20  # bytes of a text that describes something


def refuse_bomb(what: str, stored: int, expanded: int) -> None:
    """Raise `EbmtrajError` where so few stored bytes say that they are so many."""
    if expanded > FREE and expanded > RATIO * stored:
        raise EbmtrajError(
            f"{what}: {stored:,} bytes say that they are {expanded:,}, which no recording is; it is refused (if it is "
            "right, save it without compression)"
        )


def refuse_array(what: str, array: zarr.Array[Any], stored: int | None) -> None:
    """Raise `EbmtrajError` for a zarr array whose chunks are huge, or that is far larger than what is stored of it."""
    chunk = array.dtype.itemsize
    for size in array.chunks:
        chunk *= size
    expanded = array.dtype.itemsize
    for size in array.shape:
        expanded *= size
    if chunk > CHUNK:
        raise EbmtrajError(f"{what}: a chunk of {array.chunks} takes {chunk:,} bytes; it is refused: write smaller chunks")
    if stored is not None:
        refuse_bomb(what, stored, expanded)


def stored_bytes(folder: Path, what: str) -> int:
    """Bytes of all files below a folder; raises `EbmtrajError` where a link leads out of it."""
    refuse_links(folder, what)
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
