"""Predictive sampling in the true simulator: the best of some futures that really would happen.

An upper bound. Howell et al. 2022.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from ebmtraj.datasets.windows import Past
from ebmtraj.envs.batch import BatchEnv
from ebmtraj.envs.registry import make_batch
from ebmtraj.errors import EbmtrajError
from ebmtraj.trajectories.control import Decision, check_fields
from ebmtraj.trajectories.controllers.simple import start_pose
from ebmtraj.trajectories.costs import TaskCost
from ebmtraj.trajectories.plan import PlannerConfig, plan
from ebmtraj.trajectories.terms.term import Path
from ebmtraj.trajectories.window import WindowModel


@dataclass(frozen=True)
class PredictiveConfig:
    """How futures are proposed and judged (Howell et al. 2022, "Predictive Sampling": the best of some, no averaging).

    Raises `EbmtrajError` for a setting out of its range.
    """

    samples: int = 16  # futures an episode, of which the best is done
    horizon: int = 16  # control steps that are simulated
    every: int = 4  # control steps between plans
    dropped: float = 2.0  # added to the cost of a future in which the episode ends
    knots: int = 4  # of the splines that proposals around the previous plan are made of
    scale: float = 0.3  # their spread, in half ranges of the actions
    guidance: float = 0.0  # of proposals from a window energy, as in `PlannerConfig`
    redraw: int = 8  # steps after which such a proposal is drawn on, from the state that it has led to

    def __post_init__(self) -> None:
        if min(self.samples, self.horizon, self.every, self.redraw) < 1 or self.knots < 2 or self.every > self.horizon:
            raise EbmtrajError(
                f"predictive sampling: samples = {self.samples}, horizon = {self.horizon}, every = {self.every}, "
                f"redraw = {self.redraw}, knots = {self.knots}; it needs samples, every and redraw >= 1, knots >= 2 and "
                "horizon >= every"
            )


class Physical(BatchEnv, Protocol):
    """A batch whose simulation can be put into any state."""

    physics_state: np.ndarray  # (B, P), MuJoCo's full physics state


class Proposer(Protocol):
    """Proposes actions for futures that stand together, `samples` for each episode; row 0 of each goes on as planned."""

    def begin(self, env: BatchEnv, state: Tensor, task: TaskCost, generator: torch.Generator) -> None:
        """Forget the past at the starts `(B, S)`; see `Controller.begin`."""

    def observe(self, state: Tensor, previous: Tensor | None) -> None:
        """Take note of the real states `(B, S)` and of the actions `(B, A)` that led there."""

    def propose(self, step: int, state: Tensor, left: Tensor | None) -> Tensor:
        """Actions `(B * N, A)` at a step of the futures, in the states `(B * N, S)` that they have come to.

        `left` `(B, L, A)` is what remains of the plan in use.
        """


class PredictiveSampling:
    """Simulates futures in a copy of the environment, and carries out the best one's first actions."""

    def __init__(self, proposer: Proposer, config: PredictiveConfig) -> None:
        self.proposer, self.config = proposer, config
        self._copy: Physical | None = None

    def begin(self, env: BatchEnv, state: Tensor, task: TaskCost, generator: torch.Generator) -> None:
        """Copy the environment; see `Controller.begin`."""
        if not hasattr(env, "physics_state"):
            raise EbmtrajError(f"{env.env_id} can't be simulated ahead: it has no physical state to start from")
        if self._copy is not None:
            self._copy.close()
        self._env: Physical = env  # type: ignore[assignment]
        self._copy = make_batch(env.env_id, **env.env_kwargs)  # type: ignore[assignment]
        self._owner = torch.arange(len(state), device=state.device).repeat_interleave(self.config.samples)
        self._task, self._each = task, task.rows(self._owner)
        self._plan: Tensor | None = None
        self._path: Path | None = None
        self._cost, self._done = state.new_zeros(len(state)), 0
        self.proposer.begin(env, state, task, generator)

    def __call__(self, state: Tensor, previous: Tensor | None) -> Decision:
        """The next action of the plan in use, which is made anew every `config.every` steps."""
        self.proposer.observe(state, previous)
        if self._plan is None or self._done == self.config.every:
            left = None if self._plan is None else self._plan[:, self._done :]
            self._plan, self._path, self._cost = self._best(state, left)
            self._done = 0
        self._done += 1
        return Decision(self._plan[:, self._done - 1], self._cost, self._path)

    def _best(self, state: Tensor, left: Tensor | None) -> tuple[Tensor, Path, Tensor]:
        """The actions `(B, H, A)` of the future of the least cost, where they lead, and that cost `(B,)`."""
        assert self._copy is not None
        count, many = len(state), self.config.samples
        self._copy.physics_state = np.repeat(self._env.physics_state, many, axis=0)
        now, over = state[self._owner], torch.zeros(count * many, dtype=torch.bool, device=state.device)
        start, states, actions = now, [], []
        for step in range(self.config.horizon):
            action = self.proposer.propose(step, now, left)
            following, ended = self._copy.step(action.cpu().numpy())
            over |= torch.from_numpy(ended).to(state.device)
            # where an episode has ended, later states mean nothing: it stays where it was
            now = torch.where(over.unsqueeze(1), now, torch.from_numpy(following).to(state.device))
            states.append(now)
            actions.append(action)
        taken = torch.stack(actions, 1)
        path = Path.sequence(start, torch.stack(states, 1), taken)
        cost = self._each(path) + self.config.dropped * over
        best = cost.view(count, many).argmin(1) + many * torch.arange(count, device=state.device)
        return taken[best], Path(state, path.states[best], path.times, taken[best]), cost[best]


