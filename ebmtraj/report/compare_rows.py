"""What a comparison compares: rows by name, each a model with settings, and the recipe that trains it."""

from __future__ import annotations

import dataclasses
import difflib
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ebmtraj import config as recipes
from ebmtraj.errors import EbmtrajError
from ebmtraj.trajectories.fit import TransitionRecipe, load_recipe
from ebmtraj.trajectories.registry import MODELS

TASKS = ("unconditional", "action-conditional")
OURS = ("model", "actions", "data", "content_hash", "training.seed", "training.threads")  # what a row may not set
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+-]*")


@dataclass(frozen=True)
class Row:
    """One line of the table: a model to train, or another sampler on a model that another row trains."""

    name: str
    model: str = ""  # of the registry, `ebm` for the default energy; a row with sampler_of has that row's
    set: tuple[str, ...] = ()  # as --set of `ebmtraj train transition`; with sampler_of, keys of `network` only
    data: str | None = None  # another store to train on
    time: float | None = None  # share of the comparison's seconds that it is trained for, e.g. 0.5; none given: all
    sampler_of: str | None = None  # the row whose trained model is sampled with the settings of `set`


def known_rows() -> dict[str, Row]:
    """A row for each model of the registry, and the variant that the paper's baseline should have been."""
    rows = {"ebm": Row("ebm", "dsm")}
    for name in MODELS:
        if name != "dsm":
            rows[name] = Row(name, name)
        if name == "fc":
            rows["fc-delta"] = Row("fc-delta", "fc", ("network.space=delta", "network.matrices=true"))
    return rows


def read_rows(path: Path) -> dict[str, Row]:
    """The `[[row]]` tables of a file; raises `EbmtrajError` that names the row and the key that is wrong."""
    found = recipes.read_toml(path, "rows")
    for key in found:
        if key != "row":
            raise EbmtrajError(f"rows {path}: unknown key {key}; give [[row]] tables")
    tables = found.get("row", [])
    if not isinstance(tables, list) or not tables or not all(isinstance(table, Mapping) for table in tables):
        raise EbmtrajError(f'rows {path}: give one or more [[row]] tables, e.g. name = "mdn-4", model = "mdn", set = [...]')
    rows: dict[str, Row] = {}
    for number, table in enumerate(tables, 1):
        row = recipes.build(Row, table, f"rows {path}: row {table.get('name', number)}")
        if row.name in rows:
            raise EbmtrajError(f"rows {path}: two rows are named {row.name}")
        rows[row.name] = dataclasses.replace(row, model="dsm" if row.model == "ebm" else row.model)
    return rows


def choose_rows(models: str, extra: Mapping[str, Row]) -> tuple[Row, ...]:
    """The rows named in `models` (`all`, `none`, or names with commas between) and all `extra` ones, which replace others.

    Raises `EbmtrajError` for an unknown name, with the nearest one, and for a row that can't be trained or sampled.
    """
    known = {**known_rows(), **extra}
    names = [name.strip() for name in models.split(",") if name.strip()]
    if names == ["all"]:
        names = list(known)
    elif names == ["none"]:
        names = []
    chosen = {}
    for name in (*names, *extra):
        name = "ebm" if name == "dsm" and name not in known else name
        if name not in known:
            raise EbmtrajError(f"--models: unknown model {name!r}; {_nearest(name, known)}")
        chosen[name] = known[name]
    if not chosen:
        raise EbmtrajError("--models names no model, and --rows adds none; give e.g. --models ebm,gaussian")
    for row in chosen.values():
        _check(row, chosen)
    return tuple(chosen.values())


def recipe_of(row: Row, *, data: str, task: str, seed: int, seconds: float) -> TransitionRecipe:
    """What a row is trained with; raises `EbmtrajError` that names the row and the setting that is wrong."""
    given = recipes.parse_overrides(row.set).get("training", {})
    own_budget = {"seconds", "steps"} & set(given)  # rows may differ in time, and say so
    budget = [] if own_budget else [f"training.seconds={seconds * (1.0 if row.time is None else row.time)}"]
    overrides = [*budget, *row.set, f"training.seed={seed}", "training.threads=1"]
    try:
        return load_recipe(None, overrides, {"model": row.model, "actions": task == TASKS[1], "data": row.data or data})
    except EbmtrajError as error:
        raise EbmtrajError(f"row {row.name}: {error}") from None


def network_of(row: Row) -> dict[str, Any]:
    """Settings of the network that a row with `sampler_of` changes."""
    found: dict[str, Any] = recipes.parse_overrides(row.set).get("network", {})
    return found


def _check(row: Row, rows: Mapping[str, Row]) -> None:
    if not NAME.fullmatch(row.name):
        raise EbmtrajError(f"row {row.name!r}: a name holds letters, digits and . _ + - only, as it names a folder")
    set_keys = list(_leaves(recipes.parse_overrides(row.set)))
    for key in set_keys:
        if key in OURS:
            raise EbmtrajError(f"row {row.name}: {key} is the comparison's to set; drop it")
    if row.time is not None and (row.time <= 0 or {"training.seconds", "training.steps"} & set(set_keys)):
        raise EbmtrajError(
            f"row {row.name}: time = {row.time} must be above 0, and alone: without training.seconds or steps"
        )
    if row.sampler_of is None:
        if row.model not in MODELS:
            raise EbmtrajError(f"row {row.name}: unknown model {row.model!r}; {_nearest(row.model, MODELS)}")
        return
    if row.model or row.data is not None or row.time is not None:
        raise EbmtrajError(
            f"row {row.name}: sampler_of takes model and data of row {row.sampler_of}, and its time; drop them"
        )
    base = rows.get(row.sampler_of)
    if base is None:
        raise EbmtrajError(
            f"row {row.name}: sampler_of = {row.sampler_of!r} is not compared; {_nearest(row.sampler_of, rows)}"
        )
    if base.sampler_of is not None:
        raise EbmtrajError(f"row {row.name}: row {base.name} is not trained itself; use sampler_of = {base.sampler_of!r}")
    for key in set_keys:
        if not key.startswith("network."):
            raise EbmtrajError(f"row {row.name}: {key} has no part in sampling; a row with sampler_of sets network. keys")
    # so that a typo is known before anything is trained
    recipe_of(Row(row.name, base.model, (*base.set, *row.set)), data="", task=TASKS[0], seed=0, seconds=1)


def _leaves(tree: Mapping[str, Any], path: str = "") -> Iterable[str]:
    for key, value in tree.items():
        name = f"{path}.{key}" if path else key
        if isinstance(value, Mapping):
            yield from _leaves(value, name)
        else:
            yield name


def _nearest(name: str, known: Iterable[str]) -> str:
    options: Sequence[str] = list(known)
    close = difflib.get_close_matches(name, options, n=1)
    return f"did you mean {close[0]}?" if close else f"use {', '.join(options)}"
