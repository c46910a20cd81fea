"""Stepping any Gymnasium environment with Box spaces, one after the other, with its physics where it has one."""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import gymnasium
import numpy as np
from numpy.typing import ArrayLike, NDArray

from ebmtraj.envs import hand_cube
from ebmtraj.envs.batch import INTEGRATION, StateChoice
from ebmtraj.envs.joints import JointStates
from ebmtraj.envs.physics import mujoco
from ebmtraj.errors import EbmtrajError
from ebmtraj.fields import Field, total_size


class GymBatch:
    """Any Gymnasium environment with Box observations and Box actions, stepped one after the other.

    `state` says what its states are: "physics", the positions and velocities of a MuJoCo robot's joints, typed as
    `JointStates` has them; "observation", the environment's own observations, flattened, as one plain field; "auto",
    physics where the environment is a MuJoCo robot. An environment that has `state_fields` itself says what its observations
    mean; they are its physics, and its `set_state(state)` starts from them. Observations often leave out what the physics
    depends on, such as how far the robot has come, and then no simulation can start from them. Time limits are switched off,
    so that episodes of any length work. Raises `EbmtrajError` for other spaces, for keyword arguments that the environment
    does not take, and for physics where there is no MuJoCo model.
    """

    def __init__(self, env_id: str, state: StateChoice = "auto", **kwargs: Any) -> None:
        self.env_id = env_id
        self.env_kwargs = kwargs
        try:
            json.dumps(kwargs)
        except TypeError as error:
            raise EbmtrajError(f"{env_id}: options must be plain JSON values to be stored with the data: {error}") from error
        self._envs = [self._make()]
        env = self._envs[0]
        observation, action = env.observation_space, env.action_space
        for name, space in (("observations", observation), ("actions", action)):
            if not isinstance(space, gymnasium.spaces.Box):
                self.close()
                raise EbmtrajError(
                    f"{env_id}: its {name} are {type(space).__name__}, not Box; choose an environment with Box spaces, "
                    "or wrap and register it (for example with gymnasium.wrappers.FlattenObservation)"
                )
        assert isinstance(observation, gymnasium.spaces.Box)
        assert isinstance(action, gymnasium.spaces.Box)
        self._action_space = action
        model = getattr(env.unwrapped, "model", None)
        simulates = isinstance(model, mujoco.MjModel) and isinstance(getattr(env.unwrapped, "data", None), mujoco.MjData)
        own = getattr(env.unwrapped, "state_fields", None) if state != "observation" else None
        if state == "physics" and not simulates and own is None:
            self.close()
            raise EbmtrajError(f"{env_id} is no MuJoCo robot: it has no physical state to store; use --state observation")
        seen = _box_field("observation", observation)
        self._joints = JointStates(model) if simulates and state != "observation" and own is None else None
        self._typed = own is not None
        self.state_fields: tuple[Field, ...] = tuple(own) if own else self._joints.fields if self._joints else (seen,)
        self.action_fields: tuple[Field, ...] = (_box_field("action", action),)
        fps = env.metadata.get("render_fps")
        # Not every environment says how long a step lasts; then time is counted in steps.
        self.control_timestep = float(getattr(env.unwrapped, "dt", None) or (1.0 / fps if fps else 1.0))
        self._observations = np.empty((0, seen.size), dtype=np.float32)
        self._states = np.empty((0, total_size(self.state_fields)), dtype=np.float32)
        self._terminated = np.empty(0, dtype=np.bool_)

    def _make(self) -> gymnasium.Env[Any, Any]:
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # such as "out of date", for which the user asked by name
                return gymnasium.make(self.env_id, max_episode_steps=-1, disable_env_checker=True, **self.env_kwargs)
        except (gymnasium.error.Error, ImportError, TypeError, ValueError) as error:
            reason = (str(error).strip() or type(error).__name__).splitlines()[0]
            reason = reason.split(" was raised from the environment creator")[0]
            raise EbmtrajError(f"{self.env_id}: Gymnasium cannot make it: {reason}") from error

    def _guarded(self, what: str, call: Callable[..., Any], *given: Any, **named: Any) -> Any:
        try:
            return call(*given, **named)
        except EbmtrajError:
            raise
        except Exception as error:
            raise EbmtrajError(f"{self.env_id} failed in {what}: {type(error).__name__}: {error}") from error

    @property
    def batch_size(self) -> int:
        """How many environments the last `reset` or `set_state` started; 0 before the first."""
        return len(self._states)

    @property
    def states(self) -> NDArray[np.float32]:
        """The current states (B, S)."""
        return self._states.copy()

    @property
    def observations(self) -> NDArray[np.float32]:
        """The environments' own observations (B, O), which policies are shown whatever the states are."""
        return self._observations.copy()

    def reset(self, generators: Sequence[np.random.Generator]) -> NDArray[np.float32]:
        """Start one episode a generator, which gives its environment's seed; return the states (B, S)."""
        self._resize(len(generators))
        for i, generator in enumerate(generators):
            observation, _ = self._guarded("reset", self._envs[i].reset, seed=int(generator.integers(2**31)))
            self._note(i, observation)
        return self.states

    def step(self, actions: ArrayLike) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
        """Apply actions (B, A) within the environment's bounds; return states (B, S) and terminated (B,).

        Raises `EbmtrajError` on a wrong shape, NaN or values out of bounds.
        """
        values = np.asarray(actions, dtype=np.float32)
        shape = (self.batch_size, self.action_fields[0].size)
        if values.shape != shape:
            raise EbmtrajError(f"{self.env_id}: actions have shape {values.shape}; give {shape}")
        low, high = (np.ravel(bound).astype(np.float32) for bound in (self._action_space.low, self._action_space.high))
        if not ((values >= low) & (values <= high)).all():  # NaN fails this too
            raise EbmtrajError(f"{self.env_id}: actions are NaN or outside the environment's bounds; clip them first")
        box = self._action_space
        for i in np.flatnonzero(~self._terminated):
            action = values[i].reshape(box.shape).astype(box.dtype)
            observation, _, terminated, _, _ = self._guarded("step", self._envs[i].step, action)
            self._note(int(i), observation)
            self._terminated[i] = terminated
        return self.states, self._terminated.copy()

    def set_state(self, states: ArrayLike) -> None:
        """Start from physical states (B, S).

        Raises `EbmtrajError` on a wrong shape, NaN or a zero quaternion, and where states are observations.
        """
        if self._typed:
            return self._set_typed(states)
        joints = self._physics("set_state")
        values = joints.checked(states)
        self._resize(len(values))
        for i, state in enumerate(values):
            data = self._begun(i)
            mujoco.mj_resetData(self._envs[i].unwrapped.model, data)  # type: ignore[attr-defined]
            data.qpos[:], data.qvel[:], data.act[:] = joints.split(state)
            self._settle(i)

    def _set_typed(self, states: ArrayLike) -> None:
        values = np.asarray(states, dtype=np.float64)
        size = total_size(self.state_fields)
        if values.ndim != 2 or values.shape[1] != size:
            raise EbmtrajError(f"{self.env_id}: a state to start from is of shape (batch, {size})")
        self._resize(len(values))
        for i, row in enumerate(values):
            self._guarded("reset", self._envs[i].reset, seed=0)
            self._note(i, self._guarded("set_state", self._envs[i].unwrapped.set_state, row))  # type: ignore[attr-defined]

    @property
    def physics_state(self) -> NDArray[np.float64]:
        """All that the next steps depend on, (B, P): MuJoCo's integration state. Setting it goes on to the same bits."""
        model = self._physics("physics_state").model
        values = np.empty((self.batch_size, mujoco.mj_stateSize(model, INTEGRATION)))
        for i, row in enumerate(values):
            mujoco.mj_getState(model, self._simulation(i), row, INTEGRATION)
        return values

    @physics_state.setter
    def physics_state(self, physics: ArrayLike) -> None:
        model = self._physics("physics_state").model
        values, size = np.array(physics, dtype=np.float64), mujoco.mj_stateSize(model, INTEGRATION)
        if values.ndim != 2 or values.shape[1] != size or not np.isfinite(values).all():
            raise EbmtrajError(f"{self.env_id}: a physics state is finite and of shape (batch, {size})")
        self._resize(len(values))
        for i, row in enumerate(values):
            mujoco.mj_setState(model, self._begun(i), row, INTEGRATION)
            self._settle(i)

    def _physics(self, what: str) -> JointStates:
        if self._joints is None:
            raise EbmtrajError(f"{self.env_id}: {what} needs physical states; make it with state physics")
        return self._joints

    def _resize(self, batch: int) -> None:
        while len(self._envs) < batch:
            self._envs.append(self._make())
        self._observations = np.zeros((batch, self._observations.shape[1]), dtype=np.float32)
        self._states = np.empty((batch, self._states.shape[1]), dtype=np.float32)
        self._terminated = np.zeros(batch, dtype=np.bool_)

    def _note(self, i: int, observation: Any) -> None:
        self._observations[i] = np.ravel(observation)
        self._states[i] = self._joints.read(self._simulation(i)) if self._joints else self._observations[i]

    def _simulation(self, i: int) -> mujoco.MjData:
        return self._envs[i].unwrapped.data  # type: ignore[attr-defined]

    def _begun(self, i: int) -> mujoco.MjData:
        """The simulation of environment i, which Gymnasium lets step only after a reset."""
        self._guarded("reset", self._envs[i].reset, seed=0)
        return self._simulation(i)

    def _settle(self, i: int) -> None:
        """What follows from positions and velocities that were set: contacts, places of bodies, state and observation."""
        assert self._joints is not None
        data = self._simulation(i)
        warm = data.qacc_warmstart.copy()
        mujoco.mj_forward(self._envs[i].unwrapped.model, data)  # type: ignore[attr-defined]
        data.qacc_warmstart[:] = warm  # of what was set, so that the next step is the same
        self._states[i] = self._joints.read(data)
        observe = getattr(self._envs[i].unwrapped, "_get_obs", None)  # the name that Gymnasium's own robots have for it
        seen = np.ravel(observe()) if observe else np.full(1, np.nan)
        # A policy must not act on another state's observation, and one that wrappers make is not known before a step.
        self._observations[i] = seen if len(seen) == self._observations.shape[1] else np.nan

    def attributes(self) -> dict[str, Any]:
        """JSON values that say how these data were made."""
        values: dict[str, Any] = {
            "env_id": self.env_id,
            "env_kwargs": self.env_kwargs,
            "control_timestep": self.control_timestep,
            "gymnasium_version": gymnasium.__version__,
        }
        model = getattr(self._envs[0].unwrapped, "model", None)
        if isinstance(model, mujoco.MjModel):
            values |= {"mujoco_version": mujoco.__version__, "model_hash": hand_cube.model_hash(model)}
        if self._joints or self._typed:
            values["state"] = "physics"  # observations say nothing, as before there was a choice
        return values

    def close(self) -> None:
        """Close every environment."""
        for env in self._envs:
            env.close()
        self._envs = []


def _box_field(name: str, box: gymnasium.spaces.Box) -> Field:
    """A plain field for a flattened Box; limits are given only where all are finite."""
    low, high = (tuple(float(x) for x in np.ravel(bound)) for bound in (box.low, box.high))
    finite = bool(np.isfinite(low).all() and np.isfinite(high).all())
    return Field(name, len(low), low=low if finite else None, high=high if finite else None)
