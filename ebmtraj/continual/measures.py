"""Measures of a stream from the matrix of accuracies R, whose entry (i, j) is that on task j after task i, `(T, T)`.

Lopez-Paz & Ranzato 2017; Chaudhry et al. 2018.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray


def average_accuracy(matrix: ArrayLike, images: ArrayLike) -> float:
    """Accuracy over all held-out images after the last task; `images` `(T,)` is how many each task has.

    Of tasks of one size, the mean of the last row (Lopez-Paz & Ranzato 2017, equation 2). Raises `ValueError` for a matrix
    that is not square.
    """
    return float(np.average(_square(matrix)[-1], weights=np.asarray(images, np.float64)))


def forgetting(matrix: ArrayLike) -> float:
    """Mean over all but the last task of its best accuracy ever less that in the end (Chaudhry et al. 2018, equations 2-3).

    Negative where later tasks helped; 0 where there is one task only. Raises `ValueError` for a matrix that is not square.
    """
    r = _square(matrix)
    last = len(r) - 1
    if last == 0:
        return 0.0
    return float(np.mean([r[j:last, j].max() - r[last, j] for j in range(last)]))


def forward_transfer(matrix: ArrayLike, chance: ArrayLike) -> float | None:
    """Mean over all but the first task of its accuracy before it is learnt less chance (Lopez-Paz & Ranzato 2017, eq. 4).

    `chance` `(T,)`; None where there is one task only. Raises `ValueError` for a matrix that is not square.
    """
    r, base = _square(matrix), np.asarray(chance, np.float64)
    return float(np.mean([r[j - 1, j] - base[j] for j in range(1, len(r))])) if len(r) > 1 else None


def energy_offsets(energies: ArrayLike, right: ArrayLike) -> dict[str, float]:
    """How well energies of classes compare: `(N, C)` of held-out images, `(N,)` their classes.

    `own_spread`: the standard deviation over classes of their mean energy on own images, which would be 0 if all classes
    were scaled alike; `margin`: by how much the lowest wrong energy exceeds the right one in the mean; `offset`: the first
    over the second, small where classes are confused by what images look like and not by how their energies are scaled.
    """
    energy, label = np.asarray(energies, np.float64), np.asarray(right, np.int64)
    own = energy[np.arange(len(label)), label]
    wrong = energy.copy()
    wrong[np.arange(len(label)), label] = np.inf
    spread = float(np.std([own[label == k].mean() for k in np.unique(label)]))
    margin = float((wrong.min(1) - own).mean())
    return {"own_spread": spread, "margin": margin, "offset": spread / max(abs(margin), 1e-12)}


def _square(matrix: ArrayLike) -> NDArray[np.float64]:
    r = np.asarray(matrix, np.float64)
    if r.ndim != 2 or r.shape[0] != r.shape[1]:
        raise ValueError(f"expected a matrix of accuracies (T, T), got {r.shape}")
    return r
