"""Verification of a trajectory store: every digest is recomputed, and what is damaged is named."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ebmtraj.datasets.blocks import Indices, content_hasher
from ebmtraj.datasets.store import Store
from ebmtraj.datasets.zarr_files import EPISODE_ARRAYS
from ebmtraj.errors import EbmtrajError


def verify(path: str | Path) -> dict[str, Any]:
    """Recompute every digest, a bounded number of rows at a time.

    Returns `ok`, `complete`, `content_hash` (recomputed; None where something is wrong) and `bad_blocks`: for
    each the `block`, its bad `episodes` [first, last], the `array` and the `reason`. Raises `EbmtrajError` where the
    attributes can't be read.
    """
    store = Store.open(path, believe=True)
    digest = content_hasher(store.attributes)
    blocks, expected, bad = _episode_columns(store)
    if store.attributes.get("seal", {}) is None:
        bad.append(_bad(None, np.arange(0), "attributes", "zarr.json is not what its seal says: damaged or edited"))
    if not bad:
        for first, last in _block_spans(store, blocks):
            digests, unreadable, fault = _digests(store, first, last, blocks)
            bad += unreadable
            wrong = first + np.flatnonzero((digests != expected[first:last]).any(axis=1))
            for block in np.setdiff1d(blocks[wrong], [entry["block"] for entry in unreadable]):
                members = wrong[blocks[wrong] == block]
                bad.append(_bad(int(block), members, "state, action or episode", "content differs from its digest"))
            if fault and not len(wrong):  # the right numbers in a file that was written anew by something else
                bad.append(_bad(None, np.arange(first, last), "state or action", fault))
            digest.update(digests.tobytes())
    content_hash = digest.hexdigest()
    if not bad and store.complete and content_hash != store.content_hash:
        reason = "the recipe in the attributes is not the one that was hashed"
        bad.append({"block": None, "episodes": None, "array": "attributes", "reason": reason})
    found = content_hash if not bad else None
    return {"ok": not bad, "complete": store.complete, "content_hash": found, "bad_blocks": bad}


def _episode_columns(store: Store) -> tuple[Indices, NDArray[np.uint8], list[dict[str, Any]]]:
    """Block index and stored digest of each episode, and what of the arrays below `episode/` is damaged."""
    everything = np.arange(store.episodes)
    columns: dict[str, NDArray[Any]] = {"block": everything, "digest": np.empty((0, 32), np.uint8)}
    bad: list[dict[str, Any]] = []
    for name in EPISODE_ARRAYS if store.episodes else ():  # killed before its first block, a store may not have its arrays
        try:
            columns[name] = store.lengths if name == "length" else store.episode_array(name)
        except EbmtrajError as error:
            bad.append(_bad(None, everything, f"episode/{name}", str(error)))
    if (np.diff(columns["block"], prepend=0) < 0).any():
        bad.append(_bad(None, everything, "episode/block", "damaged, or its shard is missing"))
    return columns["block"], columns["digest"], bad


def _block_spans(store: Store, blocks: Indices) -> Iterator[tuple[int, int]]:
    """Ranges of episodes of about `SPAN_ROWS` rows that end where a block ends."""
    first = 0
    for _, last in store.spans():
        end = int(np.searchsorted(blocks, blocks[last - 1], side="right"))
        if end > first:
            yield first, end
            first = end


def _digests(
    store: Store, first: int, last: int, blocks: Indices
) -> tuple[NDArray[np.uint8], list[dict[str, Any]], str | None]:
    """(last - first, 32) recomputed digests, zeros where a block can't be read; those blocks; and what readers are told."""
    try:
        return store.read_block(first, last).digests(), [], None
    except EbmtrajError as error:
        told = str(error)
    store = store.unsealed()
    digests, bad = np.zeros((last - first, 32), np.uint8), []
    for block in np.unique(blocks[first:last]):  # find out which
        members = first + np.flatnonzero(blocks[first:last] == block)
        low, high = int(members[0]), int(members[-1]) + 1
        faults = {name: fault for name in ("state", "action") if (fault := _fault(store, name, low, high))}
        for name, fault in faults.items():
            bad.append(_bad(int(block), members, name, fault))
        if not faults:
            digests[low - first : high - first] = store.read_block(low, high).digests()
    return digests, bad, told


def _fault(store: Store, name: str, first: int, last: int) -> str | None:
    try:
        store.rows(name, first, last)
    except EbmtrajError as error:
        return str(error)
    return None


def _bad(block: int | None, episodes: Indices, array: str, reason: str) -> dict[str, Any]:
    where = [int(episodes[0]), int(episodes[-1])] if len(episodes) else None
    return {"block": block, "episodes": where, "array": array, "reason": reason}
