"""From data to a trained generator in a run directory."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from ebmtraj.errors import EbmtrajError
from ebmtraj.generators.data import Events, EventSource, open_source
from ebmtraj.generators.model import Generator
from ebmtraj.generators.registry import generator_class, make_generator
from ebmtraj.training.loop import Progress, Result
from ebmtraj.training.recipe import Usual, recipe_by_model
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
    return recipe_by_model(GeneratorRecipe, path, overrides, given, defaults, _usual)


def _usual(recipe: GeneratorRecipe) -> Usual:
    chosen = generator_class(recipe.model)
    of_points = chosen.point_defaults if len(open_source(recipe.data).shape) == 1 else {}
    return Usual(chosen.Config, of_points.get("network", {}), {**chosen.training_defaults, **of_points.get("training", {})})


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
