"""From a store to a cloned policy in a run directory."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from ebmtraj import config as recipes
from ebmtraj.datasets.store import Store
from ebmtraj.errors import EbmtrajError
from ebmtraj.fields import fields_from_json
from ebmtraj.runs import Run
from ebmtraj.training.checkpoint import load_tensors, load_weights
from ebmtraj.training.loop import Progress, Result, TrainingConfig
from ebmtraj.trajectories.clone import LABELS, CloneConfig, CloneModel
from ebmtraj.trajectories.plan_fit import CHECKPOINT, environment_of, train_on_windows, window_step_seconds


@dataclass(frozen=True)
class CloneRecipe:
    """All that decides a cloned policy; `config.toml` in the run directory holds exactly this."""

    label: str = "none"  # what it is told beside the present, of `clone.LABELS`
    data: str = ""  # the store
    content_hash: str | None = None  # of the store, so that a run says what it was trained on
    network: CloneConfig = field(default_factory=CloneConfig)
    training: TrainingConfig = field(default_factory=TrainingConfig)

    def __post_init__(self) -> None:
        if self.label not in LABELS:
            raise EbmtrajError(f"unknown label {self.label!r}; use one of {', '.join(LABELS)}")


def load_clone_recipe(
    path: Path | None, overrides: Sequence[str], given: dict[str, Any], defaults: dict[str, Any] | None = None
) -> CloneRecipe:
    """Defaults, then the recipe file, then `--set`, then the command's own options, all checked."""
    usual = recipes.to_plain(dataclasses.asdict(CloneRecipe()))
    recipe = recipes.from_recipe(CloneRecipe, path, overrides, recipes.merge(usual, defaults or {}))
    return dataclasses.replace(recipe, **{k: v for k, v in given.items() if v is not None})


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
    return train_on_windows(recipe, path, _fresh, device=device, resume=resume, overwrite=overwrite, on_progress=on_progress)


def clone_step_seconds(recipe: CloneRecipe) -> float:
    """Seconds of one CPU core that an optimiser step of this recipe takes; nothing is kept."""
    return window_step_seconds(recipe, _fresh)


def load_clone(run: Path, device: torch.device | str = "cpu") -> tuple[CloneModel, dict[str, Any]]:
    """The policy of a run of `train clone`, and its checkpoint's header.

    Raises `EbmtrajError` where there is no such run, it is of another kind, not finished, or damaged.
    """
    Run.open(run)
    path = run / CHECKPOINT
    if not path.exists():
        raise EbmtrajError(f"run {run} is not finished; go on with: ebmtraj train clone --run {run} --resume ...")
    header, tensors = load_tensors(path)
    if header.get("kind") != "clone":
        raise EbmtrajError(f"run {run} holds a {header.get('kind')} model, not a cloned policy; see `ebmtraj train clone`")
    try:
        label, network = str(header["label"]), dict(header["network"])
        state_fields, action_fields = (fields_from_json(header[name]) for name in ("state_fields", "action_fields"))
        environment = dict(header["environment"])
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise EbmtrajError(f"checkpoint {path}: its header is damaged ({error})") from None
    if label not in LABELS:
        raise EbmtrajError(f"checkpoint {path}: unknown label {label!r}; use the version of ebmtraj that wrote it")
    config = recipes.build(CloneConfig, recipes.to_plain(network), f"checkpoint {path}: network")
    model = CloneModel(state_fields, action_fields, label=label, config=config, environment=environment)
    load_weights(model, tensors, path)
    return model.to(device).eval(), header


def _fresh(recipe: CloneRecipe, store: Store) -> CloneModel:
    """The model before its first step, its weights drawn from the seed."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(recipe.training.seed)
        return CloneModel(
            store.state_fields,
            store.action_fields,
            label=recipe.label,
            config=recipe.network,
            environment=environment_of(store),
        )
