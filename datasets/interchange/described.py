"""What is said of episodes beside their numbers: the recipe that other formats carry, and what states and actions are."""

from __future__ import annotations

import errno
import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ebmtraj.datasets.blocks import SCHEMA, StoreRecipe
from ebmtraj.datasets.bounds import TEXT
from ebmtraj.datasets.store import Store
from ebmtraj.errors import EbmtrajError
from ebmtraj.fields import Described, Field, fields_from_json, total_size

Simulator = Callable[[str, int, int], Described | None]  # (env, state size, action size); None: it is not of such sizes


@dataclass(frozen=True)
class Given:
    """What the user says of a source that does not say it itself; None leaves it to the source.

    Raises `EbmtrajError` for an empty name and a time step that is not above 0 s.
    """

    env: str | None = None
    control_timestep: float | None = None  # s
    state_fields: tuple[Field, ...] | None = None
    action_fields: tuple[Field, ...] | None = None
    state_key: str | None = None  # name of the array, where the format leaves it open
    action_key: str | None = None
    simulator: Simulator = lambda env, states, actions: None

    def __post_init__(self) -> None:
        if self.env is not None and not self.env.strip():
            raise EbmtrajError("--env is empty; name the environment, or leave the option out")
        step = self.control_timestep
        if step is not None and not 0 < step < 1e6:
            raise EbmtrajError(f"--control-timestep is {step}; give seconds above 0")


def carried(store: Store) -> dict[str, Any]:
    """What another format must carry beside the arrays so that the store can be made again, as plain JSON values."""
    keys = (*recipe_of(store).identity(), "env_attributes")
    return {
        **{key: store.attributes.get(key) for key in keys},
        "split_seed": store.attributes["split"]["seed"],
        "content_hash": store.content_hash,
        "versions": store.attributes.get("versions"),
    }


def recipe_of(store: Store) -> StoreRecipe:
    """The recipe that a store was made with."""
    return carried_recipe({**store.attributes, "split_seed": store.attributes["split"]["seed"]}, store.path)


def carried_recipe(values: Mapping[str, Any], name: str) -> StoreRecipe:
    """The recipe in what `carried` gave; raises `EbmtrajError` where it is damaged."""
    try:
        if values["schema"] > SCHEMA:
            raise EbmtrajError(f"{name} was made by a newer ebmtraj (schema {values['schema']}); update ebmtraj")
        return StoreRecipe(
            env=values["env"],
            control_timestep=float(values["control_timestep"]),
            state_fields=fields_from_json(values["state_fields"]),
            action_fields=fields_from_json(values["action_fields"]),
            policy=values["policy"],
            env_kwargs=values["env_kwargs"],
            env_attributes=values.get("env_attributes") or {},
            action_noise=values["action_noise"],
            seed=values["seed"],
            steps=values["steps"],
            split_seed=values["split_seed"],
        )
    except (KeyError, TypeError, ValueError) as error:
        raise EbmtrajError(f"{name}: what it carries of its store is damaged ({type(error).__name__}: {error})") from None


def carried_values(text: Any, name: str) -> dict[str, Any] | None:
    """What a file carries of its store: a JSON object as text, or one already read; None where there is nothing.

    Raises `EbmtrajError` where it is not one.
    """
    if text is None:
        return None
    try:
        values = json.loads(text) if isinstance(text, str) else text
    except (ValueError, RecursionError):
        values = None
    if not isinstance(values, dict):
        raise EbmtrajError(f"{name}: what it carries of its store is not a JSON object")
    return values


