"""Pictures of predicted states: positions are set directly, so what a model says is what is shown; no physics is run."""

from __future__ import annotations

import atexit
import itertools
import os
import sys
import warnings
import weakref
from collections.abc import Callable
from types import TracebackType
from typing import Any, NamedTuple, Self, TypeAlias

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ebmtraj.envs import hand_cube
from ebmtraj.envs.physics import mujoco
from ebmtraj.errors import EbmtrajError

RENDERABLE = ("hand-cube", "ebmtraj/HandCube-v0")

CAMERA_LOOKAT = (1.0, 0.9, 0.16)  # metres
CAMERA_DISTANCE = 0.30
CAMERA_AZIMUTH = 60.0  # degrees
CAMERA_ELEVATION = -50.0
GHOST_COLOUR, GHOST_OPACITY = (0.20, 0.50, 0.95), 0.3  # what is planned
RING_COLOUR, RING_WIDTH, RING_PIECES = (0.84, 0.37, 0.0), 0.04, 28  # width as a share of the radius
RING_ARC, RING_HEAD, RING_HEAD_LENGTH = (
    4.4,
    0.3,
    0.5,
)  # rad that it goes round, and where its head is, from the camera's side
GOAL_PLACE = (0.078, 0.075)  # metres to the right of the picture's middle, and up
CUBE_RING = 0.047  # metres: just around the cube's corners
FINGER_PARTS = ("knuckle", "proximal", "middle", "distal", "metacarpal", "thbase")
BACKGROUND = (244, 244, 240)  # near white, so that frames sit well on a page
HAND_COLOUR = (0.70, 0.74, 0.80)

_MEND = "on Debian or Ubuntu run `apt install libegl1 libgl1-mesa-dri`, or `apt install libosmesa6` and set MUJOCO_GL=osmesa"


Colour: TypeAlias = tuple[float, float, float, float]  # red, green, blue and opacity
OWN: Colour = (-1.0, -1.0, -1.0, 1.0)  # the geom's own colours


class Overlay(NamedTuple):
    """What a picture shows beside the state; each is None where there is nothing of the kind."""

    plan: ArrayLike | None = None  # (H, S) states expected later, of which a robot's last one is a translucent ghost
    axis: ArrayLike | None = None  # (3,) in the world, that a body is to be turned about: a ring with an arrow
    goal: ArrayLike | None = None  # (4,) an orientation that a body is to come to, shown beside the robot
    past: ArrayLike | None = None  # (P, S) states so far, which a plane picture shows as a line


def can_render(env_id: str) -> bool:
    """Whether states of this environment alone determine a picture; so far only the hand and cube."""
    return env_id in RENDERABLE


def gl_backends() -> tuple[str, ...]:
    """The OpenGL backends to try, in order: MUJOCO_GL where it is set; else on Linux EGL, then a window on the display."""
    chosen = os.environ.get("MUJOCO_GL", "").lower().strip()
    if chosen:
        return (chosen,)
    if sys.platform.startswith("linux"):
        return ("egl", "glfw") if os.environ.get("DISPLAY") else ("egl",)
    return ("default",)


def _gl_context(backend: str, width: int, height: int) -> Any:
    # The backend is chosen here and not by setting MUJOCO_GL: MuJoCo reads that only when it is first imported.
    if backend == "egl":
        from mujoco.egl import GLContext
    elif backend == "osmesa":
        from mujoco.osmesa import GLContext
    elif backend in ("glfw", "default"):
        from mujoco import GLContext
    else:
        raise EbmtrajError("not a backend; set MUJOCO_GL to egl, osmesa or glfw, or leave it unset")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # GLFW warns of what its failure says again
        return GLContext(width, height)


