"""What chooses actions in the simulator, for all episodes at once."""

from __future__ import annotations

from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from ebmtraj.datasets.windows import Past
from ebmtraj.envs.batch import BatchEnv
from ebmtraj.errors import EbmtrajError
from ebmtraj.fields import Field
from ebmtraj.trajectories.costs import TaskCost
from ebmtraj.trajectories.plan import Plan, PlannerConfig, plan
from ebmtraj.trajectories.terms.term import Path
from ebmtraj.trajectories.window import WindowModel


class Decision(NamedTuple):
    """What is to be done now and, of a controller that plans, where it is expected to lead at what cost."""

    action: Tensor  # (B, A), within its bounds
    cost: Tensor | None = None  # (B,) of the plan in use
    path: Path | None = None  # of the plan in use; its times count from where the plan was made


class Controller(Protocol):
    """Chooses actions for B episodes side by side; `begin` once, then a call at every control step."""

    def begin(self, env: BatchEnv, state: Tensor, task: TaskCost, generator: torch.Generator) -> None:
        """Take the starts `(B, S)`, the task and the noise; only a privileged controller looks into the environment.

        Raises `EbmtrajError` where the controller was made for other states or actions.
        """
        ...

    def __call__(self, state: Tensor, previous: Tensor | None) -> Decision:
        """The next actions in states `(B, S)`; `previous` `(B, A)` was carried out last, None at the start."""
        ...


class WindowPlanner:
    """Receding horizon with plans drawn from a window energy, see `plan`."""

    def __init__(self, model: WindowModel, config: PlannerConfig | None = None) -> None:
        self.model, self.config = model, config or PlannerConfig()

    def begin(self, env: BatchEnv, state: Tensor, task: TaskCost, generator: torch.Generator) -> None:
        """Forget the past; see `Controller.begin`."""
        check_fields(env, self.model.state_fields, self.model.action_fields)
        self._task, self._generator = task, generator
        self._state, self._past = state, Past.unknown(state, self.model.config.controls, self.model.action_size)
        self._plan: Plan | None = None
        self._done = 0  # steps of the plan in use that were carried out

    def __call__(self, state: Tensor, previous: Tensor | None) -> Decision:
        """The next action of the plan in use, which is made anew every `config.every` steps."""
        if previous is not None:
            self._past = self._past.push(self._state, previous)
        self._state = state
        if self._plan is None or self._done == min(self.config.every, self.model.config.actions):
            self._plan = plan(self.model, state, self._past, self._task, self.config, generator=self._generator)
            self._done = 0
        self._done += 1
        return Decision(self._plan.actions[:, self._done - 1], self._plan.cost, self._plan.path)


def check_fields(env: BatchEnv, state_fields: tuple[Field, ...], action_fields: tuple[Field, ...]) -> None:
    """Raise `EbmtrajError` where an environment is not the one that a model was trained on."""
    if env.state_fields != state_fields or env.action_fields != action_fields:
        raise EbmtrajError(f"the run was trained on other states or actions than those of {env.env_id}; choose its own")