class AroundThePlan:
    """Linear splines around the previous plan."""

    def __init__(self, config: PredictiveConfig) -> None:
        self.config = config
        place = torch.linspace(0, config.knots - 1, config.horizon).unsqueeze(1)
        self._weights = (1 - (place - torch.arange(config.knots)).abs()).clamp_min(0.0)  # (H, K) of the knots

    def begin(self, env: BatchEnv, state: Tensor, task: TaskCost, generator: torch.Generator) -> None:
        """The first plan stays where it is."""
        self._generator = generator
        low, high = zip(*(limit for f in env.action_fields for limit in zip(*f.limits(), strict=True)), strict=True)
        self._low, self._high = state.new_tensor(low), state.new_tensor(high)
        self._stay = start_pose(state, env.state_fields, env.action_fields)

    def observe(self, state: Tensor, previous: Tensor | None) -> None:
        """Nothing is remembered."""

    def propose(self, step: int, state: Tensor, left: Tensor | None) -> Tensor:
        """Drawn at the first step for all."""
        if step == 0:
            many, size = self.config.samples, len(self._low)
            plan = self._stay.unsqueeze(1) if left is None or left.shape[1] == 0 else left
            missing = self.config.horizon - plan.shape[1]
            plan = torch.cat((plan, plan[:, -1:].expand(-1, missing, -1)), 1).repeat_interleave(many, dim=0)
            shape = (len(state), self.config.knots, size)
            noise = torch.empty(shape, device=state.device).normal_(generator=self._generator)
            noise[::many] = 0.0  # the plan itself
            half = 0.5 * (self._high - self._low)
            moved = plan + self.config.scale * half * (self._weights.to(state) @ noise)
            self._actions = torch.minimum(torch.maximum(moved, self._low), self._high)
        return self._actions[:, step]


class FromThePrior:
    """Windows of actions drawn from a window energy, guided by the task or not, drawn on where they end."""

    def __init__(self, model: WindowModel, config: PredictiveConfig) -> None:
        self.model, self.config = model, config
        self._planner = PlannerConfig(candidates=1, guidance=config.guidance)

    def begin(self, env: BatchEnv, state: Tensor, task: TaskCost, generator: torch.Generator) -> None:
        """No past is known."""
        check_fields(env, self.model.state_fields, self.model.action_fields)
        self._generator = generator
        self._owner = torch.arange(len(state), device=state.device).repeat_interleave(self.config.samples)
        self._task = task.rows(self._owner)
        self._state, self._past = state, Past.unknown(state, self.model.config.controls, self.model.action_size)
        self._before, self._taken = state, state.new_zeros(len(state), self.model.action_size)

    def observe(self, state: Tensor, previous: Tensor | None) -> None:
        """Remember the move that led here."""
        if previous is not None:
            self._past = self._past.push(self._state, previous)
        self._state = state

    def propose(self, step: int, state: Tensor, left: Tensor | None) -> Tensor:
        """The next action of each window, drawn anew every `redraw` steps."""
        if step == 0:
            self._ahead = self._past.rows(self._owner)
        else:
            self._ahead = self._ahead.push(self._before, self._taken)
        turn = step % min(self.config.redraw, self.model.config.actions)
        if turn == 0:
            drawn = plan(self.model, state, self._ahead, self._task, self._planner, generator=self._generator)
            self._window = drawn.actions
        action = self._window[:, turn].clone()
        if left is not None and step < left.shape[1]:
            action[:: self.config.samples] = left[:, step]
        self._before, self._taken = state, action
        return action