class SceneRenderer:
    """RGB frames of states of a compiled MuJoCo model, `width` x `height` pixels; close it, or use it in a `with` block.

    A subclass says in `pose` how a state sets the model's joints. Raises `EbmtrajError` for a bad size and without OpenGL.
    """

    def __init__(self, model: mujoco.MjModel, camera: mujoco.MjvCamera, width: int, height: int, samples: int = 0) -> None:
        self._context: Any = None
        self._gl: Any = None
        check_size(width, height)
        self.width, self.height = width, height
        model.vis.global_.offwidth, model.vis.global_.offheight = width, height
        model.vis.quality.offsamples = samples
        self._model, self._camera = model, camera
        self._data, self._ghost = mujoco.MjData(model), mujoco.MjData(model)
        self._scene = mujoco.MjvScene(model, maxgeom=2000)
        # Shadows and reflections cost most of a frame on a CPU.
        for flag in (mujoco.mjtRndFlag.mjRND_SHADOW, mujoco.mjtRndFlag.mjRND_REFLECTION):
            self._scene.flags[flag] = 0
        self._options = mujoco.MjvOption()
        reasons = []
        for backend in gl_backends():
            try:
                self._gl = _gl_context(backend, width, height)
                self._gl.make_current()
                self._context = mujoco.MjrContext(self._model, mujoco.mjtFontScale.mjFONTSCALE_100)
                mujoco.mjr_setBuffer(mujoco.mjtFramebuffer.mjFB_OFFSCREEN, self._context)
                _close_at_exit(self)
                return
            except Exception as error:  # each backend has its own kinds of failure
                self.close()
                text = str(error).strip() or type(error).__name__
                reasons.append(f"{backend}: {text.splitlines()[0]}")
        raise EbmtrajError(f"cannot start OpenGL to draw frames ({'; '.join(reasons)}): {_MEND}")

    def pose(self, data: mujoco.MjData, state: ArrayLike) -> None:
        """Set a state (S,) and where it puts the bodies; raises `EbmtrajError` on a wrong shape or NaN."""
        raise NotImplementedError

    def ghostly(self, geom: int) -> Colour | None:
        """The colour of a geom where it is planned to be; None leaves it out."""
        return (*GHOST_COLOUR, GHOST_OPACITY)

    def turning_centre(self) -> tuple[NDArray[np.float64], float] | None:
        """Where a body that a task turns now is, and how large a ring around it is (m)."""
        return None

    def add_goal(self, orientation: NDArray[np.float64]) -> None:
        """Show how a body that a task turns is to stand."""

    def frame(self, state: ArrayLike, overlay: Overlay = Overlay()) -> NDArray[np.uint8]:
        """One picture (height, width, 3) of a state (S,).

        Raises `EbmtrajError` on a wrong shape, NaN or a closed renderer.
        """
        if self._context is None:
            raise EbmtrajError("renderer: it is closed; make a new one")
        self.pose(self._data, state)
        mujoco.mj_camlight(self._model, self._data)
        self._gl.make_current()
        every = mujoco.mjtCatBit.mjCAT_ALL
        mujoco.mjv_updateScene(self._model, self._data, self._options, None, self._camera, every, self._scene)
        if overlay.plan is not None:
            self.add(np.asarray(overlay.plan)[-1], self.ghostly)
        if overlay.goal is not None:
            self.add_goal(np.asarray(overlay.goal, dtype=np.float64))
        if overlay.axis is not None:
            self._add_ring(np.asarray(overlay.axis, dtype=np.float64))
        pixels = np.empty((self.height, self.width, 3), dtype=np.uint8)
        viewport = mujoco.MjrRect(0, 0, self.width, self.height)
        mujoco.mjr_render(viewport, self._scene, self._context)
        mujoco.mjr_readPixels(pixels, None, viewport, self._context)
        return pixels[::-1].copy()  # OpenGL counts rows from the bottom

    def frames(self, states: ArrayLike) -> NDArray[np.uint8]:
        """Pictures (T, height, width, 3) of states (T, S)."""
        return np.stack([self.frame(state) for state in np.asarray(states)])

    def add(self, state: ArrayLike, colour: Callable[[int], Colour | None]) -> None:
        """Add the bodies that move as they are in another state, each geom in this colour, or left out."""
        self.pose(self._ghost, state)
        first, moving = self._scene.ngeom, mujoco.mjtCatBit.mjCAT_DYNAMIC
        mujoco.mjv_addGeoms(self._model, self._ghost, self._options, mujoco.MjvPerturb(), moving, self._scene)
        for place in range(first, self._scene.ngeom):
            geom = self._scene.geoms[place]
            found = colour(geom.objid) if geom.objtype == mujoco.mjtObj.mjOBJ_GEOM else None
            geom.rgba[3] = found[3] if found else 0.0
            if found and found[0] >= 0:
                geom.matid = -1
                geom.rgba[:3] = found[:3]

    def _add_ring(self, axis: NDArray[np.float64]) -> None:
        """Most of a circle in the plane that turns, thin capsules with an arrow's head at its end."""
        found = self.turning_centre()
        if found is None:
            return
        centre, radius = found
        axis = axis / np.linalg.norm(axis)
        towards = -np.array(self._scene.camera[0].forward, dtype=np.float64)  # the head is where it is seen best
        towards += 0.2 * np.eye(3)[np.abs(axis).argmin()]
        side = np.cross(axis, np.cross(towards, axis))
        side /= np.linalg.norm(side)
        angles = np.linspace(-RING_ARC, 0.0, RING_PIECES + 1) + RING_HEAD
        points = centre + radius * (np.cos(angles)[:, None] * side + np.sin(angles)[:, None] * np.cross(axis, side))
        for start, end in itertools.pairwise(points):
            self._connect(start, end, RING_WIDTH * radius)
        ahead = RING_HEAD_LENGTH * np.cross(axis, points[-1] - centre)
        tips = points[-1] + np.linspace(0.0, 1.0, 9)[:, None] * ahead
        for i, (start, end) in enumerate(itertools.pairwise(tips)):  # a cone
            self._connect(start, end, (3.4 - 0.42 * i) * RING_WIDTH * radius)

    def _connect(self, start: NDArray[np.float64], end: NDArray[np.float64], width: float) -> None:
        if self._scene.ngeom >= self._scene.maxgeom:
            return
        kind = mujoco.mjtGeom.mjGEOM_CAPSULE
        geom = self._scene.geoms[self._scene.ngeom]
        colour = np.array((*RING_COLOUR, 0.9), dtype=np.float32)
        mujoco.mjv_initGeom(geom, kind, np.zeros(3), np.zeros(3), np.zeros(9), colour)
        mujoco.mjv_connector(geom, kind, width, start, end)
        geom.category = mujoco.mjtCatBit.mjCAT_DECOR
        self._scene.ngeom += 1

    def close(self) -> None:
        """Free OpenGL; safe to call twice."""
        if self._context is not None:
            self._gl.make_current()
            self._context.free()
            self._context = None
        if self._gl is not None:
            self._gl.free()
            self._gl = None

    def __del__(self) -> None:
        self.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()


