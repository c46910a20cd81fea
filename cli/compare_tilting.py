"""`ebmtraj compare tilting`: generators before and after their tilt, side by side."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ebmtraj.cli.common import Set
from ebmtraj.cli.comparing import (
    Comparing,
    Course,
    DoneOnly,
    First,
    Models,
    Out,
    Pictures,
    Seeds,
    Split,
    changes_by_row,
)
from ebmtraj.cli.grouped import grouped
from ebmtraj.cli.watching import command_line

if TYPE_CHECKING:
    from ebmtraj.report.compare_tilting import TiltJob


@grouped
def tilting(
    course: Course,
    data: Annotated[str, typer.Option("--data", help="Of the image rows: a source's name, or an image store.")] = "digits",
    models: Models = "all",
    seeds: Seeds = 5,
    seed: First = 0,
    split: Split = "test",
    samples: Annotated[int, typer.Option(help="Drawn before and after, at most.", min=20)] = 5000,
    set_: Set = None,
    out: Out = Path("runs/compare/tilting.json"),
    pictures: Pictures = None,
    done_only: DoneOnly = False,
) -> None:
    """Train generators, tilt them, and measure both, beside a two-stage VAE, a VAE with a flow, and an energy on pixels.

    --set changes the settings of one row or of its tilts: --set vae.network.beta=3, --set vae.tilt.training.steps=500. A
    comparison that was killed goes on with --resume; more --seeds or --models may then be asked for.

    Example: ebmtraj compare tilting --models swiss-roll,vae --seeds 1
    """
    from ebmtraj.datasets.images import open_images
    from ebmtraj.evaluation.image_features import judge_of
    from ebmtraj.report.compare_tilting import TiltComparison, choose_tilt_rows, prepare_tilting
    from ebmtraj.report.compare_tilting_run import run_tilt_jobs, tilt_pictures, tilt_results
    from ebmtraj.runs import write_json

    comparing = Comparing(out, course, done_only)
    changes = changes_by_row(set_, "vae.{0}=... or vae.tilt.{0}")
    store = open_images(data)
    comparison = TiltComparison(
        data=data,
        rows=choose_tilt_rows(models),
        seeds=tuple(range(seed, seed + seeds)),
        runs=comparing.folder,
        split=split,
        samples=samples,
        changes=changes,
    )
    if course.dry_run:
        from ebmtraj.generators.fit import GENERATOR
        from ebmtraj.images.fit import IMAGE
        from ebmtraj.report.estimate import Piece

        def pieces(tried: TiltComparison) -> list[Piece]:
            own = [job for job in prepare_tilting(tried, store) if job.seed == seed]
            return [Piece(job.label, IMAGE if job.row.image else GENERATOR, job.recipe(), seeds) for job in own]

        comparing.estimate_trainings(comparison, pieces, "tilting, and measuring what was trained,")
    jobs = prepare_tilting(comparison, store, **comparing.opening)
    jobs = comparing.carry_out(
        jobs,
        f"{len(jobs)} generators of {len(comparison.rows)} rows",
        lambda workers, on_done: run_tilt_jobs(jobs, workers=workers, on_done=on_done),
        _line,
    )
    results = tilt_results(jobs, store, judge_of(store, folder=comparison.runs), command=command_line())
    write_json(comparing.out, results)
    drawn = [str(path) for path in tilt_pictures(jobs, pictures)] if pictures is not None else []
    comparing.tell(results, {"pictures": drawn}, lambda: (), "")


def _line(job: TiltJob, outcome: dict[str, Any]) -> str:
    """One finished job for a person."""
    if outcome["diverged"]:
        return f"{job.label}: diverged: {outcome['diverged']}"
    key, name = ("share", "share") if job.row.toy else ("frechet", "Frechet")
    said = [f"{'base' if tilt == 'none' else tilt} {facts[key]:.3f}" for tilt, facts in outcome["rows"].items()]
    return f"{job.label}: {name} " + ", ".join(said)
