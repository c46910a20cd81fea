"""`ebmtraj compare tilting`: generators before and after their tilt, side by side."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ebmtraj.cli.common import Json, Overwrite, Resume, Set, print_json, say
from ebmtraj.cli.compare_images import DoneOnly, First, Models, Pictures, Runs, Seeds, Split, Workers
from ebmtraj.cli.dry import DryRun, refuse_resume, tell_trainings
from ebmtraj.cli.watching import command_line, watched

if TYPE_CHECKING:
    from ebmtraj.report.compare_tilting import TiltJob


def tilting(
    data: Annotated[str, typer.Option("--data", help="Of the image rows: a source's name, or an image store.")] = "digits",
    models: Models = "all",
    seeds: Seeds = 5,
    seed: First = 0,
    split: Split = "test",
    samples: Annotated[int, typer.Option(help="Drawn before and after, at most.", min=20)] = 5000,
    set_: Set = None,
    out: Annotated[Path, typer.Option(help="The JSON file to write.")] = Path("runs/compare/tilting.json"),
    runs: Runs = None,
    pictures: Pictures = None,
    workers: Workers = None,
    done_only: DoneOnly = False,
    resume: Resume = False,
    overwrite: Overwrite = False,
    dry_run: DryRun = False,
    json_: Json = False,
) -> None:
    """Train generators, tilt them, and measure both, beside a two-stage VAE, a VAE with a flow, and an energy on pixels.

    --set changes the settings of one row or of its tilts: --set vae.network.beta=3, --set vae.tilt.training.steps=500. A
    comparison that was killed goes on with --resume; more --seeds or --models may then be asked for.

    Example: ebmtraj compare tilting --models swiss-roll,vae --seeds 1
    """
    from ebmtraj.config import parse_overrides
    from ebmtraj.datasets.images import open_images
    from ebmtraj.errors import EbmtrajError
    from ebmtraj.evaluation.image_features import judge_of
    from ebmtraj.report.compare_tilting import TiltComparison, choose_tilt_rows, prepare_tilting
    from ebmtraj.report.compare_tilting_run import run_tilt_jobs, tilt_pictures, tilt_results
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
    changes = parse_overrides(set_ or [])
    for name, values in changes.items():
        if not isinstance(values, dict):
            raise EbmtrajError(f"--set {name}=...: say of which row, such as vae.{name}=... or vae.tilt.{name}=...")
    store = open_images(data)
    comparison = TiltComparison(
        data=data,
        rows=choose_tilt_rows(models),
        seeds=tuple(range(seed, seed + seeds)),
        runs=runs or out.with_suffix(""),
        split=split,
        samples=samples,
        changes=changes,
    )
    if dry_run:
        from ebmtraj.generators.fit import GENERATOR
        from ebmtraj.images.fit import IMAGE
        from ebmtraj.report.estimate import Piece

        def pieces(tried: TiltComparison) -> list[Piece]:
            own = [job for job in prepare_tilting(tried, store) if job.seed == seed]
            return [Piece(job.label, IMAGE if job.row.image else GENERATOR, job.recipe(), seeds) for job in own]

        refuse_resume(resume)
        tell_trainings(comparison, pieces, out, workers, json_, "tilting, and measuring what was trained,")
    jobs = prepare_tilting(comparison, store, resume=resume, overwrite=overwrite)
    done = sum(job.outcome() is not None for job in jobs)
    say(f"{len(jobs)} generators of {len(comparison.rows)} rows" + (f", {done} of them done" if done else ""))
    began = time.perf_counter()
    if done_only:
        jobs = [job for job in jobs if job.outcome() is not None]
        if not jobs:
            raise EbmtrajError(f"{comparison.runs} holds nothing that is done; run the comparison without --done-only")
    else:
        with watched(jobs) as count:
            run_tilt_jobs(jobs, workers=workers or 0, on_done=lambda job, outcome: say(_line(job, outcome, count())))
    results = tilt_results(jobs, store, judge_of(store, folder=comparison.runs), command=command_line())
    write_json(out, results)
    made = [str(path) for path in tilt_pictures(jobs, pictures)] if pictures is not None else []
    took = round(time.perf_counter() - began, 1)
    if json_:
        print_json({"out": str(out), "runs": str(comparison.runs), "seconds": took, "pictures": made, **results})
        return
    say(f"wrote {out} ({took:.0f} s)")


def _line(job: TiltJob, outcome: dict[str, Any], count: str) -> str:
    """One finished job for a person."""
    if outcome["diverged"]:
        return f"{count} {job.label}: diverged: {outcome['diverged']}"
    key, name = ("share", "share") if job.row.toy else ("frechet", "Frechet")
    said = [f"{'base' if tilt == 'none' else tilt} {facts[key]:.3f}" for tilt, facts in outcome["rows"].items()]
    return f"{count} {job.label}: {name} " + ", ".join(said)
