"""Every controller of a comparison by name: one line each."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from ebmtraj.config import build, merge
from ebmtraj.errors import EbmtrajError
from ebmtraj.trajectories.control import Controller, WindowPlanner
from ebmtraj.trajectories.controllers.cloned import CloneControlConfig, Cloned
from ebmtraj.trajectories.controllers.commanded import Commanded, CommandedConfig
from ebmtraj.trajectories.controllers.predictive import (
    AroundThePlan,
    FromThePrior,
    PredictiveConfig,
    PredictiveSampling,
)
from ebmtraj.trajectories.controllers.shooting import Shooting, ShootingConfig
from ebmtraj.trajectories.controllers.simple import HoldConfig, HoldStill, RandomActions, RandomConfig
from ebmtraj.trajectories.controllers.trainings import check_trainings
from ebmtraj.trajectories.plan import PlannerConfig
from ebmtraj.trajectories.sequence_plan import SequenceConfig, SequencePlanner

# Those of CEM with a prior were chosen on validation starts, of rounds, candidates, mutation, horizon, members and pessimism
# (rotate, in the ensemble); the others follow them and were tried once.
CEM: dict[str, Any] = {"method": "cem", "candidates": 24, "elites": 5, "every": 4}
MPPI: dict[str, Any] = {"method": "mppi", "candidates": 24, "elites": 5, "every": 4, "temperature": 0.2}
CEM_PRIOR: dict[str, Any] = {"method": "cem", "candidates": 16, "elites": 4, "renoise": 1.0, "every": 4}
MPPI_PRIOR: dict[str, Any] = {**CEM_PRIOR, "method": "mppi", "temperature": 0.2}


@dataclass(frozen=True)
class Entry:
    """A way to choose actions: what it is, what must be trained for it, and how it is made.

    `make(trained, settings)` is given the models of `needs` by their names and a `Config`. `settings` are its own for each
    kind of task, those under "" for all; they were chosen on validation starts.
    """

    about: str
    Config: Any  # a frozen dataclass
    make: Callable[[Mapping[str, Any], Any], Controller]
    needs: tuple[str, ...] = ()  # names of `trainings.TRAININGS`
    settings: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    privileged: bool = False  # it knows what is in no state: the simulator, or the policy that made the data
    env: str | None = None  # the only environment that it acts on; None: any
    episodes: int | None = None  # at most so many in a comparison, where it is slow

    def config(self, task: str = "", changes: Mapping[str, Any] | None = None) -> Any:
        """Its settings for a kind of task; raises `EbmtrajError` for a key or value that it does not take."""
        values: dict[str, Any] = merge(self.settings.get("", {}), self.settings.get(task, {}))
        return build(self.Config, merge(values, changes or {}), "settings")


def _window(trained: Mapping[str, Any], config: PlannerConfig) -> WindowPlanner:
    return WindowPlanner(trained["window"], config)


def _planner(about: str, **settings: Mapping[str, Any]) -> Entry:
    """Plans from the window energy under some settings; `every` task's stand under `all`."""
    own = {("" if task == "all" else task): values for task, values in settings.items()}
    return Entry(about, PlannerConfig, _window, ("window",), own)


def _cloned(about: str, need: str, **settings: Mapping[str, Any]) -> Entry:
    """A cloned policy under some settings for each task."""
    return Entry(about, CloneControlConfig, lambda trained, config: Cloned(trained[need], config), (need,), settings)


def _commanded(about: str, **all: Any) -> Entry:
    """The policy that made the data."""
    return Entry(
        about,
        CommandedConfig,
        lambda trained, config: Commanded(config),
        settings={"": all},
        privileged=True,
        env="hand-cube",
    )


def _shooting(about: str, dynamics: str, prior: str | None = None, **settings: Mapping[str, Any]) -> Entry:
    """CEM or MPPI in a one-step model under some settings; `every` task's stand under `all`."""
    own = {("" if task == "all" else task): values for task, values in settings.items()}
    needs = (dynamics,) if prior is None else (dynamics, prior)

    def make(trained: Mapping[str, Any], config: ShootingConfig) -> Shooting:
        return Shooting(trained[dynamics], config, None if prior is None else trained[prior])

    return Entry(about, ShootingConfig, make, needs, own, episodes=48)


