"""Stepping many environments at once: the contract that collection and execution use, and the hand with its cube."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Literal, Protocol, get_args

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ebmtraj.envs import hand_cube
from ebmtraj.envs.physics import mujoco
from ebmtraj.errors import EbmtrajError
from ebmtraj.fields import Field

StateChoice = Literal["auto", "physics", "observation"]
STATE_CHOICES: tuple[StateChoice, ...] = get_args(StateChoice)
INTEGRATION = mujoco.mjtState.mjSTATE_INTEGRATION  # all that the next step depends on, the solver's warm start included


class BatchEnv(Protocol):
    """B environments that step together; each episode depends on its own generator and actions alone.

    A row whose episode has terminated stays terminated until `reset`; its states mean nothing from then on.
    """

    env_id: str
    env_kwargs: dict[str, Any]
    state_fields: tuple[Field, ...]
    action_fields: tuple[Field, ...]
    control_timestep: float  # seconds a step

    @property
    def batch_size(self) -> int:
        """How many environments the last `reset` started; 0 before the first."""
        ...

    @property
    def observations(self) -> NDArray[np.float32]:
        """What a policy is shown in the current states (B, O): the environment's own observations."""
        ...

    @property
    def states(self) -> NDArray[np.float32]:
        """The current states (B, S)."""
        ...

    def reset(self, generators: Sequence[np.random.Generator]) -> NDArray[np.float32]:
        """Start one episode a generator and return the states (B, S)."""
        ...

    def set_state(self, states: ArrayLike) -> None:
        """Start from states (B, S) instead, at rest where a state says nothing of velocities."""
        ...

    def step(self, actions: ArrayLike) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
        """Apply actions (B, A); return the states (B, S) after one control step, and which episodes have terminated (B,)."""
        ...

    def attributes(self) -> dict[str, Any]:
        """JSON values that say how these data were made."""
        ...

    def close(self) -> None:
        """Free threads and environments."""
        ...


class HandCubeBatch:
    """The Shadow hand and cube, B at a time through `mujoco.rollout` on `threads` threads.

    States are bit-identical to those of `HandCubeEnv`, for any number of threads, batch size or order. Raises
    `EbmtrajError` for fewer than one thread.
    """

    env_id = "hand-cube"

    def __init__(self, threads: int = 1) -> None:
        if threads < 1:
            raise EbmtrajError(f"hand-cube: threads is {threads}; give 1 or more")
        self.model = hand_cube.build_model()
        self.env_kwargs: dict[str, Any] = {}
        self.state_fields = hand_cube.state_fields()
        self.action_fields = hand_cube.action_fields()
        self.control_timestep = hand_cube.TIMESTEP * hand_cube.SUBSTEPS
        self._stepper = _Stepper(self.model, threads)
        self._physics: NDArray[np.float64] = np.empty((0, self._stepper.size))
        self._terminated = np.empty(0, dtype=np.bool_)

    @property
    def batch_size(self) -> int:
        """How many environments the last `reset` or `set_state` started; 0 before the first."""
        return len(self._physics)

    @property
    def physics_state(self) -> NDArray[np.float64]:
        """Full physics states (B, 62): time (s), positions (m, rad), velocities. Setting it starts from any such states.

        Setting raises `EbmtrajError` for another shape, and for a number that is not finite.
        """
        return self._physics.copy()

    @physics_state.setter
    def physics_state(self, physics: ArrayLike) -> None:
        values = np.array(physics, dtype=np.float64)
        if values.ndim != 2 or values.shape[1] != self._stepper.size or not np.isfinite(values).all():
            raise EbmtrajError(f"hand-cube: a physics state is finite and of shape (batch, {self._stepper.size})")
        self._physics = values
        self._terminated = hand_cube.dropped(values)

    @property
    def states(self) -> NDArray[np.float32]:
        """The current states (B, S)."""
        return hand_cube.states_of(self._physics)

    @property
    def observations(self) -> NDArray[np.float32]:
        """What a policy is shown (B, S): the states."""
        return self.states

    def set_state(self, states: ArrayLike) -> None:
        """Start from states (B, S) at rest; raises `EbmtrajError` on a wrong shape, NaN or a zero quaternion."""
        self.physics_state = hand_cube.physics_of(states)

    def reset(self, generators: Sequence[np.random.Generator]) -> NDArray[np.float32]:
        """Draw one start a generator, let it settle, and return the states (B, S)."""
        physics = np.empty((len(generators), self._stepper.size))
        todo = np.arange(len(generators))  # rows without a start yet
        for _ in range(hand_cube.MAX_START_TRIES):
            starts = [hand_cube.draw_start(self.model, generators[int(i)]) for i in todo]
            settled = np.array([start for start, _ in starts]).reshape(len(todo), self._stepper.size)
            hold = np.array([control for _, control in starts]).reshape(len(todo), hand_cube.ACTION_SIZE)
            for _ in range(hand_cube.SETTLE_STEPS):
                settled = self._stepper(settled, hold)
            physics[todo] = settled
            todo = todo[hand_cube.dropped(settled)]
            if not len(todo):
                break
        self.physics_state = physics
        return self.states

    def step(self, actions: ArrayLike) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
        """Hold actions (B, 20) in [-1, 1] for 40 ms; return states (B, S) and which cubes have dropped (B,).

        Raises `EbmtrajError` on a wrong shape, NaN, values outside [-1, 1], or a simulation that has diverged.
        """
        actions = hand_cube.checked_actions(actions, (self.batch_size, hand_cube.ACTION_SIZE))
        self._physics = self._stepper(self._physics, hand_cube.controls(self.model, actions))
        self._terminated |= hand_cube.dropped(self._physics)
        return self.states, self._terminated.copy()

    def terminates(self, states: NDArray[Any]) -> NDArray[np.bool_]:
        """Whether an episode ends in states (..., S): (...)."""
        return hand_cube.fallen(states)

    def attributes(self) -> dict[str, Any]:
        """JSON values that say how these data were made."""
        return {
            "env_id": self.env_id,
            "env_kwargs": self.env_kwargs,
            "control_timestep": self.control_timestep,
            "physics_timestep": hand_cube.TIMESTEP,
            "substeps": hand_cube.SUBSTEPS,
            "drop_height": hand_cube.DROP_HEIGHT,
            "quaternion_convention": "w, x, y, z; sign continuous in time, random at the start of each episode",
            "mujoco_version": mujoco.__version__,
            "model_hash": hand_cube.model_hash(self.model),
        }

    def open_loop(self, start: NDArray[np.float64], actions: NDArray[np.float32]) -> Callable[[], NDArray[np.float64]]:
        """What `step` can't be faster than: a call that has MuJoCo simulate actions (T, B, 20) given beforehand.

        `start` (B, 62) are physics states; the call returns the last ones and leaves this batch as it is. Same threads.
        """
        controls = hand_cube.controls(self.model, actions).transpose(1, 0, 2)
        held = np.ascontiguousarray(np.repeat(controls, hand_cube.SUBSTEPS, axis=1))
        return self._stepper.open_loop(start, held)

    def penetration(self, states: ArrayLike) -> NDArray[np.float64]:
        """How deep the deepest contact of each state (B, S) overlaps, (B,) in metres; 0 where nothing touches.

        Of all contacts: fingers with the cube, and the hand with itself. MuJoCo's contacts are soft, so real states overlap
        a little too. Raises `EbmtrajError` as `set_state`.
        """
        physics = hand_cube.physics_of(states)
        return self._stepper.each(physics, _deepest)

    def close(self) -> None:
        """Stop the threads."""
        self._stepper.close()


