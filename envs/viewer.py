"""MuJoCo's own window, showing states as they come; the camera is the user's to move."""

from __future__ import annotations

import os
import sys
import time
import warnings
from typing import Any, Self

from numpy.typing import ArrayLike

from ebmtraj.envs.physics import mujoco
from ebmtraj.envs.scenery import Overlay, Scenery
from ebmtraj.errors import EbmtrajError


def check_display(mend: str = "write a film instead: --video plan.mp4") -> None:
    """Raise `EbmtrajError`, which says what to do instead, where no window can be opened."""
    if sys.platform.startswith("linux") and not (os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY")):
        raise EbmtrajError(f"--interactive needs a display, and there is none here; {mend}")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # GLFW warns of what is said below
        import glfw

        opens = bool(glfw.init())  # asked here, because MuJoCo's viewer waits for ever where it can't open
        glfw.terminate()
    if not opens:
        raise EbmtrajError(f"--interactive can't open a window on the display {os.environ.get('DISPLAY', '')!r}; {mend}")


class Viewer:
    """A window on a scenery; use it in a `with` block. Raises `EbmtrajError` where there is no display."""

    def __init__(self, scenery: Scenery, seconds: float) -> None:
        """`seconds`: how long a state is shown at least, so that the robot moves no faster than it would."""
        check_display()
        self._scenery, self._seconds, self._next = scenery, seconds, 0.0
        try:
            import mujoco.viewer

            self._window: Any = mujoco.viewer.launch_passive(
                scenery.model, scenery.data, show_left_ui=False, show_right_ui=False
            )
        except (ImportError, RuntimeError, OSError) as error:
            reason = (str(error).strip() or type(error).__name__).splitlines()[0]
            raise EbmtrajError(f"can't open MuJoCo's viewer: {reason}") from None
        with self._window.lock():
            for name in ("type", "fixedcamid", "distance", "azimuth", "elevation"):
                setattr(self._window.cam, name, getattr(scenery.camera, name))
            self._window.cam.lookat[:] = scenery.camera.lookat

    def show(self, state: ArrayLike, overlay: Overlay = Overlay()) -> bool:
        """Show a state (S,) when the last one has been seen long enough; False once the window is closed."""
        if not self._window.is_running():
            return False
        time.sleep(max(0.0, self._next - time.perf_counter()))
        self._next = time.perf_counter() + self._seconds
        with self._window.lock():
            self._scenery.pose(self._scenery.data, state)
            mujoco.mj_camlight(self._scenery.model, self._scenery.data)
            self._window.user_scn.ngeom = 0
            self._scenery.decorate(self._window.user_scn, overlay)
        self._window.sync()
        return True

    def say(self, text: str) -> None:
        """Write a line into the window's corner."""
        where = mujoco.mjtGridPos.mjGRID_BOTTOMLEFT
        if hasattr(self._window, "set_texts"):  # not in the oldest MuJoCo that ebmtraj runs with
            self._window.set_texts((mujoco.mjtFontScale.mjFONTSCALE_150, where, text, ""))

    def wait(self) -> None:
        """Leave the last state to be looked at until the window is closed."""
        while self._window.is_running():
            time.sleep(0.1)

    def close(self) -> None:
        """Close the window; safe to call twice."""
        self._window.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
