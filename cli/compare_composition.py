"""`ebmtraj compare composition`: concepts put together, measured."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated, Any

import typer

from ebmtraj.cli.common import Json, Overwrite, Resume, print_json, say, stderr
from ebmtraj.cli.dry import DryRun, refuse_resume, tell_trainings
from ebmtraj.cli.watching import command_line, watched


def composition(
    seeds: Annotated[int, typer.Option(help="Trainings of everything, from --seed on.", min=1)] = 5,
    seed: Annotated[int, typer.Option(help="The first seed.", min=0, max=2**31)] = 0,
    split: Annotated[str, typer.Option(help="Which draws of factors: test, or validation to choose settings.")] = "test",
    samples: Annotated[int, typer.Option(help="Pictures drawn of each composition.", min=8)] = 160,
    steps: Annotated[int | None, typer.Option(help="Steps of each training. [default: the recipes' own]", min=1)] = None,
    out: Annotated[Path, typer.Option(help="The JSON file to write.")] = Path("runs/compare/composition.json"),
    runs: Annotated[Path | None, typer.Option(help="Folder of all runs. [default: named as --out, without .json]")] = None,
    pictures: Annotated[Path | None, typer.Option(help="Folder for pictures.")] = None,
    workers: Annotated[int | None, typer.Option(help="Seeds at once, one core each. [default: cores]", min=1)] = None,
    done_only: Annotated[bool, typer.Option("--done-only", help="Train nothing: report what has been done so far.")] = False,
    resume: Resume = False,
    overwrite: Overwrite = False,
    dry_run: DryRun = False,
    json_: Json = False,
) -> None:
    """Train concepts of sprites apart, put them together by and, or, not, and measure what is drawn.

    Size, position and shape of what is drawn are read by a network whose own errors are printed beside; pairs of size and
    position that no training saw stand against a joint conditional model; compositions of the plane against integration. A
    comparison that was killed goes on with --resume; more --seeds may then be asked for.

    Example: ebmtraj compare composition --seeds 1
    """
    from ebmtraj.errors import EbmtrajError
    from ebmtraj.report.compare_composition import (
        CompositionComparison,
        composition_results,
        prepare_composition,
    )
    from ebmtraj.report.compare_composition_run import run_composition_jobs
    from ebmtraj.report.compare_composition_table import composition_pictures, rich_composition
    from ebmtraj.runs import write_json

    if resume and overwrite:
        raise EbmtrajError("choose one of --resume and --overwrite: the first goes on, the second replaces all runs")
    if done_only and overwrite:
        raise EbmtrajError("choose one of --done-only and --overwrite: the first reports all runs, the second replaces them")
    if out.suffix != ".json":
        raise EbmtrajError(f"--out {out}: give a path that ends in .json")
    resume = resume or done_only
    if out.exists() and not (resume or overwrite):
        raise EbmtrajError(f"{out} exists; give another --out, --resume to go on, or --overwrite to replace it and its runs")
    plan = CompositionComparison(tuple(range(seed, seed + seeds)), runs or out.with_suffix(""), split, samples, steps)
    if dry_run:
        from ebmtraj.images.fit import IMAGE
        from ebmtraj.report.estimate import Piece

        def pieces(tried: CompositionComparison) -> list[Piece]:
            recipes = {name: recipe for name, (_, recipe) in prepare_composition(tried)[0].recipes().items()}
            for recipe in recipes.values():
                if recipe.network.get("prior"):  # a run that is not there yet, which spares it the steps for E(x)
                    recipe.network.update(prior="", prior_share=1e-6)
            return [Piece(name, IMAGE, recipe, seeds) for name, recipe in recipes.items()]

        refuse_resume(resume)
        tell_trainings(plan, pieces, out, workers, json_, "training the judge, and measuring,")
    jobs = prepare_composition(plan, resume=resume, overwrite=overwrite)
    began = time.perf_counter()
    if done_only:
        jobs = [job for job in jobs if job.outcome() is not None]
        if not jobs:
            raise EbmtrajError(f"{plan.runs} holds nothing that is done; run the comparison without --done-only")
    else:
        with watched(jobs) as count:
            run_composition_jobs(
                jobs, workers=workers or 0, on_done=lambda job, found: say(f"{count()} {_line(job, found)}")
            )
    results = composition_results(jobs, command=command_line())
    write_json(out, results)
    output: dict[str, Any] = {"out": str(out), "runs": str(plan.runs), "seconds": round(time.perf_counter() - began, 1)}
    if pictures is not None:
        output["pictures"] = [str(path) for path in composition_pictures(jobs[0], pictures)]
    if json_:
        print_json({**output, **results})
        return
    for table in rich_composition(results):
        stderr.print(table)
    say(f"medians over {len(jobs)} seeds; wrote {out} ({output['seconds']:.0f} s)")


def _line(job: Any, outcome: dict[str, Any]) -> str:
    """One finished seed for a person."""
    rows = outcome["rows"]
    two, three = rows["size-place"], rows["three"]
    return (
        f"seed {job.seed}: size {two['size_px']:.2f} px, position {two['place_px']:.2f} px; with the shape, "
        f"{three['shape_accuracy']:.0%} of shapes right"
    )
