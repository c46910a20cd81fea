"""Windows drawn at random from a store of any size, in bounded memory, while a background thread reads ahead.

A store's chunks are the smallest thing that can be read, so single windows can't be. What is drawn from is a *pool*: some
spans of consecutive chunks from all over the store, each decoded once. In each epoch a fresh permutation puts every span
into exactly one pool, and a pool serves as many draws as it holds windows (but for the rounding to whole batches): over a
run all windows are equally likely. Within a pool they are drawn with replacement. Two draws of one pool are more alike than
two of the whole split as far as neighbouring episodes are; an episode of `collect` does not depend on its neighbours.
"""

from __future__ import annotations

import itertools
import threading
import time
from collections.abc import Iterator
from concurrent.futures import CancelledError, Future, ThreadPoolExecutor
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from ebmtraj.datasets.blocks import Floats, Indices, piece_offsets
from ebmtraj.datasets.store import SPAN_ROWS, Store
from ebmtraj.datasets.window_index import Runs, WindowIndex, Windows
from ebmtraj.datasets.windows import Batch, gather_past
from ebmtraj.errors import EbmtrajError
from ebmtraj.fields import total_size

SPAN_CHUNKS = 8  # consecutive chunks a span: the chunk that its last windows reach into is decoded beside them
POOL_SPANS = 16  # spans a pool: as many places of the store meet in a batch


@dataclass(frozen=True)
class _Pool:
    """Windows in memory: they start at `state_starts` (W,) of `state` (R, S) and at `action_starts` of `action`.

    With `history`, what lies before each begins at `firsts` (W,) of `state`.
    """

    length: int
    state: Tensor
    action: Tensor | None
    state_starts: Tensor
    action_starts: Tensor
    firsts: Tensor | None
    history: int

    def __len__(self) -> int:
        return len(self.state_starts)

    def windows(self, index: Tensor) -> Windows:
        """The windows with these numbers in the pool, `(B,)`."""
        states = _gather(self.state, self.state_starts[index], self.length + 1)
        action = self.action
        return Windows(states, None if action is None else _gather(action, self.action_starts[index], self.length))

    def transitions(self, index: Tensor) -> Batch:
        """The first step of the windows with these numbers in the pool, `(B,)`."""
        row = self.state_starts[index]
        action = None if self.action is None else self.action.index_select(0, self.action_starts[index])
        past = None
        if self.firsts is not None:
            first, action_row = self.firsts[index], self.action_starts[index]
            past = gather_past(self.state, self.action, row, first, action_row, self.history)
        return Batch(self.state.index_select(0, row), action, self.state.index_select(0, row + 1), past)


@dataclass(frozen=True)
class _Turn:
    """A pool's place in the run: it serves draws `first` to `last` - 1 and holds the windows of these spans."""

    first: int
    last: int
    spans: tuple[int, ...]


