"""What two walks over a store find, and one episode of it as numbers."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ebmtraj.datasets.blocks import SPLITS, EpisodeBlock
from ebmtraj.datasets.store import Store
from ebmtraj.errors import EbmtrajError
from ebmtraj.evaluation.arrays import quaternion_slices, rotation_between, unit_quaternions
from ebmtraj.fields import Field, slices, total_size

BINS = 40  # of a histogram
SURVEY_ROWS = 32_768  # state rows held at a time
Progress = Callable[[str, int, int], None]  # what is being done, episodes done, episodes in all


def episode_facts(store: Store, index: int) -> dict[str, Any]:
    """One episode in plain JSON values: its length, end and split, ranges of each field, and how far its object turned.

    Turning, rad, is the sum of per-step rotation vectors in the world frame, which doesn't wrap; `path` sums their norms.
    Raises `EbmtrajError` where there is no such episode, or its data is damaged.
    """
    if not 0 <= index < store.episodes:
        held = f"0 to {store.episodes - 1}" if store.episodes else "none yet"
        raise EbmtrajError(f"store {store.path} has no episode {index}; it holds {held}")
    episode = store.episode(index)
    length = len(episode.action)
    fields = []
    for label, values, described in (
        ("state", episode.state, store.state_fields),
        ("action", episode.action, store.action_fields),
    ):
        for field, place in zip(described, slices(described).values(), strict=True):
            part = values[:, place]
            fields.append(
                {
                    "of": label,
                    "field": field.name,
                    "size": field.size,
                    "unit": field.unit,
                    "low": float(part.min()),
                    "high": float(part.max()),
                    "start": [float(x) for x in part[0]],
                    "end": [float(x) for x in part[-1]],
                }
            )
    turning = {}
    for field, place in zip(_quaternions(store), quaternion_slices(store.state_fields), strict=True):
        steps = _rotations(episode.state, place)
        net = steps.sum(axis=0)
        turning[field.name] = {
            "net": [float(x) for x in net],
            "net_angle": float(np.linalg.norm(net)),
            "path": float(np.linalg.norm(steps, axis=-1).sum()),
        }
    return {
        "episode": index,
        "split": SPLITS[int(store.splits[index])],
        "steps": length,
        "seconds": length * store.control_timestep,
        "seed": episode.seed,
        "terminated": episode.terminated,
        "fields": fields,
        "turning": turning,
    }


def _quaternions(store: Store) -> list[Field]:
    return [field for field in store.state_fields if field.kind == "quaternion"]


def _rotations(state: NDArray[np.float32], place: slice) -> NDArray[np.float64]:
    """World-frame rotation vector of each step (T, 3), rad, of states (T+1, S)."""
    q = unit_quaternions(state, place)
    return rotation_between(q[:-1], q[1:])


# the whole store


@dataclass
class Columns:
    """Running count, mean, spread, range of each number of a vector, and then their histograms."""

    fields: tuple[Field, ...]

    def __post_init__(self) -> None:
        size = total_size(self.fields)
        self.count = 0
        self.mean, self.square = np.zeros(size), np.zeros(size)
        self.low, self.high = np.full(size, np.inf), np.full(size, -np.inf)
        self.bins = np.zeros((size, BINS), np.int64)

    def add(self, rows: NDArray[np.float32]) -> None:
        """Take in rows (N, size); merged as Chan et al. 1979."""
        values = rows.astype(np.float64)
        mean, total = values.mean(axis=0), self.count + len(values)
        shift = mean - self.mean
        self.square += ((values - mean) ** 2).sum(axis=0) + shift**2 * (self.count * len(values) / total)
        self.mean += shift * (len(values) / total)
        self.count = total
        self.low, self.high = np.minimum(self.low, values.min(axis=0)), np.maximum(self.high, values.max(axis=0))

    def add_to_bins(self, rows: NDArray[np.float32]) -> None:
        """Count rows (N, size) in `BINS` bins between the lowest and the highest value of each number."""
        width = np.where(self.high > self.low, self.high - self.low, 1.0)
        places = np.clip(((rows - self.low) / width * BINS).astype(np.int64), 0, BINS - 1)
        for i in range(places.shape[1]):
            self.bins[i] += np.bincount(places[:, i], minlength=BINS)

    @property
    def std(self) -> NDArray[np.float64]:
        """Standard deviation of each number."""
        return np.sqrt(self.square / max(self.count, 1))


@dataclass
class Survey:
    """What two walks over a store found; both read every row, a bounded number at a time."""

    state: Columns
    action: Columns
    net: dict[str, NDArray[np.float64]]  # quaternion field: (E, 3) sum of rotation vectors of each episode, rad
    path: dict[str, NDArray[np.float64]]  # quaternion field: (E,) sum of their norms, rad


def survey(store: Store, on_progress: Progress = lambda stage, done, total: None) -> Survey:
    """Walk over a store; raises `EbmtrajError` where it is damaged."""
    places = dict(zip([f.name for f in _quaternions(store)], quaternion_slices(store.state_fields), strict=True))
    found = Survey(
        Columns(store.state_fields),
        Columns(store.action_fields),
        {name: np.empty((store.episodes, 3)) for name in places},
        {name: np.empty(store.episodes) for name in places},
    )
    for first, last in store.spans(SURVEY_ROWS):
        block = store.read_block(first, last)
        found.state.add(block.state)
        found.action.add(block.action)
        for name, place in places.items():
            net, path = _turning(block, place)
            found.net[name][first:last], found.path[name][first:last] = net, path
        on_progress("measuring", last, store.episodes)
    for first, last in store.spans(SURVEY_ROWS):
        block = store.read_block(first, last)
        found.state.add_to_bins(block.state)
        found.action.add_to_bins(block.action)
        on_progress("counting", last, store.episodes)
    return found


def _turning(block: EpisodeBlock, place: slice) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Net rotation vector (E, 3) and path (E,) of the episodes of a block, rad."""
    steps = _rotations(block.state, place)
    ends = np.cumsum(block.length + 1)
    inner = np.ones(len(steps), np.bool_)
    inner[ends[:-1] - 1] = False  # from the end of one episode to the start of the next
    steps = steps[inner]
    starts = np.cumsum(block.length) - block.length
    return np.add.reduceat(steps, starts), np.add.reduceat(np.linalg.norm(steps, axis=-1), starts)
