"""The controller that a run directory makes: plans from whatever was trained in it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from ebmtraj.config import from_recipe, read_toml
from ebmtraj.datasets.store import Store
from ebmtraj.errors import EbmtrajError
from ebmtraj.fields import Field
from ebmtraj.trajectories.control import Controller, WindowPlanner
from ebmtraj.trajectories.controllers.gradient import GradientConfig, GradientPlanner
from ebmtraj.trajectories.plan import PlannerConfig
from ebmtraj.trajectories.plan_fit import load_plan_model
from ebmtraj.trajectories.registry import load_model
from ebmtraj.trajectories.sequence_fit import load_sequence_model
from ebmtraj.trajectories.sequence_plan import SequenceConfig, SequencePlanner
from ebmtraj.trajectories.stored import environment_of, read_trained
from ebmtraj.trajectories.window import WindowModel


@dataclass(frozen=True)
class RunPlanner:
    """A run's controller, its settings, and the simulator it is for."""

    controller: Controller
    settings: Any  # a frozen dataclass
    state_fields: tuple[Field, ...]
    environment: dict[str, Any]  # what `make_batch` is given: env, env_kwargs, state


def load_planner(
    run: Path, overrides: Sequence[str], device: torch.device | str = "cpu", *, deadline: int = 0
) -> RunPlanner:
    """The controller of a run, with `--set` overrides of its settings; `deadline` is the usual one of those that have any.

    `train plan`: plans of windows of actions; `train sequence`: of sequences of states, followed by the inverse model;
    `train transition --actions`: of states and actions by E(s, a, s') (`dsm`), or of actions through the model (`fc`).
    Raises `EbmtrajError` for a run that does not plan.
    """
    usual, found = {"deadline": deadline}, read_trained(run, "plan")
    kind, header = found.kind, found.header
    if kind == "sequence":
        model, _ = load_sequence_model(run, device)
        settings = from_recipe(SequenceConfig, None, overrides, usual)
        planner = SequencePlanner(model.transition, model.act, settings)
        return RunPlanner(planner, settings, model.state_fields, model.environment)
    if kind == "transition" and header.get("actions") and header.get("model") in ("dsm", "fc"):
        transition, _ = load_model(found.path, device)
        environment = environment_of(Store.open(read_toml(run / "config.toml").get("data", "")))
        if transition.name == "fc":
            through = from_recipe(GradientConfig, None, overrides, usual)
            return RunPlanner(GradientPlanner(transition, through), through, transition.state_fields, environment)
        settings = from_recipe(SequenceConfig, None, overrides, usual)
        planner = SequencePlanner(transition, None, settings)
        return RunPlanner(planner, settings, transition.state_fields, environment)
    if kind != "window":
        raise EbmtrajError(
            f"run {run} holds a {kind} model, which does not plan; train one: ebmtraj train plan (or sequence) --run ..."
        )
    window: WindowModel = load_plan_model(run, device)[0]
    own = from_recipe(PlannerConfig, None, overrides)
    return RunPlanner(WindowPlanner(window, own), own, window.state_fields, window.environment)
