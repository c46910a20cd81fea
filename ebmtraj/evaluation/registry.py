"""All metrics by name: to add one, write a function in a file of this folder and a line here.

The contract, which one test holds every entry to: a pure function whose parameters are some of `samples`
(N, m, T+1, S), `model` (N, T+1, S; the first sample of each start), `truth` (N, T+1, S), `fields`, `mean` (S,) and
`std` (S,); it returns float64 with time first, T+1 rows (states) or T rows (steps), or None where it has nothing to
say; its docstring gives the reference.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence

from ebmtraj.evaluation.arrays import Array, FloatArray
from ebmtraj.evaluation.frechet import frechet_of_changes, frechet_over_time
from ebmtraj.evaluation.scores import (
    coverage90,
    crps,
    diversity,
    energy_score,
    limit_violation,
    quaternion_violation,
    rotation_error,
)
from ebmtraj.evaluation.wasserstein import sliced_wasserstein
from ebmtraj.fields import Field

METRICS: Mapping[str, Callable[..., FloatArray | None]] = {
    "frechet": frechet_over_time,
    "frechet_changes": frechet_of_changes,
    "sliced_wasserstein": sliced_wasserstein,
    "energy_score": energy_score,
    "crps": crps,
    "coverage90": coverage90,
    "diversity": diversity,
    "rotation_error": rotation_error,
    "quaternion_violation": quaternion_violation,
    "limit_violation": limit_violation,
}


def measure(name: str, samples: Array, truth: Array, fields: Sequence[Field], mean: Array, std: Array) -> FloatArray | None:
    """One metric of `METRICS` over time: (T+1,) or (T,), averaged over anything but time; None where undefined.

    samples (N, m, T+1, S), truth (N, T+1, S), training mean (S,) and std (S,).
    """
    given = {
        "samples": samples,
        "model": samples[:, 0],
        "truth": truth,
        "fields": fields,
        "mean": mean,
        "std": std,
    }
    metric = METRICS[name]
    values = metric(**{key: given[key] for key in inspect.signature(metric).parameters})
    return values if values is None or values.ndim == 1 else values.mean(axis=tuple(range(1, values.ndim)))