CONTROLLERS: dict[str, Entry] = {
    "ours": _planner("window energy, guided by the task cost"),
    "unguided": _planner("window energy without the task", all={"candidates": 1, "guidance": 0.0}),
    "best-of-32": _planner("window energy, best of 32 by expected cost", all={"candidates": 32, "guidance": 0.0}),
    "base": _planner("its Gaussian base alone, guided", all={"prior": False}, rotate={"reach": 1.3}),
    "base-best-of-32": _planner(
        "its Gaussian base alone, best of 32", all={"prior": False, "candidates": 32, "guidance": 0.0}
    ),
    "field": Entry(
        "a vector field in the energy's place (guided diffusion), guided by the task cost",
        PlannerConfig,
        lambda trained, config: WindowPlanner(trained["window-field"], config),
        ("window-field",),
    ),
    "cem-fc": _shooting("CEM in FC", "dynamics-fc", all=CEM),
    "mppi-fc": _shooting("MPPI in FC", "dynamics-fc", all=MPPI),
    "cem-fc-prior": _shooting("CEM in FC, from the window energy", "dynamics-fc", "window", all=CEM_PRIOR),
    "mppi-fc-prior": _shooting("MPPI in FC, from the window energy", "dynamics-fc", "window", all=MPPI_PRIOR),
    "cem-ensemble": _shooting("CEM in a Gaussian ensemble", "dynamics-ensemble", all=CEM),
    "mppi-ensemble": _shooting("MPPI in a Gaussian ensemble", "dynamics-ensemble", all=MPPI),
    "cem-ensemble-prior": _shooting(
        "CEM in a Gaussian ensemble, from the window energy", "dynamics-ensemble", "window", all=CEM_PRIOR
    ),
    "mppi-ensemble-prior": _shooting(
        "MPPI in a Gaussian ensemble, from the window energy", "dynamics-ensemble", "window", all=MPPI_PRIOR
    ),
    "sequence": Entry(
        "sum of one-step energies over sequences of states, sampled with the task cost; inverse model",
        SequenceConfig,
        lambda trained, config: SequencePlanner(trained["sequence"].transition, trained["sequence"].act, config),
        ("sequence",),
        episodes=48,
    ),
    "bc": _cloned("behaviour cloning, told nothing", "clone"),
    "bc-axis": _cloned("behaviour cloning, told the axis that hindsight found", "clone-axis"),
    "bc-goal": _cloned(
        "behaviour cloning, told an orientation reached later", "clone-goal", rotate={"turn": 1.2}, reorient={"least": 0.6}
    ),
    "commanded": _commanded("the data's policy given its command; for goals a servo that commands the nearest axis"),
    "commanded-random": _commanded("the same with every 4th action random, as in the data", random_every=4),
    "simulator": Entry(
        "predictive sampling in the true simulator, around the previous plan",
        PredictiveConfig,
        lambda trained, config: PredictiveSampling(AroundThePlan(config), config),
        privileged=True,
        episodes=48,
    ),
    "simulator-prior": Entry(
        "predictive sampling in the true simulator, from guided draws of the window energy",
        PredictiveConfig,
        lambda trained, config: PredictiveSampling(FromThePrior(trained["window"], config), config),
        ("window",),
        {"": {"samples": 8, "guidance": 300.0}},  # unguided draws turn the cube 2.7 instead of 4.3 rad
        privileged=True,
        episodes=48,
    ),
    "hold": Entry("the joints stay where they are at the start", HoldConfig, lambda trained, config: HoldStill(config)),
    "random": Entry("random actions", RandomConfig, lambda trained, config: RandomActions(config)),
}


def find_controller(name: str) -> Entry:
    """The entry of this name; raises `EbmtrajError` with the nearest one otherwise."""
    if name not in CONTROLLERS:
        close = difflib.get_close_matches(name, CONTROLLERS, n=1)
        hint = f"did you mean {close[0]}?" if close else f"use {', '.join(CONTROLLERS)}"
        raise EbmtrajError(f"unknown model {name!r}; {hint}")
    return CONTROLLERS[name]


def make_controller(
    name: str, trained: Mapping[str, Any], task: str = "", changes: Mapping[str, Any] | None = None
) -> Controller:
    """The controller of this name for a kind of task, such as rotate or reorient, from trained models by their names.

    Raises `EbmtrajError` for an unknown name or setting, and for a model that is missing.
    """
    entry = find_controller(name)
    check_trainings(entry.needs, dict(trained))
    return entry.make(trained, entry.config(task, changes))
