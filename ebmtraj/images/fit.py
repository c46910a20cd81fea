"""From an image store to a trained model in a run directory."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from ebmtraj import config as recipes
from ebmtraj.datasets.images import ImageStore, open_images
from ebmtraj.device import choose_device, describe, use_threads
from ebmtraj.errors import EbmtrajError
from ebmtraj.images.data import ImageData
from ebmtraj.images.model import ImageModel
from ebmtraj.images.registry import image_model_class, make_image_model
from ebmtraj.locks import only_writer
from ebmtraj.runs import Run, machine, versions, write_atomic, write_json
from ebmtraj.training.checkpoint import load_tensors, recipe_seal, save_tensors
from ebmtraj.training.loop import Progress, Result
from ebmtraj.training.recipe import Usual, recipe_by_model
from ebmtraj.training.run import CHECKPOINT, Kind, same_recipe, train_run
from ebmtraj.training.settings import TrainingConfig


@dataclass(frozen=True)
class ImageRecipe:
    """All that decides a model of images; `config.toml` in the run directory holds exactly this."""

    model: str = "dsm"  # a name of `images.registry.MODELS`
    conditional: bool = False  # p(x | y) rather than p(x)
    data: str = "digits"  # a source's name, or an image store
    condition: str = ""  # factors of the images, with commas between, that stand in place of their classes
    content_hash: str | None = None  # of the store, so that a run says what it was trained on
    network: dict[str, Any] = field(default_factory=dict)  # settings of the model, see its Config
    training: TrainingConfig = field(default_factory=TrainingConfig)  # `episodes` counts images here


def load_image_recipe(
    path: Path | None, overrides: Sequence[str], given: dict[str, Any], defaults: dict[str, Any] | None = None
) -> ImageRecipe:
    """Defaults, the model's own among them, then the recipe file, then `--set`, then the command's own options, all checked.

    Raises `EbmtrajError` that names the first key or value that is not known.
    """
    return recipe_by_model(ImageRecipe, path, overrides, given, defaults, _usual)


def _usual(recipe: ImageRecipe) -> Usual:
    chosen = image_model_class(recipe.model)
    return Usual(chosen.Config, chosen.conditional_defaults if recipe.conditional else {}, chosen.training_defaults)


def train_image(
    recipe: ImageRecipe,
    path: Path,
    *,
    device: str = "auto",
    resume: bool = False,
    overwrite: bool = False,
    on_progress: Callable[[Progress], None] = lambda progress: None,
) -> tuple[Result, ImageRecipe]:
    """Train a model of images on a store into a run directory; returns what it came to and the recipe as it was run.

    With `resume`, an unfinished run goes on under its own recipe, to the same bits on CPU; a run that is not there yet is
    begun. Raises `EbmtrajError` where the store or run is not fit, or training diverges for good.
    """
    if image_model_class(recipe.model).closed_form:
        return fit_closed(recipe, path, device=device, resume=resume, overwrite=overwrite)
    return train_run(IMAGE, recipe, path, device=device, resume=resume, overwrite=overwrite, on_progress=on_progress)


def fit_closed(
    recipe: ImageRecipe, path: Path, *, device: str = "auto", resume: bool = False, overwrite: bool = False
) -> tuple[Result, ImageRecipe]:
    """As `train_image`, for a model that is fitted in closed form.

    Raises `EbmtrajError` where the store is none, or the run exists already.
    """
    with only_writer(path, "run"):
        return _fit_closed(recipe, path, device, resume, overwrite)


def _fit_closed(recipe: ImageRecipe, path: Path, device: str, resume: bool, overwrite: bool) -> tuple[Result, ImageRecipe]:
    where = choose_device(device)
    use_threads(recipe.training.threads)
    store = _open(recipe)
    recipe = dataclasses.replace(recipe, content_hash=store.content_hash)
    if resume and (path / CHECKPOINT).exists():
        recipe = same_recipe(recipe, Run.open(path))
        facts, _ = load_tensors(path / CHECKPOINT)
        return Result(0, facts["seconds"], facts["validation"], 0), recipe
    run = Run.create(path, overwrite=overwrite or resume)
    write_json(path / "versions.json", {**versions(), **machine(), **describe(where)})
    write_atomic(run.config, recipes.to_toml(recipe))
    began = time.perf_counter()
    model = _fresh(recipe, store).to(where)
    model.prepare(_data(store, "train", recipe, model, where))
    seconds = round(time.perf_counter() - began, 3)
    held_out = ImageData.load(store, "validation", where, limit=recipe.training.validation)
    with torch.no_grad():
        validation = model.validation(held_out)
    facts = {"steps": 0, "validation": validation, "seconds": seconds}
    save_tensors(path / CHECKPOINT, model.eval().state_dict(), {**model.header(), **facts, **recipe_seal(path)})
    return Result(0, seconds, validation, 0), recipe


def _open(recipe: ImageRecipe) -> ImageStore:
    store = open_images(recipe.data)
    return store.labelled_by([name.strip() for name in recipe.condition.split(",")]) if recipe.condition else store


def _fresh(recipe: ImageRecipe, store: ImageStore) -> ImageModel:
    return make_image_model(
        recipe.model,
        store.shape,
        store.classes,
        conditional=recipe.conditional,
        network=recipe.network,
        seed=recipe.training.seed,
    )


def _data(store: ImageStore, split: str, recipe: ImageRecipe, model: ImageModel, device: torch.device) -> ImageData:
    data = ImageData.load(store, split, device, limit=(recipe.training.episodes or None) if split == "train" else None)
    if split == "train" and len(data) < recipe.training.episodes:
        raise EbmtrajError(
            f"training.episodes = {recipe.training.episodes}, but the training split of {store.path} has {len(data)} "
            "images; give at most that many, or 0 for all"
        )
    return data


IMAGE = Kind(_open, _fresh, _data)
