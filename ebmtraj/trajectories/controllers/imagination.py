"""Futures imagined with a learned one-step model: the expected next state, over and over, under each member of it.

Chua et al. 2018.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from ebmtraj.datasets.windows import Past
from ebmtraj.errors import EbmtrajError
from ebmtraj.trajectories.history import moves
from ebmtraj.trajectories.model import TransitionModel

Acts = Callable[[int, Tensor], Tensor]  # (step, states (M, R, S)) -> actions (R, A)


class Imagined(NamedTuple):
    """R futures at one moment, each as M members of a model see it."""

    state: Tensor  # (M, R, S)
    moves: Tensor  # (M, R, H, D + A + 1), those that led there, see `moves`


class Dynamics:
    """A one-step model with actions as a deterministic simulator of its expected next state, kept in range as in `rollout`.

    Every member keeps to a future of its own from the first step on (TS-infinity of Chua et al. 2018), so that the members'
    disagreement grows along it as their errors do. A model with history remembers the moves that it expected.
    """

    def __init__(self, model: TransitionModel, members: int = 0) -> None:
        """Only the first `members` imagine, or all with 0.

        Raises `EbmtrajError` for a model that is given no actions or expects no next state, or has fewer members.
        """
        if not model.actions:
            raise EbmtrajError("imagined futures need a model that is given actions; train it with --actions")
        if model.members < 1:
            raise EbmtrajError(f"model {model.name} expects no next state; imagine futures with fc or ensemble")
        self.model, self.normaliser = model, model.normaliser
        if members > model.members:
            raise EbmtrajError(f"controller: members = {members}; the model has {model.members}")
        self.members = members or model.members
        self.controls = bool(getattr(model.config, "previous_control", False))
        settings = [getattr(model.config, name, False) for name in ("whiten", "gaussianise")]
        self.scale = (
            None if any(settings) else model.normaliser.delta_inverse.diagonal()
        )  # then that is all an increment needs

    def begin(self, state: Tensor, past: Past) -> Imagined:
        """The present `(R, S)` with `past`, before the first step."""
        led = moves(self.normaliser, state, past.recent(self.model.history), controls=self.controls)
        return Imagined(state.expand(self.members, *state.shape), led.expand(self.members, *led.shape))

    def step(self, now: Imagined, action: Tensor) -> Imagined:
        """One control step under actions `(R, A)`."""
        given = action.expand(self.members, *action.shape)
        seen = torch.cat((self.model.context(now.state, given), now.moves.flatten(2)), dim=-1)
        z = self.model.expected_move(now.state, seen)
        following = self.normaliser.clamp(self._advance(now.state, z))
        if not self.model.history:
            return Imagined(following, now.moves)
        control = (given - self.normaliser.action_mean) / self.normaliser.action_scale
        parts = (z, control, torch.ones_like(z[..., :1])) if self.controls else (z, torch.ones_like(z[..., :1]))
        move = torch.cat(parts, dim=-1).unsqueeze(2)
        return Imagined(following, torch.cat((now.moves[:, :, 1:], move), dim=2))

    def _advance(self, state: Tensor, z: Tensor) -> Tensor:
        """`Normaliser.advance`, quicker where it can be."""
        if self.scale is None:
            return self.normaliser.advance(state, z)
        return self.normaliser.increments.apply(state, torch.addcmul(self.normaliser.delta_mean, z, self.scale))


def imagine(dynamics: Dynamics, now: Imagined, acts: Acts, steps: int, judge: int = 1) -> tuple[Tensor, Tensor, Tensor]:
    """Futures of `steps` steps: actions `(R, T, A)`, every `judge`-th state `(M, R, H, S)`, and their times `(H,)`."""
    actions, states = [], []
    for t in range(steps):
        action = acts(t, now.state)
        now = dynamics.step(now, action)
        actions.append(action)
        if (t + 1) % judge == 0:
            states.append(now.state)
    times = torch.arange(judge, steps + 1, judge, dtype=now.state.dtype, device=now.state.device)
    return torch.stack(actions, 1), torch.stack(states, 2), times
