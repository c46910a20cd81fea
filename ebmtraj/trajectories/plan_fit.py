"""From a store to a model that plans, in a run directory."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from ebmtraj import config as recipes
from ebmtraj.datasets.ahead import Windows
from ebmtraj.datasets.store import Store
from ebmtraj.device import weights_from
from ebmtraj.errors import EbmtrajError
from ebmtraj.training.checkpoint import bounded, load_weights
from ebmtraj.training.loop import Progress, Result
from ebmtraj.training.recipe import settled_recipe
from ebmtraj.training.run import Kind, train_run
from ebmtraj.training.settings import TrainingConfig
from ebmtraj.trajectories.stored import environment_of, episode_limit, open_store, read_trained
from ebmtraj.trajectories.window import PRIORS, WindowConfig, WindowModel


@dataclass(frozen=True)
class PlanRecipe:
    """All that decides a model that plans; `config.toml` in the run directory holds exactly this.

    Raises `EbmtrajError` for an unknown prior.
    """

    prior: str = "energy"  # a name of `trajectories.window.PRIORS`
    data: str = ""  # the store
    content_hash: str | None = None  # of the store, so that a run says what it was trained on
    network: WindowConfig = field(default_factory=WindowConfig)  # settings of the model
    # how long and how to train
    training: TrainingConfig = field(default_factory=lambda: TrainingConfig(learning_rate=2e-3, constant=0.3))

    def __post_init__(self) -> None:
        if self.prior not in PRIORS:
            raise EbmtrajError(f"unknown prior {self.prior!r}; use one of {', '.join(PRIORS)}")


def load_plan_recipe(
    path: Path | None, overrides: Sequence[str], given: dict[str, Any], defaults: dict[str, Any] | None = None
) -> PlanRecipe:
    """Defaults, then the recipe file, then `--set`, then the command's own options, all checked."""
    return settled_recipe(PlanRecipe, path, overrides, given, defaults)


def train_plan(
    recipe: PlanRecipe,
    path: Path,
    *,
    device: str = "auto",
    resume: bool = False,
    overwrite: bool = False,
    on_progress: Callable[[Progress], None] = lambda progress: None,
) -> tuple[Result, PlanRecipe]:
    """Train a model that plans on a store into a run directory; returns what it came to and the recipe as it was run.

    With `resume`, an unfinished run goes on to the same bits on CPU; a run that is not there yet is begun. Raises
    `EbmtrajError` where the store or run is not fit, or training diverges for good.
    """
    return train_run(PLAN, recipe, path, device=device, resume=resume, overwrite=overwrite, on_progress=on_progress)


def load_plan_model(run: Path, device: torch.device | str = "cpu") -> tuple[WindowModel, dict[str, Any]]:
    """The model of a run of `train plan`, ready to plan, and its checkpoint's header.

    Raises `EbmtrajError` where there is no such run, it is of another kind, not finished, or damaged.
    """
    found = read_trained(run, "plan")
    if found.kind != "window":
        raise EbmtrajError(
            f"run {run} holds a {found.kind} model, which does not plan; train one: ebmtraj train plan --run ..."
        )
    prior = str(found.header.get("model"))
    if prior not in PRIORS:
        raise found.refuse(f"unknown prior {prior!r}; use the version of ebmtraj that wrote it")
    config = recipes.build(WindowConfig, found.network, f"checkpoint {found.path}: network")
    with bounded(found.tensors, found.path):
        model = WindowModel(
            found.state_fields, found.action_fields, prior=prior, config=config, environment=found.environment
        )
    load_weights(model, found.tensors, found.path)
    return model.to(device).eval(), found.header


def _fresh(recipe: PlanRecipe, store: Store) -> WindowModel:
    """The model before its first step, its weights drawn from the seed."""
    with weights_from(recipe.training.seed):
        return WindowModel(
            store.state_fields,
            store.action_fields,
            prior=recipe.prior,
            config=recipe.network,
            environment=environment_of(store),
        )


def windows_of(store: Store, split: str, recipe: Any, model: Any, device: torch.device) -> Windows:
    """The windows of a split that a recipe and its `network` ask for; raises `EbmtrajError` as `Windows.load`."""
    network = recipe.network
    return Windows.load(
        store,
        split,
        actions=network.actions,
        horizons=network.horizons,
        history=network.controls,
        limit=episode_limit(recipe, split),
        device=device,
    )


PLAN = Kind(open_store, _fresh, windows_of)
