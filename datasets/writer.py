"""Writing a trajectory store, crash-safe.

Rows go beyond the committed end (a shard is replaced whole, by a rename), then one atomic write of the group's
attributes commits them.
"""

from __future__ import annotations

import contextlib
import importlib.metadata
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import zarr
from numpy.typing import NDArray
from zarr.codecs import BloscCodec, Crc32cCodec

from ebmtraj import __version__
from ebmtraj.datasets.blocks import (
    DIGEST_RULE,
    SPLITS,
    EpisodeBlock,
    Floats,
    Indices,
    StoreRecipe,
    column_name,
    content_hasher,
    piece_offsets,
)
from ebmtraj.datasets.moments import train_statistics
from ebmtraj.datasets.shards import chunk_sums
from ebmtraj.datasets.store import Store
from ebmtraj.datasets.zarr_files import (
    CHUNK_EPISODES,
    CHUNK_ROWS,
    EPISODE_ARRAYS,
    FORMAT,
    SHARD_EPISODES,
    SHARD_ROWS,
    as_url,
    drop_partial_files,
    format_of,
    member_array,
    occupied,
    open_group,
    with_seal,
    writing,
)
from ebmtraj.errors import EbmtrajError
from ebmtraj.fields import Field, fields_from_json, total_size
from ebmtraj.seal import of_arrays

LAYOUT = (
    "state has length+1 rows an episode and action has length rows, episode after episode: row t of an episode's "
    "action is applied in row t of its state and leads to row t+1; only the committed counts are valid"
)


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
        url = as_url(path)
        group = refuse_taken(path, overwrite=overwrite)
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
        with writing(url):
            # The attributes go first: killed anywhere below, this is an empty store of ours, which resume completes.
            if group is None:
                group = zarr.create_group(url, zarr_format=3, attributes=with_seal(attributes))
            else:  # whose arrays are another store's until they are made anew
                group.attrs.put(with_seal({**attributes, "replacing": True}))
        writer = cls(url, group, attributes)
        writer._make_arrays()
        with writing(url):
            writer._commit({})
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
        difference = first_difference(found, expected)
        if difference:
            key, old, new = difference
            raise EbmtrajError(
                f"store {store.path} was made with {key} = {old}, not {new}; use the same recipe or another path"
            )
        group = open_group(store.path, "r+")
        if group is None:
            raise EbmtrajError(f"store {store.path} does not exist any more")
        drop_partial_files(store.path)
        writer = cls(store.path, group, store.attributes)
        if store.episodes == 0:
            writer._make_arrays()
            writer._attributes.pop("replacing", None)
        else:
            last = store.episode_array("block")
            first = int(np.searchsorted(last, last[-1]))
            block = store.read_block(first, store.episodes)
            if (block.digests() != store.episode_array("digest")[first:]).any():
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
        with writing(self.path):
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
        """Trim the arrays, add statistics, split counts and content hash, and mark the store as complete.

        Raises `EbmtrajError` for a store without episodes, and where it can't be written.
        """
        if self.episodes == 0:
            raise EbmtrajError(f"store {self.path} holds no episodes; append some before finishing it")
        drop_partial_files(self.path)
        store = Store.open(self.path)
        sizes = {"state": self._state_rows, "action": self._action_rows}
        digest = content_hasher(store.attributes)
        digest.update(store.episode_array("digest").tobytes())
        counts = {name: int((store.splits == i).sum()) for i, name in enumerate(SPLITS)}
        with writing(self.path):
            self._commit(
                {
                    "statistics": train_statistics(store),
                    "split": {**self._attributes["split"], "counts": counts},
                    "content_hash": digest.hexdigest(),
                    "complete": True,
                },
                episode={name: of_arrays([(name, store.episode_array(name))]) for name in EPISODE_ARRAYS},
                chunks={name: chunk_sums(self._member(name), rows) for name, rows in sizes.items()},
            )
            # Trimmed last, so that an array of this length can't go with attributes of an earlier moment.
            for name in ("state", "action", *(f"episode/{name}" for name in EPISODE_ARRAYS)):
                array = self._member(name)
                array.resize((sizes.get(name, self.episodes), *array.shape[1:]))
        return Store.open(self.path)

    def _check(self, name: str, values: Floats, fields: Sequence[Field], length: Indices) -> None:
        size = total_size(fields)
        if values.shape[1] != size:
            raise EbmtrajError(f"block: {name} has {values.shape[1]} columns, the fields of store {self.path} have {size}")
        if not np.isfinite(values).all():
            row, column = np.argwhere(~np.isfinite(values))[0]
            ends = piece_offsets(length + 1 if name == "state" else length)
            episode = int(np.searchsorted(ends, row, side="right")) - 1
            raise EbmtrajError(
                f"{name} field {column_name(fields, int(column))} of episode {self.episodes + episode} is "
                f"{values[row, column]} at step {row - ends[episode]}; nothing of this block was stored: "
                "the simulation or the source is unstable there"
            )

    def _make_arrays(self) -> None:
        with writing(self.path):
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
            for name, (kind, size, missing) in EPISODE_ARRAYS.items():
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
            self._arrays[name] = member_array(self._group, self.path, name)
        return self._arrays[name]

    def _write(self, name: str, start: int, values: NDArray[Any]) -> None:
        array = self._member(name)
        stop = start + len(values)
        if array.shape[0] < stop:  # by whole shards: a resize rewrites the array's metadata
            rows = (array.shards or array.chunks)[0]
            array.resize((-(-stop // rows) * rows, *array.shape[1:]))
        array[start:stop] = values

    def _commit(self, changes: Mapping[str, Any], **seals: Any) -> None:
        attributes = with_seal({**self._attributes, **changes}, **seals)
        self._group.attrs.put(attributes)
        self._attributes = attributes


def refuse_taken(path: str | Path, *, overwrite: bool = False) -> zarr.Group | None:
    """Raise `EbmtrajError` where something is at `path`: with `overwrite`, where it is no store of ours.

    Returns the group of the store that is to be replaced; None where there is none.
    """
    url = as_url(path)
    group = open_group(url, "r+")
    if group is not None:
        if format_of(url, group) != FORMAT:
            raise EbmtrajError(f"{url} holds a zarr group that is not a trajectory store; choose another path")
        if not overwrite:
            raise EbmtrajError(f"store {url} exists; use --resume to go on with it or --overwrite to replace it")
    elif occupied(url):
        raise EbmtrajError(f"{url} holds something that is not a trajectory store; choose another path")
    return group


def _compressors(itemsize: int) -> list[BloscCodec | Crc32cCodec]:
    # The checksum lets any zarr reader see a flipped byte.
    return [BloscCodec(cname="zstd", clevel=5, shuffle="bitshuffle", typesize=itemsize), Crc32cCodec()]


def first_difference(found: Any, expected: Any, key: str = "") -> tuple[str, str, str] | None:
    """First place where two JSON values differ, with both values there; fields of the same names, key by key."""
    if key in ("state_fields", "action_fields"):
        named = [{row["name"]: row for row in rows} for rows in (found, expected)]
        if list(named[0]) == list(named[1]):
            found, expected = named
    if isinstance(found, dict) and isinstance(expected, dict):
        if key == "split":
            found = {name: found.get(name) for name in expected}  # the counts are added at the end
        for name in sorted({*found, *expected}):
            inner = first_difference(found.get(name), expected.get(name), f"{key}.{name}" if key else name)
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
