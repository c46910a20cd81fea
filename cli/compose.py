"""`ebmtraj compose`: put energies together by and, or, not, and sample the whole."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from ebmtraj.cli.common import Device, Json, Overwrite, Seed, Threads, print_json, progress, say


def compose_command(
    expression: Annotated[str, typer.Argument(help='What to draw, such as "size:0.7 & position:0.2,0.4 & ~shape:heart".')],
    runs: Annotated[
        list[Path] | None, typer.Argument(help="Runs of `train image --condition`, one a factor. Without: the plane.")
    ] = None,
    count: Annotated[int, typer.Option("-n", "--count", help="Samples to draw.", min=1)] = 64,
    out: Annotated[
        Path | None, typer.Option(help="An .npz, or a .png with a grid or the density. [default: composed.png]")
    ] = None,
    film: Annotated[
        Path | None, typer.Option("--gif", help="Also write the sampling path, from noise on, as a GIF.")
    ] = None,
    set_: Annotated[
        list[str] | None,
        typer.Option("--set", help="Change the sampler of images, e.g. --set steps=3 or --set temperature=1; repeatable."),
    ] = None,
    seed: Seed = 0,
    device: Device = "auto",
    threads: Threads = 1,
    overwrite: Overwrite = False,
    json_: Json = False,
) -> None:
    """Put energies together by & (and), | (or), ~ (not), weights (2 * a), temperatures (a / 2), brackets; and draw samples.

    A leaf is factor:value, for a factor that one of the RUNs was trained on (`train image --condition`): each says what
    it knows beyond E(x), which counts once. Without RUNs leaves are energies of the plane, and the share of samples in
    each field is held against integration: gaussian:x,y,std ring:radius,std bar:x,y,angle,length,std grid:side,std

    Example: ebmtraj compose "ring:1.5,0.2 & ~gaussian:1.5,0,0.5" --out ring.png --gif ring.gif
    """
    import time

    from ebmtraj.device import choose_device, use_threads
    from ebmtraj.errors import EbmtrajError

    where = choose_device(device)
    use_threads(threads)
    target = out or Path("composed.png")
    if target.suffix.lower() not in (".npz", ".png"):
        raise EbmtrajError(f"--out {target}: give a path that ends in .npz or .png")
    if film is not None and film.suffix.lower() != ".gif":
        raise EbmtrajError(f"--gif {film}: give a path that ends in .gif")
    for path in (target, film):
        if path is not None and path.exists() and not overwrite:
            raise EbmtrajError(f"{path} exists; give another path or --overwrite")
    facts: dict[str, Any] = {
        "expression": expression,
        "runs": [str(run) for run in runs or []],
        "count": count,
        "seed": seed,
    }
    began = time.perf_counter()
    with progress() as bar:
        bar.add_task("sampling", total=None, note="")
        if runs:
            facts |= _images(expression, runs, count, target, film, set_ or [], seed, where)
        elif set_:
            raise EbmtrajError("--set changes the sampler of images; give RUNs, or drop it")
        else:
            facts |= _plane(expression, count, target, film, seed)
    facts |= {
        "out": str(target),
        "gif": None if film is None else str(film),
        "seconds": round(time.perf_counter() - began, 2),
    }
    if json_:
        print_json(facts)
        return
    if "total_variation" in facts:
        say(f"total variation to the integral {facts['total_variation']:.3f} (exact samples: {facts['exact_samples']:.3f})")
    say(f"{target}: {count} samples in {facts['seconds']} s" + (f"; {film}" if film else ""))


def _images(
    expression: str, runs: list[Path], count: int, out: Path, film: Path | None, changes: list[str], seed: int, device: Any
) -> dict[str, Any]:
    """Draw images and write them."""
    import dataclasses

    import numpy as np

    from ebmtraj.config import build, merge, parse_overrides, to_plain
    from ebmtraj.device import generator, no_denormals
    from ebmtraj.energies.expression import parse
    from ebmtraj.images.compose import load_concepts
    from ebmtraj.images.draw import Drawn, write_samples
    from ebmtraj.report.image_grid import write_chain, write_grid
    from ebmtraj.samplers.langevin import LangevinConfig

    tree = parse(expression)
    concepts = load_concepts(runs, device)
    energy = concepts.energy(tree)
    own = to_plain(dataclasses.asdict(concepts.chain()))
    config: LangevinConfig = build(LangevinConfig, merge(own, parse_overrides(changes)), "--set")
    states: list[Any] = []
    watch = (lambda x: states.append(x[:64].cpu().numpy())) if film is not None else None
    with no_denormals():
        drawn = concepts.sample(energy, count, generator(seed, device), config, watch=watch)
    pixels = drawn.cpu().numpy().astype(np.float32)
    if out.suffix.lower() == ".npz":
        write_samples(Drawn(pixels, None, []), out)
    else:
        write_grid(pixels, out)
    if film is not None:
        write_chain(states, film)
    return {"factors": list(concepts.names), "shape": list(pixels.shape)}


def _plane(expression: str, count: int, out: Path, film: Path | None, seed: int) -> dict[str, Any]:
    """Draw points of the plane and write them, with what they came to."""
    import io

    import numpy as np

    from ebmtraj.report.plane import plane_composition, plane_facts, plane_film, plane_picture, sample_plane
    from ebmtraj.runs import write_atomic

    energy = plane_composition(expression)
    drawn = sample_plane(energy, max(count, 2000), seed)
    if out.suffix.lower() == ".npz":
        buffer = io.BytesIO()
        np.savez_compressed(buffer, points=drawn.points[-count:].numpy())
        write_atomic(out, buffer.getvalue())
    else:
        plane_picture([(expression, energy, drawn.points)], out)
    if film is not None:
        plane_film(energy, drawn.path, film)
    return plane_facts(energy, drawn, seed)
