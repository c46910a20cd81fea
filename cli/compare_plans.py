"""`ebmtraj compare plans`: controllers side by side in the simulator."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from ebmtraj.cli.common import Data, Set
from ebmtraj.cli.comparing import Comparing, Course, First, Out, changes_by_row
from ebmtraj.cli.grouped import grouped
from ebmtraj.cli.watching import command_line


@grouped
def plans(
    data: Data,
    course: Course,
    models: Annotated[str, typer.Option(help="all, or names with commas between, e.g. ours,base,bc-axis,hold.")] = "all",
    tasks: Annotated[str, typer.Option(help="rotate, reorient or both with a comma.")] = "rotate,reorient",
    seeds: Annotated[int, typer.Option(help="Trainings of each model, from --seed on.", min=1)] = 3,
    seed: First = 0,
    seconds: Annotated[float, typer.Option(help="Training time of each model, of one core.", min=0.1)] = 240.0,
    episodes: Annotated[int, typer.Option(help="Starts, the same for all; a multiple of 6.", min=1)] = 192,
    steps: Annotated[int, typer.Option(help="Control steps an episode.", min=1)] = 100,
    start_seed: Annotated[int, typer.Option(help="Of starts and goals; choose settings on others, e.g. 500.", min=0)] = 9000,
    split: Annotated[
        str, typer.Option(help="Whose episodes goals come from: test, or validation to choose settings.")
    ] = "test",
    hold: Annotated[
        float, typer.Option(help="The stop rule: within so many rad of the goal the last action is repeated.", min=0)
    ] = 0.35,
    set_: Set = None,
    out: Out = Path("runs/compare/plans.json"),
    pictures: Annotated[Path | None, typer.Option(help="Folder for a figure.")] = None,
) -> None:
    """Carry out the same tasks from the same starts with plans and with what they compete against.

    Every model that a controller needs is trained for the same seconds of a core and shared by all that need it. Reorient
    is measured with the stop rule and without. --set changes a controller's settings or a training's by its name: --set
    ours.candidates=16, --set window.network.width=128. A comparison that was killed goes on with --resume; more --seeds,
    --models or --tasks may then be asked for.

    Example: ebmtraj compare plans --data hand.zarr --models ours,base,bc-axis,hold --seeds 1 --episodes 48 --seconds 60
    """
    from ebmtraj.datasets.store import Store
    from ebmtraj.report.compare_plans import (
        PlanComparison,
        choose_models,
        choose_plan_tasks,
        prepare_plans,
    )
    from ebmtraj.report.compare_plans_results import plan_results
    from ebmtraj.report.compare_plans_run import run_plan_jobs
    from ebmtraj.report.compare_plans_table import plans_figure, rich_plans
    from ebmtraj.runs import write_json

    comparing = Comparing(out, course)
    changes = changes_by_row(set_, "ours.{}")
    store = Store.open(data)
    comparison = PlanComparison(
        data=data,
        models=choose_models(models, store.attributes.get("env", "")),
        tasks=choose_plan_tasks(tasks),
        seeds=tuple(range(seed, seed + seeds)),
        runs=comparing.folder,
        seconds=seconds,
        episodes=episodes,
        steps=steps,
        start_seed=start_seed,
        split=split,
        hold=hold,
        changes=changes,
    )
    if course.dry_run:
        from ebmtraj.report.estimate import Piece
        from ebmtraj.trajectories.controllers.trainings import COMMANDS, TRAININGS

        def pieces(tried: PlanComparison) -> list[Piece]:
            own = [job for job in prepare_plans(tried, store)[0] if job.seed == seed]
            return [Piece(job.label, COMMANDS[TRAININGS[job.name].kind].kind, job.recipe(), seeds) for job in own]

        comparing.estimate_trainings(comparison, pieces, "carrying out the plans")
    jobs = prepare_plans(comparison, store, **comparing.opening)
    both: list[Any] = [*jobs[0], *jobs[1]]
    comparing.carry_out(
        both,
        f"{len(jobs[0])} trainings, {len(jobs[1])} executions",
        lambda workers, on_done: run_plan_jobs(jobs, workers=workers, on_done=on_done),
        _line,
    )
    results = plan_results(jobs, store, command=command_line())
    write_json(comparing.out, results)
    drawn = [str(plans_figure(results, pictures / "plans.png"))] if pictures is not None else []
    note = "means over starts and seeds ± their standard error over the starts (least and greatest seed)"
    comparing.tell(results, {"pictures": drawn}, lambda: [rich_plans(results)], note)


def _line(job: Any, outcome: dict[str, Any]) -> str:
    """One finished job for a person."""
    facts = outcome["facts"]
    if outcome["diverged"]:
        return f"{job.label}: diverged: {outcome['diverged']}"
    if "train_steps" in facts:
        return f"{job.label}: {facts['train_steps']} steps, validation {facts['validation']:.4f}"
    said = f"{facts['progress_rad_per_100']:.2f} rad, " if "progress_rad_per_100" in facts else ""
    said += f"{facts['success_rate']:.1%} reached, " if "success_rate" in facts else ""
    return f"{job.label}: {said}{facts['drop_rate']:.1%} dropped, {facts['core_seconds']:.0f} s"
