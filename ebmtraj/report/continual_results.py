"""What a trial of continual learners came to, as one JSON object: rows with means and spreads, or what a search kept."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from ebmtraj.continual.grids import GRIDS
from ebmtraj.continual.registry import entry_of, title_of
from ebmtraj.continual.tasks import SAYS, Scenario
from ebmtraj.datasets.images import ImageStore
from ebmtraj.errors import EbmtrajError
from ebmtraj.report.continual import Job
from ebmtraj.runs import machine, versions


def results(jobs: Sequence[Job], store: ImageStore, *, command: str = "", seconds: float | None = None) -> dict[str, Any]:
    """The object of a trial whose jobs are all done; raises `EbmtrajError` where one is not."""
    trial = jobs[0].trial
    done = [(job, job.outcome()) for job in jobs]
    for job, outcome in done:
        if outcome is None:
            raise EbmtrajError(f"{job.path} is not done; run the same command again with --resume")
    info = store.info()
    output: dict[str, Any] = {
        "protocol": {
            "command": command,
            "data": trial.data,
            "content_hash": store.content_hash,
            "images": info["splits"],
            "shape": info["shape"],
            "classes": list(store.classes),
            "plan": [list(task) for task in trial.plan],
            "scenarios": {each: SAYS[each] for each in trial.scenarios},
            "split": trial.split,
            "seeds": list(trial.seeds),
            "wall_seconds": seconds,
            "core_seconds": round(sum(_core(outcome) for _, outcome in done), 1),
            "machine": machine(),
            "versions": versions(),
        },
    }
    if trial.tune:
        return output | _search(done)
    settings = {f"{job.name}/{each}": job.asked()["settings"] for job, _ in done for each in job.scenarios}
    output["rows"] = [
        row_of(name, each, [(job, outcome) for job, outcome in done if job.name == name and each in job.scenarios])
        for each in trial.scenarios
        for name in trial.learners
    ]
    output["settings"] = settings
    return output


def _core(outcome: Mapping[str, Any] | None) -> float:
    """Core-seconds of a job: a course that was learnt once for several scenarios counts once."""
    courses = list((outcome or {}).get("courses", {}).values())
    return sum((*{each["seconds"] for each in courses}, *{each["test_seconds"] for each in courses}))


def row_of(name: str, scenario: Scenario, done: Sequence[tuple[Job, Any]]) -> dict[str, Any]:
    """A row of the table: means and spreads over the seeds."""
    courses = [(job.seed, outcome["courses"][scenario]) for job, outcome in done if outcome["diverged"] is None]
    learner = entry_of(name).learner
    row: dict[str, Any] = {
        "learner": name,
        "title": title_of(name),
        "scenario": scenario,
        "replay": learner.replay,
        "seeds": len(courses),
        "diverged": len(done) - len(courses),
    }
    if not courses:
        return {**row, "accuracy_mean": None, "accuracy_std": None, "forgetting": None, "seconds": None}

    def over(get: Callable[[Mapping[str, Any]], Any]) -> Any:
        values = [get(course) for _, course in courses]
        return None if any(value is None for value in values) else np.asarray(values, np.float64)

    accuracy = 100 * over(lambda c: c["accuracy"])
    forward, ece = over(lambda c: c["forward_transfer"]), over(lambda c: c.get("ece"))
    offset = over(lambda c: c.get("energies", {}).get("offset"))
    return {
        **row,
        "accuracy_mean": round(float(accuracy.mean()), 3),
        "accuracy_std": round(float(accuracy.std(ddof=1)) if len(accuracy) > 1 else 0.0, 3),
        "accuracies": {str(seed): round(100 * course["accuracy"], 3) for seed, course in courses},
        "forgetting": round(100 * float(over(lambda c: c["forgetting"]).mean()), 3),
        "forward_transfer": None if forward is None or scenario == "class" else round(100 * float(forward.mean()), 3),
        "ece": None if ece is None else round(float(ece.mean()), 5),
        "energy_offset": None if offset is None else round(float(offset.mean()), 5),
        "seconds": round(float(over(lambda c: c["seconds"]).mean()), 2),
        "test_seconds": round(float(over(lambda c: c["test_seconds"]).mean()), 2),
        "memory": int(courses[0][1]["memory"]),
        "matrix": np.round(100 * over(lambda c: c["matrix"]).mean(0), 2).tolist(),
    }


def _search(done: Sequence[tuple[Job, Any]]) -> dict[str, Any]:
    """Every point that was tried, and of each learner and scenario the one of the best mean accuracy."""
    points: dict[str, dict[str, Any]] = {}
    for job, outcome in done:
        scenario = job.scenarios[0]
        tried = {key: job.settings[key] for key in GRIDS[job.name] if key in job.settings}
        key = json.dumps([job.name, scenario, tried])
        point = points.setdefault(key, {"learner": job.name, "scenario": scenario, "settings": tried, "accuracies": []})
        point["accuracies"].append(None if outcome["diverged"] else round(100 * outcome["courses"][scenario]["accuracy"], 3))
    for point in points.values():
        values = point["accuracies"]
        point["accuracy_mean"] = None if None in values else round(float(np.mean(values)), 3)
    kept: dict[str, dict[str, Any]] = {}
    for point in points.values():
        best = kept.setdefault(point["learner"], {}).get(point["scenario"])
        if point["accuracy_mean"] is not None and (best is None or point["accuracy_mean"] > best["accuracy_mean"]):
            kept[point["learner"]][point["scenario"]] = point
    return {
        "kept": {name: {each: point["settings"] for each, point in found.items()} for name, found in kept.items()},
        "grids": {name: {key: list(values) for key, values in GRIDS[name].items()} for name in kept},
        "points": list(points.values()),
    }
