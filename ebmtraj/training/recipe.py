"""How a recipe comes about: defaults, then those of the model, the recipe file, `--set`, and the command's own options."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from ebmtraj import config as recipes
from ebmtraj.training.run import KeptRecipe

Recipe = TypeVar("Recipe", bound=KeptRecipe)


class Usual(NamedTuple):
    """What a model is trained with unless told otherwise."""

    config: type[Any]  # the dataclass of `network`
    network: Mapping[str, Any]  # where it differs from that dataclass's own defaults
    training: Mapping[str, Any]  # where it differs from `TrainingConfig`'s


def settled_recipe(
    cls: type[Recipe],
    path: Path | None,
    overrides: Sequence[str],
    given: Mapping[str, Any],
    defaults: Mapping[str, Any] | None = None,
) -> Recipe:
    """A recipe whose `network` is a dataclass.

    `defaults`: a resumed run's own recipe; `given`: the command's options, None where one is not given.
    Raises `EbmtrajError` that names the first key or value that is not known.
    """
    usual = recipes.to_plain(dataclasses.asdict(cls()))  # so that one setting leaves the others as they are
    recipe = recipes.from_recipe(cls, path, overrides, recipes.merge(usual, defaults or {}))
    return _with(recipe, given)


def recipe_by_model(
    cls: type[Recipe],
    path: Path | None,
    overrides: Sequence[str],
    given: Mapping[str, Any],
    defaults: Mapping[str, Any] | None,
    usual: Callable[[Any], Usual],
) -> Recipe:
    """As `settled_recipe`, where the model that is asked for says what its `network` is, and what is `usual` for it.

    Raises `EbmtrajError` that names the first key or value that is not known.
    """
    known = usual(_with(recipes.from_recipe(cls, path, overrides, defaults), given))
    network = recipes.merge(recipes.to_plain(dataclasses.asdict(known.config())), known.network)
    own = recipes.merge({"training": dict(known.training), "network": network}, defaults or {})
    recipe: Any = _with(recipes.from_recipe(cls, path, overrides, own), given)
    settings: Any = recipes.build(known.config, recipe.network, "recipe: network")
    whole: Recipe = dataclasses.replace(recipe, network=dataclasses.asdict(settings))
    return whole


def _with(recipe: Recipe, given: Mapping[str, Any]) -> Recipe:
    return dataclasses.replace(recipe, **{key: value for key, value in given.items() if value is not None})
