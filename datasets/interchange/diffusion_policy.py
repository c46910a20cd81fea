"""The zarr layout of diffusion_policy's replay buffers: `data/state`, `data/action`, and `meta/episode_ends`.

Chi et al. 2023, "Diffusion Policy". There an episode has as many actions as states: where its last action led to was not
recorded. That action is dropped, so every transition of the store was seen; repeating the last state would invent one.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import zarr
from numpy.typing import NDArray

from ebmtraj.datasets.bounds import refuse_array, stored_bytes
from ebmtraj.datasets.interchange.described import Given, described
from ebmtraj.datasets.interchange.source import BLOCK_ROWS, RawEpisode, Source
from ebmtraj.datasets.zarr_files import known_scheme, plain
from ebmtraj.errors import EbmtrajError


class DiffusionPolicySource(Source):
    """Episodes of a diffusion_policy replay buffer: a zarr folder (format 2 or 3), a `.zarr.zip` file or an fsspec URL."""

    def __init__(self, path: str, given: Given) -> None:
        self.name = path
        self._group = _open(path)
        folder = Path(plain(path)).expanduser()
        self._stored = folder.stat().st_size if folder.is_file() else None
        if folder.is_dir():
            self._stored = stored_bytes(folder, path)
        self._state = self._array(f"data/{given.state_key or 'state'}")
        self._action = self._array(f"data/{given.action_key or 'action'}")
        ends = self._array("meta/episode_ends")
        rows = self._state.shape[0] if self._state.ndim else 0
        for label, array in (("state", self._state), ("action", self._action)):
            if array.ndim != 2:
                raise EbmtrajError(f"{path}: {label} has shape {array.shape}; only vectors, (rows, size), can be imported")
        if self._action.shape[0] != rows:
            raise EbmtrajError(
                f"{path}: {self._action.shape[0]} actions do not fit {rows} states; this layout has as many of both"
            )
        self._ends = self._checked_ends(ends, rows)
        absent = self._absent_chunks()
        self.total = len(self._ends)
        self.recipe, self.notes = described(
            given, None, path, "diffusion-policy", self._state.shape[1], self._action.shape[1]
        )
        self.notes += [
            f"the last action of each of {self.total} episodes is dropped: the state that it led to was not recorded",
            "this layout does not say how an episode ended: none is marked as terminated",
            *absent,
        ]

    def episodes(self) -> Iterator[RawEpisode]:
        """All episodes, a bounded number of rows at a time."""
        starts = np.concatenate(([0], self._ends[:-1]))
        first = 0
        while first < self.total:
            last = max(first + 1, int(np.searchsorted(self._ends, starts[first] + BLOCK_ROWS, side="right")))
            begin, stop = int(starts[first]), int(self._ends[last - 1])
            state, action = self._rows(self._state, begin, stop), self._rows(self._action, begin, stop)
            for i in range(first, last):
                here = slice(int(starts[i]) - begin, int(self._ends[i]) - begin)
                yield RawEpisode(state[here], action[here][:-1], None, False)
            first = last

    def _rows(self, array: zarr.Array[Any], start: int, stop: int) -> NDArray[Any]:
        try:
            return np.asarray(array[start:stop])
        except Exception as error:  # a damaged chunk may fail in zarr, a codec or the file system
            raise EbmtrajError(
                f"{self.name}: {array.path}, rows {start} to {stop}, can't be read: {' '.join(str(error).split())[:160]}"
            ) from None

    def _checked_ends(self, array: zarr.Array[Any], rows: int) -> NDArray[np.int64]:
        ends = self._rows(array, 0, array.shape[0]) if array.ndim == 1 else np.empty(0)
        if not len(ends) or ends.dtype.kind not in "iu" or ends[0] < 1 or (np.diff(ends.astype(np.int64)) < 1).any():
            raise EbmtrajError(f"{self.name}: meta/episode_ends must be ascending row numbers, one an episode")
        if ends[-1] != rows:
            raise EbmtrajError(f"{self.name}: meta/episode_ends ends at row {ends[-1]}, but there are {rows} rows")
        return ends.astype(np.int64)

    def _absent_chunks(self) -> list[str]:
        """A note where files of chunks are not there: zarr leaves out what is all zeros, and so does a copy cut short."""
        notes = []
        for array in (self._state, self._action):
            absent = array.nchunks - array.nchunks_initialized
            if absent:
                notes.append(
                    f"{absent} of {array.nchunks} chunks of {array.path} have no file and are read as {array.fill_value}: "
                    "right only where the data are"
                )
        return notes

    def _array(self, name: str) -> zarr.Array[Any]:
        try:
            array = self._group[name]
        except Exception:
            array = None
        if not isinstance(array, zarr.Array):
            there = ", ".join(sorted(_names(self._group))) or "nothing"
            raise EbmtrajError(f"{self.name} holds no array {name}, only {there}; is it a diffusion_policy buffer?")
        if array.dtype.kind not in "fiub" or "pickle" in repr(array.metadata).lower():
            raise EbmtrajError(f"{self.name}: {name} holds {array.dtype}, or pickled objects; only numbers can be imported")
        refuse_array(f"{self.name}: {name}", array, self._stored)
        return array


def _open(path: str) -> zarr.Group:
    known_scheme(path)
    try:
        if "://" not in path and Path(path).expanduser().is_file():
            return zarr.open_group(zarr.storage.ZipStore(Path(path).expanduser(), mode="r"), mode="r")
        return zarr.open_group(path, mode="r")
    except Exception as error:  # zarr, zipfile and fsspec raise many kinds
        if "://" not in path and not Path(path).expanduser().exists():
            raise EbmtrajError(f"{path} does not exist; give a zarr folder or a .zarr.zip file") from None
        raise EbmtrajError(f"{path} can't be opened as zarr: {' '.join(str(error).split())[:160]}") from None


def _names(group: zarr.Group) -> list[str]:
    try:
        return [name for name, member in group.members(max_depth=2) if isinstance(member, zarr.Array)]
    except Exception:
        return []
