"""What pictures and the viewer show: a compiled MuJoCo model, how states pose it, and what plans and tasks add."""

from __future__ import annotations

import abc
import itertools
from collections.abc import Callable
from typing import Any, NamedTuple, TypeAlias

import gymnasium
import numpy as np
from numpy.typing import ArrayLike, NDArray

from ebmtraj.envs import hand_cube
from ebmtraj.envs.joints import JointStates
from ebmtraj.envs.physics import mujoco

CAMERA_LOOKAT = (1.0, 0.9, 0.16)  # metres
CAMERA_DISTANCE = 0.30
CAMERA_AZIMUTH = 60.0  # degrees
CAMERA_ELEVATION = -50.0
BACKGROUND = (244, 244, 240)  # near white, so that frames sit well on a page
HAND_COLOUR = (0.70, 0.74, 0.80)
GHOST_COLOUR, GHOST_OPACITY = (0.20, 0.50, 0.95), 0.3  # what is planned
RING_COLOUR, RING_WIDTH, RING_PIECES = (0.84, 0.37, 0.0), 0.04, 28  # width as a share of the radius
RING_ARC, RING_HEAD = 4.4, 0.3  # rad that it goes round, and where its head is, from the camera's side
RING_HEAD_LENGTH = 0.5  # of the radius
GOAL_PLACE = (0.078, 0.075)  # metres to the right of the picture's middle, and up
CUBE_RING = 0.047  # metres: just around the cube's corners
FINGER_PARTS = ("knuckle", "proximal", "middle", "distal", "metacarpal", "thbase")
FROM_ABOVE = ("Reacher", "Pusher")  # Gymnasium's planar arms: a table is seen best from above

Colour: TypeAlias = tuple[float, float, float, float]  # red, green, blue and opacity
OWN: Colour = (-1.0, -1.0, -1.0, 1.0)  # the geom's own colours


class Overlay(NamedTuple):
    """What a picture shows beside the state; each is None where there is nothing of the kind."""

    plan: ArrayLike | None = None  # (H, S) states expected later, of which a robot's last one is a translucent ghost
    axis: ArrayLike | None = None  # (3,) in the world, that a body is to be turned about: a ring with an arrow
    goal: ArrayLike | None = None  # (4,) an orientation that a body is to come to, shown beside the robot
    past: ArrayLike | None = None  # (P, S) states so far, which a plane picture shows as a line


