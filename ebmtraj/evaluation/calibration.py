"""Whether a classifier's probabilities are right: expected calibration error, reliability, temperature scaling.

Guo et al. 2017.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.optimize import minimize_scalar
from torch import Tensor

from ebmtraj.errors import EbmtrajError

BINS = 15  # as Guo et al. 2017


@dataclass(frozen=True)
class Reliability:
    """Images by their confidence, the greatest p(y | x): bins of equal width over [0, 1]."""

    confidence: NDArray[np.float64]  # (bins,) mean of the bin's images; the bin's middle where it is empty
    accuracy: NDArray[np.float64]  # (bins,) share that is right; 0 where it is empty
    share: NDArray[np.float64]  # (bins,) of all images


def accuracy(logits: Tensor, labels: Tensor) -> float:
    """Share of images whose greatest logit, of `(N, K)`, is that of the label `(N,)`.

    Raises `EbmtrajError` where labels are not one an image or out of range, or a logit is not finite.
    """
    _check(logits, labels)
    return float((logits.argmax(1) == labels).double().mean())


def calibration_error(logits: Tensor, labels: Tensor, bins: int = BINS) -> float:
    """Expected calibration error of softmax of logits `(N, K)`: mean distance of confidence and accuracy over bins.

    Naeini et al. 2015; Guo et al. 2017, equation 3. Raises as `accuracy`.
    """
    from torchmetrics.functional.classification import multiclass_calibration_error

    _check(logits, labels)
    probabilities = logits.double().softmax(1)
    return float(multiclass_calibration_error(probabilities, labels, num_classes=logits.shape[1], n_bins=bins, norm="l1"))


def cross_entropy(logits: Tensor, labels: Tensor) -> float:
    """Mean -log p(y | x) in nats of logits `(N, K)` and labels `(N,)`; raises as `accuracy`."""
    _check(logits, labels)
    return float(torch.nn.functional.cross_entropy(logits.double(), labels))


def fit_temperature(logits: Tensor, labels: Tensor) -> float:
    """The temperature T whose softmax(logits / T) has the least cross-entropy (Guo et al. 2017, section 4.2).

    For logits `(N, K)` and labels `(N,)` that nothing was trained on: the validation split's. Raises as `accuracy`.
    """
    _check(logits, labels)
    found: Any = minimize_scalar(
        lambda log_t: cross_entropy(logits / float(np.exp(log_t)), labels),
        bounds=(np.log(0.02), np.log(50.0)),
        method="bounded",
        options={"xatol": 1e-4},
    )
    return float(np.exp(found.x))


def reliability(logits: Tensor, labels: Tensor, bins: int = BINS) -> Reliability:
    """Confidence, accuracy and share of images in each bin, `(bins,)` each, of logits `(N, K)` and labels `(N,)`.

    Raises as `accuracy`. Guo et al. 2017, figure 4.
    """
    _check(logits, labels)
    best, guess = logits.double().softmax(1).max(1)
    right = (guess == labels).double()
    place = (best * bins).long().clamp_max(bins - 1)
    count = torch.bincount(place, minlength=bins).double()
    middle = (torch.arange(bins, dtype=torch.float64) + 0.5) / bins
    sums = [torch.bincount(place, weights=values, minlength=bins) for values in (best, right)]
    confidence = torch.where(count > 0, sums[0] / count.clamp_min(1), middle)
    return Reliability(confidence.numpy(), (sums[1] / count.clamp_min(1)).numpy(), (count / max(1, len(labels))).numpy())


def calibration(
    logits: Tensor, labels: Tensor, validation_logits: Tensor, validation_labels: Tensor, bins: int = BINS
) -> dict[str, float]:
    """Accuracy, cross-entropy and calibration error of held-out images, as they are and at the validation's temperature.

    Logits `(N, K)` and labels `(N,)`; raises as `accuracy`.
    """
    temperature = fit_temperature(validation_logits, validation_labels)
    return {
        "accuracy": accuracy(logits, labels),
        "nll": cross_entropy(logits, labels),
        "ece": calibration_error(logits, labels, bins),
        "temperature": temperature,
        "nll_scaled": cross_entropy(logits / temperature, labels),
        "ece_scaled": calibration_error(logits / temperature, labels, bins),
    }


def _check(logits: Tensor, labels: Tensor) -> None:
    if not len(labels) or len(logits) != len(labels):
        raise EbmtrajError(f"calibration: {len(logits)} logits and {len(labels)} labels; give one label an image")
    if not 0 <= int(labels.min()) <= int(labels.max()) < logits.shape[1]:
        raise EbmtrajError(
            f"calibration: labels from {int(labels.min())} to {int(labels.max())} for {logits.shape[1]} classes"
        )
    if not bool(logits.isfinite().all()):
        raise EbmtrajError("calibration: a logit is not finite; has the model diverged?")