def described(
    given: Given,
    known: Mapping[str, Any] | None,
    name: str,
    kind: str,
    state_size: int,
    action_size: int,
    *,
    env: str | None = None,
    state_fields: tuple[Field, ...] | None = None,
    action_fields: tuple[Field, ...] | None = None,
) -> tuple[StoreRecipe, list[str]]:
    """The recipe of a source, from what the user gives, what it carries (`known`), or what its format says; and notes.

    Raises `EbmtrajError` where the fields do not make up the size of the vectors.
    """
    notes = []
    for label, size in (("state", state_size), ("action", action_size)):
        if size < 1:
            raise EbmtrajError(f"{name}: {label}s have no numbers at all; give vectors of at least one")
    named = given.env or env
    simulated = None
    if known is None and given.state_fields is None and named is not None:
        simulated = given.simulator(named, state_size, action_size)
    if known is not None:
        recipe = carried_recipe(known, name)
    elif simulated is not None and named is not None:
        notes.append(f"states are taken for {simulated.said}; give --fields where they are something else")
        recipe = StoreRecipe(
            env=named,
            control_timestep=simulated.control_timestep,
            state_fields=simulated.state_fields,
            action_fields=simulated.action_fields,
            policy={"name": "unknown"},
            action_noise="unknown",
            env_attributes={**simulated.env_attributes, "imported": {"format": kind, "name": Path(name).name}},
        )
    else:
        if given.control_timestep is None:
            notes.append("the source names no control time step: 1 s a step is assumed; give --control-timestep")
        if given.state_fields is None:
            notes.append("the source names no units: numbers are plain, quaternions too; give --fields to say more")
        recipe = StoreRecipe(
            env=env or "imported",
            control_timestep=1.0,
            state_fields=state_fields or (Field("state", state_size),),
            action_fields=action_fields or (Field("action", action_size),),
            policy={"name": "unknown"},
            action_noise="unknown",
            env_attributes={"imported": {"format": kind, "name": Path(name).name}},
        )
    for key in ("env", "control_timestep", "state_fields", "action_fields"):
        if getattr(given, key) is not None:
            recipe = replace(recipe, **{key: getattr(given, key)})
    for label, fields, size in (("state", recipe.state_fields, state_size), ("action", recipe.action_fields, action_size)):
        if total_size(fields) != size:
            raise EbmtrajError(
                f"{name}: {label}s have {size} numbers, but the fields ({', '.join(f.name for f in fields)}) make up "
                f"{total_size(fields)}; mend --fields"
            )
    return recipe, notes


def read_fields(path: Path) -> tuple[tuple[Field, ...], tuple[Field, ...]]:
    """State and action fields of a JSON file with `state_fields` and `action_fields`, as `ebmtraj data info --json` prints.

    Raises `EbmtrajError` where it can't be read or a field is none.
    """
    try:
        if not path.is_file():
            raise FileNotFoundError(errno.ENOENT, "it is no file", str(path))
        with path.open(encoding="utf-8") as file:
            values = json.loads(file.read(TEXT))
        state, action = values["state_fields"], values["action_fields"]
    except OSError as error:
        raise EbmtrajError(f"--fields {path}: {error.strerror or error}") from None
    except (ValueError, KeyError, TypeError, RecursionError):
        raise EbmtrajError(
            f"--fields {path}: not a JSON object with state_fields and action_fields; see ebmtraj data info --json"
        ) from None
    if not all(isinstance(rows, list) and rows and all(isinstance(r, dict) for r in rows) for rows in (state, action)):
        raise EbmtrajError(f"--fields {path}: state_fields and action_fields must be lists of objects with name and size")
    for rows in (state, action):
        _refuse_fields(rows, path)
    try:
        return fields_from_json(state), fields_from_json(action)
    except EbmtrajError as error:
        raise EbmtrajError(f"--fields {path}: {error}") from None


def _refuse_fields(rows: Sequence[Mapping[str, Any]], path: Path) -> None:
    """Raise `EbmtrajError` for what JSON lets through and a store could not be read with."""
    names = [row.get("name") for row in rows]
    if not all(isinstance(name, str) and name for name in names) or len(set(names)) < len(names):
        raise EbmtrajError(f"--fields {path}: names of fields are {names}; give each a text of its own")
    for row in rows:
        if not isinstance(row.get("size"), int) or isinstance(row["size"], bool):
            raise EbmtrajError(f"--fields {path}: size of field {row['name']!r} is {row.get('size')!r}; give a whole number")
        for key in ("low", "high"):
            limits = row.get(key)
            if limits is not None and not (
                isinstance(limits, list)
                and all(x is None or (isinstance(x, int | float) and math.isfinite(x)) for x in limits)
            ):
                raise EbmtrajError(
                    f"--fields {path}: {key} of field {row['name']!r} must be a list of finite numbers, or null for no limit"
                )


# checking
