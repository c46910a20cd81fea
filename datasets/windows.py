"""Windows of a store as tensors: transitions for training, whole trajectories for evaluation, and their normalisation."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from ebmtraj.datasets.coordinates import Increments
from ebmtraj.datasets.store import Store
from ebmtraj.errors import EbmtrajError
from ebmtraj.fields import Field, total_size

SPLITS = ("train", "validation", "test")


@dataclass(frozen=True)
class Batch:
    """Transitions: states `(B, S)`, the actions taken there `(B, A)` or None, and the states that followed `(B, S)`."""

    state: Tensor
    action: Tensor | None
    next_state: Tensor


class Transitions:
    """All transitions of some episodes, held on one device and drawn with replacement."""

    def __init__(self, state: Tensor, action: Tensor | None, rows: Tensor, action_rows: Tensor) -> None:
        """`state` (R, S) and `action` (R', A) lie flat over time; transition i starts at `rows[i]`, `action_rows[i]`."""
        self.state, self.action = state, action
        self.rows, self.action_rows = rows, action_rows

    @classmethod
    def load(cls, store: Store, split: str, *, actions: bool = False, device: torch.device | str = "cpu") -> Transitions:
        """Read one split of a store; raises `EbmtrajError` where the split is empty or the data is not finite."""
        episodes = store.split(split)
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
        )

    def __len__(self) -> int:
        return len(self.rows)

    def at(self, index: Tensor) -> Batch:
        """The transitions with these numbers, `(B,)`."""
        row = self.rows[index]
        action = None if self.action is None else self.action[self.action_rows[index]]
        return Batch(self.state[row], action, self.state[row + 1])

    def sample(self, size: int, generator: torch.Generator) -> Batch:
        """`size` transitions drawn uniformly with replacement."""
        return self.at(torch.randint(len(self), (size,), generator=generator, device=self.rows.device))


@dataclass(frozen=True)
class Trajectories:
    """Whole episodes of one length: states `(N, T+1, S)`, actions `(N, T, A)`, and their numbers in the store `(N,)`."""

    states: Tensor
    actions: Tensor
    episodes: np.ndarray
    shorter: int  # episodes of the split that ended earlier and are left out


def trajectories(
    store: Store, split: str, steps: int, *, limit: int | None = None, device: torch.device | str = "cpu"
) -> Trajectories:
    """The first `steps` steps of all episodes of a split that are that long; raises `EbmtrajError` if there is none."""
    episodes = np.asarray(store.split(split))
    long_enough = store.lengths[episodes] >= steps
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
    states = state[starts[:, None] + np.arange(steps + 1)]
    actions = action[action_starts[:, None] + np.arange(steps)]
    return Trajectories(
        torch.from_numpy(states).to(device),
        torch.from_numpy(actions).to(device),
        chosen,
        int((~long_enough).sum()),
    )


