"""The trajectory store: a reader of episodes of states and actions in one sharded zarr (format 3) group.

`state` (rows, S) holds length + 1 rows an episode, `action` (rows, A) holds length rows; the arrays below `episode/`
say how many, from which seed, and what their bytes hash to. Readers believe only the committed counts.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import zarr
from numpy.typing import NDArray
from zarr.core.sync import sync

from ebmtraj.datasets.blocks import (
    IDENTITY,
    SPLITS,
    Episode,
    EpisodeBlock,
    Floats,
    Indices,
    column_name,
    episode_splits,
    piece_offsets,
)
from ebmtraj.datasets.bounds import refuse_array, refuse_bomb, stored_bytes
from ebmtraj.datasets.shards import ForeignShardError, decode_rows
from ebmtraj.datasets.zarr_files import (
    EPISODE_ARRAYS,
    SHARD_ROWS,
    as_url,
    is_whole,
    member_array,
    occupied,
    open_group,
    our_attributes,
    reason_of,
)
from ebmtraj.errors import EbmtrajError
from ebmtraj.fields import fields_from_json, total_size
from ebmtraj.seal import of_arrays

SPAN_ROWS = 131_072  # rows held at a time by whatever walks over the whole store


class Store:
    """A reader of committed episodes."""

    def __init__(self, path: str, group: zarr.Group, attributes: dict[str, Any]) -> None:
        """See `open`; raises `EbmtrajError` where attributes are damaged."""
        self.path = path
        self.attributes = attributes
        self._group = group
        self._arrays: dict[str, zarr.Array[Any]] = {}
        try:
            self.complete: bool = attributes["complete"]
            self.episodes: int = attributes["committed"]["episodes"]
            self.transitions: int = attributes["committed"]["action_rows"]
            self.control_timestep: float = attributes["control_timestep"]  # s
            self.state_fields = fields_from_json(attributes["state_fields"])
            self.action_fields = fields_from_json(attributes["action_fields"])
            self._split_seed: int = attributes["split"]["seed"]
            seal = attributes.get("seal") or {}
            self._sealed = bool(seal)
            self._columns: dict[str, str] = seal.get("episode", {})  # sha256 of each array below `episode/`
            self._sums: dict[str, list[int] | None] = seal.get("chunks", {})  # checksum of each chunk
        except (KeyError, TypeError, AttributeError) as error:
            raise EbmtrajError(f"store {path}: attributes are damaged ({reason_of(error)}); collect it again") from None
        except EbmtrajError as error:
            raise EbmtrajError(f"store {path}: {error}; the attributes are damaged") from None

    @classmethod
    def open(cls, path: str | Path, *, believe: bool = False) -> Store:
        """Open a store for reading, finished or not; with `believe`, although its attributes are not what their seal says.

        Raises `EbmtrajError` where there is none, or it is not ours, of a newer schema or without readable attributes.
        """
        url = as_url(path)
        group = open_group(url, "r")
        if group is None:
            if occupied(url):
                raise EbmtrajError(f"{url} is not a trajectory store (no zarr group there); check the path")
            raise EbmtrajError(f"store {url} does not exist; make it first: ebmtraj collect {url} --env hand-cube")
        store = cls(url, group, our_attributes(url, group, believe=believe))
        store._refuse_bomb()
        return store

    def _refuse_bomb(self) -> None:
        """Raise `EbmtrajError` where the counts in the attributes are no counts, or far more than the files can hold."""
        counts = (self.episodes, self.transitions)
        if not all(isinstance(count, int) and count >= 0 for count in counts):
            raise EbmtrajError(f"store {self.path}: committed counts are {counts}; the attributes are damaged")
        if "://" not in self.path:
            size = 4 * total_size((*self.state_fields, *self.action_fields))
            stored = stored_bytes(Path(self.path), f"store {self.path}")
            refuse_bomb(f"store {self.path}", stored, size * (self.episodes + self.transitions) + 64 * self.episodes)

    # what it holds

    @property
    def content_hash(self) -> str | None:
        """Hash of recipe and content; None while the store is not finished."""
        return self.attributes.get("content_hash")

    @property
    def statistics(self) -> dict[str, dict[str, list[float]]]:
        """Mean, std, min and max a dimension of state, action and delta over the train split.

        Raises `EbmtrajError` where the store is not finished.
        """
        statistics = self.attributes.get("statistics")
        if not statistics:
            raise EbmtrajError(f"store {self.path} is not finished; go on with: ebmtraj collect {self.path} --resume")
        return statistics

    @cached_property
    def lengths(self) -> Indices:
        """(E,) number of actions an episode; raises `EbmtrajError` where the array is damaged or of another version."""
        lengths = self.episode_array("length")
        if self._sealed and not self.attributes.get("replacing"):
            array = self._array("episode/length")
            if not is_whole(array, self.episodes, complete=self.complete):
                raise EbmtrajError(
                    f"store {self.path}: episode/length has {array.shape[0]} rows, but the attributes in zarr.json say "
                    f"{self.episodes}: one of these files is of another version of the store; restore it"
                )
        if len(lengths) and (lengths.min() < 1 or lengths.sum() != self.transitions):
            raise EbmtrajError(f"store {self.path}: array episode/length is damaged or its shard is missing; collect again")
        return lengths

    @cached_property
    def seeds(self) -> NDArray[np.uint64]:
        """(E,) the number that each episode was made from."""
        return self.episode_array("seed")

    @cached_property
    def terminated(self) -> NDArray[np.bool_]:
        """(E,) whether the episode ended by itself."""
        return self.episode_array("terminated")

    @cached_property
    def state_offsets(self) -> Indices:
        """(E + 1,) first row of each episode in `state`, and the end of the last."""
        return piece_offsets(self.lengths + 1)

    @cached_property
    def action_offsets(self) -> Indices:
        """(E + 1,) first row of each episode in `action`, and the end of the last."""
        return piece_offsets(self.lengths)

    @cached_property
    def splits(self) -> NDArray[np.int8]:
        """(E,) index into `SPLITS` of each episode."""
        return episode_splits(self.episodes, self._split_seed)

    def split(self, name: str) -> Indices:
        """Indices `(n,)` of the episodes of "train", "validation" or "test", ascending.

        Raises `EbmtrajError` for another name.
        """
        if name not in SPLITS:
            raise EbmtrajError(f"unknown split {name!r}; use one of {', '.join(SPLITS)}")
        return np.flatnonzero(self.splits == SPLITS.index(name)).astype(np.int64)

    def info(self) -> dict[str, Any]:
        """A summary in plain JSON values."""
        lengths = self.lengths
        for name in self._columns:  # so that what is said is of the very data that lie here
            self.episode_array(name)
        return {
            "path": self.path,
            "complete": self.complete,
            "episodes": self.episodes,
            "transitions": self.transitions,
            "length": {"min": int(lengths.min()), "max": int(lengths.max())} if len(lengths) else None,
            "terminated": int(self.terminated.sum()),
            "splits": {name: int((self.splits == i).sum()) for i, name in enumerate(SPLITS)},
            "raw_bytes": 4 * (total_size(self.state_fields) * int((lengths + 1).sum()))
            + 4 * total_size(self.action_fields) * self.transitions,
            **{key: self.attributes.get(key) for key in ("content_hash", *IDENTITY, "env_attributes", "versions")},
        }

    # reading

    def read_all(self) -> tuple[Floats, Floats]:
        """All states (rows, S) and actions (rows, A).

        Raises `EbmtrajError` where a shard is damaged or missing, or a number is not finite.
        """
        return self.rows("state", 0, self.episodes), self.rows("action", 0, self.episodes)

    def read_states(self, episodes: slice | Sequence[int] | NDArray[Any]) -> Floats:
        """States of these episodes, one after another, (sum(length + 1), S); raises as `read_all`."""
        return self._gather("state", episodes)

    def read_actions(self, episodes: slice | Sequence[int] | NDArray[Any]) -> Floats:
        """Actions of these episodes, one after another, (sum(length), A); raises as `read_all`."""
        return self._gather("action", episodes)

    def episode(self, index: int) -> Episode:
        """One episode; raises as `read_all`."""
        chosen = [index]
        state, action = self.read_states(chosen), self.read_actions(chosen)
        return Episode(state, action, int(self.seeds[index]), bool(self.terminated[index]))

    def spans(self, rows: int = SPAN_ROWS) -> Iterator[tuple[int, int]]:
        """Consecutive ranges of episodes of at most `rows` state rows (or one episode), from the lengths alone."""
        first = 0
        while first < self.episodes:
            limit = self.state_offsets[first] + rows
            last = max(first + 1, int(np.searchsorted(self.state_offsets, limit, side="right")) - 1)
            yield first, last
            first = last

    def read_block(self, first: int, last: int, *, check: bool = True) -> EpisodeBlock:
        """Episodes `first` to `last` - 1 as a block; raises as `read_all`, but without `check` numbers may be not finite."""
        return EpisodeBlock(
            self.rows("state", first, last, check=check),
            self.rows("action", first, last, check=check),
            self.lengths[first:last],
            self.seeds[first:last],
            self.terminated[first:last],
        )

    def rows(self, name: str, first: int, last: int, *, check: bool = True) -> Floats:
        """Rows of "state" or "action" of episodes `first` to `last` - 1, `(n, size)`; raises and checks as `read_block`."""
        offsets = self._offsets_of(name)
        return self.row_range(name, int(offsets[first]), int(offsets[last]), check=check)

    def row_range(self, name: str, start: int, stop: int, *, check: bool = True) -> Floats:
        """Rows `start` to `stop` - 1 of "state" or "action", whatever their episodes, `(stop - start, size)`.

        Raises `EbmtrajError` for a damaged or missing shard and, unless `check` is false, for a number that is not finite.
        """
        rows: Floats = self._read(name, start, stop)
        if check:
            for low in range(0, len(rows), SHARD_ROWS):
                if not np.isfinite(rows[low : low + SHARD_ROWS]).all():
                    row, column = np.argwhere(~np.isfinite(rows[low : low + SHARD_ROWS]))[0] + (low, 0)
                    raise EbmtrajError(self._not_finite(name, start + int(row), int(column), float(rows[row, column])))
        return rows

    def unsealed(self) -> Store:
        """The same store, read without a look at its seal: for whoever compares with the episodes' own digests."""
        return Store(self.path, self._group, {key: value for key, value in self.attributes.items() if key != "seal"})

    def chunk_rows(self, name: str) -> int:
        """How many rows of "state" or "action" are decoded together; raises `EbmtrajError` where the array is missing."""
        return int(self._array(name).chunks[0])

    def episode_array(self, name: str) -> NDArray[Any]:
        """What the array of this name below `episode/` holds, (E, ...); raises `EbmtrajError` where it can't be read."""
        values = self._read(f"episode/{name}", 0, self.episodes)
        if self._columns.get(name, digest := of_arrays([(name, values)])) != digest:
            raise EbmtrajError(
                f"store {self.path}: array episode/{name} is not the one that was written: its file episode/{name}/c/0 is "
                "damaged or of another store; restore it"
            )
        return values

    def _offsets_of(self, name: str) -> Indices:
        return self.state_offsets if name == "state" else self.action_offsets

    def _gather(self, name: str, episodes: slice | Sequence[int] | NDArray[Any]) -> Floats:
        offsets = self._offsets_of(name)
        try:
            chosen = np.arange(self.episodes)[episodes if isinstance(episodes, slice) else np.asarray(episodes, np.int64)]
        except IndexError as error:
            raise EbmtrajError(f"store {self.path} holds {self.episodes} episodes: {error}") from None
        if len(chosen) and (np.diff(chosen) == 1).all():
            return self.rows(name, int(chosen[0]), int(chosen[-1]) + 1)
        sizes = np.diff(offsets)[chosen]
        starts = piece_offsets(sizes)
        out = np.empty((int(starts[-1]), self._array(name).shape[1]), np.float32)
        order = np.argsort(chosen, kind="stable")
        ranked = chosen[order]
        # Span by span, so that each chunk is decoded about once however scattered the episodes are.
        for first, last in self.spans():
            low, high = np.searchsorted(ranked, (first, last))
            if low == high:
                continue
            first, last = int(ranked[low]), int(ranked[high - 1]) + 1
            rows = self.rows(name, first, last)
            for place in order[low:high]:
                begin = offsets[chosen[place]] - offsets[first]
                out[starts[place] : starts[place + 1]] = rows[begin : begin + sizes[place]]
        return out

    def _not_finite(self, name: str, row: int, column: int, value: float) -> str:
        array = self._array(name)
        shard = row // (array.shards or array.chunks)[0]
        key = f"c/{shard}/0"
        if not sync((array.store_path / key).get()):  # absent, or cut to nothing: zarr reads either as fill values
            return f"store {self.path}: array {name}: shard {name}/{key} is missing or empty; restore it or collect again"
        episode = int(np.searchsorted(self._offsets_of(name), row, side="right")) - 1
        where = column_name(self.state_fields if name == "state" else self.action_fields, column)
        step = row - int(self._offsets_of(name)[episode])
        return (
            f"store {self.path}: {name} field {where} of episode {episode} is {value} at step {step}; "
            "a store to train from must be finite: collect it again"
        )

    def _array(self, name: str) -> zarr.Array[Any]:
        if name not in self._arrays:
            array = member_array(self._group, self.path, name)
            if name in ("state", "action"):
                tail: tuple[int, ...] = (total_size(self.state_fields if name == "state" else self.action_fields),)
            else:
                columns = EPISODE_ARRAYS.get(name.removeprefix("episode/"), ("", 0, 0))[1]
                tail = (columns,) if columns else ()
            if array.ndim != 1 + len(tail) or array.shape[1:] != tail:
                raise EbmtrajError(
                    f"store {self.path}: array {name} has shape {array.shape}, not (rows{''.join(f', {n}' for n in tail)}): "
                    f"{name}/zarr.json is damaged or another array's; restore it"
                )
            refuse_array(f"store {self.path}: array {name}", array, None)
            self._arrays[name] = array
        return self._arrays[name]

    def _read(self, name: str, start: int, stop: int) -> NDArray[Any]:
        array = self._array(name)
        if array.shape[0] < stop:
            raise EbmtrajError(
                f"store {self.path}: array {name} has {array.shape[0]} rows, but {stop} are committed; collect it again"
            )
        foreign = None
        try:
            try:
                rows = decode_rows(array, start, stop, self._sums.get(name))
            except ForeignShardError as error:
                rows, foreign = None, str(error)
            rows = np.asarray(array[start:stop]) if rows is None else rows
        except Exception as error:  # a damaged shard may fail in zarr, a codec or the file system
            raise EbmtrajError(
                f"store {self.path}: array {name}, rows {start} to {stop}: can't be read ({reason_of(error)}); "
                f"a shard is damaged{f', {name}/{foreign}' if foreign else ''}: see ebmtraj data verify {self.path}"
            ) from None
        if foreign is not None:
            if not np.isfinite(rows).all():
                row, column = np.argwhere(~np.isfinite(rows))[0]
                raise EbmtrajError(self._not_finite(name, start + int(row), int(column), float(rows[row, column])))
            raise EbmtrajError(
                f"store {self.path}: {name}/{foreign} is not the file that was written: it is of another store, or an older "
                "version; restore it"
            )
        return rows
