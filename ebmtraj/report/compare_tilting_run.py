"""The work of a comparison of tilts, one thread a job, and what it came to as one JSON object."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from threadpoolctl import threadpool_limits

from ebmtraj.datasets.images import ImageStore, open_images
from ebmtraj.datasets.toy import TOYS
from ebmtraj.device import generator, no_denormals, use_threads
from ebmtraj.errors import DivergedError, EbmtrajError
from ebmtraj.evaluation.image_features import Judge, judge_facts, judge_of
from ebmtraj.generators.data import open_source
from ebmtraj.generators.fit import train_generator
from ebmtraj.generators.registry import load_generator
from ebmtraj.generators.tilt_fit import load_tilt, tilt_recipe, train_tilt
from ebmtraj.images.fit import ImageRecipe, train_image
from ebmtraj.images.registry import load_image_model
from ebmtraj.locks import only_writer
from ebmtraj.parallel import open_pool
from ebmtraj.report.compare_images_run import flat
from ebmtraj.report.compare_tilting import NONE, ROWS, TiltJob
from ebmtraj.report.jobs import OUTCOME, finite
from ebmtraj.report.measure_images import floor
from ebmtraj.report.tilting import Against, draw, pictures, sample_count
from ebmtraj.runs import cores, machine, versions, write_json
from ebmtraj.training.loop import Result


def run_tilt_jobs(
    jobs: Sequence[TiltJob],
    *,
    workers: int = 0,
    on_done: Callable[[TiltJob, dict[str, Any]], None] = lambda job, outcome: None,
) -> None:
    """Train, tilt and measure what is not done, `workers` jobs at once, one thread each.

    A model that diverges is noted in its outcome; any other fault raises `EbmtrajError`, and what is done stays done.
    """
    judge_of(open_images(jobs[0].comparison.data), folder=jobs[0].comparison.runs)
    waiting = [job for job in jobs if job.outcome() is None]
    if waiting:
        with only_writer(jobs[0].comparison.runs, "comparison"), open_pool(min(workers or cores(), len(waiting))) as pool:
            for job, outcome in zip(waiting, pool.map(work, waiting, lambda job: str(job.path)), strict=True):
                on_done(job, outcome)


def work(job: TiltJob) -> dict[str, Any]:
    """Train a job's generator and its tilts, measure all, and write down what they came to; goes on where it was killed."""
    use_threads(1)
    outcome: dict[str, Any] = {"asked": job.asked(), "diverged": None, "rows": {}}
    try:
        with threadpool_limits(1), no_denormals():
            outcome["rows"] = _image_energy(job) if job.row.image else _generator(job)
    except DivergedError as error:
        outcome |= {"diverged": str(error), "rows": {}}
    write_json(job.path / OUTCOME, finite(outcome))  # last, as it says that all else is there
    return outcome


def _generator(job: TiltJob) -> dict[str, Any]:
    recipe, run = job.recipe(), job.path / "generator"
    assert not isinstance(recipe, ImageRecipe)
    result, seconds = _trained(partial(train_generator, recipe, run), run)
    base, _ = load_generator(run)
    found = {NONE: _measured(job, base, seconds, result.steps)}
    for objective in job.row.objectives:
        path = job.path / f"tilt-{objective}"
        settings = tilt_recipe(run, [f"training.seed={job.seed}", *job.tilt_changes()], objective=objective)
        result, seconds = _trained(partial(train_tilt, settings, path), path)
        tilt, _ = load_tilt(path, base)
        found[objective] = _measured(job, tilt, seconds, result.steps)
        for name in ("frechet", "frechet_test"):
            if name in found[NONE]:
                found[objective][f"{name}_ratio"] = found[objective][name] / found[NONE][name]
    return found


def _image_energy(job: TiltJob) -> dict[str, Any]:
    recipe, run = job.recipe(), job.path / "generator"
    assert isinstance(recipe, ImageRecipe)
    result, seconds = _trained(partial(train_image, recipe, run), run)
    model, _ = load_image_model(run)
    return {NONE: _measured(job, model, seconds, result.steps)}


