"""`ebmtraj train generator` and `ebmtraj tilt`: a generator, and an energy that tilts its latent space."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Annotated

import typer

from ebmtraj.cli import complete
from ebmtraj.cli.common import Device, Json, Overwrite, Resume, Seed, Set, Threads, print_json, progress, say
from ebmtraj.cli.dry import DryRun, refuse_resume, tell_estimate
from ebmtraj.cli.grouped import grouped
from ebmtraj.cli.training import Training


@grouped
def generator_command(
    training: Training,
    data: Annotated[
        str,
        typer.Option(
            "--data", help="25-gaussians, swiss-roll, checkerboard, a source of images (digits, mnist, ...) or a store."
        ),
    ] = "digits",
    model: Annotated[
        str | None,
        typer.Option(
            help="vae (the default), glf, glow, flow, two-stage or vae-flow.",
            autocompletion=complete.among(*complete.GENERATORS),
        ),
    ] = None,
) -> None:
    """Learn a generator with a latent space, which `ebmtraj tilt` then improves.

    Budget, --resume and --set are as in `train transition`.

    Example: ebmtraj train generator --data digits --model vae --run runs/vae
    """
    from ebmtraj.generators.fit import GENERATOR, load_generator_recipe, train_generator

    given = {"model": model, "data": data}
    trained = training.carry_out(load_generator_recipe, train_generator, GENERATOR, given)
    training.tell(trained, ("model",), f"ebmtraj tilt {shlex.quote(str(training.run))}")


def tilt_command(
    run: Annotated[Path, typer.Argument(help="A run of `ebmtraj train generator`.")],
    out: Annotated[Path | None, typer.Option(help="The run directory of the tilt. [default: RUN/tilt]")] = None,
    objective: Annotated[
        str | None,
        typer.Option(
            help="ratio (tell real from generated), likelihood (the paper's, by short chains), or both in turn.",
            autocompletion=complete.among(*complete.TILT_OBJECTIVES),
        ),
    ] = None,
    sampler: Annotated[str | None, typer.Option(help="langevin or mala.")] = None,
    samples: Annotated[int, typer.Option(help="Samples measured before and after, at most.", min=20)] = 5000,
    split: Annotated[str, typer.Option(help="Measured against: test, or validation to choose settings.")] = "test",
    set_: Set = None,
    seed: Seed = 0,
    device: Device = "auto",
    threads: Threads = 1,
    resume: Resume = False,
    overwrite: Overwrite = False,
    dry_run: DryRun = False,
    json_: Json = False,
) -> None:
    """Learn an energy that tilts a generator's latent space, and measure samples before and after.

    The generator stays as it is. Real and generated events are measured at the same count and seed. The tilt's folder holds
    the pictures: before and after, the chains' path as a film and, of a plane, its densities.

    Example: ebmtraj tilt runs/vae
    """
    from ebmtraj.device import use_threads
    from ebmtraj.errors import EbmtrajError
    from ebmtraj.generators.data import open_source
    from ebmtraj.generators.tilt_fit import tilt_recipe
    from ebmtraj.report.tilting import pictures, tilt_run
    from ebmtraj.runs import write_json

    if resume and overwrite:
        raise EbmtrajError("choose one of --resume and --overwrite: the first goes on, the second replaces the tilt")
    if split not in ("test", "validation"):
        raise EbmtrajError(f"--split {split}: generators are trained on train; use test, or validation to choose settings")
    use_threads(threads)
    target = out or run / "tilt"
    overrides = [*(set_ or []), f"training.seed={seed}", f"training.threads={threads}"]
    recipe = tilt_recipe(run, overrides, objective=objective, method=sampler)
    if dry_run:
        from ebmtraj.generators.tilt_fit import TILT
        from ebmtraj.report.estimate import estimate_training

        refuse_resume(resume)
        tell_estimate(estimate_training(TILT, recipe, target, device=device, overwrite=overwrite), json_)
    with progress() as bar:
        task = bar.add_task("tilting", total=recipe.training.steps, note="")
        found = tilt_run(
            recipe,
            target,
            samples=samples,
            seed=seed,
            split=split,
            device=device,
            resume=resume,
            overwrite=overwrite,
            on_progress=lambda p: bar.update(task, completed=p.step, total=p.steps, note=p.stage),
        )
    made = pictures(found.tilt, found.samples, open_source(recipe.data), target / "figures", seed)
    facts = {"run": str(run), "out": str(target), "objective": recipe.network["objective"], **found.facts()}
    write_json(target / "results.json", facts)
    if json_:
        print_json({**facts, "pictures": [str(path) for path in made]})
        return
    say(f"{target}: {found.result.steps} steps in {found.train_seconds:.1f} s of one core")
    for name, before in found.before.items():
        after = found.after[name]
        if isinstance(before, int | float) and not isinstance(before, bool):
            say(f"{name:<22} {before:>9.4f} -> {after:.4f}")
    say("wrote " + ", ".join(str(path) for path in made))
