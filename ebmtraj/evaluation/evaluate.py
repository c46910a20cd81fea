"""Every metric of a model's rollouts, as plain numbers for `results.json`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from threadpoolctl import threadpool_limits

from ebmtraj.errors import DivergedError, EbmtrajError
from ebmtraj.evaluation.arrays import Array, FloatArray, check_rollouts, quaternion_slices
from ebmtraj.evaluation.c2st import FOLDS, WINDOWS, c2st, c2st_rollouts, has_structure, window_times, windows_at
from ebmtraj.evaluation.frechet import frechet_floor, frechet_of_changes, halves
from ebmtraj.evaluation.registry import METRICS, measure
from ebmtraj.evaluation.scores import (
    LEVEL,
    calibrated_error,
    coverage90,
    diversity,
    energy_score,
    least_coverage,
    limit_violation,
    net_turning,
    turning,
)
from ebmtraj.evaluation.wasserstein import sliced_wasserstein
from ebmtraj.fields import Field


@dataclass(frozen=True)
class OneStep:
    """What a model makes of true states, to be judged without the errors of a rollout adding up.

    `times` (N, W) from `one_step_times`: row t of true episode i is a state that the model continues. `following`
    (N, W, S) is one sample of each next state; `futures` (N, m, V, S) more of them, for the first V <= W times, or None.
    A model that is given actions says which: `given` (N, W, A), and `other_given` those of the other truth at its `times`.
    """

    times: Array
    following: Array
    futures: Array | None = None
    given: Array | None = None
    other_given: Array | None = None


def one_step_times(starts: int, steps: int, seed: int = 0) -> Array:
    """At which rows of N true episodes of T steps next states are judged: (N, min(WINDOWS, T)), in random order."""
    return window_times(starts, steps + 1, 2, WINDOWS, seed)


def evaluate_rollouts(
    samples: Array,
    truth: Array,
    other_truth: Array | None,
    fields: tuple[Field, ...],
    mean: Array,
    std: Array,
    *,
    one_step: OneStep | None = None,
    simulator: Array | None = None,
    penetration: Callable[[Array], Array] | None = None,
    classifier: bool = True,
    seed: int = 0,
) -> dict[str, Any]:
    """All metrics of rollouts against the true episodes that they started from.

    samples (N, m, T+1, S), truth (N, T+1, S), other_truth (N', T+1, S) or None, training mean (S,) and std (S,) ->
    a dict of plain Python numbers and lists:

    - of each metric of `METRICS`: `<name>`, its mean over the steps t = 1..T, and `<name>_over_time`, from t = 0 (state
      metrics, T+1 numbers) or of each step (`frechet_changes`, T numbers); None where undefined (no quaternion, no
      limits, or m = 1);
    - `floor`, `floor_over_time`, `floor_changes`, `floor_sliced`: `frechet`, `frechet_changes` and `sliced_wasserstein` of
      truth against disjoint truth. With `other_truth`, at the models' own n; without, between two halves of the truth,
      which reads about twice too high. `floor_starts` says how many episodes stood on either side;
    - `c2st_rollout` and `c2st_null`, truth against disjoint truth by the same procedure, each with `_folds`; with
      `one_step` also `c2st_one_step` and `c2st_one_step_null`; where the fields tell of couplings or symmetric poses,
      `c2st_structure`, that of rollouts by a classifier that sees these too. 0.5 is perfect. None without `classifier`,
      which takes most of the time;
    - `coverage90_error`: mean distance of the coverage from 0.9 over steps and dimensions, in which too wide and too narrow
      don't cancel; `coverage90_error_floor`, about what a calibrated model has; `coverage90_least`, what a model without
      spread has with so few samples; `coverage90_by_dimension`; with `one_step` also `coverage90_one_step`;
    - `turning`: `{"model", "truth"}`, rad a rollout summed over steps, or None; `rotation_ratio`, the one over the other;
      `net_turning` and `net_rotation_ratio`: the same of summed rotation vectors, to which jitter does not add;
    - `limit_violation_truth`;
    - `simulator`, given other true futures (N' <= N, m', T+1, S) of the first starts: its own scores, the model's from
      these starts, and `diversity_ratio`; else None;
    - `penetration`, given a function of states (B, S) -> (B,) in metres: mean and 95th percentile of model and truth over
      the steps t = 1..T, and their ratios, where 1 is best and less is no better; else None;
    - `starts`, `samples`, `steps`.

    Distances between distributions use the first sample of each start, so that model and truth count as many. Raises
    `DivergedError` where a rollout diverged, `EbmtrajError` where shapes disagree or there are fewer than 4 starts (2 with
    `other_truth`).
    """
    samples, truth, mean, std = (np.asarray(each) for each in (samples, truth, mean, std))
    other_truth = None if other_truth is None else np.asarray(other_truth)
    check_rollouts(samples, truth, other_truth, fields, mean, std)
    starts, count, rows, _ = samples.shape
    steps = rows - 1

    # One thread: the matrices are small, and on a busy machine more threads wait for each other, a hundred times as long.
    with threadpool_limits(1):
        results: dict[str, Any] = {"starts": starts, "samples": count, "steps": steps}
        for name in METRICS:
            results |= _summary(name, measure(name, samples, truth, fields, mean, std), steps)

        one, two = halves(truth) if other_truth is None else (truth, other_truth)
        floor_starts = min(len(one), len(two))
        one, two = one[:floor_starts], two[:floor_starts]
        results |= _summary("floor", frechet_floor(one, two, mean, std, fields), steps)
        results |= _summary("floor_changes", frechet_of_changes(one, two, fields), steps)
        results |= _summary("floor_sliced", sliced_wasserstein(two, one, mean, std, fields), steps)
        results["floor_starts"] = floor_starts

        for name, x, y, structure in (
            ("c2st_rollout", samples[:, 0], truth, False),
            ("c2st_null", two, one, False),
            ("c2st_structure", samples[:, 0], truth, True),
        ):
            asked = classifier and (has_structure(fields) or not structure)
            options = {"structure": structure, "seed": seed}
            results |= _told_apart(name, c2st_rollouts, x, y, fields, **options) if asked else _untold(name)
        results |= _coverage("coverage90", coverage90(samples, truth, fields), count, starts)
        if one_step is not None:
            results |= _one_step(one_step, truth, other_truth, fields, seed)

        places = quaternion_slices(fields)
        for name, ratio, measured in (
            ("turning", "rotation_ratio", lambda x, place: turning(x, place).sum(axis=-1)),
            ("net_turning", "net_rotation_ratio", net_turning),
        ):
            model, true = (float(sum(measured(x, place).mean() for place in places)) for x in (samples, truth))
            results[name] = {"model": model, "truth": true} if places else None
            results[ratio] = model / true if true > 1e-6 else None
        results["limit_violation_truth"] = _summary("of", limit_violation(truth[:, None], fields), steps)["of"]
        results["simulator"] = (
            None if simulator is None else _beside_simulator(np.asarray(simulator), samples, truth, fields, mean, std)
        )
        results["penetration"] = None if penetration is None else _penetration(penetration, samples[:, 0], truth)
        return results


def _summary(name: str, values: FloatArray | None, steps: int) -> dict[str, Any]:
    if values is None:
        return {name: None, f"{name}_over_time": None}
    return {name: float(values[-steps:].mean()), f"{name}_over_time": [float(value) for value in values]}


def _told_apart(
    name: str, test: Callable[..., FloatArray], model: Array, truth: Array, fields: tuple[Field, ...], **options: Any
) -> dict[str, Any]:
    """AUC of a two-sample test and its folds; None for a single trajectory."""
    if len(truth) < 2:
        return _untold(name)
    folds = test(model, truth, fields, folds=min(FOLDS, len(truth)), **options)
    return {name: float(folds.mean()), f"{name}_folds": [float(fold) for fold in folds]}


def _untold(name: str) -> dict[str, Any]:
    return {name: None, f"{name}_folds": None}


def _coverage(name: str, values: FloatArray | None, count: int, starts: int) -> dict[str, Any]:
    """Coverage (T+1, D) of this many samples and starts, its start left out, beyond its mean."""
    if values is None:
        return {f"{name}_{key}": None for key in ("error", "error_floor", "least", "by_dimension")}
    return {
        f"{name}_error": float(np.abs(values[1:] - LEVEL).mean()),
        f"{name}_error_floor": calibrated_error(count, starts),
        f"{name}_least": least_coverage(count),
        f"{name}_by_dimension": [float(value) for value in values[1:].mean(axis=0)],
    }


def _one_step(
    given: OneStep, truth: Array, other_truth: Array | None, fields: tuple[Field, ...], seed: int
) -> dict[str, Any]:
    """Scores of next states sampled from true ones."""
    if given.times.shape[0] != len(truth) or given.following.shape != (*given.times.shape, truth.shape[-1]):
        raise EbmtrajError(
            f"next states of shape {given.following.shape} at times {given.times.shape} of truth {truth.shape}: "
            "give one for each of `one_step_times`"
        )
    if not np.isfinite(given.following).all() or not (given.futures is None or np.isfinite(given.futures).all()):
        raise DivergedError("the model diverged: next states of true states hold NaN or infinity; train it longer")
    pairs = windows_at(truth, given.times, 2)
    said = np.stack([pairs[:, :, 0], given.following], axis=2)
    results = _told_apart(
        "c2st_one_step", c2st, said, pairs, fields, model_given=given.given, truth_given=given.given, seed=seed
    )
    null: dict[str, Any] = {"c2st_one_step_null": None, "c2st_one_step_null_folds": None}
    if other_truth is not None and len(other_truth) == len(truth) and (given.given is None) == (given.other_given is None):
        null = _told_apart(
            "c2st_one_step_null",
            c2st,
            windows_at(other_truth, given.times, 2),
            pairs,
            fields,
            model_given=given.other_given,
            truth_given=given.given,
            seed=seed,
        )
    results |= null
    if given.futures is None or given.futures.shape[1] < 2:
        return results | {"coverage90_one_step": None} | _coverage("coverage90_one_step", None, 1, 1)
    # Each true step is an episode of one step, so that coverage is that of the change.
    seen = given.futures.shape[2]
    steps = np.moveaxis(given.futures, 1, 2).reshape(-1, given.futures.shape[1], truth.shape[-1])  # (N V, m, S)
    true = pairs[:, :seen].reshape(-1, 2, truth.shape[-1])
    begun = np.broadcast_to(true[:, None, :1], (*steps.shape[:2], 1, true.shape[-1]))
    values = coverage90(np.concatenate([begun, steps[:, :, None]], axis=2), true, fields)
    assert values is not None
    results["coverage90_one_step"] = float(values[1].mean())
    return results | _coverage("coverage90_one_step", values, given.futures.shape[1], len(true))


def _beside_simulator(
    simulator: Array, samples: Array, truth: Array, fields: Sequence[Field], mean: Array, std: Array
) -> dict[str, Any]:
    """What the simulator itself scores against the recorded future, and the model from the same starts."""
    starts = len(simulator)
    if simulator.ndim != 4 or not 1 <= starts <= len(truth) or simulator.shape[2:] != truth.shape[1:]:
        raise EbmtrajError(f"other true futures of shape {simulator.shape} don't match the truth's {truth.shape}")
    if not np.allclose(simulator[:, :, 0], truth[:starts, None, 0], atol=1e-3):
        raise EbmtrajError("other true futures don't start where the truth does; give those of its first episodes, in order")
    results: dict[str, Any] = {"starts": starts, "samples": simulator.shape[1]}
    for label, futures in (("", simulator), ("_model", samples[:starts])):
        for name, values in (
            ("energy_score", energy_score(futures, truth[:starts], mean, std, fields)),
            ("diversity", diversity(futures, mean, std, fields)),
        ):
            results |= _summary(f"{name}{label}", values, truth.shape[1] - 1)
    own, model = results["diversity"], results["diversity_model"]
    results["diversity_ratio"] = model / own if own and model is not None else None
    return results


def _penetration(depth: Callable[[Array], Array], model: Array, truth: Array) -> dict[str, Any]:
    """Mean and 95th percentile of the depth (m) of states (N, T+1, S) behind the start, and the model's over the truth's."""
    results: dict[str, Any] = {}
    for name, states in (("model", model), ("truth", truth)):
        found = np.asarray(depth(states[:, 1:].reshape(-1, states.shape[-1])), np.float64)
        results[name] = {"mean": float(found.mean()), "p95": float(np.quantile(found, 0.95))}
    for key in ("mean", "p95"):
        true = results["truth"][key]
        results[f"ratio_{key}"] = results["model"][key] / true if true > 0 else None
    return results
