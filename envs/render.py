"""Pictures of predicted states: positions are set directly, so what a model says is what is shown; no physics is run."""

from __future__ import annotations

import atexit
import os
import sys
import warnings
import weakref
from types import TracebackType
from typing import Any, Self

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ebmtraj.envs.physics import mujoco
from ebmtraj.envs.scenery import HandScenery, Overlay, Scenery
from ebmtraj.errors import EbmtrajError

RENDERABLE = ("hand-cube", "ebmtraj/HandCube-v0")

AHEAD = 16  # control steps ahead at which a ghost is shown: nearer it hides behind the robot

_MEND = "on Debian or Ubuntu run `apt install libegl1 libgl1-mesa-dri`, or `apt install libosmesa6` and set MUJOCO_GL=osmesa"


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


class Renderer:
    """RGB frames of states, `width` x `height` pixels; close it, or use it in a `with` block.

    `scenery` says of what, without it the hand and cube. `samples` smooths edges (4 is plenty) and takes three times as long
    on a CPU. A picture of the hand takes 10 to 15 ms there without. Raises `EbmtrajError` for an environment whose states
    cannot be drawn, a bad size, and where OpenGL does not work.
    """

    ahead: int | None = AHEAD

    def __init__(
        self,
        env_id: str = "hand-cube",
        width: int = 256,
        height: int = 256,
        samples: int = 0,
        *,
        scenery: Scenery | None = None,
    ) -> None:
        self._context: Any = None
        self._gl: Any = None
        if scenery is None and not can_render(env_id):
            raise EbmtrajError(f"{env_id}: its states cannot be drawn; only {RENDERABLE[0]} can be rendered from states")
        check_size(width, height)
        self.width, self.height = width, height
        self._scenery = scenery or HandScenery()
        self._model = self._scenery.model
        view = self._model.vis
        view.global_.offwidth, view.global_.offheight = width, height
        view.quality.offsamples = samples
        self._scene = mujoco.MjvScene(self._model, maxgeom=2000)
        # Shadows and reflections cost most of a frame on a CPU.
        for flag in (mujoco.mjtRndFlag.mjRND_SHADOW, mujoco.mjtRndFlag.mjRND_REFLECTION):
            self._scene.flags[flag] = 0
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

    def frame(self, state: ArrayLike, overlay: Overlay = Overlay()) -> NDArray[np.uint8]:
        """One picture (height, width, 3) of a state (S,).

        Raises `EbmtrajError` on a wrong shape, NaN or a closed renderer.
        """
        if self._context is None:
            raise EbmtrajError("renderer: it is closed; make a new one")
        shown = self._scenery
        shown.pose(shown.data, state)
        mujoco.mj_camlight(self._model, shown.data)
        self._gl.make_current()
        every = mujoco.mjtCatBit.mjCAT_ALL
        mujoco.mjv_updateScene(self._model, shown.data, shown.options, None, shown.camera, every, self._scene)
        shown.decorate(self._scene, overlay)
        pixels = np.empty((self.height, self.width, 3), dtype=np.uint8)
        viewport = mujoco.MjrRect(0, 0, self.width, self.height)
        mujoco.mjr_render(viewport, self._scene, self._context)
        mujoco.mjr_readPixels(pixels, None, viewport, self._context)
        return pixels[::-1].copy()  # OpenGL counts rows from the bottom

    def frames(self, states: ArrayLike) -> NDArray[np.uint8]:
        """Pictures (T, height, width, 3) of states (T, S)."""
        return np.stack([self.frame(state) for state in np.asarray(states)])

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


def check_size(width: int, height: int) -> None:
    """Raise `EbmtrajError` for a picture without pixels or with far too many."""
    if not (1 <= width <= 4096 and 1 <= height <= 4096):
        raise EbmtrajError(f"renderer: size {width} x {height} pixels; give 1 to 4096 for each")


_open_renderers: weakref.WeakSet[Renderer] = weakref.WeakSet()


def _close_at_exit(renderer: Renderer) -> None:
    # The backend ends OpenGL in an exit handler of its own, registered when its first context is made; handlers run last
    # in, first out, so ours must be registered after it, and frees what the user has left open.
    if not _open_renderers:
        atexit.unregister(_close_all)
        atexit.register(_close_all)
    _open_renderers.add(renderer)


def _close_all() -> None:
    for renderer in list(_open_renderers):
        renderer.close()
