"""Frechet distance between Gaussians fitted to model and truth, at each time step.

Paper 000, section 5.2; Dowson & Landau 1982.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ebmtraj.errors import EbmtrajError
from ebmtraj.evaluation.arrays import Array, FloatArray, changes, standardise
from ebmtraj.fields import Field


def frechet_distance(x: Array, y: Array) -> float:
    """Squared 2-Wasserstein distance between Gaussians fitted to two sets of points.

    x (N, S), y (M, S) -> |mu1 - mu2|^2 + tr(C1 + C2 - 2 (C1^1/2 C2 C1^1/2)^1/2), in the square of the points' unit.
    Raises `EbmtrajError` where either set has fewer than 2 points. Dowson & Landau 1982.
    """
    return float(_frechet(np.asarray(x, np.float64)[None], np.asarray(y, np.float64)[None])[0])


def frechet_over_time(model: Array, truth: Array, mean: Array, std: Array, fields: Sequence[Field] = ()) -> FloatArray:
    """Frechet distance between model and truth across episodes, at each time step of the z-scored state.

    model (N, T+1, S), truth (M, T+1, S), training mean (S,) and std (S,) -> (T+1,), no unit; angles of `fields` that turn
    without end as `standardise` has them. Its mean over t = 1..T is "the Frechet distance" of a model. Paper: "Implicit
    Generation and Modeling with EBMs", section 5.2 and figure 13. The estimate is biased upward by an amount that falls as
    1/N: compare only at equal N, and with the floor. Raises `EbmtrajError` for fewer than 2 episodes on either side.
    """
    return _frechet(*(np.moveaxis(standardise(states, mean, std, fields), 1, 0) for states in (model, truth)))


def frechet_of_changes(model: Array, truth: Array, fields: Sequence[Field]) -> FloatArray:
    """Frechet distance between one-step changes of model and truth, at each step.

    model (N, T+1, S), truth (M, T+1, S) -> (T,), no unit. Changes are taken as each field's kind asks and scaled by the
    truth's spread over all episodes and steps, as the state's spread would drown the slow ones. Paper: "Implicit Generation
    and Modeling with EBMs", section 5.2, applied to changes. Raises `EbmtrajError` for fewer than 2 episodes on either side.
    """
    moves, true_moves = changes(model, fields), changes(truth, fields)
    mean, std = true_moves.mean(axis=(0, 1)), true_moves.std(axis=(0, 1))
    return _frechet(*(np.moveaxis(standardise(each, mean, std), 1, 0) for each in (moves, true_moves)))


def frechet_floor(truth_a: Array, truth_b: Array, mean: Array, std: Array, fields: Sequence[Field] = ()) -> FloatArray:
    """What a perfect model would score: `frechet_over_time` between disjoint true episodes, as many on either side.

    truth_a (N, T+1, S), truth_b (M, T+1, S), training mean (S,) and std (S,) -> (T+1,); the first min(N, M) of each are
    used.
    """
    count = min(len(truth_a), len(truth_b))
    return frechet_over_time(truth_a[:count], truth_b[:count], mean, std, fields)


def halves(truth: Array) -> tuple[Array, Array]:
    """Two disjoint halves of equal size: (N, ...) -> two of (N // 2, ...), every other episode."""
    even = len(truth) // 2 * 2
    return truth[:even:2], truth[1:even:2]


def _frechet(x: FloatArray, y: FloatArray) -> FloatArray:
    """Batched over the first axis: (B, N, S), (B, M, S) -> (B,)."""
    if min(x.shape[1], y.shape[1]) < 2:
        raise EbmtrajError(f"a Frechet distance needs 2 or more points a side, not {x.shape[1]} and {y.shape[1]}")
    mean_x, root_x = _gaussian(x)
    mean_y, root_y = _gaussian(y)
    # With C = R'R, the trace of (C1^1/2 C2 C1^1/2)^1/2 is the sum of the singular values of R1 R2'. No covariance is
    # formed and no root of a rounded eigenvalue taken, so singular covariances keep full precision.
    cross = np.linalg.svd(root_x @ np.swapaxes(root_y, 1, 2), compute_uv=False).sum(-1)
    spread = (root_x**2).sum((1, 2)) + (root_y**2).sum((1, 2))
    return np.maximum(((mean_x - mean_y) ** 2).sum(-1) + spread - 2 * cross, 0.0)


def _gaussian(points: FloatArray) -> tuple[FloatArray, FloatArray]:
    """Mean (B, S) and a root R of the covariance R'R (B, min(N, S), S) of points (B, N, S)."""
    mean = points.mean(axis=1)
    centred = (points - mean[:, None]) / np.sqrt(points.shape[1] - 1)
    return mean, np.asarray(np.linalg.qr(centred, mode="r"))
