"""`ebmtraj compare`: models side by side under one protocol."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ebmtraj.cli.common import Data, Json, Overwrite, Resume, print_json, progress, say, stderr
from ebmtraj.cli.compare_composition import composition
from ebmtraj.cli.compare_images import images, jem
from ebmtraj.cli.compare_plans import plans
from ebmtraj.cli.compare_tilting import tilting
from ebmtraj.cli.dry import DryRun, refuse_resume, tell_trainings
from ebmtraj.cli.watching import command_line, watched

if TYPE_CHECKING:  # what takes seconds to import
    from ebmtraj.report.compare import Job


app = typer.Typer(help="Train and measure models side by side under one protocol.", no_args_is_help=True)


app.command("plans")(plans)
app.command("composition")(composition)
app.command("images")(images)
app.command("jem")(jem)
app.command("tilting")(tilting)


@app.command("transitions")
def transitions(
    data: Data,
    models: Annotated[
        str,
        typer.Option(help="all, none (only those of --rows), or names with commas between, e.g. ebm,fc,fc-delta,gaussian."),
    ] = "all",
    tasks: Annotated[
        str | None,
        typer.Option(help="unconditional, action-conditional or both with a comma. [default: what the store has]"),
    ] = None,
    seeds: Annotated[int, typer.Option(help="Trainings of each model, from --seed on.", min=1)] = 5,
    seed: Annotated[int, typer.Option(help="The first seed.", min=0, max=2**31)] = 0,
    seconds: Annotated[float, typer.Option(help="Training time of each model, one CPU thread.", min=0.1)] = 190.0,
    steps: Annotated[int, typer.Option(help="Control steps of each rollout.", min=2)] = 100,
    samples: Annotated[int, typer.Option(help="Futures of each start.", min=1)] = 8,
    starts: Annotated[
        int | None, typer.Option(help="Held-out episodes to start from. [default: all, at most 500]", min=4)
    ] = None,
    split: Annotated[str, typer.Option(help="test, or validation to choose settings.")] = "test",
    rows: Annotated[
        Path | None,
        typer.Option(help='TOML with further rows: [[row]] name = "mdn-4", model = "mdn", set = ["network.components=4"].'),
    ] = None,
    out: Annotated[Path, typer.Option(help="The JSON file to write.")] = Path("runs/compare/transitions.json"),
    runs: Annotated[Path | None, typer.Option(help="Folder of all runs. [default: named as --out, without .json]")] = None,
    pictures: Annotated[Path | None, typer.Option(help="Folder for figures, and a film strip of every model.")] = None,
    workers: Annotated[int | None, typer.Option(help="Models at once, one core each. [default: cores]", min=1)] = None,
    resume: Resume = False,
    overwrite: Overwrite = False,
    dry_run: DryRun = False,
    json_: Json = False,
) -> None:
    """Train transition models for the same seconds on the same data, and measure their rollouts side by side.

    Each model, task and seed is a run of its own on one CPU thread, several at once. A comparison that was killed goes on
    with --resume; more --seeds or --models may then be asked for. A row of --rows may also train on another store (data =
    "few.zarr"), or sample another row's model with other settings (sampler_of = "ebm", set =
    ["network.sampler.ladder.levels=5"]). A model that diverges keeps its row, which says so.

    Example: ebmtraj compare transitions --data hand.zarr --models ebm,fc,gaussian,edm --seeds 1 --seconds 40
    """
    from ebmtraj.datasets.store import Store
    from ebmtraj.errors import EbmtrajError
    from ebmtraj.report.compare import MOST_STARTS, Comparison, choose_tasks, measure_speed, prepare, run_jobs
    from ebmtraj.report.compare_results import comparison_results
    from ebmtraj.report.compare_rows import choose_rows, read_rows
    from ebmtraj.runs import write_json

    if resume and overwrite:
        raise EbmtrajError("choose one of --resume and --overwrite: the first goes on, the second replaces all runs")
    if out.suffix != ".json":
        raise EbmtrajError(f"--out {out}: give a path that ends in .json")
    if out.exists() and not (resume or overwrite):
        raise EbmtrajError(f"{out} exists; give another --out, --resume to go on, or --overwrite to replace it and its runs")
    store = Store.open(data)
    plan = Comparison(
        data=data,
        rows=choose_rows(models, read_rows(rows) if rows is not None else {}),
        tasks=choose_tasks(tasks, store),
        seeds=tuple(range(seed, seed + seeds)),
        runs=runs or out.with_suffix(""),
        seconds=seconds,
        steps=steps,
        samples=samples,
        starts=starts or MOST_STARTS,
        split=split,
    )
    if dry_run:
        from ebmtraj.report.estimate import Piece
        from ebmtraj.trajectories.fit import TRANSITION

        def pieces(tried: Comparison) -> list[Piece]:
            own = [job for job in prepare(tried, store) if job.row.sampler_of is None and job.seed == seed]
            return [Piece(job.label, TRANSITION, job.recipe(), seeds) for job in own]

        refuse_resume(resume)
        tell_trainings(plan, pieces, out, workers, json_)
    jobs = prepare(plan, store, resume=resume, overwrite=overwrite)
    done = sum(job.outcome() is not None for job in jobs)
    say(f"{len(jobs)} trainings or samplers of {len(plan.rows)} models" + (f", {done} of them done" if done else ""))
    began = time.perf_counter()
    with watched(jobs) as count:
        missing = run_jobs(jobs, store, workers=workers or 0, on_done=lambda job, outcome: say(_line(job, outcome, count())))
    if missing:
        say(f"note: no diversity of the simulator: {missing}")
    with progress() as bar:
        task = bar.add_task("timing a step", total=None, note="")
        speed = measure_speed(jobs, store, lambda n, total: bar.update(task, completed=n, total=total))
    results = comparison_results(jobs, store, speed, command=command_line(), missing=missing)
    write_json(out, results)
    output: dict[str, Any] = {"out": str(out), "runs": str(plan.runs), "seconds": round(time.perf_counter() - began, 1)}
    if pictures is not None:
        from ebmtraj.report.compare_figures import draw_comparison

        output["pictures"], output["pictures_missing"] = draw_comparison(results, jobs, store, pictures)
    if json_:
        print_json({**output, **results})
        return
    _show(results)
    for path in output.get("pictures", []):
        say(f"wrote {path}")
    if output.get("pictures_missing"):
        say(f"no pictures of the robot: {output['pictures_missing']}")
    say(f"wrote {out} ({output['seconds']:.0f} s)")


def _show(results: dict[str, Any]) -> None:
    """The tables, and what a reader of them should know."""
    from ebmtraj.report.compare_table import rich_comparison

    protocol = results["protocol"]
    for task in protocol["tasks"]:
        stderr.print(rich_comparison(results, task))
    say("medians over the seeds, below them least and greatest; lower is better, ratios and coverage best at 1 and 0.9")
    if protocol["starts"] and protocol["starts"] < 300:
        say(f"note: {protocol['starts']} starts are few: Fréchet distances read too high; compare them with the floor only")


def _line(job: Job, outcome: dict[str, Any], count: str) -> str:
    """One finished job for a person."""
    name = f"{count} {job.row.name}, {job.task}, seed {job.seed}"
    if outcome["diverged"]:
        return f"{name}: diverged: {outcome['diverged']}"
    facts = outcome["facts"]
    return f"{name}: trained {facts['train_seconds']:.0f} s, measured in {facts['evaluation_seconds']:.0f} s"
