"""Mean, std, min and max of what a trajectory store's train split holds."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from ebmtraj.datasets.blocks import SPLITS, piece_offsets
from ebmtraj.datasets.store import Store
from ebmtraj.fields import slices


def train_statistics(store: Store) -> dict[str, Any] | None:
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
        inner[piece_offsets(block.length + 1)[1:] - 1] = False  # an episode's last state has no successor
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