def _deepest(model: mujoco.MjModel, data: mujoco.MjData) -> float:
    """Depth of the deepest contact in metres, where the positions of `data` have just been set."""
    mujoco.mj_kinematics(model, data)
    mujoco.mj_collision(model, data)
    return max(0.0, -float(data.contact.dist.min())) if data.ncon else 0.0


class _Stepper:
    """One control step of many simulations: (physics (B, P), controls (B, U)) -> physics (B, P), with its buffers kept."""

    def __init__(self, model: mujoco.MjModel, threads: int) -> None:
        self.model = model
        self.size = mujoco.mj_stateSize(model, hand_cube.PHYSICS_STATE)
        self._rollout = mujoco.rollout.Rollout(nthread=threads if threads > 1 else 0)  # 0 runs on the calling thread
        self._data = [mujoco.MjData(model) for _ in range(threads)]
        self._allocate(0)

    def _allocate(self, batch: int) -> None:
        self._models = [self.model] * batch
        self._controls = np.empty((batch, hand_cube.SUBSTEPS, self.model.nu))
        self._history = np.empty((batch, hand_cube.SUBSTEPS, self.size))
        # Small chunks keep all threads busy to the end of the step: simulations differ in cost by their contacts.
        self._chunk = max(1, batch // (len(self._data) * 32))

    def __call__(self, physics: NDArray[np.float64], controls: NDArray[np.float64]) -> NDArray[np.float64]:
        if len(physics) != len(self._models):
            self._allocate(len(physics))
        if not len(physics):
            return physics
        self._controls[:] = controls[:, None]  # held over the substeps
        self._rollout.rollout(
            self._models,
            self._data,
            np.ascontiguousarray(physics),
            self._controls,
            nstep=hand_cube.SUBSTEPS,
            state=self._history,
            chunk_size=self._chunk,
            skip_checks=True,  # shapes are right by construction, and the checks copy
        )
        last = self._history[:, -1].copy()
        if not np.isfinite(last).all():
            row = int(np.flatnonzero(~np.isfinite(last).all(axis=1))[0])
            raise EbmtrajError(
                f"hand-cube: the simulation of row {row} diverged; start it from a state without deep overlaps"
            )
        return last

    def open_loop(self, start: NDArray[np.float64], controls: NDArray[np.float64]) -> Callable[[], NDArray[np.float64]]:
        """Many substeps in one call, with all memory at hand: (physics (B, P), controls (B, K, U)) -> physics (B, P)."""
        models, history = [self.model] * len(start), np.zeros((*controls.shape[:2], self.size))

        def run() -> NDArray[np.float64]:
            # Whole episodes are long: chunks of more than one would leave threads idle at the end.
            self._rollout.rollout(
                models,
                self._data,
                start,
                controls,
                nstep=controls.shape[1],
                state=history,
                chunk_size=1,
                skip_checks=True,
            )
            return history[:, -1]

        return run

    def each(
        self, physics: NDArray[np.float64], measure: Callable[[mujoco.MjModel, mujoco.MjData], float]
    ) -> NDArray[np.float64]:
        """A number of each physics state (B, P), one after the other within a thread: (B,)."""
        found = np.empty(len(physics))

        def work(thread: int) -> None:
            data = self._data[thread]
            for i in range(thread, len(physics), len(self._data)):
                mujoco.mj_setState(self.model, data, physics[i], hand_cube.PHYSICS_STATE)
                found[i] = measure(self.model, data)

        with ThreadPoolExecutor(len(self._data)) as pool:
            list(pool.map(work, range(len(self._data))))  # raises what a thread raises
        return found

    def close(self) -> None:
        self._rollout.close()
