"""`ebmtraj train`: learn a model from a store into a run directory."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Annotated

import typer

from ebmtraj.cli import complete
from ebmtraj.cli.common import Data
from ebmtraj.cli.grouped import grouped
from ebmtraj.cli.training import Training

app = typer.Typer(help="Learn a model from a store into a run directory.", no_args_is_help=True)


@app.command("transition")
@grouped
def transition(
    data: Data,
    training: Training,
    objective: Annotated[
        str | None,
        typer.Option(
            help="Of the energy: dsm (base + energy by score matching, the default), cd (the paper's) or icd (cd with "
            "its KL term).",
            autocompletion=complete.among(*complete.TRANSITION_OBJECTIVES),
        ),
    ] = None,
    model: Annotated[
        str | None,
        typer.Option(
            help="energy, or a baseline: fc, gaussian, ensemble, mdn, edm, flow, field, gru, ratio.",
            autocompletion=complete.among(*complete.TRANSITION_MODELS),
        ),
    ] = None,
    actions: Annotated[
        bool | None, typer.Option("--actions/--no-actions", help="Learn E(s, a, s') instead of E(s, s').")
    ] = None,
) -> None:
    """Learn a transition energy (or a baseline) from a store.

    The budget is in optimiser steps, so that a run reproduces to the bit: --set training.steps=20000. With --set
    training.seconds=60 the steps that fit are measured first and written into the run's config.toml. A killed run goes on
    with --resume and ends in the same bits as one that was not (CPU). A store that is too large for memory is read while it
    trains (--set stream=true does so with any).

    Example: ebmtraj train transition --data hand.zarr --run runs/hand --set training.steps=8000
    """
    from ebmtraj.errors import EbmtrajError
    from ebmtraj.trajectories.fit import TRANSITION, load_recipe, train_transition
    from ebmtraj.trajectories.registry import ENERGIES, MODELS

    if objective is not None and objective not in ENERGIES:
        raise EbmtrajError(f"unknown objective {objective!r}; use one of {', '.join(ENERGIES)}")
    if model == "energy":
        model = objective or "dsm"
    elif model is not None and objective is not None:
        raise EbmtrajError(f"--objective {objective} is for energies; drop it with --model {model}")
    if model is not None and model not in MODELS:
        raise EbmtrajError(
            f"unknown model {model!r}; use one of energy, {', '.join(m for m in MODELS if m not in ENERGIES)}"
        )
    given = {"model": model or objective, "actions": actions, "data": data}
    trained = training.carry_out(load_recipe, train_transition, TRANSITION, given)
    following = f"ebmtraj evaluate {shlex.quote(str(training.run))} --data {shlex.quote(data)}"
    training.tell(trained, ("model", "actions"), following)


@app.command("plan")
@grouped
def plan(
    data: Data,
    training: Training,
    prior: Annotated[
        str | None,
        typer.Option(
            help="What proposes actions: energy (the default), or field, a free vector field.",
            autocompletion=complete.among(*complete.PRIORS),
        ),
    ] = None,
) -> None:
    """Learn what plans are made of: an energy of the next actions, and what actions are expected to lead to.

    No task enters: tasks are costs that `ebmtraj plan` adds afterwards. Budget, --resume and --set are as in `train
    transition`.

    Example: ebmtraj train plan --data hand.zarr --run runs/plan --set training.steps=20000
    """
    from ebmtraj.trajectories.plan_fit import PLAN, load_plan_recipe, train_plan

    given = {"prior": prior, "data": data}
    trained = training.carry_out(load_plan_recipe, train_plan, PLAN, given, lambda recipe: "training to plan")
    training.tell(trained, ("prior",), _to_plan(training.run, data))


@app.command("sequence")
@grouped
def sequence(data: Data, training: Training) -> None:
    """Learn what plans of whole state sequences are made of: a transition energy E(s, s'), and an inverse model.

    The energy is as that of `train transition` (--set network.objective=cd: the paper's; its settings are
    network.transition....), the inverse model says which action leads from a state to the next one of a plan. No task
    enters. Budget, --resume and --set are as in `train transition`.

    Example: ebmtraj train sequence --data reacher.zarr --run runs/reach --set training.steps=8000
    """
    from ebmtraj.trajectories.sequence_fit import SEQUENCE, load_sequence_recipe, train_sequence

    given = {"data": data}
    trained = training.carry_out(load_sequence_recipe, train_sequence, SEQUENCE, given, lambda recipe: "training to plan")
    training.tell(trained, (), _to_plan(training.run, data, whole=True))


@app.command("jem")
@grouped
def jem(
    training: Training,
    data: Annotated[
        str, typer.Option("--data", help="A source's name (digits, cifar10, ...) or an image store.")
    ] = "digits",
    model: Annotated[
        str | None,
        typer.Option(
            help="jem (score matching, the default), jem-cd (the papers'), or classifier, the same net alone.",
            autocompletion=complete.among(*complete.JOINT_MODELS),
        ),
    ] = None,
) -> None:
    """Learn a joint energy model: a classifier whose logits are an energy of the images, too.

    With --set network.labelled=200 so many images keep their label, the others are learnt from without; with --set
    network.factored=true p(x) and p(y | x) share a network, but no logits. Budget, --resume and --set are as in `train
    transition`.

    Example: ebmtraj train jem --data digits --run runs/jem
    """
    from ebmtraj.errors import EbmtrajError
    from ebmtraj.images.fit import IMAGE, load_image_recipe, train_image
    from ebmtraj.images.registry import JOINT

    if model is not None and model not in JOINT:
        raise EbmtrajError(f"unknown model {model!r}; use one of {', '.join(JOINT)} (others: ebmtraj train image)")
    begun = training.resume and (training.run / "config.toml").exists()
    given = {"model": model or (None if training.recipe or begun else JOINT[0]), "data": data}
    trained = training.carry_out(load_image_recipe, train_image, IMAGE, given)
    training.tell(trained, ("model",), f"ebmtraj ood {shlex.quote(str(training.run))}")


@app.command("clone")
@grouped
def clone(
    data: Data,
    training: Training,
    label: Annotated[
        str | None,
        typer.Option(
            help="What it is told: none (the default), axis (turned about next) or goal (an orientation reached).",
            autocompletion=complete.among(*complete.CLONE_LABELS),
        ),
    ] = None,
) -> None:
    """Learn to act as the data does: behaviour cloning, an opponent of plans in `ebmtraj compare plans`.

    Labels are found in hindsight, in what came of the actions. Budget, --resume and --set are as in `train transition`.

    Example: ebmtraj train clone --data hand.zarr --run runs/clone --label axis
    """
    from ebmtraj.trajectories.clone_fit import CLONE, load_clone_recipe, train_clone

    given = {"label": label, "data": data}
    trained = training.carry_out(load_clone_recipe, train_clone, CLONE, given, lambda recipe: "cloning")
    training.tell(trained, ("label",))


def _to_plan(run: Path, data: str, whole: bool = False) -> str:
    """The command that plans with a run, for a task that makes sense of the states; `whole`: of plans that end in a goal."""
    from ebmtraj.datasets.store import Store
    from ebmtraj.trajectories.trial import usual_task

    task = usual_task(Store.open(data).state_fields, whole=whole)
    return f'ebmtraj plan {shlex.quote(str(run))} --task "{task}"'
