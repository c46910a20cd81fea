"""What a model of images takes for foreign: three scores, many foreign sets, and a picture."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from ebmtraj.datasets.images import ImageStore, open_images
from ebmtraj.errors import EbmtrajError
from ebmtraj.evaluation.ood import Pixels, auroc, foreign_sets, ood_table
from ebmtraj.images.model import ImageModel
from ebmtraj.report.style import GREY, INK, look, new_figure, save
from ebmtraj.training.losses import NoiseConfig


@dataclass(frozen=True)
class OODConfig:
    """What is held against what."""

    split: str = "test"
    level: float | None = None  # the noise level of scores, in unit coordinates; None: the model's own
    against: tuple[str, ...] = ()  # other image stores or sources, whose test splits are foreign, too
    limit: int = 0  # images of a set at most, its first ones; 0: all
    seed: int = 0  # of the foreign sets

    def __post_init__(self) -> None:
        if (self.level is not None and self.level <= 0) or self.limit < 0 or self.limit == 1:
            raise EbmtrajError(f"ood: level = {self.level}, limit = {self.limit}; it needs level > 0 and limit 0 or above 1")


@dataclass(frozen=True)
class OOD:
    """What was found, and what a picture shows."""

    table: dict[str, dict[str, float]]  # AUROC by score and foreign set
    protocol: dict[str, Any]
    sets: dict[str, Pixels]  # "inside", "train" and the foreign ones
    log_p: dict[str, NDArray[Any]]  # of each


RATIO = 0.8  # the level of `log_ratio`, chosen on the validation split of the digits; the other level is twice that


def has_levels(model: ImageModel) -> bool:
    """Whether its energy is one at every noise level."""
    return isinstance(getattr(model.config, "noise", None), NoiseConfig) or bool(getattr(model, "closed_form", False))


def reading_level(model: ImageModel) -> float:
    """The noise level at which a model's densities are read unless one is given; chosen on the digits' validation split."""
    return float(getattr(model.config, "level", 0.3))


def scores(model: ImageModel, pixels: Pixels, level: float | None = None, batch: int = 1024) -> dict[str, NDArray[Any]]:
    """log p(x), max p(y|x) where the model classifies, and -|grad log p(x)|, each `(N,)`, of pixels `(N, C, H, W)`.

    Paper 001, section 4.3: a gradient is longer off the data; its length is that in unit coordinates. An energy at every
    noise level also gives `log_ratio`, log p_s(x) - 2 log p_2s(x): what is foreign only in its details, as a mean of two
    images is, lies where a coarse density is high, and so scores well by log p (Ren et al. 2019 divide by a background's).
    """
    at = reading_level(model) if level is None else level
    found: dict[str, list[NDArray[Any]]] = {}
    for start in range(0, len(pixels), batch):
        x = torch.from_numpy(np.ascontiguousarray(pixels[start : start + batch])).to(model.shift.device)
        unit = torch.ones((), device=x.device)
        said = at * unit
        with torch.no_grad():
            values = {"log_p": model.log_density(x, said)}
            if has_levels(model):
                values["log_ratio"] = model.log_density(x, RATIO * unit) - 2 * model.log_density(x, 2 * RATIO * unit)
            if model.classifies:
                values["max_p"] = model.logits(x, said).double().softmax(1).max(1).values
        values["grad_norm"] = -model.gradient(model.unit(x), None, said).detach().flatten(1).norm(dim=1)
        for name, value in values.items():
            found.setdefault(name, []).append(value.double().cpu().numpy())
    return {name: np.concatenate(parts) for name, parts in found.items()}


def measure_ood(model: ImageModel, store: ImageStore, config: OODConfig | None = None) -> OOD:
    """AUROC of every score against every foreign set; raises `EbmtrajError` where the images don't fit the model."""
    config = config or OODConfig()
    limit = config.limit or None
    images = store.read(config.split)
    inside, labels = images.pixels[:limit], None if images.labels is None else images.labels[:limit]
    sets = foreign_sets(inside, config.seed, labels)
    for name in config.against:
        other = open_images(name)
        if other.shape != store.shape:
            raise EbmtrajError(f"--against {name}: its images are {other.shape}, those of {store.path} {store.shape}")
        if other.content_hash == store.content_hash:
            raise EbmtrajError(f"--against {name}: these are the very images that {store.path} holds")
        sets[other.name if other.name not in sets else name] = other.read("test").pixels[:limit]
    sets = {"inside": inside, "train": store.read("train").pixels[:limit], **sets}
    found = {name: scores(model, pixels, config.level) for name, pixels in sets.items()}
    foreign = [name for name in sets if name not in ("inside", "train")]
    table = ood_table(lambda name: found[name], "inside", {name: name for name in foreign})
    protocol = {
        "split": config.split,
        "images": len(inside),
        "level": reading_level(model) if config.level is None else config.level,
        "ratio_levels": [RATIO, 2 * RATIO] if has_levels(model) else None,
        "seed": config.seed,
        "metric": "AUROC, held-out images against foreign ones",
        "log_p_train": auroc(found["train"]["log_p"], found["inside"]["log_p"]),  # .5: no higher than held-out images
    }
    return OOD(table, protocol, sets, {name: values["log_p"] for name, values in found.items()})


def ood_figure(found: OOD, path: Path, examples: int = 6) -> Path:
    """Examples of every set beside the histogram of their log p(x) over that of held-out images."""
    names = [name for name in found.sets if name != "inside"]
    figure, _ = new_figure(1, height=0.75 * len(names) + 0.9)
    figure.clear()
    grid = figure.subplots(len(names), 2, width_ratios=(1, 2.2), squeeze=False)
    inside = found.log_p["inside"]
    low, high = _range([found.log_p[name] for name in found.sets], inside)
    edges = np.linspace(low, high, 60)
    for row, name in zip(grid, names, strict=True):
        _examples(row[0], found.sets[name][:examples])
        row[0].set_ylabel(name.replace("_", "\n"), fontsize=11, color=INK, rotation=0, ha="right", va="center")
        axis = row[1]
        axis.hist(inside.clip(low, high), edges, density=True, color=GREY, alpha=0.55, label="held out")
        axis.hist(found.log_p[name].clip(low, high), edges, density=True, color=look("energy").color, alpha=0.7)
        value = found.protocol["log_p_train"] if name == "train" else found.table["log_p"][name]
        axis.text(0.01, 0.8, f"AUROC {value:.3f}", transform=axis.transAxes, fontsize=10, color=INK, va="top")
        axis.set_yticks([])
        axis.tick_params(labelsize=9, colors=INK, labelbottom=name == names[-1])
        for side in ("top", "right", "left"):
            axis.spines[side].set_visible(False)
    grid[0][1].set_title("log p(x), nats up to a constant; grey: held-out images", fontsize=12, color=INK)
    return save(figure, path)


def _range(every: Sequence[NDArray[Any]], inside: NDArray[Any]) -> tuple[float, float]:
    """From where histograms go; what is far below the held-out images stands in the first bin."""
    width = float(np.quantile(inside, 0.99) - np.quantile(inside, 0.01)) or 1.0
    lowest = float(np.quantile(inside, 0.01)) - 3 * width
    return max(lowest, min(float(values.min()) for values in every)), max(float(values.max()) for values in every) + 1e-6


def _examples(axis: Any, pixels: Pixels) -> None:
    strip = np.concatenate([np.pad(image, ((0, 0), (0, 0), (0, 1)), constant_values=1) for image in pixels], axis=2)
    image = strip.transpose(1, 2, 0)
    axis.imshow(image if image.shape[2] == 3 else image[..., 0], cmap="gray", vmin=0, vmax=1, interpolation="nearest")
    axis.set_xticks([])
    axis.set_yticks([])
    for spine in axis.spines.values():
        spine.set_visible(False)
