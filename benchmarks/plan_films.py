"""Ways to carry out one task from the same start, side by side in a film; of models that `ebmtraj compare plans` trained.

python benchmarks/plan_films.py runs/plans --task "rotate axis=z" --out docs/images/plans/methods.gif
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch

from ebmtraj.device import no_denormals, use_threads
from ebmtraj.envs.registry import make_batch
from ebmtraj.report.plan_film import Shown, plan_film
from ebmtraj.trajectories.controllers.registry import find_controller, make_controller
from ebmtraj.trajectories.controllers.trainings import TRAININGS
from ebmtraj.trajectories.costs import parse_task
from ebmtraj.trajectories.execute import ExecuteConfig, Execution, execute
from ebmtraj.trajectories.measure import rotation_task

METHODS = "ours,field,base,bc-goal,cem-fc-prior,commanded"


def main() -> None:
    """Carry out, film."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", type=Path, help="the folder that `ebmtraj compare plans --runs` made")
    parser.add_argument("--methods", default=METHODS, help="six at most, with commas between")
    parser.add_argument("--task", default="rotate axis=z")
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--seed", type=int, default=9000, help="of the start and of the noise")
    parser.add_argument("--out", type=Path, required=True, help=".gif or .mp4")
    arguments = parser.parse_args()
    use_threads(1)
    env = make_batch("hand-cube")
    task, _, _ = rotation_task(parse_task(arguments.task, env.state_fields), 1)
    names = arguments.methods.split(",")
    found = []
    with no_denormals():
        for name in names:
            needs = find_controller(name).needs
            trained = {need: TRAININGS[need].load(arguments.runs / "trained" / need / "seed-0") for need in needs}
            controller = make_controller(name, trained, "rotate")
            found.append(execute(env, controller, task, ExecuteConfig(1, arguments.steps, arguments.seed), watched=(0,)))
    longest = max(each.states.shape[1] for each in found)
    together = Execution(
        torch.cat([_held(each.states, longest) for each in found]),
        torch.cat([_held(each.actions, longest - 1) for each in found]),
        torch.cat([_held(each.over, longest) for each in found]),
        [],
        0.0,
        [],
    )
    all_alike = task.rows(torch.zeros(len(names), dtype=torch.long))
    plan_film(together, Shown(tuple(range(len(names))), tuple(names)), all_alike, env, arguments.out)
    env.close()


def _held(rows: torch.Tensor, length: int) -> torch.Tensor:
    """Rows `(1, T, ...)` that ended early, the last of them held until `length`."""
    return torch.cat((rows, rows[:, -1:].expand(-1, length - rows.shape[1], *rows.shape[2:])), dim=1)


if __name__ == "__main__":
    main()
