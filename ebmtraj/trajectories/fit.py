"""From a store to a trained transition model in a run directory."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

from ebmtraj import config as recipes
from ebmtraj.datasets.store import Store
from ebmtraj.datasets.stream import StreamedTransitions
from ebmtraj.datasets.windows import SPLITS, TransitionData, Transitions
from ebmtraj.device import free_memory
from ebmtraj.fields import total_size
from ebmtraj.runs import Run
from ebmtraj.training.loop import Progress, Result
from ebmtraj.training.recipe import Usual, recipe_by_model
from ebmtraj.training.run import Kind, check_same, train_run
from ebmtraj.training.settings import TrainingConfig
from ebmtraj.trajectories.model import TransitionModel
from ebmtraj.trajectories.registry import make_model, model_class
from ebmtraj.trajectories.stored import episode_limit, open_store


@dataclass(frozen=True)
class TransitionRecipe:
    """All that decides a transition model; `config.toml` in the run directory holds exactly this."""

    model: str = "dsm"  # a name of `trajectories.registry.MODELS`: dsm or cd (energies), or a baseline
    actions: bool = False  # E(s_t, a_t, s_t+1) rather than E(s_t, s_t+1)
    data: str = ""  # the store
    content_hash: str | None = None  # of the store, so that a run says what it was trained on
    stream: bool | Literal["auto"] = "auto"  # read the store while training; auto: where memory would not hold it
    network: dict[str, Any] = field(default_factory=dict)  # settings of the model, see its Config
    training: TrainingConfig = field(default_factory=TrainingConfig)  # how long and how to train


def load_recipe(
    path: Path | None, overrides: Sequence[str], given: dict[str, Any], defaults: dict[str, Any] | None = None
) -> TransitionRecipe:
    """Defaults, the model's own among them, then the recipe file, then `--set`, then the command's own options, all checked.

    Raises `EbmtrajError` that names the first key or value that is not known.
    """
    return recipe_by_model(TransitionRecipe, path, overrides, given, defaults, _usual)


def _usual(recipe: TransitionRecipe) -> Usual:
    chosen = model_class(recipe.model)
    return Usual(chosen.Config, chosen.action_defaults if recipe.actions else {}, chosen.training_defaults)


def completed(recipe: TransitionRecipe, source: str) -> TransitionRecipe:
    """A kept recipe, perhaps of an older version, with the settings of its model that it doesn't say at their defaults.

    Raises `EbmtrajError` that names the `source` for settings that the model doesn't know.
    """
    config: Any = model_class(recipe.model).Config
    settings: Any = recipes.build(config, recipes.to_plain(recipe.network), source)
    return dataclasses.replace(recipe, network=dataclasses.asdict(settings))


def train_transition(
    recipe: TransitionRecipe,
    path: Path,
    *,
    device: str = "auto",
    resume: bool = False,
    overwrite: bool = False,
    on_progress: Callable[[Progress], None] = lambda progress: None,
) -> tuple[Result, TransitionRecipe]:
    """Train a transition model on a store into a run directory; returns what it came to and the recipe as it was run.

    With `resume`, an unfinished run goes on under its own recipe, to the same bits on CPU; a run that is not there yet is
    begun. Raises `EbmtrajError` where the store or run is not fit, or training diverges for good.
    """
    return train_run(TRANSITION, recipe, path, device=device, resume=resume, overwrite=overwrite, on_progress=on_progress)


def _fresh(recipe: TransitionRecipe, store: Store) -> TransitionModel:
    return make_model(
        recipe.model,
        store.state_fields,
        store.action_fields,
        actions=recipe.actions,
        network=recipes.to_plain(recipe.network),
        seed=recipe.training.seed,
    )


def _data(
    store: Store, split: str, recipe: TransitionRecipe, model: TransitionModel, device: torch.device
) -> TransitionData:
    settings: dict[str, Any] = {"actions": recipe.actions, "history": model.history, "device": device}
    settings["limit"] = episode_limit(recipe, split)
    if recipe.stream:
        return StreamedTransitions(store, split, seed=recipe.training.seed, **settings)
    return Transitions.load(store, split, **settings)


def _settle(recipe: TransitionRecipe, store: Store, device: torch.device) -> TransitionRecipe:
    if recipe.stream == "auto":
        return dataclasses.replace(recipe, stream=_needs_stream(recipe, store, device))
    return recipe


def _needs_stream(recipe: TransitionRecipe, store: Store, device: torch.device) -> bool:
    """Whether what is trained and validated on would take more than half of the memory that is free."""
    lengths = store.lengths[np.concatenate([store.split(each)[: episode_limit(recipe, each)] for each in SPLITS[:2]])]
    state, action = total_size(store.state_fields), total_size(store.action_fields)
    size = 4 * (state * int((lengths + 1).sum()) + action * int(lengths.sum()))
    return size > 0.5 * free_memory(device)


def _same_recipe(recipe: TransitionRecipe, run: Run) -> TransitionRecipe:
    """The run's own recipe; raises `EbmtrajError` where the one that is asked for now differs from it."""
    own = recipes.build(TransitionRecipe, recipes.read_toml(run.config), f"recipe {run.config}")
    own = completed(own, f"recipe {run.config}: network")
    own = dataclasses.replace(own, stream=own.stream is True)  # "auto" only where a run began before there was a choice
    stream = own.stream if recipe.stream == "auto" else recipe.stream
    return check_same(dataclasses.replace(recipe, stream=stream), own, run)


TRANSITION = Kind(open_store, _fresh, _data, _settle, _same_recipe)
