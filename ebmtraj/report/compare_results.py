"""What a comparison found, as one JSON object: a row for each model, task and seed, floors, and a summary over seeds."""

from __future__ import annotations

import dataclasses
import statistics
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from ebmtraj import config as recipes
from ebmtraj.datasets.store import Store
from ebmtraj.errors import EbmtrajError
from ebmtraj.report.compare import Comparison, Job
from ebmtraj.report.compare_rows import TASKS
from ebmtraj.runs import machine, read_json, versions

EXACT = 19  # samples from which on a 90 % interval shows a model without spread as such

# Key of a row: where `results.json` has it.
METRICS: dict[str, Callable[[Mapping[str, Any]], float | None]] = {
    "fd100": lambda r: r["frechet"],  # mean over the steps 1..T; T is 100 unless the protocol says otherwise
    "fd_delta": lambda r: r["frechet_changes"],
    "energy_score": lambda r: r["energy_score"],
    "crps": lambda r: r["crps"],
    "c2st_rollout": lambda r: r["c2st_rollout"],
    "c2st_one_step": lambda r: r["c2st_one_step"],
    "c2st_structure": lambda r: r["c2st_structure"],
    "c2st_null": lambda r: r["c2st_null"],
    "c2st_one_step_null": lambda r: r["c2st_one_step_null"],
    "sliced_wasserstein": lambda r: r["sliced_wasserstein"],
    # With fewer than 19 samples a rollout's interval covers in part whatever the spread, which flatters narrow models; one
    # step is always judged by 19.
    "coverage90": lambda r: r["coverage90"] if r["samples"] >= EXACT else r["coverage90_one_step"],
    "coverage90_one_step": lambda r: r["coverage90_one_step"],
    "coverage90_rollout": lambda r: r["coverage90"],
    "rotation_ratio": lambda r: r["rotation_ratio"],
    "net_rotation_ratio": lambda r: r["net_rotation_ratio"],
    "limit_violation": lambda r: r["limit_violation"],
    "quaternion_violation": lambda r: r["quaternion_violation"],
    "penetration_ratio": lambda r: r["penetration"] and r["penetration"]["ratio_mean"],
    "penetration_ratio_p95": lambda r: r["penetration"] and r["penetration"]["ratio_p95"],
    "terminated": lambda r: r["terminated"] and r["terminated"]["model"],
    "diversity": lambda r: r["diversity"],
    "diversity_ratio": lambda r: r["simulator"] and r["simulator"]["diversity_ratio"],
}
FLOORS: dict[str, Callable[[Mapping[str, Any]], float | None]] = {
    "fd100": lambda r: r["floor"],
    "fd_delta": lambda r: r["floor_changes"],
    "sliced_wasserstein": lambda r: r["floor_sliced"],
    "c2st_rollout": lambda r: r["c2st_null"],
    "c2st_one_step": lambda r: r["c2st_one_step_null"],
    "limit_violation": lambda r: r["limit_violation_truth"],
    "terminated": lambda r: r["terminated"] and r["terminated"]["truth"],
    "simulator_energy_score": lambda r: r["simulator"] and r["simulator"]["energy_score"],  # of the simulated starts
    "simulator_diversity": lambda r: r["simulator"] and r["simulator"]["diversity"],
}
FACTS = ("train_seconds", "train_core_seconds", "train_steps", "parameters", "evaluation_seconds")
SUMMARISED = (*METRICS, "ms_per_step", *FACTS)


def comparison_results(
    jobs: Sequence[Job], store: Store, speed: Mapping[Path, float], *, command: str = "", missing: str | None = None
) -> dict[str, Any]:
    """The object of a comparison whose jobs are all done; `speed` is that of `measure_speed`.

    `missing`: why nothing could be simulated again. Raises `EbmtrajError` where a job is not done.
    """
    comparison = jobs[0].comparison
    rows, measured = [], {}
    order = {row.name: place for place, row in enumerate(comparison.rows)}
    for job in sorted(jobs, key=lambda job: (comparison.tasks.index(job.task), order[job.row.name], job.seed)):
        outcome = job.outcome()
        if outcome is None:
            raise EbmtrajError(f"{job.path} is not done; run the comparison again with --resume")
        found = read_json(job.path / "results.json") if not outcome["diverged"] else None
        if found is not None:
            measured[job.path] = found
        rows.append(_row(job, outcome, found, speed.get(job.path)))
    return {
        "protocol": _protocol(comparison, jobs, store, list(measured.values()), command, missing),
        "rows": rows,
        "floor": {
            task: _floor([measured[j.path] for j in jobs if j.task == task and j.path in measured])
            for task in comparison.tasks
        },
        "summary": summary(rows),
    }


