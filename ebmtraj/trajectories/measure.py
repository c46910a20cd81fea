"""What carrying out a task came to: turning about an axis, orientations reached, drops."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ebmtraj.datasets.coordinates import quaternion_conjugate, quaternion_log, quaternion_multiply
from ebmtraj.datasets.store import Store
from ebmtraj.datasets.windows import trajectories
from ebmtraj.errors import EbmtrajError
from ebmtraj.fields import Field, slices
from ebmtraj.trajectories.costs import OwnTerm, TaskCost
from ebmtraj.trajectories.execute import ExecuteConfig, Execution
from ebmtraj.trajectories.terms.rotation import Reorient, Rotate
from ebmtraj.trajectories.terms.term import Path

AXES = {sign + name: (i, value) for i, name in enumerate("xyz") for sign, value in (("+", 1.0), ("-", -1.0))}
NEAREST, FURTHEST = 0.5, 1.5  # rad between a start and its goal
REACHED = 0.4  # rad from the goal at the end that count as success


def rotation_task(
    task: TaskCost, episodes: int, device: torch.device | str = "cpu"
) -> tuple[TaskCost, Tensor | None, list[str]]:
    """The task with an axis `(B, 3)` for each episode, those axes (None without a rotate term), and the name of each.

    Axes are unit vectors without a unit. With `axis=all`, the six signed axes are shared out among the episodes, equally
    many each; raises `EbmtrajError` where `episodes` is no multiple of six.
    """
    term = next((part for part in task.parts if isinstance(part, Rotate)), None)
    if term is None:
        return task, None, []
    if term.axis == "all":
        if episodes % len(AXES):
            raise EbmtrajError(f"axis=all shares episodes out among six axes; {episodes} is not a multiple of 6")
        names = [name for name in AXES for _ in range(episodes // len(AXES))]
    elif isinstance(term.axis, str):
        name = term.axis if term.axis in AXES else f"+{term.axis}"
        names = [name] * episodes
    else:
        given = torch.as_tensor(term.axis, dtype=torch.float32)
        direction = given / given.norm(dim=-1, keepdim=True)
        return task, direction.expand(episodes, 3), [",".join(f"{x:g}" for x in given.tolist())] * episodes
    axis = torch.zeros(episodes, 3, device=device)
    for i, name in enumerate(names):
        place, sign = AXES[name]
        axis[i, place] = sign
    return task.given("rotate", axis=axis), axis, names


def turned(execution: Execution, axis: Tensor, quaternion: slice) -> Tensor:
    """Radians turned along each episode's axis `(B, 3)` until a drop: the sum of world-frame rotation vectors, `(B,)`."""
    q = execution.states[..., quaternion].double().cpu()
    steps = quaternion_log(quaternion_multiply(q[:, 1:], quaternion_conjugate(q[:, :-1])))
    along = (steps * axis.double().cpu().unsqueeze(1)).sum(-1)
    return torch.where(execution.over[:, 1:].cpu(), 0.0, along).sum(1)


def measures(
    execution: Execution, config: ExecuteConfig, state_fields: tuple[Field, ...], axis: Tensor | None, names: list[str]
) -> dict[str, Any]:
    """What an execution came to, as JSON values; `axis` `(B, 3)` is that of each episode, where it turned about one.

    `progress_rad_per_100` and `drop_rate` are those of `evaluate_policy`; the standard error is that of the mean of the
    axes' means. `ms_per_step` is the controller's time for a control step of one episode of the batch. Raises `EbmtrajError`
    for an axis in states without an orientation.
    """
    dropped = execution.dropped.double().cpu().numpy()
    steps = execution.actions.shape[1]
    result: dict[str, Any] = {}
    if axis is not None:
        progress = turned(execution, axis, _quaternion(state_fields)).numpy() * 100.0 / config.steps
        own: dict[str, NDArray[np.bool_]] = {name: np.array(names) == name for name in dict.fromkeys(names)}
        errors = [progress[rows].std() / np.sqrt(rows.sum()) for rows in own.values()]
        result |= {
            "progress_rad_per_100": float(np.mean([progress[rows].mean() for rows in own.values()])),
            "progress_se": float(np.sqrt(np.sum(np.square(errors)))) / len(own),
            "per_axis": {name: float(progress[rows].mean()) for name, rows in own.items()},
            "drop_rate_per_axis": {name: float(dropped[rows].mean()) for name, rows in own.items()},
        }
    return {
        **result,
        "drop_rate": float(dropped.mean()),
        "ms_per_step": 1000.0 * execution.control_seconds / steps / config.episodes,
        "expected_cost": float(np.mean(execution.costs)) if execution.costs else None,
        "episodes": config.episodes,
        "steps": config.steps,
        "seed": config.seed,
    }


