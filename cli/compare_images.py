"""`ebmtraj compare images` and `compare jem`: models of images side by side."""

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
    from ebmtraj.report.compare_images import ImageJob

Data = Annotated[str, typer.Option("--data", help="A source's name, such as digits, or an image store.")]
Samples = Annotated[int, typer.Option(help="Images drawn of each model.", min=20)]
Stability = Annotated[int, typer.Option(help="Seeds of the default recipe that are trained in all, to see if one diverges.")]
Attacked = Annotated[
    int | None, typer.Option(help="Seeds whose classifiers are attacked, which takes longest; of some rows fewer.", min=0)
]


@grouped
def images(
    course: Course,
    data: Data = "digits",
    models: Models = "all",
    seeds: Seeds = 5,
    seed: First = 0,
    split: Split = "test",
    samples: Samples = 1500,
    stability: Stability = 0,
    set_: Set = None,
    out: Out = Path("runs/compare/images.json"),
    pictures: Pictures = None,
    done_only: DoneOnly = False,
) -> None:
    """Train generators of images and measure samples, memory, foreign images and restoration side by side.

    Distances are of features of a classifier trained by this command on the same images, and named by its hash. --set
    changes the settings of one row, or of all: --set energy.network.width=256, --set all.training.steps=500. A comparison
    that was killed goes on with --resume; more --seeds or --models may then be asked for.

    Example: ebmtraj compare images --data digits --models energy,vae,gmm --seeds 1
    """
    given = {"data": data, "models": models, "seeds": seeds, "seed": seed, "split": split, "samples": samples}
    _compare("images", given, Comparing(out, course, done_only), stability, set_, pictures)


@grouped
def jem(
    course: Course,
    data: Data = "digits",
    models: Models = "all",
    seeds: Seeds = 5,
    seed: First = 0,
    split: Split = "test",
    samples: Samples = 1500,
    attacked: Attacked = None,
    stability: Stability = 0,
    set_: Set = None,
    out: Out = Path("runs/compare/jem.json"),
    pictures: Pictures = None,
    done_only: DoneOnly = False,
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
    _compare("jem", given, Comparing(out, course, done_only), stability, set_, pictures)


def _compare(
    kind: Any,
    given: dict[str, Any],
    comparing: Comparing,
    stability: int,
    set_: list[str] | None,
    pictures: Path | None,
) -> None:
    from ebmtraj.datasets.images import open_images
    from ebmtraj.evaluation.image_features import judge_of
    from ebmtraj.report.compare_images import ImageComparison, choose_image_rows, prepare_images
    from ebmtraj.report.compare_images_run import image_results, missing, run_image_jobs, shown
    from ebmtraj.report.compare_images_table import SECTIONS, rich_images, samples_picture
    from ebmtraj.runs import write_json

    changes = changes_by_row(set_, "energy.{0}=... or all.{0}")
    store = open_images(given["data"])
    comparison = ImageComparison(
        kind=kind,
        data=given["data"],
        rows=choose_image_rows(kind, given["models"], store),
        seeds=tuple(range(given["seed"], given["seed"] + given["seeds"])),
        runs=comparing.folder,
        split=given["split"],
        samples=given["samples"],
        attacked=given.get("attacked"),
        stability=stability,
        changes=changes,
    )
    if comparing.course.dry_run:
        from ebmtraj.images.fit import IMAGE
        from ebmtraj.report.estimate import Piece

        def pieces(tried: ImageComparison) -> list[Piece]:
            jobs = prepare_images(tried, store)
            first = {job.name: job for job in reversed(jobs)}
            return [Piece(job.label, IMAGE, job.recipe(), sum(j.name == name for j in jobs)) for name, job in first.items()]

        comparing.estimate_trainings(comparison, pieces)
    jobs = prepare_images(comparison, store, **comparing.opening)
    jobs = comparing.carry_out(
        jobs,
        f"{len(jobs)} trainings of {len(comparison.rows)} rows",
        lambda workers, on_done: run_image_jobs(jobs, workers=workers, on_done=on_done),
        _line,
        done=lambda job: not missing(job),
    )
    results = image_results(jobs, store, judge_of(store, folder=comparison.runs), command=command_line())
    write_json(comparing.out, results)
    beside = {}
    if pictures is not None:
        strips = [(_title(j), drawn) for j in jobs if j.seed == given["seed"] and (drawn := shown(j)) is not None]
        real = ("real images, held out", store.read(comparison.split).pixels)
        beside["pictures"] = [str(samples_picture([real, *strips], pictures / f"{kind}.png"))]
    tables = (table for section in SECTIONS[kind].values() if (table := rich_images(results, section)) is not None)
    note = "medians over the seeds; every number with its least and greatest value is in the file"
    comparing.tell(results, beside, lambda: tables, note)


def _line(job: ImageJob, outcome: dict[str, Any]) -> str:
    """One finished job for a person."""
    if outcome["diverged"]:
        return f"{job.label}: diverged: {outcome['diverged']}"
    facts = outcome["facts"]
    said = [f"{facts['training']['steps']} steps, {facts['training']['seconds']:.0f} s"]
    if "generation" in facts:
        said.append(f"Frechet {facts['generation']['frechet']:.3f}")
    if "classes" in facts:
        said.append(f"accuracy {facts['classes']['accuracy']:.1%}, ECE {facts['classes']['ece']:.3f}")
    return f"{job.label}: " + ", ".join(said)


def _title(job: ImageJob) -> str:
    """What stands over its samples."""
    return job.row.title + (", by class" if job.comparison.kind == "images" and job.row.conditional else "")
