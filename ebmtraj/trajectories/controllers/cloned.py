"""Cloned policies: the next action as the data would take it, told nothing, an axis to turn about, or a goal."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from ebmtraj.datasets.windows import Past
from ebmtraj.envs.batch import BatchEnv
from ebmtraj.errors import EbmtrajError
from ebmtraj.trajectories.clone import UNIT, CloneModel, goal_label, rotation_to, turn_label
from ebmtraj.trajectories.control import Decision, check_fields
from ebmtraj.trajectories.costs import TaskCost
from ebmtraj.trajectories.terms.rotation import AXES, Reorient, Rotate


@dataclass(frozen=True)
class CloneControlConfig:
    """How a cloned policy is asked. Raises `EbmtrajError` for a setting out of its range."""

    pick_by: Literal["weight", "density", "mean", "sample"] = "weight"  # which action of the mixture is taken
    turn: float = 0.8  # rad that it is told to turn at most; a goal along an axis is so far away
    least: float = 0.0  # rad that it is told at least: where little remains, the data's policy took its time
    every: int = 1  # steps of what it predicts together that are carried out
    past: bool = True  # whether it sees the move and actions before the present

    def __post_init__(self) -> None:
        if not 0 <= self.least <= self.turn or self.turn == 0 or self.every < 1:
            raise EbmtrajError(
                f"cloned policy: least = {self.least}, turn = {self.turn}, every = {self.every}; it needs turn > 0, least "
                "from 0 to turn, and every >= 1"
            )


class Cloned:
    """Acts as `CloneModel` has learnt to."""

    def __init__(self, model: CloneModel, config: CloneControlConfig) -> None:
        self.model, self.config = model, config

    def begin(self, env: BatchEnv, state: Tensor, task: TaskCost, generator: torch.Generator) -> None:
        """Forget the past; see `Controller.begin`."""
        check_fields(env, self.model.state_fields, self.model.action_fields)
        self._wish = Wish(task, state) if self.model.label != "none" else None
        self._generator = generator
        self._state, self._past = state, Past.unknown(state, self.model.config.controls, self.model.action_size)
        self._actions: Tensor | None = None
        self._done = 0

    def __call__(self, state: Tensor, previous: Tensor | None) -> Decision:
        """The next of the actions predicted last, which are made anew every `config.every` steps."""
        if previous is not None and self.config.past:
            self._past = self._past.push(self._state, previous)
        self._state = state
        if self._actions is None or self._done == min(self.config.every, self.model.config.actions):
            self._actions = self.model.act(state, self._past, self._label(state), self.config.pick_by, self._generator)
            self._done = 0
        self._done += 1
        return Decision(self._actions[:, self._done - 1])

    def _label(self, state: Tensor) -> Tensor | None:
        if self._wish is None:
            return None
        turn = self._wish.turn(state[:, self.model.orientation()], self.config.turn)
        if self.model.label == "goal":
            return goal_label(self._shortened(turn, turn.norm(dim=1, keepdim=True)))
        label = turn_label(turn)
        label[:, -1].clamp_(self.config.least / UNIT, self.config.turn / UNIT)
        return label

    def _shortened(self, turn: Tensor, size: Tensor) -> Tensor:
        return turn * size.clamp(self.config.least, self.config.turn) / size.clamp_min(1e-9)


class Wish:
    """What a task asks of an orientation: an axis `(B, 3)` to turn about, or a goal `(B, 4)`."""

    def __init__(self, task: TaskCost, state: Tensor) -> None:
        """Raises `EbmtrajError` where the task does not turn a body."""
        for part in task.parts:
            if isinstance(part, Rotate):
                given = AXES[part.axis] if isinstance(part.axis, str) else part.axis
                axis = torch.as_tensor(given, dtype=state.dtype, device=state.device).expand(len(state), 3)
                self.axis: Tensor | None = axis / axis.norm(dim=1, keepdim=True)
                return
            if isinstance(part, Reorient):
                self.axis = None
                self.goal = torch.as_tensor(part.goal, dtype=state.dtype, device=state.device).expand(len(state), 4)
                return
        raise EbmtrajError(f"task {task.text!r}: this controller turns a body; give a task with rotate or reorient")

    def turn(self, quaternion: Tensor, far: float) -> Tensor:
        """The rotation vector wanted at orientations `(B, 4)`, `(B, 3)`: to the goal, or `far` rad about the axis."""
        return far * self.axis if self.axis is not None else rotation_to(quaternion, self.goal)
