"""The trajectory store: episodes of states and actions in one sharded zarr (format 3) group.

`state` (rows, S) holds length + 1 rows an episode, `action` (rows, A) holds length rows; the arrays below `episode/`
say how many, from which seed, and what their bytes hash to.

Writing is crash-safe: rows go beyond the committed end (a shard is replaced whole, by a rename), then one atomic write
of the group's attributes commits them. Readers believe only the committed counts.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib.metadata
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, NamedTuple, TypeAlias

import numpy as np
import zarr
from numpy.typing import NDArray
from zarr.codecs import BloscCodec, Crc32cCodec
from zarr.core.sync import sync
from zarr.errors import GroupNotFoundError

from ebmtraj import __version__
from ebmtraj.errors import EbmtrajError
from ebmtraj.fields import Field, fields_from_json, fields_to_json, slices, total_size

FORMAT = "ebmtraj-trajectories"
SCHEMA = 1
SPLITS = ("train", "validation", "test")
LAYOUT = (
    "state has length+1 rows an episode and action has length rows, episode after episode: row t of an episode's "
    "action is applied in row t of its state and leads to row t+1; only the committed counts are valid"
)
SPLIT_RULE = (
    "in each group of 10 consecutive episodes, ordered by sha256('{seed}/{episode}'), the first 7 are train, the next "
    "1 validation, the last 2 test"
)
DIGEST_RULE = "sha256 of an episode's state, action, length (int64), seed (uint64), terminated (uint8), little-endian"

CHUNK_ROWS, SHARD_ROWS = 4096, 65_536
CHUNK_EPISODES, SHARD_EPISODES = 4096, 65_536
SPAN_ROWS = 131_072  # rows held at a time by whatever walks over the whole store

Split: TypeAlias = Literal["train", "validation", "test"]
Floats: TypeAlias = NDArray[np.float32]
Indices: TypeAlias = NDArray[np.int64]

_EPISODE_ARRAYS: dict[str, tuple[str, int, int | bool]] = {  # name: type, columns (0: a vector), value of what is missing
    "length": ("int64", 0, -1),
    "seed": ("uint64", 0, 0),
    "terminated": ("bool", 0, False),
    "block": ("int64", 0, -1),
    "digest": ("uint8", 32, 0),
}


@dataclass(frozen=True)
class EpisodeBlock:
    """Whole episodes, one after another: what is appended, and committed, at once.

    Raises `EbmtrajError` where the shapes do not fit each other.
    """

    state: Floats  # (sum(length + 1), S)
    action: Floats  # (sum(length), A); row t of an episode leads from its state t to its state t + 1
    length: Indices  # (E,) number of actions
    seed: NDArray[np.uint64]  # (E,) the number that each episode can be made again from
    terminated: NDArray[np.bool_]  # (E,) the episode ended by itself, not at the step limit

    def __post_init__(self) -> None:
        for name, kind in (
            ("state", "<f4"),
            ("action", "<f4"),
            ("length", "<i8"),
            ("seed", "<u8"),
            ("terminated", "?"),
        ):
            object.__setattr__(self, name, np.ascontiguousarray(getattr(self, name), dtype=kind))
        if self.length.ndim != 1 or len(self.length) == 0 or self.length.min() < 1:
            raise EbmtrajError(f"a block needs at least one episode of at least one step; lengths are {self.length}")
        rows = int(self.length.sum())
        for name, expected in (("state", rows + len(self.length)), ("action", rows)):
            value = getattr(self, name)
            if value.ndim != 2 or len(value) != expected:
                raise EbmtrajError(f"block: {name} has shape {value.shape}; these lengths need ({expected}, size)")
        for name in ("seed", "terminated"):
            if getattr(self, name).shape != self.length.shape:
                raise EbmtrajError(f"block: {name} has shape {getattr(self, name).shape}, length {self.length.shape}")

    def digests(self) -> NDArray[np.uint8]:
        """(E, 32) sha256 of each episode, as `DIGEST_RULE` states."""
        state_ends, action_ends = _offsets(self.length + 1), _offsets(self.length)
        out = np.empty((len(self.length), 32), np.uint8)
        for i in range(len(self.length)):
            digest = hashlib.sha256(self.state[state_ends[i] : state_ends[i + 1]].data)
            digest.update(self.action[action_ends[i] : action_ends[i + 1]].data)
            digest.update(self.length[i].tobytes() + self.seed[i].tobytes() + self.terminated[i].tobytes())
            out[i] = np.frombuffer(digest.digest(), np.uint8)
        return out


@dataclass(frozen=True)
class StoreRecipe:
    """What the content of a store is a function of; a store is resumed only with an equal one."""

    env: str
    control_timestep: float  # s
    state_fields: tuple[Field, ...]
    action_fields: tuple[Field, ...]
    policy: Mapping[str, Any]  # as the policy describes itself
    env_kwargs: Mapping[str, Any] = field(default_factory=dict)
    env_attributes: Mapping[str, Any] = field(default_factory=dict)  # model hash, MuJoCo version, ...
    action_noise: str = "none beyond the policy's own"
    seed: int = 0
    steps: int | None = None  # limit of an episode's length, where there is one
    split_seed: int = 0

    def identity(self) -> dict[str, Any]:
        """The part that goes into the content hash, as plain JSON values."""
        return _plain(
            {
                "schema": SCHEMA,
                "env": self.env,
                "env_kwargs": dict(self.env_kwargs),
                "control_timestep": self.control_timestep,
                "state_fields": fields_to_json(self.state_fields),
                "action_fields": fields_to_json(self.action_fields),
                "policy": dict(self.policy),
                "action_noise": self.action_noise,
                "seed": self.seed,
                "steps": self.steps,
            }
        )

    def attributes(self) -> dict[str, Any]:
        """All that a new store's attributes say of its origin."""
        return {
            **self.identity(),
            "env_attributes": _plain(dict(self.env_attributes)),
            "split": {"rule": SPLIT_RULE, "seed": self.split_seed},
        }


