"""Repair of a trajectory store: whatever of it can be read and is what its digest says goes into a new store, bit for bit.

An episode's own digest decides, so that a damaged file costs the episodes in it and no others. What one of the columns below
`episode/` lost is found again where digests tell (lengths that are all equal, seeds of a known rule, how an episode ended).
"""

from __future__ import annotations

import copy
import re
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ebmtraj.datasets.blocks import EpisodeBlock, Indices, content_hasher
from ebmtraj.datasets.interchange.described import recipe_of
from ebmtraj.datasets.interchange.source import Progress, refuse_target, write_store
from ebmtraj.datasets.store import Store
from ebmtraj.datasets.verify import verify
from ebmtraj.datasets.zarr_files import as_url, member_array, open_group
from ebmtraj.errors import EbmtrajError

BLOCK_EPISODES = 1000  # checked, and committed to the new store, at a time


@dataclass
class Repaired:
    """What a repair kept and what it dropped; `out` is None where there was nothing to repair."""

    out: str | None
    episodes: int
    kept: int
    dropped: list[dict[str, Any]] = field(default_factory=list)  # ranges of `episodes` [first, last] and why
    notes: list[str] = field(default_factory=list)
    content_hash: str | None = None


def repair(
    path: str | Path, out: str | Path, *, overwrite: bool = False, on_progress: Progress = lambda stage, done, total: None
) -> Repaired:
    """Write the episodes of a damaged store that can be read as a new store; the damaged one is left as it is.

    Raises `EbmtrajError` where the recipe in its attributes is damaged, lengths can't be found again, nothing can be read,
    or the target exists or is the store itself.
    """
    refuse_target(out, overwrite=overwrite)
    if as_url(path) == as_url(out):
        raise EbmtrajError(f"{out} is the store that is repaired; give another path")
    notes: list[str] = []
    store = _opened(path, notes)
    if not notes and verify(path)["ok"]:
        return Repaired(None, store.episodes, store.episodes, content_hash=store.content_hash)
    reader = _Reader(store, notes)
    dropped: list[tuple[int, str]] = []
    kept = 0

    def blocks() -> Iterator[EpisodeBlock]:
        nonlocal kept
        for first in range(0, store.episodes, BLOCK_EPISODES):
            last = min(first + BLOCK_EPISODES, store.episodes)
            for block in reader.sound(first, last, dropped):
                kept += len(block.length)
                yield block
            on_progress("repairing", last, store.episodes)

    first = next(iter(blocks()), None)  # before anything is made or replaced
    if first is None:
        why = dropped[0][1] if dropped else "it holds no episodes"
        raise EbmtrajError(f"store {store.path}: no episode can be read ({why}); nothing was written")
    dropped, kept = [], 0
    recipe = recipe_of(store)
    said = {"content_hash": store.content_hash, "episodes": store.episodes}
    recipe = replace(recipe, env_attributes={**recipe.env_attributes, "repaired_from": said})
    made = write_store(out, recipe, blocks(), overwrite=overwrite)
    if dropped:
        notes.append("train, validation and test are drawn anew: an episode may have changed its split")
    ranges = []
    for (why, _), group in groupby(enumerate(dropped), key=lambda item: (item[1][1], item[1][0] - item[0])):
        numbers = [number for _, (number, _) in group]
        ranges.append({"episodes": [numbers[0], numbers[-1]], "why": why})
    return Repaired(str(out), store.episodes, kept, ranges, reader.notes(), made.content_hash)


def _opened(path: str | Path, notes: list[str]) -> Store:
    """The store, with attributes that its content hash vouches for where their seal does not hold."""
    store = Store.open(path, believe=True)
    if store.attributes.get("seal", {}) is not None:
        return store
    group = open_group(store.path, "r")
    assert group is not None
    counts = {store.episodes, member_array(group, store.path, "episode/digest").shape[0]}
    for episodes in sorted(counts, reverse=True):
        attributes = copy.deepcopy({key: value for key, value in store.attributes.items() if key != "seal"})
        attributes["committed"]["episodes"] = episodes
        found = Store(store.path, group, attributes)
        try:
            digest = content_hasher(attributes)
            digest.update(found.episode_array("digest").tobytes())
            if digest.hexdigest() != store.content_hash:
                continue
            attributes["committed"]["action_rows"] = int(found.episode_array("length").sum())
        except EbmtrajError:
            continue
        notes.append("zarr.json was not what its seal says; the recipe in it is what the content hash says")
        if attributes["split"].get("seed") != 0:
            attributes["split"]["seed"] = 0
            notes.append("the seed of the splits may have been damaged: 0 is taken")
        return Store(store.path, group, attributes)
    raise EbmtrajError(
        f"store {store.path}: the recipe in zarr.json is damaged, and nothing else says what its numbers are; restore it"
    )


