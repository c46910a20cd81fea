"""Sliced Wasserstein distance between model and truth, at each time step: sees more than mean and covariance."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ebmtraj.errors import EbmtrajError
from ebmtraj.evaluation.arrays import Array, FloatArray, standardise
from ebmtraj.fields import Field

PROJECTIONS = 128
SEED = 0  # of the directions, which are the same for all models


def sliced_wasserstein(model: Array, truth: Array, mean: Array, std: Array, fields: Sequence[Field] = ()) -> FloatArray:
    """Mean 1-Wasserstein distance of the z-scored state over fixed random directions, at each time step.

    model (N, T+1, S), truth (N, T+1, S), training mean (S,) and std (S,) -> (T+1,), in spreads of the training data; angles
    of `fields` that turn without end as `standardise` has them. Biased upward by about 1/sqrt(N): compare only at equal N,
    and with the floor. Raises `EbmtrajError` where the two count differently.
    Bonneel et al. 2015, "Sliced and Radon Wasserstein barycenters of measures".
    """
    if model.shape != truth.shape:
        raise EbmtrajError(f"sliced Wasserstein: {model.shape} against {truth.shape}; give as many of each")
    along = _directions(standardise(mean, mean, std, fields).shape[-1])
    total = np.empty(truth.shape[1])
    for t in range(len(total)):  # a step at a time: a hundredth of the memory
        x, y = (np.sort(along @ standardise(side[:, t], mean, std, fields).T, axis=1) for side in (model, truth))
        total[t] = np.abs(x - y).mean()
    return total


def _directions(size: int) -> FloatArray:
    """Unit vectors (PROJECTIONS, size), uniform on the sphere; in one dimension there is one."""
    if size == 1:
        return np.ones((1, 1))
    vectors = np.random.default_rng(SEED).standard_normal((PROJECTIONS, size))
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
