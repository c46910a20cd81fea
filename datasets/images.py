"""The image store: pixels, labels and splits of one source in a zarr (format 3) group, and the sources by name.

`pixels` (N, C, H, W) holds whole numbers from 0 to `levels`, so that nothing is lost; readers get them as float32 in [0, 1].
"""

from __future__ import annotations

import difflib
import hashlib
import itertools
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import zarr
from numpy.typing import NDArray

from ebmtraj.datasets.blocks import SPLITS, Floats, Indices
from ebmtraj.datasets.bounds import refuse_array, stored_bytes
from ebmtraj.datasets.zarr_files import (
    format_of,
    member_array,
    occupied,
    open_group,
    plain,
    reason_of,
    seal_holds,
)
from ebmtraj.errors import EbmtrajError
from ebmtraj.seal import of_arrays

FORMAT, SCHEMA = "ebmtraj-images", 1
ARRAYS = ("pixels", "split", "label", "factors")  # the last two where the source has them
IDENTITY = ("schema", "source", "levels", "classes", "factor_names", "origin")  # attributes that the content hash covers
CACHE = "EBMTRAJ_DATA"  # the environment variable that names the folder of named sources


@dataclass(frozen=True)
class Images:
    """Images of one split."""

    pixels: Floats  # (N, C, H, W) in [0, 1]
    labels: Indices | None  # (N,) index into the store's classes; None where the source has no labels
    index: Indices  # (N,) where they stand in the store
    factors: Floats | None = None  # (N, F) what each was rendered from, where it was

    def __len__(self) -> int:
        return len(self.pixels)


