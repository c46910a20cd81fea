"""The work of a comparison of image models, one thread a job, and what it came to as one JSON object."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from threadpoolctl import threadpool_limits

from ebmtraj.datasets.images import ImageStore, open_images
from ebmtraj.device import no_denormals, use_threads
from ebmtraj.errors import DivergedError, EbmtrajError
from ebmtraj.evaluation.image_features import Judge, judge_facts, judge_of
from ebmtraj.images.fit import train_image
from ebmtraj.images.registry import load_image_model
from ebmtraj.locks import only_writer
from ebmtraj.parallel import open_pool
from ebmtraj.report.compare_images import ROWS, STABLE, ImageJob
from ebmtraj.report.jobs import OUTCOME, finite
from ebmtraj.report.measure_images import MEASURES, Subject, draw, floor, generation, memory, samples_images
from ebmtraj.runs import Run, cores, machine, versions, write_json
from ebmtraj.training.checkpoint import load_tensors, save_tensors

SHOWN, SAMPLES = 100, "shown.safetensors"  # samples that are kept for a picture


def run_image_jobs(
    jobs: Sequence[ImageJob],
    *,
    workers: int = 0,
    on_done: Callable[[ImageJob, dict[str, Any]], None] = lambda job, outcome: None,
) -> None:
    """Train and measure what is not done, `workers` jobs at once, one thread each.

    A model that diverges is noted in its outcome; any other fault raises `EbmtrajError`, and what is done stays done.
    """
    store = open_images(jobs[0].comparison.data)
    judge_of(store, folder=jobs[0].comparison.runs)
    waiting = [job for job in jobs if missing(job)]
    if waiting:
        with only_writer(jobs[0].comparison.runs, "comparison"), open_pool(min(workers or cores(), len(waiting))) as pool:
            for job, outcome in zip(waiting, pool.map(work, waiting, lambda job: str(job.path)), strict=True):
                on_done(job, outcome)


def missing(job: ImageJob) -> list[str]:
    """What of a job is still to be done: all of it, or measures that came later than its outcome."""
    outcome = job.outcome()
    if outcome is None:
        return ["training", *_measures(job)]
    return [] if outcome["diverged"] else [name for name in _measures(job) if name not in outcome["done"]]


def _measures(job: ImageJob) -> list[str]:
    c = job.comparison
    attacked = min(most for most in (c.attacked, job.row.attacked, len(c.seeds)) if most is not None)
    names = [name for name in MEASURES[c.kind] if job.seed - c.seeds[0] < attacked or name != "robustness"]
    return ["samples", *names] if job.measured else []


def work(job: ImageJob) -> dict[str, Any]:
    """Train a job's model, measure it, and write down what it came to; goes on where it was killed."""
    use_threads(1)
    outcome = job.outcome() or {"asked": job.asked(), "diverged": None, "done": [], "facts": {}}
    try:
        with threadpool_limits(1), no_denormals():
            wanted = missing(job)
            if "training" in wanted:
                outcome["facts"]["training"] = _train(job)
            outcome["facts"] |= _measure(job, [name for name in wanted if name != "training"])
            outcome["done"] = list(dict.fromkeys((*outcome["done"], *_measures(job))))
    except DivergedError as error:
        outcome |= {"diverged": str(error), "facts": {}}
    write_json(job.path / OUTCOME, finite(outcome))  # last, as it says that all else is there
    return outcome


def _train(job: ImageJob) -> dict[str, Any]:
    whole = not (job.path / "checkpoints" / "resume.safetensors").exists()
    began = time.thread_time()
    result, _ = train_image(job.recipe(), job.path, device="cpu", resume=True)
    core = round(time.thread_time() - began, 1) if whole else None  # nobody knows what a killed one took
    return {
        "seconds": round(result.seconds, 1),
        "core_seconds": core,
        "steps": result.steps,
        "best_step": _best_step(job.path),
        "rollbacks": result.rollbacks,
    }


def _measure(job: ImageJob, names: Sequence[str]) -> dict[str, Any]:
    if not names:
        return {}
    c, facts = job.comparison, {}
    model, _ = load_image_model(job.path)
    store = open_images(c.data)
    subject = Subject(model, store, judge_of(store, folder=c.runs), c.split, job.seed, c.samples)
    if "samples" in names and samples_images(model):
        began = time.thread_time()
        pixels, labels = draw(subject)
        seconds = time.thread_time() - began
        facts["generation"] = {**generation(subject, pixels, labels), "core_seconds": round(seconds, 2)}
        facts["memory"] = memory(subject, pixels)
        _keep(job.path, pixels, labels)
    for name in names:
        found = MEASURES[c.kind][name](subject) if name != "samples" else {}
        if found:
            facts[name] = dict(found)
    return facts


