"""Out-of-distribution detection: images that a model was not trained on, and how well a score tells them.

Paper 000, section 4.2, and paper 001, section 4.3: AUROC of a score of held-out images against that of foreign ones, 1 where
every foreign image scores below every held-out one, .5 where the score says nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.stats import rankdata

from ebmtraj.errors import EbmtrajError

Pixels = NDArray[np.float32]  # (N, C, H, W) in [0, 1]
Scores = Mapping[str, NDArray[Any]]  # each (N,), higher where an image is more like the data
LETTERS = "ACEFHJKLMNPRTUVWXYadefhkmnprtwy"  # none that reads as a digit
FONTS = ("DejaVuSans-Bold", "DejaVuSansMono-Bold", "DejaVuSerif-Bold")  # matplotlib's own; as bold as handwriting


def noise(pixels: Pixels, rng: np.random.Generator) -> Pixels:
    """Independent uniform pixels, in the shape of `pixels` `(N, C, H, W)`."""
    return rng.random(pixels.shape, dtype=np.float32)


def constant(pixels: Pixels, rng: np.random.Generator) -> Pixels:
    """One uniform brightness an image and channel, `(N, C, H, W)`."""
    return np.broadcast_to(rng.random((*pixels.shape[:2], 1, 1), dtype=np.float32), pixels.shape).copy()


def inverted(pixels: Pixels, rng: np.random.Generator) -> Pixels:
    """The images `(N, C, H, W)` with light and dark exchanged."""
    return 1 - pixels


def rotated(pixels: Pixels, rng: np.random.Generator) -> Pixels:
    """The images `(N, C, H, W)` turned by 90 degrees, or 180 where they aren't square."""
    turns = 1 if pixels.shape[2] == pixels.shape[3] else 2
    return np.ascontiguousarray(np.rot90(pixels, turns, (2, 3)))


def shuffled(pixels: Pixels, rng: np.random.Generator) -> Pixels:
    """The images' own pixels in random places, another order each, `(N, C, H, W)`."""
    count, channels, height, width = pixels.shape
    order = rng.permuted(np.tile(np.arange(height * width), (count, 1)), axis=1)
    flat = pixels.reshape(count, channels, -1)
    return np.take_along_axis(flat, order[:, None, :], axis=2).reshape(pixels.shape)


def interpolated(pixels: Pixels, rng: np.random.Generator) -> Pixels:
    """The mean of each image and another one of the set, of whatever class, `(N, C, H, W)` (paper 001, section 4.3)."""
    order = rng.permutation(len(pixels))
    partner = np.empty_like(order)
    partner[order] = np.roll(order, 1)
    return 0.5 * (pixels + pixels[partner])


def letters(pixels: Pixels, rng: np.random.Generator) -> Pixels:
    """Light letters on dark ground, of three bold typefaces of matplotlib's, as many and as large as `(N, C, H, W)`."""
    from matplotlib import get_data_path
    from PIL import Image, ImageDraw, ImageFont

    count, channels, height, width = pixels.shape
    fine = 8  # rendered so many times larger, then averaged
    fonts = Path(get_data_path()) / "fonts" / "ttf"
    out = np.empty((count, height, width), np.float32)
    for i in range(count):
        size = int(fine * min(height, width) * rng.uniform(0.8, 1.05))
        font = ImageFont.truetype(str(fonts / f"{FONTS[rng.integers(len(FONTS))]}.ttf"), size)
        canvas = Image.new("L", (fine * width, fine * height))
        middle = (fine * width / 2, fine * height / 2)
        ImageDraw.Draw(canvas).text(middle, LETTERS[rng.integers(len(LETTERS))], fill=255, anchor="mm", font=font)
        out[i] = np.asarray(canvas, np.float32).reshape(height, fine, width, fine).mean((1, 3))
        out[i] /= out[i].max()  # so that faintness gives none away
    return np.repeat(out[:, None], channels, axis=1)


FOREIGN: Mapping[str, Callable[[Pixels, np.random.Generator], Pixels]] = {
    "noise": noise,
    "constant": constant,
    "inverted": inverted,
    "rotated": rotated,
    "shuffled": shuffled,
    "interpolated": interpolated,
    "letters": letters,
}


def interpolated_classes(pixels: Pixels, labels: NDArray[Any], rng: np.random.Generator) -> Pixels:
    """The mean of each image and one of another class: what two images of one class give may well be an image of it.

    Images `(N, C, H, W)`, labels `(N,)`; raises `EbmtrajError` where all are of one class. Paper 001, section 4.3.
    """
    if len(np.unique(labels)) < 2:
        raise EbmtrajError("out-of-distribution sets: images of one class can't be interpolated between classes")
    partner = [rng.choice(np.flatnonzero(labels != own)) for own in labels]
    return 0.5 * (pixels + pixels[partner])


def foreign_sets(pixels: Pixels, seed: int = 0, labels: NDArray[Any] | None = None) -> dict[str, Pixels]:
    """Every set of `FOREIGN` made from held-out images `(N, C, H, W)`, as many each; the same for the same seed.

    With labels `(N,)`, also `interpolated_classes`. Raises `EbmtrajError` for fewer than 2 images.
    """
    if len(pixels) < 2:
        raise EbmtrajError(f"out-of-distribution sets: {len(pixels)} images; give at least 2")
    streams = [np.random.default_rng(stream) for stream in np.random.SeedSequence(seed).spawn(len(FOREIGN) + 1)]
    sets = {name: make(pixels, rng) for (name, make), rng in zip(FOREIGN.items(), streams, strict=False)}
    if labels is not None and len(np.unique(labels)) > 1:
        sets["interpolated_classes"] = interpolated_classes(pixels, labels, streams[-1])
    return sets


def auroc(inside: NDArray[Any], outside: NDArray[Any]) -> float:
    """Probability that an image from inside `(N,)` scores above one from outside `(M,)`; ties count half.

    Raises `EbmtrajError` where a score is not a number.
    """
    from torchmetrics.functional.classification import binary_auroc

    both = np.concatenate((inside, outside)).astype(np.float64)
    if np.isnan(both).any() or not len(inside) or not len(outside):
        raise EbmtrajError("AUROC: scores that are not numbers, or none at all; is the model's energy finite?")
    ranks = torch.from_numpy((rankdata(both) - 0.5) / len(both))  # in (0, 1), where torchmetrics leaves them as they are
    target = torch.cat((torch.ones(len(inside)), torch.zeros(len(outside)))).int()
    return float(binary_auroc(ranks, target))


def ood_table(score: Callable[[Any], Scores], inside: Any, outside: Mapping[str, Any]) -> dict[str, dict[str, float]]:
    """AUROC of every score of held-out images on every foreign set: `{"log_p": {"noise": ...}, ...}`.

    `score` is given `inside` and each set of `outside`: pixels (N, C, H, W), or whatever it makes scores of.
    """
    own = score(inside)
    table: dict[str, dict[str, float]] = {name: {} for name in own}
    for kind, images in outside.items():
        for name, values in score(images).items():
            table[name][kind] = auroc(own[name], values)
    return table
