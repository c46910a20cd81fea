"""`ebmtraj compare images` and `compare jem`: models of images side by side."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ebmtraj.cli.common import Json, Overwrite, Resume, Set, print_json, say, stderr
from ebmtraj.cli.dry import DryRun, refuse_resume, tell_trainings
from ebmtraj.cli.watching import command_line, watched

if TYPE_CHECKING:
    from ebmtraj.report.compare_images import ImageJob

Data = Annotated[str, typer.Option("--data", help="A source's name, such as digits, or an image store.")]
Models = Annotated[str, typer.Option(help="all, or names of rows with commas between.")]
Seeds = Annotated[int, typer.Option(help="Trainings of each row, from --seed on.", min=1)]
First = Annotated[int, typer.Option(help="The first seed.", min=0, max=2**31)]
Split = Annotated[str, typer.Option(help="test, or validation to choose settings.")]
Samples = Annotated[int, typer.Option(help="Images drawn of each model.", min=20)]
Stability = Annotated[int, typer.Option(help="Seeds of the default recipe that are trained in all, to see if one diverges.")]
Runs = Annotated[Path | None, typer.Option(help="Folder of all runs. [default: named as --out, without .json]")]
Pictures = Annotated[Path | None, typer.Option(help="Folder for pictures of samples.")]
Attacked = Annotated[
    int | None, typer.Option(help="Seeds whose classifiers are attacked, which takes longest; of some rows fewer.", min=0)
]
DoneOnly = Annotated[bool, typer.Option("--done-only", help="Train nothing: report what a comparison has done so far.")]
Workers = Annotated[int | None, typer.Option(help="Jobs at once, one core each. [default: cores]", min=1)]


def images(
    data: Data = "digits",
    models: Models = "all",
    seeds: Seeds = 5,
    seed: First = 0,
    split: Split = "test",
    samples: Samples = 1500,
    stability: Stability = 0,
    set_: Set = None,
    out: Annotated[Path, typer.Option(help="The JSON file to write.")] = Path("runs/compare/images.json"),
    runs: Runs = None,
    pictures: Pictures = None,
    workers: Workers = None,
    done_only: DoneOnly = False,
    resume: Resume = False,
    overwrite: Overwrite = False,
    dry_run: DryRun = False,
    json_: Json = False,
) -> None:
    """Train generators of images and measure samples, memory, foreign images and restoration side by side.

    Distances are of features of a classifier trained by this command on the same images, and named by its hash. --set
    changes the settings of one row, or of all: --set energy.network.width=256, --set all.training.steps=500. A comparison
    that was killed goes on with --resume; more --seeds or --models may then be asked for.

    Example: ebmtraj compare images --data digits --models energy,vae,gmm --seeds 1
    """
    given = {"data": data, "models": models, "seeds": seeds, "seed": seed, "split": split, "samples": samples}
    _compare("images", given, stability, set_, out, runs, pictures, workers, done_only, resume, overwrite, dry_run, json_)


def jem(
    data: Data = "digits",
    models: Models = "all",
    seeds: Seeds = 5,
    seed: First = 0,
    split: Split = "test",
    samples: Samples = 1500,
    attacked: Attacked = None,
    stability: Stability = 0,
    set_: Set = None,
    out: Annotated[Path, typer.Option(help="The JSON file to write.")] = Path("runs/compare/jem.json"),
    runs: Runs = None,
    pictures: Pictures = None,
    workers: Workers = None,
    done_only: DoneOnly = False,
    resume: Resume = False,
    overwrite: Overwrite = False,
    dry_run: DryRun = False,
    json_: Json = False,
) -> None:
    """Train classifiers that are energies, and plain ones, and measure accuracy, calibration, foreign images and attacks.

    Options as in `compare images`.

    Example: ebmtraj compare jem --data digits --seeds 1
    """
    given = {
        "data": data,
        "models": models,
        "seeds": seeds,
        "seed": seed,
        "split": split,
        "samples": samples,
        "attacked": attacked,
    }
    _compare("jem", given, stability, set_, out, runs, pictures, workers, done_only, resume, overwrite, dry_run, json_)


def _compare(
    kind: Any,
    given: dict[str, Any],
    stability: int,
    set_: list[str] | None,
    out: Path,
    runs: Path | None,
    pictures: Path | None,
    workers: int | None,
    done_only: bool,
    resume: bool,
    overwrite: bool,
    dry_run: bool,
    json_: bool,
) -> None:
    from ebmtraj.config import parse_overrides
    from ebmtraj.datasets.images import open_images
    from ebmtraj.errors import EbmtrajError
    from ebmtraj.evaluation.image_features import judge_of
    from ebmtraj.report.compare_images import ImageComparison, choose_image_rows, prepare_images
    from ebmtraj.report.compare_images_run import image_results, missing, run_image_jobs, shown
    from ebmtraj.report.compare_images_table import SECTIONS, rich_images, samples_picture
    from ebmtraj.runs import write_json

    if resume and overwrite:
        raise EbmtrajError("choose one of --resume and --overwrite: the first goes on, the second replaces all runs")
    if out.suffix != ".json":
        raise EbmtrajError(f"--out {out}: give a path that ends in .json")
    if done_only and overwrite:
        raise EbmtrajError("choose one of --done-only and --overwrite: the first reports all runs, the second replaces them")
    resume = resume or done_only
    if out.exists() and not (resume or overwrite):
        raise EbmtrajError(f"{out} exists; give another --out, --resume to go on, or --overwrite to replace it and its runs")
    changes = parse_overrides(set_ or [])
    for name, values in changes.items():
        if not isinstance(values, dict):
            raise EbmtrajError(f"--set {name}=...: say of which row, such as energy.{name}=... or all.{name}=...")
    store = open_images(given["data"])
    comparison = ImageComparison(
        kind=kind,
        data=given["data"],
        rows=choose_image_rows(kind, given["models"], store),
        seeds=tuple(range(given["seed"], given["seed"] + given["seeds"])),
        runs=runs or out.with_suffix(""),
        split=given["split"],
        samples=given["samples"],
        attacked=given.get("attacked"),
        stability=stability,
        changes=changes,
    )
    if dry_run:
        from ebmtraj.images.fit import IMAGE
        from ebmtraj.report.estimate import Piece

        def pieces(tried: ImageComparison) -> list[Piece]:
            jobs = prepare_images(tried, store)
            first = {job.name: job for job in reversed(jobs)}
            return [Piece(job.label, IMAGE, job.recipe(), sum(j.name == name for j in jobs)) for name, job in first.items()]

        refuse_resume(resume)
        tell_trainings(comparison, pieces, out, workers, json_)
    jobs = prepare_images(comparison, store, resume=resume, overwrite=overwrite)
    done = sum(not missing(job) for job in jobs)
    say(f"{len(jobs)} trainings of {len(comparison.rows)} rows" + (f", {done} of them done" if done else ""))
    began = time.perf_counter()
    if done_only:
        jobs = [job for job in jobs if not missing(job)]
        if not jobs:
            raise EbmtrajError(f"{comparison.runs} holds nothing that is done; run the comparison without --done-only")
    else:
        with watched(jobs) as count:
            run_image_jobs(jobs, workers=workers or 0, on_done=lambda job, outcome: say(_line(job.label, outcome, count())))
    results = image_results(jobs, store, judge_of(store, folder=comparison.runs), command=command_line())
    write_json(out, results)
    took = round(time.perf_counter() - began, 1)
    output: dict[str, Any] = {"out": str(out), "runs": str(comparison.runs), "seconds": took}
    if pictures is not None:
        strips = [(_title(j), drawn) for j in jobs if j.seed == given["seed"] and (drawn := shown(j)) is not None]
        real = ("real images, held out", store.read(comparison.split).pixels)
        output["pictures"] = [str(samples_picture([real, *strips], pictures / f"{kind}.png"))]
    if json_:
        print_json({**output, **results})
        return
    for section in SECTIONS[kind].values():
        table = rich_images(results, section)
        if table is not None:
            stderr.print(table)
    say("medians over the seeds; every number with its least and greatest value is in the file")
    say(f"wrote {out} ({took:.0f} s)")


def _line(label: str, outcome: dict[str, Any], count: str) -> str:
    """One finished job for a person."""
    if outcome["diverged"]:
        return f"{count} {label}: diverged: {outcome['diverged']}"
    facts = outcome["facts"]
    said = [f"{facts['training']['steps']} steps, {facts['training']['seconds']:.0f} s"]
    if "generation" in facts:
        said.append(f"Frechet {facts['generation']['frechet']:.3f}")
    if "classes" in facts:
        said.append(f"accuracy {facts['classes']['accuracy']:.1%}, ECE {facts['classes']['ece']:.3f}")
    return f"{count} {label}: " + ", ".join(said)


def _title(job: ImageJob) -> str:
    """What stands over its samples."""
    return job.row.title + (", by class" if job.comparison.kind == "images" and job.row.conditional else "")