_IDENTITY = (  # the keys of `StoreRecipe.identity`
    *("schema", "env", "env_kwargs", "control_timestep", "state_fields", "action_fields"),
    *("policy", "action_noise", "seed", "steps"),
)


class Episode(NamedTuple):
    """One recorded episode."""

    state: Floats  # (T + 1, S)
    action: Floats  # (T, A)
    seed: int
    terminated: bool


def episode_splits(episodes: int, seed: int = 0) -> NDArray[np.int8]:
    """(E,) index into `SPLITS` of each episode, as `SPLIT_RULE` states; it does not depend on how many there are."""
    splits = np.empty(-(-episodes // 10) * 10, np.int8)
    kinds = np.repeat(np.arange(3, dtype=np.int8), (7, 1, 2))
    for start in range(0, len(splits), 10):
        members = range(start, start + 10)
        splits[sorted(members, key=lambda i: hashlib.sha256(f"{seed}/{i}".encode()).digest())] = kinds
    return splits[:episodes]


class Store:
    """A reader of committed episodes."""

    def __init__(self, path: str, group: zarr.Group, attributes: dict[str, Any]) -> None:
        self.path = path
        self.attributes = attributes
        self._group = group
        try:
            self.complete: bool = attributes["complete"]
            self.episodes: int = attributes["committed"]["episodes"]
            self.transitions: int = attributes["committed"]["action_rows"]
            self.control_timestep: float = attributes["control_timestep"]  # s
            self.state_fields = fields_from_json(attributes["state_fields"])
            self.action_fields = fields_from_json(attributes["action_fields"])
            self._split_seed: int = attributes["split"]["seed"]
        except (KeyError, TypeError, AttributeError) as error:
            raise EbmtrajError(f"store {path}: attributes are damaged ({_reason(error)}); collect it again") from None

    @classmethod
    def open(cls, path: str | Path) -> Store:
        """Open a store for reading, finished or not.

        Raises `EbmtrajError` where there is none, or it is not ours, of a newer schema or without readable attributes.
        """
        url = _url(path)
        group = _open_group(url, "r")
        if group is None:
            if _occupied(url):
                raise EbmtrajError(f"{url} is not a trajectory store (no zarr group there); check the path")
            raise EbmtrajError(f"store {url} does not exist; make it first: ebmtraj collect {url} --env hand-cube")
        return cls(url, group, _our_attributes(url, group))

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
        """(E,) number of actions an episode."""
        lengths = self._episode_array("length")
        if len(lengths) and (lengths.min() < 1 or lengths.sum() != self.transitions):
            raise EbmtrajError(f"store {self.path}: array episode/length is damaged or its shard is missing; collect again")
        return lengths

    @cached_property
    def seeds(self) -> NDArray[np.uint64]:
        """(E,) the number that each episode was made from."""
        return self._episode_array("seed")

    @cached_property
    def terminated(self) -> NDArray[np.bool_]:
        """(E,) whether the episode ended by itself."""
        return self._episode_array("terminated")

    @cached_property
    def state_offsets(self) -> Indices:
        """(E + 1,) first row of each episode in `state`, and the end of the last."""
        return _offsets(self.lengths + 1)

    @cached_property
    def action_offsets(self) -> Indices:
        """(E + 1,) first row of each episode in `action`, and the end of the last."""
        return _offsets(self.lengths)

    @cached_property
    def splits(self) -> NDArray[np.int8]:
        """(E,) index into `SPLITS` of each episode."""
        return episode_splits(self.episodes, self._split_seed)

    def split(self, name: str) -> Indices:
        """Indices of the episodes of "train", "validation" or "test", ascending."""
        if name not in SPLITS:
            raise EbmtrajError(f"unknown split {name!r}; use one of {', '.join(SPLITS)}")
        return np.flatnonzero(self.splits == SPLITS.index(name)).astype(np.int64)

    def info(self) -> dict[str, Any]:
        """A summary in plain JSON values."""
        lengths = self.lengths
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
            **{key: self.attributes.get(key) for key in ("content_hash", *_IDENTITY, "env_attributes", "versions")},
        }

    # reading

    def read_all(self) -> tuple[Floats, Floats]:
        """All states (rows, S) and actions (rows, A).

        Raises `EbmtrajError` where a shard is damaged or missing, or a number is not finite.
        """
        return self._rows("state", 0, self.episodes), self._rows("action", 0, self.episodes)

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
        """Episodes `first` to `last` - 1 as a block; without `check`, numbers that are not finite pass."""
        return EpisodeBlock(
            self._rows("state", first, last, check=check),
            self._rows("action", first, last, check=check),
            self.lengths[first:last],
            self.seeds[first:last],
            self.terminated[first:last],
        )

    def _offsets_of(self, name: str) -> Indices:
        return self.state_offsets if name == "state" else self.action_offsets

    def _gather(self, name: str, episodes: slice | Sequence[int] | NDArray[Any]) -> Floats:
        offsets = self._offsets_of(name)
        try:
            chosen = np.arange(self.episodes)[episodes if isinstance(episodes, slice) else np.asarray(episodes, np.int64)]
        except IndexError as error:
            raise EbmtrajError(f"store {self.path} holds {self.episodes} episodes: {error}") from None
        if len(chosen) and (np.diff(chosen) == 1).all():
            return self._rows(name, int(chosen[0]), int(chosen[-1]) + 1)
        sizes = np.diff(offsets)[chosen]
        starts = _offsets(sizes)
        out = np.empty((int(starts[-1]), self._array(name).shape[1]), np.float32)
        order = np.argsort(chosen, kind="stable")
        ranked = chosen[order]
        # Span by span, so that each chunk is decoded about once however scattered the episodes are.
        for first, last in self.spans():
            low, high = np.searchsorted(ranked, (first, last))
            if low == high:
                continue
            first, last = int(ranked[low]), int(ranked[high - 1]) + 1
            rows = self._rows(name, first, last)
            for place in order[low:high]:
                begin = offsets[chosen[place]] - offsets[first]
                out[starts[place] : starts[place + 1]] = rows[begin : begin + sizes[place]]
        return out

    def _rows(self, name: str, first: int, last: int, *, check: bool = True) -> Floats:
        """Rows of `state` or `action` of episodes `first` to `last` - 1."""
        offsets = self._offsets_of(name)
        start = int(offsets[first])
        rows: Floats = self._read(name, start, int(offsets[last]))
        if check:
            for low in range(0, len(rows), SHARD_ROWS):
                if not np.isfinite(rows[low : low + SHARD_ROWS]).all():
                    row, column = np.argwhere(~np.isfinite(rows[low : low + SHARD_ROWS]))[0] + (low, 0)
                    raise EbmtrajError(self._not_finite(name, start + int(row), int(column), float(rows[row, column])))
        return rows

    def _not_finite(self, name: str, row: int, column: int, value: float) -> str:
        array = self._array(name)
        shard = row // (array.shards or array.chunks)[0]
        key = f"c/{shard}/0"
        if not sync((array.store_path / key).get()):  # absent, or cut to nothing: zarr reads either as fill values
            return f"store {self.path}: array {name}: shard {key} is missing or empty; restore it or collect again"
        episode = int(np.searchsorted(self._offsets_of(name), row, side="right")) - 1
        where = _entry(self.state_fields if name == "state" else self.action_fields, column)
        step = row - int(self._offsets_of(name)[episode])
        return (
            f"store {self.path}: {name} field {where} of episode {episode} is {value} at step {step}; "
            "a store to train from must be finite: collect it again"
        )

    def _episode_array(self, name: str) -> NDArray[Any]:
        return self._read(f"episode/{name}", 0, self.episodes)

    def _array(self, name: str) -> zarr.Array[Any]:
        return _member(self._group, self.path, name)

    def _read(self, name: str, start: int, stop: int) -> NDArray[Any]:
        array = self._array(name)
        if array.shape[0] < stop:
            raise EbmtrajError(
                f"store {self.path}: array {name} has {array.shape[0]} rows, but {stop} are committed; collect it again"
            )
        try:
            return np.asarray(array[start:stop])
        except Exception as error:  # a damaged shard may fail in zarr, a codec or the file system
            raise EbmtrajError(
                f"store {self.path}: array {name}, rows {start} to {stop}: can't be read ({_reason(error)}); "
                f"a shard is damaged: see ebmtraj data verify {self.path}"
            ) from None


class StoreWriter:
    """Appends blocks of episodes; each is either wholly in the store or not there, also after a kill."""

    def __init__(self, path: str, group: zarr.Group, attributes: dict[str, Any]) -> None:
        self.path = path
        self._group = group
        self._attributes = attributes
        committed = attributes["committed"]
        self.episodes: int = committed["episodes"]
        self._state_rows: int = committed["state_rows"]
        self._action_rows: int = committed["action_rows"]
        self._blocks: int = committed["blocks"]
        self._state_fields = fields_from_json(attributes["state_fields"])
        self._action_fields = fields_from_json(attributes["action_fields"])
        self._arrays: dict[str, zarr.Array[Any]] = {}

    @property
    def transitions(self) -> int:
        """Committed number of transitions."""
        return self._action_rows

    @classmethod
    def create(cls, path: str | Path, recipe: StoreRecipe, *, overwrite: bool = False) -> StoreWriter:
        """Make an empty store.

        Raises `EbmtrajError` where something is there: a store is replaced only with `overwrite`, anything else never.
        """
        url = _url(path)
        group = _open_group(url, "r+")
        if group is not None:
            ours = _format_of(url, group) == FORMAT
            if not ours:
                raise EbmtrajError(f"{url} holds a zarr group that is not a trajectory store; choose another path")
            if not overwrite:
                raise EbmtrajError(f"store {url} exists; use --resume to go on with it or --overwrite to replace it")
        elif _occupied(url):
            raise EbmtrajError(f"{url} holds something that is not a trajectory store; choose another path")
        attributes = {
            "format": FORMAT,
            **recipe.attributes(),
            "layout": LAYOUT,
            "digest": DIGEST_RULE,
            "quaternion_convention": "w, x, y, z",
            "versions": _versions(),
            "complete": False,
            "committed": {"episodes": 0, "state_rows": 0, "action_rows": 0, "blocks": 0},
        }
        with _writing(url):
            # The attributes go first: killed anywhere below, this is an empty store of ours, which resume completes.
            if group is None:
                group = zarr.create_group(url, zarr_format=3, attributes=attributes)
            else:
                group.attrs.put(attributes)
        writer = cls(url, group, attributes)
        writer._make_arrays()
        return writer

    @classmethod
    def resume(cls, path: str | Path, recipe: StoreRecipe) -> StoreWriter:
        """Go on after the last committed block.

        Raises `EbmtrajError` where there is no store, its last block is damaged, or its recipe is another one: the
        message names the first key that differs, with both values.
        """
        store = Store.open(path)
        expected = recipe.attributes()
        found = {key: store.attributes.get(key) for key in expected}
        difference = _difference(found, expected)
        if difference:
            key, old, new = difference
            raise EbmtrajError(
                f"store {store.path} was made with {key} = {old}, not {new}; use the same recipe or another path"
            )
        group = _open_group(store.path, "r+")
        if group is None:
            raise EbmtrajError(f"store {store.path} does not exist any more")
        _drop_partial_files(store.path)
        writer = cls(store.path, group, store.attributes)
        if store.episodes == 0:
            writer._make_arrays()
        else:
            last = store._episode_array("block")
            first = int(np.searchsorted(last, last[-1]))
            block = store.read_block(first, store.episodes)
            if (block.digests() != store._episode_array("digest")[first:]).any():
                raise EbmtrajError(f"store {store.path}: its last block is damaged; collect it again with --overwrite")
        return writer

    def append_block(self, block: EpisodeBlock) -> None:
        """Write and commit a block of episodes.

        Raises `EbmtrajError` where sizes differ from the fields', a number is not finite (naming episode and field), or
        the disk is full or can't be written: then the store is as before.
        """
        for name, fields in (("state", self._state_fields), ("action", self._action_fields)):
            self._check(name, getattr(block, name), fields, block.length)
        count = len(block.length)
        columns = {
            "length": block.length,
            "seed": block.seed,
            "terminated": block.terminated,
            "block": np.full(count, self._blocks),
            "digest": block.digests(),
        }
        committed = {
            "episodes": self.episodes + count,
            "state_rows": self._state_rows + len(block.state),
            "action_rows": self._action_rows + len(block.action),
            "blocks": self._blocks + 1,
        }
        with _writing(self.path):
            if self._attributes["complete"]:  # what was computed at the end holds no more
                self._attributes["complete"] = False
                for key in ("content_hash", "statistics"):
                    self._attributes.pop(key, None)
            self._write("state", self._state_rows, block.state)
            self._write("action", self._action_rows, block.action)
            for name, values in columns.items():
                self._write(f"episode/{name}", self.episodes, values)
            self._commit({"committed": committed})
        self.episodes, self._blocks = committed["episodes"], committed["blocks"]
        self._state_rows, self._action_rows = committed["state_rows"], committed["action_rows"]

    def finish(self) -> Store:
        """Trim the arrays, add statistics, split counts and content hash, and mark the store as complete."""
        if self.episodes == 0:
            raise EbmtrajError(f"store {self.path} holds no episodes; append some before finishing it")
        _drop_partial_files(self.path)
        store = Store.open(self.path)
        sizes = {"state": self._state_rows, "action": self._action_rows}
        with _writing(self.path):
            for name in ("state", "action", *(f"episode/{name}" for name in _EPISODE_ARRAYS)):
                array = self._member(name)
                array.resize((sizes.get(name, self.episodes), *array.shape[1:]))
        digest = _content_hasher(store.attributes)
        digest.update(store._episode_array("digest").tobytes())
        counts = {name: int((store.splits == i).sum()) for i, name in enumerate(SPLITS)}
        with _writing(self.path):
            self._commit(
                {
                    "statistics": _statistics(store),
                    "split": {**self._attributes["split"], "counts": counts},
                    "content_hash": digest.hexdigest(),
                    "complete": True,
                }
            )
        return Store.open(self.path)

    def _check(self, name: str, values: Floats, fields: Sequence[Field], length: Indices) -> None:
        size = total_size(fields)
        if values.shape[1] != size:
            raise EbmtrajError(f"block: {name} has {values.shape[1]} columns, the fields of store {self.path} have {size}")
        if not np.isfinite(values).all():
            row, column = np.argwhere(~np.isfinite(values))[0]
            ends = _offsets(length + 1 if name == "state" else length)
            episode = int(np.searchsorted(ends, row, side="right")) - 1
            raise EbmtrajError(
                f"{name} field {_entry(fields, int(column))} of episode {self.episodes + episode} is "
                f"{values[row, column]} at step {row - ends[episode]}; nothing of this block was stored: "
                "the simulation or the source is unstable there"
            )

    def _make_arrays(self) -> None:
        with _writing(self.path):
            for name in ("state", "action", "episode"):
                if name in self._group:
                    del self._group[name]
            for name, fields in (("state", self._state_fields), ("action", self._action_fields)):
                size = total_size(fields)
                self._group.create_array(
                    name,
                    shape=(0, size),
                    dtype="float32",
                    chunks=(CHUNK_ROWS, size),
                    shards=(SHARD_ROWS, size),
                    compressors=_compressors(4),
                    fill_value=float("nan"),  # a missing shard can't pass for zeros
                    dimension_names=("row", name),
                )
            episode = self._group.create_group("episode")
            for name, (kind, size, missing) in _EPISODE_ARRAYS.items():
                tail = (size,) if size else ()
                episode.create_array(
                    name,
                    shape=(0, *tail),
                    dtype=kind,
                    chunks=(CHUNK_EPISODES, *tail),
                    shards=(SHARD_EPISODES, *tail),
                    compressors=_compressors(np.dtype(kind).itemsize),
                    fill_value=missing,
                    dimension_names=("episode", "byte")[: 1 + len(tail)],
                )

    def _member(self, name: str) -> zarr.Array[Any]:
        if name not in self._arrays:
            self._arrays[name] = _member(self._group, self.path, name)
        return self._arrays[name]

    def _write(self, name: str, start: int, values: NDArray[Any]) -> None:
        array = self._member(name)
        stop = start + len(values)
        if array.shape[0] < stop:  # by whole shards: a resize rewrites the array's metadata
            rows = (array.shards or array.chunks)[0]
            array.resize((-(-stop // rows) * rows, *array.shape[1:]))
        array[start:stop] = values

    def _commit(self, changes: Mapping[str, Any]) -> None:
        attributes = {**self._attributes, **changes}
        self._group.attrs.put(attributes)
        self._attributes = attributes


def verify(path: str | Path) -> dict[str, Any]:
    """Recompute every digest, a bounded number of rows at a time.

    Returns `ok`, `complete`, `content_hash` (recomputed; the stored one where nothing is wrong) and `bad_blocks`: for
    each the `block`, its bad `episodes` [first, last], the `array` and the `reason`. Raises `EbmtrajError` where the
    attributes can't be read.
    """
    store = Store.open(path)
    digest = _content_hasher(store.attributes)
    blocks, expected, bad = _episode_columns(store)
    if not bad:
        for first, last in _block_spans(store, blocks):
            digests, unreadable = _digests(store, first, last, blocks)
            bad += unreadable
            wrong = first + np.flatnonzero((digests != expected[first:last]).any(axis=1))
            for block in np.setdiff1d(blocks[wrong], [entry["block"] for entry in unreadable]):
                members = wrong[blocks[wrong] == block]
                bad.append(_bad(int(block), members, "state, action or episode", "content differs from its digest"))
            digest.update(digests.tobytes())
    content_hash = digest.hexdigest()
    if not bad and store.complete and content_hash != store.content_hash:
        reason = "the recipe in the attributes is not the one that was hashed"
        bad.append({"block": None, "episodes": None, "array": "attributes", "reason": reason})
    return {"ok": not bad, "complete": store.complete, "content_hash": content_hash, "bad_blocks": bad}


def _episode_columns(store: Store) -> tuple[Indices, NDArray[np.uint8], list[dict[str, Any]]]:
    """Block index and stored digest of each episode, and what of the arrays below `episode/` is damaged."""
    everything = np.arange(store.episodes)
    columns: dict[str, NDArray[Any]] = {"block": everything, "digest": np.empty((0, 32), np.uint8)}
    bad = []
    for name in _EPISODE_ARRAYS:
        try:
            columns[name] = store.lengths if name == "length" else store._episode_array(name)
        except EbmtrajError as error:
            bad.append(_bad(None, everything, f"episode/{name}", str(error)))
    if (np.diff(columns["block"], prepend=0) < 0).any():
        bad.append(_bad(None, everything, "episode/block", "damaged, or its shard is missing"))
    return columns["block"], columns["digest"], bad


def _block_spans(store: Store, blocks: Indices) -> Iterator[tuple[int, int]]:
    """Ranges of episodes of about `SPAN_ROWS` rows that end where a block ends."""
    first = 0
    for _, last in store.spans():
        end = int(np.searchsorted(blocks, blocks[last - 1], side="right"))
        if end > first:
            yield first, end
            first = end


def _digests(store: Store, first: int, last: int, blocks: Indices) -> tuple[NDArray[np.uint8], list[dict[str, Any]]]:
    """(last - first, 32) recomputed digests, zeros where a block can't be read, and those blocks."""
    try:
        return store.read_block(first, last).digests(), []
    except EbmtrajError:
        pass
    digests, bad = np.zeros((last - first, 32), np.uint8), []
    for block in np.unique(blocks[first:last]):  # find out which
        members = first + np.flatnonzero(blocks[first:last] == block)
        low, high = int(members[0]), int(members[-1]) + 1
        faults = {name: fault for name in ("state", "action") if (fault := _fault(store, name, low, high))}
        for name, fault in faults.items():
            bad.append(_bad(int(block), members, name, fault))
        if not faults:
            digests[low - first : high - first] = store.read_block(low, high).digests()
    return digests, bad


def _fault(store: Store, name: str, first: int, last: int) -> str | None:
    try:
        store._rows(name, first, last)
    except EbmtrajError as error:
        return str(error)
    return None


def _bad(block: int | None, episodes: Indices, array: str, reason: str) -> dict[str, Any]:
    return {"block": block, "episodes": [int(episodes[0]), int(episodes[-1])], "array": array, "reason": reason}


def _statistics(store: Store) -> dict[str, Any] | None:
    """Moments of the train split, merged span by span (Chan et al. 1979), so that memory is bounded.

    `delta` is the one-step change of the state, with angles wrapped to (-pi, pi]; quaternion entries are subtracted.
    """
    names = ("state", "action", "delta")
    moments: dict[str, _Moments] = {name: _Moments() for name in names}
    places = slices(store.state_fields)
    angles = [places[f.name] for f in store.state_fields if f.kind == "angle"]
    train = store.splits == SPLITS.index("train")
    if not train.any():
        return None
    for first, last in store.spans():
        block, chosen = store.read_block(first, last), train[first:last]
        state_mask = np.repeat(chosen, block.length + 1)
        if not state_mask.any():
            continue
        inner = state_mask.copy()
        inner[_offsets(block.length + 1)[1:] - 1] = False  # an episode's last state has no successor
        delta = block.state[np.flatnonzero(inner) + 1].astype(np.float64) - block.state[inner]
        for place in angles:
            delta[:, place] = np.pi - (np.pi - delta[:, place]) % (2 * np.pi)
        for name, rows in (
            ("state", block.state[state_mask]),
            ("action", block.action[np.repeat(chosen, block.length)]),
            ("delta", delta),
        ):
            moments[name].add(rows)
    return {"split": "train", **{name: moments[name].summary() for name in names}}


class _Moments:
    """Running count, mean, sum of squares, min and max a column, in float64."""

    def __init__(self) -> None:
        self.count = 0
        self.mean: Any = 0.0
        self.square: Any = 0.0
        self.low: Any = np.inf
        self.high: Any = -np.inf

    def add(self, rows: NDArray[Any]) -> None:
        values = rows.astype(np.float64)
        count, mean = len(values), values.mean(axis=0)
        total, shift = self.count + count, mean - self.mean
        self.square = self.square + ((values - mean) ** 2).sum(axis=0) + shift**2 * (self.count * count / total)
        self.mean = self.mean + shift * (count / total)
        self.count = total
        self.low, self.high = np.minimum(self.low, values.min(axis=0)), np.maximum(self.high, values.max(axis=0))

    def summary(self) -> dict[str, Any]:
        std = np.sqrt(self.square / self.count)
        columns = {"mean": self.mean, "std": std, "min": self.low, "max": self.high}
        return {"count": self.count, **{name: value.tolist() for name, value in columns.items()}}


def _content_hasher(attributes: Mapping[str, Any]) -> hashlib._Hash:
    """A hash that has seen the recipe; the digests of all episodes follow."""
    identity = {key: attributes.get(key) for key in _IDENTITY}
    return hashlib.sha256(json.dumps(identity, sort_keys=True, separators=(",", ":")).encode())


def _compressors(itemsize: int) -> list[BloscCodec | Crc32cCodec]:
    # The checksum lets any zarr reader see a flipped byte.
    return [BloscCodec(cname="zstd", clevel=5, shuffle="bitshuffle", typesize=itemsize), Crc32cCodec()]


def _offsets(sizes: NDArray[Any]) -> Indices:
    """(n + 1,) where each of n consecutive pieces starts, and the end of the last."""
    return np.concatenate([[0], np.cumsum(sizes, dtype=np.int64)])


def _entry(fields: Sequence[Field], column: int) -> str:
    """Name of a column of a state or action vector."""
    for one in fields:
        if column < one.size:
            return f"{one.name}.{one.entries[column]}" if one.entries else f"{one.name}[{column}]"
        column -= one.size
    return f"[{column}]"


def _plain(value: Any) -> Any:
    """`value` as JSON gives it back; raises `EbmtrajError` where it can't."""
    try:
        return json.loads(json.dumps(value, allow_nan=False, default=_numpy_to_json))
    except (TypeError, ValueError) as error:
        raise EbmtrajError(f"recipe of the store is not plain JSON: {error}") from None


def _numpy_to_json(value: Any) -> Any:
    if isinstance(value, np.generic | np.ndarray):
        return value.tolist()
    raise TypeError(f"{value!r} is a {type(value).__name__}")


def _difference(found: Any, expected: Any, key: str = "") -> tuple[str, str, str] | None:
    """First place where two JSON values differ, with both values there."""
    if isinstance(found, dict) and isinstance(expected, dict):
        if key == "split":
            found = {name: found.get(name) for name in expected}  # the counts are added at the end
        for name in sorted({*found, *expected}):
            inner = _difference(found.get(name), expected.get(name), f"{key}.{name}" if key else name)
            if inner:
                return inner
        return None
    return None if found == expected else (key, json.dumps(found), json.dumps(expected))


def _versions() -> dict[str, str]:
    found = {"ebmtraj": __version__}
    for name in ("numpy", "zarr", "mujoco", "gymnasium"):
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            found[name] = importlib.metadata.version(name)
    return found


# files and URLs

_PARTIAL = re.compile(r"\.[0-9a-f]{32}\.partial$")  # zarr writes a file under such a name, then renames it


def is_vacant(path: str | Path) -> bool:
    """Whether there is nothing yet at `path`."""
    url = _url(path)
    return _open_group(url, "r") is None and not _occupied(url)


def _is_local(url: str) -> bool:
    return "://" not in url


def _url(path: str | Path) -> str:
    text = str(path).removeprefix("file://")  # fsspec's local files would not make folders
    return str(Path(text).expanduser()) if _is_local(text) else text.rstrip("/")


def _open_group(url: str, mode: Literal["r", "r+"]) -> zarr.Group | None:
    """The zarr group at `url`; None where there is none."""
    if _is_local(url) and Path(url).exists() and not Path(url).is_dir():
        raise EbmtrajError(f"{url} is a file, not a trajectory store; check the path")
    try:
        return zarr.open_group(url, mode=mode, zarr_format=3)
    except (FileNotFoundError, GroupNotFoundError):
        return None
    except (OSError, ImportError) as error:  # no rights, no connection, or no package for this kind of URL
        raise EbmtrajError(f"can't open store {url}: {_reason(error)}") from None
    except Exception as error:  # zarr and fsspec raise many kinds
        raise EbmtrajError(f"store {url}: can't be opened or its attributes are damaged ({_reason(error)})") from None


def _occupied(url: str) -> bool:
    """Whether anything stands at `url`."""
    try:
        if _is_local(url):
            return Path(url).exists() and not all(_PARTIAL.search(entry.name) for entry in Path(url).iterdir())
        from fsspec.core import url_to_fs  # type: ignore[import-untyped]

        system, root = url_to_fs(url)
        return system.exists(root) and (not system.isdir(root) or bool(system.ls(root)))
    except (OSError, ValueError, ImportError) as error:
        raise EbmtrajError(f"can't look into {url}: {_reason(error)}") from None


def _format_of(url: str, group: zarr.Group) -> Any:
    try:
        return group.attrs.asdict().get("format")
    except Exception as error:
        raise EbmtrajError(f"store {url}: attributes can't be read ({_reason(error)})") from None


def _our_attributes(url: str, group: zarr.Group) -> dict[str, Any]:
    if _format_of(url, group) != FORMAT:
        raise EbmtrajError(f"{url} is a zarr group, but not a trajectory store; check the path")
    attributes: dict[str, Any] = group.attrs.asdict()
    schema = attributes.get("schema")
    if not isinstance(schema, int) or schema < 1:
        raise EbmtrajError(f"store {url}: attribute schema is {schema!r}; the attributes are damaged")
    if schema > SCHEMA:
        raise EbmtrajError(f"store {url} has schema {schema}, this ebmtraj reads up to {SCHEMA}; update ebmtraj")
    return attributes


def _member(group: zarr.Group, url: str, name: str) -> zarr.Array[Any]:
    try:
        array = group[name]
    except Exception as error:
        raise EbmtrajError(f"store {url}: array {name} is missing or damaged ({_reason(error)})") from None
    if not isinstance(array, zarr.Array):
        raise EbmtrajError(f"store {url}: {name} is not an array; the store is damaged")
    return array


@contextlib.contextmanager
def _writing(url: str) -> Iterator[None]:
    """Turn whatever zarr or the file system raises into one line."""
    try:
        yield
    except EbmtrajError:
        raise
    except OSError as error:
        raise EbmtrajError(
            f"can't write store {url}: {error.strerror or _reason(error)}; free the disk or mend the rights"
        ) from None
    except Exception as error:
        raise EbmtrajError(f"can't write store {url}: {_reason(error)}") from None


def _reason(error: BaseException) -> str:
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text[:160]}" if text else type(error).__name__


def _drop_partial_files(url: str) -> None:
    """Remove what a killed writer left of files that it had not yet renamed."""
    if _is_local(url):
        for folder in ("state", "action", "episode", "."):
            walk = Path(url, folder).glob("*" if folder == "." else "**/*")
            for file in walk:
                if _PARTIAL.search(file.name):
                    file.unlink(missing_ok=True)