class Renderer(SceneRenderer):
    """Pictures of the hand and cube; `samples` smooths edges (4 is plenty) and takes three times as long on a CPU.

    A picture takes 10 to 15 ms there without. Raises `EbmtrajError` for an environment whose states cannot be drawn, a bad
    size, and where OpenGL does not work.
    """

    def __init__(self, env_id: str = "hand-cube", width: int = 256, height: int = 256, samples: int = 0) -> None:
        self._context = self._gl = None
        if not can_render(env_id):
            raise EbmtrajError(f"{env_id}: its states cannot be drawn; only {RENDERABLE[0]} can be rendered from states")
        check_size(width, height)
        camera = mujoco.MjvCamera()
        camera.lookat[:] = CAMERA_LOOKAT
        camera.distance, camera.azimuth, camera.elevation = CAMERA_DISTANCE, CAMERA_AZIMUTH, CAMERA_ELEVATION
        model = _picture_model()
        self._cube = model.body("object").id
        self._fingers = {i for i in range(model.nbody) if model.body(i).name.endswith(FINGER_PARTS)}
        super().__init__(model, camera, width, height, samples)

    def pose(self, data: mujoco.MjData, state: ArrayLike) -> None:
        """Set a state (31,), at rest."""
        physics = hand_cube.physics_of(np.asarray(state, dtype=np.float64)[None])
        mujoco.mj_setState(self._model, data, physics[0], hand_cube.PHYSICS_STATE)
        mujoco.mj_kinematics(self._model, data)

    def ghostly(self, geom: int) -> Colour | None:
        """The cube keeps its faces; of the hand only fingers are shown, as the rest hardly moves."""
        body = int(self._model.geom_bodyid[geom])
        if body == self._cube:
            return (*OWN[:3], 0.45)
        return (*GHOST_COLOUR, GHOST_OPACITY) if body in self._fingers else None

    def turning_centre(self) -> tuple[NDArray[np.float64], float] | None:
        """The cube's."""
        return self._data.xpos[self._cube].copy(), CUBE_RING

    def add_goal(self, orientation: NDArray[np.float64]) -> None:
        """A second cube in the upper right corner, where the hand never is."""
        camera = self._scene.camera[0]
        forward, up = np.array(camera.forward, dtype=np.float64), np.array(camera.up, dtype=np.float64)
        state = np.zeros(hand_cube.STATE_SIZE)
        state[-7:-4] = np.array(CAMERA_LOOKAT) + GOAL_PLACE[0] * np.cross(forward, up) + GOAL_PLACE[1] * up
        state[-4:] = orientation
        self.add(state, lambda geom: OWN if self._model.geom_bodyid[geom] == self._cube else None)


