"""A task made ready to be carried out: where its episodes start, what each is asked for, and what it came to."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ebmtraj.datasets.store import Store
from ebmtraj.errors import EbmtrajError
from ebmtraj.fields import Field
from ebmtraj.trajectories.costs import TaskCost, parse_task
from ebmtraj.trajectories.execute import ExecuteConfig, Execution, Holds
from ebmtraj.trajectories.measure import error, held_out_goals, kept, measures, own_costs, reached, reorients, rotation_task
from ebmtraj.trajectories.measure_goals import goal_measures, held_out_poses, poses_wanted


@dataclass(frozen=True)
class Trial:
    """A task with an axis or a goal for each episode."""

    task: TaskCost
    config: ExecuteConfig
    start: Tensor | None = None  # (B, S); None: fresh starts of the environment
    holds: Holds | None = None  # the stop rule
    goal: Tensor | None = None  # (B, 4) orientations
    hold: float = 0.0  # rad
    axis: Tensor | None = None  # (B, 3)
    names: tuple[str, ...] = ()  # of the episodes' axes

    def result(self, execution: Execution) -> dict[str, Any]:
        """What carrying it out came to, as JSON; see `measures`, `reached`, `goal_measures`, `kept` and `own_costs`."""
        fields = self.task.state_fields
        result = measures(execution, self.config, fields, self.axis, list(self.names))
        if self.goal is not None:
            result |= reached(execution, self.config, self.goal, fields, self.hold)
        else:
            result |= goal_measures(execution, self.task)
        return result | kept(execution, self.task) | own_costs(execution, self.task)


def make_trial(
    task: TaskCost,
    config: ExecuteConfig,
    store: Callable[[], Store],
    *,
    hold: float = 0.35,
    device: torch.device | str = "cpu",
) -> Trial:
    """Give each episode what the task leaves open: an axis of `axis=all`, a held-out episode's orientation or joint pose.

    `axis=all` makes the number of episodes a multiple of six. `hold` (rad) is the stop rule of orientations. Raises
    `EbmtrajError` where the store has too few such episodes, or other states.
    """
    if any(getattr(part, "axis", None) == "all" for part in task.parts if part.name == "rotate"):
        config = dataclasses.replace(config, episodes=6 * -(-config.episodes // 6))
    task, axis, names = rotation_task(task, config.episodes, device)
    trial = Trial(task, config, axis=axis, names=tuple(names))
    if reorients(task):
        goals = held_out_goals(_of_same_states(store(), task), config.episodes, config.seed)
        goal = goals.quaternion.to(device)
        return dataclasses.replace(
            trial,
            task=task.given("reorient", goal=goal),
            start=goals.start,
            holds=_stop_rule(goal, hold, task.state_fields),
            goal=goal,
            hold=hold,
        )
    if (pose := poses_wanted(task)) is not None:
        poses = held_out_poses(_of_same_states(store(), task), pose, config.episodes, config.seed, ahead=config.steps)
        return dataclasses.replace(trial, task=task.given("joint-pose", goal=poses.joints.to(device)), start=poses.start)
    return trial


def usual_task(fields: Sequence[Field], *, whole: bool = False) -> str:
    """A task that makes sense of such states; `whole`: for plans of whole sequences, which end in a goal."""
    if any(field.kind == "quaternion" for field in fields):
        return "joint-pose when=end" if whole else "rotate axis=z"
    try:
        parse_task("reach", fields)  # the state says where to, as a Reacher's does
    except EbmtrajError:
        return "joint-pose when=end"
    return "reach"


def _of_same_states(store: Store, task: TaskCost) -> Store:
    if store.state_fields != task.state_fields:
        raise EbmtrajError(
            f"store {store.path} holds other states than those that the run was trained on; give one of the same "
            "environment (--data)"
        )
    return store


def _stop_rule(goal: Tensor, hold: float, fields: tuple[Field, ...]) -> Holds:
    return lambda state: error(state, goal, fields) < hold
