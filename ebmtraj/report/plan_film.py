"""Executed plans as a film: some episodes side by side, each with a ghost of where its plan is expected to lead."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageDraw
from torch import Tensor

from ebmtraj.envs.batch import BatchEnv
from ebmtraj.envs.pictures import BLUE, ORANGE, Picturer, make_picturer
from ebmtraj.envs.scenery import Overlay
from ebmtraj.errors import EbmtrajError
from ebmtraj.report.film import GIF_PICTURES, MP4_PICTURES, check_film, write_mp4
from ebmtraj.report.style import GREY, INK
from ebmtraj.report.video import encode_gif, page_font
from ebmtraj.runs import write_atomic
from ebmtraj.trajectories.costs import TaskCost
from ebmtraj.trajectories.execute import Execution
from ebmtraj.trajectories.terms.position import Obstacle
from ebmtraj.trajectories.terms.rotation import Reorient, Rotate
from ebmtraj.trajectories.terms.term import Path as Future

MOST = 6  # episodes side by side


@dataclass(frozen=True)
class Shown:
    """Episodes of an execution to be shown, K of them, and what is written above each."""

    rows: tuple[int, ...]
    labels: tuple[str, ...]

    @classmethod
    def choose(cls, episodes: int, names: Sequence[str]) -> Shown:
        """The first episode about each axis that `names` has, one an episode; of one axis or none the first three."""
        if len(set(names)) > 1:
            firsts = [names.index(name) for name in dict.fromkeys(names)][:MOST]
            return cls(tuple(firsts), tuple(f"about {names[i]}" for i in firsts))
        rows = tuple(range(min(3, episodes)))
        return cls(rows, tuple(f"episode {i + 1}" + (f", about {names[0]}" if names else "") for i in rows))


def plan_film(
    execution: Execution,
    shown: Shown,
    task: TaskCost,
    env: BatchEnv,
    path: Path,
    *,
    state: str = "auto",
    tile: int = 320,
    on_page: Callable[[int, int], None] = lambda done, total: None,
) -> Path:
    """Write a film of executed plans in real time, `.mp4` or `.gif`: what happened, and a ghost of what was planned.

    `task` is that of the whole execution, `state` how the environment's states were made. Raises `EbmtrajError` for another
    ending, where mp4 needs a library that is missing, where OpenGL is, and for states that can't be drawn.
    """
    kind = check_film(path)
    seconds = env.control_timestep
    length = execution.states.shape[1]
    most = MP4_PICTURES if kind == ".mp4" else GIF_PICTURES
    every = max(1 if kind == ".mp4" else 2, math.ceil(length / most))
    steps = list(range(0, length, every))
    if kind == ".gif":
        tile = min(tile, 240)
    alone = task.rows(execution.states.new_tensor(shown.rows).long())
    with make_picturer(env.env_id, env.env_kwargs, (tile, tile), samples=4, state=state, discs=_discs(alone)) as picturer:
        pages: list[Image.Image] = []
        for page in _pages(execution, shown, alone, picturer, steps, seconds, tile):
            pages.append(page)
            on_page(len(pages), len(steps))
    if kind == ".gif":
        write_atomic(path, encode_gif(pages, round(100 * seconds * every) * 10))
    else:
        write_mp4(pages, path, 1 / (seconds * every))
    return path


def _pages(
    execution: Execution,
    shown: Shown,
    task: TaskCost,
    picturer: Picturer,
    steps: Sequence[int],
    seconds: float,
    tile: int,
) -> Iterator[Image.Image]:
    rows = list(shown.rows)
    states, over = execution.states[rows].cpu(), execution.over[rows].cpu().numpy()
    ends = np.where(over.any(1), over.argmax(1), over.shape[1] - 1)  # a dropped cube is not followed any further
    said = words(task, states)
    axes, goals = ([each(task, name, k) for k in range(len(rows))] for name in ("axis", "goal"))
    pictures: list[NDArray[np.uint8]] = [np.empty(0, dtype=np.uint8)] * len(rows)
    lead = 0.0
    last = execution.states.shape[1] - 1
    for step in steps:
        for k in range(len(rows)):
            if step > ends[k] and pictures[k].size:
                continue
            plan = None
            if step < len(execution.planned) and step < ends[k]:
                plan, lead = ahead(execution.planned[step], k, picturer.ahead)
            so_far = states[k, : step + 1].numpy()
            pictures[k] = picturer.frame(states[k, step].numpy(), Overlay(plan, axes[k], goals[k], so_far))
        heads = []
        for k, label in enumerate(shown.labels):
            t = min(step, int(ends[k]))
            ended = bool(over[k, t]) and step >= ends[k]
            heads.append((label, [form.format(float(values[k, t])) for form, values in said], ended))
        marks = [f"where the plan is expected to lead in {lead * seconds:.2f} s" if lead else ""]
        marks.append("the turn that the task asks for" if any(axis is not None for axis in axes) else "")
        marks.append("top right: the goal" if any(goal is not None for goal in goals) else "")
        yield _page(pictures, heads, task.text, (step, last, seconds), marks, tile)


def _page(
    pictures: Sequence[NDArray[np.uint8]],
    heads: Sequence[tuple[str, list[str], bool]],
    task: str,
    clock: tuple[int, int, float],
    marks: Sequence[str],
    tile: int,
) -> Image.Image:
    """One moment: the task and the time above, episodes in a grid, what the colours mean below."""
    columns = len(pictures) if len(pictures) <= 3 else math.ceil(len(pictures) / 2)
    lines = math.ceil(len(pictures) / columns)
    gap, bold, plain, small = tile // 32, page_font(tile // 17, bold=True), page_font(tile // 19), page_font(tile // 22)
    width = columns * tile + (columns + 1) * gap
    text = textwrap.wrap(task, max(16, int((width - 2 * gap) / (0.62 * bold.size))))
    line, head, foot = round(1.45 * bold.size), round(1.9 * bold.size), round(2.6 * small.size)
    top = gap + (len(text) + 1) * line
    page = Image.new("RGB", (width, top + lines * (head + tile + gap) + foot), "white")
    draw = ImageDraw.Draw(page)
    for i, part in enumerate(text):
        draw.text((gap, gap + (i + 0.5) * line), part, font=bold, fill=INK, anchor="lm")
    step, last, seconds = clock
    middle = top - line / 2
    clock_text = f"step {step} of {last}   {step * seconds:.2f} s"
    draw.text((gap, middle), clock_text, font=plain, fill=INK, anchor="lm")
    left = gap + draw.textlength(f"step {last} of {last}   {last * seconds:.2f} s", font=plain) + 2 * gap
    draw.rectangle((left, middle - 1, width - gap, middle + 1), fill="#e4e4e4")
    draw.rectangle((left, middle - 1, left + (width - gap - left) * step / max(last, 1), middle + 1), fill=GREY)
    for k, (picture, (label, words, ended)) in enumerate(zip(pictures, heads, strict=True)):
        x = gap + (k % columns) * (tile + gap)
        y = top + (k // columns) * (head + tile + gap)
        draw.text((x, y + head / 2), label, font=plain, fill=INK, anchor="lm")
        word = ", ".join([*words, *(["dropped"] if ended else [])])
        room = tile - draw.textlength(label, font=plain) - gap
        size = int(min(1.0, room / max(1.0, draw.textlength(word, font=bold))) * bold.size)
        draw.text(
            (x + tile, y + head / 2), word, font=page_font(size, bold=True), fill=ORANGE if ended else INK, anchor="rm"
        )
        page.paste(Image.fromarray(picture), (x, y + head))
    low, right = page.height - foot / 2, float(gap)
    colours: tuple[tuple[int, ...] | str, ...] = (BLUE, ORANGE, INK)
    for colour, meaning in zip(colours, marks, strict=True):
        if meaning:
            side = small.size // 2
            draw.ellipse((right, low - side / 1.2, right + 1.7 * side, low + side / 1.2), fill=colour)
            draw.text((right + 2.6 * side, low), meaning, font=small, fill=INK, anchor="lm")
            right += 2.6 * side + draw.textlength(meaning, font=small) + 3 * gap
    return page


def ahead(plan: Future, k: int, most: int | None) -> tuple[NDArray[Any] | None, float]:
    """The plan's states (H, S) as far ahead as they are shown, and how many steps that is."""
    times = plan.times.numpy()
    count = len(times) if most is None else max(1, int((times <= most).sum()))
    return plan.states[k, :count].numpy(), float(times[count - 1])


