"""From a store to a model that plans, in a run directory."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from ebmtraj import config as recipes
from ebmtraj.datasets.ahead import Windows
from ebmtraj.datasets.store import Store
from ebmtraj.device import choose_device, describe, use_threads
from ebmtraj.errors import EbmtrajError
from ebmtraj.fields import fields_from_json
from ebmtraj.runs import Run, machine, versions, write_atomic, write_json
from ebmtraj.training.checkpoint import load_tensors, load_weights
from ebmtraj.training.loop import Progress, Result, TrainingConfig, step_time, steps_within, train
from ebmtraj.trajectories.fit import check_complete, check_episodes, check_same
from ebmtraj.trajectories.window import PRIORS, WindowConfig, WindowModel

CHECKPOINT = Path("checkpoints") / "best.safetensors"


@dataclass(frozen=True)
class PlanRecipe:
    """All that decides a model that plans; `config.toml` in the run directory holds exactly this."""

    prior: str = "energy"  # a name of `trajectories.window.PRIORS`
    data: str = ""  # the store
    content_hash: str | None = None  # of the store, so that a run says what it was trained on
    network: WindowConfig = field(default_factory=WindowConfig)
    training: TrainingConfig = field(default_factory=lambda: TrainingConfig(learning_rate=2e-3, constant=0.3))

    def __post_init__(self) -> None:
        if self.prior not in PRIORS:
            raise EbmtrajError(f"unknown prior {self.prior!r}; use one of {', '.join(PRIORS)}")


def load_plan_recipe(
    path: Path | None, overrides: Sequence[str], given: dict[str, Any], defaults: dict[str, Any] | None = None
) -> PlanRecipe:
    """Defaults, then the recipe file, then `--set`, then the command's own options, all checked."""
    usual = recipes.to_plain(dataclasses.asdict(PlanRecipe()))  # so that one setting leaves the others as they are
    recipe = recipes.from_recipe(PlanRecipe, path, overrides, recipes.merge(usual, defaults or {}))
    return dataclasses.replace(recipe, **{k: v for k, v in given.items() if v is not None})


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
    where = choose_device(device)
    use_threads(recipe.training.threads)
    store = Store.open(recipe.data)
    check_complete(store)
    check_episodes(recipe.training, store)
    recipe = dataclasses.replace(recipe, content_hash=store.content_hash)
    going_on = resume and (path / "config.toml").exists()
    if going_on:
        run = Run.open(path)
        own = recipes.build(PlanRecipe, recipes.read_toml(run.config), f"recipe {run.config}")
        recipe = check_same(recipe, own, run)
    model = _fresh(recipe, store).to(where)
    data, held_out = (_windows(store, split, recipe, where) for split in ("train", "validation"))
    model.prepare(data)
    if not going_on:
        if recipe.training.seconds is not None:
            steps = steps_within(recipe.training.seconds, step_time(model, data, recipe.training))
            training = dataclasses.replace(recipe.training, steps=steps, seconds=None)
            recipe = dataclasses.replace(recipe, training=training)
        run = Run.create(path, overwrite=overwrite)
        write_json(run.path / "versions.json", {**versions(), **machine(), **describe(where)})
        write_atomic(run.config, recipes.to_toml(recipe))
    return train(model, data, held_out, recipe.training, run, resume=going_on, on_progress=on_progress), recipe


def load_plan_model(run: Path, device: torch.device | str = "cpu") -> tuple[WindowModel, dict[str, Any]]:
    """The model of a run of `train plan`, ready to plan, and its checkpoint's header.

    Raises `EbmtrajError` where there is no such run, it is of another kind, not finished, or damaged.
    """
    Run.open(run, "train plan")
    path = run / CHECKPOINT
    if not path.exists():
        raise EbmtrajError(f"run {run} is not finished; go on with: ebmtraj train plan --run {run} --resume ...")
    header, tensors = load_tensors(path)
    if header.get("kind") != "window":
        raise EbmtrajError(
            f"run {run} holds a {header.get('kind')} model, which does not plan; train one: ebmtraj train plan --run ..."
        )
    try:
        prior, network = str(header["model"]), dict(header["network"])
        state_fields, action_fields = (fields_from_json(header[name]) for name in ("state_fields", "action_fields"))
        environment = dict(header["environment"])
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise EbmtrajError(f"checkpoint {path}: its header is damaged ({error})") from None
    config = recipes.build(WindowConfig, recipes.to_plain(network), f"checkpoint {path}: network")
    if prior not in PRIORS:
        raise EbmtrajError(f"checkpoint {path}: unknown prior {prior!r}; use the version of ebmtraj that wrote it")
    model = WindowModel(state_fields, action_fields, prior=prior, config=config, environment=environment)
    load_weights(model, tensors, path)
    return model.to(device).eval(), header


def _fresh(recipe: PlanRecipe, store: Store) -> WindowModel:
    """The model before its first step, its weights drawn from the seed."""
    said = store.attributes.get("env_attributes", {}).get("state")
    environment = {"env": store.attributes["env"], "env_kwargs": store.attributes["env_kwargs"], "state": said or "auto"}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(recipe.training.seed)
        return WindowModel(
            store.state_fields, store.action_fields, prior=recipe.prior, config=recipe.network, environment=environment
        )


def _windows(store: Store, split: str, recipe: PlanRecipe, device: torch.device) -> Windows:
    limit = (recipe.training.episodes or None) if split == "train" else None
    network = recipe.network
    return Windows.load(
        store,
        split,
        actions=network.actions,
        horizons=network.horizons,
        history=network.controls,
        limit=limit,
        device=device,
    )