class _Reader:
    """Reads episodes and keeps those that are what their digest says."""

    def __init__(self, store: Store, notes: list[str]) -> None:
        self._store, self._plain, self._notes = store, store.unsealed(), notes
        self._lost = {"seed": 0, "terminated": 0}
        columns = {name: self._column(name) for name in ("length", "seed", "terminated", "digest")}
        self._digests, self._seeds, self._ended = columns["digest"], columns["seed"], columns["terminated"]
        lengths = columns["length"]
        if lengths is None or lengths.min(initial=1) < 1 or int(lengths.sum()) != store.transitions:
            lengths = self._equal_lengths()
        for each in (self._store, self._plain):  # in the place of the cached property
            each.__dict__["lengths"] = lengths

    def sound(self, first: int, last: int, dropped: list[tuple[int, str]]) -> Iterator[EpisodeBlock]:
        """The episodes from `first` to `last` - 1 that can be kept; the others are added to `dropped` with the reason."""
        if not (self._seeds is None or self._ended is None or self._digests is None):
            try:
                block = self._store.read_block(first, last)
                if (block.digests() == self._digests[first:last]).all():
                    yield block
                    return
            except EbmtrajError:
                pass
        for episode in range(first, last):
            try:
                yield self._one(episode)
            except EbmtrajError as error:
                why = str(error).removeprefix(f"store {self._store.path}: ")
                dropped.append((episode, re.sub(r", rows \d+ to \d+", "", why)))

    def notes(self) -> list[str]:
        """What was damaged, and what was lost without an episode being lost."""
        lost = {
            "seed": "is lost: their number in the damaged store stands for it",
            "terminated": "is lost: they count as not terminated",
        }
        return [*self._notes, *(f"{name} of {n} episodes {lost[name]}" for name, n in self._lost.items() if n)]

    def _column(self, name: str) -> NDArray[Any] | None:
        try:
            return self._store.episode_array(name)
        except EbmtrajError as error:
            self._notes.append(str(error).removeprefix(f"store {self._store.path}: "))
            return None

    def _equal_lengths(self) -> Indices:
        store = self._store
        length, rest = divmod(store.transitions, max(1, store.episodes))
        if rest or length < 1 or self._digests is None:
            raise EbmtrajError(
                f"store {store.path}: episode/length is damaged, and episodes are not all of one length; restore that file"
            )
        return np.full(store.episodes, length, np.int64)

    def _one(self, episode: int) -> EpisodeBlock:
        """One episode; raises `EbmtrajError` where it can't be read or is not what its digest says."""
        state, action = (self._plain.rows(name, episode, episode + 1) for name in ("state", "action"))
        length = self._store.lengths[episode : episode + 1]
        for seed, ended in self._guesses(episode):
            block = EpisodeBlock(state, action, length, np.array([seed], np.uint64), np.array([ended]))
            if self._digests is not None and (block.digests()[0] == self._digests[episode]).all():
                return block
        if self._digests is not None and self._seeds is not None and self._ended is not None:
            raise EbmtrajError("content differs from its digest")
        if not self._store.attributes.get("seal"):
            raise EbmtrajError("nothing is left that tells whether it is sound")
        for name in ("state", "action"):  # these files' own seals decide; raises where they don't hold
            self._store.rows(name, episode, episode + 1)
        self._lost["seed"] += self._seeds is None
        self._lost["terminated"] += self._ended is None
        return block  # the last guess

    def _guesses(self, episode: int) -> Iterator[tuple[int, bool]]:
        """The seed and the end that an episode has, or may have."""
        seeds = [episode] if self._seeds is None else [int(self._seeds[episode])]
        if self._seeds is None:  # as `collect` draws it
            sequence = np.random.SeedSequence(self._store.attributes.get("seed") or 0, spawn_key=(episode,))
            seeds.insert(0, int(sequence.generate_state(1, np.uint64)[0]))
        for seed in seeds:
            for ended in (True, False) if self._ended is None else (bool(self._ended[episode]),):
                yield seed, ended
