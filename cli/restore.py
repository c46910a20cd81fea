"""`ebmtraj restore`, `cross-class` and `distal`: what an energy of images does to images that are given."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ebmtraj.cli.common import Device, Json, Overwrite, Seed, Threads, print_json, progress, say
from ebmtraj.cli.joint import ImageData, ImageRun, Split, loaded


def restore_command(
    run: ImageRun,
    task: Annotated[str, typer.Option(help="salt-and-pepper, inpaint or super-resolve.")] = "salt-and-pepper",
    amount: Annotated[
        float | None, typer.Option(help="Share of pixels or rows damaged [0.3, 0.5], or factor of size [2].")
    ] = None,
    draws: Annotated[int, typer.Option(help="Restorations of each image, whose mean is measured, too.", min=1)] = 16,
    limit: Annotated[int, typer.Option(help="Images of the split; 0: all.", min=0)] = 0,
    data: ImageData = None,
    split: Split = "test",
    out: Annotated[Path | None, typer.Option(help="Also a picture (PNG): a column an image, a row a method.")] = None,
    seed: Seed = 0,
    device: Device = "auto",
    threads: Threads = 1,
    overwrite: Overwrite = False,
    json_: Json = False,
) -> None:
    """Damage images and restore them by sampling the energy, beside a median filter, mean fill and a Gaussian.

    Example: ebmtraj restore runs/digits --task inpaint --out inpainted.png
    """
    from ebmtraj.errors import EbmtrajError
    from ebmtraj.report.restore import measure_restoration, restoration_picture

    if out is not None and out.suffix.lower() != ".png":
        raise EbmtrajError(f"--out {out}: give a path that ends in .png")
    model, store = loaded(run, data, device, threads, out, overwrite)
    with progress() as bar:
        shown = bar.add_task(f"restoring: {task}", total=draws, note="draws")
        found = measure_restoration(
            model,
            store,
            task,
            amount=amount,
            split=split,
            limit=limit,
            draws=draws,
            seed=seed,
            on_draw=lambda done, total: bar.update(shown, completed=done, total=total),
        )
    if out is not None:
        restoration_picture(found, out)
    if json_:
        print_json(found.results | {"out": None if out is None else str(out)})
        return
    p = found.results["protocol"]
    say(f"{task} {p['amount']:g}, {p['images']} images of the {split} split; {p['measured']}")
    for name, error in found.results["mse"].items():
        say(f"{name:<28} {error:.4f}")
    if out is not None:
        say(f"{out}: from above truth, " + ", ".join(list(found.pictures)[1:]))


def cross_class_command(
    run: ImageRun,
    out: Annotated[Path, typer.Option(help="A .png with starts above ends, or a .gif of the chains.")],
    source: Annotated[str | None, typer.Option("--from", help="Class to start at. [default: the first]")] = None,
    target: Annotated[str | None, typer.Option("--toward", help="Class to go to. [default: each other in turn]")] = None,
    count: Annotated[int, typer.Option("-n", "--count", help="Images.", min=1)] = 32,
    level: Annotated[float, typer.Option(help="Noise that the images are let go to, in unit coordinates.")] = 2.0,
    judge: Annotated[Path | None, typer.Option(help="A run whose classifier says what the ends are.")] = None,
    data: ImageData = None,
    split: Split = "test",
    seed: Seed = 0,
    device: Device = "auto",
    threads: Threads = 1,
    overwrite: Overwrite = False,
    json_: Json = False,
) -> None:
    """Start at images of one class and sample toward another.

    Example: ebmtraj cross-class runs/jem --from 1 --toward 7 --out one-to-seven.gif
    """
    from ebmtraj.errors import EbmtrajError
    from ebmtraj.images.cross import CrossConfig
    from ebmtraj.images.registry import load_image_model
    from ebmtraj.report.cross import cross_picture, measure_cross_class

    if out.suffix.lower() not in (".png", ".gif"):
        raise EbmtrajError(f"--out {out}: give a path that ends in .png or .gif")
    model, store = loaded(run, data, device, threads, out, overwrite)
    found = measure_cross_class(
        model,
        store,
        source=source or (model.classes[0] if model.classes else "0"),
        target=target,
        count=count,
        split=split,
        seed=seed,
        config=CrossConfig(level=level),
        judge=None if judge is None else load_image_model(judge, model.shift.device)[0],
    )
    cross_picture(found, out)
    if json_:
        print_json(found.results | {"out": str(out)})
        return
    r = found.results
    say(f"{out}: {count} images from {r['from']} toward {', '.join(r['toward'])}")
    if "agreement" in r:
        say(f"{100 * r['agreement']:.0f} % are taken for the class asked for by {r['judge']}")


def distal_command(
    run: ImageRun,
    count: Annotated[int, typer.Option("-n", "--count", help="Images, a class in turn.", min=1)] = 20,
    out: Annotated[Path | None, typer.Option(help="Also a picture (PNG): without the energy above, with it below.")] = None,
    steps: Annotated[int, typer.Option(help="Steps of ascent.", min=1)] = 100,
    data: ImageData = None,
    seed: Seed = 0,
    device: Device = "auto",
    threads: Threads = 1,
    overwrite: Overwrite = False,
    json_: Json = False,
) -> None:
    """Raise p(y | x) from noise, with and without the energy: is the classifier sure of what is no image?

    Example: ebmtraj distal runs/jem --out distal.png
    """
    from ebmtraj.errors import EbmtrajError
    from ebmtraj.images.cross import DistalConfig
    from ebmtraj.report.cross import measure_distal
    from ebmtraj.report.image_grid import write_grid

    if out is not None and out.suffix.lower() != ".png":
        raise EbmtrajError(f"--out {out}: give a path that ends in .png")
    model, store = loaded(run, data, device, threads, out, overwrite)
    results, pictures = measure_distal(model, store, count=count, seed=seed, config=DistalConfig(steps=steps))
    if out is not None:
        write_grid(pictures.flatten(0, 1).cpu().numpy(), out, columns=count)
    if json_:
        print_json(results | {"out": None if out is None else str(out)})
        return
    say(f"{'':<16}{'p(y | x)':>10}{'log p(x)':>10}{'nearest':>10}")
    for name in ("real", "without_energy", "with_energy"):
        r = results[name]
        say(f"{name.replace('_', ' '):<16}{r['probability']:>10.3f}{r['log_density']:>10.1f}{r['nearest']:>10.2f}")
