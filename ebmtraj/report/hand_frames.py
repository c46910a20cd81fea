"""Frames of a store of rollouts as an image store: what a model of pictures learns of the same motion."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ebmtraj.datasets.blocks import SPLITS, column_name
from ebmtraj.datasets.image_writer import RawImages, check_image_target, write_images
from ebmtraj.datasets.images import ImageStore
from ebmtraj.datasets.store import Store
from ebmtraj.envs.pictures import make_picturer
from ebmtraj.errors import EbmtrajError
from ebmtraj.fields import total_size

SIZES = (32, 64)
_FINE = 4  # rendered larger and averaged, which smooths edges


def hand_frames(
    store: str | Path,
    out: str | Path,
    *,
    size: int = 32,
    count: int = 5000,
    seed: int = 0,
    overwrite: bool = False,
    on_progress: Callable[[int, int], None] = lambda done, total: None,
) -> ImageStore:
    """Render `count` states, drawn over all episodes, and keep the states as factors; splits are those of the episodes.

    Raises `EbmtrajError` for a store whose states can't be drawn, too few states, a size other than 32 or 64, where OpenGL
    does not work, and as `write_images`.
    """
    source = Store.open(store)
    if size not in SIZES:
        raise EbmtrajError(f"--size {size}: frames are rendered at {' or '.join(map(str, SIZES))} pixels")
    check_image_target(out, overwrite=overwrite)
    rows = int(source.state_offsets[-1])
    if not 10 <= count <= rows:
        raise EbmtrajError(f"--count {count}: store {store} has {rows} states; draw between 10 and that many")
    drawn = np.sort(np.random.default_rng(seed).choice(rows, count, replace=False))
    states = np.concatenate(list(_rows(source, drawn)))
    episode = np.searchsorted(source.state_offsets, drawn, side="right") - 1
    split = source.splits[episode]
    if len(np.unique(split)) < len(SPLITS):
        raise EbmtrajError(f"store {store}: the drawn states miss a split; draw more with --count")
    env, fields = source.attributes, source.state_fields
    pixels = np.empty((count, 3, size, size), np.uint8)
    with make_picturer(str(env["env"]), dict(env.get("env_kwargs") or {}), (size * _FINE, size * _FINE)) as picturer:
        for number, state in enumerate(states):
            frame = picturer.frame(state).reshape(size, _FINE, size, _FINE, 3).mean((1, 3))
            pixels[number] = np.round(frame).astype(np.uint8).transpose(2, 0, 1)
            on_progress(number + 1, count)
    raw = RawImages(
        source="hand-frames" if size == SIZES[0] else f"hand-frames-{size}",
        pixels=pixels,
        split=split,
        factors=states,
        factor_names=tuple(column_name(fields, i) for i in range(total_size(fields))),
        origin={"store": source.content_hash, "env": env["env"], "seed": seed},
    )
    return write_images(out, raw, overwrite=overwrite)


def _rows(store: Store, drawn: NDArray[np.int64]) -> Iterator[NDArray[np.float32]]:
    """These states, ascending, read a bounded number of rows at a time."""
    for first, last in store.spans():
        start, stop = int(store.state_offsets[first]), int(store.state_offsets[last])
        wanted = drawn[(drawn >= start) & (drawn < stop)]
        if len(wanted):
            yield store.rows("state", first, last)[wanted - start]
