"""Windows that look ahead: a state with its past, the actions that follow and the states at some horizons."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ebmtraj.datasets.store import Store
from ebmtraj.datasets.windows import Batch, Transitions
from ebmtraj.errors import EbmtrajError


@dataclass(frozen=True, kw_only=True)
class Window(Batch):
    """Transitions with what comes after: the actions from the state on `(B, W, A)`, and the states `(B, H, S)` ahead."""

    actions: Tensor
    ahead: Tensor


class Windows:
    """All windows of some episodes, drawn with replacement; the transitions they come from are what statistics are taken of.

    A window ends within its episode: as many steps follow as the longest horizon asks for, or, where the episode
    terminated, as many as there are actions, and the state in which it terminated stands for all later ones.
    """

    def __init__(
        self, transitions: Transitions, starts: Tensor, lasts: Tensor, *, actions: int, horizons: tuple[int, ...]
    ) -> None:
        """`starts` are transition numbers `(N,)`; the episode of window i ends in state row `lasts[i]`, `(N,)`.

        Raises `EbmtrajError` for transitions without actions.
        """
        if transitions.action is None:
            raise EbmtrajError("windows look at actions; load the transitions with them")
        self.transitions, self.starts, self.lasts = transitions, starts, lasts
        self._steps = torch.arange(actions, device=starts.device)
        self._horizons = torch.tensor(horizons, device=starts.device)

    @classmethod
    def load(
        cls,
        store: Store,
        split: str,
        *,
        actions: int,
        horizons: tuple[int, ...],
        history: int = 0,
        limit: int | None = None,
        device: torch.device | str = "cpu",
    ) -> Windows:
        """Read one split of a store, its first `limit` episodes alone.

        Raises `EbmtrajError` where the split is empty, the data is not finite, or no episode is long enough.
        """
        transitions = Transitions.load(store, split, actions=True, history=history, limit=limit, device=device)
        episodes = store.split(split)[:limit]
        lengths, terminated = store.lengths[episodes], store.terminated[episodes]
        needed = np.where(terminated, actions, max(actions, *horizons))
        count = np.maximum(lengths - needed + 1, 0)
        if count.sum() == 0:
            raise EbmtrajError(
                f"store {store.path}: no {split} episode has the {max(actions, *horizons)} steps that a window looks ahead; "
                "collect longer episodes, or set network.horizons"
            )
        within = np.arange(count.sum()) - np.repeat(np.cumsum(count) - count, count)
        starts = np.repeat(np.cumsum(lengths) - lengths, count) + within
        lasts = np.repeat(np.cumsum(lengths + 1) - 1, count)
        return cls(
            transitions,
            torch.from_numpy(starts).to(device),
            torch.from_numpy(lasts).to(device),
            actions=actions,
            horizons=horizons,
        )

    @property
    def device(self) -> torch.device:
        """Where batches lie."""
        return self.transitions.device

    def __len__(self) -> int:
        return len(self.starts)

    def at(self, index: Tensor) -> Window:
        """The windows with these numbers, `(B,)`."""
        assert self.transitions.action is not None
        start = self.starts[index]
        batch = self.transitions.at(start)
        rows = self.transitions.rows[start].unsqueeze(1) + self._horizons
        taken = self.transitions.action_rows[start].unsqueeze(1) + self._steps
        return Window(
            batch.state,
            batch.action,
            batch.next_state,
            batch.past,
            actions=self.transitions.action[taken],
            ahead=self.transitions.state[torch.minimum(rows, self.lasts[index].unsqueeze(1))],
        )

    def sample(self, size: int, generator: torch.Generator) -> Window:
        """`size` windows drawn uniformly with replacement."""
        return self.at(torch.randint(len(self), (size,), generator=generator, device=self.device))

    def seek(self, drawn: int) -> None:
        """Nothing: what is sampled depends on the generator alone."""

    def pieces(self, size: int) -> Iterator[tuple[Tensor, Batch]]:
        """All transitions in order, see `Transitions.pieces`."""
        return self.transitions.pieces(size)

    def close(self) -> None:
        """Nothing to let go of."""
