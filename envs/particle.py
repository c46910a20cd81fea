"""A point mass in a unit box with a goal, and disc obstacles that an option switches on: the smallest planning problem."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Literal, get_args

import gymnasium
import numpy as np
from numpy.typing import ArrayLike, NDArray

from ebmtraj.errors import EbmtrajError
from ebmtraj.fields import Field

Control = Literal["velocity", "force"]
CONTROLS: tuple[Control, ...] = get_args(Control)
DISCS = ((0.5, 0.5, 0.16), (0.3, 0.82, 0.1), (0.7, 0.18, 0.1))  # x, y, radius (m) of the obstacles that `True` stands for
TIMESTEP = 0.05  # s
SPEED = 1.0  # m/s at most: 0.05 m a step
FORCE = 5.0  # m/s^2 at action 1
DRAG = 1.0  # 1/s
MAX_TRIES = 1000  # draws of a start outside the obstacles


class ParticleEnv(gymnasium.Env[NDArray[np.float32], NDArray[np.float32]]):
    """A point in the box [0, 1]^2, registered as `ebmtraj/Particle-v0`: where it is, its velocity under force, its goal.

    Actions (2,) in [-1, 1] are a velocity (`control` velocity: 1 m/s at most in any direction) or a force (with drag, and
    the same speed limit). A point that would leave the box stops at the wall; one that would enter an obstacle stays where
    it is and stands still. `obstacles` is false, true for three discs, or a list of [x, y, radius] in metres; they are not
    part of the state. The reward is always 0; an episode has no end of its own. `info` holds `distance` (m) to the goal and
    `blocked`.
    """

    metadata: dict[str, Any] = {"render_modes": [], "render_fps": round(1 / TIMESTEP)}  # noqa: RUF012 (Gymnasium's own form)
    dt = TIMESTEP

    def __init__(self, control: Control = "velocity", obstacles: bool | Sequence[Sequence[float]] = False) -> None:
        """Raises `EbmtrajError` for an unknown control, and for obstacles that are no discs."""
        if control not in CONTROLS:
            raise EbmtrajError(f"particle: unknown control {control!r}; use one of {', '.join(CONTROLS)}")
        self.control = control
        self.discs = discs_of(obstacles)
        self.state_fields = state_fields(control)
        ends = [field.limits() for field in self.state_fields]
        low, high = (np.concatenate([end[side] for end in ends]).astype(np.float32) for side in (0, 1))
        self.observation_space = gymnasium.spaces.Box(low, high, dtype=np.float32)
        self.action_space = gymnasium.spaces.Box(-1.0, 1.0, (2,), dtype=np.float32)
        self.position, self.velocity, self.goal = np.full(2, 0.5), np.zeros(2), np.full(2, 0.5)
        self.blocked = False

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[NDArray[np.float32], dict[str, Any]]:
        """Draw a start at rest and a goal, both outside the obstacles; raises `EbmtrajError` where these leave no room.

        Returns the state, float32, `(4,)` of position (m) and goal (m), or `(6,)` with the velocity (m/s) between them.
        """
        super().reset(seed=seed, options=options)
        self.position, self.goal = self._draw(), self._draw()
        self.velocity, self.blocked = np.zeros(2), False
        return self._observe()

    def step(self, action: ArrayLike) -> tuple[NDArray[np.float32], float, bool, bool, dict[str, Any]]:
        """Move by an action (2,) for 50 ms; raises `EbmtrajError` on a wrong shape, NaN or values outside [-1, 1]."""
        given = np.asarray(action, dtype=np.float64)
        if given.shape != (2,) or not (np.abs(given) <= 1.0).all():  # NaN fails this too
            raise EbmtrajError(f"particle: an action is 2 numbers in [-1, 1], not {given.tolist()}; clip it first")
        if self.control == "velocity":
            velocity = SPEED * given
        else:
            velocity = self.velocity + TIMESTEP * (FORCE * given - DRAG * self.velocity)
        velocity = velocity * min(1.0, SPEED / max(float(np.hypot(*velocity)), 1e-9))
        ahead = np.clip(self.position + TIMESTEP * velocity, 0.0, 1.0)
        self.blocked = bool(inside(ahead, self.discs))
        if self.blocked:
            ahead = self.position
        self.velocity = (ahead - self.position) / TIMESTEP
        self.position = ahead
        observation, info = self._observe()
        return observation, 0.0, False, False, info

    def set_state(self, state: ArrayLike) -> NDArray[np.float32]:
        """Start from a state (S,) and return it as observed; raises `EbmtrajError` outside the box or in an obstacle."""
        values = np.asarray(state, dtype=np.float64)
        space = self.observation_space
        assert isinstance(space, gymnasium.spaces.Box)
        if values.shape != space.shape or not space.contains(values.astype(np.float32)):
            raise EbmtrajError(f"particle: a state is {space.shape} finite numbers within the box; got {values.tolist()}")
        if inside(values[:2], self.discs):
            raise EbmtrajError(f"particle: the position {values[:2].tolist()} lies in an obstacle; start outside")
        self.position, self.goal = values[:2], values[-2:]
        self.velocity, self.blocked = values[2:4] if self.control == "force" else np.zeros(2), False
        return self._observe()[0]

    def _draw(self) -> NDArray[np.float64]:
        for _ in range(MAX_TRIES):
            point = self.np_random.uniform(0.0, 1.0, 2)
            if not inside(point, self.discs):
                return point
        raise EbmtrajError("particle: the obstacles leave no room for a start; make them smaller")

    def _observe(self) -> tuple[NDArray[np.float32], dict[str, Any]]:
        moving = self.velocity if self.control == "force" else self.velocity[:0]
        observation = np.concatenate([self.position, moving, self.goal]).astype(np.float32)
        return observation, {"distance": float(np.hypot(*(self.goal - self.position))), "blocked": self.blocked}


def state_fields(control: Control) -> tuple[Field, ...]:
    """Position (m), velocity (m/s) if forces control it, and goal (m)."""
    position = Field("position", 2, "position", "m", (0.0, 0.0), (1.0, 1.0), ("x", "y"))
    velocity = Field("velocity", 2, "plain", "m/s", (-SPEED, -SPEED), (SPEED, SPEED), ("x", "y"))
    goal = Field("goal", 2, "position", "m", (0.0, 0.0), (1.0, 1.0), ("goal_x", "goal_y"))
    return (position, velocity, goal) if control == "force" else (position, goal)


def discs_of(obstacles: bool | Sequence[Sequence[float]]) -> NDArray[np.float64]:
    """The obstacles (N, 3) that an option stands for; raises `EbmtrajError` where it is no list of discs."""
    if isinstance(obstacles, bool):
        return np.array(DISCS if obstacles else (), dtype=np.float64).reshape(-1, 3)
    try:
        discs = np.array(obstacles, dtype=np.float64)
    except (TypeError, ValueError):
        discs = np.array(math.nan)
    if discs.size and (
        discs.ndim != 2 or discs.shape[1] != 3 or not np.isfinite(discs).all() or not (discs[:, 2] > 0).all()
    ):
        raise EbmtrajError(f"particle: obstacles = {obstacles!r}; give true, false or a list of [x, y, radius]")
    return discs.reshape(-1, 3)


def inside(points: NDArray[np.float64], discs: NDArray[np.float64]) -> NDArray[np.bool_]:
    """Whether points (..., 2) lie in any of the discs (N, 3): (...)."""
    distance = np.linalg.norm(points[..., None, :] - discs[:, :2], axis=-1)
    return (distance < discs[:, 2]).any(-1)