def check_size(width: int, height: int) -> None:
    """Raise `EbmtrajError` for a picture without pixels or with far too many."""
    if not (1 <= width <= 4096 and 1 <= height <= 4096):
        raise EbmtrajError(f"renderer: size {width} x {height} pixels; give 1 to 4096 for each")


_open_renderers: weakref.WeakSet[SceneRenderer] = weakref.WeakSet()


def _close_at_exit(renderer: SceneRenderer) -> None:
    # The backend ends OpenGL in an exit handler of its own, registered when its first context is made; handlers run last
    # in, first out, so ours must be registered after it, and frees what the user has left open.
    if not _open_renderers:
        atexit.unregister(_close_all)
        atexit.register(_close_all)
    _open_renderers.add(renderer)


def _close_all() -> None:
    for renderer in list(_open_renderers):
        renderer.close()


def _picture_model() -> mujoco.MjModel:
    """The model with its meshes, lit so that the white hand keeps its shape and the lettered faces of the cube stand out."""
    model = hand_cube.build_model(visual=True)
    model.vis.headlight.ambient[:] = 0.30
    model.vis.headlight.diffuse[:] = 0.35
    model.vis.headlight.specular[:] = 0.0
    model.light_ambient[:] = 0.0
    model.light_diffuse[:] = 0.55
    model.light_specular[:] = 0.05
    model.light_dir[:] = (-0.45, -0.35, -0.82)  # from the side: fingers get a lit and a shaded half
    hand = model.material("robot0:MatViz").id
    model.mat_rgba[hand, :3] = HAND_COLOUR
    model.mat_reflectance[:] = 0.0
    sky = int(np.flatnonzero(model.tex_type == mujoco.mjtTexture.mjTEXTURE_SKYBOX)[0])
    start = int(model.tex_adr[sky])
    count = int(model.tex_width[sky]) * int(model.tex_height[sky])
    model.tex_data[start : start + 3 * count] = np.tile(np.array(BACKGROUND, dtype=np.uint8), count)
    return model