def words(task: TaskCost, states: Tensor) -> list[tuple[str, Tensor]]:
    """What the first two terms that can say so make of states (B, T+1, S): words and values."""
    return [found for part in task.parts if (found := part.progress(states)) is not None][:2]


def each(task: TaskCost, option: str, k: int) -> NDArray[Any] | None:
    """The axis, or the goal orientation, that the task gives row k."""
    for part in task.parts:
        if isinstance(part, (Rotate, Reorient)) and not isinstance(given := getattr(part, option, ""), str) and len(given):
            values = torch.as_tensor(given, dtype=torch.float64).cpu()
            return (values if values.ndim == 1 else values[k]).numpy()
    return None


def _discs(task: TaskCost) -> list[Sequence[float]]:
    """The obstacles of the task that are the same for all episodes."""
    return [
        (*part.centre, part.radius)
        for part in task.parts
        if isinstance(part, Obstacle) and isinstance(part.centre, tuple) and len(part.centre) == 2
    ]


def check_can_show(path: Path, overwrite: bool) -> None:
    """Raise `EbmtrajError`, before any work, for a film's name that can't be: another ending, or something is there."""
    if path.suffix.lower() not in (".mp4", ".gif"):
        raise EbmtrajError(f"--video {path}: a film's name ends in .mp4 or .gif")
    if path.exists() and not overwrite:
        raise EbmtrajError(f"{path} exists; give another path or --overwrite")
