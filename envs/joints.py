"""The physical state of any MuJoCo model as one vector, with a field for each kind of joint."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from itertools import groupby
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ebmtraj.envs.physics import mujoco
from ebmtraj.errors import EbmtrajError
from ebmtraj.fields import Field, Kind

FREE, BALL, SLIDE, HINGE = (
    int(kind)
    for kind in (
        mujoco.mjtJoint.mjJNT_FREE,
        mujoco.mjtJoint.mjJNT_BALL,
        mujoco.mjtJoint.mjJNT_SLIDE,
        mujoco.mjtJoint.mjJNT_HINGE,
    )
)


class _Part(NamedTuple):
    """One number, or one quaternion, of a state; neighbours with the same `field`, kind and unit make up one field."""

    field: str
    kind: Kind
    unit: str
    entry: str
    low: float = -math.inf
    high: float = math.inf


class JointStates:
    """Positions and velocities of a model's joints, in MuJoCo's order: `qpos`, `qvel`, then muscles' `act` if there are any.

    Hinges are angles (rad) and slides positions (m), with the limits of those that are limited; a free joint is a position
    and a quaternion (w, x, y, z), a ball a quaternion. Velocities are plain: rad/s and m/s, of a free joint linear in the
    world's frame, then angular in the body's.
    """

    def __init__(self, model: mujoco.MjModel) -> None:
        self.model = model
        self.fields = _fields(_positions(model)) + _fields(_velocities(model))
        self.fields = _distinct(self.fields + _fields([_Part("activations", "plain", "", str(i)) for i in range(model.na)]))
        self.size = model.nq + model.nv + model.na
        addresses, kinds = model.jnt_qposadr, model.jnt_type
        starts = [int(a) + 3 * (k == FREE) for a, k in zip(addresses, kinds, strict=True) if k in (FREE, BALL)]
        self._quaternions = [slice(start, start + 4) for start in starts]

    def read(self, data: mujoco.MjData) -> NDArray[np.float64]:
        """The state (S,) of a simulation; quaternions unit, which MuJoCo's own need not be after a reset with noise."""
        return self._units(np.concatenate([data.qpos, data.qvel, data.act])[None])[0]

    def checked(self, states: ArrayLike) -> NDArray[np.float64]:
        """States (B, S) to start from; raises `EbmtrajError` on a wrong shape, NaN or a zero quaternion."""
        values = np.array(states, dtype=np.float64)
        if values.ndim != 2 or values.shape[1] != self.size or not np.isfinite(values).all():
            raise EbmtrajError(f"a physical state to start from is finite and of shape (batch, {self.size})")
        if any((np.linalg.norm(values[:, place], axis=1) < 1e-6).any() for place in self._quaternions):
            raise EbmtrajError("a physical state to start from holds a quaternion of zeros; give a rotation")
        return self._units(values)

    def split(self, state: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
        """`qpos`, `qvel` and `act` of a state (S,)."""
        nq, nv = self.model.nq, self.model.nv
        return state[:nq], state[nq : nq + nv], state[nq + nv :]

    def _units(self, states: NDArray[np.float64]) -> NDArray[np.float64]:
        for place in self._quaternions:
            states[:, place] /= np.linalg.norm(states[:, place], axis=1, keepdims=True)
        return states


def _joints(model: mujoco.MjModel) -> list[tuple[str, int, float, float]]:
    """Name, type and limits of each joint."""
    rows = []
    for i in range(model.njnt):
        low, high = model.jnt_range[i] if model.jnt_limited[i] else (-math.inf, math.inf)
        rows.append((model.joint(i).name or f"joint_{i}", int(model.jnt_type[i]), float(low), float(high)))
    return rows


def _positions(model: mujoco.MjModel) -> list[_Part]:
    parts = []
    for name, kind, low, high in _joints(model):
        if kind == FREE:
            parts += [_Part(f"{name}_position", "position", "m", axis) for axis in "xyz"]
        if kind in (FREE, BALL):
            parts += [_Part(f"{name}_quaternion", "quaternion", "", entry) for entry in "wxyz"]
        if kind == SLIDE:
            parts.append(_Part("joint_positions", "position", "m", name, low, high))
        if kind == HINGE:
            parts.append(_Part("joint_angles", "angle", "rad", name, low, high))
    return parts


def _velocities(model: mujoco.MjModel) -> list[_Part]:
    parts = []
    for name, kind, _, _ in _joints(model):
        if kind == FREE:
            parts += [_Part(f"{name}_linear_velocity", "plain", "m/s", axis) for axis in "xyz"]
        if kind in (FREE, BALL):
            parts += [_Part(f"{name}_angular_velocity", "plain", "rad/s", axis) for axis in "xyz"]
        if kind == SLIDE:
            parts.append(_Part("joint_linear_velocities", "plain", "m/s", name))
        if kind == HINGE:
            parts.append(_Part("joint_angular_velocities", "plain", "rad/s", name))
    return parts


def _fields(parts: Sequence[_Part]) -> tuple[Field, ...]:
    """Runs of neighbours as fields; limits are given only where an entry has one."""
    fields = []
    for (name, kind, unit), run in groupby(parts, key=lambda part: (part.field, part.kind, part.unit)):
        members = list(run)
        low, high = tuple(part.low for part in members), tuple(part.high for part in members)
        limited = bool(np.isfinite([low, high]).any())
        entries = tuple(part.entry for part in members)
        fields.append(Field(name, len(members), kind, unit, low if limited else None, high if limited else None, entries))
    return tuple(fields)


def _distinct(fields: Sequence[Field]) -> tuple[Field, ...]:
    """A number behind names that come again, as where slides stand between hinges."""
    seen: dict[str, int] = {}
    named = []
    for field in fields:
        seen[field.name] = seen.get(field.name, 0) + 1
        number = f"_{seen[field.name]}" if seen[field.name] > 1 else ""
        named.append(replace(field, name=field.name + number))
    return tuple(named)