def _best_step(run: Path) -> int | None:
    """The step of least validation loss."""
    rows = [row for row in Run(run).read_metrics() if row.get("validation") is not None]
    return min(rows, key=lambda row: row["validation"])["step"] if rows else None


def _keep(path: Path, pixels: np.ndarray, labels: np.ndarray | None) -> None:
    """Samples for a picture: of each class the first ones where there are classes."""
    order = np.arange(len(pixels))[:SHOWN] if labels is None else np.argsort(labels, kind="stable")
    if labels is not None:
        most = SHOWN // max(1, len(np.unique(labels)))
        order = np.concatenate([np.flatnonzero(labels == k)[:most] for k in np.unique(labels)])
    save_tensors(path / SAMPLES, {"pixels": torch.from_numpy(pixels[order])}, {"labelled": labels is not None})


def shown(job: ImageJob) -> np.ndarray | None:
    """The samples that a job kept, (N, C, H, W); None where it has none."""
    path = job.path / SAMPLES
    return load_tensors(path)[1]["pixels"].numpy() if path.exists() else None


def image_results(jobs: Sequence[ImageJob], store: ImageStore, judge: Judge, *, command: str = "") -> dict[str, Any]:
    """The object of a comparison whose jobs are all done; raises `EbmtrajError` where one is not."""
    c = jobs[0].comparison
    names = [name for name in c.rows if any(job.name == name and job.measured for job in jobs)]
    rows: list[dict[str, Any]] = []
    trained: list[dict[str, Any]] = []
    for job in jobs:
        outcome = job.outcome()
        if outcome is None or missing(job):
            raise EbmtrajError(f"{job.path} is not done; run the comparison again with --resume")
        asked_for = {*_measures(job), "training", "generation", "memory"}  # a comparison may have measured more before
        facts = {name: found for name, found in outcome["facts"].items() if name in asked_for}
        row = {"model": job.name, "seed": job.seed, "diverged": outcome["diverged"], **flat(facts)}
        (rows if job.measured else trained).append(row)
    stable = [row for row in (*rows, *trained) if row["model"] == STABLE[c.kind]]
    asked = {job.name: (job.outcome() or {})["asked"] for job in reversed(jobs)}
    return {
        "protocol": {
            "command": command,
            "data": c.data,
            "content_hash": store.content_hash,
            "images": store.info()["splits"],
            "split": c.split,
            "seeds": sorted({row["seed"] for row in rows}),
            "judge": judge_facts(judge, store),
            "machine": machine(),
            "versions": versions(),
            "recipes": asked,
            "titles": {name: ROWS[c.kind][name].title for name in names},
            "conditional": {name: ROWS[c.kind][name].conditional for name in names},
        },
        "floor": flat(finite(floor(store, judge, c.split))),
        "stability": {
            "model": STABLE[c.kind],
            "seeds": len(stable),
            "diverged": sum(row["diverged"] is not None for row in stable),
            "rolled_back": sum(bool(row.get("training.rollbacks")) for row in stable),
        },
        "summary": {name: _spread([row for row in rows if row["model"] == name]) for name in names},
        "rows": rows + [{**row, "trained_only": True} for row in trained],
    }


def flat(tree: Mapping[str, Any], path: str = "") -> dict[str, Any]:
    """Nested numbers by dotted names."""
    found: dict[str, Any] = {}
    for key, value in tree.items():
        name = f"{path}.{key}" if path else str(key)
        if isinstance(value, Mapping):
            found |= flat(value, name)
        else:
            found[name] = round(value, 6) if isinstance(value, float) else value
    return found


def _spread(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Median, least and greatest of each number over the seeds."""
    said: dict[str, Any] = {"seeds": len(rows), "diverged": sum(row["diverged"] is not None for row in rows)}
    names = dict.fromkeys(key for row in rows for key in row if key not in ("model", "seed", "diverged"))
    for name in names:
        values = [row[name] for row in rows if isinstance(row.get(name), int | float)]
        if values:
            said[name] = {"median": statistics.median(values), "min": min(values), "max": max(values)}
    return said
