"""Plans carried out in the simulator: a receding horizon over many episodes at once, and what it came to."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ebmtraj.datasets.coordinates import quaternion_conjugate, quaternion_log, quaternion_multiply
from ebmtraj.datasets.windows import Past
from ebmtraj.envs.batch import BatchEnv
from ebmtraj.errors import EbmtrajError
from ebmtraj.fields import slices
from ebmtraj.trajectories.costs import TaskCost
from ebmtraj.trajectories.costs.rotation import Rotate
from ebmtraj.trajectories.plan import PlannerConfig, plan
from ebmtraj.trajectories.window import WindowModel

AXES = {sign + name: (i, value) for i, name in enumerate("xyz") for sign, value in (("+", 1.0), ("-", -1.0))}


@dataclass(frozen=True)
class ExecuteConfig:
    """Fresh starts of the environment, none of which is in any store."""

    episodes: int = 48
    steps: int = 100
    seed: int = 0
    planner: PlannerConfig = field(default_factory=PlannerConfig)

    def __post_init__(self) -> None:
        if min(self.episodes, self.steps) < 1 or self.seed < 0:
            raise EbmtrajError(
                f"episodes = {self.episodes}, steps = {self.steps}, seed = {self.seed}; give at least 1 episode and 1 step, "
                "and a seed of 0 or more"
            )


@dataclass(frozen=True)
class Execution:
    """What happened: states `(B, T+1, S)`, actions `(B, T, A)`, which rows had ended before each state `(B, T+1)`."""

    states: Tensor
    actions: Tensor
    over: Tensor
    cost: Tensor  # (T,) mean expected cost of the plans in use
    plan_seconds: float

    @property
    def dropped(self) -> Tensor:
        """Which episodes ended before their time, `(B,)`."""
        return self.over[:, -1]


def execute(
    env: BatchEnv,
    model: WindowModel,
    task: TaskCost,
    config: ExecuteConfig,
    *,
    device: torch.device | str = "cpu",
    on_step: Callable[[int], None] = lambda step: None,
) -> Execution:
    """Plan, do the first actions, look, and plan again, for all episodes at once.

    Episode i starts as episode i of `evaluate_policy` with the same seed. Raises `EbmtrajError` where the environment is not
    the one that the model was trained on.
    """
    if env.state_fields != model.state_fields or env.action_fields != model.action_fields:
        raise EbmtrajError(f"the run was trained on other states or actions than those of {env.env_id}; choose its own")
    noise = torch.Generator(device=device).manual_seed(config.seed)
    state = torch.from_numpy(env.reset([fresh_start(config.seed, i) for i in range(config.episodes)])).to(device)
    past = Past.unknown(state, model.config.controls, model.action_size)
    over = torch.zeros(config.episodes, dtype=torch.bool, device=device)
    states, taken, ended, costs = [state], [], [over], []
    spent, left = 0.0, 0
    for t in range(config.steps):
        if left == 0:
            began = time.perf_counter()
            current = plan(model, state, past, task, config.planner, generator=noise)
            spent += time.perf_counter() - began
            left = min(config.planner.every, model.config.actions)
            chosen = current.actions
        action, chosen, left = chosen[:, 0], chosen[:, 1:], left - 1
        following, terminated = env.step(action.cpu().numpy())
        past = past.push(state, action)
        state, over = torch.from_numpy(following).to(device), torch.from_numpy(terminated).to(device)
        states.append(state)
        taken.append(action)
        ended.append(over)
        costs.append(current.cost.mean())
        on_step(t + 1)
        if terminated.all():
            break
    return Execution(torch.stack(states, 1), torch.stack(taken, 1), torch.stack(ended, 1), torch.stack(costs), spent)


def fresh_start(seed: int, episode: int) -> np.random.Generator:
    """The generator that draws an episode's start; its stream is neither collection's nor training's."""
    return np.random.Generator(np.random.Philox(np.random.SeedSequence(seed, spawn_key=(7, episode, 0))))


def rotation_task(
    task: TaskCost, episodes: int, device: torch.device | str = "cpu"
) -> tuple[TaskCost, Tensor | None, list[str]]:
    """The task with an axis `(B, 3)` for each episode, those axes (None without a rotate term), and the name of each.

    With `axis=all`, the six signed axes are shared out among the episodes, equally many each.
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
    execution: Execution, config: ExecuteConfig, model: WindowModel, axis: Tensor | None, names: list[str]
) -> dict[str, Any]:
    """What an execution came to, as JSON values.

    `progress_rad_per_100` and `drop_rate` are those of `evaluate_policy`; the standard error is that of the mean of the
    axes' means. `ms_per_step` is the planner's time for a control step of one episode of the batch.
    """
    dropped = execution.dropped.double().cpu().numpy()
    steps = execution.actions.shape[1]
    result: dict[str, Any] = {}
    if axis is not None:
        field = next(field for field in model.state_fields if field.kind == "quaternion")
        quaternion = slices(model.state_fields)[field.name]
        progress = turned(execution, axis, quaternion).numpy() * 100.0 / config.steps
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
        "ms_per_step": 1000.0 * execution.plan_seconds / steps / config.episodes,
        "expected_cost": float(execution.cost.mean()),
        "episodes": config.episodes,
        "steps": config.steps,
        "seed": config.seed,
    }
