"""A store's shards decoded straight into one array: what `zarr` does, several times faster, for the one layout we write.

Per chunk `zarr` starts several tasks and copies three times. Here a request reads the shard's index and one range of bytes,
and each chunk is decompressed where it belongs once its checksum is right. Wherever anything is out of the ordinary the
answer is None, and the caller lets `zarr` read, which knows all layouts and names what is damaged. (`zarrs` is as fast, but
leaves the checksums of a shard that it reads in part unchecked, and would hand out wrong numbers.)
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

import google_crc32c
import numpy as np
import zarr
from numcodecs import blosc
from numpy.typing import NDArray
from zarr.abc.store import ByteRequest, RangeByteRequest, SuffixByteRequest
from zarr.core.buffer import default_buffer_prototype
from zarr.core.sync import sync
from zarr.storage import StorePath

from ebmtraj.datasets.blocks import Floats

_ABSENT = 2**64 - 1  # offset of a chunk that was never written


class ForeignShardError(Exception):
    """A file that is absent, damaged, or not the one of the finished store; its key is the message."""


def decode_rows(array: zarr.Array[Any], start: int, stop: int, sums: Sequence[int] | None = None) -> Floats | None:
    """Rows `start` to `stop` - 1 of a sharded array (rows, D) of float32; None where `zarr` had better read them.

    With `sums`, the checksums of all chunks when the store was finished, it raises `ForeignShardError` instead.
    """
    if not _is_ours(array):
        if sums is not None:
            raise ForeignShardError("zarr.json")
        return None
    shard_rows, width = array.shards or array.chunks
    rows: Floats = np.empty((stop - start, width), np.float32)
    for shard in range(start // shard_rows, -(-stop // shard_rows)):
        first = shard * shard_rows
        low, high = max(start, first), min(stop, first + shard_rows)
        key = f"c/{shard}/0"
        known = None if sums is None else sums[first // array.chunks[0] : -(-(first + shard_rows) // array.chunks[0])]
        part = rows[low - start : high - start]
        try:
            sound = _decode_shard(array.store_path / key, shard_rows, array.chunks[0], low - first, part, known)
        except Exception:  # whatever it is, zarr meets it too and its message is the one that is reported
            sound = False
        if not sound and sums is not None:
            raise ForeignShardError(key)
        if not sound:
            return None
    return rows


def chunk_sums(array: zarr.Array[Any], rows: int) -> list[int] | None:
    """The checksum (crc32c) of each chunk of an array's first rows, as its shard says; None where that is not known."""
    if not _is_ours(array):
        return None
    shard_rows, chunk_rows, sums = (array.shards or array.chunks)[0], array.chunks[0], []
    for shard in range(-(-rows // shard_rows)):
        path = array.store_path / f"c/{shard}/0"
        count = -(-min(shard_rows, rows - shard * shard_rows) // chunk_rows)
        places = _index(path, shard_rows // chunk_rows)
        if places is None or (places[:count] == _ABSENT).any():
            return None
        ends = [int(offset + size) for offset, size in places[:count]]
        sums += sync(_sums_at(path, ends))
    return sums


async def _sums_at(path: StorePath, ends: Sequence[int]) -> list[int]:
    """The four bytes before each of these places of a file."""
    prototype = default_buffer_prototype()
    found = await asyncio.gather(*(path.get(prototype, RangeByteRequest(end - 4, end)) for end in ends))
    return [int.from_bytes(each.to_bytes(), "little") if each is not None else -1 for each in found]


def _is_ours(array: zarr.Array[Any]) -> bool:
    found: Any = array.metadata.to_dict()
    codecs = found.get("codecs", ())
    if len(codecs) != 1 or codecs[0]["name"] != "sharding_indexed" or array.ndim != 2 or found["data_type"] != "float32":
        return False
    settings = codecs[0]["configuration"]
    little = {"name": "bytes", "configuration": {"endian": "little"}}
    return (
        [codec["name"] for codec in settings["codecs"]] == ["bytes", "blosc", "crc32c"]
        and settings["codecs"][0] == little
        and [codec["name"] for codec in settings["index_codecs"]] == ["bytes", "crc32c"]
        and settings["index_codecs"][0] == little
        and str(getattr(settings["index_location"], "value", settings["index_location"])) == "end"
        and found["chunk_key_encoding"] == {"name": "default", "configuration": {"separator": "/"}}
        and array.shape[1] == array.chunks[1]
    )


def _index(path: StorePath, chunks: int) -> NDArray[np.uint64] | None:
    """(chunks, 2) where each chunk of a shard begins and how long it is; None where that is absent or damaged."""
    index = _checked(_get(path, SuffixByteRequest(16 * chunks + 4)), 16 * chunks)
    return None if index is None else index.view("<u8").reshape(-1, 2)


def _decode_shard(
    path: StorePath, shard_rows: int, chunk_rows: int, low: int, rows: Floats, sums: Sequence[int] | None
) -> bool:
    """Fill `rows` with those from row `low` of the shard on; False where a chunk is absent, damaged or not of `sums`."""
    high = low + len(rows)
    index = _index(path, shard_rows // chunk_rows)
    if index is None:
        return False
    numbers = range(low // chunk_rows, -(-high // chunk_rows))
    places = index[numbers.start : numbers.stop]
    if (places == _ABSENT).any():
        return False
    offsets, sizes = places.astype(np.int64).T
    base = int(offsets.min())
    data = _get(path, RangeByteRequest(base, int((offsets + sizes).max())))
    for number, offset, size in zip(numbers, offsets - base, sizes, strict=True):
        chunk = _checked(data[offset : offset + size], int(size) - 4)
        if chunk is None or int(chunk[4:8].view("<u4")[0]) != chunk_rows * rows.shape[1] * rows.itemsize:
            return False
        if sums is not None and sums[number] != int.from_bytes(data[offset + size - 4 : offset + size].tobytes(), "little"):
            return False
        first = number * chunk_rows - low
        if first >= 0 and first + chunk_rows <= len(rows):
            blosc.decompress(chunk, rows[first : first + chunk_rows])
        else:
            whole = np.empty((chunk_rows, rows.shape[1]), np.float32)
            blosc.decompress(chunk, whole)
            rows[max(first, 0) : first + chunk_rows] = whole[max(-first, 0) : len(rows) - first]
    return True


def _get(path: StorePath, part: ByteRequest) -> NDArray[np.uint8]:
    buffer = sync(path.get(prototype=default_buffer_prototype(), byte_range=part))
    return np.empty(0, np.uint8) if buffer is None else np.asarray(buffer.as_numpy_array(), np.uint8)


def _checked(data: NDArray[np.uint8], size: int) -> NDArray[np.uint8] | None:
    """`data` without its last four bytes where these are the checksum of `size` others, else None."""
    if len(data) != size + 4:
        return None
    body, expected = data[:-4], int.from_bytes(data[-4:].tobytes(), "little")
    return body if google_crc32c.value(body) == expected else None
