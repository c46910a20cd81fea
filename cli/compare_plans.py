"""`ebmtraj compare plans`: controllers side by side in the simulator."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated, Any

import typer

from ebmtraj.cli.common import Data, Json, Overwrite, Resume, Set, print_json, say, stderr
from ebmtraj.cli.dry import DryRun, refuse_resume, tell_trainings
from ebmtraj.cli.watching import command_line, watched


def plans(
    data: Data,
    models: Annotated[str, typer.Option(help="all, or names with commas between, e.g. ours,base,bc-axis,hold.")] = "all",
    tasks: Annotated[str, typer.Option(help="rotate, reorient or both with a comma.")] = "rotate,reorient",
    seeds: Annotated[int, typer.Option(help="Trainings of each model, from --seed on.", min=1)] = 3,
    seed: Annotated[int, typer.Option(help="The first seed.", min=0, max=2**31)] = 0,
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
    out: Annotated[Path, typer.Option(help="The JSON file to write.")] = Path("runs/compare/plans.json"),
    runs: Annotated[Path | None, typer.Option(help="Folder of all runs. [default: named as --out, without .json]")] = None,
    pictures: Annotated[Path | None, typer.Option(help="Folder for a figure.")] = None,
    workers: Annotated[int | None, typer.Option(help="Jobs at once, one core each. [default: cores]", min=1)] = None,
    resume: Resume = False,
    overwrite: Overwrite = False,
    dry_run: DryRun = False,
    json_: Json = False,
) -> None:
    """Carry out the same tasks from the same starts with plans and with what they compete against.

    Every model that a controller needs is trained for the same seconds of a core and shared by all that need it. Reorient
    is measured with the stop rule and without. --set changes a controller's settings or a training's by its name: --set
    ours.candidates=16, --set window.network.width=128. A comparison that was killed goes on with --resume; more --seeds,
    --models or --tasks may then be asked for.

    Example: ebmtraj compare plans --data hand.zarr --models ours,base,bc-axis,hold --seeds 1 --episodes 48 --seconds 60
    """
    from ebmtraj.config import parse_overrides
    from ebmtraj.datasets.store import Store
    from ebmtraj.errors import EbmtrajError
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

    if resume and overwrite:
        raise EbmtrajError("choose one of --resume and --overwrite: the first goes on, the second replaces all runs")
    if out.suffix != ".json":
        raise EbmtrajError(f"--out {out}: give a path that ends in .json")
    if out.exists() and not (resume or overwrite):
        raise EbmtrajError(f"{out} exists; give another --out, --resume to go on, or --overwrite to replace it and its runs")
    changes = parse_overrides(set_ or [])
    for name, values in changes.items():
        if not isinstance(values, dict):
            raise EbmtrajError(f"--set {name}=...: say whose setting it is, such as ours.{name}=...")
    store = Store.open(data)
    comparison = PlanComparison(
        data=data,
        models=choose_models(models, store.attributes.get("env", "")),
        tasks=choose_plan_tasks(tasks),
        seeds=tuple(range(seed, seed + seeds)),
        runs=runs or out.with_suffix(""),
        seconds=seconds,
        episodes=episodes,
        steps=steps,
        start_seed=start_seed,
        split=split,
        hold=hold,
        changes=changes,
    )
    if dry_run:
        from ebmtraj.report.estimate import Piece
        from ebmtraj.trajectories.controllers.trainings import COMMANDS, TRAININGS

        def pieces(tried: PlanComparison) -> list[Piece]:
            own = [job for job in prepare_plans(tried, store)[0] if job.seed == seed]
            return [Piece(job.label, COMMANDS[TRAININGS[job.name].kind].kind, job.recipe(), seeds) for job in own]

        refuse_resume(resume)
        tell_trainings(comparison, pieces, out, workers, json_, "carrying out the plans")
    jobs = prepare_plans(comparison, store, resume=resume, overwrite=overwrite)
    done = sum(job.outcome() is not None for wave in jobs for job in wave)
    say(f"{len(jobs[0])} trainings, {len(jobs[1])} executions" + (f", {done} of them done" if done else ""))
    began = time.perf_counter()
    with watched([*jobs[0], *jobs[1]]) as count:
        run_plan_jobs(jobs, workers=workers or 0, on_done=lambda job, outcome: say(_line(job.label, outcome, count())))
    results = plan_results(jobs, store, command=command_line())
    write_json(out, results)
    took = round(time.perf_counter() - began, 1)
    output: dict[str, Any] = {"out": str(out), "runs": str(comparison.runs), "seconds": took}
    if pictures is not None:
        output["pictures"] = [str(plans_figure(results, pictures / "plans.png"))]
    if json_:
        print_json({**output, **results})
        return
    stderr.print(rich_plans(results))
    say("means over starts and seeds ± their standard error over the starts (least and greatest seed)")
    say(f"wrote {out} ({took:.0f} s)")


def _line(label: str, outcome: dict[str, Any], count: str) -> str:
    """One finished job for a person."""
    facts = outcome["facts"]
    if outcome["diverged"]:
        return f"{count} {label}: diverged: {outcome['diverged']}"
    if "train_steps" in facts:
        return f"{count} {label}: {facts['train_steps']} steps, validation {facts['validation']:.4f}"
    said = f"{facts['progress_rad_per_100']:.2f} rad, " if "progress_rad_per_100" in facts else ""
    said += f"{facts['success_rate']:.1%} reached, " if "success_rate" in facts else ""
    return f"{count} {label}: {said}{facts['drop_rate']:.1%} dropped, {facts['core_seconds']:.0f} s"
