"""`ebmtraj sample`: draw images from a trained model."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ebmtraj.cli.common import Device, Json, Overwrite, Seed, Threads, print_json, progress, say


def sample_command(
    run: Annotated[Path, typer.Argument(help="A run of `ebmtraj train image` or `train jem`.")],
    count: Annotated[int, typer.Option("-n", "--count", help="Images to draw.", min=1)] = 100,
    out: Annotated[
        Path | None, typer.Option(help="An .npz, or a .png with a grid. [default: RUN/samples/samples.npz]")
    ] = None,
    label: Annotated[str | None, typer.Option(help="Only this class, by number or name; for conditional models.")] = None,
    chain: Annotated[Path | None, typer.Option(help="Also write the first chains, from noise to image, as a GIF.")] = None,
    buffer: Annotated[
        bool, typer.Option("--buffer/--fresh", help="Go on from training's replay buffer (pcd), or start from noise.")
    ] = False,
    set_: Annotated[
        list[str] | None,
        typer.Option("--set", help="Change a setting of the model, e.g. --set sampler.steps=2; repeatable."),
    ] = None,
    batch: Annotated[int, typer.Option(help="Images drawn at a time.", min=1)] = 500,
    seed: Seed = 0,
    device: Device = "auto",
    threads: Threads = 1,
    overwrite: Overwrite = False,
    json_: Json = False,
) -> None:
    """Draw images from a trained model.

    The npz holds `pixels` (N, C, H, W) in [0, 1] and, of a conditional model, `labels` (N,): as many of each class as can
    be. A png shows the first 400 in a grid.

    Example: ebmtraj sample runs/digits -n 1500 --out digits.npz
    """
    import time

    import numpy as np

    from ebmtraj.config import parse_overrides
    from ebmtraj.device import choose_device, use_threads
    from ebmtraj.errors import EbmtrajError
    from ebmtraj.images.draw import class_number, draw, write_samples
    from ebmtraj.images.registry import load_image_model
    from ebmtraj.report.image_grid import image_grid, write_chain, write_grid

    where = choose_device(device)
    use_threads(threads)
    target = out or run / "samples" / "samples.npz"
    if target.suffix.lower() not in (".npz", ".png"):
        raise EbmtrajError(f"--out {target}: give a path that ends in .npz or .png")
    if chain is not None and chain.suffix.lower() != ".gif":
        raise EbmtrajError(f"--chain {chain}: give a path that ends in .gif")
    for path in (target, chain):
        if path is not None and path.exists() and not overwrite:
            raise EbmtrajError(f"{path} exists; give another path or --overwrite")
    model, _ = load_image_model(run, where, parse_overrides(set_ or []))
    wanted = None if label is None else class_number(label, model)
    if target.suffix.lower() == ".png" or chain is not None:  # before any work: can it be drawn?
        image_grid(np.zeros((1, *model.shape), np.float32))
    began = time.perf_counter()
    with progress() as bar:
        task = bar.add_task("sampling", total=count, note=model.name)
        drawn = draw(
            model,
            count,
            seed=seed,
            label=wanted,
            buffer=buffer,
            batch=batch,
            film=64 if chain is not None else 0,
            on_batch=lambda done: bar.update(task, completed=done),
        )
    facts = {"run": str(run), "out": str(target), "model": model.name, "count": count, "shape": list(drawn.pixels.shape)}
    facts |= {"seed": seed, "label": wanted, "conditional": model.conditional, "start": "buffer" if buffer else "fresh"}
    facts |= {"seconds": round(time.perf_counter() - began, 3)}
    if target.suffix.lower() == ".npz":
        write_samples(drawn, target)
    else:
        write_grid(drawn.pixels, target)
    if chain is not None:
        write_chain(drawn.states, chain)
        facts["chain"] = str(chain)
    if json_:
        print_json(facts)
        return
    say(f"{target}: {count} images in {facts['seconds']} s" + (f"; {chain}" if chain else ""))
