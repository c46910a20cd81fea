"""Restoration measured: the energy's restorations beside those of filters, fills, a Gaussian and a one-step denoiser."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ebmtraj.datasets.images import ImageStore
from ebmtraj.device import generator
from ebmtraj.images.data import ImageData
from ebmtraj.images.model import ImageModel
from ebmtraj.images.restore import (
    Damaged,
    RestoreConfig,
    check_restores,
    damage,
    denoised_once,
    restore,
    shown,
)
from ebmtraj.images.restore_plain import enlarged, gaussian_given, mean_filled, median_filtered
from ebmtraj.report.image_grid import write_grid

LEVELS = (0.3, 0.5, 0.7, 1.0, 1.4, 2.0)  # of the one-step denoiser, chosen on the validation split
SHOWN = 12  # images in a picture


@dataclass(frozen=True)
class Restored:
    """What a restoration came to."""

    results: dict[str, Any]  # squared errors by method, and the protocol
    pictures: dict[str, Tensor]  # (B, C, H, W) by method, the truth first


def measure_restoration(
    model: ImageModel,
    store: ImageStore,
    task: str,
    *,
    amount: float | None = None,
    split: str = "test",
    limit: int = 0,
    draws: int = 16,
    seed: int = 0,
    config: RestoreConfig | None = None,
    on_draw: Callable[[int, int], None] = lambda done, total: None,
) -> Restored:
    """Damage a split's images, restore them, and give each method's mean squared error per pixel in [0, 1].

    For inpainting over the hidden pixels alone. Raises `EbmtrajError` for an unknown task or split, or an unfit model.
    """
    check_restores(model)
    device = model.shift.device
    data = ImageData.load(store, split, device, limit=limit or None)
    train, truth = ImageData.load(store, "train", device).pixels, data.pixels
    damaged = damage(truth, task, amount, generator(seed, device))
    counted = ~shown(truth, damaged.amount).bool() if damaged.task == "inpaint" else None
    found = restore(
        model, damaged, generator(seed + 1, device), config, draws=draws, on_draw=lambda done: on_draw(done, draws)
    )
    rows = {"damaged": damaged.pixels, "energy, one sample": found[0], f"energy, mean of {draws}": found.mean(0)}
    rows |= plain_restorations(model, store, damaged, train, seed)
    errors = {name: squared_error(pixels, truth, counted) for name, pixels in rows.items()}
    if draws > 1:  # of every draw, not only the first
        errors["energy, one sample"] = sum(squared_error(each, truth, counted) for each in found) / draws
    protocol = {"images": len(truth), "split": split, "amount": damaged.amount, "draws": draws, "seed": seed}
    protocol |= {
        "measured": "mean squared error of pixels in [0, 1]" + (", hidden ones alone" if counted is not None else "")
    }
    return Restored({"task": task, "mse": errors, "protocol": protocol}, {"truth": truth, **rows})


def plain_restorations(
    model: ImageModel, store: ImageStore, damaged: Damaged, train: Tensor, seed: int
) -> dict[str, Tensor]:
    """What restores without sampling the energy, `(B, C, H, W)` by name."""
    found = {}
    if damaged.task == "salt-and-pepper":
        found["median filter"] = median_filtered(damaged)
        level = denoiser_level(model, store, damaged, seed)
        found[f"one-step denoiser (level {level:g})"] = denoised_once(model, damaged, level)
    elif damaged.task == "inpaint":
        found["mean fill"] = mean_filled(damaged, train)
    else:
        found["bicubic"] = enlarged(damaged)
    return {**found, "Gaussian given the rest": gaussian_given(damaged, train)}


def denoiser_level(model: ImageModel, store: ImageStore, damaged: Damaged, seed: int) -> float:
    """The noise level for which the one-step denoiser does best on the validation split."""
    truth = ImageData.load(store, "validation", model.shift.device, limit=500).pixels
    other = damage(truth, damaged.task, damaged.amount, generator(seed + 2, truth.device))
    return min(LEVELS, key=lambda level: squared_error(denoised_once(model, other, level), truth))


def squared_error(pixels: Tensor, truth: Tensor, counted: Tensor | None = None) -> float:
    """Mean squared error per pixel, of the `counted` ones `(1, 1, H, W)` alone where given."""
    error = (pixels - truth) ** 2
    return float(error.mean() if counted is None else error[counted.expand_as(error)].mean())


def restoration_picture(restored: Restored, path: Path) -> Path:
    """Write a grid: a column an image, a row a method, from the truth down."""
    rows = [pixels[:SHOWN] for pixels in restored.pictures.values()]
    return write_grid(torch.cat(rows).cpu().numpy(), path, columns=len(rows[0]))
