"""Images of a file, from whatever made them, measured against a store under the protocol of the tables."""

from __future__ import annotations

import zipfile
from pathlib import Path
from typing import Any

import numpy as np

from ebmtraj.datasets.blocks import SPLITS
from ebmtraj.datasets.bounds import refuse_npz
from ebmtraj.datasets.images import ImageStore
from ebmtraj.errors import EbmtrajError
from ebmtraj.evaluation.arrays import Array
from ebmtraj.evaluation.image_features import judge_facts, judge_of
from ebmtraj.evaluation.image_scores import distance_scores, label_scores, memory_scores, same_count
from ebmtraj.evaluation.onnx_features import FeatureNetwork


def read_images(path: Path, store: ImageStore) -> tuple[Array, Array | None]:
    """`pixels` (N, C, H, W) in [0, 1] and `labels` (N,), where there are any, of an npz; nothing is unpickled.

    Raises `EbmtrajError` where the file is damaged, or images or labels do not fit the store.
    """
    refuse_npz(path)
    try:
        with np.load(path, allow_pickle=False) as archive:
            pixels = archive["pixels"]
            labels = archive["labels"] if "labels" in archive.files else None
    except KeyError:
        raise EbmtrajError(f"{path} has no array `pixels` (N, C, H, W); `ebmtraj sample` writes such a file") from None
    except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
        raise EbmtrajError(f"{path} can't be read as an npz of plain arrays: {' '.join(str(error).split())[:200]}") from None
    if pixels.ndim != 4 or tuple(pixels.shape[1:]) != store.shape:
        raise EbmtrajError(f"{path}: pixels have shape {pixels.shape}, images of {store.path} (N, {store.shape})")
    if pixels.dtype.kind not in "fiu" or not np.isfinite(pixels).all() or pixels.min() < 0 or pixels.max() > 1:
        raise EbmtrajError(f"{path}: pixels must be numbers from 0 to 1")
    if labels is not None:
        fits = labels.shape == (len(pixels),) and labels.dtype.kind in "iu" and len(store.classes) > 0
        if not fits or labels.min() < 0 or labels.max() >= len(store.classes):
            raise EbmtrajError(f"{path}: labels must be one whole number from 0 to {len(store.classes) - 1} an image")
    return np.asarray(pixels, np.float32), labels


def score_images(
    path: Path, store: ImageStore, *, split: str = "test", features: Path | None = None, seed: int = 0
) -> dict[str, Any]:
    """Distances to a split at equal counts beside the floor of real images, classes, spread, copies; plain JSON values.

    The floor is what as many training images score. `features`: an ONNX network that is used beside the project's own.
    Raises `EbmtrajError` as `read_images`, for an unknown split and for a network that does not fit.
    """
    if split not in SPLITS:
        raise EbmtrajError(f"--split {split}: use one of {', '.join(SPLITS)}")
    network = None if features is None else FeatureNetwork(features)
    pixels, asked = read_images(path, store)
    real, train = store.read(split), store.read("train")
    judge = judge_of(store)
    ours, judged = judge.judge(pixels)
    theirs, _ = judge.judge(real.pixels)
    count = min(len(ours), len(theirs), len(train.pixels))
    floor = distance_scores(judge.judge(train.pixels)[0], theirs, count, seed)
    found: dict[str, Any] = {
        "images": str(path),
        "store": store.content_hash,
        "split": split,
        "seed": seed,
        **distance_scores(ours, theirs, count, seed),
        "floor": floor,
        "judge": judge_facts(judge, store),
        "memory": memory_scores(pixels, train.pixels, real.pixels),
    }
    if real.labels is not None:
        found["classes"] = label_scores(pixels, judged, real.pixels, np.asarray(real.labels), store.classes, asked)
    if network is not None:
        known, held_out = same_count(train.pixels, real.pixels, count, seed)
        drawn, _ = same_count(pixels, real.pixels, count, seed)
        theirs = network.features(held_out)
        found["features"] = {
            **distance_scores(network.features(drawn), theirs, count, seed),
            "floor": distance_scores(network.features(known), theirs, count, seed),
            "network": network.path.name,
            "digest": network.digest,
            "size": theirs.shape[1],
        }
    return found
