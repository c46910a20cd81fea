"""Bounds on files from elsewhere: nothing is allocated on the word of a header, and nothing is followed out of a folder."""

from __future__ import annotations

import math
import zipfile
from pathlib import Path
from typing import Any

import zarr
from numpy.lib import format as npy

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


def refuse_npz(path: Path) -> None:
    """Raise `EbmtrajError` where a file is no npz of plain numbers, or its headers say far more than is stored."""
    try:
        with zipfile.ZipFile(path) as archive:
            for member in archive.infolist():
                with archive.open(member) as file:
                    version = npy.read_magic(file)
                    read = npy.read_array_header_1_0 if version == (1, 0) else npy.read_array_header_2_0
                    shape, _, dtype = read(file)
                what = f"{path}: {member.filename}"
                if dtype.hasobject:
                    raise EbmtrajError(f"{what} holds pickled objects, which are never loaded; save plain numbers")
                if min(shape, default=0) < 0:
                    raise EbmtrajError(f"{what} is damaged: its header says shape {shape}; make the file again")
                refuse_bomb(what, member.compress_size, max(member.file_size, math.prod(shape) * dtype.itemsize))
    except FileNotFoundError:
        raise EbmtrajError(f"{path} does not exist; give an npz file") from None
    except EbmtrajError:
        raise
    except Exception as error:  # zipfile, zlib and numpy raise many kinds
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise EbmtrajError(f"{path} can't be read as npz: {reason}; give a file that numpy.savez wrote") from None


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
