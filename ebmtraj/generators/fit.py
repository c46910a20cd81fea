"""From data to a trained generator in a run directory."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from ebmtraj import config as recipes
from ebmtraj.errors import EbmtrajError
from ebmtraj.generators.data import Events, EventSource, open_source
from ebmtraj.generators.model import Generator
from ebmtraj.generators.registry import generator_class, make_generator, network_defaults
from ebmtraj.training.loop import Progress, Result
from ebmtraj.training.run import Kind, train_run
from ebmtraj.training.settings import TrainingConfig


@dataclass(frozen=True)
class GeneratorRecipe:
    """All that decides a generator; `config.toml` in the run directory holds exactly this."""

    model: str = "vae"  # a name of `generators.registry.GENERATORS`
    data: str = "digits"  # a toy's name, a source's name, or an image store
    content_hash: str | None = None  # of the data, so that a run says what it was trained on
    network: dict[str, Any] = field(default_factory=dict)  # settings of the model, see its Config
    training: TrainingConfig = field(default_factory=TrainingConfig)  # `episodes` counts events here


def load_generator_recipe(
    path: Path | None, overrides: Sequence[str], given: dict[str, Any], defaults: dict[str, Any] | None = None
) -> GeneratorRecipe:
    """Defaults, the model's own among them, then the recipe file, then `--set`, then the command's own options, all checked.

    Raises `EbmtrajError` that names the first key or value that is not known.
    """
    recipe = recipes.from_recipe(GeneratorRecipe, path, overrides, defaults)
    chosen = generator_class(given.get("model") or recipe.model)
    shape = open_source(given.get("data") or recipe.data).shape
    network = network_defaults(chosen.name, shape)
    training = {**chosen.training_defaults, **(chosen.point_defaults.get("training", {}) if len(shape) == 1 else {})}
    own = recipes.merge({"training": training, "network": network}, defaults or {})
    recipe = recipes.from_recipe(GeneratorRecipe, path, overrides, own)
    recipe = dataclasses.replace(recipe, **{k: v for k, v in given.items() if v is not None})
    settings: Any = recipes.build(chosen.Config, recipe.network, "recipe: network")
    return dataclasses.replace(recipe, network=dataclasses.asdict(settings))


def train_generator(
    recipe: GeneratorRecipe,
    path: Path,
    *,
    device: str = "auto",
    resume: bool = False,
    overwrite: bool = False,
    on_progress: Callable[[Progress], None] = lambda progress: None,
) -> tuple[Result, GeneratorRecipe]:
    """Train a generator into a run directory; returns what it came to and the recipe as it was run.

    With `resume`, an unfinished run goes on under its own recipe, to the same bits on CPU; a run that is not there yet is
    begun. Raises `EbmtrajError` where the data or run is not fit, or training diverges for good.
    """
    return train_run(GENERATOR, recipe, path, device=device, resume=resume, overwrite=overwrite, on_progress=on_progress)


def _open(recipe: GeneratorRecipe) -> EventSource:
    return open_source(recipe.data)


def _fresh(recipe: GeneratorRecipe, source: EventSource) -> Generator:
    return make_generator(recipe.model, source.shape, source.levels, network=recipe.network, seed=recipe.training.seed)


def events_of(source: EventSource, split: str, recipe: Any, model: Any, device: torch.device) -> Events:
    """A split in memory; `training.episodes` above 0 takes so many of the training events.

    Raises `EbmtrajError` where the split has fewer.
    """
    x, most = source.read(split), recipe.training.episodes if split == "train" else 0
    if len(x) < most:
        raise EbmtrajError(
            f"training.episodes = {most}, but the training split of {source.name} has {len(x)} events; give fewer"
        )
    return Events((x[:most] if most else x).to(device))


GENERATOR = Kind(_open, _fresh, events_of)
