"""One recorded episode as a film: mp4 with the `video` extra, GIF always."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterable
from pathlib import Path

import numpy as np
from numpy.typing import ArrayLike
from PIL import Image

from ebmtraj.envs.render import Renderer
from ebmtraj.errors import EbmtrajError
from ebmtraj.report.video import gif, gif_pages

MP4_PICTURES, GIF_PICTURES = 1500, 150  # of a longer episode every second, third, ... state is shown


def film(states: ArrayLike, env_id: str, path: Path, *, label: str, control_timestep: float, tile: int = 360) -> Path:
    """Write a film of one episode in real time; the name's ending says the kind, `.mp4` or `.gif`.

    states: (T+1, S); `control_timestep` in seconds; `tile`: pixels a side. Raises `EbmtrajError` for another ending, where
    mp4 needs a library that is missing, and where the states can't be drawn.
    """
    rows = np.asarray(states)
    kind = check_film(path)
    if kind == ".gif":
        every = max(2, math.ceil(len(rows) / GIF_PICTURES))
        return gif({label: rows}, env_id, path, control_timestep=control_timestep, frame_every=every, tile=tile)
    every = max(1, math.ceil(len(rows) / MP4_PICTURES))
    steps = range(0, len(rows), every)
    with Renderer(env_id, tile, tile, samples=4) as renderer:
        pictures = {label: renderer.frames(rows[list(steps)])}
    pages = gif_pages(pictures, [step * control_timestep for step in steps])
    write_mp4(pages, path, 1 / (control_timestep * every))
    return path


def check_film(path: Path) -> str:
    """The ending of a film's name, `.mp4` or `.gif`; raises `EbmtrajError` where no such film can be written here."""
    kind = path.suffix.lower()
    if kind not in (".mp4", ".gif"):
        raise EbmtrajError(f"{path}: a film's name ends in .mp4 or .gif")
    if kind == ".mp4":
        try:
            import imageio_ffmpeg  # noqa: F401
        except ImportError:
            raise EbmtrajError(
                f"{path}: mp4 needs imageio-ffmpeg: run pip install 'ebmtraj[video]', or write {path.with_suffix('.gif')}"
            ) from None
    return kind


def write_mp4(pages: Iterable[Image.Image], path: Path, fps: float) -> None:
    """Write pages of one size as H.264, `fps` a second, under a temporary name first.

    Raises `EbmtrajError` where the encoder fails or the file can't be written.
    """
    import imageio_ffmpeg

    shown = [_even(page) for page in pages]
    partial = path.with_name(f".{path.stem}.partial.mp4")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        writer = imageio_ffmpeg.write_frames(
            str(partial),
            shown[0].size,
            fps=fps,
            codec="libx264",
            pix_fmt_in="rgb24",
            pix_fmt_out="yuv420p",  # what every player shows
            macro_block_size=2,
            ffmpeg_log_level="error",
            output_params=["-movflags", "+faststart"],
        )
        writer.send(None)
        for page in shown:
            writer.send(page.tobytes())
        writer.close()
        if not partial.stat().st_size:  # the encoder's own word stands on stderr
            raise OSError("the encoder wrote nothing")
        partial.replace(path)
    except (OSError, RuntimeError) as error:
        raise EbmtrajError(f"can't write {path}: {' '.join(str(error).split())[:200]}") from None
    finally:
        with contextlib.suppress(OSError):
            partial.unlink(missing_ok=True)


def _even(page: Image.Image) -> Image.Image:
    """H.264 halves the colour's resolution, so both sides must be even."""
    width, height = (side + side % 2 for side in page.size)
    if (width, height) == page.size:
        return page
    wider = Image.new("RGB", (width, height), "white")
    wider.paste(page, (0, 0))
    return wider
