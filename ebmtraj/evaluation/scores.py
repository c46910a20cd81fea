"""Scores of sampled rollouts: do they cover the truth, do they turn the object as it turns, do they stay possible?

Gneiting & Raftery 2007; Hamill 2001; Huynh 2009.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch

from ebmtraj.datasets.coordinates import Increments
from ebmtraj.evaluation.arrays import (
    Array,
    FloatArray,
    quaternion_slices,
    rotation_between,
    standardise,
    unit_quaternions,
)
from ebmtraj.fields import Field, slices

LEVEL = 0.9  # of the central intervals that `coverage90` looks at


def energy_score(samples: Array, truth: Array, mean: Array, std: Array, fields: Sequence[Field] = ()) -> FloatArray | None:
    """Energy score of the z-scored state, a proper score that the true distribution alone minimises.

    samples (N, m, T+1, S), truth (N, T+1, S), training mean (S,) and std (S,) -> (T+1,), averaged over starts; None for
    m = 1. mean |X - y| - 1/2 mean_{i != j} |X_i - X_j|, unbiased in m. Gneiting & Raftery 2007, section 4.3.
    """
    spread = diversity(samples, mean, std, fields)
    if spread is None:
        return None
    target = standardise(truth, mean, std, fields)
    distance = np.zeros(truth.shape[1])
    for i in range(samples.shape[1]):  # one sample at a time: a tenth of the memory
        distance += np.linalg.norm(standardise(samples[:, i], mean, std, fields) - target, axis=-1).mean(axis=0)
    return distance / samples.shape[1] - spread / 2


def diversity(samples: Array, mean: Array, std: Array, fields: Sequence[Field] = ()) -> FloatArray | None:
    """Mean distance between two samples from one start, in the z-scored state.

    samples (N, m, T+1, S), training mean (S,) and std (S,) -> (T+1,), averaged over starts and pairs; None for m = 1.
    The second term of the energy score (Gneiting & Raftery 2007, section 4.3): 0 for a deterministic model.
    """
    count = samples.shape[1]
    if count < 2:
        return None
    x = standardise(samples, mean, std, fields)
    total = np.zeros(samples.shape[2])
    for i in range(1, count):
        for j in range(i):
            total += np.linalg.norm(x[:, i] - x[:, j], axis=-1).mean(axis=0)
    return total / (count * (count - 1) / 2)


def crps(samples: Array, truth: Array, mean: Array, std: Array, fields: Sequence[Field] = ()) -> FloatArray | None:
    """Continuous ranked probability score of each dimension of the z-scored state.

    samples (N, m, T+1, S), truth (N, T+1, S), training mean (S,) and std (S,) -> (T+1, S), averaged over starts; None
    for m = 1. The energy score in one dimension, unbiased in m. Gneiting & Raftery 2007, section 4.2.
    """
    count = samples.shape[1]
    if count < 2:
        return None
    x = np.sort(standardise(samples, mean, std, fields), axis=1)
    distance = np.abs(x - standardise(truth, mean, std, fields)[:, None]).mean(axis=(0, 1))
    # In sorted order the sum over pairs i < j of |x_i - x_j| is the sum over k of (2k + 1 - m) x_k.
    weights = (2 * np.arange(count) + 1 - count) / (count * (count - 1) / 2)
    return distance - np.einsum("k,nkts->ts", weights, x) / len(x) / 2


def coverage90(samples: Array, truth: Array, fields: Sequence[Field]) -> FloatArray | None:
    """Share of true values within the central 90 % interval of the sampled ones: 0.9 for a calibrated model, for any m.

    samples (N, m, T+1, S), truth (N, T+1, S) -> (T+1, D), averaged over starts; None for m = 1. The values are the changes
    since the start as `Increments` has them: whatever is done alike to samples and truth leaves a calibrated model
    calibrated. The truth's rank among m samples is then uniform on 0..m, so the share of ranks k..m-k is known exactly,
    and two neighbouring k are weighted to give 0.9; of tied values each order counts alike. With fewer than 19 samples,
    truths outside all samples count in part: see `least_coverage`.
    Rank histograms: Hamill 2001, "Interpretation of rank histograms for verifying ensemble forecasts".
    """
    count = samples.shape[1]
    if count < 2:
        return None
    increments = Increments(fields)
    start = torch.from_numpy(np.array(truth[:, :1], np.float64))

    def moved(states: Array) -> FloatArray:
        return increments.between(start, torch.from_numpy(np.array(states, np.float64))).numpy()

    target = moved(truth)
    # What never moves differs by rounding alone.
    tie = 1e-6 * np.maximum(np.abs(target).max(axis=(0, 1)), 1e-6)
    below, equal = np.zeros(target.shape), np.zeros(target.shape)
    for i in range(count):  # one sample at a time: a tenth of the memory
        ahead = target - moved(samples[:, i])
        below += ahead > tie
        equal += np.abs(ahead) <= tie
    return _inside(below, equal, count).mean(axis=0)


def least_coverage(count: int) -> float:
    """`coverage90` of a model without spread that is never right, from this many samples: 0 from 19 samples on."""
    return max(0.0, 1.0 - (1.0 - LEVEL) / 2 * (count + 1))


def calibrated_error(count: int, starts: int) -> float:
    """What a calibrated model has as mean |coverage90 - 0.9| over many times and dimensions, about.

    From this many samples and starts: a binomial's mean absolute deviation, as if normal.
    """
    values = _inside(np.arange(count + 1.0), np.zeros(count + 1), count)
    return math.sqrt(2 / math.pi * float(values.var()) / starts)


def _inside(below: FloatArray, equal: FloatArray, count: int) -> FloatArray:
    """Whether the truth lies in the central interval, in [0, 1], given how many of `count` samples lie below, and level."""
    exact = (1.0 - LEVEL) / 2 * (count + 1)  # ranks to be left out at either end
    k = math.floor(exact + 1e-9)

    def share(left_out: int) -> FloatArray:
        first, last = np.maximum(below, left_out), np.minimum(below + equal, count - left_out)
        return np.maximum(last - first + 1, 0) / (equal + 1)

    return (k + 1 - exact) * share(k) + (exact - k) * share(k + 1)


def turning(states: Array, quaternion: slice) -> FloatArray:
    """Angle by which the object turned in each step, the geodesic distance of successive orientations.

    states (..., T+1, S) -> (..., T), rad in [0, pi]. Summed over time it doesn't wrap, unlike the angle to the start.
    Huynh 2009, "Metrics for 3D rotations", distance phi_6.
    """
    q = unit_quaternions(states, quaternion)
    return np.linalg.norm(rotation_between(q[..., :-1, :], q[..., 1:, :]), axis=-1)


def net_turning(states: Array, quaternion: slice) -> FloatArray:
    """Length of the sum of all per-step rotation vectors: turning that a jitter does not add to.

    states (..., T+1, S) -> (...), rad, world frame; n turns about one axis give 2 pi n. Solà 2017, "Quaternion kinematics
    for the error-state Kalman filter", section 4.
    """
    q = unit_quaternions(states, quaternion)
    return np.linalg.norm(rotation_between(q[..., :-1, :], q[..., 1:, :]).sum(axis=-2), axis=-1)


def rotation_error(samples: Array, truth: Array, fields: Sequence[Field]) -> FloatArray | None:
    """Mean angle between sampled and true orientation.

    samples (N, m, T+1, S), truth (N, T+1, S) -> (T+1,), rad in [0, pi], averaged over starts, samples and quaternions;
    None where the state has no quaternion. Huynh 2009, "Metrics for 3D rotations", distance phi_6.
    """
    errors = [
        np.linalg.norm(rotation_between(unit_quaternions(truth, q)[:, None], unit_quaternions(samples, q)), axis=-1)
        for q in quaternion_slices(fields)
    ]
    return np.mean(errors, axis=(0, 1, 2)) if errors else None


def quaternion_violation(samples: Array, fields: Sequence[Field]) -> FloatArray | None:
    """Mean distance of quaternion norms from 1, which a model that doesn't know of rotations lets drift.

    samples (N, m, T+1, S) -> (T+1,), no unit; None where the state has no quaternion.
    Only unit quaternions are rotations: Solà 2017, "Quaternion kinematics for the error-state Kalman filter".
    """
    norms = [np.linalg.norm(np.asarray(samples, np.float64)[..., q], axis=-1) for q in quaternion_slices(fields)]
    return np.abs(np.stack(norms) - 1.0).mean(axis=(0, 1, 2)) if norms else None


def limit_violation(samples: Array, fields: Sequence[Field]) -> FloatArray | None:
    """Share of limited entries that lie beyond the simulator's limits by more than 1 % of their range.

    samples (N, m, T+1, S) -> (T+1,) in [0, 1]; None where no field has limits. The margin is for the simulator's own
    soft limits (MuJoCo documentation, "Computation: limits"): the truth passes them a little.
    """
    places = slices(fields)
    outside = []
    for field in fields:
        if field.low is None and field.high is None:
            continue
        low = np.full(field.size, -np.inf) if field.low is None else np.asarray(field.low, np.float64)
        high = np.full(field.size, np.inf) if field.high is None else np.asarray(field.high, np.float64)
        extent = high - low
        margin = 0.01 * np.where(np.isfinite(extent), extent, 0.0)
        x = np.asarray(samples, np.float64)[..., places[field.name]]
        limited = np.isfinite(low) | np.isfinite(high)
        outside.append(((x < low - margin) | (x > high + margin))[..., limited])
    return np.concatenate(outside, axis=-1).mean(axis=(0, 1, 3)) if outside else None
