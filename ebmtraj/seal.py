"""Seals: sha256 over what a file says, kept in it, so that a damaged, edited or exchanged file is noticed and not believed.

A seal is no signature: whoever edits a file on purpose can make a new one. What was written before there were seals has
none and is read as it is.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # which takes long, and `--help` comes by here
    from numpy.typing import NDArray

PATHS = ("data", "base")  # keys of a recipe that say where things lie, which may change


def of_json(value: Any) -> str:
    """sha256 of a value as JSON, whatever the order of its keys."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, separators=(",", ":"), default=str).encode()).hexdigest()


def of_recipe(recipe: Mapping[str, Any]) -> str:
    """sha256 of a recipe, a run's `config.toml` as read, but for the paths in it."""
    return of_json({key: value for key, value in recipe.items() if key not in PATHS})


def of_arrays(arrays: Iterable[tuple[str, NDArray[Any]]], text: str = "") -> str:
    """sha256 of a text and of arrays of any shape by name: type, shape and bytes of each, in the order given."""
    digest = hashlib.sha256(text.encode())
    for name, values in arrays:
        digest.update(f"|{name} {values.dtype.str} {values.shape}|".encode())
        digest.update(values.tobytes() if values.ndim == 0 or not values.flags.c_contiguous else values.data)
    return digest.hexdigest()


def sealed(value: Mapping[str, Any]) -> dict[str, Any]:
    """The object with its `sha256` as last key; one that it has is replaced."""
    content = {key: inner for key, inner in value.items() if key != "sha256"}
    return {**content, "sha256": of_json(content)}


def unsealed(value: Mapping[str, Any]) -> dict[str, Any] | None:
    """The object without its `sha256`; None where that is not the one of its content."""
    content = {key: inner for key, inner in value.items() if key != "sha256"}
    return content if "sha256" not in value or value["sha256"] == of_json(content) else None
