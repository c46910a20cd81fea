"""A task carried out in the simulator: a receding horizon over many episodes at once."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ebmtraj.envs.batch import BatchEnv
from ebmtraj.errors import EbmtrajError
from ebmtraj.trajectories.control import Controller
from ebmtraj.trajectories.costs import TaskCost
from ebmtraj.trajectories.terms.term import Path

Holds = Callable[[Tensor], Tensor]  # states (B, S) -> which episodes repeat their last action (B,)


@dataclass(frozen=True)
class ExecuteConfig:
    """Fresh starts of the environment, none of which is in any store.

    Raises `EbmtrajError` for a setting out of its range.
    """

    episodes: int = 48  # side by side
    steps: int = 100  # control steps an episode
    seed: int = 0  # of starts and of the controller's noise

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
    costs: list[float]  # the mean expected cost of the plans in use at each step; none of a controller that does not plan
    control_seconds: float  # that the controller took
    planned: list[Path]  # T of them: where the plans in use of the watched episodes were expected to lead

    @property
    def dropped(self) -> Tensor:
        """Which episodes ended before their time, `(B,)`."""
        return self.over[:, -1]


@torch.no_grad()
def execute(
    env: BatchEnv,
    controller: Controller,
    task: TaskCost,
    config: ExecuteConfig,
    *,
    start: Tensor | None = None,
    holds: Holds | None = None,
    watched: Sequence[int] = (),
    device: torch.device | str = "cpu",
    on_step: Callable[[int], None] = lambda step: None,
) -> Execution:
    """Ask the controller, do what it says, look, and ask again, for all episodes at once.

    Without `start` states `(B, S)`, at rest, episode i starts as episode i of `evaluate_policy` with the same seed. Where
    `holds` says so, an episode repeats its last action for now. The plans of the `watched` episodes are kept. Raises
    `EbmtrajError` where the environment is not the one that the controller was made for.
    """
    noise = torch.Generator(device=device).manual_seed(config.seed)
    if start is None:
        env.reset([fresh_start(config.seed, i) for i in range(config.episodes)])
    else:
        env.set_state(start.cpu().numpy())
    state = torch.from_numpy(env.states).to(device)
    over = torch.zeros(config.episodes, dtype=torch.bool, device=device)
    states, ended = [state], [over]
    taken: list[Tensor] = []
    planned: list[Path] = []
    costs: list[float] = []
    began = time.perf_counter()
    controller.begin(env, state, task, noise)
    spent = time.perf_counter() - began
    for t in range(config.steps):
        began = time.perf_counter()
        decision = controller(state, taken[-1] if taken else None)
        action = decision.action
        if holds is not None and taken:
            action = torch.where(holds(state).unsqueeze(1), taken[-1], action)
        controls = action.cpu().numpy()  # waits for the device
        spent += time.perf_counter() - began
        following, terminated = env.step(controls)
        state, over = torch.from_numpy(following).to(device), torch.from_numpy(terminated).to(device)
        states.append(state)
        taken.append(action)
        ended.append(over)
        if decision.cost is not None:
            costs.append(float(decision.cost.mean()))
        if watched and decision.path is not None:
            rows = list(watched)
            start, path = decision.path.start[rows], decision.path.states[rows]
            planned.append(Path(start.cpu(), path.cpu(), decision.path.times.cpu()))
        on_step(t + 1)
        if terminated.all():
            break
    return Execution(torch.stack(states, 1), torch.stack(taken, 1), torch.stack(ended, 1), costs, spent, planned)


def fresh_start(seed: int, episode: int) -> np.random.Generator:
    """The generator that draws an episode's start; its stream is neither collection's nor training's."""
    return np.random.Generator(np.random.Philox(np.random.SeedSequence(seed, spawn_key=(7, episode, 0))))
