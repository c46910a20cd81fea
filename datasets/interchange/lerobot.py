"""LeRobot's data set format v3.0: parquet files of frames, parquet files of episodes, and JSON; written with pyarrow alone.

A frame is a state and the action taken there, so an episode of T actions has T frames. Its last state has no frame; it
stands in the column `ebmtraj/final_state` of `meta/episodes`, beside the episode's seed, end and split, and
`meta/ebmtraj.json` carries fields, units and origin: nothing of the store is lost, and no frame is made up.

Layout after huggingface/lerobot 0.4 (`CODEBASE_VERSION = "v3.0"`): data/chunk-000/file-000.parquet with one row group an
episode, meta/episodes/chunk-000/file-000.parquet, meta/tasks.parquet, meta/info.json, meta/stats.json.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ebmtraj.datasets.blocks import SPLITS, EpisodeBlock
from ebmtraj.datasets.interchange.described import carried
from ebmtraj.datasets.interchange.source import Progress, entry_name, finished, require
from ebmtraj.datasets.interchange.target import Exported, refuse, replacing
from ebmtraj.datasets.store import Store
from ebmtraj.errors import EbmtrajError
from ebmtraj.fields import total_size

CODEBASE_VERSION = "v3.0"
CHUNK_FILES = 1000  # files a folder
FILE_MB = 100  # a file at most
FILE_PATTERN = "chunk-{chunk_index:03d}/file-{file_index:03d}.parquet"
STATE, ACTION, DONE, TRUNCATED = "observation.state", "action", "next.done", "next.truncated"
_COUNTED = {"frame_index": "int64", "episode_index": "int64", "index": "int64", "task_index": "int64"}


def export_lerobot(
    path: str, out: Path, *, overwrite: bool = False, on_progress: Progress = lambda stage, done, total: None
) -> Exported:
    """Write a store as a LeRobot v3.0 data set in the folder `out`; memory is bounded.

    Raises `EbmtrajError` where `pyarrow` is missing, the store is not finished or damaged, or the target exists or can't
    be written.
    """
    arrow, parquet = require("pyarrow", "lerobot"), require("pyarrow.parquet", "lerobot")
    store = finished(path)
    refuse(out, overwrite=overwrite, ours=_ours, kind="LeRobot")
    try:
        with replacing(out, overwrite=overwrite, ours=_ours, kind="LeRobot") as partial:
            _write(store, partial, arrow, parquet, on_progress)
    except arrow.ArrowException as error:
        raise EbmtrajError(f"can't write {out}: {' '.join(str(error).split())[:160]}") from None
    return Exported(str(out), store.episodes, store.transitions)


def _write(store: Store, root: Path, arrow: Any, parquet: Any, on_progress: Progress) -> None:
    (root / "meta").mkdir(parents=True)
    features = _features(store)
    task = str(store.attributes["env"])
    data = _Files(root / "data", parquet, dictionary=["episode_index", "task_index", DONE, TRUNCATED])
    episodes = _Files(root / "meta" / "episodes", parquet, dictionary=["tasks"])
    total: dict[str, dict[str, NDArray[Any]]] = {}
    frame = 0
    for first, last in store.spans(65_536):
        block = store.read_block(first, last)
        columns = _columns(store, block, first, frame)
        table = _table(columns, features, arrow)
        ends = np.cumsum(block.length)
        starts = ends - block.length
        place = data.place(table.nbytes)
        for start, length in zip(starts, block.length, strict=True):
            data.write(table.slice(int(start), int(length)))
        statistics = {name: _statistics(values, starts, block.length) for name, values in columns.items()}
        total = _merged(total, statistics)
        rows = _episode_rows(store, block, first, frame, task, place, statistics, arrow)
        where = episodes.place(rows.nbytes)
        for name, value in (("chunk_index", where[0]), ("file_index", where[1])):
            rows = rows.append_column(f"meta/episodes/{name}", arrow.array(np.full(last - first, value)))
        episodes.write(rows)
        frame += len(block.action)
        on_progress("writing", last, store.episodes)
    data.close()
    episodes.close()
    parquet.write_table(_tasks(task, arrow), root / "meta" / "tasks.parquet")
    _json(root / "meta" / "info.json", _info(store, features))
    stats = {name: {key: np.ravel(value).tolist() for key, value in one.items()} for name, one in total.items()}
    _json(root / "meta" / "stats.json", stats)
    note = "the last state of each episode stands in column ebmtraj/final_state of meta/episodes: it has no frame"
    _json(root / "meta" / "ebmtraj.json", {**carried(store), "final_state": note})


def _features(store: Store) -> dict[str, dict[str, Any]]:
    """The columns of a frame, as `meta/info.json` names them."""
    features: dict[str, dict[str, Any]] = {}
    for name, fields in ((STATE, store.state_fields), (ACTION, store.action_fields)):
        size = total_size(fields)
        features[name] = {"dtype": "float32", "shape": [size], "names": [entry_name(fields, i) for i in range(size)]}
    for name in (DONE, TRUNCATED):
        features[name] = {"dtype": "bool", "shape": [1], "names": None}
    features["timestamp"] = {"dtype": "float32", "shape": [1], "names": None}
    for name, kind in _COUNTED.items():
        features[name] = {"dtype": kind, "shape": [1], "names": None}
    return features


def _columns(store: Store, block: EpisodeBlock, first: int, frame: int) -> dict[str, NDArray[Any]]:
    """Frames of a block of episodes, the first of which is `first`: a column (rows, ...) a feature."""
    count = len(block.action)
    ends = np.cumsum(block.length)
    number = np.arange(count) - np.repeat(ends - block.length, block.length)
    with_frame = np.ones(len(block.state), np.bool_)
    with_frame[np.cumsum(block.length + 1) - 1] = False  # an episode's last state has no action
    done, truncated = np.zeros(count, np.bool_), np.zeros(count, np.bool_)
    done[ends - 1], truncated[ends - 1] = block.terminated, ~block.terminated
    return {
        STATE: block.state[with_frame],
        ACTION: block.action,
        DONE: done,
        TRUNCATED: truncated,
        "timestamp": (number * store.control_timestep).astype(np.float32),
        "frame_index": number,
        "episode_index": first + np.repeat(np.arange(len(block.length)), block.length),
        "index": frame + np.arange(count),
        "task_index": np.zeros(count, np.int64),
    }


def _table(columns: Mapping[str, NDArray[Any]], features: Mapping[str, Any], arrow: Any) -> Any:
    arrays, kinds = [], []
    for name, feature in features.items():
        (size,) = feature["shape"]
        kind = arrow.bool_() if feature["dtype"] == "bool" else getattr(arrow, feature["dtype"])()
        values = arrow.array(np.ravel(columns[name]), kind)
        if size > 1:  # LeRobot keeps a vector of one number as a number
            kind = arrow.list_(kind, size)
            values = arrow.FixedSizeListArray.from_arrays(values, type=kind)
        arrays.append(values)
        kinds.append((name, kind))
    return arrow.Table.from_arrays(arrays, schema=arrow.schema(kinds))


def _statistics(values: NDArray[Any], starts: NDArray[Any], lengths: NDArray[Any]) -> dict[str, NDArray[Any]]:
    """Minimum, maximum, mean, standard deviation and count of each episode, (E, size) each."""
    wide = values.reshape(len(values), -1).astype(np.float64)
    count = lengths[:, None]
    mean = np.add.reduceat(wide, starts) / count
    square = np.add.reduceat((wide - np.repeat(mean, lengths, axis=0)) ** 2, starts) / count
    return {
        "min": np.minimum.reduceat(wide, starts),
        "max": np.maximum.reduceat(wide, starts),
        "mean": mean,
        "std": np.sqrt(square),
        "count": count,
    }


def _merged(
    total: Mapping[str, Mapping[str, NDArray[Any]]], more: Mapping[str, Mapping[str, NDArray[Any]]]
) -> dict[str, dict[str, NDArray[Any]]]:
    """Statistics of everything so far, (1, size) each, as LeRobot aggregates them (Chan et al. 1979)."""
    out = {}
    for name, new in more.items():
        parts = [new] if name not in total else [total[name], new]
        joined = {key: np.concatenate([part[key] for part in parts]) for key in new}
        count = joined["count"].sum(axis=0, keepdims=True)
        mean = (joined["mean"] * joined["count"]).sum(axis=0, keepdims=True) / count
        square = ((joined["std"] ** 2 + (joined["mean"] - mean) ** 2) * joined["count"]).sum(axis=0, keepdims=True) / count
        out[name] = {
            "min": joined["min"].min(axis=0, keepdims=True),
            "max": joined["max"].max(axis=0, keepdims=True),
            "mean": mean,
            "std": np.sqrt(square),
            "count": count,
        }
    return out


def _episode_rows(
    store: Store,
    block: EpisodeBlock,
    first: int,
    frame: int,
    task: str,
    place: tuple[int, int],
    statistics: Mapping[str, Mapping[str, NDArray[Any]]],
    arrow: Any,
) -> Any:
    count = len(block.length)
    ends = frame + np.cumsum(block.length)
    final = block.state[np.cumsum(block.length + 1) - 1]
    columns: dict[str, Any] = {
        "episode_index": arrow.array(np.arange(first, first + count)),
        "tasks": arrow.array([[task]] * count, arrow.list_(arrow.string())),
        "length": arrow.array(block.length),
        "data/chunk_index": arrow.array(np.full(count, place[0])),
        "data/file_index": arrow.array(np.full(count, place[1])),
        "dataset_from_index": arrow.array(ends - block.length),
        "dataset_to_index": arrow.array(ends),
        "ebmtraj/final_state": _lists(final, arrow),
        "ebmtraj/seed": arrow.array(block.seed),
        "ebmtraj/terminated": arrow.array(block.terminated),
        "ebmtraj/split": arrow.array([SPLITS[i] for i in store.splits[first : first + count]]),
    }
    for name, values in statistics.items():
        for key, rows in values.items():
            columns[f"stats/{name}/{key}"] = _lists(rows, arrow)
    return arrow.table(columns)


def _lists(rows: NDArray[Any], arrow: Any) -> Any:
    offsets = np.arange(0, rows.size + 1, rows.shape[1], dtype=np.int32)
    return arrow.ListArray.from_arrays(arrow.array(offsets), arrow.array(np.ravel(rows)))


def _tasks(task: str, arrow: Any) -> Any:
    """The one task; LeRobot reads it with pandas, whose notes in the schema make `task` the index."""
    table = arrow.table({"task_index": arrow.array([0], arrow.int64()), "task": arrow.array([task])})
    columns = [
        {"name": "task_index", "field_name": "task_index", "pandas_type": "int64", "numpy_type": "int64", "metadata": None},
        {"name": "task", "field_name": "task", "pandas_type": "unicode", "numpy_type": "object", "metadata": None},
    ]
    notes = {"index_columns": ["task"], "column_indexes": [], "columns": columns, "pandas_version": "2.2.3"}
    return table.replace_schema_metadata({"pandas": json.dumps(notes)})


def _info(store: Store, features: Mapping[str, Any]) -> dict[str, Any]:
    rate = 1 / store.control_timestep
    return {
        "codebase_version": CODEBASE_VERSION,
        "robot_type": str(store.attributes["env"]),
        "total_episodes": store.episodes,
        "total_frames": store.transitions,
        "total_tasks": 1,
        "chunks_size": CHUNK_FILES,
        "data_files_size_in_mb": FILE_MB,
        "video_files_size_in_mb": 200,
        "fps": round(rate) if abs(rate - round(rate)) < 1e-6 * rate else rate,
        "splits": {"train": f"0:{store.episodes}"},  # it knows ranges only: ours stand in meta/episodes
        "data_path": f"data/{FILE_PATTERN}",
        "video_path": None,
        "features": dict(features),
    }


class _Files:
    """Parquet files of one schema, a new one where the next rows would make a file too large."""

    def __init__(self, folder: Path, parquet: Any, dictionary: list[str]) -> None:
        self._folder, self._parquet, self._dictionary = folder, parquet, dictionary
        self._number, self._bytes = -1, 0
        self._writer: Any = None

    def place(self, size: int) -> tuple[int, int]:
        """Chunk and file where the next rows, of so many bytes, go."""
        if self._number < 0 or self._bytes + size > FILE_MB * 2**20:
            self.close()
            self._number, self._bytes = self._number + 1, 0
        self._bytes += size
        return divmod(self._number, CHUNK_FILES)

    def write(self, table: Any) -> None:
        """Write rows as one row group."""
        if self._writer is None:
            chunk, file = divmod(self._number, CHUNK_FILES)
            path = self._folder / FILE_PATTERN.format(chunk_index=chunk, file_index=file)
            path.parent.mkdir(parents=True, exist_ok=True)
            self._writer = self._parquet.ParquetWriter(
                path, table.schema, compression="snappy", use_dictionary=self._dictionary
            )
        self._writer.write_table(table)

    def close(self) -> None:
        """Finish the file that is open."""
        if self._writer is not None:
            self._writer.close()
            self._writer = None


def _json(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value, indent=2, allow_nan=False) + "\n", encoding="utf-8")


def _ours(path: Path) -> bool:
    return (path / "meta" / "info.json").is_file()
