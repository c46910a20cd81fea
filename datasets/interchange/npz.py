"""Plain npz: flat arrays in one file that numpy reads without any of this package; streamed both ways, never pickled.

`state` (rows, S) holds length + 1 rows an episode, `action` (rows, A) holds length rows, `length` (E,) the number of
actions; `seed` (E,), `terminated` (E,) and `ebmtraj` (a JSON text with fields and origin) may be missing. Where all
episodes are of one length, `state` (E, T+1, S) and `action` (E, T, A) without `length` are read too.
"""

from __future__ import annotations

import json
import math
import zipfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.lib import format as npy
from numpy.typing import DTypeLike, NDArray

from ebmtraj.datasets.bounds import TEXT, refuse_bomb
from ebmtraj.datasets.interchange.described import Given, carried, carried_values, described
from ebmtraj.datasets.interchange.source import CARRIED, Progress, RawEpisode, Source, finished, local_source
from ebmtraj.datasets.interchange.target import Exported, refuse, replacing
from ebmtraj.errors import EbmtrajError
from ebmtraj.fields import total_size

NAMES = {"state": ("state", "states", "observations"), "action": ("action", "actions")}


def export_npz(
    path: str, out: Path, *, overwrite: bool = False, on_progress: Progress = lambda stage, done, total: None
) -> Exported:
    """Write a store as one npz file, lossless; memory is bounded.

    Raises `EbmtrajError` where the store is not finished or damaged, or the target exists or can't be written.
    """
    store = finished(path)
    if out.suffix != ".npz":
        raise EbmtrajError(f"{out}: numpy reads files that end in .npz; give such a name")
    refuse(out, overwrite=overwrite, ours=_ours, kind="npz")
    rows = {"state": int(store.state_offsets[-1]), "action": int(store.action_offsets[-1])}
    sizes = {"state": total_size(store.state_fields), "action": total_size(store.action_fields)}

    def parts(name: str) -> Iterator[NDArray[Any]]:
        for first, last in store.spans():
            chosen = slice(first, last)
            yield store.read_states(chosen) if name == "state" else store.read_actions(chosen)
            half = last if name == "state" else store.episodes + last
            on_progress("writing", half // 2, store.episodes)

    with replacing(out, overwrite=overwrite, ours=_ours, kind="npz") as partial, zipfile.ZipFile(partial, "w") as archive:
        for name in ("state", "action"):
            _write(archive, name, (rows[name], sizes[name]), "<f4", parts(name))
        for name, column, kind in (
            ("length", store.lengths, "<i8"),
            ("seed", store.seeds, "<u8"),
            ("terminated", store.terminated, "?"),
        ):
            _write(archive, name, (store.episodes,), kind, [column])
        text = np.array(json.dumps(carried(store), sort_keys=True))
        _write(archive, CARRIED, (), text.dtype.newbyteorder("<"), [text])
    return Exported(str(out), store.episodes, store.transitions)


class NpzSource(Source):
    """Episodes of an npz file."""

    def __init__(self, path: str, given: Given) -> None:
        self.name = path
        self._path = local_source(path, "an npz file")
        members = self._members()
        names = {
            "state": _choose(members, NAMES["state"], given.state_key, path),
            "action": _choose(members, NAMES["action"], given.action_key, path),
        }
        self._names = names
        state, action = (_Rows(self._path, names[label]) for label in ("state", "action"))
        for label, rows in (("state", state), ("action", action)):
            if len(rows.shape) not in (2, 3):
                raise EbmtrajError(
                    f"{path}: {names[label]} has shape {rows.shape}; expected (rows, size) or (episodes, steps, size)"
                )
        if len(state.shape) != len(action.shape):
            raise EbmtrajError(
                f"{path}: {names['state']} has shape {state.shape}, {names['action']} {action.shape}; both must be "
                "(rows, size), or both (episodes, steps, size)"
            )
        self._lengths = self._read_lengths(state, action, members)
        self.total = len(self._lengths)
        self._seeds = self._column("seed", members, "iu")
        self._terminated = self._column("terminated", members, "b")
        text = str(_small(self._path, CARRIED)) if CARRIED in members else None
        known = carried_values(text, path)
        self.recipe, self.notes = described(given, known, path, "npz", state.shape[-1], action.shape[-1])

    def episodes(self) -> Iterator[RawEpisode]:
        """All episodes, streamed from the file."""
        with _Rows(self._path, self._names["state"]) as state, _Rows(self._path, self._names["action"]) as action:
            for i, length in enumerate(self._lengths):
                seed = None if self._seeds is None else int(self._seeds[i])
                ended = self._terminated is not None and bool(self._terminated[i])
                yield RawEpisode(state.take(int(length) + 1), action.take(int(length)), seed, ended)

    def _members(self) -> set[str]:
        try:
            with zipfile.ZipFile(self._path) as archive:
                return {name.removesuffix(".npy") for name in archive.namelist()}
        except FileNotFoundError:
            raise EbmtrajError(f"{self.name} does not exist; give an npz file") from None
        except (
            OSError,
            ValueError,
            RuntimeError,
            zipfile.BadZipFile,
        ) as error:  # of a version that zipfile does not know, too
            raise EbmtrajError(f"{self.name} can't be read as npz: {error}; give a file that numpy.savez wrote") from None

    def _read_lengths(self, state: _Rows, action: _Rows, members: set[str]) -> NDArray[np.int64]:
        if "length" in members:
            lengths = _small(self._path, "length")
            if lengths.ndim != 1 or lengths.dtype.kind not in "iu" or not len(lengths) or lengths.min() < 0:
                raise EbmtrajError(f"{self.name}: length must be whole numbers from 0 on, one an episode")
            lengths = lengths.astype(np.int64)
        elif len(state.shape) == 3:
            lengths = np.full(state.shape[0], state.shape[1] - 1, np.int64)
        else:
            lengths = np.array([len(action)], np.int64)  # one episode
        total = int(lengths.sum())
        flat = len(state.shape) == 2
        stacked = not flat and (state.shape[:2], action.shape[:2]) == (
            (len(lengths), state.shape[1]),
            (len(lengths), state.shape[1] - 1),
        )
        if (flat and (len(state), len(action)) != (total + len(lengths), total)) or (not flat and not stacked):
            ask = "" if "length" in members or not flat else "; add an array length with the actions of each episode"
            raise EbmtrajError(
                f"{self.name}: actions of shape {action.shape} do not fit states of shape {state.shape}: "
                f"each episode has one state more than actions{ask}"
            )
        if not flat and (lengths != state.shape[1] - 1).any():
            raise EbmtrajError(f"{self.name}: stacked episodes are of one length; flatten them to use length")
        return lengths

    def _column(self, name: str, members: set[str], kinds: str) -> NDArray[Any] | None:
        if name not in members:
            return None
        column = _small(self._path, name)
        if column.shape != (self.total,) or column.dtype.kind not in kinds or (kinds == "iu" and column.min() < 0):
            raise EbmtrajError(
                f"{self.name}: {name} must hold one {'number' if kinds == 'iu' else 'truth value'} an episode"
            )
        return column


class _Rows:
    """An array in an npz file, read row after row; rows of a stacked array follow each other."""

    def __init__(self, path: Path, name: str) -> None:
        self._what = f"{path}: {name}"
        try:
            self._archive = zipfile.ZipFile(path)
            stored = self._archive.getinfo(f"{name}.npy")
            self._file = self._archive.open(stored)
            version = npy.read_magic(self._file)
            if version not in ((1, 0), (2, 0)):
                raise ValueError(f"npy version {version}")
            read = npy.read_array_header_1_0 if version == (1, 0) else npy.read_array_header_2_0
            self.shape, fortran, self._dtype = read(self._file)
        except Exception as error:  # zipfile, zlib and numpy raise many kinds
            raise EbmtrajError(f"{self._what} can't be read: {_reason(error)}; copy or make the file again") from None
        if min(self.shape, default=0) < 0:
            raise EbmtrajError(f"{self._what} is damaged: its header says shape {self.shape}; make the file again")
        refuse_bomb(self._what, stored.compress_size, max(stored.file_size, math.prod(self.shape) * self._dtype.itemsize))
        if self._dtype.hasobject:
            raise EbmtrajError(f"{self._what} holds pickled objects, which are never loaded; save plain numbers")
        self._whole: NDArray[Any] | None = None
        if fortran and len(self.shape) > 1:  # rows lie scattered: there is no way but to hold it all
            with np.load(path, allow_pickle=False) as whole:
                self._whole = np.asarray(whole[name]).reshape(-1, self.shape[-1])
        self._next = 0

    def __len__(self) -> int:
        return math.prod(self.shape[:-1])

    @property
    def nbytes(self) -> int:
        """Bytes of the whole array, as its header says."""
        return math.prod(self.shape) * self._dtype.itemsize

    def __enter__(self) -> _Rows:
        return self

    def __exit__(self, *fault: object) -> None:
        self._archive.close()

    def take(self, count: int) -> NDArray[Any]:
        """The next `count` rows."""
        if self._whole is not None:
            self._next += count
            return self._whole[self._next - count : self._next]
        size = int(self.shape[-1])
        need = count * size * self._dtype.itemsize
        try:
            data = self._file.read(need)
        except Exception as error:  # zipfile and zlib raise many kinds
            raise EbmtrajError(f"{self._what} is damaged: {_reason(error)}; copy or make the file again") from None
        if len(data) != need:
            raise EbmtrajError(f"{self._what} is cut short; copy or make the file again")
        return np.frombuffer(data, self._dtype).reshape(count, size)


def _choose(members: set[str], names: tuple[str, ...], key: str | None, path: str) -> str:
    wanted = (key,) if key else names
    for name in wanted:
        if name in members:
            return name
    found = ", ".join(sorted(members)) or "nothing"
    raise EbmtrajError(f"{path} holds no array {wanted[0]!r}, only {found}; name it with --state-key or --action-key")


def _small(path: Path, name: str) -> NDArray[Any]:
    """A whole array of the file."""
    what = f"{path}: {name}"
    try:
        with _Rows(path, name) as rows:  # which looks at its header before anything is allocated
            if name == CARRIED and rows.nbytes > 4 * TEXT:
                raise EbmtrajError(f"{what} is a text of {rows.nbytes:,} bytes; it is refused")
        with np.load(path, allow_pickle=False) as file:
            return np.asarray(file[name])
    except EbmtrajError:
        raise
    except Exception as error:  # zipfile, zlib and numpy raise many kinds, and one for pickled objects
        raise EbmtrajError(f"{path}: {name} can't be read: {_reason(error)}; save plain numbers again") from None


def _reason(error: Exception) -> str:
    return " ".join(str(error).split())[:160] or type(error).__name__


def _write(
    archive: zipfile.ZipFile, name: str, shape: tuple[int, ...], kind: DTypeLike, parts: Iterable[NDArray[Any]]
) -> None:
    header = {"descr": npy.dtype_to_descr(np.dtype(kind)), "fortran_order": False, "shape": shape}
    member = zipfile.ZipInfo(f"{name}.npy", date_time=(1980, 1, 1, 0, 0, 0))  # the same bytes each time
    with archive.open(member, "w", force_zip64=True) as file:
        npy.write_array_header_2_0(file, header)
        for part in parts:
            file.write(np.ascontiguousarray(part, kind).tobytes())


def _ours(path: Path) -> bool:
    return path.is_file() and zipfile.is_zipfile(path)
