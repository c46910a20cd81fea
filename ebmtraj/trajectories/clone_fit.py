"""From a store to a cloned policy in a run directory."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from ebmtraj import config as recipes
from ebmtraj.datasets.store import Store
from ebmtraj.device import weights_from
from ebmtraj.errors import EbmtrajError
from ebmtraj.training.checkpoint import bounded, load_weights
from ebmtraj.training.loop import Progress, Result
from ebmtraj.training.recipe import settled_recipe
from ebmtraj.training.run import Kind, train_run
from ebmtraj.training.settings import TrainingConfig
from ebmtraj.trajectories.clone import LABELS, CloneConfig, CloneModel
from ebmtraj.trajectories.plan_fit import windows_of
from ebmtraj.trajectories.stored import environment_of, open_store, read_trained


@dataclass(frozen=True)
class CloneRecipe:
    """All that decides a cloned policy; `config.toml` in the run directory holds exactly this.

    Raises `EbmtrajError` for an unknown label.
    """

    label: str = "none"  # what it is told beside the present, of `clone.LABELS`
    data: str = ""  # the store
    content_hash: str | None = None  # of the store, so that a run says what it was trained on
    network: CloneConfig = field(default_factory=CloneConfig)  # settings of the model
    training: TrainingConfig = field(default_factory=TrainingConfig)  # how long and how to train

    def __post_init__(self) -> None:
        if self.label not in LABELS:
            raise EbmtrajError(f"unknown label {self.label!r}; use one of {', '.join(LABELS)}")


def load_clone_recipe(
    path: Path | None, overrides: Sequence[str], given: dict[str, Any], defaults: dict[str, Any] | None = None
) -> CloneRecipe:
    """Defaults, then the recipe file, then `--set`, then the command's own options, all checked."""
    return settled_recipe(CloneRecipe, path, overrides, given, defaults)


def train_clone(
    recipe: CloneRecipe,
    path: Path,
    *,
    device: str = "auto",
    resume: bool = False,
    overwrite: bool = False,
    on_progress: Callable[[Progress], None] = lambda progress: None,
) -> tuple[Result, CloneRecipe]:
    """Train a cloned policy on a store into a run directory; returns and raises as `train_plan`."""
    return train_run(CLONE, recipe, path, device=device, resume=resume, overwrite=overwrite, on_progress=on_progress)


def load_clone(run: Path, device: torch.device | str = "cpu") -> tuple[CloneModel, dict[str, Any]]:
    """The policy of a run of `train clone`, and its checkpoint's header.

    Raises `EbmtrajError` where there is no such run, it is of another kind, not finished, or damaged.
    """
    found = read_trained(run, "clone")
    if found.kind != "clone":
        raise EbmtrajError(f"run {run} holds a {found.kind} model, not a cloned policy; see `ebmtraj train clone`")
    label = str(found.header.get("label"))
    if label not in LABELS:
        raise found.refuse(f"unknown label {label!r}; use the version of ebmtraj that wrote it")
    config = recipes.build(CloneConfig, found.network, f"checkpoint {found.path}: network")
    with bounded(found.tensors, found.path):
        model = CloneModel(
            found.state_fields, found.action_fields, label=label, config=config, environment=found.environment
        )
    load_weights(model, found.tensors, found.path)
    return model.to(device).eval(), found.header


def _fresh(recipe: CloneRecipe, store: Store) -> CloneModel:
    """The model before its first step, its weights drawn from the seed."""
    with weights_from(recipe.training.seed):
        return CloneModel(
            store.state_fields,
            store.action_fields,
            label=recipe.label,
            config=recipe.network,
            environment=environment_of(store),
        )


CLONE = Kind(open_store, _fresh, windows_of)
