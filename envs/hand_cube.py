"""The Shadow hand turning a cube: the MuJoCo model, its numbers, and the single Gymnasium environment.

The model files ship inside the `gymnasium-robotics` package (Plappert et al. 2018, "Multi-Goal Reinforcement Learning");
they are found on disk and edited here, and the package itself is never imported. `ebmtraj.envs.batch` steps many of these
at once to the same bits.
"""

from __future__ import annotations

import hashlib
import importlib.util
import math
from functools import lru_cache
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
from numpy.typing import ArrayLike, NDArray

from ebmtraj.envs.physics import mujoco
from ebmtraj.errors import EbmtrajError
from ebmtraj.fields import Coupling, Field

TIMESTEP = 0.002  # seconds; 8 ms gives NaN
SUBSTEPS = 20  # physics steps a control step
ARENA_BYTES = 1 << 24  # MuJoCo's scratch memory, an environment or a thread; the default is about the same
N_JOINTS = 24
STATE_SIZE = 31  # joints, cube position, cube quaternion
ACTION_SIZE = 20

# A cube on the hand has its centre between 0.12 and 0.21 m; below 0.10 m it is on its way to the floor, where its centre
# rests at 0.025 m. Hardly any state of a random rollout lies between 0.04 and 0.10 m.
DROP_HEIGHT = 0.10

CUBE_START = np.array([1.0, 0.87, 0.20])  # metres; a little above the flat palm
CUBE_START_SD = 0.005  # metres, per axis
JOINT_START_WIDTH = 0.1  # rad; each joint starts this close to zero, within its limits
HOLD_SD = 0.3  # spread of the control that is held while the start settles
SETTLE_STEPS = 10  # control steps
MAX_START_TRIES = 100  # a start whose cube falls off while settling is drawn again

PHYSICS_STATE = mujoco.mjtState.mjSTATE_FULLPHYSICS
_QPOS = slice(1, 1 + STATE_SIZE)  # in the full physics state: time, qpos, qvel


def model_path() -> Path:
    """Where `manipulate_block.xml` lies on this machine; raises `EbmtrajError` where it is missing."""
    spec = importlib.util.find_spec("gymnasium_robotics")
    if spec is None or not spec.submodule_search_locations:
        raise EbmtrajError(
            "the package gymnasium-robotics, which carries the Shadow hand's model files, is not installed; "
            "run `pip install gymnasium-robotics`"
        )
    path = Path(next(iter(spec.submodule_search_locations)), "envs", "assets", "hand", "manipulate_block.xml")
    if not path.is_file():
        raise EbmtrajError(
            f"{path} is missing; reinstall the hand's model files with `pip install --force-reinstall gymnasium-robotics`"
        )
    return path


def build_model(timestep: float = TIMESTEP, visual: bool = False) -> mujoco.MjModel:
    """Compile the hand and cube: nq 31, nv 30, nu 20, pyramidal cones.

    `timestep` is in seconds. With `visual` the model keeps the meshes and textures that the renderer shows; they take no
    part in the physics. Raises `EbmtrajError` where the model files are missing or broken.
    """
    path = model_path()
    try:
        spec = mujoco.MjSpec.from_file(str(path))
    except ValueError as error:
        raise EbmtrajError(_unfit(path, error)) from error
    _delete(spec, spec.body("target"))
    _delete(spec, *spec.sensors)  # not part of the state, and they cost time
    hidden = {"object_hidden", "robot0:V_thbase", "robot0:V_thhub"}  # inner cube and two 1 mm boxes
    _delete(spec, *[geom for geom in spec.geoms if geom.name in hidden or (not visual and geom.group == 1)])
    if not visual:
        for geom in spec.geoms:
            geom.material = ""
        used = {geom.meshname for geom in spec.geoms}
        _delete(spec, *spec.materials, *spec.textures)
        _delete(spec, *[mesh for mesh in spec.meshes if mesh.name not in used])
    spec.option.timestep = timestep
    spec.option.cone = mujoco.mjtCone.mjCONE_PYRAMIDAL
    spec.njmax = spec.nconmax = -1  # the file's limits on contacts come from a MuJoCo that could not grow its memory
    spec.memory = ARENA_BYTES
    try:
        model = spec.compile()
    except ValueError as error:
        raise EbmtrajError(_unfit(path, error)) from error
    if (model.nq, model.nv, model.nu, model.na) != (STATE_SIZE, 30, ACTION_SIZE, 0):
        raise EbmtrajError(
            f"{path} is not the hand that ebmtraj knows: nq {model.nq}, nv {model.nv}, nu {model.nu}; "
            "run `pip install --upgrade gymnasium-robotics`"
        )
    return model


