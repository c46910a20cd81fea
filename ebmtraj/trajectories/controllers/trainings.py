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
from ebmtraj.training.run import CHECKPOINT, Kind, step_seconds, train_run
from ebmtraj.trajectories.clone_fit import CLONE, load_clone, load_clone_recipe
from ebmtraj.trajectories.fit import TRANSITION, load_recipe
from ebmtraj.trajectories.plan_fit import PLAN, load_plan_model, load_plan_recipe
from ebmtraj.trajectories.registry import load_model
from ebmtraj.trajectories.sequence_fit import SEQUENCE, load_sequence_model, load_sequence_recipe


@dataclass(frozen=True)
class Command:
    """A command `ebmtraj train ...`: what it trains, how its recipe is made, and how its model comes back."""

    kind: Kind
    recipe: Callable[..., Any]  # (path, overrides, given) -> recipe with `data` and `training`
    load: Callable[[Path], tuple[torch.nn.Module, dict[str, Any]]]  # the model in a run directory, and its header


COMMANDS: dict[str, Command] = {
    "plan": Command(PLAN, load_plan_recipe, load_plan_model),
    "sequence": Command(SEQUENCE, load_sequence_recipe, load_sequence_model),
    "clone": Command(CLONE, load_clone_recipe, load_clone),
    "transition": Command(TRANSITION, load_recipe, lambda run: load_model(run / CHECKPOINT)),
}


@dataclass(frozen=True)
class Training:
    """One model that controllers need: `ebmtraj train KIND --data STORE --run RUN --set ...`."""

    kind: str  # a name of COMMANDS
    set: tuple[str, ...] = ()  # as --set

    def recipe(self, data: str, seed: int, seconds: float | None = None, changes: tuple[str, ...] = ()) -> Any:
        """The recipe on the store `data`, one thread, with a budget in seconds of one core if one is given.

        `changes` come on top, as `--set`. Raises `EbmtrajError` for settings that the model does not have.
        """
        budget = () if seconds is None else (f"training.seconds={seconds}",)
        overrides = [*budget, *self.set, *changes, f"training.seed={seed}", "training.threads=1"]
        return COMMANDS[self.kind].recipe(None, overrides, {"data": data})

    def train(self, recipe: Any, run: Path, *, resume: bool = True) -> Result:
        """Train into a run directory on this processor, going on with one that was killed."""
        return train_run(COMMANDS[self.kind].kind, recipe, run, device="cpu", resume=resume)[0]

    def step_seconds(self, recipe: Any) -> float:
        """Seconds of one core that an optimiser step takes; nothing is kept."""
        return step_seconds(COMMANDS[self.kind].kind, recipe)

    def load(self, run: Path) -> torch.nn.Module:
        """The trained model of a run directory; raises `EbmtrajError` where there is none."""
        return COMMANDS[self.kind].load(run)[0]

    def command(self, data: str, run: str) -> str:
        """The command that trains it."""
        return shlex.join(
            ["ebmtraj", "train", self.kind, "--data", data, "--run", run, *(x for s in self.set for x in ("--set", s))]
        )


# Models that are told the action, and the past: a hand's state does not say how fast it moves.
PAST = ("actions=true", "network.history=2", "network.previous_control=true")
# The paper's feed-forward network as it should have been, see `report.compare_rows`.
DELTA = ("network.space=delta", "network.matrices=true", "network.spectral=false", "network.width=256")
TRAININGS: dict[str, Training] = {
    "window": Training("plan"),
    "sequence": Training("sequence"),
    "clone": Training("clone"),
    "clone-axis": Training("clone", ("label=axis",)),
    "clone-goal": Training("clone", ("label=goal", "network.horizons=[8,16,32]")),
    "window-field": Training("plan", ("prior=field",)),
    "dynamics-fc": Training("transition", ("model=fc", *DELTA, *PAST)),
    "dynamics-ensemble": Training("transition", ("model=ensemble", *PAST)),
}


def with_steps(recipe: Any, steps: int) -> Any:
    """A recipe with its budget in steps instead of seconds."""
    return dataclasses.replace(recipe, training=dataclasses.replace(recipe.training, steps=steps, seconds=None))


def check_trainings(names: tuple[str, ...], found: dict[str, Any]) -> None:
    """Raise `EbmtrajError` with the command that makes a model that is missing."""
    for name in names:
        if name not in found:
            raise EbmtrajError(f"a model {name!r} is needed; train it: {TRAININGS[name].command('STORE', 'RUN')}")
