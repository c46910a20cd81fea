"""What every import, merge and split shares: episodes from somewhere go, checked, block by block into a store.

A source is read twice: once to check every number, so that nothing is made or replaced for the sake of bad data, and once
to write it. Killed while writing, it leaves a store that `resume` completes to the same bits.
"""

from __future__ import annotations

import importlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ebmtraj.datasets.blocks import EpisodeBlock, Floats, StoreRecipe
from ebmtraj.datasets.store import Store
from ebmtraj.datasets.writer import StoreWriter
from ebmtraj.datasets.zarr_files import as_url, is_vacant, known_scheme, plain
from ebmtraj.errors import EbmtrajError
from ebmtraj.fields import Field, total_size
from ebmtraj.locks import only_writer

BLOCK_ROWS = 131_072  # state rows that are held, and committed, at a time
CARRIED = "ebmtraj"  # the key under which other formats carry what they have no place for
Progress = Callable[[str, int, int], None]  # what is being done, episodes done, episodes in all


class RawEpisode(NamedTuple):
    """One episode as the source has it: not yet checked."""

    state: NDArray[Any]  # (T + 1, S)
    action: NDArray[Any]  # (T, A)
    seed: int | None
    terminated: bool


class Source(ABC):
    """Episodes in some format; `recipe` says of what, `notes` what a user should know of how they were read.

    Made from a path and what is said of it (`Given`); raises `EbmtrajError` where it can't be read, or does not fit.
    """

    name: str  # as the user gave it
    total: int  # episodes that it holds
    recipe: StoreRecipe
    notes: list[str]

    @abstractmethod
    def episodes(self) -> Iterator[RawEpisode]:
        """All episodes in their order; each call starts anew. Raises `EbmtrajError` where they can't be read."""


@dataclass(frozen=True)
class Transferred:
    """What a store holds after an import, a merge or a split."""

    path: str
    episodes: int
    transitions: int
    terminated: int
    content_hash: str
    notes: tuple[str, ...] = ()


def import_source(
    source: Source,
    path: str | Path,
    *,
    overwrite: bool = False,
    resume: bool = False,
    on_progress: Progress = lambda stage, done, total: None,
) -> Transferred:
    """Check all of a source, then write it as the store at `path`.

    Raises `EbmtrajError` where a shape does not fit, a number is not finite, no episode has a transition, or the target
    exists and neither `overwrite` nor `resume` is given; the target is touched only after every check.
    """
    refuse_target(path, overwrite=overwrite, resume=resume)
    checked = _Checked(source)
    for _ in checked.blocks():
        on_progress("checking", checked.seen, source.total)
    if not checked.kept:
        raise EbmtrajError(f"{source.name} holds no episode with a transition; nothing was imported")
    notes = [*source.notes, *checked.notes()]
    blocks = _reported(checked.blocks(), lambda done: on_progress("writing", done, checked.kept))
    store = write_store(path, source.recipe, blocks, overwrite=overwrite, resume=resume)
    return transferred(store, notes)


def write_store(
    path: str | Path, recipe: StoreRecipe, blocks: Iterator[EpisodeBlock], *, overwrite: bool = False, resume: bool = False
) -> Store:
    """Write blocks of episodes as a finished store; with `resume`, those that are stored already are compared and skipped.

    Raises `EbmtrajError` where the target exists, can't be written, or holds other episodes than the source begins with.
    """
    with only_writer(as_url(path), "store"):
        refuse_target(path, overwrite=overwrite, resume=resume)
        return _written(plain(path), recipe, blocks, overwrite, resume)


def _written(path: str, recipe: StoreRecipe, blocks: Iterator[EpisodeBlock], overwrite: bool, resume: bool) -> Store:
    if resume and not is_vacant(path):
        writer = StoreWriter.resume(path, recipe)
    else:
        writer = StoreWriter.create(path, recipe, overwrite=overwrite)
    stored = Store.open(path).episode_array("digest") if writer.episodes else np.empty((0, 32), np.uint8)
    seen = 0
    for block in blocks:
        count = len(block.length)
        known = min(max(len(stored) - seen, 0), count)
        if known and (part(block, 0, known).digests() != stored[seen : seen + known]).any():
            raise EbmtrajError(f"store {path} holds other episodes than this source; import into another path")
        if known < count:
            writer.append_block(part(block, known, count))
        seen += count
    if seen < len(stored):
        raise EbmtrajError(f"store {path} holds {len(stored)} episodes, this source only {seen}; use another path")
    return writer.finish()


def transferred(store: Store, notes: Sequence[str] = ()) -> Transferred:
    """The summary of a finished store."""
    terminated = int(store.terminated.sum())
    return Transferred(store.path, store.episodes, store.transitions, terminated, store.content_hash or "", tuple(notes))


def refuse_target(path: str | Path, *, overwrite: bool, resume: bool = False) -> None:
    """Raise `EbmtrajError` where a target is of an unknown kind, or exists and may not be replaced."""
    if overwrite and resume:
        raise EbmtrajError("choose one of --resume and --overwrite: the first goes on with a store, the second replaces it")
    as_url(path)
    if not (overwrite or resume) and not is_vacant(path):
        raise EbmtrajError(f"{path} exists; give another path, --overwrite to replace a store or --resume to go on with it")


