"""`ebmtraj continual`: learn tasks one after the other, and see what is left of the first."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from ebmtraj.cli.common import Set, say
from ebmtraj.cli.comparing import Comparing, Course, First, Out, Split, changes_by_row
from ebmtraj.cli.grouped import grouped
from ebmtraj.cli.watching import command_line


@grouped
def continual_command(
    course: Course,
    learners: Annotated[str, typer.Option(help="all, or names with commas between: ebm,ewc,...")] = "all",
    scenario: Annotated[str, typer.Option(help="class, task, domain (incremental), several with commas, or all.")] = "class",
    seeds: Annotated[int, typer.Option(help="Runs of each learner, from --first-seed on.", min=1)] = 10,
    first_seed: First = 0,
    data: Annotated[
        str, typer.Option(help="A source's name, such as digits or sprites-28, or a labelled image store.")
    ] = "digits",
    tasks: Annotated[str | None, typer.Option(help='Classes of each task, e.g. "0,1|2,3". [default: by --per-task]')] = None,
    per_task: Annotated[int, typer.Option(help="Classes a task, in their order.", min=1)] = 2,
    split: Split = "test",
    tune: Annotated[bool, typer.Option("--tune", help="Try each learner's grid on validation, and keep the best.")] = False,
    settings: Annotated[
        list[Path] | None, typer.Option(help="What --tune wrote: use the settings that it kept; the last one counts.")
    ] = None,
    set_: Set = None,
    out: Out = Path("runs/continual.json"),
    pictures: Annotated[Path | None, typer.Option(help="Folder for heat maps of accuracies.")] = None,
) -> None:
    """Learn tasks one after the other with each learner, and measure accuracy, forgetting, memory and time.

    Tasks are classes of labelled images. What is asked afterwards is one of three scenarios, which are never mixed: class
    (which of all classes?), task (which of this task's?), domain (which place in its task?). No learner but those marked
    sees images of earlier tasks again. --set changes settings of one learner, or of all that have them: --set ebm.keep=0.3,
    --set all.steps=500. What was interrupted goes on with --resume, to the same table.

    Example: ebmtraj continual --learners ebm,ewc,class-gaussian --seeds 3 --data digits
    """
    from ebmtraj.continual.tasks import even_plan, parse_plan
    from ebmtraj.datasets.images import open_images
    from ebmtraj.errors import EbmtrajError
    from ebmtraj.report.continual import Trial, choose_learners, choose_scenarios, prepare, read_kept, run_jobs
    from ebmtraj.report.continual_results import results
    from ebmtraj.report.continual_table import heat_maps, rich_continual
    from ebmtraj.runs import write_json

    comparing = Comparing(out, course)
    changes = changes_by_row(set_, "ebm.{0}=... or all.{0}")
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
        runs=comparing.folder,
        split="validation" if tune else split,
        tune=tune,
        kept=kept,
        changes=changes,
    )
    if course.dry_run:
        from ebmtraj.report.estimate import estimate_continual, nowhere

        with nowhere(trial) as tried:
            timed = prepare(tried, store)
            comparing.estimate(lambda workers, on_piece: estimate_continual(str(out), timed, workers, on_piece))
    jobs = prepare(trial, store, **comparing.opening)
    begun = any(job.outcome() is not None for job in jobs)
    comparing.carry_out(
        jobs,
        f"{len(jobs)} runs of {len(trial.learners)} learners",
        lambda workers, on_done: run_jobs(jobs, workers=workers, on_done=on_done),
        _line,
    )
    whole = results(jobs, store, command=command_line(), seconds=None if begun else comparing.seconds)
    write_json(comparing.out, whole)
    drawn = [str(path) for path in heat_maps(whole, pictures)] if pictures is not None and not tune else []
    comparing.tell(whole, {"pictures": drawn}, lambda: rich_continual(whole), "")


def _line(job: Any, outcome: dict[str, Any]) -> str:
    """One finished job for a person."""
    if outcome["diverged"]:
        return f"{job.label}: {outcome['diverged']}"
    said = ", ".join(f"{each} {100 * facts['accuracy']:.1f} %" for each, facts in outcome["courses"].items())
    return f"{job.label}: {said}"


@grouped
def continual_robot_command(
    course: Course,
    learners: Annotated[str, typer.Option(help="all, or names with commas between: mixture,fine-tune,...")] = "all",
    seeds: Annotated[int, typer.Option(help="Runs of each learner, from --first-seed on.", min=1)] = 3,
    first_seed: First = 0,
    episodes: Annotated[int, typer.Option(help="Episodes that are collected of each behaviour.", min=20)] = 240,
    data_seed: Annotated[int, typer.Option(help="Of the collection.", min=0)] = 0,
    stores: Annotated[
        str | None, typer.Option(help="Stores with commas between, one a behaviour. [default: six axes are collected]")
    ] = None,
    steps: Annotated[int, typer.Option(help="Training steps on each behaviour.", min=1)] = 1000,
    horizon: Annotated[int, typer.Option(help="Steps of a future.", min=1)] = 20,
    split: Split = "test",
    out: Out = Path("runs/continual_robot.json"),
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

    comparing = Comparing(out, course)
    chosen, folder = choose_behaviour_learners(learners), comparing.folder
    if split not in ("validation", "test"):
        raise EbmtrajError(f"--split {split}: learners are trained on train; use test, or validation to choose settings")
    collected: dict[str, Any] = {}
    if stores is None:
        length = 30 + horizon
        collected = {"policy": "trained", "episodes": episodes, "steps": length, "seed": data_seed}
        if not course.dry_run:
            say(f"collecting {len(AXES)} x {episodes} episodes of {length} steps")
        there = folder.with_name(f"{folder.name}-data")
        paths = () if course.dry_run else collect_behaviours(there, episodes, length, data_seed, course.workers or 0)
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
    if course.dry_run:
        from ebmtraj.report.estimate import estimate_robot

        collects = episodes if stores is None else None
        comparing.estimate(lambda workers, on_piece: estimate_robot(str(out), trial, collects, workers, on_piece))
    jobs = prepare_robot(trial, **comparing.opening)
    comparing.carry_out(
        jobs,
        f"{len(jobs)} runs of {len(trial.learners)} learners",
        lambda workers, on_done: run_robot(jobs, workers=workers, on_done=on_done),
        lambda job, outcome: f"{job.label}: {outcome['seconds']:.0f} s",
    )
    found = robot_results(jobs, command=command_line())
    write_json(comparing.out, found)
    comparing.tell(found, {}, lambda: [rich_robot(found)], "")
