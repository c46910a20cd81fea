"""Scores of generated images: distances of features, classes, spread, and whether training images are copied.

Pure functions of arrays. A distance is an estimate whose bias depends on how many images there are: compare at equal counts
and with the floor, which is what real images score. Kernel distance: Binkowski et al. 2018; copies: Meehan et al. 2020;
membership: Yeom et al. 2018.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from ebmtraj.errors import EbmtrajError
from ebmtraj.evaluation.arrays import Array, FloatArray
from ebmtraj.evaluation.frechet import frechet_distance


def same_count(a: Array, b: Array, count: int | None = None, seed: int = 0) -> tuple[Array, Array]:
    """As many of both, (N, ...) and (M, ...), `count` at most, drawn without replacement under the same seed, in order."""
    most = min(len(a), len(b), count or len(a))
    chosen = [np.sort(np.random.default_rng(seed).choice(len(x), most, replace=False)) for x in (a, b)]
    return a[chosen[0]], b[chosen[1]]


def kernel_distance(x: Array, y: Array) -> float:
    """Squared maximum mean discrepancy under the kernel (x.y / D + 1)^3, unbiased, so that it may be below 0.

    x (N, D), y (M, D) -> no unit. Raises `EbmtrajError` where either set has fewer than 2 points. Binkowski et al. 2018.
    """
    x, y = np.asarray(x, np.float64), np.asarray(y, np.float64)
    if min(len(x), len(y)) < 2:
        raise EbmtrajError(f"a kernel distance needs 2 or more points a side, not {len(x)} and {len(y)}")

    def kernel(a: FloatArray, b: FloatArray) -> FloatArray:
        return np.asarray((a @ b.T / a.shape[1] + 1) ** 3)

    within = 0.0
    for points in (x, y):
        k = kernel(points, points)
        within += float(k.sum() - np.trace(k)) / (len(points) * (len(points) - 1))
    return within - 2 * float(kernel(x, y).mean())


def class_shares(labels: Array, classes: int) -> FloatArray:
    """Share of each class among labels (N,) -> (K,)."""
    return np.asarray(np.bincount(labels, minlength=classes) / max(1, len(labels)), np.float64)


def within_class_spread(pixels: Array, labels: Array, classes: int) -> FloatArray:
    """Root of the total variance of each class's images, (N, C, H, W), (N,) -> (K,); NaN for fewer than 2."""
    flat = np.asarray(pixels, np.float64).reshape(len(pixels), -1)
    found = [flat[labels == k] for k in range(classes)]
    return np.array([np.sqrt(part.var(axis=0, ddof=1).sum()) if len(part) > 1 else np.nan for part in found])


def nearest(pixels: Array, reference: Array, *, leave_out: bool = False, batch: int = 512) -> FloatArray:
    """Euclidean distance from each image to the nearest of the reference, (N, C, H, W), (M, C, H, W) -> (N,).

    `leave_out`: the images are the reference, and none is its own neighbour.
    """
    a, b = (np.asarray(x, np.float32).reshape(len(x), -1) for x in (pixels, reference))
    squares = (b * b).sum(1)
    found = np.empty(len(a))
    for start in range(0, len(a), batch):
        part = a[start : start + batch]
        squared = (part * part).sum(1)[:, None] + squares - 2 * part @ b.T
        if leave_out:
            squared[np.arange(len(part)), start + np.arange(len(part))] = np.inf
        found[start : start + batch] = np.sqrt(np.maximum(squared.min(1), 0))
    return found


def share_below(a: Array, b: Array) -> float:
    """Probability that a value of `a` (N,) is below one of `b` (M,), ties counted half: the Mann-Whitney statistic."""
    order = np.sort(np.asarray(b, np.float64))
    above = len(order) - np.searchsorted(order, a, side="right")
    equal = len(order) - np.searchsorted(order, a, side="left") - above
    return float((above + 0.5 * equal).mean() / len(order))


def memory_scores(samples: Array, train: Array, held_out: Array) -> dict[str, float]:
    """Whether samples (N, C, H, W) are copies of training images, beside what held-out images score.

    `train` (M, C, H, W), `held_out` (L, C, H, W). `nearest_samples` and `nearest_held_out` are mean distances to the nearest
    training image; `copying` is the probability that a sample lies nearer to the training set than a held-out image does: .5
    is as it should be, 1 all copies (Meehan et al. 2020).
    """
    ours, theirs = nearest(samples, train), nearest(held_out, train)
    return {
        "nearest_samples": float(ours.mean()),
        "nearest_held_out": float(theirs.mean()),
        "copying": share_below(ours, theirs),
    }


def membership(train_log_p: Array, held_out_log_p: Array) -> float:
    """Probability that a training image has a higher log p (N,) than a held-out one (M,): .5 tells nothing, 1 tells all.

    The attack of Yeom et al. 2018 at its best threshold has twice the excess over .5 at most.
    """
    return share_below(held_out_log_p, train_log_p)


def distance_scores(samples: Array, real: Array, count: int | None = None, seed: int = 0) -> dict[str, Any]:
    """Frechet and kernel distance between features (N, D) and (M, D) at the same count and seed on both sides."""
    a, b = same_count(samples, real, count, seed)
    return {"frechet": frechet_distance(a, b), "kernel": kernel_distance(a, b), "count": len(a)}


def label_scores(
    pixels: Array, judged: Array, real_pixels: Array, real_labels: Array, classes: Sequence[str], asked: Array | None = None
) -> Mapping[str, Any]:
    """Classes of generated images (N, C, H, W) judged (N,) beside those of real images, and the spread within them.

    `real_pixels` (M, C, H, W), `real_labels` (M,). `least_share` is that of the rarest class; `spread` the mean over classes
    of their spread over the real one, by the class that was asked for (N,) where one was; `agreement` the share of images
    judged to be what was asked for.
    """
    shares = class_shares(judged, len(classes))
    own = within_class_spread(pixels, judged if asked is None else asked, len(classes))
    real = within_class_spread(real_pixels, real_labels, len(classes))
    found: dict[str, Any] = {
        "least_share": float(shares.min()),
        "shares": {name: float(share) for name, share in zip(classes, shares, strict=True)},
        "spread": float(np.nanmean(own / real)) if np.isfinite(own).any() else None,
    }
    if asked is not None:
        found["agreement"] = float((judged == asked).mean())
    return found
