"""An execution that is watched while it goes on, in MuJoCo's viewer."""

from __future__ import annotations

import torch
from torch import Tensor

from ebmtraj.envs.batch import BatchEnv
from ebmtraj.envs.render import AHEAD
from ebmtraj.envs.scenery import Overlay
from ebmtraj.envs.viewer import Viewer
from ebmtraj.report.plan_film import ahead, each, words
from ebmtraj.trajectories.control import Controller, Decision
from ebmtraj.trajectories.costs import TaskCost


class Live:
    """A controller of one episode that shows each state, and where the plan is expected to lead, before it acts."""

    def __init__(self, controller: Controller, viewer: Viewer) -> None:
        self._controller, self._viewer = controller, viewer

    def begin(self, env: BatchEnv, state: Tensor, task: TaskCost, generator: torch.Generator) -> None:
        """See `Controller.begin`."""
        self._task, self._states = task, state[:0]
        self._controller.begin(env, state, task, generator)

    def __call__(self, state: Tensor, previous: Tensor | None) -> Decision:
        """What the controller decides; no faster than the robot moves while the window is open."""
        decision = self._controller(state, previous)
        self._states = torch.cat((self._states, state))
        plan = None if decision.path is None else ahead(decision.path, 0, AHEAD)[0]
        overlay = Overlay(plan, each(self._task, "axis", 0), each(self._task, "goal", 0))
        if self._viewer.show(state[0].cpu().numpy(), overlay):
            said = [form.format(float(values[0, -1])) for form, values in words(self._task, self._states[None])]
            self._viewer.say(", ".join([f"step {len(self._states) - 1}", *said]))
        return decision
