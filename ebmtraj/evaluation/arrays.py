"""What the metrics share: the scale of a state, its one-step changes, and where its quaternions stand."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray

from ebmtraj.datasets.coordinates import Increments, quaternion_conjugate, quaternion_log, quaternion_multiply
from ebmtraj.errors import DivergedError, EbmtrajError
from ebmtraj.fields import Field, slices, total_size

Array: TypeAlias = NDArray[Any]
FloatArray: TypeAlias = NDArray[np.float64]

CIRCLE = 2**-0.5  # spread of the sine, and of the cosine, of an angle that may be any


def standardise(states: Array, mean: Array, std: Array, fields: Sequence[Field] = ()) -> FloatArray:
    """States in units of the training data's spread.

    states (..., S), mean (S,), std (S,) -> (..., S + K) float64. A dimension that never moved in training keeps its own
    unit, so that a model that moves it is still seen and nothing is divided by zero.

    Each of the K angles of `fields` that turn without end becomes a point on a circle, so that a whole turn is no error:
    its sine from the mean on stands in its place, its cosine less 1 behind the state, both over the angle's spread, or over
    that of a full circle where it is larger. For a small spread that is the z-score, and a cosine near 0.
    """
    mean, std = np.asarray(mean, np.float64), np.asarray(std, np.float64)
    # Rounding leaves a constant with a relative spread of about 1e-7 in single precision.
    moved = std > np.maximum(1e-6 * np.abs(mean), 1e-12)
    scale = np.where(moved, std, 1.0)
    z = (np.asarray(states, np.float64) - mean) / scale
    turning = np.flatnonzero([turns for field in fields for turns in field.turning()])
    if not len(turning):
        return z
    angle, radius = z[..., turning] * scale[turning], 1 / np.minimum(scale[turning], CIRCLE)
    z[..., turning] = radius * np.sin(angle)
    return np.concatenate([z, radius * (np.cos(angle) - 1)], axis=-1)


def quaternion_slices(fields: Sequence[Field]) -> list[slice]:
    """Where the quaternions (w, x, y, z) stand in the state."""
    places = slices(fields)
    return [places[field.name] for field in fields if field.kind == "quaternion"]


def unit_quaternions(states: Array, place: slice) -> FloatArray:
    """The quaternion at `place` of states (..., S), scaled to norm 1: (..., 4); a zero quaternion becomes identity."""
    quaternion = np.asarray(states, np.float64)[..., place]
    norm = np.linalg.norm(quaternion, axis=-1, keepdims=True)
    return np.where(norm > 1e-12, quaternion / np.maximum(norm, 1e-12), (1.0, 0.0, 0.0, 0.0))


def rotation_between(start: FloatArray, end: FloatArray) -> FloatArray:
    """World-frame rotation vector that turns one unit quaternion into another, the shorter way round.

    start (..., 4), end (..., 4) -> (..., 3), rad. Its norm is the geodesic distance, the same for q and -q.
    """
    return quaternion_log(quaternion_multiply(torch.from_numpy(end), quaternion_conjugate(torch.from_numpy(start)))).numpy()


def changes(states: Array, fields: Sequence[Field]) -> FloatArray:
    """One-step changes as models see them (`Increments`): differences, wrapped angles, rotation vectors (rad).

    states (..., T+1, S) -> (..., T, D) with D one less than S for each quaternion, whose length doesn't matter.
    """
    x = torch.from_numpy(np.array(states, np.float64))
    return Increments(fields).between(x[..., :-1, :], x[..., 1:, :]).numpy()


def check_rollouts(
    samples: Array, truth: Array, other_truth: Array | None, fields: Sequence[Field], mean: Array, std: Array
) -> None:
    """Raise `EbmtrajError` where shapes disagree or there is too little to compare, `DivergedError` where it is not finite.

    samples (N, m, T+1, S), truth (N, T+1, S), other_truth (N', T+1, S) or None, mean (S,), std (S,).
    """
    size = total_size(fields)
    if np.ndim(samples) != 4 or np.ndim(truth) != 3:
        raise EbmtrajError(
            f"rollouts of shape {np.shape(samples)} against truth of shape {np.shape(truth)}: "
            "expected (starts, samples, T+1, S) and (starts, T+1, S)"
        )
    starts, count, rows, width = samples.shape
    if truth.shape != (starts, rows, width):
        raise EbmtrajError(
            f"rollouts of shape {samples.shape} don't match the truth's {truth.shape}; "
            "roll out from the truth's starts for as many steps"
        )
    if width != size or np.shape(mean) != (size,) or np.shape(std) != (size,):
        raise EbmtrajError(
            f"state fields make up {size} numbers, but rollouts have {width}, mean {np.shape(mean)} and std "
            f"{np.shape(std)}; evaluate with the fields and statistics of the training store"
        )
    if count < 1 or rows < 2:
        raise EbmtrajError(f"rollouts of shape {samples.shape} hold nothing to score; ask for a sample and a step or more")
    if other_truth is not None and other_truth.shape[1:] != truth.shape[1:]:
        raise EbmtrajError(f"other truth of shape {other_truth.shape} doesn't match the truth's {truth.shape}")
    fewest = min(starts, len(other_truth)) if other_truth is not None else starts // 2
    if fewest < 2:
        raise EbmtrajError(f"{starts} true episodes are too few for a Frechet distance and its floor; evaluate on 4 or more")
    for label, states in (("truth", truth), ("other truth", other_truth), ("statistics", np.stack([mean, std]))):
        if states is not None and not np.isfinite(states).all():
            raise EbmtrajError(f"{label} holds NaN or infinity; check the store with `ebmtraj data verify`")
    wrong = ~np.all(np.abs(samples) < 1e30, axis=-1)  # (N, m, T+1); NaN compares false
    if wrong.any():
        bad = int(np.any(wrong, axis=-1).sum())
        first = int(np.argmax(np.any(wrong, axis=(0, 1))))
        raise DivergedError(
            f"the model diverged: {bad} of {starts * count} rollouts hold NaN or numbers beyond 1e30 from step {first} "
            "on; train it longer or with a lower learning rate"
        )