def local_source(path: str, what: str) -> Path:
    """The local path of a source of a kind that can't be read from elsewhere; raises `EbmtrajError` for a URL."""
    known_scheme(plain(path))
    if "://" in plain(path):
        raise EbmtrajError(f"{path} is a URL; give {what} on a local path: copy it to one first")
    if not plain(path).strip():
        raise EbmtrajError(f"the path of the source is empty; give {what}")
    return Path(plain(path)).expanduser()


def finished(path: str | Path) -> Store:
    """Open a store that is complete; raises `EbmtrajError` where it is not."""
    store = Store.open(path)
    if not store.complete or store.content_hash is None:
        raise EbmtrajError(f"store {store.path} is not finished; go on with the command that made it and --resume")
    return store


def require(module: str, extra: str) -> Any:
    """Import an optional library; raises `EbmtrajError` that names the extra where it is missing."""
    try:
        return importlib.import_module(module)
    except ImportError:
        raise EbmtrajError(f"{module} is not installed; run pip install 'ebmtraj[{extra}]'") from None


class _Checked:
    """Blocks of a source's episodes, each number checked, and what was noticed on the way."""

    def __init__(self, source: Source) -> None:
        self.source = source
        self.seen = self.kept = self.empty = self.unseeded = 0
        self.rounded: set[str] = set()

    def blocks(self) -> Iterator[EpisodeBlock]:
        self.seen = self.kept = self.empty = self.unseeded = 0
        held: list[tuple[Floats, Floats, int, bool]] = []
        rows = 0
        for episode in self.source.episodes():
            number, self.seen = self.seen, self.seen + 1
            state = self._vectors("state", episode.state, self.source.recipe.state_fields, number)
            action = self._vectors("action", episode.action, self.source.recipe.action_fields, number)
            if len(state) != len(action) + 1:
                raise EbmtrajError(
                    f"{self.source.name}: episode {number} has {len(action)} actions and {len(state)} states; "
                    "an episode has one state more than actions"
                )
            if not len(action):
                self.empty += 1
                continue
            if held and rows + len(state) > BLOCK_ROWS:
                yield _block(held)
                held, rows = [], 0
            self.unseeded += episode.seed is None
            # Not made from a seed that is known: its number in the source is what it can be found by.
            held.append((state, action, number if episode.seed is None else episode.seed, episode.terminated))
            rows += len(state)
            self.kept += 1
        if held:
            yield _block(held)

    def notes(self) -> list[str]:
        notes = []
        if self.empty:
            notes.append(f"{self.empty} of {self.seen} episodes have no transition and are left out")
        if self.unseeded:
            notes.append("the source names no seeds: an episode's seed is its number in the source")
        if self.rounded:
            notes.append(f"numbers were rounded to float32 (from {', '.join(sorted(self.rounded))}), which a store keeps")
        return notes

    def _vectors(self, label: str, values: NDArray[Any], fields: Sequence[Field], number: int) -> Floats:
        where = f"{self.source.name}: episode {number}: {label}"
        values = np.asarray(values)
        if values.dtype.kind not in "fiub":
            raise EbmtrajError(f"{where} is of type {values.dtype}; only numbers can be imported")
        if values.ndim != 2 or values.shape[1] != total_size(fields):
            raise EbmtrajError(f"{where} has shape {values.shape}; expected (steps, {total_size(fields)})")
        if values.dtype != np.float32:
            if values.dtype.itemsize > 2 or values.dtype.kind == "f":
                self.rounded.add(str(values.dtype))
            with np.errstate(over="ignore"):  # what float32 can't hold is found below
                values = values.astype(np.float32)
        if not np.isfinite(values).all():
            row, column = np.argwhere(~np.isfinite(values))[0]
            raise EbmtrajError(
                f"{where} field {entry_name(fields, int(column))} is {values[row, column]} at step {row}; "
                "nothing was imported: mend or leave out that episode"
            )
        return values


def _block(held: Sequence[tuple[Floats, Floats, int, bool]]) -> EpisodeBlock:
    states, actions, seeds, terminated = zip(*held, strict=True)
    return EpisodeBlock(
        np.concatenate(states),
        np.concatenate(actions),
        np.array([len(action) for action in actions]),
        np.array(seeds, np.uint64),
        np.array(terminated, np.bool_),
    )


def part(block: EpisodeBlock, first: int, last: int) -> EpisodeBlock:
    """Episodes `first` to `last` - 1 of a block."""
    chosen = np.zeros(len(block.length), np.bool_)
    chosen[first:last] = True
    return pick(block, chosen)


def pick(block: EpisodeBlock, chosen: NDArray[np.bool_]) -> EpisodeBlock:
    """The episodes of a block where `chosen` (E,) holds."""
    if chosen.all():
        return block
    return EpisodeBlock(
        block.state[np.repeat(chosen, block.length + 1)],
        block.action[np.repeat(chosen, block.length)],
        block.length[chosen],
        block.seed[chosen],
        block.terminated[chosen],
    )


def entry_name(fields: Sequence[Field], column: int) -> str:
    """Name of a column of a state or action vector, e.g. `cube_position.x`."""
    for field in fields:
        if column < field.size:
            return f"{field.name}.{field.entries[column]}" if field.entries else f"{field.name}[{column}]"
        column -= field.size
    return f"[{column}]"


def _reported(blocks: Iterator[EpisodeBlock], report: Callable[[int], None]) -> Iterator[EpisodeBlock]:
    done = 0
    for block in blocks:
        yield block
        done += len(block.length)
        report(done)