class ImageStore:
    """A reader of an image store."""

    def __init__(self, path: str, group: zarr.Group, attributes: Mapping[str, Any]) -> None:
        """See `open`; raises `EbmtrajError` where attributes are damaged."""
        self.path, self.attributes = path, dict(attributes)
        self._group = group
        try:
            self.name: str = attributes["source"]
            self.classes: tuple[str, ...] = tuple(attributes["classes"])
            self.factor_names: tuple[str, ...] = tuple(attributes["factor_names"])
            self.levels: int = attributes["levels"]
            self.content_hash: str = attributes["content_hash"]
            self.shape: tuple[int, int, int] = tuple(attributes["shape"])  # (C, H, W)
            self._seals: dict[str, str] = (attributes.get("seal") or {}).get("arrays", {})  # sha256 of each array
        except (KeyError, TypeError) as error:
            raise EbmtrajError(f"image store {path}: attributes are damaged ({reason_of(error)}); make it again") from None

    @classmethod
    def open(cls, path: str | Path, *, believe: bool = False) -> ImageStore:
        """Open a store for reading; with `believe`, although its attributes are not what their seal says.

        Raises `EbmtrajError` where there is none, it is not an image store of ours, or its attributes are damaged.
        """
        text = str(Path(plain(path)).expanduser())
        group = open_group(text, "r")
        if group is None:
            what = "is not an image store" if occupied(text) else "does not exist"
            raise EbmtrajError(f"image store {text} {what}; make one: ebmtraj data images digits --out {text}")
        if format_of(text, group) != FORMAT:
            raise EbmtrajError(f"{text} is a zarr group, but not an image store; check the path")
        attributes: dict[str, Any] = group.attrs.asdict()
        if attributes.get("schema") != SCHEMA:
            raise EbmtrajError(
                f"image store {text} has schema {attributes.get('schema')}, this ebmtraj reads {SCHEMA}; make it again"
            )
        if not seal_holds(attributes):
            if not believe:
                raise EbmtrajError(
                    f"image store {text}: attributes are damaged or were edited: zarr.json is not what its seal says; "
                    "restore it, or make the store again"
                )
            attributes["seal"] = None
        return cls(text, group, attributes)

    def read(self, split: str) -> Images:
        """Images of "train", "validation" or "test"; raises `EbmtrajError` for another one or a damaged array."""
        raw, labels, index, factors = self.read_raw(split)
        pixels = raw.astype(np.float32)
        pixels /= np.float32(self.levels)
        return Images(pixels, labels, index, factors)

    def read_raw(self, split: str) -> tuple[NDArray[np.uint8], Indices | None, Indices, Floats | None]:
        """Pixels `(N, C, H, W)` as stored, whole numbers from 0 to `levels`; labels, indices `(N,)`, factors `(N, F)`.

        Raises `EbmtrajError` for an unknown or empty split, or a damaged array.
        """
        if split not in SPLITS:
            raise EbmtrajError(f"unknown split {split!r}; use one of {', '.join(SPLITS)}")
        index = np.flatnonzero(self.array("split") == SPLITS.index(split)).astype(np.int64)
        if not len(index):
            raise EbmtrajError(f"image store {self.path} has no images in its {split} split")
        labels = self.array("label")[index] if self.classes else None
        factors = self.array("factors")[index] if self.factor_names else None
        return self.array("pixels")[index], labels, index, factors

    def array(self, name: str) -> NDArray[Any]:
        """All of one array, in its shape as stored; raises `EbmtrajError` where it is missing or damaged."""
        array = member_array(self._group, self.path, name)
        refuse_array(f"image store {self.path}: array {name}", array, stored_bytes(Path(self.path), self.path))
        try:
            if array.nchunks_initialized < array.nchunks:  # zarr would read zeros
                missing = f"{array.nchunks - array.nchunks_initialized} of {array.nchunks} chunks"
                raise EbmtrajError(f"image store {self.path}: {missing} of array {name} are missing; make it again")
            values = np.asarray(array[:])
        except EbmtrajError:
            raise
        except Exception as error:  # a damaged chunk may fail in zarr, a codec or the file system
            raise EbmtrajError(
                f"image store {self.path}: array {name} can't be read ({reason_of(error)}); it is damaged: make it again"
            ) from None
        if self._seals.get(name, digest := of_arrays([(name, values)])) != digest:
            raise EbmtrajError(
                f"image store {self.path}: array {name} is not the one that was written: {name}/c or {name}/zarr.json is "
                "damaged or of another store; restore it, or make the store again"
            )
        return values

    def labelled_by(self, names: Sequence[str]) -> ImageStore:
        """The same images with factors of theirs for labels: a class for each combination of the values that occur.

        Classes are named by their values, as "0.5" or "0.5,0.25", and a factor that is the store's class by its names.
        Raises `EbmtrajError` for a factor that the store does not have.
        """
        return FactorStore(self, tuple(names))

    def info(self) -> dict[str, Any]:
        """A summary in plain JSON values."""
        held = {name: self.array(name) for name in array_names(self.attributes)}  # all: what is said is of these very images
        split, labels = held["split"], held.get("label")
        return {
            "path": self.path,
            "source": self.name,
            "images": len(split),
            "shape": list(self.shape),
            "levels": self.levels,
            "splits": {name: int((split == i).sum()) for i, name in enumerate(SPLITS)},
            "classes": {name: int((labels == i).sum()) for i, name in enumerate(self.classes)} if labels is not None else {},
            "factor_names": list(self.factor_names),
            "content_hash": self.content_hash,
            "origin": self.attributes.get("origin"),
        }

    def verify(self) -> dict[str, Any]:
        """Recompute the content hash: `ok`, `content_hash` (None where something is wrong) and `bad_blocks`."""
        bad: list[dict[str, Any]] = []
        if self.attributes.get("seal", {}) is None:
            reason = "zarr.json is not what its seal says: damaged or edited"
            bad.append({"block": None, "images": None, "array": "attributes", "reason": reason})
        arrays: dict[str, NDArray[Any]] = {}
        for name in array_names(self.attributes):
            try:
                arrays[name] = self.array(name)
            except EbmtrajError as error:
                bad.append({"block": None, "images": None, "array": name, "reason": str(error)})
        found = None if bad else content_hash(self.attributes, arrays)
        if found is not None and found != self.content_hash:
            bad.append({"block": None, "images": None, "array": "any", "reason": "content differs from its hash"})
        return {"ok": not bad, "content_hash": None if bad else found, "bad_blocks": bad}


class FactorStore(ImageStore):
    """An image store whose labels are factors of its images."""

    def __init__(self, store: ImageStore, names: tuple[str, ...]) -> None:
        """Raises `EbmtrajError` for a factor that the store has not, and for none or one named twice."""
        super().__init__(store.path, store._group, store.attributes)
        for name in names:
            if name not in store.factor_names:
                close = difflib.get_close_matches(name, store.factor_names, n=1)
                has = f"it has {', '.join(store.factor_names)}" if store.factor_names else "it has none"
                raise EbmtrajError(
                    f"image store {store.path}: unknown factor {name!r}; " + (f"did you mean {close[0]}?" if close else has)
                )
        if not names or len(set(names)) < len(names):
            raise EbmtrajError(f"condition {','.join(names)!r}: name each factor once, such as scale or x,y")
        self._columns = [store.factor_names.index(name) for name in names]
        factors = store.array("factors")[:, self._columns].astype(np.float64).round(4)
        self._values = [np.unique(factors[:, i]) for i in range(len(names))]
        said = [
            list(store.classes) if self._is_class(store, i) else [f"{value:g}" for value in self._values[i]]
            for i in range(len(names))
        ]
        self.classes = tuple(",".join(each) for each in itertools.product(*said))

    def _is_class(self, store: ImageStore, i: int) -> bool:
        if not store.classes or not np.array_equal(self._values[i], np.arange(len(store.classes))):
            return False
        return bool(np.array_equal(store.array("factors")[:, self._columns[i]], store.array("label")))

    def read_raw(self, split: str) -> tuple[NDArray[np.uint8], Indices | None, Indices, Floats | None]:
        """As every store, with the factors' classes for labels."""
        raw, _, index, factors = super().read_raw(split)
        assert factors is not None
        chosen = factors[:, self._columns].astype(np.float64).round(4)
        places = [np.searchsorted(values, chosen[:, i]) for i, values in enumerate(self._values)]
        labels = np.ravel_multi_index(places, [len(values) for values in self._values]).astype(np.int64)
        return raw, labels, index, factors


