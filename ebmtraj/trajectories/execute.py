"""Plans carried out in the simulator: a receding horizon over many episodes at once."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from ebmtraj.datasets.windows import Past
from ebmtraj.envs.batch import BatchEnv
from ebmtraj.errors import EbmtrajError
from ebmtraj.trajectories.costs import TaskCost
from ebmtraj.trajectories.plan import PlannerConfig, plan
from ebmtraj.trajectories.window import WindowModel

Holds = Callable[[Tensor], Tensor]  # states (B, S) -> which episodes repeat their last action (B,)


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
    costs: list[float]  # T of them: the mean expected cost of the plans in use
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
    start: Tensor | None = None,
    holds: Holds | None = None,
    device: torch.device | str = "cpu",
    on_step: Callable[[int], None] = lambda step: None,
) -> Execution:
    """Plan, do the first actions, look, and plan again, for all episodes at once.

    Without `start` states `(B, S)`, at rest, episode i starts as episode i of `evaluate_policy` with the same seed. Where
    `holds` says so, an episode repeats its last action for now. Raises `EbmtrajError` where the environment is not
    the one that the model was trained on.
    """
    if env.state_fields != model.state_fields or env.action_fields != model.action_fields:
        raise EbmtrajError(f"the run was trained on other states or actions than those of {env.env_id}; choose its own")
    noise = torch.Generator(device=device).manual_seed(config.seed)
    if start is None:
        env.reset([fresh_start(config.seed, i) for i in range(config.episodes)])
    else:
        env.set_state(start.cpu().numpy())
    state = torch.from_numpy(env.states).to(device)
    past = Past.unknown(state, model.config.controls, model.action_size)
    over = torch.zeros(config.episodes, dtype=torch.bool, device=device)
    states, ended = [state], [over]
    taken: list[Tensor] = []
    costs: list[float] = []
    spent, left = 0.0, 0
    for t in range(config.steps):
        if left == 0:
            began = time.perf_counter()
            current = plan(model, state, past, task, config.planner, generator=noise)
            cost = float(current.cost.mean())  # waits for the device
            spent += time.perf_counter() - began
            left = min(config.planner.every, model.config.actions)
            chosen = current.actions
        action, chosen, left = chosen[:, 0], chosen[:, 1:], left - 1
        if holds is not None and taken:
            action = torch.where(holds(state).unsqueeze(1), taken[-1], action)
        following, terminated = env.step(action.cpu().numpy())
        past = past.push(state, action)
        state, over = torch.from_numpy(following).to(device), torch.from_numpy(terminated).to(device)
        states.append(state)
        taken.append(action)
        ended.append(over)
        costs.append(cost)
        on_step(t + 1)
        if terminated.all():
            break
    return Execution(torch.stack(states, 1), torch.stack(taken, 1), torch.stack(ended, 1), costs, spent)


def fresh_start(seed: int, episode: int) -> np.random.Generator:
    """The generator that draws an episode's start; its stream is neither collection's nor training's."""
    return np.random.Generator(np.random.Philox(np.random.SeedSequence(seed, spawn_key=(7, episode, 0))))