class Normaliser(nn.Module):
    """Brings states, actions and increments to zero mean and unit spread, and knows the range of the training data.

    Increments may also be whitened (decorrelated). All statistics are buffers, so they travel with the weights.
    """

    unbounded: Tensor
    state_mean: Tensor
    state_scale: Tensor
    state_low: Tensor
    state_high: Tensor
    feature_mean: Tensor
    feature_scale: Tensor
    action_mean: Tensor
    action_scale: Tensor
    delta_mean: Tensor
    delta_matrix: Tensor
    delta_inverse: Tensor

    def __init__(self, state_fields: Sequence[Field], action_fields: Sequence[Field]) -> None:
        super().__init__()
        self.increments = Increments(state_fields)
        free = [field.kind == "quaternion" for field in state_fields for _ in range(field.size)]
        self.register_buffer("unbounded", torch.tensor(free), persistent=False)
        s, a, d = total_size(state_fields), total_size(action_fields), self.increments.size
        for name, value in (
            ("state_mean", torch.zeros(s)),
            ("state_scale", torch.ones(s)),
            ("state_low", torch.full((s,), -torch.inf)),
            ("state_high", torch.full((s,), torch.inf)),
            ("feature_mean", torch.zeros(self.increments.feature_size)),
            ("feature_scale", torch.ones(self.increments.feature_size)),
            ("action_mean", torch.zeros(a)),
            ("action_scale", torch.ones(a)),
            ("delta_mean", torch.zeros(d)),
            ("delta_matrix", torch.eye(d)),
            ("delta_inverse", torch.eye(d)),
        ):
            self.register_buffer(name, value)

    @torch.no_grad()
    def fit(self, data: Transitions, *, whiten: bool = False, chunk: int = 200_000) -> Normaliser:
        """Take the statistics of training transitions; a constant dimension keeps scale 1."""
        self.state_mean, self.state_scale = _moments(data.state)
        self.state_low, self.state_high = data.state.amin(0), data.state.amax(0)
        self.feature_mean, self.feature_scale = _moments(self.increments.features(data.state))
        if data.action is not None:
            self.action_mean, self.action_scale = _moments(data.action)
        deltas = torch.cat(
            [
                self.increments.between(batch.state, batch.next_state)
                for first in range(0, len(data), chunk)
                for batch in [data.at(torch.arange(first, min(first + chunk, len(data)), device=data.rows.device))]
            ]
        )
        self.delta_mean, scale = _moments(deltas)
        moves = deltas.amax(0) > deltas.amin(0)
        if whiten:
            z = (deltas - self.delta_mean).double()
            covariance = z.T @ z / len(z) + torch.diag(torch.where(moves, 1e-6 * scale.double() ** 2, 1.0))
            root = torch.linalg.cholesky(covariance)
            self.delta_inverse = root.T.float()
            self.delta_matrix = torch.linalg.inv(root).T.float()
        else:
            self.delta_matrix, self.delta_inverse = torch.diag(1 / scale), torch.diag(scale)
        self.delta_inverse = self.delta_inverse * moves  # what never moved in the data never moves in a rollout
        return self

    def context(self, state: Tensor, action: Tensor | None = None, *, matrices: bool = True, bound: float = 6.0) -> Tensor:
        """What a model is given: normalised features of the state, then the action if there is one, `(B, C)`, clamped.

        With `matrices`, quaternions are seen as rotation matrices; without, the state is seen as it is.
        """
        if matrices:
            c = (self.increments.features(state) - self.feature_mean) / self.feature_scale
        else:
            c = self.normalise_state(state)
        if action is not None:
            c = torch.cat((c, (action - self.action_mean) / self.action_scale), dim=-1)
        return c.clamp(-bound, bound)

    def normalise_state(self, state: Tensor) -> Tensor:
        """`(..., S)` to zero mean and unit spread."""
        return (state - self.state_mean) / self.state_scale

    def restore_state(self, normal: Tensor) -> Tensor:
        """The inverse of `normalise_state`."""
        return normal * self.state_scale + self.state_mean

    def delta(self, state: Tensor, next_state: Tensor) -> Tensor:
        """Normalised increment z, `(B, S), (B, S) -> (B, D)`."""
        return (self.increments.between(state, next_state) - self.delta_mean) @ self.delta_matrix

    def advance(self, state: Tensor, z: Tensor) -> Tensor:
        """The state that a normalised increment leads to, `(B, S), (B, D) -> (B, S)`; quaternions come out unit."""
        return self.increments.apply(state, z @ self.delta_inverse + self.delta_mean)

    def clamp(self, state: Tensor, margin: float = 0.1) -> Tensor:
        """Keep a state within the training data's range, widened by `margin` of it on either side; quaternions unit."""
        slack = margin * (self.state_high - self.state_low)
        bounded = torch.minimum(torch.maximum(state, self.state_low - slack), self.state_high + slack)
        return self.increments.project(torch.where(self.unbounded, state, bounded))


def _moments(values: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation per dimension in float64, with 1 in place of a vanishing deviation."""
    wide = values.double()
    mean, std = wide.mean(0), wide.std(0, unbiased=False)
    tiny = 1e-6 * wide.abs().amax(0).clamp_min(1e-6)
    return mean.float(), torch.where(std <= tiny, torch.ones_like(std), std).float()
