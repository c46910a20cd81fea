"""All image sources by name: to add one, write a function that returns `RawImages` and a line here.

The contract, which one test holds every entry to: `load(root)` gives the same bytes whenever it is called, has train,
validation and test images, and raises `EbmtrajError` for files that are missing, corrupt or not what their name says.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ebmtraj.datasets.image_writer import RawImages
from ebmtraj.datasets.images import stratified_splits
from ebmtraj.errors import EbmtrajError

DIGITS = tuple(str(digit) for digit in range(10))


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
        classes=DIGITS,
        levels=16,
        origin={"from": "sklearn.datasets.load_digits"},
    )


SOURCES: Mapping[str, Source] = {
    "digits": Source(digits, "scikit-learn's digits, 8 x 8; nothing to download"),
}


def load_source(name: str, root: Path | None = None) -> RawImages:
    """The images of a source; raises `EbmtrajError` for an unknown name and as the source does."""
    if name not in SOURCES:
        raise EbmtrajError(f"unknown image source {name!r}; use one of {', '.join(SOURCES)}")
    return SOURCES[name].load(root)
