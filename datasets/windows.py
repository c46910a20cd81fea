"""Windows of a store as tensors: transitions for training, and whole trajectories for evaluation."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from ebmtraj.datasets.store import Store
from ebmtraj.errors import EbmtrajError

SPLITS = ("train", "validation", "test")
USUAL_STEPS = 100  # of a rollout


@dataclass(frozen=True)
class Past:
    """The H states before a state, oldest first `(B, H, S)`, and the actions taken there `(B, H, A)` or None.

    `valid` `(B, H)` is false where the episode had not begun, or that far back is not known: such a row is a stand-in (the
    first state that is known, action 0), and no model may read it.
    """

    state: Tensor
    action: Tensor | None
    valid: Tensor

    @property
    def length(self) -> int:
        """H."""
        return self.state.shape[1]

    @classmethod
    def unknown(cls, state: Tensor, length: int, action_size: int | None = None) -> Past:
        """No past: `state` `(B, S)` is the first that is known; with `action_size`, actions too."""
        size = (len(state), length)
        return cls(
            state.unsqueeze(1).expand(-1, length, -1),
            None if action_size is None else state.new_zeros((*size, action_size)),
            torch.zeros(size, dtype=torch.bool, device=state.device),
        )

    def push(self, state: Tensor, action: Tensor | None) -> Past:
        """One step on: `state` `(B, S)`, where `action` `(B, A)` was taken, becomes the latest, and the oldest drops out."""
        taken = None if self.action is None or action is None else torch.cat((self.action[:, 1:], action.unsqueeze(1)), 1)
        return Past(
            torch.cat((self.state[:, 1:], state.unsqueeze(1)), 1),
            taken,
            torch.cat((self.valid[:, 1:], torch.ones_like(self.valid[:, :1])), 1),
        )

    def recent(self, length: int) -> Past:
        """The latest `length` states of it, with stand-ins in front where it holds fewer."""
        missing = length - self.length
        if missing <= 0:
            first = self.length - length
            action = None if self.action is None else self.action[:, first:]
            return Past(self.state[:, first:], action, self.valid[:, first:])
        front = Past.unknown(self.state[:, 0], missing, None if self.action is None else self.action.shape[2])
        action = None if self.action is None or front.action is None else torch.cat((front.action, self.action), 1)
        return Past(torch.cat((front.state, self.state), 1), action, torch.cat((front.valid, self.valid), 1))

    def rows(self, index: Tensor | slice) -> Past:
        """Those elements of the batch, at indices `(n,)`."""
        return Past(self.state[index], None if self.action is None else self.action[index], self.valid[index])


def gather_past(state: Tensor, action: Tensor | None, row: Tensor, first: Tensor, action_row: Tensor, length: int) -> Past:
    """What lies before rows `row` `(B,)` of `state` (R, S), whose episodes begin in rows `first` `(B,)`.

    `action_row` `(B,)` are the rows of `action` (R', A) taken there.
    """
    back = torch.arange(-length, 0, device=row.device)
    before = row.unsqueeze(1) + back
    valid = before >= first.unsqueeze(1)
    states = _rows(state, torch.maximum(before, first.unsqueeze(1)))
    if action is None:
        return Past(states, None, valid)
    taken = _rows(action, (action_row.unsqueeze(1) + back).clamp_min(0))
    return Past(states, taken * valid.unsqueeze(-1), valid)


def _rows(values: Tensor, index: Tensor) -> Tensor:
    """`values[index]`, `(R, D), (B, H) -> (B, H, D)`, much faster."""
    return values.index_select(0, index.reshape(-1)).view(*index.shape, values.shape[1])


@dataclass(frozen=True)
class Batch:
    """Transitions: states `(B, S)`, the actions taken there `(B, A)` or None, and the states that followed `(B, S)`.

    `past` is what came before the states, where the data was asked for it.
    """

    state: Tensor
    action: Tensor | None
    next_state: Tensor
    past: Past | None = None


class TransitionData(Protocol):
    """Transitions to train on: held in memory (`Transitions`), or read from the store meanwhile (`StreamedTransitions`)."""

    @property
    def device(self) -> torch.device:
        """Where batches lie."""

    def __len__(self) -> int: ...

    def at(self, index: Tensor) -> Batch:
        """The transitions with these numbers, `(B,)`."""

    def sample(self, size: int, generator: torch.Generator) -> Batch:
        """`size` transitions drawn uniformly with replacement."""

    def seek(self, drawn: int) -> None:
        """Sample next what follows after `drawn` transitions, so that a resumed training goes on as it would have."""

    def pieces(self, size: int) -> Iterator[tuple[Tensor, Batch]]:
        """All transitions in order, `size` at a time, each time with the state rows `(R, S)` that no earlier piece had.

        They come without their past.
        """

    def close(self) -> None:
        """Let go of threads and memory."""


class Transitions:
    """All transitions of some episodes, held on one device and drawn with replacement."""

    def __init__(
        self,
        state: Tensor,
        action: Tensor | None,
        rows: Tensor,
        action_rows: Tensor,
        *,
        firsts: Tensor | None = None,
        history: int = 0,
    ) -> None:
        """`state` (R, S) and `action` (R', A) lie flat over time; transition i starts at `rows[i]`, `action_rows[i]`.

        Its episode begins in row `firsts[i]`, and `history` states before it come along (without `firsts`, none is known).
        """
        self.state, self.action = state, action
        self.rows, self.action_rows = rows, action_rows
        self.firsts, self.history = rows if firsts is None else firsts, history

    @classmethod
    def load(
        cls,
        store: Store,
        split: str,
        *,
        actions: bool = False,
        history: int = 0,
        limit: int | None = None,
        device: torch.device | str = "cpu",
    ) -> Transitions:
        """Read one split of a store, its first `limit` episodes alone, each transition with the `history` states before it.

        Raises `EbmtrajError` where the split is empty or the data is not finite.
        """
        episodes = store.split(split)[:limit]
        if len(episodes) == 0:
            raise EbmtrajError(
                f"store {store.path}: no episode falls into the {split} split of its {store.episodes}; "
                "collect at least 10 episodes"
            )
        lengths = store.lengths[episodes]
        if int(lengths.sum()) == 0:
            raise EbmtrajError(f"store {store.path}: the {split} split holds no transition")
        action_rows = np.arange(int(lengths.sum()))
        # every episode has one state row more than action rows, so row numbers move ahead by one an episode
        rows = action_rows + np.repeat(np.arange(len(lengths)), lengths)
        action = store.read_actions(episodes)  # also where they are not used: a damaged store must not train a model
        return cls(
            torch.from_numpy(store.read_states(episodes)).to(device),
            torch.from_numpy(action).to(device) if actions else None,
            torch.from_numpy(rows).to(device),
            torch.from_numpy(action_rows).to(device),
            firsts=torch.from_numpy(np.repeat(np.cumsum(lengths + 1) - lengths - 1, lengths)).to(device)
            if history
            else None,
            history=history,
        )

    @property
    def device(self) -> torch.device:
        """Where batches lie."""
        return self.state.device

    def __len__(self) -> int:
        return len(self.rows)

    def at(self, index: Tensor) -> Batch:
        """The transitions with these numbers, `(B,)`."""
        batch = self._at(index)
        if self.history == 0:
            return batch
        row, first, action_row = self.rows[index], self.firsts[index], self.action_rows[index]
        return replace(batch, past=gather_past(self.state, self.action, row, first, action_row, self.history))

    def _at(self, index: Tensor) -> Batch:
        row = self.rows[index]
        action = None if self.action is None else self.action[self.action_rows[index]]
        return Batch(self.state[row], action, self.state[row + 1])

    def sample(self, size: int, generator: torch.Generator) -> Batch:
        """`size` transitions drawn uniformly with replacement."""
        return self.at(torch.randint(len(self), (size,), generator=generator, device=self.rows.device))

    def seek(self, drawn: int) -> None:
        """Nothing: what is sampled depends on the generator alone."""

    def pieces(self, size: int) -> Iterator[tuple[Tensor, Batch]]:
        """All transitions in order, `size` at a time, each time with the state rows `(R, S)` that no earlier piece had."""
        for first in range(0, len(self), size):
            last = min(first + size, len(self))
            low = int(self.rows[first]) if first > 0 else 0
            high = int(self.rows[last]) if last < len(self) else len(self.state)
            yield self.state[low:high], self._at(torch.arange(first, last, device=self.rows.device))

    def close(self) -> None:
        """Nothing to let go of."""


def spread_index(data: TransitionData, most: int) -> Tensor:
    """At most `most` transition numbers, evenly spread over the data, `(n,)`."""
    fine = torch.float64 if len(data) > 2**24 else torch.float32  # float32 counts no further
    return torch.linspace(0, len(data) - 1, min(most, len(data)), device=data.device, dtype=fine).long()


@dataclass(frozen=True)
class Trajectories:
    """Whole episodes of one length: states `(N, T+1, S)`, actions `(N, T, A)`, and their numbers in the store `(N,)`."""

    states: Tensor
    actions: Tensor
    episodes: np.ndarray
    shorter: int  # episodes of the split that ended earlier and are left out
    held: int = 0  # of the episodes kept, those that terminated earlier and stay in their last state

    def past(self, times: Tensor, length: int, *, actions: bool = False) -> Past:
        """The `length` states before those at `times` `(N, W)`, as `(N * W, length, S)`."""
        count, rows, _ = self.states.shape
        episode = torch.arange(count, device=times.device).unsqueeze(1)
        return gather_past(
            self.states.flatten(0, 1),
            self.actions.flatten(0, 1) if actions else None,
            (episode * rows + times).view(-1),
            (episode * rows).expand_as(times).reshape(-1),
            (episode * (rows - 1) + times).view(-1),
            length,
        )


def usual_steps(store: Store, split: str) -> int:
    """How many steps of its episodes are looked at unless told otherwise: as many as half of a split's have, at most 100."""
    lengths = store.lengths[np.asarray(store.split(split), np.int64)]
    return int(np.clip(np.median(lengths), 1, USUAL_STEPS)) if len(lengths) else USUAL_STEPS


def trajectories(
    store: Store,
    split: str,
    steps: int,
    *,
    limit: int | None = None,
    hold: bool = False,
    device: torch.device | str = "cpu",
) -> Trajectories:
    """The first `steps` steps of all episodes of a split that are that long; raises `EbmtrajError` if there is none.

    With `hold`, an episode that terminated earlier is kept too, staying in the state in which it did, so that what
    terminates counts as often as it happens; its actions from then on are its last one.
    """
    episodes = np.asarray(store.split(split))
    long_enough = store.lengths[episodes] >= steps
    if hold:
        long_enough |= store.terminated[episodes] & (store.lengths[episodes] > 0)
    chosen = episodes[long_enough][:limit]
    if len(chosen) == 0:
        longest = int(store.lengths[episodes].max(initial=0))
        raise EbmtrajError(
            f"store {store.path}: no {split} episode has {steps} steps (the longest has {longest}); ask for fewer --steps"
        )
    lengths = store.lengths[chosen]
    state, action = store.read_states(chosen), store.read_actions(chosen)
    starts = np.concatenate(([0], np.cumsum(lengths + 1)[:-1]))
    action_starts = np.concatenate(([0], np.cumsum(lengths)[:-1]))
    states = state[starts[:, None] + np.minimum(np.arange(steps + 1), lengths[:, None])]
    actions = action[action_starts[:, None] + np.minimum(np.arange(steps), lengths[:, None] - 1)]
    return Trajectories(
        torch.from_numpy(states).to(device),
        torch.from_numpy(actions).to(device),
        chosen,
        int((~long_enough).sum()),
        int((lengths < steps).sum()),
    )
