"""Stores to stores: several become one, or one split becomes a store of its own."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ebmtraj.datasets.blocks import SPLITS, EpisodeBlock, StoreRecipe
from ebmtraj.datasets.interchange.described import recipe_of
from ebmtraj.datasets.interchange.source import (
    Progress,
    Transferred,
    finished,
    pick,
    refuse_target,
    transferred,
    write_store,
)
from ebmtraj.datasets.store import Store
from ebmtraj.datasets.writer import first_difference
from ebmtraj.datasets.zarr_files import plain
from ebmtraj.errors import EbmtrajError

_ALIKE = ("env", "env_kwargs", "control_timestep", "state_fields", "action_fields")  # what merged stores must share


def merge_stores(
    paths: Sequence[str],
    out: str | Path,
    *,
    overwrite: bool = False,
    resume: bool = False,
    on_progress: Progress = lambda stage, done, total: None,
) -> Transferred:
    """Write the episodes of several stores, one store after another, as one.

    Each store's policy, seed and content hash go into the attribute `policy`. Splits are drawn anew. Raises `EbmtrajError`
    where fewer than two stores are given, they differ in environment or fields, an episode is in two of them, or the
    target exists.
    """
    if len(paths) < 2:
        raise EbmtrajError("merge needs two stores or more, and then the target: ebmtraj data merge A.zarr B.zarr OUT.zarr")
    refuse_target(out, overwrite=overwrite, resume=resume)
    stores = [finished(path) for path in paths]
    _refuse_source(out, stores)
    for store in stores[1:]:
        _refuse_difference(stores[0], store)
    _refuse_duplicates(stores)
    total = sum(store.episodes for store in stores)

    def blocks() -> Iterator[EpisodeBlock]:
        done = 0
        for store in stores:
            for first, last in store.spans():
                yield store.read_block(first, last)
                on_progress("merging", done + last, total)
            done += store.episodes

    store = write_store(out, _merged_recipe(stores), blocks(), overwrite=overwrite, resume=resume)
    return transferred(store, ["train, validation and test are drawn anew: an episode may have changed its split"])


def split_store(
    path: str,
    out: str | Path,
    split: str,
    *,
    overwrite: bool = False,
    resume: bool = False,
    on_progress: Progress = lambda stage, done, total: None,
) -> Transferred:
    """Write one split of a store as a store of its own, which names the store and split it comes from.

    Raises `EbmtrajError` where the split is unknown or empty, or the target exists.
    """
    refuse_target(out, overwrite=overwrite, resume=resume)
    store = finished(path)
    _refuse_source(out, [store])
    wanted = np.zeros(store.episodes, np.bool_)
    wanted[store.split(split)] = True
    if not wanted.any():
        raise EbmtrajError(f"store {store.path}: no episode of its {store.episodes} is in the {split} split")
    recipe = recipe_of(store)
    origin = {"content_hash": store.content_hash, "split": split, "episodes_before": store.episodes}
    recipe = replace(recipe, env_attributes={**recipe.env_attributes, "part_of": origin})

    def blocks() -> Iterator[EpisodeBlock]:
        for first, last in store.spans():
            chosen = wanted[first:last]
            if chosen.any():
                yield pick(store.read_block(first, last), chosen)
            on_progress("splitting", last, store.episodes)

    made = write_store(out, recipe, blocks(), overwrite=overwrite, resume=resume)
    return transferred(made, [f"the new store has splits of its own, {', '.join(SPLITS)} of these episodes"])


def _merged_recipe(stores: Sequence[Store]) -> StoreRecipe:
    first = recipe_of(stores[0])
    parts = [
        {
            "policy": store.attributes["policy"],
            "action_noise": store.attributes["action_noise"],
            "seed": store.attributes["seed"],
            "steps": store.attributes["steps"],
            "episodes": store.episodes,
            "content_hash": store.content_hash,
        }
        for store in stores
    ]
    attributes = {
        key: value
        for key, value in first.env_attributes.items()
        if all(store.attributes["env_attributes"].get(key) == value for store in stores)
    }
    return replace(
        first,
        policy={"name": "merged", "parts": parts},
        action_noise=_common([part["action_noise"] for part in parts], "differs: see policy.parts"),
        seed=_common([part["seed"] for part in parts], 0),
        steps=_common([part["steps"] for part in parts], None),
        env_attributes=attributes,
    )


def _common(values: Sequence[Any], otherwise: Any) -> Any:
    return values[0] if all(value == values[0] for value in values) else otherwise


def _refuse_difference(first: Store, other: Store) -> None:
    for key in _ALIKE:
        difference = first_difference(first.attributes.get(key), other.attributes.get(key), key)
        if difference:
            where, mine, theirs = difference
            raise EbmtrajError(
                f"store {other.path} has {where} = {_short(theirs)}, store {first.path} {_short(mine)}; only stores of one "
                "environment, with the same fields, can be merged"
            )
    model = [store.attributes["env_attributes"].get("model_hash") for store in (first, other)]
    if None not in model and model[0] != model[1]:
        raise EbmtrajError(f"stores {first.path} and {other.path} come from different models of {first.attributes['env']}")


def _refuse_duplicates(stores: Sequence[Store]) -> None:
    """The same episode twice would stand in train and in test."""
    owners = np.repeat(np.arange(len(stores)), [store.episodes for store in stores])
    numbers = np.concatenate([np.arange(store.episodes) for store in stores])
    digests: NDArray[Any] = np.concatenate([store.episode_array("digest") for store in stores])
    keys = np.ascontiguousarray(digests).view("V32").ravel()
    order = np.argsort(keys, kind="stable")
    same = np.flatnonzero(keys[order][1:] == keys[order][:-1])
    pairs = np.stack([order[same], order[same + 1]], axis=1)
    pairs = pairs[owners[pairs[:, 0]] != owners[pairs[:, 1]]]
    if len(pairs):
        a, b = pairs[pairs[:, 0].argmin()]
        raise EbmtrajError(
            f"episode {numbers[a]} of {stores[owners[a]].path} and episode {numbers[b]} of {stores[owners[b]].path} are "
            "the same; merged, it might stand in two splits"
        )


def _refuse_source(out: str | Path, stores: Sequence[Store]) -> None:
    for store in stores:
        if _place(out) == _place(store.path):
            raise EbmtrajError(f"{out} is the store that is read; give another path")


def _place(path: str | Path) -> str:
    text = plain(path).rstrip("/")
    return text if "://" in text else str(Path(text).expanduser().resolve())


def _short(text: str) -> str:
    return text if len(text) <= 60 else text[:57] + "..."