def _unfit(path: Path, error: ValueError) -> str:
    # Files before gymnasium-robotics 1.4.2 have an attribute that MuJoCo 4 no longer knows.
    reason = str(error).strip().splitlines()[0]
    return (
        f"{path} does not fit MuJoCo {mujoco.__version__} ({reason}); "
        "run `pip install --upgrade --force-reinstall gymnasium-robotics`"
    )


def _delete(spec: mujoco.MjSpec, *elements: Any) -> None:
    for element in elements:
        if hasattr(spec, "delete"):
            spec.delete(element)
        elif hasattr(element, "delete"):  # MuJoCo 3.3.0
            element.delete()
        else:
            spec.detach_body(element)


def model_hash(model: mujoco.MjModel) -> str:
    """The sha256 (hex) of everything that the physics depends on: every array of the compiled model, and its options."""
    digest = hashlib.sha256()
    for source in (model, model.opt):
        for name in sorted(dir(source)):
            if name.startswith(("_", "tex_", "mat_", "vis", "light_", "cam_", "signature")) or "paths" in name:
                continue
            value = getattr(source, name)
            if isinstance(value, np.ndarray):
                digest.update(f"{name}{value.dtype}{value.shape}".encode() + np.ascontiguousarray(value).tobytes())
            elif isinstance(value, (int, float)):
                digest.update(f"{name}={value!r}".encode())
            elif isinstance(value, bytes):
                digest.update(name.encode() + value)
    return digest.hexdigest()


@lru_cache(maxsize=1)
def state_fields() -> tuple[Field, ...]:
    """Joint angles (24, rad), cube position (3, m) and cube quaternion (w, x, y, z)."""
    model = build_model()
    low, high = model.jnt_range[:N_JOINTS].T
    joints = Field(
        "joint_angles",
        N_JOINTS,
        "angle",
        "rad",
        low=tuple(low.tolist()),
        high=tuple(high.tolist()),
        entries=tuple(model.joint(i).name.removeprefix("robot0:") for i in range(N_JOINTS)),
        couplings=_couplings(model),
    )
    position = Field("cube_position", 3, "position", "m", entries=("x", "y", "z"))
    orientation = Field("cube_quaternion", 4, "quaternion", entries=("w", "x", "y", "z"), symmetry="cube")
    return (joints, position, orientation)


def _couplings(model: mujoco.MjModel) -> tuple[Coupling, ...]:
    """The limited tendons that hold the end joints of the fingers to the middle ones, within some play."""
    found = []
    for i in range(model.ntendon):
        first, count = int(model.tendon_adr[i]), int(model.tendon_num[i])
        weights = model.wrap_prm[first : first + count]
        if count == 2 and model.tendon_limited[i] and weights[0] > 0 > weights[1]:
            joints = model.wrap_objid[first : first + count]
            entries = tuple(int(model.jnt_qposadr[joint]) for joint in joints)
            scale = tuple(float(weight / weights[0]) for weight in weights)  # of the first joint's own radians
            found.append(Coupling(model.tendon(i).name.removeprefix("robot0:"), entries, scale))
    return tuple(found)


@lru_cache(maxsize=1)
def action_fields() -> tuple[Field, ...]:
    """Joint targets (20): -1 and 1 are the ends of each actuator's range."""
    model = build_model()
    names = tuple(model.actuator(i).name.removeprefix("robot0:A_") for i in range(ACTION_SIZE))
    ones = (1.0,) * ACTION_SIZE
    return (Field("joint_targets", ACTION_SIZE, low=tuple(-one for one in ones), high=ones, entries=names),)


