"""Every metric of a model's rollouts, as plain numbers for `results.json`."""

from __future__ import annotations

from typing import Any

import numpy as np

from ebmtraj.evaluation.arrays import Array, FloatArray, check_rollouts, quaternion_slices
from ebmtraj.evaluation.frechet import frechet_floor, frechet_of_changes, halves
from ebmtraj.evaluation.registry import METRICS, measure
from ebmtraj.evaluation.scores import limit_violation, turning
from ebmtraj.fields import Field


def evaluate_rollouts(
    samples: Array,
    truth: Array,
    other_truth: Array | None,
    fields: tuple[Field, ...],
    mean: Array,
    std: Array,
) -> dict[str, Any]:
    """All metrics of rollouts against the true episodes that they started from.

    samples (N, m, T+1, S), truth (N, T+1, S), other_truth (N', T+1, S) or None, training mean (S,) and std (S,) ->
    a dict of plain Python numbers and lists:

    - of each metric of `METRICS`: `<name>`, its mean over the steps t = 1..T, and `<name>_over_time`, from t = 0 (state
      metrics, T+1 numbers) or of each step (`frechet_changes`, T numbers); None where undefined (no quaternion, no
      limits, or m = 1);
    - `floor`, `floor_over_time`, `floor_changes`: `frechet` and `frechet_changes` of truth against disjoint truth.
      With `other_truth`, at the models' own n; without, between two halves of the truth, which reads about twice
      too high. `floor_starts` says how many episodes stood on either side;
    - `turning`: `{"model", "truth"}`, rad a rollout summed over steps, or None; `limit_violation_truth`;
    - `starts`, `samples`, `steps`.

    Frechet distances use the first sample of each start, so that model and truth count as many. Raises `EbmtrajError`
    where a rollout diverged, shapes disagree, or there are fewer than 4 starts (2 with `other_truth`).
    """
    samples, truth, mean, std = (np.asarray(each) for each in (samples, truth, mean, std))
    other_truth = None if other_truth is None else np.asarray(other_truth)
    check_rollouts(samples, truth, other_truth, fields, mean, std)
    starts, count, rows, _ = samples.shape
    steps = rows - 1

    results: dict[str, Any] = {"starts": starts, "samples": count, "steps": steps}
    for name in METRICS:
        results |= _summary(name, measure(name, samples, truth, fields, mean, std), steps)

    one, two = halves(truth) if other_truth is None else (truth, other_truth)
    floor_starts = min(len(one), len(two))
    one, two = one[:floor_starts], two[:floor_starts]
    results |= _summary("floor", frechet_floor(one, two, mean, std), steps)
    results |= _summary("floor_changes", frechet_of_changes(one, two, fields), steps)
    results["floor_starts"] = floor_starts

    places = quaternion_slices(fields)
    results["turning"] = {"model": _turned(samples, places), "truth": _turned(truth, places)} if places else None
    results["limit_violation_truth"] = _summary("of", limit_violation(truth[:, None], fields), steps)["of"]
    return results


def _summary(name: str, values: FloatArray | None, steps: int) -> dict[str, Any]:
    if values is None:
        return {name: None, f"{name}_over_time": None}
    return {name: float(values[-steps:].mean()), f"{name}_over_time": [float(value) for value in values]}


def _turned(states: Array, places: list[slice]) -> float:
    return float(sum(turning(states, place).sum(axis=-1).mean() for place in places))
