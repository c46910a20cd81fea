"""What carrying out a task of getting somewhere came to: positions reached, obstacles touched, joint poses."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ebmtraj.datasets.store import Store
from ebmtraj.datasets.windows import trajectories
from ebmtraj.errors import EbmtrajError
from ebmtraj.trajectories.costs import TaskCost, Term
from ebmtraj.trajectories.execute import Execution
from ebmtraj.trajectories.terms.joints import JointPose
from ebmtraj.trajectories.terms.position import Obstacle, Point, Reach
from ebmtraj.trajectories.terms.term import rows_of

WITHIN = 0.02  # m from the goal at the end that count as success
NEAR = 0.1  # m from an obstacle within which standing still is being held up by it


def goal_measures(execution: Execution, task: TaskCost) -> dict[str, Any]:
    """What a task with `reach` or `joint-pose` came to, as JSON values; nothing for other tasks.

    Of `reach`, `success_rate` counts episodes that end within 2 cm of the goal and, where the task has obstacles, touched
    none; of `joint-pose`, `rmse_rad` is over joints and episodes at the end, and `start_rmse_rad` what holding still leaves.
    """
    result: dict[str, Any] = {}
    reach, pose = (next((p for p in task.parts if isinstance(p, kind)), None) for kind in (Reach, JointPose))
    if isinstance(reach, Reach):
        left = distances(execution.states, reach)[:, -1]
        success = left < WITHIN
        obstacles = [part for part in task.parts if isinstance(part, Obstacle)]
        if obstacles:
            clear = ~touched(execution.states, obstacles)
            result |= {"reach_rate": float(success.double().mean()), "clear_rate": float(clear.double().mean())}
            success &= clear
        result |= {
            "success_rate": float(success.double().mean()),
            "success_se": float(success.double().std(correction=0) / len(success) ** 0.5),
            "median_distance_m": float(left.median()),
            "mean_distance_m": float(left.mean()),
        }
    if isinstance(pose, JointPose):
        first, last = (pose_errors(execution.states[:, k], pose) for k in (0, -1))
        result |= {
            "rmse_rad": float(last.square().mean().sqrt()),
            "median_rmse_rad": float(last.square().mean(-1).sqrt().median()),
            "start_rmse_rad": float(first.square().mean().sqrt()),
        }
    return result


def distances(states: Tensor, term: Reach) -> Tensor:
    """Metres from the goal in states `(B, T, S)`, `(B, T)`."""
    return (Point.find(term, term.links).of(states) - term.goals(states[:, 0])).norm(dim=-1)


def touched(states: Tensor, obstacles: list[Obstacle]) -> Tensor:
    """Which episodes of states `(B, T+1, S)` came into an obstacle, or were held up by one, `(B,)`.

    Held up: the position did not change at all, within 10 cm of it; a simulator does not let a point into a real one.
    """
    hit = torch.zeros(len(states), dtype=torch.bool, device=states.device)
    for term in obstacles:
        place = Point.find(term).of(states)
        away = (place - rows_of(term.centre, states)).norm(dim=-1) - term.radius
        still = (place[:, 1:] == place[:, :-1]).all(-1) & (away[:, 1:] < NEAR)
        hit |= (away < 0).any(1) | still.any(1)
    return hit


def pose_errors(states: Tensor, term: JointPose) -> Tensor:
    """Radians that each joint is off its goal in states `(B, S)`, `(B, J)`."""
    return (term.find_joints(term.joints).of(states.unsqueeze(1)) - rows_of(term.goal, states))[:, 0]


@dataclass(frozen=True)
class Poses:
    """Starts `(B, S)` from within held-out episodes, and joint angles `(B, J)` of the same episodes some steps later."""

    start: Tensor
    joints: Tensor


def poses_wanted(task: TaskCost) -> JointPose | None:
    """The term that asks for a joint pose which is still to be given."""
    parts = (part for part in task.parts if isinstance(part, JointPose))
    return next((part for part in parts if isinstance(part.goal, tuple) and not part.goal), None)


def held_out_poses(store: Store, term: Term, count: int, seed: int, *, ahead: int = 25, split: str = "test") -> Poses:
    """`count` starts, one an episode at a random moment, and the joints of `term` `ahead` steps later.

    Raises `EbmtrajError` where the split has too few episodes of that length.
    """
    assert isinstance(term, JointPose)
    found = trajectories(store, split, max(ahead, min(100, int(store.lengths.max()))))
    if len(found.states) < count:
        raise EbmtrajError(
            f"store {store.path}: {len(found.states)} {split} episodes are as long as others, not {count}; give a store of "
            "more (--data), or fewer --episodes"
        )
    noise = torch.Generator().manual_seed(seed)
    rows = torch.randperm(len(found.states), generator=noise)[:count]
    moment = torch.randint(0, found.states.shape[1] - ahead, (count,), generator=noise)
    later = found.states[rows, moment + ahead].unsqueeze(1)
    joints = term.find_joints(term.joints)
    low, high = (torch.tensor(bound, dtype=later.dtype) for bound in (joints.low, joints.high))
    pose = joints.of(later)[:, 0].clamp(low, high)  # a simulator lets joints pass their limits a little
    return Poses(found.states[rows, moment], pose)