def checked_actions(actions: ArrayLike, shape: tuple[int, ...]) -> NDArray[np.float32]:
    """The actions as float32 of this `shape`, such as `(B, 20)`, which is what a store keeps.

    Raises `EbmtrajError` on a wrong shape, NaN or values outside [-1, 1].
    """
    try:
        values = np.asarray(actions, dtype=np.float32)
    except (TypeError, ValueError) as error:
        raise EbmtrajError(f"hand-cube: actions must be numbers of shape {shape}") from error
    if values.shape != shape:
        raise EbmtrajError(f"hand-cube: actions have shape {values.shape}; give {shape}")
    if not (np.abs(values) <= 1.0).all():  # NaN fails this too
        fault = "NaN" if np.isnan(values).any() else f"{values.flat[np.abs(values).argmax()]:g}"
        raise EbmtrajError(f"hand-cube: actions must lie in [-1, 1]; found {fault}: clip them first")
    return values


def controls(model: mujoco.MjModel, actions: NDArray[np.float32]) -> NDArray[np.float64]:
    """Joint targets in radians, of the shape of the actions (..., 20): [-1, 1] mapped linearly to each actuator's range."""
    low, high = model.actuator_ctrlrange.T
    return low + 0.5 * (actions.astype(np.float64) + 1.0) * (high - low)


def states_of(physics: NDArray[np.float64]) -> NDArray[np.float32]:
    """States (..., 31) of full physics states (..., 62).

    MuJoCo integrates the quaternion without ever changing its sign, so the sign is continuous in time.
    """
    return physics[..., _QPOS].astype(np.float32)


def dropped(physics: NDArray[np.float64]) -> NDArray[np.bool_]:
    """Whether the cube has fallen off the hand, of shape (...) for full physics states (..., 62)."""
    return fallen(physics[..., _QPOS])


def fallen(states: NDArray[Any]) -> NDArray[np.bool_]:
    """Whether the cube has fallen off the hand, of shape (...) for states (..., 31)."""
    return states[..., N_JOINTS + 2] < DROP_HEIGHT


def physics_of(states: ArrayLike) -> NDArray[np.float64]:
    """Full physics states (B, 62) at rest, of states (B, 31); quaternions are normalised.

    Raises `EbmtrajError` on a wrong shape, NaN or a quaternion of length zero.
    """
    values = np.asarray(states, dtype=np.float64)
    if values.ndim != 2 or values.shape[1] != STATE_SIZE:
        raise EbmtrajError(f"hand-cube: states have shape {values.shape}; give (batch, {STATE_SIZE})")
    length = np.linalg.norm(values[:, -4:], axis=1, keepdims=True)
    if not np.isfinite(values).all() or not (length > 1e-6).all():
        raise EbmtrajError("hand-cube: states hold NaN, infinity or a quaternion of length zero; check where they come from")
    physics = np.zeros((len(values), 1 + STATE_SIZE + 30))
    physics[:, _QPOS] = values
    physics[:, _QPOS.stop - 4 : _QPOS.stop] /= length
    return physics


def draw_start(model: mujoco.MjModel, generator: np.random.Generator) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """One random start before it settles: full physics state (62,) at rest, and the control (20,) to hold meanwhile.

    Flat hand with joint noise, cube above the palm with position noise and uniform yaw, random quaternion sign.
    """
    low, high = model.jnt_range[:N_JOINTS].T
    joints = np.clip(generator.uniform(-JOINT_START_WIDTH, JOINT_START_WIDTH, N_JOINTS), low, high)
    position = CUBE_START + CUBE_START_SD * generator.standard_normal(3)
    yaw = generator.uniform(-math.pi, math.pi)
    sign = 1.0 if generator.random() < 0.5 else -1.0  # q and -q are the same pose: a model must see both
    hold = np.clip(HOLD_SD * generator.standard_normal(ACTION_SIZE), -1.0, 1.0).astype(np.float32)
    physics = np.zeros(1 + STATE_SIZE + 30)
    quaternion = sign * np.array([math.cos(yaw / 2), 0.0, 0.0, math.sin(yaw / 2)])
    physics[_QPOS] = np.concatenate([joints, position, quaternion])
    return physics, controls(model, hold)