def summary(rows: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, dict[str, Any]]]:
    """Median, least and greatest of each number over the seeds: {task: {model: {metric: {"median", "min", "max"}}}}.

    A model also has the number of its `seeds`, and how many of them `diverged`.
    """
    found: dict[str, dict[str, dict[str, Any]]] = {}
    for task in dict.fromkeys(row["task"] for row in rows):
        models = dict.fromkeys(row["model"] for row in rows if row["task"] == task)
        found[task] = {
            model: _spread([row for row in rows if row["task"] == task and row["model"] == model]) for model in models
        }
    return found


def _spread(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    said: dict[str, Any] = {"seeds": len(rows), "diverged": sum(row["diverged"] is not None for row in rows)}
    for name in SUMMARISED:
        values = [row[name] for row in rows if row[name] is not None]
        said[name] = {"median": statistics.median(values), "min": min(values), "max": max(values)} if values else None
    return said


def _row(job: Job, outcome: Mapping[str, Any], found: Mapping[str, Any] | None, speed: float | None) -> dict[str, Any]:
    row: dict[str, Any] = {"model": job.row.name, "task": job.task, "seed": job.seed, "diverged": outcome["diverged"]}
    row |= {name: None if found is None else metric(found) for name, metric in METRICS.items()}
    row |= {"ms_per_step": None if speed is None else round(speed, 4)}
    row |= {name: outcome["facts"].get(name) for name in FACTS}
    row["settings"] = list(job.row.set)
    for name, key in (("fd_over_time", "frechet_over_time"), ("fd_delta_over_time", "frechet_changes_over_time")):
        row[name] = None if found is None else _short(found[key])
    return row


def _floor(measured: Sequence[Mapping[str, Any]]) -> dict[str, Any] | None:
    """What the truth itself scores, median over the seeds of the measurement; None where nothing was measured."""
    if not measured:
        return None
    floor: dict[str, Any] = {}
    for name, metric in FLOORS.items():
        values = [value for value in map(metric, measured) if value is not None]
        floor[name] = statistics.median(values) if values else None
        if name.startswith("c2st"):
            floor[f"{name}_range"] = [min(values), max(values)] if values else None
    first = measured[0]
    return floor | {"starts": first["floor_starts"], "fd_over_time": _short(first["floor_over_time"])}


def _protocol(
    comparison: Comparison,
    jobs: Sequence[Job],
    store: Store,
    measured: Sequence[Mapping[str, Any]],
    command: str,
    missing: str | None,
) -> dict[str, Any]:
    attributes, info = store.attributes, store.info()
    return {
        "command": command,
        "tasks": list(comparison.tasks),
        "seeds": list(comparison.seeds),
        "seconds": comparison.seconds,
        "steps": comparison.steps,
        "samples": comparison.samples,
        "starts": measured[0]["starts"] if measured else None,
        "split": comparison.split,
        "content_hash": store.content_hash,
        "data": {
            **{key: info[key] for key in ("episodes", "transitions", "length", "terminated", "splits")},
            **{key: attributes.get(key) for key in ("env", "env_kwargs", "policy", "action_noise", "seed", "steps")},
            "control_timestep": store.control_timestep,
        },
        "simulator_missing": missing,
        "rows": {
            job.row.name: _told(job) for job in jobs if job.seed == comparison.seeds[0] and job.task == comparison.tasks[0]
        },
        "machine": machine(),
        "versions": versions(),
        "measured": {
            "fd100": "Fréchet distance of the z-scored state, mean over the steps of a rollout",
            "coverage90": f"of next states from {EXACT} samples"
            if comparison.samples < EXACT
            else f"of rollouts from {comparison.samples} samples",
            "ms_per_step": "a core's time of a rollout step of a batch of 256, median over rounds that visit all models",
        },
    }


def _told(job: Job) -> dict[str, Any]:
    """What a row is, with all its settings."""
    told: dict[str, Any] = {key: value for key, value in dataclasses.asdict(job.row).items() if value not in (None, "", ())}
    if job.row.sampler_of is None:
        recipe = job.recipe()
        told |= recipes.to_plain({"network": recipe.network, "training": dataclasses.asdict(recipe.training)})
        told["training"].pop("seed")
    return told


def _short(values: Sequence[float] | None) -> list[float] | None:
    return None if values is None else [float(f"{value:.4g}") for value in values]


def task_title(task: str) -> str:
    """What a task's models learn."""
    return f"{task}: E(s, s')" if task == TASKS[0] else f"{task}: E(s, a, s')"
