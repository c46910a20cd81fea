"""All image sources by name: to add one, write a function that returns `RawImages` and a line here.

The contract, which one test holds every entry to: `load(root)` gives the same bytes whenever it is called, has train,
validation and test images, and raises `EbmtrajError` for files that are missing, corrupt or not what their name says.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ebmtraj.datasets import image_archives as archives
from ebmtraj.datasets.dsprites import dsprites
from ebmtraj.datasets.image_writer import RawImages
from ebmtraj.datasets.images import stratified_splits
from ebmtraj.datasets.shapes import shapes
from ebmtraj.datasets.sprites import of_size, part
from ebmtraj.errors import EbmtrajError


@dataclass(frozen=True)
class Source:
    """Where images come from; `version` counts what changes their bytes, so that an old cache is not taken for a new one."""

    load: Callable[[Path | None], RawImages]
    says: str
    version: int = 1


def digits(root: Path | None = None) -> RawImages:
    """scikit-learn's 1,797 digits, 8 x 8 with 17 grey levels, which come with the library.

    1,257 train, 180 validation and 360 test images, stratified by class.
    Alpaydin & Kaynak 1998, "Optical Recognition of Handwritten Digits".
    """
    from sklearn.datasets import load_digits

    found = load_digits()
    labels = found.target.astype(np.int64)
    return RawImages(
        source="digits",
        pixels=found.images[:, None].astype(np.uint8),
        split=stratified_splits(labels, (180 / 1797, 360 / 1797)),
        labels=labels,
        classes=archives.DIGITS,
        levels=16,
        origin={"from": "sklearn.datasets.load_digits"},
    )


def hand_frames(root: Path | None = None) -> RawImages:
    """Frames need a simulator to be rendered, so this source is only made by its command; always raises `EbmtrajError`."""
    raise EbmtrajError(
        "hand-frames are rendered from a store of rollouts; make them once: "
        "ebmtraj data images hand-frames --store hand.zarr --out frames.zarr, and give --data frames.zarr"
    )


SOURCES: Mapping[str, Source] = {
    "digits": Source(digits, "scikit-learn's digits, 8 x 8; nothing to download"),
    "mnist": Source(archives.mnist, "handwritten digits, 28 x 28; downloads 12 MB"),
    "fashion-mnist": Source(archives.fashion_mnist, "clothes, 28 x 28; downloads 31 MB"),
    "cifar10": Source(archives.cifar10, "ten kinds of things, 32 x 32, colour; downloads 170 MB"),
    "cifar100": Source(archives.cifar100, "a hundred kinds of things, 32 x 32, colour; downloads 169 MB"),
    "svhn": Source(archives.svhn, "house numbers, 32 x 32, colour; downloads 246 MB"),
    "sprites": Source(of_size(16), "shapes with known factors, 16 x 16; rendered here"),
    "sprites-28": Source(shapes, "ten shapes, moved, turned, scaled, lit and under noise, 28 x 28; rendered here"),
    "sprites-32": Source(of_size(32), "the same, 32 x 32"),
    "sprites-64": Source(of_size(64), "the same, 64 x 64"),
    "dsprites": Source(dsprites, "a draw of the official ones, 64 x 64; reads their npz where it is at hand"),
    "sprites-sizes": Source(part("sizes"), "squares of each size at the centre, 16 x 16; rendered here"),
    "sprites-places": Source(part("places"), "the smallest square at each place, 16 x 16; rendered here"),
    "sprites-seen": Source(part("seen"), "both of these, for zero-shot generalisation; rendered here"),
    "hand-frames": Source(hand_frames, "the hand and cube, rendered from a store of rollouts"),
}


def load_source(name: str, root: Path | None = None) -> RawImages:
    """The images of a source; raises `EbmtrajError` for an unknown name and as the source does."""
    if name not in SOURCES:
        raise EbmtrajError(f"unknown image source {name!r}; use one of {', '.join(SOURCES)}")
    return SOURCES[name].load(root)