class HandCubeEnv(gymnasium.Env[NDArray[np.float32], NDArray[np.float32]]):
    """One Shadow hand with a cube, 40 ms a step, registered as `ebmtraj/HandCube-v0`.

    Observations are states (31,) in float32: 24 joint angles (rad), cube position (m), cube quaternion (w, x, y, z) with
    a sign that is continuous in time. Actions (20,) in [-1, 1] are joint targets. The reward is always 0: this
    environment makes data, and progress on a task is measured where the task is defined. An episode terminates when the
    cube has dropped; it has no time limit. `info` holds `cube_height` (m) and `dropped`.
    """

    metadata: dict[str, Any] = {"render_modes": ["rgb_array"], "render_fps": 25}  # noqa: RUF012 (Gymnasium's own form)

    def __init__(self, render_mode: str | None = None, width: int = 256, height: int = 256) -> None:
        """Pictures of `width` x `height` pixels; raises `EbmtrajError` for an unknown `render_mode`."""
        if render_mode not in (None, "rgb_array"):
            raise EbmtrajError(f"hand-cube: unknown render_mode {render_mode!r}; use 'rgb_array' or None")
        self.render_mode = render_mode
        self.model = build_model()
        self.data = mujoco.MjData(self.model)
        self._frame_size = (width, height)
        self._renderer: Any = None
        # Joints may pass their limits a little (soft constraints) and a dropped cube rolls away, hence the wide bounds.
        high = np.concatenate([np.full(N_JOINTS, np.pi), np.full(3, 10.0), np.ones(4)]).astype(np.float32)
        self.observation_space = gymnasium.spaces.Box(-high, high, dtype=np.float32)
        self.action_space = gymnasium.spaces.Box(-1.0, 1.0, (ACTION_SIZE,), dtype=np.float32)

    @property
    def physics_state(self) -> NDArray[np.float64]:
        """The full physics state (62,): time, positions, velocities."""
        state = np.empty(mujoco.mj_stateSize(self.model, PHYSICS_STATE))
        mujoco.mj_getState(self.model, self.data, state, PHYSICS_STATE)
        return state

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[NDArray[np.float32], dict[str, Any]]:
        """Draw and settle a new start; see `draw_start`.

        Returns the state `(31,)`, float32, and what `step` returns beside it.
        """
        super().reset(seed=seed, options=options)
        for _ in range(MAX_START_TRIES):
            physics, control = draw_start(self.model, self.np_random)
            mujoco.mj_resetData(self.model, self.data)
            mujoco.mj_setState(self.model, self.data, physics, PHYSICS_STATE)
            for _ in range(SETTLE_STEPS):
                self._advance(control)
            if not dropped(self.physics_state):
                break
        return self._observe()

    def step(self, action: ArrayLike) -> tuple[NDArray[np.float32], float, bool, bool, dict[str, Any]]:
        """Hold the action (20,) for 40 ms; raises `EbmtrajError` on a wrong shape, NaN or values outside [-1, 1]."""
        self._advance(controls(self.model, checked_actions(action, (ACTION_SIZE,))))
        observation, info = self._observe()
        return observation, 0.0, info["dropped"], False, info

    def render(self) -> Any:
        """The current frame (height, width, 3), uint8; raises `EbmtrajError` where there is no OpenGL."""
        if self.render_mode is None:
            raise EbmtrajError("hand-cube: made without render_mode; make it with render_mode='rgb_array'")
        if self._renderer is None:
            from ebmtraj.envs.render import Renderer  # OpenGL is loaded only by those who render

            self._renderer = Renderer("hand-cube", *self._frame_size)
        return self._renderer.frame(self._observe()[0])

    def close(self) -> None:
        """Free the renderer."""
        if self._renderer is not None:
            self._renderer.close()
            self._renderer = None

    def _advance(self, control: NDArray[np.float64]) -> None:
        self.data.ctrl[:] = control
        self.data.qacc_warmstart[:] = 0.0  # as mujoco.rollout does at each call: the next state depends on this state alone
        mujoco.mj_step(self.model, self.data, SUBSTEPS)

    def _observe(self) -> tuple[NDArray[np.float32], dict[str, Any]]:
        physics = self.physics_state
        height = float(physics[_QPOS.start + N_JOINTS + 2])
        return states_of(physics), {"cube_height": height, "dropped": bool(dropped(physics))}
