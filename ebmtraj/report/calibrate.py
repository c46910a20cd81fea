"""Whether a classifier's probabilities can be believed: figures and a reliability plot."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ebmtraj.datasets.images import ImageStore
from ebmtraj.errors import EbmtrajError
from ebmtraj.evaluation.calibration import BINS, Reliability, calibration, reliability
from ebmtraj.images.model import ImageModel
from ebmtraj.report.style import GREY, INK, label_axis, look, new_figure, save


@dataclass(frozen=True)
class Calibration:
    """What was found, and what a picture shows."""

    results: dict[str, Any]
    raw: Reliability
    scaled: Reliability  # at the validation's temperature


def split_logits(
    model: ImageModel, store: ImageStore, split: str, level: float | None = None, batch: int = 1024
) -> tuple[Tensor, Tensor]:
    """Logits `(N, K)` and labels `(N,)` of a split, on CPU.

    Raises `EbmtrajError` where the model doesn't classify, or the images are unlabelled or of other classes.
    """
    images = store.read(split)
    if images.labels is None:
        raise EbmtrajError(f"image store {store.path} has no labels; classifying can't be judged on it")
    if store.classes != model.classes:
        raise EbmtrajError(f"image store {store.path} has classes {', '.join(store.classes)}; the model has others")
    parts = []
    with torch.no_grad():
        for start in range(0, len(images), batch):
            x = torch.from_numpy(np.ascontiguousarray(images.pixels[start : start + batch])).to(model.shift.device)
            parts.append(model.logits(x, level).cpu())
    return torch.cat(parts), torch.from_numpy(images.labels)


def measure_calibration(
    model: ImageModel, store: ImageStore, *, split: str = "test", level: float | None = None, bins: int = BINS
) -> Calibration:
    """Accuracy, cross-entropy and calibration error of a split, raw and with the temperature of the validation split."""
    logits, labels = split_logits(model, store, split, level)
    results: dict[str, Any] = dict(calibration(logits, labels, *split_logits(model, store, "validation", level), bins=bins))
    results |= {"split": split, "images": len(labels), "bins": bins}
    raw, scaled = (reliability(logits / t, labels, bins) for t in (1.0, results["temperature"]))
    return Calibration(results, raw, scaled)


def calibration_figure(found: Calibration, path: Path) -> Path:
    """Accuracy over confidence, as it is and scaled; the size of a point is its share of the images."""
    figure, axes = new_figure(2)
    for axis, part, title, error in zip(
        axes,
        (found.raw, found.scaled),
        ("as trained", f"at temperature {found.results['temperature']:.2f}"),
        ("ece", "ece_scaled"),
        strict=True,
    ):
        axis.plot((0, 1), (0, 1), color=GREY, linewidth=1)
        held = part.share > 0
        axis.scatter(
            part.confidence[held],
            part.accuracy[held],
            s=12 + 300 * part.share[held],
            color=look("energy").color,
            alpha=0.75,
            clip_on=False,
        )
        axis.text(0.04, 0.92, f"ECE {found.results[error]:.3f}", transform=axis.transAxes, fontsize=12, color=INK)
        axis.set_xlim(0, 1.04)
        axis.set_ylim(-0.04, 1.08)
        label_axis(axis, title, "confidence, greatest p(y|x)", "accuracy")
    return save(figure, path)
