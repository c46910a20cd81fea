"""Terms over a body's orientation."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from ebmtraj.datasets.coordinates import quaternion_conjugate, quaternion_log, quaternion_multiply
from ebmtraj.trajectories.terms.term import Path, Term, rows_of, turning_weights

AXES = {
    sign + name: tuple(direction * float(i == k) for i in range(3))
    for sign, direction in (("", 1.0), ("+", 1.0), ("-", -1.0))
    for k, name in enumerate("xyz")
}
CLIP = 1.2  # rad: a goal further away than this pulls no harder
NEAR, FAR = 4.0, 36.0  # control steps ahead that count most, at the goal and far from it
UNIT_TOLERANCE = 1e-2


@dataclass(frozen=True, eq=False)
class Rotate(Term):
    """Turn a body about an axis of the world: - sum over t of (t / 32) rotation vector(start -> state_t) . axis, rad.

    `axis` is x, -x, y, -y, z, -z, three numbers (their direction counts), a tensor `(B, 3)`, or `all`, which leaves it to be
    given for each row.
    """

    name: ClassVar[str] = "rotate"
    axis: str | tuple[float, ...] | Tensor = "z"

    def _bind(self) -> None:
        self.find_field("quaternion")
        axis = self.axis
        if isinstance(axis, str) and axis not in AXES and axis != "all":
            self.refuse(f"unknown axis {axis!r}; use {', '.join(n for n in AXES if '+' not in n)}, all or three numbers")
        if not isinstance(axis, str) and not _directions(axis):
            self.refuse(f"axis = {_shown(axis)}; give three numbers that are not all zero, such as axis=0,0,1")

    def _value(self, path: Path) -> Tensor:
        if isinstance(self.axis, str) and self.axis == "all":
            self.refuse("axis=all needs an axis for each row: `task.given('rotate', axis=tensor)`")
        axis = rows_of(AXES[self.axis] if isinstance(self.axis, str) else self.axis, path.states)  # (B or 1, 1, 3)
        turned = rotation_vectors(path, self.find_field("quaternion")[1])  # (B, H, 3)
        along = (turned * axis / axis.norm(dim=-1, keepdim=True)).sum(-1)
        return -(along * turning_weights(path.times)).sum(1)

    def progress(self, states: Tensor) -> tuple[str, Tensor] | None:
        """Radians turned along the axis so far."""
        if isinstance(self.axis, str) and self.axis == "all":
            return None
        axis = rows_of(AXES[self.axis] if isinstance(self.axis, str) else self.axis, states)
        q = _unit(states[..., self.find_field("quaternion")[1]])
        steps = quaternion_log(quaternion_multiply(q[:, 1:], quaternion_conjugate(q[:, :-1])))
        along = (steps * axis / axis.norm(dim=-1, keepdim=True)).sum(-1)
        return "turned {:.2f} rad", torch.nn.functional.pad(along.cumsum(1), (1, 0))


@dataclass(frozen=True, eq=False)
class Reorient(Term):
    """Turn a body to an orientation: mean over t of |turning until t - remaining rotation at the start|^2, rad^2.

    The remaining rotation, clipped to 1.2 rad, so that a far goal asks for no more turning than a plan can do, also sets how
    far ahead the mean looks: weights t exp(-t / h), h from 4 control steps at the goal to 36 far from it. A goal that is
    near is reached at once or, by what the data would do later, passed. `goal` is a unit quaternion w,x,y,z or a tensor
    `(B, 4)`; without one it is to be given before use.
    """

    name: ClassVar[str] = "reorient"
    goal: tuple[float, ...] | Tensor = ()

    def _bind(self) -> None:
        self.find_field("quaternion")
        if isinstance(self.goal, tuple) and not self.goal:
            return
        goal = torch.as_tensor(self.goal, dtype=torch.float64)
        if goal.ndim > 2 or goal.shape[-1] != 4:
            self.refuse(f"goal has shape {tuple(goal.shape)}; give a quaternion w,x,y,z or a tensor (B, 4)")
        norms = goal.norm(dim=-1)
        if ((norms - 1).abs() > UNIT_TOLERANCE).any():
            worst = float(norms.reshape(-1)[(norms.reshape(-1) - 1).abs().argmax()])
            self.refuse(f"the goal quaternion's norm is {worst:.3g}; give a unit one, w,x,y,z")

    def _value(self, path: Path) -> Tensor:
        if isinstance(self.goal, tuple) and not self.goal:
            self.refuse("no goal; give goal=w,x,y,z, or one for each row: `task.given('reorient', goal=tensor)`")
        place = self.find_field("quaternion")[1]
        goal, start = rows_of(self.goal, path.states), _unit(path.start[:, None, place])
        remaining = quaternion_log(quaternion_multiply(goal, quaternion_conjugate(start)))  # (B, 1, 3)
        wanted = remaining * (CLIP / remaining.norm(dim=-1, keepdim=True).clamp_min(1e-9)).clamp_max(1.0)
        missed = (rotation_vectors(path, place) - wanted).square().sum(-1)  # (B, H)
        share = wanted.norm(dim=-1) / CLIP  # (B, 1)
        weights = path.times * torch.exp(-path.times / (NEAR + share * (FAR - NEAR)))
        return (missed * weights).sum(1) / weights.sum(1)

    def progress(self, states: Tensor) -> tuple[str, Tensor] | None:
        """Radians left to the goal."""
        if isinstance(self.goal, tuple) and not self.goal:
            return None
        q, goal = _unit(states[..., self.find_field("quaternion")[1]]), rows_of(self.goal, states)
        return "{:.2f} rad left", quaternion_log(quaternion_multiply(goal.expand_as(q), quaternion_conjugate(q))).norm(
            dim=-1
        )


def rotation_vectors(path: Path, place: slice) -> Tensor:
    """World-frame rotation vectors from the start to each state, `(B, H, 3)` rad, of the quaternion at `place`."""
    if path.turned is not None:  # known already: the same but for rounding, and half the work of a plan's gradient
        return path.turned
    start, states = _unit(path.start[:, None, place]), _unit(path.states[..., place])
    return quaternion_log(quaternion_multiply(states, quaternion_conjugate(start)))


def _unit(q: Tensor) -> Tensor:
    return q / q.norm(dim=-1, keepdim=True).clamp_min(1e-6)


def _directions(axis: tuple[float, ...] | Tensor) -> bool:
    values = torch.as_tensor(axis, dtype=torch.float64)
    return values.shape[-1:] == (3,) and values.ndim <= 2 and bool((values.norm(dim=-1) > 1e-6).all())


def _shown(values: tuple[float, ...] | Tensor) -> str:
    return f"tensor of shape {tuple(values.shape)}" if isinstance(values, Tensor) else ",".join(f"{v:g}" for v in values)
