"""Pictures of any environment whose states can be drawn: the hand and cube, MuJoCo robots by their joints, the particle."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from types import TracebackType
from typing import Any, Protocol, Self

import gymnasium
import numpy as np
from numpy.typing import ArrayLike, NDArray
from PIL import Image, ImageDraw

from ebmtraj.envs import particle
from ebmtraj.envs.physics import mujoco
from ebmtraj.envs.registry import PARTICLE_ID
from ebmtraj.envs.render import Renderer, can_render, check_size
from ebmtraj.envs.scenery import BACKGROUND, HandScenery, Overlay, RobotScenery, Scenery
from ebmtraj.errors import EbmtrajError

BLUE, ORANGE, INK, GREY = (51, 128, 242), (213, 94, 0), (34, 34, 34), (166, 170, 178)


class Picturer(Protocol):
    """Draws states of one environment; `ahead` is how many control steps ahead of a plan it is shown, None: all of it."""

    ahead: int | None

    def frame(self, state: ArrayLike, overlay: Overlay = ...) -> NDArray[np.uint8]:
        """One picture (height, width, 3) of a state (S,)."""
        ...

    def close(self) -> None:
        """Free what it holds."""
        ...

    def __enter__(self) -> Self: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...


def make_picturer(
    env_id: str,
    env_kwargs: dict[str, Any],
    size: tuple[int, int],
    *,
    samples: int = 0,
    state: str = "auto",
    discs: Sequence[Sequence[float]] = (),
) -> Picturer:
    """What draws states of this environment, `size` (width, height) in pixels.

    `state` is how they were made (`GymBatch`); `discs` are further obstacles (x, y, radius) of a plane picture, those of a
    task. Raises `EbmtrajError` for an environment whose states do not say what it looks like, and without OpenGL.
    """
    if can_render(env_id):
        return Renderer(env_id, *size, samples)
    if env_id == PARTICLE_ID and state != "observation":
        return ParticlePicturer(env_kwargs, *size, discs)
    return Renderer(env_id, *size, samples, scenery=make_scenery(env_id, env_kwargs, state))


def make_scenery(env_id: str, env_kwargs: dict[str, Any], state: str = "auto") -> Scenery:
    """What a 3-D picture or a viewer shows of this environment; raises `EbmtrajError` where there is nothing to show."""
    if can_render(env_id):
        return HandScenery()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            env = gymnasium.make(env_id, disable_env_checker=True, **env_kwargs)
    except (gymnasium.error.Error, ImportError, TypeError, ValueError) as error:
        reason = (str(error) or type(error).__name__)[:200]
        raise EbmtrajError(f"{env_id}: its states cannot be drawn: Gymnasium cannot make it: {reason}") from error
    try:
        if not isinstance(getattr(env.unwrapped, "model", None), mujoco.MjModel) or state == "observation":
            raise EbmtrajError(f"{env_id}: its states cannot be drawn; the hand, particles and joints of MuJoCo robots can")
        return RobotScenery(env)
    finally:
        env.close()


class ParticlePicturer:
    """The particle's box from above: obstacles, goal, the way so far, and the planned way ahead."""

    ahead: int | None = None

    def __init__(self, env_kwargs: dict[str, Any], width: int, height: int, discs: Sequence[Sequence[float]] = ()) -> None:
        check_size(width, height)
        self.width, self.height = width, height
        more = np.asarray(discs, dtype=np.float64).reshape(-1, 3)
        self._discs = np.concatenate([particle.discs_of(env_kwargs.get("obstacles", False)), more])
        self._scale = 4  # drawn larger and shrunk, which smooths edges

    def frame(self, state: ArrayLike, overlay: Overlay = Overlay()) -> NDArray[np.uint8]:
        """One picture (height, width, 3) of a state (S,); raises `EbmtrajError` on a wrong shape or NaN."""
        values = np.asarray(state, dtype=np.float64)
        if values.ndim != 1 or len(values) < 4 or not np.isfinite(values).all():
            raise EbmtrajError("particle: a state to draw is finite and of shape (4,) or (6,)")
        board = Image.new("RGB", (self.width * self._scale, self.height * self._scale), BACKGROUND)
        draw = ImageDraw.Draw(board)
        unit = min(board.size)
        draw.rectangle((*self._place((0, 1)), *self._place((1, 0))), fill="white", outline=GREY, width=unit // 150)
        for x, y, radius in self._discs:
            self._disc(draw, (x, y), radius, GREY)
        self._disc(draw, values[-2:], 0.035, BACKGROUND, ORANGE)
        if overlay.past is not None:
            self._line(draw, np.asarray(overlay.past)[:, :2], INK, unit // 110)
        if overlay.plan is not None:
            ways = np.concatenate([values[None, :2], np.asarray(overlay.plan)[:, :2]])
            self._line(draw, ways, BLUE, unit // 90)
            for point in ways[1:]:
                self._disc(draw, point, 0.008, BLUE)
        self._disc(draw, values[:2], 0.022, INK)
        return np.asarray(board.resize((self.width, self.height), Image.Resampling.LANCZOS))

    def _place(self, point: ArrayLike) -> tuple[float, float]:
        """Pixels of a point of the box, which fills nine tenths of the picture."""
        width, height = self.width * self._scale, self.height * self._scale
        side = 0.9 * min(width, height)
        x, y = np.asarray(point, dtype=np.float64)
        return (width - side) / 2 + side * float(x), (height + side) / 2 - side * float(y)

    def _disc(self, draw: ImageDraw.ImageDraw, centre: ArrayLike, radius: float, fill: Any, edge: Any = None) -> None:
        x, y = self._place(centre)
        r = radius * 0.9 * min(self.width, self.height) * self._scale
        draw.ellipse((x - r, y - r, x + r, y + r), fill=fill, outline=edge, width=max(1, int(r / 4)) if edge else 0)

    def _line(self, draw: ImageDraw.ImageDraw, points: NDArray[np.float64], colour: Any, width: int) -> None:
        if len(points) > 1:
            draw.line([self._place(point) for point in points], fill=colour, width=width, joint="curve")

    def close(self) -> None:
        """Nothing is held."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()
