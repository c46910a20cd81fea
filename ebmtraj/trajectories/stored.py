"""What training runs on a store of rollouts share: which stores will do, and what a finished run says."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

from torch import Tensor

from ebmtraj import config as recipes
from ebmtraj.datasets.store import Store
from ebmtraj.errors import EbmtrajError
from ebmtraj.fields import Field, fields_from_json
from ebmtraj.training.run import KeptRecipe, read_run
from ebmtraj.training.settings import TrainingConfig


def open_store(recipe: KeptRecipe) -> Store:
    """The store that a recipe names; raises `EbmtrajError` for one that is not finished or has too few episodes for it."""
    store = Store.open(recipe.data)
    check_complete(store)
    check_episodes(recipe.training, store)
    return store


class Trained(NamedTuple):
    """What a finished run holds, before a model is made of it."""

    path: Path  # of the checkpoint
    header: dict[str, Any]
    tensors: dict[str, Tensor]  # by name, of any shape
    state_fields: tuple[Field, ...]
    action_fields: tuple[Field, ...]
    network: dict[str, Any]
    environment: dict[str, Any]  # what `make_batch` is given

    @property
    def kind(self) -> str:
        """What was trained, as its header says."""
        return str(self.header.get("kind"))

    def refuse(self, message: str) -> EbmtrajError:
        """The error that names this checkpoint."""
        return EbmtrajError(f"checkpoint {self.path}: {message}")


def read_trained(run: Path, command: str) -> Trained:
    """What a finished run of `ebmtraj train COMMAND` holds.

    Raises `EbmtrajError` where there is no such run, it is not finished, or damaged. Its kind is the caller's to check.
    """
    path, header, tensors = read_run(run, command)
    try:
        network, environment = dict(header["network"]), dict(header.get("environment", {}))
        state_fields, action_fields = (fields_from_json(header[name]) for name in ("state_fields", "action_fields"))
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise EbmtrajError(f"checkpoint {path}: its header is damaged ({error})") from None
    return Trained(path, header, tensors, state_fields, action_fields, recipes.to_plain(network), environment)


def environment_of(store: Store) -> dict[str, Any]:
    """In which simulator plans learnt from a store can be carried out: what `make_batch` is given."""
    said = store.attributes.get("env_attributes", {}).get("state")
    return {"env": store.attributes["env"], "env_kwargs": store.attributes["env_kwargs"], "state": said or "auto"}


def episode_limit(recipe: KeptRecipe, split: str) -> int | None:
    """How many episodes of a split are used; None: all."""
    return (recipe.training.episodes or None) if split == "train" else None


def check_complete(store: Store) -> None:
    """Raise `EbmtrajError` for a store that is not finished: it may still change, and no hash says what was trained on."""
    if not store.complete:
        raise EbmtrajError(
            f"store {store.path} is not finished; go on with the command that made it and --resume "
            f"(with --episodes {max(1, store.episodes)} it ends as it is)"
        )


def check_episodes(training: TrainingConfig, store: Store) -> None:
    """Raise `EbmtrajError` where the recipe asks for more training episodes than the store has."""
    held, asked = len(store.split("train")), training.episodes
    if asked > held:
        raise EbmtrajError(
            f"training.episodes = {asked}, but the training split of store {store.path} has {held}; give at most that many, "
            "or 0 for all"
        )