class Scenery(abc.ABC):
    """A model and camera; a subclass says in `pose` how a state sets the joints, and may give what tasks turn."""

    def __init__(self, model: mujoco.MjModel, camera: mujoco.MjvCamera) -> None:
        self.model, self.camera, self.options = model, camera, mujoco.MjvOption()
        self.data, self._later = mujoco.MjData(model), mujoco.MjData(model)

    @abc.abstractmethod
    def pose(self, data: mujoco.MjData, state: ArrayLike) -> None:
        """Set a state (S,) and where it puts the bodies; raises `EbmtrajError` on a wrong shape or NaN."""

    def ghostly(self, geom: int) -> Colour | None:
        """The colour of a geom where it is planned to be; None leaves it out."""
        return (*GHOST_COLOUR, GHOST_OPACITY)

    def turning(self) -> tuple[NDArray[np.float64], float] | None:
        """Where a body that a task turns now is, `(3,)` (m), and how large a ring around it is (m)."""
        return None

    def show_goal(self, scene: mujoco.MjvScene, orientation: NDArray[np.float64]) -> None:
        """Show how a body that a task turns is to stand, as a quaternion (w, x, y, z), `(4,)`."""
        return

    def decorate(self, scene: mujoco.MjvScene, overlay: Overlay) -> None:
        """Add to a scene what is planned and asked for, where `data` holds the present."""
        if overlay.plan is not None:
            self.add(scene, np.asarray(overlay.plan)[-1], self.ghostly)
        if overlay.goal is not None:
            self.show_goal(scene, np.asarray(overlay.goal, dtype=np.float64))
        found = self.turning()
        if overlay.axis is not None and found is not None:
            self._add_ring(scene, np.asarray(overlay.axis, dtype=np.float64), *found)

    def add(self, scene: mujoco.MjvScene, state: ArrayLike, colour: Callable[[int], Colour | None]) -> None:
        """Add the bodies that move as they are in another state, each geom in this colour, or left out."""
        self.pose(self._later, state)
        first, moving = scene.ngeom, mujoco.mjtCatBit.mjCAT_DYNAMIC
        mujoco.mjv_addGeoms(self.model, self._later, self.options, mujoco.MjvPerturb(), moving, scene)
        for place in range(first, scene.ngeom):
            geom = scene.geoms[place]
            found = colour(geom.objid) if geom.objtype == mujoco.mjtObj.mjOBJ_GEOM else None
            geom.rgba[3] = found[3] if found else 0.0
            if found and found[0] >= 0:
                geom.matid = -1
                geom.rgba[:3] = found[:3]

    def view(self) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Which way the camera looks, and what is up in the picture: unit vectors `(3,)`."""
        around, above = np.radians([self.camera.azimuth, self.camera.elevation])
        side = np.array([np.sin(around), -np.cos(around), 0.0])
        forward = np.array([np.cos(above) * np.cos(around), np.cos(above) * np.sin(around), np.sin(above)])
        return forward, np.cross(side, forward)

    def _add_ring(
        self, scene: mujoco.MjvScene, axis: NDArray[np.float64], centre: NDArray[np.float64], radius: float
    ) -> None:
        """Most of a circle in the plane that turns, thin capsules with an arrow's head at its end."""
        axis = axis / np.linalg.norm(axis)
        towards = -self.view()[0]  # the head is where it is seen best
        towards += 0.2 * np.eye(3)[np.abs(axis).argmin()]
        side = np.cross(axis, np.cross(towards, axis))
        side /= np.linalg.norm(side)
        angles = np.linspace(-RING_ARC, 0.0, RING_PIECES + 1) + RING_HEAD
        points = centre + radius * (np.cos(angles)[:, None] * side + np.sin(angles)[:, None] * np.cross(axis, side))
        for start, end in itertools.pairwise(points):
            _connect(scene, start, end, RING_WIDTH * radius)
        ahead = RING_HEAD_LENGTH * np.cross(axis, points[-1] - centre)
        tips = points[-1] + np.linspace(0.0, 1.0, 9)[:, None] * ahead
        for i, (start, end) in enumerate(itertools.pairwise(tips)):  # a cone
            _connect(scene, start, end, (3.4 - 0.42 * i) * RING_WIDTH * radius)


class HandScenery(Scenery):
    """The hand and cube: the cube's ghost keeps its faces; of the hand only fingers are shown, as the rest hardly moves."""

    def __init__(self) -> None:
        camera = mujoco.MjvCamera()
        camera.lookat[:] = CAMERA_LOOKAT
        camera.distance, camera.azimuth, camera.elevation = CAMERA_DISTANCE, CAMERA_AZIMUTH, CAMERA_ELEVATION
        model = _hand_model()
        self._cube = model.body("object").id
        self._fingers = {i for i in range(model.nbody) if model.body(i).name.endswith(FINGER_PARTS)}
        super().__init__(model, camera)

    def pose(self, data: mujoco.MjData, state: ArrayLike) -> None:
        """Set a state (31,), at rest."""
        physics = hand_cube.physics_of(np.asarray(state, dtype=np.float64)[None])
        mujoco.mj_setState(self.model, data, physics[0], hand_cube.PHYSICS_STATE)
        mujoco.mj_kinematics(self.model, data)

    def ghostly(self, geom: int) -> Colour | None:
        """The colour of a geom where it is planned to be; None leaves it out."""
        body = int(self.model.geom_bodyid[geom])
        if body == self._cube:
            return (*OWN[:3], 0.45)
        return (*GHOST_COLOUR, GHOST_OPACITY) if body in self._fingers else None

    def turning(self) -> tuple[NDArray[np.float64], float] | None:
        """The cube's place, and just outside its corners."""
        return self.data.xpos[self._cube].copy(), CUBE_RING

    def show_goal(self, scene: mujoco.MjvScene, orientation: NDArray[np.float64]) -> None:
        """A second cube in the upper right corner, where the hand never is."""
        forward, up = self.view()
        state = np.zeros(hand_cube.STATE_SIZE)
        state[-7:-4] = np.array(CAMERA_LOOKAT) + GOAL_PLACE[0] * np.cross(forward, up) + GOAL_PLACE[1] * up
        state[-4:] = orientation
        self.add(scene, state, lambda geom: OWN if self.model.geom_bodyid[geom] == self._cube else None)


