"""`ebmtraj train`: learn a model from a store into a run directory."""

from __future__ import annotations

import shlex
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ebmtraj.cli import complete
from ebmtraj.cli.common import Data, Device, Json, Overwrite, Resume, Set, print_json, progress, say
from ebmtraj.cli.dry import DryRun, refuse_resume, tell_estimate

if TYPE_CHECKING:
    from ebmtraj.training.loop import Progress, Result

RunDirectory = Annotated[Path, typer.Option("--run", help="The run directory to make.")]
Recipe = Annotated[Path | None, typer.Option("--recipe", help="A TOML recipe; a run's own config.toml is one.")]
TrainingSeed = Annotated[int | None, typer.Option("--seed", help="Same seed, same bits (on CPU).", min=0, max=2**63 - 1)]

app = typer.Typer(help="Learn a model from a store into a run directory.", no_args_is_help=True)


@app.command("transition")
def transition(
    data: Data,
    run: RunDirectory,
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
    recipe: Recipe = None,
    set_: Set = None,
    seed: TrainingSeed = None,
    device: Device = "auto",
    resume: Resume = False,
    overwrite: Overwrite = False,
    dry_run: DryRun = False,
    json_: Json = False,
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
    budget = Budget(run, recipe, set_, seed, device, resume, overwrite, json_, dry_run)
    trained = _train(budget, load_recipe, train_transition, given, lambda recipe: f"training {recipe.model}", TRANSITION)
    budget.tell(trained, ("model", "actions"), f"ebmtraj evaluate {shlex.quote(str(run))} --data {shlex.quote(data)}")


@app.command("plan")
def plan(
    data: Data,
    run: RunDirectory,
    prior: Annotated[
        str | None,
        typer.Option(
            help="What proposes actions: energy (the default), or field, a free vector field.",
            autocompletion=complete.among(*complete.PRIORS),
        ),
    ] = None,
    recipe: Recipe = None,
    set_: Set = None,
    seed: TrainingSeed = None,
    device: Device = "auto",
    resume: Resume = False,
    overwrite: Overwrite = False,
    dry_run: DryRun = False,
    json_: Json = False,
) -> None:
    """Learn what plans are made of: an energy of the next actions, and what actions are expected to lead to.

    No task enters: tasks are costs that `ebmtraj plan` adds afterwards. Budget, --resume and --set are as in `train
    transition`.

    Example: ebmtraj train plan --data hand.zarr --run runs/plan --set training.steps=20000
    """
    from ebmtraj.trajectories.plan_fit import PLAN, load_plan_recipe, train_plan

    budget = Budget(run, recipe, set_, seed, device, resume, overwrite, json_, dry_run)
    given = {"prior": prior, "data": data}
    trained = _train(budget, load_plan_recipe, train_plan, given, lambda recipe: "training to plan", PLAN)
    budget.tell(trained, ("prior",), f'ebmtraj plan {shlex.quote(str(run))} --task "{_a_task(trained[1].data)}"')


@app.command("sequence")
def sequence(
    data: Data,
    run: RunDirectory,
    recipe: Recipe = None,
    set_: Set = None,
    seed: TrainingSeed = None,
    device: Device = "auto",
    resume: Resume = False,
    overwrite: Overwrite = False,
    dry_run: DryRun = False,
    json_: Json = False,
) -> None:
    """Learn what plans of whole state sequences are made of: a transition energy E(s, s'), and an inverse model.

    The energy is as that of `train transition` (--set network.objective=cd: the paper's; its settings are
    network.transition....), the inverse model says which action leads from a state to the next one of a plan. No task
    enters. Budget, --resume and --set are as in `train transition`.

    Example: ebmtraj train sequence --data reacher.zarr --run runs/reach --set training.steps=8000
    """
    from ebmtraj.trajectories.sequence_fit import SEQUENCE, load_sequence_recipe, train_sequence

    budget = Budget(run, recipe, set_, seed, device, resume, overwrite, json_, dry_run)
    trained = _train(
        budget, load_sequence_recipe, train_sequence, {"data": data}, lambda recipe: "training to plan", SEQUENCE
    )
    budget.tell(trained, (), f'ebmtraj plan {shlex.quote(str(run))} --task "{_a_task(trained[1].data, whole=True)}"')


@app.command("jem")
def jem(
    run: RunDirectory,
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
    recipe: Recipe = None,
    set_: Set = None,
    seed: TrainingSeed = None,
    device: Device = "auto",
    resume: Resume = False,
    overwrite: Overwrite = False,
    dry_run: DryRun = False,
    json_: Json = False,
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
    budget = Budget(run, recipe, set_, seed, device, resume, overwrite, json_, dry_run)
    begun = resume and (run / "config.toml").exists()
    given = {"model": model or (None if recipe or begun else JOINT[0]), "data": data}
    trained = _train(budget, load_image_recipe, train_image, given, lambda recipe: f"training {recipe.model}", IMAGE)
    budget.tell(trained, ("model",), f"ebmtraj ood {shlex.quote(str(run))}")


@app.command("clone")
def clone(
    data: Data,
    run: RunDirectory,
    label: Annotated[
        str | None,
        typer.Option(
            help="What it is told: none (the default), axis (turned about next) or goal (an orientation reached).",
            autocompletion=complete.among(*complete.CLONE_LABELS),
        ),
    ] = None,
    recipe: Recipe = None,
    set_: Set = None,
    seed: TrainingSeed = None,
    device: Device = "auto",
    resume: Resume = False,
    overwrite: Overwrite = False,
    dry_run: DryRun = False,
    json_: Json = False,
) -> None:
    """Learn to act as the data does: behaviour cloning, an opponent of plans in `ebmtraj compare plans`.

    Labels are found in hindsight, in what came of the actions. Budget, --resume and --set are as in `train transition`.

    Example: ebmtraj train clone --data hand.zarr --run runs/clone --label axis
    """
    from ebmtraj.trajectories.clone_fit import CLONE, load_clone_recipe, train_clone

    budget = Budget(run, recipe, set_, seed, device, resume, overwrite, json_, dry_run)
    trained = _train(budget, load_clone_recipe, train_clone, {"label": label, "data": data}, lambda recipe: "cloning", CLONE)
    budget.tell(trained, ("label",))


@dataclass(frozen=True)
class Budget:
    """What every command here is asked for beside its model."""

    run: Path
    recipe: Path | None
    set: list[str] | None
    seed: int | None
    device: str
    resume: bool
    overwrite: bool
    json: bool
    dry: bool = False

    def tell(self, trained: tuple[Result, Any], named: tuple[str, ...], following: str | None = None) -> None:
        """Say what it came to, with these settings of the recipe in JSON, and the command that comes next."""
        result, settings = trained
        if self.json:
            said = {name: getattr(settings, name) for name in named}
            print_json({"run": str(self.run), **said, **_outcome(result, self.run)})
            return
        say(_summary(result, self.run))
        if following:
            say(f"next: {following}")


def _train(
    budget: Budget,
    load: Callable[..., Any],
    train: Callable[..., tuple[Result, Any]],
    given: dict[str, Any],
    doing: Callable[[Any], str],
    kind: Any,
) -> tuple[Result, Any]:
    from ebmtraj.config import read_toml
    from ebmtraj.errors import EbmtrajError

    run = budget.run
    if budget.resume and budget.overwrite:
        raise EbmtrajError("choose one of --resume and --overwrite: the first goes on with a run, the second replaces it")
    overrides = [*(budget.set or []), *([f"training.seed={budget.seed}"] if budget.seed is not None else [])]
    # a resumed run goes on under its own recipe; what is given beside --resume must agree with it
    begun = budget.resume and (run / "config.toml").exists()
    settings = load(budget.recipe, overrides, given, read_toml(run / "config.toml") if begun else None)
    if budget.dry:
        from ebmtraj.report.estimate import estimate_training

        refuse_resume(begun)
        tell_estimate(estimate_training(kind, settings, run, device=budget.device, overwrite=budget.overwrite), budget.json)
    if budget.resume and not begun:
        if any((run / "checkpoints").glob("*.safetensors")):
            raise EbmtrajError(f"run {run} has lost its recipe, {run / 'config.toml'}; restore it, or choose another --run")
        say(f"{run} holds no run yet; beginning it")
    with progress() as bar:
        task = bar.add_task(doing(settings), total=settings.training.steps, note="")
        return train(
            settings,
            run,
            device=budget.device,
            resume=budget.resume,
            overwrite=budget.overwrite,
            on_progress=lambda p: bar.update(task, completed=p.step, total=p.steps, note=_note(p)),
        )


def _a_task(data: str, whole: bool = False) -> str:
    """One that makes sense of the states of this store; `whole`: of plans that end in a goal."""
    from ebmtraj.datasets.store import Store
    from ebmtraj.trajectories.trial import usual_task

    return usual_task(Store.open(data).state_fields, whole=whole)


def _note(p: Progress) -> str:
    return f"{p.stage} loss {p.loss:.4f}" + ("" if p.validation is None else f" validation {p.validation:.4f}")


def _outcome(result: Result, run: Path) -> dict[str, Any]:
    return {
        "steps": result.steps,
        "seconds": round(result.seconds, 2),
        "validation": result.validation,
        "rollbacks": result.rollbacks,
        "checkpoint": str(run / "checkpoints" / "best.safetensors"),
    }


def _summary(result: Result, run: Path) -> str:
    back = f", {result.rollbacks} roll-backs after divergence" if result.rollbacks else ""
    checkpoint = run / "checkpoints" / "best.safetensors"
    return f"{run}: {result.steps} steps in {result.seconds:.0f} s{back}, validation {result.validation:.4f}, {checkpoint}"
