"""`ebmtraj compare composition`: concepts put together, measured."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from ebmtraj.cli.comparing import Comparing, Course, DoneOnly, First, Out, Pictures
from ebmtraj.cli.grouped import grouped
from ebmtraj.cli.watching import command_line


@grouped
def composition(
    course: Course,
    seeds: Annotated[int, typer.Option(help="Trainings of everything, from --seed on.", min=1)] = 5,
    seed: First = 0,
    split: Annotated[str, typer.Option(help="Which draws of factors: test, or validation to choose settings.")] = "test",
    samples: Annotated[int, typer.Option(help="Pictures drawn of each composition.", min=8)] = 160,
    steps: Annotated[int | None, typer.Option(help="Steps of each training. [default: the recipes' own]", min=1)] = None,
    out: Out = Path("runs/compare/composition.json"),
    pictures: Pictures = None,
    done_only: DoneOnly = False,
) -> None:
    """Train concepts of sprites apart, put them together by and, or, not, and measure what is drawn.

    Size, position and shape of what is drawn are read by a network whose own errors are printed beside; pairs of size and
    position that no training saw stand against a joint conditional model; compositions of the plane against integration. A
    comparison that was killed goes on with --resume; more --seeds may then be asked for.

    Example: ebmtraj compare composition --seeds 1
    """
    from ebmtraj.report.compare_composition import (
        CompositionComparison,
        composition_results,
        prepare_composition,
    )
    from ebmtraj.report.compare_composition_run import run_composition_jobs
    from ebmtraj.report.compare_composition_table import composition_pictures, rich_composition
    from ebmtraj.runs import write_json

    comparing = Comparing(out, course, done_only)
    plan = CompositionComparison(tuple(range(seed, seed + seeds)), comparing.folder, split, samples, steps)
    if course.dry_run:
        from ebmtraj.images.fit import IMAGE
        from ebmtraj.report.estimate import Piece

        def pieces(tried: CompositionComparison) -> list[Piece]:
            recipes = {name: recipe for name, (_, recipe) in prepare_composition(tried)[0].recipes().items()}
            for recipe in recipes.values():
                if recipe.network.get("prior"):  # a run that is not there yet, which spares it the steps for E(x)
                    recipe.network.update(prior="", prior_share=1e-6)
            return [Piece(name, IMAGE, recipe, seeds) for name, recipe in recipes.items()]

        comparing.estimate_trainings(plan, pieces, "training the judge, and measuring,")
    jobs = prepare_composition(plan, **comparing.opening)
    jobs = comparing.carry_out(
        jobs,
        f"{len(jobs)} seeds",
        lambda workers, on_done: run_composition_jobs(jobs, workers=workers, on_done=on_done),
        _line,
    )
    results = composition_results(jobs, command=command_line())
    write_json(comparing.out, results)
    drawn = [str(path) for path in composition_pictures(jobs[0], pictures)] if pictures is not None else []
    comparing.tell(results, {"pictures": drawn}, lambda: rich_composition(results), f"medians over {len(jobs)} seeds")


def _line(job: Any, outcome: dict[str, Any]) -> str:
    """One finished seed for a person."""
    rows = outcome["rows"]
    two, three = rows["size-place"], rows["three"]
    return (
        f"seed {job.seed}: size {two['size_px']:.2f} px, position {two['place_px']:.2f} px; with the shape, "
        f"{three['shape_accuracy']:.0%} of shapes right"
    )
