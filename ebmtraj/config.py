"""Recipes: a TOML file plus `--set key=value` overrides become a frozen dataclass; anything unknown is an error."""

from __future__ import annotations

import dataclasses
import difflib
import json
import math
import tomllib
import types
import typing
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import tomli_w

from ebmtraj.errors import EbmtrajError

if TYPE_CHECKING:
    from pydantic import TypeAdapter

Config = TypeVar("Config")


def read_toml(path: Path, what: str = "recipe") -> dict[str, Any]:
    """Parse a TOML file, called `what` in messages; raises `EbmtrajError` where it is missing or not TOML."""
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise EbmtrajError(f"{what} {path} does not exist; check the path") from None
    except (OSError, ValueError, RecursionError) as error:
        raise EbmtrajError(f"{what} {path} can't be read as TOML: {error}") from None


def to_toml(config: Any) -> str:
    """The recipe that gives this dataclass back (`None` values are left out, as TOML has no null)."""
    return tomli_w.dumps(to_plain(dataclasses.asdict(config)))


def parse_overrides(pairs: Sequence[str]) -> dict[str, Any]:
    """Turn `["training.seconds=60", "model.width=256"]` into a nested mapping; values are read as TOML, else as text.

    Raises `EbmtrajError` for what is not key=value, and for a key set beside one below it.
    """
    tree: dict[str, Any] = {}
    for pair in pairs:
        key, equals, text = pair.partition("=")
        parts = [part.strip() for part in key.split(".")]
        if not equals or not all(parts):
            raise EbmtrajError(f"--set {pair!r} is not of the form key=value, e.g. --set training.seconds=60")
        try:
            value = tomllib.loads(f"value = {text.strip()}")["value"]
        except RecursionError:
            raise EbmtrajError(f"--set {key}: its value is nested too deeply") from None
        except ValueError:  # a text, or numbers and dates that TOML has and Python has not
            value = text.strip()
        branch = tree
        for part in parts[:-1]:
            branch = branch.setdefault(part, {})
            if not isinstance(branch, dict):
                raise EbmtrajError(f"--set {pair!r}: {part!r} already has a value; set either it or what is below it")
        branch[parts[-1]] = value
    return tree


def merge(base: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """`base` with the entries of `over` laid on top, table by table."""
    merged = dict(base)
    for key, value in over.items():
        old = merged.get(key)
        merged[key] = merge(old, value) if isinstance(old, Mapping) and isinstance(value, Mapping) else value
    return merged


def build(cls: type[Config], values: Mapping[str, Any], source: str = "recipe") -> Config:
    """Check `values` against the dataclass `cls` and build it.

    Raises `EbmtrajError` that names the first unknown key, wrong type or value out of range.
    """
    from pydantic import ValidationError  # which takes long to import, and `--help` needs none of it

    _refuse_unknown(cls, values, (), source)
    _refuse_infinite(values, (), source)
    try:
        adapter: TypeAdapter[Config] = _adapter(cls)  # type: ignore[arg-type]
        return adapter.validate_json(json.dumps(values), strict=True)
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(str(part) for part in first["loc"]) or cls.__name__
        given = first.get("input")
        detail = first["msg"][0].lower() + first["msg"][1:]
        raise EbmtrajError(f"{source}: {key} = {given!r}: {detail}") from None
    except TypeError as error:  # e.g. a TOML date where a number belongs
        raise EbmtrajError(f"{source}: {error}") from None


def from_recipe(
    cls: type[Config],
    path: Path | None = None,
    overrides: Sequence[str] = (),
    defaults: Mapping[str, Any] | None = None,
) -> Config:
    """Defaults, then the recipe file, then the overrides, as one checked dataclass."""
    values: dict[str, Any] = dict(defaults or {})
    if path is not None:
        recipe = read_toml(path)
        build(cls, merge(values, recipe), f"recipe {path}")  # so that a fault is blamed on the file that holds it
        values = merge(values, recipe)
    changes = parse_overrides(overrides)
    return build(cls, merge(values, changes), "--set" if changes else "recipe")


def _refuse_unknown(cls: Any, values: Mapping[str, Any], path: tuple[str, ...], source: str) -> None:
    known = typing.get_type_hints(cls)
    for key, value in values.items():
        where = ".".join((*path, key))
        if key not in known:
            close = difflib.get_close_matches(key, known, n=1)
            hint = f"did you mean {'.'.join((*path, close[0]))}?" if close else f"known here: {', '.join(known)}"
            raise EbmtrajError(f"{source}: unknown key {where}; {hint}")
        for inner in _dataclasses_in(known[key]):
            if isinstance(value, Mapping):
                _refuse_unknown(inner, value, (*path, key), source)


def _refuse_infinite(value: Any, path: tuple[str, ...], source: str) -> None:
    if isinstance(value, Mapping):
        for key, inner in value.items():
            _refuse_infinite(inner, (*path, str(key)), source)
    elif isinstance(value, list | tuple):
        for inner in value:
            _refuse_infinite(inner, path, source)
    elif isinstance(value, float) and not math.isfinite(value):
        raise EbmtrajError(f"{source}: {'.'.join(path)} = {value}: a number must be finite")


def _dataclasses_in(hint: Any) -> list[Any]:
    options = typing.get_args(hint) if typing.get_origin(hint) in (typing.Union, types.UnionType) else (hint,)
    return [option for option in options if dataclasses.is_dataclass(option)]


@cache
def _adapter(cls: Any) -> TypeAdapter[Any]:
    from pydantic import TypeAdapter

    return TypeAdapter(cls)


def to_plain(value: Any) -> Any:
    """The value as TOML can say it: tables without nulls, tuples as arrays."""
    if isinstance(value, Mapping):
        return {key: to_plain(inner) for key, inner in value.items() if inner is not None}
    if isinstance(value, list | tuple):
        return [to_plain(inner) for inner in value]
    return value


def first_difference(a: Any, b: Any, key: str = "") -> tuple[str, Any, Any] | None:
    """Where two plain recipes first differ: the key and both values, or None."""
    if isinstance(a, Mapping) and isinstance(b, Mapping):
        for name in sorted({*a, *b}):
            found = first_difference(a.get(name), b.get(name), f"{key}.{name}" if key else name)
            if found is not None:
                return found
        return None
    return None if a == b else (key, a, b)
