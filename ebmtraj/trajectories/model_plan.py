"""Plans of actions through a feed-forward model: what is done without an energy."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor

from ebmtraj.errors import EbmtrajError
from ebmtraj.trajectories.baselines.feed_forward import FeedForwardModel
from ebmtraj.trajectories.costs import Path, TaskCost
from ebmtraj.trajectories.sequence_plan import bounds_of

Method = Literal["gradient", "shooting"]
METHODS: tuple[Method, ...] = get_args(Method)


@dataclass(frozen=True)
class ModelPlanConfig:
    """How actions are chosen through the model."""

    method: Method = "gradient"  # Adam on the actions, or the best of many random sequences
    horizon: int = 16  # control steps
    samples: int = 8  # sequences a start; of shooting, take many more
    iterations: int = 40  # of the gradient's steps, each for all samples
    rate: float = 0.1  # of Adam, in units of the actions' half range
    correlation: float = 0.85  # of a random sequence from step to step

    def __post_init__(self) -> None:
        if self.method not in METHODS:
            raise EbmtrajError(f"model plan: unknown method {self.method!r}; use one of {', '.join(METHODS)}")
        if min(self.horizon, self.samples, self.iterations) < 1 or self.rate <= 0 or not 0 <= self.correlation < 1:
            raise EbmtrajError(
                f"model plan: horizon = {self.horizon}, samples = {self.samples}, iterations = {self.iterations}, "
                f"rate = {self.rate}, correlation = {self.correlation}; it needs counts >= 1, rate > 0, 0 <= correlation < 1"
            )


class ModelPlanner:
    """Model-predictive control on s' = f(s, a): `act(states (B, S)) -> actions (B, A)`.

    Raises `EbmtrajError` for a model that is not `fc` with actions, or actions without bounds.
    """

    def __init__(self, model: FeedForwardModel, task: TaskCost, config: ModelPlanConfig | None = None) -> None:
        if not isinstance(model, FeedForwardModel) or not model.actions:
            raise EbmtrajError("a plan through a model needs an fc model with actions; train it with --model fc --actions")
        self.model, self.task, self.config = model, task, config or ModelPlanConfig()
        low, high = bounds_of(model.action_fields, torch.zeros(()))
        self.middle, self.half = (low + high) / 2, (high - low) / 2
        self.last: Tensor | None = None

    def reset(self) -> None:
        """Forget the last plan: episodes begin."""
        self.last = None

    def rollout(self, start: Tensor, actions: Tensor) -> Tensor:
        """The states `(B, T, S)` that the model predicts for actions `(B, T, A)`, differentiable in them."""
        states = [start]
        for t in range(actions.shape[1]):
            states.append(self.model.predict(states[-1], actions[:, t]))
        return torch.stack(states[1:], dim=1)

    def act(self, states: Tensor, generator: torch.Generator) -> Tensor:
        """The first action `(B, A)` of the best plan from states `(B, S)`."""
        config, batch, size = self.config, len(states), len(self.half)
        rows = torch.arange(batch).repeat_interleave(config.samples)
        start, task = states[rows], self.task.rows(rows)
        u = self._random((len(rows), config.horizon, size), generator)
        if self.last is not None and len(self.last) == batch:
            moved = torch.cat((self.last[:, 1:], self.last[:, -1:]), dim=1)
            u[:: config.samples] = moved  # one sample goes on with the last plan
            if config.method == "gradient":
                u = moved[rows] + 0.3 * (u - moved[rows]) * (torch.arange(len(u)) % config.samples > 0)[:, None, None]
        if config.method == "gradient":
            u = self._descend(u, start, task)
        with torch.no_grad():
            cost = self._cost(u, start, task).view(batch, config.samples)
            best = u.view(batch, config.samples, config.horizon, size)[torch.arange(batch), cost.argmin(1)]
        self.last = best
        return self.middle + self.half * best[:, 0]

    def _random(self, shape: tuple[int, int, int], generator: torch.Generator) -> Tensor:
        """Smooth sequences in [-1, 1]: a first-order autoregressive process of unit spread, clipped."""
        noise, rho = torch.empty(shape).normal_(generator=generator), self.config.correlation
        steps = [noise[:, 0]]
        for t in range(1, shape[1]):
            steps.append(rho * steps[-1] + (1 - rho**2) ** 0.5 * noise[:, t])
        return torch.stack(steps, dim=1).clamp(-1, 1)

    def _cost(self, u: Tensor, start: Tensor, task: TaskCost) -> Tensor:
        actions = self.middle + self.half * u
        return task.cost(Path.sequence(start, self.rollout(start, actions), actions))

    def _descend(self, u: Tensor, start: Tensor, task: TaskCost) -> Tensor:
        """Projected Adam on the actions of all samples."""
        trainable = [p for p in self.model.parameters() if p.requires_grad]
        for p in trainable:
            p.requires_grad_(False)
        u = u.clone().requires_grad_(True)
        adam = torch.optim.Adam([u], lr=self.config.rate)
        for _ in range(self.config.iterations):
            with torch.enable_grad():
                (u.grad,) = torch.autograd.grad(self._cost(u, start, task).sum(), u)
            adam.step()
            with torch.no_grad():
                u.clamp_(-1, 1)
        for p in trainable:
            p.requires_grad_(True)
        return u.detach()
