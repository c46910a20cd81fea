"""Plans of actions by gradient descent through a feed-forward model: trajectory optimisation without an energy.

Du, Lin and Mordatch 2019.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ebmtraj.envs.batch import BatchEnv
from ebmtraj.errors import EbmtrajError
from ebmtraj.samplers.langevin import frozen
from ebmtraj.trajectories.baselines.feed_forward import FeedForwardModel
from ebmtraj.trajectories.control import Decision, check_fields
from ebmtraj.trajectories.costs import Path, TaskCost
from ebmtraj.trajectories.model import TransitionModel
from ebmtraj.trajectories.sequence_coordinates import bounds_of


@dataclass(frozen=True)
class GradientConfig:
    """How actions are chosen through the model. Raises `EbmtrajError` for a setting out of its range."""

    horizon: int = 16  # control steps
    samples: int = 8  # sequences a start, each descended; the one of least cost is followed
    iterations: int = 40  # of Adam
    rate: float = 0.1  # of Adam, in units of the actions' half range
    correlation: float = 0.85  # of a fresh random sequence from step to step
    spread: float = 0.3  # how far other samples start from the last plan towards a fresh sequence
    every: int = 1  # control steps between plans
    deadline: int = 0  # control step of an episode at which every plan ends, nearer than its horizon; 0: none

    def __post_init__(self) -> None:
        if min(self.horizon, self.samples, self.every) < 1 or min(self.iterations, self.deadline) < 0 or self.rate <= 0:
            raise EbmtrajError(
                f"gradient plan: horizon = {self.horizon}, samples = {self.samples}, every = {self.every}, iterations = "
                f"{self.iterations}, deadline = {self.deadline}, rate = {self.rate}; it needs horizon, samples and every "
                ">= 1, iterations and deadline >= 0, rate > 0"
            )
        if not 0 <= self.correlation < 1 or not 0 <= self.spread <= 1:
            raise EbmtrajError(
                f"gradient plan: correlation = {self.correlation}, spread = {self.spread}; it needs 0 <= correlation < 1 "
                "and 0 <= spread <= 1"
            )


class GradientPlanner:
    """Receding horizon on s' = f(s, a): projected Adam on whole sequences of actions, see `Controller`.

    The planner of Du, Lin & Mordatch 2019 with a feed-forward model in the energy's place. Raises `EbmtrajError` for a model
    that is not `fc` with actions, or actions without bounds.
    """

    def __init__(self, model: TransitionModel, config: GradientConfig | None = None) -> None:
        if not isinstance(model, FeedForwardModel) or not model.actions or model.history:
            raise EbmtrajError(
                "a plan through a model needs an fc model with actions, without history; train it with --model fc --actions"
            )
        self.model, self.config = model, config or GradientConfig()
        low, high = bounds_of(model.action_fields)
        self.middle, self.half = (low + high) / 2, (high - low) / 2

    def begin(self, env: BatchEnv, state: Tensor, task: TaskCost, generator: torch.Generator) -> None:
        """Forget the last plan; see `Controller.begin`."""
        check_fields(env, self.model.state_fields, self.model.action_fields)
        self._task, self._generator = task, generator
        self._u: Tensor | None = None  # the plan in use, (B, T, A) in [-1, 1]
        self._time = self._done = 0

    @torch.no_grad()
    def __call__(self, state: Tensor, previous: Tensor | None) -> Decision:
        """The next action of the plan in use, which is made anew every `config.every` steps."""
        config = self.config
        if self._u is None or self._done == min(config.every, self._u.shape[1]):
            left = config.deadline - self._time if config.deadline else config.horizon
            self._u, self._cost, self._path = self._plan(state, max(1, min(config.horizon, left)))
            self._done = 0
        action = self.middle + self.half * self._u[:, self._done]
        self._done += 1
        self._time += 1
        return Decision(action, self._cost, self._path)

    def _plan(self, state: Tensor, horizon: int) -> tuple[Tensor, Tensor, Path]:
        """The best of some descended sequences `(B, T, A)` from states `(B, S)`, its cost `(B,)` and where it leads."""
        config, batch = self.config, len(state)
        rows = torch.arange(batch).repeat_interleave(config.samples)
        start, task = state[rows], self._task.rows(rows)
        u = self._random(len(rows), horizon)
        if self._u is not None:
            moved = torch.cat((self._u[:, self._done :], self._u[:, -1:].expand(-1, horizon, -1)), dim=1)[rows, :horizon]
            others = torch.arange(len(u)) % config.samples > 0  # one sample goes on with the last plan as it is
            u = moved + config.spread * others[:, None, None] * (u - moved)
        with frozen(self.model):
            u = self._descend(u, start, task)
            path = self._path_of(u, start)
        cost = task.cost(path)
        best = cost.view(batch, -1).argmin(1) + config.samples * torch.arange(batch)
        chosen = Path(state, path.states[best], path.times, None if path.actions is None else path.actions[best])
        return u[best], cost[best], chosen

    def _random(self, count: int, horizon: int) -> Tensor:
        """Smooth sequences in [-1, 1]: a first-order autoregressive process of unit spread, clipped."""
        noise = torch.empty(count, horizon, len(self.half)).normal_(generator=self._generator)
        rho = self.config.correlation
        steps = [noise[:, 0]]
        for t in range(1, horizon):
            steps.append(rho * steps[-1] + (1 - rho**2) ** 0.5 * noise[:, t])
        return torch.stack(steps, dim=1).clamp(-1, 1)

    def _path_of(self, u: Tensor, start: Tensor) -> Path:
        """Where the model says that actions lead, differentiable in them."""
        actions, state, states = self.middle + self.half * u, start, []
        for t in range(u.shape[1]):
            state = following(self.model, state, actions[:, t])
            states.append(state)
        return Path.sequence(start, torch.stack(states, dim=1), actions)

    def _descend(self, u: Tensor, start: Tensor, task: TaskCost) -> Tensor:
        u = u.clone().requires_grad_(True)
        adam = torch.optim.Adam([u], lr=self.config.rate)
        for _ in range(self.config.iterations):
            with torch.enable_grad():
                (u.grad,) = torch.autograd.grad(task.cost(self._path_of(u, start)).sum(), u)
            adam.step()
            u.clamp_(-1, 1)
        return u.detach()


def following(model: FeedForwardModel, state: Tensor, action: Tensor) -> Tensor:
    """The next states that a feed-forward model expects, `(B, S), (B, A) -> (B, S)`, kept in range, differentiable."""
    z = model.expected_move(state, model.context(state, action))
    return model.normaliser.clamp(model.normaliser.advance(state, z))
