"""`ebmtraj train`: learn a model from a store into a run directory."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ebmtraj.cli.common import Data, Device, Json, Overwrite, Resume, Set, print_json, progress, say

if TYPE_CHECKING:
    from ebmtraj.training.loop import Progress, Result

app = typer.Typer(help="Learn a model from a store into a run directory.", no_args_is_help=True)


@app.command("transition")
def transition(
    data: Data,
    run: Annotated[Path, typer.Option("--run", help="The run directory to make.")],
    objective: Annotated[
        str | None,
        typer.Option(help="Of the energy: dsm (base + energy by score matching, the default) or cd (the paper's)."),
    ] = None,
    model: Annotated[
        str | None, typer.Option(help="energy, or a baseline: fc, gaussian, ensemble, mdn, edm, flow, field, gru.")
    ] = None,
    actions: Annotated[
        bool | None, typer.Option("--actions/--no-actions", help="Learn E(s, a, s') instead of E(s, s').")
    ] = None,
    recipe: Annotated[Path | None, typer.Option("--recipe", help="A TOML recipe; a run's own config.toml is one.")] = None,
    set_: Set = None,
    seed: Annotated[int | None, typer.Option("--seed", help="Same seed, same bits (on CPU).", min=0, max=2**63 - 1)] = None,
    device: Device = "auto",
    resume: Resume = False,
    overwrite: Overwrite = False,
    json_: Json = False,
) -> None:
    """Learn a transition energy (or a baseline) from a store.

    The budget is in optimiser steps, so that a run reproduces to the bit: --set training.steps=20000. With --set
    training.seconds=60 the steps that fit are measured first and written into the run's config.toml. A killed run goes on
    with --resume and ends in the same bits as one that was not (CPU). A store that is too large for memory is read while it
    trains (--set stream=true does so with any).

    Example: ebmtraj train transition --data hand.zarr --run runs/hand --set training.steps=8000
    """
    from ebmtraj.config import read_toml
    from ebmtraj.errors import EbmtrajError
    from ebmtraj.trajectories.fit import load_recipe, train_transition
    from ebmtraj.trajectories.registry import ENERGIES, MODELS

    if resume and overwrite:
        raise EbmtrajError("choose one of --resume and --overwrite: the first goes on with a run, the second replaces it")
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
    overrides = [*(set_ or []), *([f"training.seed={seed}"] if seed is not None else [])]
    # a resumed run goes on under its own recipe; what is given beside --resume must agree with it
    defaults = read_toml(run / "config.toml") if resume and (run / "config.toml").exists() else None
    settings = load_recipe(recipe, overrides, {"model": model or objective, "actions": actions, "data": data}, defaults)

    if resume and not (run / "config.toml").exists():
        say(f"{run} holds no run yet; beginning it")
    with progress() as bar:
        task = bar.add_task(f"training {settings.model}", total=settings.training.steps, note="")
        result, settings = train_transition(
            settings,
            run,
            device=device,
            resume=resume,
            overwrite=overwrite,
            on_progress=lambda p: bar.update(task, completed=p.step, total=p.steps, note=_note(p)),
        )
    if json_:
        print_json({"run": str(run), "model": settings.model, "actions": settings.actions, **_outcome(result, run)})
        return
    say(_summary(result, run))
    say(f"next: ebmtraj evaluate {shlex.quote(str(run))} --data {shlex.quote(data)}")


@app.command("plan")
def plan(
    data: Data,
    run: Annotated[Path, typer.Option("--run", help="The run directory to make.")],
    prior: Annotated[
        str | None, typer.Option(help="What proposes actions: energy (the default), or field, a free vector field.")
    ] = None,
    recipe: Annotated[Path | None, typer.Option("--recipe", help="A TOML recipe; a run's own config.toml is one.")] = None,
    set_: Set = None,
    seed: Annotated[int | None, typer.Option("--seed", help="Same seed, same bits (on CPU).", min=0, max=2**63 - 1)] = None,
    device: Device = "auto",
    resume: Resume = False,
    overwrite: Overwrite = False,
    json_: Json = False,
) -> None:
    """Learn what plans are made of: an energy of the next actions, and what actions are expected to lead to.

    No task enters: tasks are costs that `ebmtraj plan` adds afterwards. Budget, --resume and --set are as in `train
    transition`.

    Example: ebmtraj train plan --data hand.zarr --run runs/plan --set training.steps=20000
    """
    from ebmtraj.config import read_toml
    from ebmtraj.errors import EbmtrajError
    from ebmtraj.trajectories.plan_fit import load_plan_recipe, train_plan

    if resume and overwrite:
        raise EbmtrajError("choose one of --resume and --overwrite: the first goes on with a run, the second replaces it")
    overrides = [*(set_ or []), *([f"training.seed={seed}"] if seed is not None else [])]
    defaults = read_toml(run / "config.toml") if resume and (run / "config.toml").exists() else None
    settings = load_plan_recipe(recipe, overrides, {"prior": prior, "data": data}, defaults)
    if resume and not (run / "config.toml").exists():
        say(f"{run} holds no run yet; beginning it")
    with progress() as bar:
        task = bar.add_task("training to plan", total=settings.training.steps, note="")
        result, settings = train_plan(
            settings,
            run,
            device=device,
            resume=resume,
            overwrite=overwrite,
            on_progress=lambda p: bar.update(task, completed=p.step, total=p.steps, note=_note(p)),
        )
    if json_:
        print_json({"run": str(run), "prior": settings.prior, **_outcome(result, run)})
        return
    say(_summary(result, run))
    say(f'next: ebmtraj plan {shlex.quote(str(run))} --task "rotate axis=z"')


@app.command("sequence")
def sequence(
    data: Data,
    run: Annotated[Path, typer.Option("--run", help="The run directory to make.")],
    recipe: Annotated[Path | None, typer.Option("--recipe", help="A TOML recipe; a run's own config.toml is one.")] = None,
    set_: Set = None,
    seed: Annotated[int | None, typer.Option("--seed", help="Same seed, same bits (on CPU).", min=0, max=2**63 - 1)] = None,
    device: Device = "auto",
    resume: Resume = False,
    overwrite: Overwrite = False,
    json_: Json = False,
) -> None:
    """Learn what plans of whole state sequences are made of: a transition energy E(s, s'), and an inverse model.

    The energy is as that of `train transition` (--set network.objective=cd: the paper's; its settings are
    network.transition....), the inverse model says which action leads from a state to the next one of a plan. No task
    enters. Budget, --resume and --set are as in `train transition`.

    Example: ebmtraj train sequence --data reacher.zarr --run runs/reach --set training.steps=8000
    """
    from ebmtraj.config import read_toml
    from ebmtraj.errors import EbmtrajError
    from ebmtraj.trajectories.sequence_fit import load_sequence_recipe, train_sequence

    if resume and overwrite:
        raise EbmtrajError("choose one of --resume and --overwrite: the first goes on with a run, the second replaces it")
    overrides = [*(set_ or []), *([f"training.seed={seed}"] if seed is not None else [])]
    defaults = read_toml(run / "config.toml") if resume and (run / "config.toml").exists() else None
    settings = load_sequence_recipe(recipe, overrides, {"data": data}, defaults)
    if resume and not (run / "config.toml").exists():
        say(f"{run} holds no run yet; beginning it")
    with progress() as bar:
        task = bar.add_task("training to plan", total=settings.training.steps, note="")
        result, settings = train_sequence(
            settings,
            run,
            device=device,
            resume=resume,
            overwrite=overwrite,
            on_progress=lambda p: bar.update(task, completed=p.step, total=p.steps, note=_note(p)),
        )
    if json_:
        print_json({"run": str(run), "objective": settings.network.objective, **_outcome(result, run)})
        return
    say(_summary(result, run))
    say(f'next: ebmtraj plan {shlex.quote(str(run))} --task "reach"')


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