def kept(execution: Execution, task: TaskCost) -> dict[str, Any]:
    """Of each constraint of the task, the share of steps (of all episodes, until a drop) after which it holds.

    `kept_se` is the standard error over episodes, `kept_means` what counts as kept. Empty without constraints.
    """
    alive = ~execution.over[:, 1:].cpu()
    result: dict[str, Any] = {"kept": {}, "kept_se": {}, "kept_means": {}}
    for label, part in zip(task.labels(), task.parts, strict=True):
        if (holds := part.holds(execution.states[:, 1:])) is not None:
            steps = alive.sum(1).double()
            good = (holds.cpu() & alive).sum(1).double()
            share = good.sum() / steps.sum()
            # of a ratio of sums, as episodes that drop count for less
            off = (good - share * steps).square().sum().sqrt() / steps.sum()
            result["kept"][label], result["kept_se"][label] = float(share), float(off)
            result["kept_means"][label] = part.meaning()
    return result if result["kept"] else {}


def own_costs(execution: Execution, task: TaskCost) -> dict[str, Any]:
    """Of each term of the user's own, its cost of what happened from the first state to the last, unweighted.

    `own` has the mean over the episodes, `own_se` its standard error. Empty without such terms.
    """
    path = Path.sequence(execution.states[:, 0], execution.states[:, 1:], execution.actions)
    found = {
        label: part(path).double().cpu()
        for label, part in zip(task.labels(), task.parts, strict=True)
        if isinstance(part, OwnTerm)
    }
    if not found:
        return {}
    means = {label: float(cost.mean()) for label, cost in found.items()}
    errors = {label: float(cost.std(correction=0)) / len(cost) ** 0.5 for label, cost in found.items()}
    return {"own": means, "own_se": errors}


@dataclass(frozen=True)
class Goals:
    """Starts `(B, S)` of held-out episodes, and orientations `(B, 4)` that the cube came to later in the same episode."""

    start: Tensor
    quaternion: Tensor


def held_out_goals(store: Store, count: int, seed: int, *, split: str = "test", steps: int = 100) -> Goals:
    """`count` goals 0.5 to 1.5 rad away, one an episode, each from a random moment at which its episode was that far.

    All are within reach: the cube got there. Raises `EbmtrajError` where the split has too few such episodes.
    """
    place = _quaternion(store.state_fields)
    found = trajectories(store, split, min(steps, int(store.lengths.max())))
    q = found.states[..., place]
    away = _angle(q, q[:, :1])
    fits = (away > NEAREST) & (away < FURTHEST)
    noise = torch.Generator().manual_seed(seed)
    able = fits.any(1).nonzero()[:, 0]
    if len(able) < count:
        raise EbmtrajError(
            f"store {store.path}: {len(able)} {split} episodes turn the cube by {NEAREST} to {FURTHEST} rad, not {count}; "
            "give a store whose policy turns it (--data), or fewer --episodes"
        )
    rows = able[torch.randperm(len(able), generator=noise)[:count]]
    moment = torch.multinomial(fits[rows].double(), 1, generator=noise)[:, 0]
    return Goals(found.states[rows, 0], q[rows, moment])


def reorients(task: TaskCost) -> bool:
    """Whether the task turns a body to an orientation that is still to be given."""
    return any(isinstance(part, Reorient) and isinstance(part.goal, tuple) and not part.goal for part in task.parts)


def error(states: Tensor, goal: Tensor, state_fields: tuple[Field, ...]) -> Tensor:
    """Radians left to goals `(B, 4)` in states `(B, S)`, `(B,)`; raises `EbmtrajError` for states without an orientation."""
    return _angle(states[:, _quaternion(state_fields)], goal)


def reached(
    execution: Execution, config: ExecuteConfig, goal: Tensor, state_fields: tuple[Field, ...], hold: float
) -> dict[str, Any]:
    """How many episodes end within 0.4 rad of their goals `(B, 4)` without a drop, as JSON values."""
    left = error(execution.states[:, -1], goal, state_fields).cpu().double().numpy()
    success = ((left < REACHED) & ~execution.dropped.cpu().numpy()).astype(np.float64)
    return {
        "success_rate": float(success.mean()),
        "success_se": float(success.std() / np.sqrt(len(success))),
        "median_error_rad": float(np.median(left)),
        "median_start_error_rad": float(error(execution.states[:, 0], goal, state_fields).median()),
        "hold_rad": hold,
    }


def _angle(a: Tensor, b: Tensor) -> Tensor:
    """Radians between orientations, `(..., 4), (..., 4) -> (...)`."""
    return quaternion_log(quaternion_multiply(a, quaternion_conjugate(b.expand_as(a)))).norm(dim=-1)


def _quaternion(state_fields: tuple[Field, ...]) -> slice:
    field = next((field for field in state_fields if field.kind == "quaternion"), None)
    if field is None:
        raise EbmtrajError("the state has no quaternion, so nothing that can be turned")
    return slices(state_fields)[field.name]
