"""From a store to a model that plans, in a run directory."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, TypeVar

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
from ebmtraj.trajectories.fit import KeptRecipe, check_complete, check_episodes, check_same
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


class WindowNetwork(Protocol):
    """What the settings of a model that learns from windows say of them."""

    @property
    def actions(self) -> int:
        """Actions of a window."""

    @property
    def horizons(self) -> tuple[int, ...]:
        """Steps ahead at which states are seen."""

    @property
    def controls(self) -> int:
        """Actions before the present that are seen."""


class KeptWindowRecipe(KeptRecipe, Protocol):
    """The recipe of a run on windows, as a frozen dataclass."""

    @property
    def network(self) -> WindowNetwork:
        """Settings of the model."""


AnyRecipe = TypeVar("AnyRecipe", bound=KeptRecipe)
WindowRecipe = TypeVar("WindowRecipe", bound=KeptWindowRecipe)


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
    return train_on_windows(
        recipe,
        path,
        _fresh,
        device=device,
        resume=resume,
        overwrite=overwrite,
        on_progress=on_progress,
    )


def train_on_windows(
    recipe: WindowRecipe,
    path: Path,
    fresh: Callable[[WindowRecipe, Store], Any],
    *,
    device: str = "auto",
    resume: bool = False,
    overwrite: bool = False,
    on_progress: Callable[[Progress], None] = lambda progress: None,
) -> tuple[Result, WindowRecipe]:
    """Train any model that learns from windows of a store, made by `fresh(recipe, store)`; see `train_plan`."""

    def split(store: Store, name: str, device: torch.device) -> Windows:
        return windows_of(store, name, recipe, device)

    return train_on(recipe, path, fresh, split, device=device, resume=resume, overwrite=overwrite, on_progress=on_progress)


def train_on(
    recipe: AnyRecipe,
    path: Path,
    fresh: Callable[[AnyRecipe, Store], Any],
    split: Callable[[Store, str, torch.device], Any],
    *,
    device: str = "auto",
    resume: bool = False,
    overwrite: bool = False,
    on_progress: Callable[[Progress], None] = lambda progress: None,
) -> tuple[Result, AnyRecipe]:
    """Train a model made by `fresh(recipe, store)` on what `split(store, name, device)` reads; see `train_plan`."""
    where = choose_device(device)
    use_threads(recipe.training.threads)
    store = Store.open(recipe.data)
    check_complete(store)
    check_episodes(recipe.training, store)
    recipe = dataclasses.replace(recipe, content_hash=store.content_hash)
    going_on = resume and (path / "config.toml").exists()
    if going_on:
        run = Run.open(path)
        own = recipes.build(type(recipe), recipes.read_toml(run.config), f"recipe {run.config}")
        recipe = check_same(recipe, own, run)
    model = fresh(recipe, store).to(where)
    data, held_out = (split(store, name, where) for name in ("train", "validation"))
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


def plan_step_seconds(recipe: PlanRecipe) -> float:
    """Seconds of one CPU core that an optimiser step of this recipe takes, all stages by their shares; nothing is kept."""
    return window_step_seconds(recipe, _fresh)


def window_step_seconds(recipe: WindowRecipe, fresh: Callable[[WindowRecipe, Store], Any]) -> float:
    """As `plan_step_seconds`, of any model that learns from windows; on the validation split, which is read sooner."""
    use_threads(1)
    store = Store.open(recipe.data)
    model = fresh(recipe, store)
    data = windows_of(store, "validation", recipe, torch.device("cpu"))
    model.prepare(data)
    return step_time(model, data, recipe.training, clock=time.thread_time)


def load_plan_model(run: Path, device: torch.device | str = "cpu") -> tuple[WindowModel, dict[str, Any]]:
    """The model of a run of `train plan`, ready to plan, and its checkpoint's header.

    Raises `EbmtrajError` where there is no such run, it is of another kind, not finished, or damaged.
    """
    Run.open(run)
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
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(recipe.training.seed)
        return WindowModel(
            store.state_fields,
            store.action_fields,
            prior=recipe.prior,
            config=recipe.network,
            environment=environment_of(store),
        )


def environment_of(store: Store) -> dict[str, Any]:
    """In which simulator plans learnt from a store can be carried out: what `make_batch` is given."""
    said = store.attributes.get("env_attributes", {}).get("state")
    return {"env": store.attributes["env"], "env_kwargs": store.attributes["env_kwargs"], "state": said or "auto"}


def windows_of(store: Store, split: str, recipe: KeptWindowRecipe, device: torch.device) -> Windows:
    """The windows of a split that a recipe asks for; raises `EbmtrajError` as `Windows.load`."""
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
