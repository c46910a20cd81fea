"""From a store to a trained model of any kind in a run directory."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable
from contextlib import closing, nullcontext
from pathlib import Path
from typing import Any, ClassVar, NamedTuple, Protocol, TypeVar

import torch
from torch import Tensor

from ebmtraj import config as recipes
from ebmtraj.device import choose_device, describe, use_threads
from ebmtraj.errors import EbmtrajError
from ebmtraj.locks import only_writer
from ebmtraj.runs import Run, machine, versions, write_atomic, write_json
from ebmtraj.training.checkpoint import load_tensors
from ebmtraj.training.loop import Progress, Result, step_time, steps_within, train
from ebmtraj.training.settings import TrainingConfig
from ebmtraj.training.spread import check_parts, from_main, is_main, joined, processes, wait

CHECKPOINT = Path("checkpoints") / "best.safetensors"


class KeptRecipe(Protocol):
    """What the recipe of any run on a store has, as a frozen dataclass."""

    __dataclass_fields__: ClassVar[dict[str, Any]]

    @property
    def data(self) -> str:
        """The store."""

    @property
    def training(self) -> TrainingConfig:
        """How long and how to train."""


Recipe = TypeVar("Recipe", bound=KeptRecipe)


class Source(Protocol):
    """A store of any kind: what is trained on has a name for its exact content."""

    @property
    def content_hash(self) -> str | None:
        """The same for the same data, wherever it lies."""


class Kind(NamedTuple):
    """How a kind of model is made and fed: what `train_run` has to be told."""

    open: Callable[[Any], Any]  # (recipe) -> the store, a `Source`; raises `EbmtrajError` where it is not fit
    fresh: Callable[[Any, Any], Any]  # (recipe, store) -> the model before its first step
    data: Callable[[Any, str, Any, Any, torch.device], Any]  # (store, split, recipe, model, device) -> its `Examples`
    settle: Callable[[Any, Any, torch.device], Any] = lambda recipe, store, device: recipe  # what a new run decides
    same: Callable[[Any, Run], Any] | None = None  # (recipe, run) -> the run's own recipe; `same_recipe` without it


def train_run(
    kind: Kind,
    recipe: Recipe,
    path: Path,
    *,
    device: str = "auto",
    resume: bool = False,
    overwrite: bool = False,
    on_progress: Callable[[Progress], None] = lambda progress: None,
) -> tuple[Result, Recipe]:
    """Train a model on a store into a run directory; returns what it came to and the recipe as it was run.

    With `resume`, an unfinished run goes on under its own recipe, to the same bits on CPU; a run that is not there yet is
    begun. Under `torchrun` its processes train together, on a joint batch of `training.batch`. Raises `EbmtrajError` where
    the store or run is not fit, or training diverges for good.
    """
    with joined(choose_device(device)) as where, only_writer(path, "run") if is_main() else nullcontext():
        return _train_run(kind, recipe, path, where, resume, overwrite, on_progress)


def _train_run(
    kind: Kind,
    recipe: Recipe,
    path: Path,
    where: torch.device,
    resume: bool,
    overwrite: bool,
    on_progress: Callable[[Progress], None],
) -> tuple[Result, Recipe]:
    use_threads(recipe.training.threads)
    store: Source = kind.open(recipe)
    recipe = dataclasses.replace(recipe, content_hash=store.content_hash)
    going_on = resume and (path / "config.toml").exists()
    if going_on:
        run = Run.open(path)
        recipe = (kind.same or same_recipe)(recipe, run)
    else:
        recipe = kind.settle(recipe, store, where)
    model = kind.fresh(recipe, store).to(where)
    check_parts(recipe.training.batch, recipe.training.accumulate, model.spreads)
    with (
        closing(kind.data(store, "train", recipe, model, where)) as data,
        closing(kind.data(store, "validation", recipe, model, where)) as held_out,
    ):
        model.prepare(data)
        if not going_on:
            if recipe.training.seconds is not None:
                timed = steps_within(recipe.training.seconds, step_time(model, data, recipe.training))
                steps = int(from_main(timed, where))
                training = dataclasses.replace(recipe.training, steps=steps, seconds=None)
                recipe = dataclasses.replace(recipe, training=training)
            run = Run(path)
            if is_main():
                Run.create(path, overwrite=overwrite)
                write_json(path / "versions.json", {**versions(), **machine(), **describe(where), "processes": processes()})
                write_atomic(run.config, recipes.to_toml(recipe))
            wait()
        result = train(model, data, held_out, recipe.training, run, resume=going_on, on_progress=on_progress)
    return result, recipe


def step_seconds(kind: Kind, recipe: KeptRecipe) -> float:
    """Seconds of one CPU core that an optimiser step of this recipe takes, all stages by their shares; nothing is kept.

    Its own core's time, whatever else the machine does meanwhile. On the validation split, which is read sooner: a step
    takes as long, however many examples there are.
    """
    where = torch.device("cpu")
    use_threads(1)
    store: Source = kind.open(recipe)
    recipe = kind.settle(recipe, store, where)
    model = kind.fresh(recipe, store)
    with closing(kind.data(store, "validation", recipe, model, where)) as data:
        model.prepare(data)
        return step_time(model, data, recipe.training, clock=time.thread_time)


def same_recipe(recipe: Recipe, run: Run) -> Recipe:
    """The run's own recipe; raises `EbmtrajError` where the one that is asked for now differs from it."""
    return check_same(recipe, recipes.build(type(recipe), recipes.read_toml(run.config), f"recipe {run.config}"), run)


def check_same(recipe: Recipe, own: Recipe, run: Run) -> Recipe:
    """The run's `own` recipe with today's path of the data; raises `EbmtrajError` where what is asked for now differs."""
    training = recipe.training
    if training.seconds is not None:  # turned into steps when the run began
        training = dataclasses.replace(training, steps=own.training.steps, seconds=None)
    asked = dataclasses.asdict(dataclasses.replace(recipe, data=own.data, training=training))
    difference = recipes.first_difference(recipes.to_plain(dataclasses.asdict(own)), recipes.to_plain(asked))
    if difference is not None:
        key, had, wants = difference
        mend = "the store is not the one it was trained on" if key == "content_hash" else "drop that setting"
        raise EbmtrajError(
            f"run {run.path} was begun with {key} = {had!r}, not {wants!r}; {mend}, or start anew with --overwrite"
        )
    return dataclasses.replace(own, data=recipe.data)


def read_run(run: Path, command: str) -> tuple[Path, dict[str, Any], dict[str, Tensor]]:
    """The checkpoint of a finished run of `ebmtraj train COMMAND`: its path, header and tensors, of any shape.

    Raises `EbmtrajError` where there is no such run, it is not finished, or damaged. Its kind is the caller's to check.
    """
    Run.open(run, f"train {command}")
    path = run / CHECKPOINT
    if not path.exists():
        raise EbmtrajError(f"run {run} is not finished; go on with: ebmtraj train {command} --run {run} --resume ...")
    return path, *load_tensors(path)
