"""Terms over joint angles."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from ebmtraj.trajectories.terms.term import Joints, Path, Term, decided, rows_of

FINGERS = {"index": "FF", "first": "FF", "middle": "MF", "ring": "RF", "little": "LF", "thumb": "TH", "wrist": "WR"}

RANGE_SLACK = 0.05  # rad: MuJoCo's own joint limits are soft


@dataclass(frozen=True, eq=False)
class JointPose(Term):
    """Bring joints to angles: squared distances (rad^2), summed over the joints.

    `when` says at which times: the mean over t weighted by t ("always"), or at the last one alone ("end"). `goal` has an
    angle for each of `joints` (all joints, where none is named), one for all, or is a tensor `(B, J)`.
    """

    name: ClassVar[str] = "joint-pose"
    goal: tuple[float, ...] | Tensor = ()
    joints: tuple[str, ...] = ()
    when: Literal["always", "end"] = "always"

    def _bind(self) -> None:
        if self.when not in ("always", "end"):
            self.refuse(f"when = {self.when!r}; use always or end")
        joints = self.find_joints(self.joints)
        if isinstance(self.goal, tuple) and not self.goal:
            return
        goal = torch.as_tensor(self.goal, dtype=torch.float64)
        if goal.shape[-1] not in (1, len(joints.names)) or goal.ndim > 2:
            self.refuse(
                f"goal has {goal.shape[-1]} angles for {len(joints.names)} joints; give one for each, or one for all"
            )
        rows = goal.reshape(-1, goal.shape[-1]).expand(-1, len(joints.names))
        for k, (name, low, high) in enumerate(zip(joints.names, joints.low, joints.high, strict=True)):
            outside = (rows[:, k] < low - 1e-6) | (rows[:, k] > high + 1e-6)
            if outside.any():
                value = float(rows[:, k][outside][0])
                self.refuse(f"the goal {value:g} rad for joint {name} is outside its range {low:g} to {high:g}")

    def _value(self, path: Path) -> Tensor:
        if isinstance(self.goal, tuple) and not self.goal:
            self.refuse("no goal; give goal=angle,angle,..., or one for each row: `task.given('joint-pose', goal=tensor)`")
        goal = rows_of(self.goal, path.states)
        error = (self.find_joints(self.joints).of(path.states) - goal).square().sum(-1)
        return error[:, -1] if self.when == "end" else (error * path.times / path.times.sum()).sum(1)

    def progress(self, states: Tensor) -> tuple[str, Tensor] | None:
        """Root mean square of what joints are off, in radians."""
        if isinstance(self.goal, tuple) and not self.goal:
            return None
        error = self.find_joints(self.joints).of(states) - rows_of(self.goal, states)
        return "{:.2f} rad off", error.square().mean(-1).sqrt()


@dataclass(frozen=True, eq=False)
class KeepRange(Term):
    """Keep joints within a range: the sum of their squared excess (rad^2), a mean over the times that actions reach.

    The range is `low` to `high` (rad) or, without them, that of each joint; `margin` (rad) narrows it.
    """

    name: ClassVar[str] = "keep-range"
    low: float = -torch.inf
    high: float = torch.inf
    joints: tuple[str, ...] = ()
    margin: float = 0.0

    def _bind(self) -> None:
        joints = self.find_joints(self.joints)
        if self.low + self.margin > self.high - self.margin:
            self.refuse(f"low = {self.low:g}, high = {self.high:g} and margin = {self.margin:g} leave no range")
        low, high = self._range(joints, torch.zeros(()))
        for name, a, b in zip(joints.names, low.tolist(), high.tolist(), strict=True):
            if a > b:
                self.refuse(f"no angle of joint {name} is both in its range and in the one given")

    def _range(self, joints: Joints, like: Tensor) -> tuple[Tensor, Tensor]:
        low, high = (torch.tensor(limit, dtype=like.dtype, device=like.device) for limit in (joints.low, joints.high))
        return low.clamp_min(self.low) + self.margin, high.clamp_max(self.high) - self.margin

    def _value(self, path: Path) -> Tensor:
        joints = self.find_joints(self.joints)
        angles, (low, high) = joints.of(path.states), self._range(joints, path.states)
        excess = (low - angles).clamp_min(0) + (angles - high).clamp_min(0)
        return excess.square().sum(-1) @ decided(path)

    def holds(self, states: Tensor) -> Tensor | None:
        """Whether all joints are in the range, without its margin, up to 0.05 rad."""
        joints = self.find_joints(self.joints)
        angles, (low, high) = joints.of(states), self._range(joints, states)
        slack = self.margin + RANGE_SLACK
        return ((angles >= low - slack) & (angles <= high + slack)).all(-1)

    def meaning(self) -> str:
        """In words."""
        return f"no joint more than {RANGE_SLACK:g} rad outside the range"


@dataclass(frozen=True, eq=False)
class KeepStraight(Term):
    """Keep a finger's joints near 0: the sum of their squared angles (rad^2) beyond `tolerance`.

    It is the mean over the times that the plan's actions reach. `finger` is index, middle, ring, little, thumb or wrist, or
    what the names of its joints begin with. A finger counts as straight where none of its joints is bent by more than
    `within` (rad); the cost begins earlier, as plans are not exact.
    """

    name: ClassVar[str] = "keep-straight"
    finger: str = ""
    tolerance: float = 0.3
    within: float = 0.6

    def _bind(self) -> None:
        if not self.finger:
            self.refuse("which finger? give finger=ring (or index, middle, little, thumb)")
        if self.tolerance < 0 or self.within <= 0:
            self.refuse(
                f"tolerance = {self.tolerance:g}, within = {self.within:g}; give angles of 0 rad or more, and above 0"
            )
        self.joints()

    def joints(self) -> Joints:
        """The finger's joints; raises `EbmtrajError` where the state has none."""
        everything = self.find_joints().names
        prefix = FINGERS.get(self.finger, self.finger)
        names = [name for name in everything if name.startswith(prefix)]
        if not names:
            self.refuse(f"the state has no joints of a finger {self.finger!r}; its joints are {', '.join(everything)}")
        return self.find_joints(names)

    def _value(self, path: Path) -> Tensor:
        bent = (self.joints().of(path.states).abs() - self.tolerance).clamp_min(0)
        return bent.square().sum(-1) @ decided(path)

    def holds(self, states: Tensor) -> Tensor | None:
        """Whether no joint of the finger is bent by more than `within`."""
        return self.joints().of(states).abs().amax(-1) <= self.within

    def meaning(self) -> str:
        """In words."""
        return f"no joint of the finger bent by more than {self.within:g} rad"

    def progress(self, states: Tensor) -> tuple[str, Tensor] | None:
        """Radians by which the joint that is bent most is bent."""
        return "bent {:.2f} rad", self.joints().of(states).abs().amax(-1)
