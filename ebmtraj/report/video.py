"""True beside sampled rollouts, rendered: a strip of moments for a page and an animated GIF."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeAlias

import matplotlib
import numpy as np
from numpy.typing import ArrayLike, NDArray
from PIL import Image, ImageDraw, ImageFont

from ebmtraj.envs.pictures import Picturer, make_picturer
from ebmtraj.errors import EbmtrajError
from ebmtraj.report.style import GREY, INK, look
from ebmtraj.runs import write_atomic

Pictures: TypeAlias = NDArray[np.uint8]  # (F, height, width, 3)

GIF_BYTES = 3_000_000  # what a README loads at once on a slow line
END_PAUSE = 1000  # ms on the last picture, so that the eye sees the end before the loop


def strip(
    rows: Mapping[str, ArrayLike],
    env_id: str,
    path: Path,
    frames: Sequence[int] = (0, 10, 25, 50, 100),
    control_timestep: float = 0.04,
    tile: int = 320,
    env_kwargs: dict[str, Any] | None = None,
    state: str = "auto",
) -> Path:
    """Write a PNG of rollouts: one row a rollout, one column a moment, labelled in seconds.

    rows: {label: states (T+1, S)}; labels that are model names take the model's colour. Moments past the shortest
    rollout show its last state. `tile`: pixels a side of a picture; `env_kwargs` and `state` as in `make_picturer`. Raises
    `EbmtrajError` where the environment can't be rendered, OpenGL is missing, or a state is not finite.
    """
    states = _checked(rows, path)
    steps = _steps(frames, min(map(len, states.values())), path)
    with make_picturer(env_id, env_kwargs or {}, (tile, tile), samples=4, state=state) as picturer:
        pictures = {label: _drawn(picturer, one[steps], env_id) for label, one in states.items()}
    page = strip_page(pictures, [step * control_timestep for step in steps])
    buffer = io.BytesIO()
    page.save(buffer, "PNG", optimize=True)
    write_atomic(path, buffer.getvalue())
    return path


def gif(
    rows: Mapping[str, ArrayLike],
    env_id: str,
    path: Path,
    fps: float | None = None,
    control_timestep: float = 0.04,
    frame_every: int = 2,
    tile: int = 220,
    env_kwargs: dict[str, Any] | None = None,
    state: str = "auto",
) -> Path:
    """Write an endless GIF of rollouts side by side, with their labels and the time; smaller than 3 MB.

    rows: {label: states (T+1, S)}, cut to the shortest; every `frame_every`-th state is shown, at `fps` pictures a
    second (None: as fast as the robot moves). Where the file would be too large, pictures are made smaller. Raises
    `EbmtrajError` where the environment can't be rendered, OpenGL is missing, or a state is not finite.
    """
    states = _checked(rows, path)
    if frame_every < 1 or control_timestep <= 0 or (fps is not None and fps <= 0):
        raise EbmtrajError(
            f"{path}: frame_every {frame_every}, control_timestep {control_timestep} and fps {fps} must be above 0"
        )
    steps = list(range(0, min(map(len, states.values())), frame_every))
    with make_picturer(env_id, env_kwargs or {}, (tile, tile), state=state) as picturer:
        pictures = {label: _drawn(picturer, one[steps], env_id) for label, one in states.items()}
    pages = gif_pages(pictures, [step * control_timestep for step in steps])
    rate = fps if fps is not None else 1 / (control_timestep * frame_every)
    write_atomic(path, encode_gif(pages, round(100 / rate) * 10))
    return path


def strip_page(pictures: Mapping[str, Pictures], seconds: Sequence[float]) -> Image.Image:
    """Lay out pictures {label: (F, height, width, 3)} as a grid with labels on the left and F times on top."""
    _, height, width, _ = next(iter(pictures.values())).shape
    font, small = page_font(width // 12, bold=True), page_font(width // 12)
    gap, head = max(2, width // 40), int(1.9 * small.size)
    labels = {label: look(label, pictures).label.replace(" (", "\n(") for label in pictures}
    measure = ImageDraw.Draw(Image.new("RGB", (1, 1)))
    side = int(max(measure.multiline_textbbox((0, 0), text, font=font)[2] for text in labels.values())) + 3 * gap
    page = Image.new("RGB", (side + len(seconds) * (width + gap), head + len(pictures) * (height + gap)), "white")
    draw = ImageDraw.Draw(page)
    for column, time in enumerate(seconds):
        place = (side + column * (width + gap) + width / 2, head / 2)
        draw.text(place, f"{time:.1f} s", font=small, fill=INK, anchor="mm")
    for row, (label, frames) in enumerate(pictures.items()):
        top = head + row * (height + gap)
        color = look(label, pictures).color
        draw.multiline_text((gap, top + height / 2), labels[label], font=font, fill=color, anchor="lm", spacing=gap)
        for column, frame in enumerate(frames):
            page.paste(Image.fromarray(frame), (side + column * (width + gap), top))
    return page


def gif_pages(pictures: Mapping[str, Pictures], seconds: Sequence[float]) -> list[Image.Image]:
    """Lay out pictures {label: (F, height, width, 3)} side by side, a page a moment, with labels on top and the time."""
    count, height, width, _ = next(iter(pictures.values())).shape
    font, small = page_font(width // 14, bold=True), page_font(width // 16)
    gap, head, foot = max(2, width // 50), int(1.9 * font.size), int(1.8 * small.size)
    pages = []
    for moment in range(count):
        page = Image.new("RGB", (len(pictures) * (width + gap) - gap, head + height + foot), "white")
        draw = ImageDraw.Draw(page)
        for column, (label, frames) in enumerate(pictures.items()):
            left = column * (width + gap)
            style = look(label, pictures)
            draw.text((left + width / 2, head / 2), style.label, font=font, fill=style.color, anchor="mm")
            page.paste(Image.fromarray(frames[moment]), (left, head))
        draw.text((gap, head + height + foot / 2), f"{seconds[moment]:.1f} s", font=small, fill=INK, anchor="lm")
        start, end = 4 * small.size, page.width - gap  # how far the film has run
        middle = head + height + foot // 2
        draw.rectangle((start, middle - 1, end, middle + 1), fill="#e4e4e4")
        draw.rectangle((start, middle - 1, start + (end - start) * moment / max(count - 1, 1), middle + 1), fill=GREY)
        pages.append(page)
    return pages


def encode_gif(pages: Sequence[Image.Image], milliseconds: int, limit: int = GIF_BYTES) -> bytes:
    """An endless GIF with one palette for all pages; pages are shrunk until it takes fewer than `limit` bytes."""
    durations = [max(milliseconds, 20)] * (len(pages) - 1) + [max(milliseconds, END_PAUSE)]
    shown = list(pages)
    while True:
        # One palette from pages across the whole film and no dithering: what doesn't move stays the same byte.
        sample = shown[:: max(1, len(shown) // 6)]
        board = Image.new("RGB", (sample[0].width, sample[0].height * len(sample)))
        for place, page in enumerate(sample):
            board.paste(page, (0, place * page.height))
        palette = board.quantize(128, method=Image.Quantize.MEDIANCUT, dither=Image.Dither.NONE)
        first, *rest = (page.quantize(palette=palette, dither=Image.Dither.NONE) for page in shown)
        buffer = io.BytesIO()
        first.save(buffer, "GIF", save_all=True, append_images=rest, duration=durations, loop=0, optimize=True)
        size = buffer.tell()
        if size < limit or shown[0].width < 64:
            return buffer.getvalue()
        scale = max(0.5, 0.95 * (limit / size) ** 0.5)
        smaller = (int(shown[0].width * scale), int(shown[0].height * scale))
        shown = [page.resize(smaller, Image.Resampling.LANCZOS) for page in pages]


def _drawn(picturer: Picturer, states: NDArray[np.float64], env_id: str) -> Pictures:
    """A picture of each state (F, S)."""
    try:
        return np.stack([picturer.frame(state) for state in states])
    except EbmtrajError as error:
        raise error if env_id in str(error) else EbmtrajError(f"{env_id}: {error}") from None


def _checked(rows: Mapping[str, ArrayLike], path: Path) -> dict[str, NDArray[np.float64]]:
    states = {label: np.asarray(one, dtype=np.float64) for label, one in rows.items()}
    if not states:
        raise EbmtrajError(f"no rollouts to show in {path}; give at least one")
    for label, one in states.items():
        if one.ndim != 2 or not len(one):
            raise EbmtrajError(f"{path}: rollout {label!r} has shape {one.shape}; expected (T+1, S)")
    return states


def _steps(frames: Sequence[int], length: int, path: Path) -> list[int]:
    if not frames or min(frames) < 0:
        raise EbmtrajError(f"{path}: frames {tuple(frames)} must be step numbers from 0 on")
    return sorted({min(frame, length - 1) for frame in frames})


def page_font(size: int, bold: bool = False) -> ImageFont.FreeTypeFont:
    """DejaVu Sans as it ships with matplotlib, so that pictures look alike on every machine."""
    name = "DejaVuSans-Bold.ttf" if bold else "DejaVuSans.ttf"
    return ImageFont.truetype(str(Path(matplotlib.get_data_path()) / "fonts" / "ttf" / name), max(size, 9))
