"""From a store to a model that plans sequences of states, in a run directory."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch

from ebmtraj import config as recipes
from ebmtraj.datasets.store import Store
from ebmtraj.datasets.windows import Transitions
from ebmtraj.device import use_threads
from ebmtraj.errors import EbmtrajError
from ebmtraj.fields import fields_from_json
from ebmtraj.runs import Run
from ebmtraj.training.checkpoint import load_tensors, load_weights
from ebmtraj.training.loop import Progress, Result, TrainingConfig, step_time
from ebmtraj.trajectories.plan_fit import CHECKPOINT, environment_of, train_on
from ebmtraj.trajectories.sequence_model import SequenceModel, SequenceNetwork


@dataclass(frozen=True)
class SequenceRecipe:
    """All that decides a model that plans sequences of states; `config.toml` in the run directory holds exactly this."""

    kind: str = "sequence"
    data: str = ""  # the store
    content_hash: str | None = None  # of the store, so that a run says what it was trained on
    network: SequenceNetwork = field(default_factory=SequenceNetwork)
    training: TrainingConfig = field(default_factory=lambda: TrainingConfig(steps=15_000, learning_rate=4e-3, constant=0.2))

    def __post_init__(self) -> None:
        if self.kind != "sequence":
            raise EbmtrajError(f"kind = {self.kind!r}; a recipe of sequence plans says kind = 'sequence'")


def load_sequence_recipe(
    path: Path | None, overrides: Sequence[str], given: dict[str, Any], defaults: dict[str, Any] | None = None
) -> SequenceRecipe:
    """Defaults, then the recipe file, then `--set`, then the command's own options, all checked."""
    usual = recipes.to_plain(dataclasses.asdict(SequenceRecipe()))  # so that one setting leaves the others as they are
    recipe = recipes.from_recipe(SequenceRecipe, path, overrides, recipes.merge(usual, defaults or {}))
    recipe = dataclasses.replace(recipe, **{k: v for k, v in given.items() if v is not None})
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
    where = partial(_transitions, limit=recipe.training.episodes or None)
    return train_on(recipe, path, _fresh, where, device=device, resume=resume, overwrite=overwrite, on_progress=on_progress)


def sequence_step_seconds(recipe: SequenceRecipe) -> float:
    """Seconds of one CPU core that an optimiser step of this recipe takes, all stages by their shares; nothing is kept."""
    use_threads(1)
    store = Store.open(recipe.data)
    model, data = _fresh(recipe, store), _transitions(store, "validation", torch.device("cpu"))
    model.prepare(data)
    return step_time(model, data, recipe.training, clock=time.thread_time)


def load_sequence_model(run: Path, device: torch.device | str = "cpu") -> tuple[SequenceModel, dict[str, Any]]:
    """The model of a run of `train sequence`, ready to plan, and its checkpoint's header.

    Raises `EbmtrajError` where there is no such run, it is of another kind, not finished, or damaged.
    """
    Run.open(run)
    path = run / CHECKPOINT
    if not path.exists():
        raise EbmtrajError(f"run {run} is not finished; go on with: ebmtraj train sequence --run {run} --resume ...")
    header, tensors = load_tensors(path)
    if header.get("kind") != "sequence":
        raise EbmtrajError(f"run {run} holds a {header.get('kind')} model; train one: ebmtraj train sequence --run ...")
    try:
        network, environment = dict(header["network"]), dict(header["environment"])
        state_fields, action_fields = (fields_from_json(header[name]) for name in ("state_fields", "action_fields"))
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise EbmtrajError(f"checkpoint {path}: its header is damaged ({error})") from None
    source = f"checkpoint {path}"
    settings = recipes.build(SequenceNetwork, recipes.to_plain(network), f"{source}: network").completed(source)
    model = SequenceModel(state_fields, action_fields, network=settings, environment=environment)
    load_weights(model, tensors, path)
    return model.to(device).eval(), header


def _transitions(store: Store, split: str, device: torch.device, *, limit: int | None = None) -> Transitions:
    limit = limit if split == "train" else None
    return Transitions.load(store, split, actions=True, limit=limit, device=device)


def _fresh(recipe: SequenceRecipe, store: Store) -> SequenceModel:
    """The model before its first step, its weights drawn from the seed."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(recipe.training.seed)
        return SequenceModel(
            store.state_fields, store.action_fields, network=recipe.network, environment=environment_of(store)
        )