def open_images(data: str | Path, root: Path | None = None) -> ImageStore:
    """The image store of a source's name (see `ebmtraj.datasets.image_sources.SOURCES`), or the one at a path.

    A named source is written once to the cache folder: `root`, $EBMTRAJ_DATA or ~/.cache/ebmtraj. Files of a source that has
    to be downloaded are looked for in `root` first. Raises `EbmtrajError` for an unknown name and as the source does.
    """
    from ebmtraj.datasets.image_sources import SOURCES, load_source
    from ebmtraj.datasets.image_writer import write_images

    text = str(data)
    if text not in SOURCES:
        if not occupied(str(Path(plain(text)).expanduser())):
            raise EbmtrajError(f"image data {text!r}: neither a store nor a source; sources are {', '.join(SOURCES)}")
        return ImageStore.open(text)
    path = cache_folder(root) / f"{text}-{SOURCES[text].version}.zarr"
    if not path.exists():
        write_images(path, load_source(text, root))
    return ImageStore.open(path)


def cache_folder(root: Path | None = None) -> Path:
    """Where named sources and what was downloaded for them lie."""
    given = root or os.environ.get(CACHE)
    return Path(given).expanduser() if given else Path.home() / ".cache" / "ebmtraj"


def array_names(attributes: Mapping[str, Any]) -> tuple[str, ...]:
    """The arrays that a store with these attributes has."""
    return (*ARRAYS[:2], *(["label"] if attributes["classes"] else []), *(["factors"] if attributes["factor_names"] else []))


def content_hash(attributes: Mapping[str, Any], arrays: Mapping[str, NDArray[Any]]) -> str:
    """sha256 of the recipe as JSON, then of each array's name, shape and little-endian bytes; arrays may have any shape."""
    identity = {key: attributes.get(key) for key in IDENTITY}
    digest = hashlib.sha256(json.dumps(identity, sort_keys=True, separators=(",", ":")).encode())
    for name in array_names(attributes):
        values = np.ascontiguousarray(arrays[name])
        digest.update(f"{name} {values.shape}".encode())
        digest.update(values.astype(values.dtype.newbyteorder("<"), copy=False).data)
    return digest.hexdigest()


def stratified_splits(labels: Indices, shares: tuple[float, float], seed: int = 0) -> NDArray[np.int8]:
    """(N,) index into `SPLITS`: of each class the given shares go to validation and test, ordered by sha256('{seed}/{i}').

    Counts add up to the shares of the whole: fractions of an image go to the classes with the largest remainders.
    """
    splits = np.zeros(len(labels), np.int8)
    counts = np.bincount(labels)
    wanted = {kind: _shared_out(counts, share) for kind, share in ((2, shares[1]), (1, shares[0]))}
    for label in np.flatnonzero(counts):
        members = np.flatnonzero(labels == label).tolist()
        members.sort(key=lambda i: hashlib.sha256(f"{seed}/{i}".encode()).digest())
        start = 0
        for kind, number in wanted.items():
            splits[members[start : start + number[label]]] = kind
            start += number[label]
    return splits


def _shared_out(counts: NDArray[Any], share: float) -> NDArray[np.int64]:
    exact = counts * share
    whole = np.floor(exact).astype(np.int64)
    left = round(float(exact.sum())) - int(whole.sum())
    whole[np.argsort(whole - exact, kind="stable")[:left]] += 1
    return whole


def is_image_store(path: str | Path) -> bool:
    """Whether a readable image store stands at `path`."""
    text = str(path)
    if "://" in plain(text) or not Path(plain(text)).expanduser().is_dir():
        return False
    group = open_group(str(Path(plain(text)).expanduser()), "r")
    return group is not None and format_of(text, group) == FORMAT
