"""`ebmtraj compare`: models side by side under one protocol."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ebmtraj.cli.common import Data, progress, say
from ebmtraj.cli.compare_composition import composition
from ebmtraj.cli.compare_images import images, jem
from ebmtraj.cli.compare_plans import plans
from ebmtraj.cli.compare_tilting import tilting
from ebmtraj.cli.comparing import Comparing, Course, First, OnDone, Out, Split
from ebmtraj.cli.grouped import grouped
from ebmtraj.cli.watching import command_line

if TYPE_CHECKING:  # what takes seconds to import
    from ebmtraj.report.compare import Job


app = typer.Typer(help="Train and measure models side by side under one protocol.", no_args_is_help=True)


app.command("plans")(plans)
app.command("composition")(composition)
app.command("images")(images)
app.command("jem")(jem)
app.command("tilting")(tilting)


@app.command("transitions")
@grouped
def transitions(
    data: Data,
    course: Course,
    models: Annotated[
        str,
        typer.Option(help="all, none (only those of --rows), or names with commas between, e.g. ebm,fc,fc-delta,gaussian."),
    ] = "all",
    tasks: Annotated[
        str | None,
        typer.Option(help="unconditional, action-conditional or both with a comma. [default: what the store has]"),
    ] = None,
    seeds: Annotated[int, typer.Option(help="Trainings of each model, from --seed on.", min=1)] = 5,
    seed: First = 0,
    seconds: Annotated[float, typer.Option(help="Training time of each model, one CPU thread.", min=0.1)] = 190.0,
    steps: Annotated[int, typer.Option(help="Control steps of each rollout.", min=2)] = 100,
    samples: Annotated[int, typer.Option(help="Futures of each start.", min=1)] = 8,
    starts: Annotated[
        int | None, typer.Option(help="Held-out episodes to start from. [default: all, at most 500]", min=4)
    ] = None,
    split: Split = "test",
    rows: Annotated[
        Path | None,
        typer.Option(help='TOML with further rows: [[row]] name = "mdn-4", model = "mdn", set = ["network.components=4"].'),
    ] = None,
    out: Out = Path("runs/compare/transitions.json"),
    pictures: Annotated[Path | None, typer.Option(help="Folder for figures, and a film strip of every model.")] = None,
) -> None:
    """Train transition models for the same seconds on the same data, and measure their rollouts side by side.

    Each model, task and seed is a run of its own on one CPU thread, several at once. A comparison that was killed goes on
    with --resume; more --seeds or --models may then be asked for. A row of --rows may also train on another store (data =
    "few.zarr"), or sample another row's model with other settings (sampler_of = "ebm", set =
    ["network.sampler.ladder.levels=5"]). A model that diverges keeps its row, which says so.

    Example: ebmtraj compare transitions --data hand.zarr --models ebm,fc,gaussian,edm --seeds 1 --seconds 40
    """
    from ebmtraj.datasets.store import Store
    from ebmtraj.report.compare import MOST_STARTS, Comparison, choose_tasks, measure_speed, prepare, run_jobs
    from ebmtraj.report.compare_results import comparison_results
    from ebmtraj.report.compare_rows import choose_rows, read_rows
    from ebmtraj.report.compare_table import rich_comparison
    from ebmtraj.runs import write_json

    comparing = Comparing(out, course)
    store = Store.open(data)
    plan = Comparison(
        data=data,
        rows=choose_rows(models, read_rows(rows) if rows is not None else {}),
        tasks=choose_tasks(tasks, store),
        seeds=tuple(range(seed, seed + seeds)),
        runs=comparing.folder,
        seconds=seconds,
        steps=steps,
        samples=samples,
        starts=starts or MOST_STARTS,
        split=split,
    )
    if course.dry_run:
        from ebmtraj.report.estimate import Piece
        from ebmtraj.trajectories.fit import TRANSITION

        def pieces(tried: Comparison) -> list[Piece]:
            own = [job for job in prepare(tried, store) if job.row.sampler_of is None and job.seed == seed]
            return [Piece(job.label, TRANSITION, job.recipe(), seeds) for job in own]

        comparing.estimate_trainings(plan, pieces)
    jobs = prepare(plan, store, **comparing.opening)
    missing = None

    def run(workers: int, on_done: OnDone) -> None:
        nonlocal missing
        missing = run_jobs(jobs, store, workers=workers, on_done=on_done)

    comparing.carry_out(jobs, f"{len(jobs)} trainings or samplers of {len(plan.rows)} models", run, _line)
    if missing:
        say(f"note: no diversity of the simulator: {missing}")
    with progress() as bar:
        task = bar.add_task("timing a step", total=None, note="")
        speed = measure_speed(jobs, store, lambda n, total: bar.update(task, completed=n, total=total))
    results = comparison_results(jobs, store, speed, command=command_line(), missing=missing)
    write_json(comparing.out, results)
    beside: dict[str, Any] = {}
    if pictures is not None:
        from ebmtraj.report.compare_figures import draw_comparison

        beside["pictures"], beside["pictures_missing"] = draw_comparison(results, jobs, store, pictures)
    tables = (rich_comparison(results, task) for task in results["protocol"]["tasks"])
    comparing.tell(results, beside, lambda: tables, _note(results, beside.get("pictures_missing")))


def _note(results: dict[str, Any], pictures_missing: str | None) -> str:
    """What a reader of the tables should know."""
    starts = results["protocol"]["starts"]
    said = ["medians over the seeds, below them least and greatest; lower is better, ratios and coverage best at 1 and 0.9"]
    if starts and starts < 300:
        said.append(f"note: {starts} starts are few: Fréchet distances read too high; compare them with the floor only")
    if pictures_missing:
        said.append(f"no pictures of the robot: {pictures_missing}")
    return "\n".join(said)


def _line(job: Job, outcome: dict[str, Any]) -> str:
    """One finished job for a person."""
    name = f"{job.row.name}, {job.task}, seed {job.seed}"
    if outcome["diverged"]:
        return f"{name}: diverged: {outcome['diverged']}"
    facts = outcome["facts"]
    return f"{name}: trained {facts['train_seconds']:.0f} s, measured in {facts['evaluation_seconds']:.0f} s"
