"""What a comparison of controllers found, as one JSON object: a row for each, task and seed, and a summary over seeds."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ebmtraj import config as recipes
from ebmtraj.datasets.store import Store
from ebmtraj.errors import EbmtrajError
from ebmtraj.report.compare_plans import TASKS, Jobs, PlanComparison, PlanJob, TrainJob
from ebmtraj.runs import machine, versions
from ebmtraj.trajectories.controllers.registry import CONTROLLERS
from ebmtraj.trajectories.controllers.trainings import TRAININGS

OURS = "ours"  # whom all are compared with, start by start
MEASURES = {"rotate": "progress", "reorient": "success"}  # by kind of task, what counts
FACTS = (
    *("progress_rad_per_100", "progress_se", "per_axis", "success_rate", "success_se", "median_error_rad"),
    *("median_start_error_rad", "hold_rad", "drop_rate", "ms_per_step", "ms_alone", "expected_cost", "episodes"),
    "core_seconds",
)


def plan_results(jobs: Jobs, store: Store, *, command: str = "") -> dict[str, Any]:
    """The object of a comparison whose jobs are all done; raises `EbmtrajError` where one is not."""
    trainings, plans = jobs
    comparison = plans[0].comparison
    order = {name: place for place, name in enumerate(comparison.models)}
    plans = sorted(plans, key=lambda job: (comparison.tasks.index(job.task), order[job.model], job.seed))
    outcomes = {job: _done(job) for job in plans}
    trained = {(job.name, job.seed): _done(job) for job in trainings}
    return {
        "protocol": _protocol(comparison, trainings, store, command),
        "trainings": [
            {"training": name, "seed": seed, "diverged": found["diverged"], **found["facts"]}
            for (name, seed), found in trained.items()
        ],
        "rows": [_row(job, outcome) for job, outcome in outcomes.items()],
        "summary": {
            task: _summary({job: found for job, found in outcomes.items() if job.task == task}) for task in comparison.tasks
        },
    }


def mean_and_se(values: NDArray[np.float64], strata: Sequence[str]) -> tuple[float, float]:
    """Mean of the strata's means of values `(N,)`, and its standard error over the starts within them."""
    names = np.array(strata if len(strata) else [""] * len(values))
    parts = [values[names == name] for name in dict.fromkeys(names.tolist())]
    if min(map(len, parts)) < 2:  # no spread to see within them
        parts = [values]
    errors = [part.std(ddof=min(1, len(part) - 1)) / np.sqrt(len(part)) for part in parts]
    mean = float(np.mean([part.mean() for part in parts]))
    return mean, float(np.sqrt(np.sum(np.square(errors)))) / len(parts)


def _summary(outcomes: Mapping[PlanJob, Mapping[str, Any]]) -> dict[str, Any]:
    """Each controller over its seeds: {model: {measure: {"mean", "se", "min", "max"}, "minus_ours": {"mean", "se"}, ...}}.

    `se` is over the starts, of their means over the seeds; `min` and `max` are the least and greatest seed's mean.
    """
    found: dict[str, Any] = {}
    starts: dict[str, tuple[NDArray[np.float64], list[str]]] = {}
    for model in dict.fromkeys(job.model for job in outcomes):
        own = {job: outcome for job, outcome in outcomes.items() if job.model == model}
        good = [outcome for outcome in own.values() if not outcome["diverged"]]
        said: dict[str, Any] = {"seeds": len(own), "diverged": len(own) - len(good)}
        for name in ("progress", "success", "dropped"):
            if not good or name not in good[0]["starts"]:
                said[name] = None
                continue
            values = np.array([outcome["starts"][name] for outcome in good], dtype=np.float64)  # (seeds, starts)
            mean, se = mean_and_se(values.mean(0), good[0]["strata"])
            each = [mean_and_se(row, good[0]["strata"])[0] for row in values]
            said[name] = {"mean": mean, "se": se, "min": min(each), "max": max(each)}
            if name != "dropped":
                starts[model] = (values.mean(0), good[0]["strata"])
        for name in ("ms_per_step", "ms_alone", "core_seconds", "episodes"):
            said[name] = float(np.median([outcome["facts"][name] for outcome in good])) if good else None
        found[model] = said
    for model, (values, strata) in starts.items():
        ours = starts.get(OURS)
        if ours is not None and len(ours[0]) == len(values) and model != OURS:  # the same starts, task by task
            mean, se = mean_and_se(values - ours[0], strata)
            found[model]["minus_ours"] = {"mean": mean, "se": se}
    return found


def _row(job: PlanJob, outcome: Mapping[str, Any]) -> dict[str, Any]:
    row: dict[str, Any] = {"model": job.model, "task": job.task, "seed": job.seed, "diverged": outcome["diverged"]}
    return row | {name: outcome["facts"][name] for name in FACTS if name in outcome["facts"]}


def _done(job: TrainJob | PlanJob) -> dict[str, Any]:
    outcome = job.outcome()
    if outcome is None:
        raise EbmtrajError(f"{job.path} is not done; run the comparison again with --resume")
    return outcome


def _protocol(c: PlanComparison, trainings: Sequence[TrainJob], store: Store, command: str) -> dict[str, Any]:
    attributes, info = store.attributes, store.info()
    return {
        "command": command,
        "tasks": {task: dataclasses.asdict(TASKS[task]) for task in c.tasks},
        "seeds": list(c.seeds),
        "seconds": c.seconds,
        "episodes": c.episodes,
        "steps": c.steps,
        "start_seed": c.start_seed,
        "split": c.split,
        "hold_rad": c.hold,
        "content_hash": store.content_hash,
        "data": {
            **{key: info[key] for key in ("episodes", "transitions", "length", "terminated", "splits")},
            **{key: attributes.get(key) for key in ("env", "env_kwargs", "policy", "action_noise", "seed", "steps")},
            "control_timestep": store.control_timestep,
        },
        "rows": {model: _told(c, model) for model in c.models},
        "trainings": {
            job.name: {"command": TRAININGS[job.name].command(c.data, str(job.path)), **job.asked()}
            for job in trainings
            if job.seed == c.seeds[0]
        },
        "machine": machine(),
        "versions": versions(),
        "measured": {
            "progress": "rad turned along the commanded axis until a drop, per 100 steps; mean of six axes",
            "success": "share of starts within 0.4 rad of their goal at the end without a drop",
            "ms_per_step": "a core's time of the controller for a control step of one episode of the batch",
            "ms_alone": "a core's time of the controller for a control step of a single episode",
            "hold_rad": "with the stop rule, within so many rad of the goal every controller's last action is repeated",
        },
    }


def _told(c: PlanComparison, model: str) -> dict[str, Any]:
    entry = CONTROLLERS[model]
    kinds = dict.fromkeys(TASKS[task].kind for task in c.tasks)
    return {
        "about": entry.about,
        "needs": list(entry.needs),
        "privileged": entry.privileged,
        "settings": {kind: recipes.to_plain(dataclasses.asdict(entry.config(kind, c.changes.get(model)))) for kind in kinds},
    }
