"""Minari, Farama's format of offline data sets: HDF5, an episode a group, read and written by the `minari` library.

Its rule is the store's: an episode has one observation more than actions. What Minari has no place for (fields, units,
origin) travels in its metadata under the key `ebmtraj`. A store has no rewards; they are written as zeros.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from gymnasium import spaces

from ebmtraj.datasets.bounds import refuse_bomb
from ebmtraj.datasets.interchange.described import Given, carried, carried_values, described
from ebmtraj.datasets.interchange.source import (
    CARRIED,
    Progress,
    RawEpisode,
    Source,
    entry_name,
    finished,
    local_source,
    require,
)
from ebmtraj.datasets.interchange.target import Exported, refuse, replacing
from ebmtraj.datasets.store import Store
from ebmtraj.errors import EbmtrajError
from ebmtraj.fields import Field, total_size
from ebmtraj.runs import refuse_links

_AT_ONCE = 64  # episodes asked of the library at a time


def export_minari(
    path: str, out: Path, *, overwrite: bool = False, on_progress: Progress = lambda stage, done, total: None
) -> Exported:
    """Write a store as a Minari data set, lossless; `out` is its folder, whose name is its id (`hand-v0`).

    Load it with `minari.load_dataset(out.name)` where MINARI_DATASETS_PATH is the folder around it. Raises `EbmtrajError`
    where `minari` is missing, the store is not finished or damaged, or the target exists or can't be written.
    """
    library = _library()
    store = finished(path)
    refuse(out, overwrite=overwrite, ours=_ours, kind="Minari")
    _refuse_full_disk(out, store)
    identity, notes = _dataset_id(out.name)
    from minari.data_collector.episode_buffer import EpisodeBuffer
    from minari.dataset.minari_storage import MinariStorage

    def buffers() -> Iterator[Any]:
        for first, last in store.spans():
            block = store.read_block(first, last)
            ends, action_ends = np.cumsum(block.length + 1), np.cumsum(block.length)
            for i, length in enumerate(block.length):
                terminations, truncations = np.zeros(length, np.bool_), np.zeros(length, np.bool_)
                (terminations if block.terminated[i] else truncations)[-1] = True
                yield EpisodeBuffer(
                    seed=block.seed[i],
                    observations=block.state[ends[i] - length - 1 : ends[i]],
                    actions=block.action[action_ends[i] - length : action_ends[i]],
                    rewards=np.zeros(length, np.float32),
                    terminations=terminations,
                    truncations=truncations,
                )
            on_progress("writing", last, store.episodes)

    with replacing(out, overwrite=overwrite, ours=_ours, kind="Minari") as partial:
        (partial / "data").mkdir(parents=True)
        storage = MinariStorage.new(
            (partial / "data").absolute(),  # the library joins a relative path to itself
            observation_space=_space(store.state_fields),
            action_space=_space(store.action_fields),
            data_format="hdf5",
        )
        storage.update_metadata(
            {
                "dataset_id": identity,
                "minari_version": library.__version__,
                "algorithm_name": str(store.attributes["policy"].get("name", "")),
                "description": _description(store),
                CARRIED: json.dumps(carried(store), sort_keys=True),
            }
        )
        storage.update_episodes(buffers())
    return Exported(str(out), store.episodes, store.transitions, tuple(notes))


class MinariSource(Source):
    """Episodes of a Minari data set: its folder, or the id of one in the local Minari folder; nothing is downloaded."""

    def __init__(self, path: str, given: Given) -> None:
        _library()
        from minari.dataset.minari_storage import MinariStorage

        self.name = path
        folder = _folder(path)
        refuse_links(folder, path)
        metadata = _metadata(folder, path)
        self._file = folder / "main_data.hdf5"
        try:
            self._storage = MinariStorage.read(folder)
        except EbmtrajError:
            raise
        except Exception as error:  # the library asserts, and its formats raise many kinds
            raise EbmtrajError(f"{path} can't be read as a Minari data set: {' '.join(str(error).split())[:160]}") from None
        fields: dict[str, tuple[Field, ...]] = {}
        for label, space in (
            ("observation", self._storage.observation_space),
            ("action", self._storage.action_space),
        ):
            if not isinstance(space, spaces.Box):
                raise EbmtrajError(
                    f"{path}: {label}s are of space {type(space).__name__}; only Box, vectors of numbers, can be imported"
                )
            if len(space.shape) != 1 or space.shape[0] < 1:
                raise EbmtrajError(f"{path}: {label}s have shape {space.shape}; only vectors can be imported")
            name = "state" if label == "observation" else "action"
            fields[name] = (_field(name, space),)
        try:
            self.total = int(self._storage.total_episodes)
        except (KeyError, TypeError, ValueError):
            raise EbmtrajError(
                f"{path}: metadata.json does not say total_episodes, a whole number; copy or make the data set again"
            ) from None
        known = carried_values(metadata.get(CARRIED), path)
        self.recipe, self.notes = described(
            given,
            known,
            path,
            "minari",
            total_size(fields["state"]),
            total_size(fields["action"]),
            env=_env_id(metadata),
            state_fields=fields["state"],
            action_fields=fields["action"],
        )
        if known is None:
            self.notes.append("rewards and infos are not kept: a store holds states and actions")

    def episodes(self) -> Iterator[RawEpisode]:
        """All episodes, a few at a time."""
        for first in range(0, self.total, _AT_ONCE):
            chosen = range(first, min(first + _AT_ONCE, self.total))
            if self._file.is_file():
                _refuse_outside(self._file, chosen, self.name)
            try:
                pairs = list(
                    zip(self._storage.get_episodes(chosen), self._storage.get_episode_metadata(chosen), strict=True)
                )
            except Exception as error:  # h5py, pyarrow and the library raise many kinds
                raise EbmtrajError(
                    f"{self.name}: episodes {chosen[0]} to {chosen[-1]} can't be read: "
                    f"{type(error).__name__}: {' '.join(str(error).split())[:160]}"
                ) from None
            for episode, metadata in pairs:
                seed = metadata.get("seed")
                seed = None if seed is None or int(seed) < 0 else int(seed)
                ended = np.asarray(episode["terminations"])
                if ended[:-1].any():
                    raise EbmtrajError(
                        f"{self.name}: episode {episode['id']} goes on after it terminated at step "
                        f"{int(np.flatnonzero(ended)[0])}; split it there"
                    )
                state, action = np.asarray(episode["observations"]), np.asarray(episode["actions"])
                yield RawEpisode(state, action, seed, bool(len(ended) and ended[-1]))


def _refuse_outside(path: Path, chosen: range, name: str) -> None:
    """Raise `EbmtrajError` where episodes of an HDF5 file lie in other files, or say that they are far larger than they are.

    HDF5 has links to other files, arrays stored in raw ones, and virtual arrays made of others'.
    """
    import h5py

    try:
        with h5py.File(path, "r") as file:
            links = [(file, f"episode_{number}") for number in chosen]
            while links:
                group, key = links.pop()
                link = group.get(key, getlink=True)
                if link is None:  # which the library tells of
                    continue
                if isinstance(link, h5py.ExternalLink):
                    raise EbmtrajError(f"{name}: {group.name}/{key} is a link to another file; it is refused")
                member = group[key]
                if isinstance(member, h5py.Group):
                    links += [(member, each) for each in member]
                    continue
                if member.external or member.is_virtual:
                    raise EbmtrajError(f"{name}: {member.name} lies in another file; it is refused")
                refuse_bomb(f"{name}: {member.name}", member.id.get_storage_size(), member.nbytes)
    except (OSError, RuntimeError, KeyError, ValueError, TypeError) as error:
        raise EbmtrajError(f"{name}: {path.name} can't be read: {' '.join(str(error).split())[:160]}") from None


def _refuse_full_disk(out: Path, store: Store) -> None:
    """Raise `EbmtrajError` where the export does not fit: HDF5 crashes the process where a disk fills up under it."""
    rows, floats = store.transitions, total_size(store.state_fields) + total_size(store.action_fields)
    # as measured: rewards and ends, and what HDF5 says of the groups and arrays of an episode
    need = 4 * floats * (rows + store.episodes) + 8 * rows + 20_000 * store.episodes + 100_000
    place = out.absolute()
    while not place.exists():
        place = place.parent
    try:
        free = shutil.disk_usage(place).free
    except OSError:  # what can't be asked is tried
        return
    if free < need:
        raise EbmtrajError(
            f"can't write {out}: it needs about {need / 1e6:,.1f} MB, and {free / 1e6:,.1f} MB are free there; "
            "free the disk or give another path"
        )


def _library() -> Any:
    require("h5py", "minari")
    return require("minari", "minari")


def _folder(path: str) -> Path:
    """The folder that holds `metadata.json`."""
    given = local_source(path, "a Minari folder or id")
    places = [given, given / "data"]
    if not given.is_absolute():
        from minari.storage.datasets_root_dir import get_dataset_path

        places.append(get_dataset_path(path) / "data")
    for place in places:
        if (place / "metadata.json").is_file():
            return place
    download = "" if given.is_absolute() or given.exists() else f", or run minari download {path} first"
    raise EbmtrajError(f"{path} is no Minari data set here (no data/metadata.json); give its folder{download}")


def _metadata(folder: Path, path: str) -> dict[str, Any]:
    try:
        metadata = json.loads((folder / "metadata.json").read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise EbmtrajError(f"{path}: metadata.json can't be read: {error}") from None
    if not isinstance(metadata, dict) or not {"observation_space", "action_space"} <= set(metadata):
        # The library would make the environment to find out, which runs whatever code its id names.
        raise EbmtrajError(f"{path}: metadata.json does not say observation_space and action_space; save it with Minari 0.5")
    return metadata


def _env_id(metadata: dict[str, Any]) -> str | None:
    try:
        return str(json.loads(metadata["env_spec"])["id"])
    except (KeyError, TypeError, ValueError, RecursionError):
        return None


def _dataset_id(name: str) -> tuple[str, list[str]]:
    """The id of a data set in a folder of this name; Minari wants letters, digits, - and _, and a version at the end."""
    from minari.dataset.minari_dataset import parse_dataset_id

    try:
        parse_dataset_id(name)
        return name, []
    except (ValueError, TypeError):  # the library fails on a name without a version
        plain = "".join(c if c.isascii() and (c.isalnum() or c in "-_") else "-" for c in name) or "data"
        identity = f"{plain}-v0"
        note = f"the data set's id is {identity}: rename the folder to it for minari list to show it"
        return identity, [note]


def _space(fields: tuple[Field, ...]) -> spaces.Box:
    low = np.concatenate([np.full(f.size, -np.inf) if f.low is None else np.array(f.low) for f in fields])
    high = np.concatenate([np.full(f.size, np.inf) if f.high is None else np.array(f.high) for f in fields])
    return spaces.Box(low.astype(np.float32), high.astype(np.float32), dtype=np.float32)


def _field(name: str, space: spaces.Box) -> Field:
    bounded = bool(np.isfinite(space.low).all() and np.isfinite(space.high).all())
    return Field(
        name,
        int(space.shape[0]),
        low=tuple(float(x) for x in space.low) if bounded else None,
        high=tuple(float(x) for x in space.high) if bounded else None,
    )


def _description(store: Store) -> str:
    """What the columns mean, for a reader without this package."""
    columns = []
    for label, fields in (("observation", store.state_fields), ("action", store.action_fields)):
        names = [entry_name(fields, i) for i in range(total_size(fields))]
        units = {f.name: f.unit for f in fields if f.unit}
        columns.append(f"{label} columns: {', '.join(names)} (units: {units or 'none'})")
    return (
        f"{store.attributes['env']}, {store.control_timestep:g} s a step; {'; '.join(columns)}; quaternions are w, x, y, z; "
        f"rewards are zeros, as the store holds none; content hash {store.content_hash}"
    )


def _ours(path: Path) -> bool:
    return (path / "data" / "metadata.json").is_file()