class RobotScenery(Scenery):
    """A Gymnasium MuJoCo robot whose states are positions and velocities of its joints; its own camera follows it."""

    def __init__(self, env: gymnasium.Env[Any, Any]) -> None:
        model: mujoco.MjModel = env.unwrapped.model  # type: ignore[attr-defined]
        self._joints = JointStates(model)
        _brighten(model)
        super().__init__(model, _camera(env, model))

    def pose(self, data: mujoco.MjData, state: ArrayLike) -> None:
        """Set a state (S,)."""
        data.qpos[:] = self._joints.split(self._joints.checked(np.asarray(state)[None])[0])[0]
        mujoco.mj_kinematics(self.model, data)
        mujoco.mj_comPos(self.model, data)  # a camera may follow the centre of mass


def _connect(scene: mujoco.MjvScene, start: NDArray[np.float64], end: NDArray[np.float64], width: float) -> None:
    if scene.ngeom >= scene.maxgeom:
        return
    kind = mujoco.mjtGeom.mjGEOM_CAPSULE
    geom = scene.geoms[scene.ngeom]
    colour = np.array((*RING_COLOUR, 0.9), dtype=np.float32)
    mujoco.mjv_initGeom(geom, kind, np.zeros(3), np.zeros(3), np.zeros(9), colour)
    mujoco.mjv_connector(geom, kind, width, start, end)
    geom.category = mujoco.mjtCatBit.mjCAT_DECOR
    scene.ngeom += 1


def _hand_model() -> mujoco.MjModel:
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
    _clear_sky(model)
    return model


def _camera(env: gymnasium.Env[Any, Any], model: mujoco.MjModel) -> mujoco.MjvCamera:
    """The model's first camera, which follows the robot; without one a free view, as Gymnasium's own windows set it."""
    camera = mujoco.MjvCamera()
    if model.ncam:
        camera.type, camera.fixedcamid = mujoco.mjtCamera.mjCAMERA_FIXED, 0
        return camera
    mujoco.mjv_defaultFreeCamera(model, camera)
    usual = getattr(getattr(env.unwrapped, "mujoco_renderer", None), "default_cam_config", None) or {}
    for name, value in usual.items():
        if name == "lookat":
            camera.lookat[:] = value
        elif name in ("distance", "azimuth", "elevation"):
            setattr(camera, name, value)
    if env.spec is not None and env.spec.name in FROM_ABOVE:
        camera.azimuth, camera.elevation, camera.distance = 90.0, -89.9, 0.45 * model.stat.extent
        camera.lookat[:] = (0.0, 0.0, 0.0)
    return camera


def _brighten(model: mujoco.MjModel) -> None:
    """More even light, and the page's background for the sky."""
    model.vis.headlight.ambient[:] = 0.35
    model.vis.headlight.diffuse[:] = 0.45
    model.mat_reflectance[:] = 0.0
    _clear_sky(model)


def _clear_sky(model: mujoco.MjModel) -> None:
    for sky in np.flatnonzero(model.tex_type == mujoco.mjtTexture.mjTEXTURE_SKYBOX):
        start, count = int(model.tex_adr[sky]), int(model.tex_width[sky]) * int(model.tex_height[sky])
        model.tex_data[start : start + 3 * count] = np.tile(np.array(BACKGROUND, dtype=np.uint8), count)
