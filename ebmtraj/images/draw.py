"""Samples of a trained model in batches, as arrays."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ebmtraj.device import generator
from ebmtraj.errors import DivergedError, EbmtrajError
from ebmtraj.images.model import ImageModel
from ebmtraj.runs import write_atomic


class Drawn(NamedTuple):
    """Samples, and the states that the first ones went through, each `(film, C, H, W)`."""

    pixels: NDArray[np.float32]  # (N, C, H, W) in [0, 1]
    labels: NDArray[np.int64] | None  # (N,) that were asked for, of a conditional model
    states: list[NDArray[np.float32]]  # each (`film`, C, H, W)


def draw(
    model: ImageModel,
    count: int,
    *,
    seed: int = 0,
    label: int | None = None,
    buffer: bool = False,
    batch: int = 500,
    film: int = 0,
    on_batch: Callable[[int], None] = lambda done: None,
) -> Drawn:
    """Draw `count` images, of one class or, from a conditional model, evenly of all; chains of the first `film` are kept.

    With `buffer`, chains go on from training's replay buffer. Raises `EbmtrajError` where the model has none, or no classes,
    and `DivergedError` for samples that are not finite.
    """
    device = model.shift.device
    noise = generator(seed, device)
    labels = None if label is None else torch.full((count,), label, dtype=torch.int64, device=device)
    labels = model.check_labels(count, labels)
    settings: dict[str, Any] = {}
    if buffer:
        if not hasattr(model, "buffer"):
            raise EbmtrajError(f"model {model.name} was trained without a replay buffer; drop --buffer")
        settings["buffer"] = True
    states: list[NDArray[np.float32]] = []

    def watch(x: Tensor) -> None:
        states.append(x[:film].cpu().numpy())

    parts = []
    for start in range(0, count, batch):
        size = min(batch, count - start)
        own = None if labels is None else labels[start : start + size]
        seen = watch if film and start == 0 else None
        parts.append(model.sample(size, noise, own, watch=seen, **settings).cpu())
        on_batch(start + size)
    pixels = torch.cat(parts).numpy().astype(np.float32)
    if not np.isfinite(pixels).all():
        raise DivergedError(f"model {model.name}: samples are not finite; train it again")
    if film and not states:
        raise EbmtrajError(f"model {model.name} draws its images at once: there is no chain to show; drop --chain")
    return Drawn(pixels, None if labels is None else labels.cpu().numpy(), states)


def class_number(label: str, model: ImageModel) -> int:
    """The class of this number or name; raises `EbmtrajError` where there is none."""
    if not model.conditional:
        raise EbmtrajError(f"--label {label}: this model was trained without labels; train one with --conditional")
    if label in model.classes:
        return model.classes.index(label)
    if label.isdigit() and int(label) < len(model.classes):
        return int(label)
    raise EbmtrajError(f"--label {label}: no such class; use 0 to {len(model.classes) - 1}, or {', '.join(model.classes)}")


def write_samples(drawn: Drawn, path: Path) -> Path:
    """Write samples as an npz: `pixels` and, where there are any, `labels`."""
    arrays: dict[str, Any] = {"pixels": drawn.pixels} | ({} if drawn.labels is None else {"labels": drawn.labels})
    buffer = io.BytesIO()
    np.savez_compressed(buffer, **arrays)
    write_atomic(path, buffer.getvalue())
    return path