class PoolReader:
    """The sequence of pools of one split: a pure function of the store, `seed` and these sizes.

    While one pool is in use a background thread reads the next, so memory holds two, each of at most
    `pool_spans * span_chunks` chunks of states and actions (107 MB of the hand and cube).
    """

    def __init__(
        self,
        store: Store,
        index: WindowIndex,
        *,
        seed: int,
        actions: bool,
        history: int = 0,
        device: torch.device | str = "cpu",
        span_chunks: int = SPAN_CHUNKS,
        pool_spans: int = POOL_SPANS,
    ) -> None:
        """With `actions` false, no action is read; with `history`, so many rows before each window are.

        Raises `EbmtrajError` for spans or pools below 1.
        """
        if span_chunks < 1 or pool_spans < 1:
            raise EbmtrajError(f"span_chunks = {span_chunks}, pool_spans = {pool_spans}; both must be at least 1")
        self.device = torch.device(device)
        self.waited = 0.0  # seconds that whoever draws has waited for pools
        self._store, self._index, self._seed, self._actions, self._history = store, index, seed, actions, history
        rows = span_chunks * store.chunk_rows("state")
        borders = [index.before(row) for row in range(0, int(store.state_offsets[-1]), rows)]
        self._borders = np.array([*borders, len(index)], np.int64)  # span i owns windows borders[i] to borders[i + 1] - 1
        self._spans = np.flatnonzero(np.diff(self._borders))
        self._pools = -(-len(self._spans) // pool_spans)  # in an epoch
        self._current: tuple[_Turn, _Pool] | None = None
        self._ahead: tuple[_Turn, Future[_Pool]] | None = None
        self._thread = ThreadPoolExecutor(1, "ebmtraj-reader")
        self._closing = threading.Event()

    def pool(self, drawn: int) -> _Pool:
        """The pool that serves the draw after `drawn` others; raises `EbmtrajError` where the store can't be read."""
        if self._closing.is_set():
            raise EbmtrajError(f"store {self._store.path}: its reader is closed; make another")
        if self._current is not None and self._current[0].first <= drawn < self._current[0].last:
            return self._current[1]
        turn = self._turn(drawn)
        if self._current is not None and self._current[0].spans == turn.spans:  # the one pool that holds all
            pool = self._current[1]
        else:
            self._current = None  # before the next one comes in
            began = time.perf_counter()
            pool = self._reading(turn).result()
            self.waited += time.perf_counter() - began
        self._current, self._ahead = (turn, pool), None
        following = self._turn(turn.last)
        if following.spans != turn.spans:
            self._reading(following)
        return pool

    def close(self) -> None:
        """End the thread; what it reads is given up after the request under way."""
        self._closing.set()
        self._thread.shutdown(cancel_futures=True)
        self._current = self._ahead = None

    def _turn(self, drawn: int) -> _Turn:
        epoch, place = divmod(drawn, len(self._index))
        order = _generator(self._seed, 0, epoch).permutation(self._spans)
        groups = [np.sort(group) for group in np.array_split(order, self._pools)]
        ends = piece_offsets(np.array([(self._borders[group + 1] - self._borders[group]).sum() for group in groups]))
        number = int(np.searchsorted(ends, place, side="right")) - 1
        first, last = (epoch * len(self._index) + int(ends[number + i]) for i in (0, 1))
        return _Turn(first, last, tuple(groups[number].tolist()))

    def _reading(self, turn: _Turn) -> Future[_Pool]:
        if self._ahead is not None and self._ahead[0] != turn:
            self._ahead[1].cancel()
            self._ahead = None
        if self._ahead is None:
            self._ahead = turn, self._thread.submit(self._load, turn.spans)
        return self._ahead[1]

    def _load(self, spans: tuple[int, ...]) -> _Pool:
        ends = [(int(self._borders[span]), int(self._borders[span + 1])) for span in spans]
        runs = Runs.joined([self._index.runs(first, last, self._history) for first, last in ends])
        return _load(self._store, runs, self._history, actions=self._actions, device=self.device, closing=self._closing)


class RandomWindows:
    """Batches of windows of `length` steps, drawn uniformly at random from one split; batch n is a function of (seed, n).

    Reading in order is fast, as the next pool is read meanwhile; use as a context manager, or `close` it in the end.
    """

    def __init__(
        self,
        store: Store,
        split: str = "train",
        length: int = 1,
        *,
        batch: int = 256,
        seed: int = 0,
        actions: bool = True,
        device: torch.device | str = "cpu",
        span_chunks: int = SPAN_CHUNKS,
        pool_spans: int = POOL_SPANS,
    ) -> None:
        """Raises `EbmtrajError` where the split holds no window of this length."""
        if batch < 1:
            raise EbmtrajError(f"batch = {batch} must be at least 1")
        index = WindowIndex(store, split, length)
        self.windows = len(index)
        self._size, self._seed = batch, seed
        self.reader = PoolReader(
            store, index, seed=seed, actions=actions, device=device, span_chunks=span_chunks, pool_spans=pool_spans
        )

    def batch(self, number: int) -> Windows:
        """Batch `number`; raises `EbmtrajError` where the store can't be read or holds what is not finite."""
        pool = self.reader.pool(number * self._size)
        drawn = _generator(self._seed, 1, number).integers(len(pool), size=self._size)
        return pool.windows(torch.from_numpy(drawn).to(self.reader.device))

    def __iter__(self) -> Iterator[Windows]:
        """Batches 0, 1, 2 ... without end."""
        return (self.batch(number) for number in itertools.count())

    def close(self) -> None:
        """End the reading thread."""
        self.reader.close()

    def __enter__(self) -> RandomWindows:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()


class StreamedTransitions:
    """The transitions of one split of a store that need not fit into memory; what trains on `Transitions` trains on these.

    `sample` draws from the pool whose turn it is, by the given generator. Statistics (`pieces`) and numbered transitions
    (`at`) are exact and cost a pass over the store. A split that fits into one pool gives the bits of `Transitions`.
    """

    def __init__(
        self,
        store: Store,
        split: str,
        *,
        seed: int = 0,
        actions: bool = False,
        history: int = 0,
        limit: int | None = None,
        device: torch.device | str = "cpu",
        span_chunks: int = SPAN_CHUNKS,
        pool_spans: int = POOL_SPANS,
    ) -> None:
        """Of the split's first `limit` episodes alone, each transition with so many states of `history` before it.

        Raises `EbmtrajError` where there are none.
        """
        self._store, self._actions, self._history = store, actions, history
        self._index = WindowIndex(store, split, 1, limit)
        self.reader = PoolReader(
            store,
            self._index,
            seed=seed,
            actions=actions,
            history=history,
            device=device,
            span_chunks=span_chunks,
            pool_spans=pool_spans,
        )
        self._drawn = 0

    @property
    def device(self) -> torch.device:
        """Where batches lie."""
        return self.reader.device

    def __len__(self) -> int:
        return len(self._index)

    def seek(self, drawn: int) -> None:
        """Sample next what follows after `drawn` transitions, so that a resumed training goes on as it would have."""
        self._drawn = drawn

    def sample(self, size: int, generator: torch.Generator) -> Batch:
        """`size` transitions drawn uniformly with replacement from the pool whose turn it is."""
        pool = self.reader.pool(self._drawn)
        self._drawn += size
        return pool.transitions(torch.randint(len(pool), (size,), generator=generator, device=self.device))

    def at(self, index: Tensor) -> Batch:
        """The transitions with these numbers, `(B,)`, read from the store: every chunk that holds one is decoded."""
        numbers, order = np.unique(index.cpu().numpy(), return_inverse=True)
        place = torch.from_numpy(order).to(self.device)
        runs = self._index.single(numbers, self._history)
        return self._read(runs, self._history, actions=self._actions).transitions(place)

    def pieces(self, size: int) -> Iterator[tuple[Tensor, Batch]]:
        """All transitions in order, `size` at a time, each time with the state rows `(R, S)` that no earlier piece had.

        They come without their past. Actions are read also where they are not used: a damaged store must not train a model.
        """
        for first in range(0, len(self), size):
            last = min(first + size, len(self))
            runs = self._index.runs(first, last)
            piece = self._read(runs, actions=True)
            batch = piece.transitions(torch.arange(last - first, device=self.device))
            end = int(runs.state[-1] + runs.count[-1])  # the row that the last transition leads to
            shared = last < len(self) and self._index.row(last) == end
            yield piece.state[: len(piece.state) - shared], batch if self._actions else replace(batch, action=None)

    def _read(self, runs: Runs, history: int = 0, *, actions: bool) -> _Pool:
        return _load(self._store, runs, history, actions=actions, device=self.device)

    def close(self) -> None:
        """End the reading thread."""
        self.reader.close()


def _load(
    store: Store,
    runs: Runs,
    history: int = 0,
    *,
    actions: bool,
    device: torch.device,
    closing: threading.Event | None = None,
) -> _Pool:
    def read(name: str) -> Tensor:
        return torch.from_numpy(read_rows(store, name, runs.rows(name), closing)).to(device)

    def starts(name: str) -> Tensor:
        return torch.from_numpy(runs.starts(name)).to(device)

    firsts = torch.from_numpy(runs.firsts()).to(device) if history else None
    action = read("action") if actions else None
    return _Pool(runs.length, read("state"), action, starts("state"), starts("action"), firsts, history)


def read_rows(store: Store, name: str, rows: Indices, closing: threading.Event | None = None) -> Floats:
    """These rows of "state" or "action", ascending, `(n,) -> (n, size)`; every chunk that holds one is decoded once.

    Whole shards at most are held. Raises `CancelledError` once `closing` is set.
    """
    size = store.chunk_rows(name)
    width = total_size(store.state_fields if name == "state" else store.action_fields)
    out = np.empty((len(rows), width), np.float32)
    chunk = rows // size
    apart = (np.diff(chunk) > 1) | (np.diff(chunk // max(1, SPAN_ROWS // size)) > 0)
    ends = np.unique([0, *(np.flatnonzero(apart) + 1), len(rows)]).tolist()
    for begin, end in itertools.pairwise(ends):
        if closing is not None and closing.is_set():
            raise CancelledError
        start = int(rows[begin])
        span = store.row_range(name, start, int(rows[end - 1]) + 1)
        np.take(span, rows[begin:end] - start, axis=0, out=out[begin:end], mode="clip")  # "raise" would copy once more
    return out


def _gather(rows: Tensor, starts: Tensor, length: int) -> Tensor:
    """`length` consecutive rows from each start, `(R, D), (B,) -> (B, length, D)`."""
    index = starts.unsqueeze(-1) + torch.arange(length, device=starts.device)
    return rows.index_select(0, index.view(-1)).view(len(starts), length, -1)  # much faster than rows[index]


def _generator(seed: int, stream: int, number: int) -> np.random.Generator:
    """Stream 0 permutes the spans of an epoch, stream 1 draws a batch."""
    return np.random.Generator(np.random.Philox(np.random.SeedSequence(seed, spawn_key=(stream, number))))
