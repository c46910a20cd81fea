"""Classifier two-sample tests: how well a strong classifier tells the model's motion from the truth's; 0.5 is perfect.

Lopez-Paz & Oquab 2017, "Revisiting classifier two-sample tests", with the area under the ROC curve (AUC) in place of the
accuracy. The AUC grows with the number of windows, as the classifier learns from them: compare only at equal numbers, and
beside the null, which is truth against disjoint truth.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.stats import rankdata

from ebmtraj.datasets.coordinates import Increments
from ebmtraj.errors import EbmtrajError
from ebmtraj.evaluation.arrays import Array, FloatArray, standardise
from ebmtraj.fields import Field

WINDOWS = 20  # of each trajectory
FOLDS = 3
RESOLUTION = 1e-3  # of a feature's spread in the truth: rounding errors are no motion, and must not give a model away


def c2st_rollouts(
    model: Array,
    truth: Array,
    fields: Sequence[Field],
    *,
    states: int = 2,
    windows: int = WINDOWS,
    structure: bool = False,
    folds: int = FOLDS,
    seed: int = 0,
) -> FloatArray:
    """AUC of a classifier that tells windows of rollouts from windows of true episodes, held out by trajectory.

    model (N, T+1, S), truth (N, T+1, S), rollout i from the start of episode i or of none -> (folds,). A window is
    `states` successive states at a random time, the same for both; `windows` of each trajectory, or as many as there are.
    Two states show each step; three also whether the speed persists; `structure` as in `c2st`. Raises `EbmtrajError` for
    fewer trajectories than folds. Lopez-Paz & Oquab 2017.
    """
    times = window_times(len(truth), truth.shape[1], states, windows, seed)
    return c2st(
        windows_at(model, times, states),
        windows_at(truth, times, states),
        fields,
        structure=structure,
        folds=folds,
        seed=seed,
    )


def c2st(
    model: Array,
    truth: Array,
    fields: Sequence[Field],
    *,
    model_given: Array | None = None,
    truth_given: Array | None = None,
    structure: bool = False,
    folds: int = FOLDS,
    seed: int = 0,
) -> FloatArray:
    """AUC of a classifier that tells model windows from true windows, held out by trajectory.

    model (N, W, K, S), truth (N, W, K, S): W windows of K successive states of N trajectories -> (folds,). The classifier
    sees the first state, quaternions as rotation matrices, and the change of each step; and what is `given` with each
    window, such as the action, (N, W, A). With `structure` it also sees what the fields tell beyond kinds, as models do:
    couplings of joints, and a body's symmetric poses as one. That is a harder test, and comparable only between stores
    whose fields tell the same. One step is judged by windows (s_t, s_t+1) with true s_t on either side.
    Raises `EbmtrajError` where the sides differ in shape or there are fewer trajectories than folds. Lopez-Paz & Oquab 2017.
    """
    if model.shape != truth.shape or model.ndim != 4 or model.shape[2] < 2:
        raise EbmtrajError(f"C2ST windows of shape {model.shape} and {truth.shape}: give as many (N, W, K >= 2, S) each")
    if len(truth) < folds or folds < 2:
        raise EbmtrajError(f"C2ST: {len(truth)} trajectories are too few for {folds} folds; give at least as many, and 2")
    x, y = (_features(windows, fields, given, structure) for windows, given in ((model, model_given), (truth, truth_given)))
    mean, std = y.mean(axis=0), y.std(axis=0)
    points = np.concatenate([np.rint(standardise(side, mean, std) / RESOLUTION) * RESOLUTION for side in (x, y)])
    real = np.repeat([False, True], len(y))
    # Both sides of a trajectory share a fold, so that nothing of a held-out one was seen, its start included.
    fold = np.random.default_rng([seed, 1]).permutation(len(truth)) % folds
    held = np.tile(np.repeat(fold, truth.shape[1]), 2)
    return np.array([_auc(points, real, held == k, seed) for k in range(folds)])


def window_times(trajectories: int, rows: int, states: int, count: int, seed: int = 0) -> NDArray[np.int64]:
    """Random first rows of windows of `states` rows, distinct within a trajectory: `(N, count)`, or fewer where fewer fit.

    Raises `EbmtrajError` where no window fits.
    """
    possible = rows - states + 1
    if possible < 1 or count < 1:
        raise EbmtrajError(f"C2ST: trajectories of {rows} states hold no window of {states}; ask for more steps")
    generator = np.random.default_rng([seed, 0])
    order = np.argsort(generator.random((trajectories, possible)), axis=1, kind="stable")
    return order[:, :count]


def windows_at(states: Array, times: NDArray[np.int64], length: int) -> Array:
    """The windows of `length` rows that begin at `times` (N, W) of states (N, T+1, S): (N, W, length, S)."""
    return states[np.arange(len(states))[:, None, None], times[..., None] + np.arange(length)]


def auc(scores: Array, real: NDArray[np.bool_]) -> float:
    """Area under the ROC curve: the chance that a real point scores above another one, ties counting half.

    scores (M,), real (M,). The Mann-Whitney statistic: Hanley & McNeil 1982.
    """
    above = int(real.sum())
    below = len(real) - above
    return float((rankdata(scores)[real].sum() - above * (above + 1) / 2) / (above * below))


def has_structure(fields: Sequence[Field]) -> bool:
    """Whether the fields tell of couplings or symmetric poses."""
    return any(field.couplings or field.symmetry for field in fields)


def _features(windows: Array, fields: Sequence[Field], given: Array | None, structure: bool) -> FloatArray:
    """What the classifier sees of windows (N, W, K, S): (N * W, F)."""
    plain = [dataclasses.replace(field, couplings=None, symmetry=None) for field in fields]
    increments = Increments(fields if structure else plain)
    x = torch.from_numpy(np.array(windows, np.float64)).flatten(0, 1)
    parts = [increments.features(x[:, 0]), increments.between(x[:, :-1], x[:, 1:]).flatten(1)]
    if given is not None:
        parts.append(torch.from_numpy(np.array(given, np.float64)).flatten(0, 1))
    return torch.cat(parts, dim=1).numpy()


def _auc(points: FloatArray, real: NDArray[np.bool_], held: NDArray[np.bool_], seed: int) -> float:
    """Trained on all points but those held out, and measured on these."""
    # Loaded here as it takes a second. One thread: on a busy machine more of them wait for each other, many times as long.
    from sklearn.ensemble import HistGradientBoostingClassifier
    from threadpoolctl import threadpool_limits

    classifier = HistGradientBoostingClassifier(max_iter=100, early_stopping=False, random_state=seed)
    with threadpool_limits(1, user_api="openmp"):
        classifier.fit(points[~held], real[~held])
        scores = classifier.decision_function(points[held])
    return auc(scores, real[held])
