"""`ebmtraj evaluate`: runs against held-out episodes, side by side."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Annotated, Any

import typer

from ebmtraj.cli import complete
from ebmtraj.cli.common import Data, Device, Json, Overwrite, Seed, print_json, progress, say, stderr

SIMULATED_STARTS = 100  # of the held-out episodes, with --simulator
PICTURES = ("frechet.png", "strip.png", "rollouts.gif")


def evaluate_command(
    runs: Annotated[list[Path], typer.Argument(help="One trained run, or several to compare.")],
    data: Data,
    steps: Annotated[
        int | None,
        typer.Option(help="Control steps of each rollout. [default: as half of the episodes have, at most 100]", min=1),
    ] = None,
    samples: Annotated[int, typer.Option(help="Futures of each start (the energy score needs two).", min=1)] = 4,
    starts: Annotated[int | None, typer.Option(help="Held-out episodes to start from. [default: all]", min=4)] = None,
    split: Annotated[
        str, typer.Option(help="train, validation or test.", autocompletion=complete.among(*complete.SPLITS))
    ] = "test",
    simulator: Annotated[
        bool,
        typer.Option(
            "--simulator",
            help="Also simulate other true futures of the first starts, for the diversity that is to be had (a minute).",
        ),
    ] = False,
    quick: Annotated[
        bool, typer.Option("--quick", help="Leave out what takes most of the time: C2ST, one step alone, penetration.")
    ] = False,
    pictures: Annotated[Path | None, typer.Option(help="Folder for a figure, a strip and a GIF of all runs.")] = None,
    seed: Seed = 0,
    device: Device = "auto",
    threads: Annotated[int, typer.Option(help="CPU threads; 0 leaves it to torch.", min=0)] = 0,
    overwrite: Overwrite = False,
    json_: Json = False,
) -> None:
    """Measure rollouts of one run, or of several side by side, against held-out episodes.

    Every number of a run goes to its results.json: the Frechet distance of the z-scored state over time and its mean over
    steps 1..T, its floor (as many other true episodes), the energy score and more.

    Example: ebmtraj evaluate runs/hand runs/fc --data hand.zarr --pictures figures
    """
    from ebmtraj.datasets.store import Store
    from ebmtraj.datasets.windows import usual_steps
    from ebmtraj.device import choose_device, use_threads
    from ebmtraj.errors import EbmtrajError
    from ebmtraj.report.assess import Assessment, assess, load_run, simulator_futures
    from ebmtraj.runs import write_json

    where = choose_device(device)
    use_threads(threads)
    for run in runs:
        if (run / "results.json").exists() and not overwrite:
            raise EbmtrajError(f"{run / 'results.json'} exists; give --overwrite to measure again")
    for name in PICTURES if pictures is not None else ():
        if pictures is not None and (pictures / name).exists() and not overwrite:
            raise EbmtrajError(f"{pictures / name} exists; give another --pictures folder or --overwrite")
    names = _names(runs)
    store = Store.open(data)
    steps = steps or usual_steps(store, split)
    for run in runs:  # before any work: is each fit?
        load_run(run, store)
    futures = None
    if simulator:
        say("simulating other true futures ...")
        many = SIMULATED_STARTS if starts is None else min(starts, SIMULATED_STARTS)
        futures = simulator_futures(store, steps=steps, samples=max(2, samples), starts=many, split=split, workers=threads)
    done: dict[str, Assessment] = {}
    with progress() as bar:
        for name, run in names.items():
            task = bar.add_task(f"rolling out {name}", total=None, note="steps")
            done[name] = assess(
                run,
                store,
                steps=steps,
                samples=samples,
                starts=starts,
                split=split,
                seed=seed,
                device=where,
                simulator=futures,
                quick=quick,
                on_step=lambda n, total, task=task: bar.update(task, completed=n, total=total),  # type: ignore[misc]
            )
    for name, run in names.items():
        write_json(run / "results.json", done[name].results)
    results: dict[str, Any] = {name: a.results for name, a in done.items()}
    output = next(iter(results.values())) if len(results) == 1 else {"runs": results}
    if pictures is not None:
        output["pictures"], output["pictures_missing"] = _draw(done, store, pictures)
    if json_:
        print_json(output)
        return
    _show(results)
    _warn(results)
    for path in output.get("pictures", []):
        say(f"wrote {path}")
    if output.get("pictures_missing"):
        say(f"no pictures of the robot: {output['pictures_missing']}")
    say(f"next: ebmtraj report {shlex.join(map(str, runs))} --data {shlex.quote(data)} --out report.html")


def _warn(results: dict[str, Any]) -> None:
    """Say what a reader of these numbers should know."""
    for name, result in results.items():
        if result["trained_on"] != result["content_hash"]:
            say(f"note: {name} was trained on another store than the one it is measured on")
    first = next(iter(results.values()))
    if first["starts"] < 300:
        say(f"note: {first['starts']} starts are few: Fréchet distances read too high; compare them with the floor only")


def _names(runs: list[Path]) -> dict[str, Path]:
    """A short name for each run: its folder's, or the whole path where two folders are named alike."""
    short = [run.resolve().name for run in runs]
    return {name if short.count(name) == 1 else str(run): run for name, run in zip(short, runs, strict=True)}


def _show(results: dict[str, Any]) -> None:
    from ebmtraj.report.tables import evaluation_table, rich_table, side_by_side

    if len(results) == 1:
        name, result = next(iter(results.items()))
        stderr.print(evaluation_table(result, name))
        return
    rows, not_ranked = side_by_side(results)
    first = next(iter(results.values()))
    say(f"{first['starts']} held-out episodes x {first['steps']} steps")
    stderr.print(rich_table(rows, not_ranked=not_ranked))


def _draw(done: dict[str, Any], store: Any, folder: Path) -> tuple[list[str], str | None]:
    """Figure, strip and GIF; where nothing can be rendered, the figure alone and why."""
    from ebmtraj.errors import EbmtrajError
    from ebmtraj.report.figures import frechet_figure
    from ebmtraj.report.video import gif, strip

    first = next(iter(done.values()))
    curves = {name: a.results["frechet_over_time"] for name, a in done.items()}
    curves["floor"] = first.results["floor_over_time"]
    kind = "action_conditional" if first.results["actions"] else "unconditional"
    paths = [str(frechet_figure({kind: curves}, folder / "frechet.png", store.control_timestep))]
    rows = {"truth": first.truth[0], **{name: a.samples[0, 0] for name, a in done.items()}}
    env, missing = store.info()["env"], None
    try:
        paths.append(str(strip(rows, env, folder / "strip.png", control_timestep=store.control_timestep)))
        paths.append(str(gif(rows, env, folder / "rollouts.gif", control_timestep=store.control_timestep)))
    except EbmtrajError as error:
        missing = str(error)
    return paths, missing
