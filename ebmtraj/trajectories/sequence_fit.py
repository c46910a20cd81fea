"""From a store to a model that plans sequences of states, in a run directory."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from ebmtraj import config as recipes
from ebmtraj.datasets.store import Store
from ebmtraj.datasets.windows import Transitions
from ebmtraj.device import weights_from
from ebmtraj.errors import EbmtrajError
from ebmtraj.training.checkpoint import bounded, load_weights
from ebmtraj.training.loop import Progress, Result
from ebmtraj.training.recipe import settled_recipe
from ebmtraj.training.run import Kind, train_run
from ebmtraj.training.settings import TrainingConfig
from ebmtraj.trajectories.sequence_model import SequenceModel, SequenceNetwork
from ebmtraj.trajectories.stored import environment_of, episode_limit, open_store, read_trained


@dataclass(frozen=True)
class SequenceRecipe:
    """All that decides a model that plans sequences of states; `config.toml` in the run directory holds exactly this."""

    data: str = ""  # the store
    content_hash: str | None = None  # of the store, so that a run says what it was trained on
    network: SequenceNetwork = field(default_factory=SequenceNetwork)  # settings of the model
    # how long and how to train
    training: TrainingConfig = field(default_factory=lambda: TrainingConfig(steps=15_000, learning_rate=4e-3, constant=0.2))


def load_sequence_recipe(
    path: Path | None, overrides: Sequence[str], given: dict[str, Any], defaults: dict[str, Any] | None = None
) -> SequenceRecipe:
    """Defaults, then the recipe file, then `--set`, then the command's own options, all checked."""
    recipe = settled_recipe(SequenceRecipe, path, overrides, given, defaults)
    return dataclasses.replace(recipe, network=recipe.network.completed("recipe"))


def train_sequence(
    recipe: SequenceRecipe,
    path: Path,
    *,
    device: str = "auto",
    resume: bool = False,
    overwrite: bool = False,
    on_progress: Callable[[Progress], None] = lambda progress: None,
) -> tuple[Result, SequenceRecipe]:
    """Train a transition energy and its inverse model on a store into one run directory; see `train_plan`."""
    return train_run(SEQUENCE, recipe, path, device=device, resume=resume, overwrite=overwrite, on_progress=on_progress)


def load_sequence_model(run: Path, device: torch.device | str = "cpu") -> tuple[SequenceModel, dict[str, Any]]:
    """The model of a run of `train sequence`, ready to plan, and its checkpoint's header.

    Raises `EbmtrajError` where there is no such run, it is of another kind, not finished, or damaged.
    """
    found = read_trained(run, "sequence")
    if found.kind != "sequence":
        raise EbmtrajError(f"run {run} holds a {found.kind} model; train one: ebmtraj train sequence --run ...")
    source = f"checkpoint {found.path}"
    network = recipes.build(SequenceNetwork, found.network, f"{source}: network").completed(source)
    with bounded(found.tensors, found.path):
        model = SequenceModel(found.state_fields, found.action_fields, network=network, environment=found.environment)
    load_weights(model, found.tensors, found.path)
    return model.to(device).eval(), found.header


def _fresh(recipe: SequenceRecipe, store: Store) -> SequenceModel:
    """The model before its first step, its weights drawn from the seed."""
    with weights_from(recipe.training.seed):
        network = recipe.network.completed("recipe")  # a resumed run's own recipe has no nulls, but the same checkpoint
        return SequenceModel(store.state_fields, store.action_fields, network=network, environment=environment_of(store))


def _transitions(
    store: Store, split: str, recipe: SequenceRecipe, model: SequenceModel, device: torch.device
) -> Transitions:
    return Transitions.load(store, split, actions=True, limit=episode_limit(recipe, split), device=device)


SEQUENCE = Kind(open_store, _fresh, _transitions)
