"""What controllers are trained from a store: named trainings, each a run directory that several controllers may share."""

from __future__ import annotations

import dataclasses
import shlex
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from ebmtraj.errors import EbmtrajError
from ebmtraj.training.loop import Result
from ebmtraj.trajectories.clone_fit import clone_step_seconds, load_clone, load_clone_recipe, train_clone
from ebmtraj.trajectories.fit import load_recipe, step_cpu_seconds, train_transition
from ebmtraj.trajectories.plan_fit import CHECKPOINT, load_plan_model, load_plan_recipe, plan_step_seconds, train_plan
from ebmtraj.trajectories.registry import load_model
from ebmtraj.trajectories.sequence_fit import (
    load_sequence_model,
    load_sequence_recipe,
    sequence_step_seconds,
    train_sequence,
)


@dataclass(frozen=True)
class Kind:
    """A command `ebmtraj train ...`: how its recipe is made, timed and trained, and how its model comes back."""

    recipe: Callable[..., Any]  # (path, overrides, given) -> recipe with `data` and `training`
    train: Callable[..., tuple[Result, Any]]  # (recipe, run directory, device=, resume=)
    step_seconds: Callable[[Any], float]  # of one core for an optimiser step
    load: Callable[[Path], tuple[torch.nn.Module, dict[str, Any]]]  # the model in a run directory, and its header


KINDS: dict[str, Kind] = {
    "plan": Kind(load_plan_recipe, train_plan, plan_step_seconds, load_plan_model),
    "sequence": Kind(load_sequence_recipe, train_sequence, sequence_step_seconds, load_sequence_model),
    "clone": Kind(load_clone_recipe, train_clone, clone_step_seconds, load_clone),
    "transition": Kind(load_recipe, train_transition, step_cpu_seconds, lambda run: load_model(run / CHECKPOINT)),
}


@dataclass(frozen=True)
class Training:
    """One model that controllers need: `ebmtraj train KIND --data STORE --run RUN --set ...`."""

    kind: str  # a name of KINDS
    set: tuple[str, ...] = ()  # as --set

    def recipe(self, data: str, seed: int, seconds: float | None = None, changes: tuple[str, ...] = ()) -> Any:
        """The recipe on the store `data`, one thread, with a budget in seconds of one core if one is given.

        `changes` come on top, as `--set`. Raises `EbmtrajError` for settings that the model does not have.
        """
        budget = () if seconds is None else (f"training.seconds={seconds}",)
        overrides = [*budget, *self.set, *changes, f"training.seed={seed}", "training.threads=1"]
        return KINDS[self.kind].recipe(None, overrides, {"data": data})

    def train(self, recipe: Any, run: Path, *, resume: bool = True) -> Result:
        """Train into a run directory on this processor, going on with one that was killed."""
        return KINDS[self.kind].train(recipe, run, device="cpu", resume=resume)[0]

    def step_seconds(self, recipe: Any) -> float:
        """Seconds of one core that an optimiser step takes; nothing is kept."""
        return KINDS[self.kind].step_seconds(recipe)

    def load(self, run: Path) -> torch.nn.Module:
        """The trained model of a run directory; raises `EbmtrajError` where there is none."""
        return KINDS[self.kind].load(run)[0]

    def command(self, data: str, run: str) -> str:
        """The command that trains it."""
        return shlex.join(
            ["ebmtraj", "train", self.kind, "--data", data, "--run", run, *(x for s in self.set for x in ("--set", s))]
        )


TRAININGS: dict[str, Training] = {
    "window": Training("plan"),
    "sequence": Training("sequence"),
    "clone": Training("clone"),
    "clone-axis": Training("clone", ("label=axis",)),
    "clone-goal": Training("clone", ("label=goal",)),
}


def with_steps(recipe: Any, steps: int) -> Any:
    """A recipe with its budget in steps instead of seconds."""
    return dataclasses.replace(recipe, training=dataclasses.replace(recipe.training, steps=steps, seconds=None))


def check_trainings(names: tuple[str, ...], found: dict[str, Any]) -> None:
    """Raise `EbmtrajError` with the command that makes a model that is missing."""
    for name in names:
        if name not in found:
            raise EbmtrajError(f"a model {name!r} is needed; train it: {TRAININGS[name].command('STORE', 'RUN')}")
