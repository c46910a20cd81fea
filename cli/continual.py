"""`ebmtraj continual`: learn tasks one after the other, and see what is left of the first."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated, Any

import typer

from ebmtraj.cli.common import Json, Overwrite, Resume, Set, print_json, progress, say, stderr
from ebmtraj.cli.dry import DryRun, refuse_resume, tell_estimate
from ebmtraj.cli.watching import command_line, watched


def continual_command(
    learners: Annotated[str, typer.Option(help="all, or names with commas between: ebm,ewc,...")] = "all",
    scenario: Annotated[str, typer.Option(help="class, task, domain (incremental), several with commas, or all.")] = "class",
    seeds: Annotated[int, typer.Option(help="Runs of each learner, from --first-seed on.", min=1)] = 10,
    first_seed: Annotated[int, typer.Option(help="The first seed.", min=0, max=2**31)] = 0,
    data: Annotated[
        str, typer.Option(help="A source's name, such as digits or sprites-28, or a labelled image store.")
    ] = "digits",
    tasks: Annotated[str | None, typer.Option(help='Classes of each task, e.g. "0,1|2,3". [default: by --per-task]')] = None,
    per_task: Annotated[int, typer.Option(help="Classes a task, in their order.", min=1)] = 2,
    split: Annotated[str, typer.Option(help="test, or validation to choose settings.")] = "test",
    tune: Annotated[bool, typer.Option("--tune", help="Try each learner's grid on validation, and keep the best.")] = False,
    settings: Annotated[
        list[Path] | None, typer.Option(help="What --tune wrote: use the settings that it kept; the last one counts.")
    ] = None,
    set_: Set = None,
    out: Annotated[Path, typer.Option(help="The JSON file to write.")] = Path("runs/continual.json"),
    runs: Annotated[Path | None, typer.Option(help="Folder of all runs. [default: named as --out, without .json]")] = None,
    pictures: Annotated[Path | None, typer.Option(help="Folder for heat maps of accuracies.")] = None,
    workers: Annotated[int | None, typer.Option(help="Jobs at once, one core each. [default: cores]", min=1)] = None,
    resume: Resume = False,
    overwrite: Overwrite = False,
    dry_run: DryRun = False,
    json_: Json = False,
) -> None:
    """Learn tasks one after the other with each learner, and measure accuracy, forgetting, memory and time.

    Tasks are classes of labelled images. What is asked afterwards is one of three scenarios, which are never mixed: class
    (which of all classes?), task (which of this task's?), domain (which place in its task?). No learner but those marked
    sees images of earlier tasks again. --set changes settings of one learner, or of all that have them: --set ebm.keep=0.3,
    --set all.steps=500. What was interrupted goes on with --resume, to the same table.

    Example: ebmtraj continual --learners ebm,ewc,class-gaussian --seeds 3 --data digits
    """
    from ebmtraj.config import parse_overrides
    from ebmtraj.continual.tasks import even_plan, parse_plan
    from ebmtraj.datasets.images import open_images
    from ebmtraj.errors import EbmtrajError
    from ebmtraj.report.continual import Trial, choose_learners, choose_scenarios, prepare, read_kept, run_jobs
    from ebmtraj.report.continual_results import results
    from ebmtraj.report.continual_table import heat_maps, rich_continual
    from ebmtraj.runs import write_json

    if resume and overwrite:
        raise EbmtrajError("choose one of --resume and --overwrite: the first goes on, the second replaces all runs")
    if out.suffix != ".json":
        raise EbmtrajError(f"--out {out}: give a path that ends in .json")
    if out.exists() and not (resume or overwrite):
        raise EbmtrajError(f"{out} exists; give another --out, --resume to go on, or --overwrite to replace it and its runs")
    changes: dict[str, Any] = parse_overrides(set_ or [])
    for name, values in changes.items():
        if not isinstance(values, dict):
            raise EbmtrajError(f"--set {name}=...: say of which learner, such as ebm.{name}=... or all.{name}=...")
    chosen, asked = choose_learners(learners), choose_scenarios(scenario)
    kept = {name: found for path in settings or [] for name, found in read_kept(path).items()}
    store = open_images(data)
    if not store.classes:
        raise EbmtrajError(f"image store {store.path} has no labels; tasks are made of classes")
    trial = Trial(
        data=data,
        plan=parse_plan(tasks, store.classes) if tasks is not None else even_plan(len(store.classes), per_task),
        learners=chosen,
        scenarios=asked,
        seeds=tuple(range(first_seed, first_seed + seeds)),
        runs=runs or out.with_suffix(""),
        split="validation" if tune else split,
        tune=tune,
        kept=kept,
        changes=changes,
    )
    if dry_run:
        from ebmtraj.report.estimate import estimate_continual, nowhere

        refuse_resume(resume)
        with nowhere(trial) as tried, progress() as bar:
            task = bar.add_task("timing", total=None, note="")
            jobs = prepare(tried, store)
            found = estimate_continual(str(out), jobs, workers or 0, lambda name: bar.update(task, note=name))
        tell_estimate(found, json_)
    jobs = prepare(trial, store, resume=resume, overwrite=overwrite)
    done = sum(job.outcome() is not None for job in jobs)
    say(f"{len(jobs)} runs of {len(trial.learners)} learners" + (f", {done} of them done" if done else ""))
    began = time.perf_counter()
    with watched(jobs) as count:
        run_jobs(jobs, workers=workers or 0, on_done=lambda job, outcome: say(_line(job, outcome, count())))
    took = time.perf_counter() - began
    whole = results(jobs, store, command=command_line(), seconds=None if done else round(took, 1))
    write_json(out, whole)
    output: dict[str, Any] = {"out": str(out), "runs": str(trial.runs), "seconds": round(took, 1)}
    if pictures is not None and not tune:
        output["pictures"] = [str(path) for path in heat_maps(whole, pictures)]
    if json_:
        print_json({**output, **whole})
        return
    for table in rich_continual(whole):
        stderr.print(table)
    say(f"wrote {out} ({took:.0f} s)")


def _line(job: Any, outcome: dict[str, Any], count: str) -> str:
    """One finished job for a person."""
    if outcome["diverged"]:
        return f"{count} {job.label}: {outcome['diverged']}"
    said = ", ".join(f"{each} {100 * facts['accuracy']:.1f} %" for each, facts in outcome["courses"].items())
    return f"{count} {job.label}: {said}"


def continual_robot_command(
    learners: Annotated[str, typer.Option(help="all, or names with commas between: mixture,fine-tune,...")] = "all",
    seeds: Annotated[int, typer.Option(help="Runs of each learner, from --first-seed on.", min=1)] = 3,
    first_seed: Annotated[int, typer.Option(help="The first seed.", min=0, max=2**31)] = 0,
    episodes: Annotated[int, typer.Option(help="Episodes that are collected of each behaviour.", min=20)] = 240,
    data_seed: Annotated[int, typer.Option(help="Of the collection.", min=0)] = 0,
    stores: Annotated[
        str | None, typer.Option(help="Stores with commas between, one a behaviour. [default: six axes are collected]")
    ] = None,
    steps: Annotated[int, typer.Option(help="Training steps on each behaviour.", min=1)] = 1000,
    horizon: Annotated[int, typer.Option(help="Steps of a future.", min=1)] = 20,
    split: Annotated[str, typer.Option(help="test, or validation to choose settings.")] = "test",
    out: Annotated[Path, typer.Option(help="The JSON file to write.")] = Path("runs/continual_robot.json"),
    runs: Annotated[Path | None, typer.Option(help="Folder of all runs. [default: named as --out, without .json]")] = None,
    workers: Annotated[int | None, typer.Option(help="Jobs at once, one core each. [default: cores]", min=1)] = None,
    resume: Resume = False,
    overwrite: Overwrite = False,
    dry_run: DryRun = False,
    json_: Json = False,
) -> None:
    """Learn a robot's behaviours one after the other with a transition energy, and test its futures on all of them.

    The behaviours are the six axes that the shipped policy turns the cube about, collected first, or those of --stores. A
    future is scored by its energy score (less is better); which behaviour a test is of is not told, unless a row says so.

    Example: ebmtraj continual-robot --seeds 1 --learners mixture,fine-tune
    """
    from ebmtraj.errors import EbmtrajError
    from ebmtraj.report.continual_behaviours import RobotTrial
    from ebmtraj.report.continual_robot import (
        AXES,
        choose_behaviour_learners,
        collect_behaviours,
        prepare_robot,
        robot_results,
        run_robot,
    )
    from ebmtraj.report.continual_table import rich_robot
    from ebmtraj.runs import write_json

    if resume and overwrite:
        raise EbmtrajError("choose one of --resume and --overwrite: the first goes on, the second replaces all runs")
    if out.suffix != ".json":
        raise EbmtrajError(f"--out {out}: give a path that ends in .json")
    if out.exists() and not (resume or overwrite):
        raise EbmtrajError(f"{out} exists; give another --out, --resume to go on, or --overwrite to replace it and its runs")
    chosen, folder = choose_behaviour_learners(learners), runs or out.with_suffix("")
    if split not in ("validation", "test"):
        raise EbmtrajError(f"--split {split}: learners are trained on train; use test, or validation to choose settings")
    collected: dict[str, Any] = {}
    if stores is None:
        length = 30 + horizon
        collected = {"policy": "trained", "episodes": episodes, "steps": length, "seed": data_seed}
        if not dry_run:
            say(f"collecting {len(AXES)} x {episodes} episodes of {length} steps")
        there = folder.with_name(f"{folder.name}-data")
        paths = () if dry_run else collect_behaviours(there, episodes, length, data_seed, workers or 0)
        names: tuple[str, ...] = AXES
    else:
        paths = tuple(path.strip() for path in stores.split(",") if path.strip())
        names = tuple(Path(path).stem for path in paths)
        if len(paths) < 2 or len(set(paths)) < len(paths):
            raise EbmtrajError(f"--stores {stores!r}: give at least two different stores, one a behaviour")
    trial = RobotTrial(
        stores=paths or tuple(str(there / f"{axis}.zarr") for axis in AXES),
        names=names,
        learners=chosen,
        seeds=tuple(range(first_seed, first_seed + seeds)),
        runs=folder,
        steps=steps,
        split=split,
        horizon=horizon,
        collected=collected,
    )
    if dry_run:
        from ebmtraj.report.estimate import estimate_robot

        refuse_resume(resume)
        with progress() as bar:
            task = bar.add_task("timing", total=None, note="")
            collects = episodes if stores is None else None
            estimate = estimate_robot(str(out), trial, collects, workers or 0, lambda name: bar.update(task, note=name))
        tell_estimate(estimate, json_)
    jobs = prepare_robot(trial, resume=resume, overwrite=overwrite)
    began = time.perf_counter()
    with watched(jobs) as count:
        run_robot(
            jobs,
            workers=workers or 0,
            on_done=lambda job, outcome: say(f"{count()} {job.label}: {outcome['seconds']:.0f} s"),
        )
    found = robot_results(jobs, command=command_line())
    write_json(out, found)
    if json_:
        print_json({"out": str(out), "runs": str(folder), **found})
        return
    stderr.print(rich_robot(found))
    say(f"wrote {out} ({time.perf_counter() - began:.0f} s)")
