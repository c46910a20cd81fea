"""Where the windows of a split lie in a store's rows."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from torch import Tensor

from ebmtraj.datasets.blocks import Indices, piece_offsets
from ebmtraj.datasets.store import Store
from ebmtraj.errors import EbmtrajError


@dataclass(frozen=True)
class Windows:
    """Consecutive steps: states `(B, length + 1, S)` and the actions between them `(B, length, A)` or None."""

    states: Tensor
    actions: Tensor | None


class WindowIndex:
    """Numbers all windows of `length` steps in one split, in the store's order; knows lengths only, no data."""

    def __init__(self, store: Store, split: str, length: int, limit: int | None = None) -> None:
        """Of the split's first `limit` episodes alone; raises `EbmtrajError` where they hold no such window."""
        if length < 1:
            raise EbmtrajError(f"windows of {length} steps: they need at least one")
        episodes = store.split(split)[:limit]
        if len(episodes) == 0:
            raise EbmtrajError(
                f"store {store.path}: no episode falls into the {split} split of its {store.episodes}; "
                "collect at least 10 episodes"
            )
        lengths = store.lengths[episodes]
        longest = int(lengths.max())
        if longest < length:
            raise EbmtrajError(
                f"store {store.path}: no {split} episode has {length} steps (the longest has {longest}); "
                "ask for shorter windows"
            )
        kept = lengths >= length
        self.length = length
        self._episodes = episodes[kept]
        self._rows = store.state_offsets[self._episodes]  # first state row of each episode
        self._counts = lengths[kept] - length + 1
        self._offsets = piece_offsets(self._counts)

    def __len__(self) -> int:
        return int(self._offsets[-1])

    def row(self, number: int) -> int:
        """The state row in which this window starts."""
        return int(self.single(np.array([number])).state[0])

    def before(self, row: int) -> int:
        """How many windows start in state rows before this one."""
        place = int(np.searchsorted(self._rows, row, side="right")) - 1
        return 0 if place < 0 else int(self._offsets[place] + min(row - self._rows[place], self._counts[place]))

    def runs(self, first: int, last: int, history: int = 0) -> Runs:
        """Windows `first` to `last` - 1 as one run an episode, with the `history` rows before each as far as there are."""
        low = int(np.searchsorted(self._offsets, first, side="right")) - 1
        high = int(np.searchsorted(self._offsets, last, side="left"))
        begin = np.maximum(self._offsets[low:high], first)
        count = np.minimum(self._offsets[low + 1 : high + 1], last) - begin
        ahead = begin - self._offsets[low:high]  # of the episode's first row
        rows = self._rows[low:high] + ahead
        return Runs(rows, rows - self._episodes[low:high], count, np.minimum(ahead, history), self.length)

    def single(self, numbers: Indices, history: int = 0) -> Runs:
        """The windows with these numbers `(n,)`, ascending, each a run of its own, with the `history` rows before it."""
        place = np.searchsorted(self._offsets, numbers, side="right") - 1
        ahead = numbers - self._offsets[place]
        rows = self._rows[place] + ahead
        return Runs(rows, rows - self._episodes[place], np.ones_like(rows), np.minimum(ahead, history), self.length)


@dataclass(frozen=True)
class Runs:
    """Windows whose starts follow one another: the first start in `state` and in `action`, and how many start there."""

    state: Indices  # (N,) ascending
    action: Indices  # (N,) an episode has one action row less, so its actions lie as many rows ahead as its number
    count: Indices  # (N,)
    lead: Indices  # (N,) rows before the first start that are also seen: fewer than asked for only at an episode's start
    length: int

    def rows(self, name: str) -> Indices:
        """All rows of "state" or "action" that these windows see, ascending, each once, `(n,)`."""
        begin, end = self._ends(name)
        rows = _ranges(begin, end - begin)
        return rows if (end[:-1] <= begin[1:]).all() else np.unique(rows)

    def starts(self, name: str) -> Indices:
        """Where among `rows` each window starts, `(sum(count),)`."""
        first = self.state if name == "state" else self.action
        return _ranges(self._place(name, first), self.count)

    def firsts(self) -> Indices:
        """Where among the rows of "state" the past of each window begins, `(sum(count),)`."""
        return np.repeat(self._place("state", self.state - self.lead), self.count)

    def _place(self, name: str, rows: Indices) -> Indices:
        """Where among `rows` these stand, one of each run."""
        begin, end = self._ends(name)
        if (end[:-1] <= begin[1:]).all():
            return piece_offsets(end - begin)[:-1] + rows - begin
        return np.searchsorted(self.rows(name), rows)

    def _ends(self, name: str) -> tuple[Indices, Indices]:
        """The first row that each run sees, and the one after its last."""
        if name == "state":
            return self.state - self.lead, self.state + self.count + self.length
        return self.action - self.lead, self.action + self.count + self.length - 1

    @staticmethod
    def joined(parts: list[Runs]) -> Runs:
        """These runs, one after another."""
        columns = [np.concatenate([getattr(part, name) for part in parts]) for name in ("state", "action", "count", "lead")]
        return Runs(columns[0], columns[1], columns[2], columns[3], parts[0].length)


def _ranges(starts: Indices, counts: Indices) -> Indices:
    """start, start + 1, ... `count` times, one range after another."""
    ends = piece_offsets(counts)
    return np.repeat(starts - ends[:-1], counts) + np.arange(ends[-1])