def _measured(job: TiltJob, model: Any, seconds: float | None, steps: int) -> dict[str, Any]:
    """Metrics of a model's samples, and what it took; the same count and seed for all of a job."""
    c, source = job.comparison, open_source(job.data)
    count = sample_count(source, c.samples, c.split)

    def made() -> np.ndarray:
        if not job.row.image:
            return draw(model, count, job.seed)
        noise = generator(job.seed)
        parts = [model.sample(min(512, count - start), noise) for start in range(0, count, 512)]
        return np.asarray(torch.cat(parts).numpy())

    x, sampling = _timed(made)
    against = Against(source, c.split, folder=c.runs)
    took = {"train_seconds": seconds, "sample_seconds": round(sampling, 2), "steps": steps}
    return {**against.measure(x, job.seed), **took}


def _trained(train: Callable[..., tuple[Result, Any]], run: Path) -> tuple[Result, float | None]:
    """What a training came to, and seconds of this core, which nobody knows of one that was killed."""
    whole = not (run / "checkpoints" / "resume.safetensors").exists()
    (result, _), seconds = _timed(partial(train, device="cpu", resume=True))
    return result, round(seconds, 2) if whole else None


def _timed(do: Callable[[], Any]) -> tuple[Any, float]:
    """What it gives, and seconds of this core."""
    began = time.thread_time()
    found = do()
    return found, time.thread_time() - began


def tilt_pictures(jobs: Sequence[TiltJob], folder: Path) -> list[Path]:
    """Before and after, and the chains' film, of the first seed of each row that is tilted, by its first objective."""
    made: list[Path] = []
    for job in jobs:
        outcome = job.outcome()
        if job.seed != jobs[0].seed or not job.row.objectives or outcome is None or outcome["diverged"]:
            continue
        tilt, _ = load_tilt(job.path / f"tilt-{job.row.objectives[0]}", load_generator(job.path / "generator")[0])
        source = open_source(job.data)
        count = min(1000, sample_count(source, 1000, job.comparison.split))
        samples = draw(tilt.base, count, job.seed), draw(tilt, count, job.seed)
        made += pictures(tilt, samples, source, folder / job.name, job.seed)
    return made


def tilt_results(jobs: Sequence[TiltJob], store: ImageStore, judge: Judge, *, command: str = "") -> dict[str, Any]:
    """The object of a comparison whose jobs are all done; raises `EbmtrajError` where one is not."""
    c = jobs[0].comparison
    names = [name for name in c.rows if any(job.name == name for job in jobs)]
    rows: list[dict[str, Any]] = []
    for job in jobs:
        outcome = job.outcome()
        if outcome is None:
            raise EbmtrajError(f"{job.path} is not done; run the comparison again with --resume")
        shared = {"model": job.name, "data": job.data, "seed": job.seed, "diverged": outcome["diverged"]}
        rows += [{**shared, "tilt": tilt, **flat(facts)} for tilt, facts in outcome["rows"].items()]
        if outcome["diverged"]:
            rows.append({**shared, "tilt": NONE})
    asked = {job.name: (job.outcome() or {})["asked"] for job in reversed(jobs)}
    return {
        "protocol": {
            "command": command,
            "data": c.data,
            "content_hash": store.content_hash,
            "images": store.info()["splits"],
            "split": c.split,
            "samples": c.samples,
            "seeds": sorted({job.seed for job in jobs}),
            "judge": judge_facts(judge, store),
            "machine": machine(),
            "versions": versions(),
            "recipes": asked,
            "titles": {name: ROWS[name].title for name in names},
        },
        "floor": {
            "images": flat(finite(floor(store, judge, c.split)["generation"])),
            **{name: _toy_floor(name, c.split) for name in TOYS if name in names},
        },
        "summary": _summary(rows),
        "rows": rows,
    }


def _toy_floor(name: str, split: str) -> dict[str, Any]:
    """What the data itself scores: points of the training split in the place of samples."""
    source = open_source(name)
    points = source.read("train").numpy()
    return flat(Against(source, split).measure(points[: sample_count(source, len(points), split)]))


def _summary(rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Median, least and greatest of each number over the seeds, by model and tilt."""
    found: dict[str, Any] = {}
    for name, tilt in dict.fromkeys((row["model"], row["tilt"]) for row in rows):
        own = [row for row in rows if (row["model"], row["tilt"]) == (name, tilt)]
        said: dict[str, Any] = {"seeds": len(own), "diverged": sum(row["diverged"] is not None for row in own)}
        for key in dict.fromkeys(key for row in own for key in row if key not in ("seed", "diverged")):
            values = [row[key] for row in own if isinstance(row.get(key), int | float)]
            if values:
                said[key] = {"median": statistics.median(values), "min": min(values), "max": max(values)}
        found.setdefault(name, {})[tilt] = said
    return found
