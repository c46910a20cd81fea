"""Cross-class sampling and distal adversarials of a model, as numbers and pictures."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ebmtraj.datasets.images import ImageStore
from ebmtraj.device import generator
from ebmtraj.errors import EbmtrajError
from ebmtraj.images.cross import CrossConfig, DistalConfig, cross_class, distal
from ebmtraj.images.data import ImageData
from ebmtraj.images.model import ImageModel
from ebmtraj.report.image_grid import write_chain, write_grid


@dataclass(frozen=True)
class Crossed:
    """Images of one class, sampled toward another."""

    results: dict[str, Any]
    starts: Tensor  # (B, C, H, W)
    ends: Tensor  # (B, C, H, W)
    states: list[Tensor]  # the chains, each (B, C, H, W)


def measure_cross_class(
    model: ImageModel,
    store: ImageStore,
    *,
    source: str,
    target: str | None = None,
    count: int = 32,
    split: str = "test",
    seed: int = 0,
    config: CrossConfig | None = None,
    judge: ImageModel | None = None,
) -> Crossed:
    """Sample from images of class `source` toward class `target`, or toward each other class in turn.

    Results: how much of the image is kept (squared error from start to end, beside that between images of the two classes),
    and where a `judge` that classifies is given, the share of ends that it takes for the target. Raises `EbmtrajError` for
    an unknown class.
    """
    device = model.shift.device
    data = ImageData.load(store, split, device)
    if data.label is None:
        raise EbmtrajError(f"image store {store.path} has no labels to go from and toward")
    first = class_index(source, model)
    others = [k for k in range(len(model.classes)) if k != first] if target is None else [class_index(target, model)]
    found = data.pixels[data.label == first][:count]
    if not len(found):
        raise EbmtrajError(f"the {split} split of {store.path} has no image of class {source}")
    starts = found[torch.arange(count, device=device) % len(found)]
    toward = torch.tensor(others, device=device)[torch.arange(count, device=device) % len(others)]
    states: list[Tensor] = [starts]
    ends = cross_class(model, starts, toward, generator(seed, device), config, watch=lambda x: states.append(x.clone()))
    real = [data.pixels[data.label == k] for k in toward.tolist()]
    apart = [float((each - start).square().mean()) for each, start in zip(real, starts, strict=True)]
    results: dict[str, Any] = {
        "from": model.classes[first],
        "toward": [model.classes[k] for k in others],
        "images": count,
        "mse_to_start": float((ends - starts).square().mean()),
        "mse_between_classes": float(np.mean(apart)),
    }
    if judge is not None and judge.classifies:
        with torch.no_grad():
            results["judge"], taken = judge.name, judge.logits(ends).argmax(1)
        results["agreement"] = float((taken == toward).float().mean())
    return Crossed(results, starts, ends, states)


def cross_picture(crossed: Crossed, path: Path, columns: int = 16) -> Path:
    """Write the chains as a GIF, or starts above ends as a PNG; raises `EbmtrajError` for another ending."""
    if path.suffix.lower() == ".gif":
        return write_chain([state[: columns * 2].cpu().numpy() for state in crossed.states], path)
    if path.suffix.lower() != ".png":
        raise EbmtrajError(f"--out {path}: give a path that ends in .png or .gif")
    pairs = torch.stack([crossed.starts, crossed.ends], 1)[:64]  # (B, 2, C, H, W)
    lines = [
        torch.cat([part[:, 0], part[:, 1]]) for part in pairs.split(columns) if len(part) == columns or len(pairs) < columns
    ]
    return write_grid(torch.cat(lines).cpu().numpy(), path, columns=min(columns, len(pairs)))


def class_index(name: str, model: ImageModel) -> int:
    """The number of a class given by name or number; raises `EbmtrajError` for an unknown one."""
    if name in model.classes:
        return model.classes.index(name)
    if name.isdigit() and int(name) < len(model.classes):
        return int(name)
    known = ", ".join(model.classes[:12]) or "none: it was trained without labels"
    raise EbmtrajError(f"unknown class {name!r}; this model knows {known}")


def measure_distal(
    model: ImageModel, store: ImageStore, *, count: int = 20, seed: int = 0, config: DistalConfig | None = None
) -> tuple[dict[str, Any], Tensor]:
    """Distal adversarials with and without the energy, a class in turn: p(y | x), log p(x) and distance to real images.

    Returns numbers by kind, and the images (2, B, C, H, W), those without the energy first.
    """
    device = model.shift.device
    labels = torch.arange(count, device=device) % max(1, len(model.classes))
    real = ImageData.load(store, "test", device).pixels
    results: dict[str, Any] = {"images": count, "seed": seed}
    pictures = []
    with torch.no_grad():
        results["real"] = {
            "probability": float(model.logits(real).softmax(-1).amax(1).mean()) if model.classifies else None,
            "log_density": float(model.log_density(real).mean()) if model.classifies else None,
            "nearest": _nearest(real, real, itself=True),
        }
    for name, energy in (("without_energy", False), ("with_energy", True)):
        found = distal(model, labels, generator(seed, device), config, energy=energy)
        results[name] = {
            "probability": float(found.probability.mean()),
            "log_density": float(found.log_density.mean()),
            "nearest": _nearest(found.pixels, real),
        }
        pictures.append(found.pixels)
    return results, torch.stack(pictures)


def _nearest(a: Tensor, b: Tensor, itself: bool = False) -> float:
    """Mean Euclidean distance in pixels from each of `a` to its nearest of `b`, `itself`: other than the same."""
    gap = torch.cdist(a.flatten(1), b.flatten(1))
    return float((gap.fill_diagonal_(torch.inf) if itself else gap).amin(1).mean())
