"""`ebmtraj ood` and `ebmtraj calibrate`: what an image model takes for foreign, and whether its classes are believable."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from ebmtraj.cli.common import Device, Json, Overwrite, Seed, Threads, print_json, say

ImageRun = Annotated[Path, typer.Argument(help="A run of train image or train jem.")]
ImageData = Annotated[str | None, typer.Option("--data", help="Source or image store. [default: the run's]")]
Split = Annotated[str, typer.Option(help="train, validation or test.")]
Level = Annotated[float | None, typer.Option(help="Noise level at which energies are read. [default: the model's own]")]
Figure = Annotated[Path | None, typer.Option(help="Also draw a picture (PNG).")]


def ood_command(
    run: ImageRun,
    data: ImageData = None,
    against: Annotated[
        list[str] | None, typer.Option(help="Another source or image store whose images are foreign; repeatable.")
    ] = None,
    split: Split = "test",
    level: Level = None,
    limit: Annotated[int, typer.Option(help="Images of a set at most; 0: all.", min=0)] = 0,
    figure: Figure = None,
    seed: Seed = 0,
    device: Device = "auto",
    threads: Threads = 1,
    overwrite: Overwrite = False,
    json_: Json = False,
) -> None:
    """Say how well a model tells foreign images: AUROC of log p(x), max p(y|x) and -|grad log p(x)|.

    An energy at every noise level also gives log_ratio: log p(x) at a level less twice that at twice the level. Foreign are
    noise, constant, inverted, rotated, shuffled and interpolated images (means of any two, and of two classes), letters, and
    the stores of --against.

    Example: ebmtraj ood runs/jem --figure ood.png
    """
    from ebmtraj.report.ood import OODConfig, measure_ood, ood_figure

    config = OODConfig(split=split, level=level, against=tuple(against or ()), limit=limit, seed=seed)
    model, store = loaded(run, data, device, threads, figure, overwrite)
    found = measure_ood(model, store, config)
    if figure is not None:
        ood_figure(found, figure)
    if json_:
        print_json({**found.table, "protocol": found.protocol})
        return
    kinds = list(next(iter(found.table.values())))
    say(f"{'AUROC':<22}" + "".join(f"{name:>11}" for name in found.table))
    for kind in kinds:
        say(f"{kind:<22}" + "".join(f"{values[kind]:>11.3f}" for values in found.table.values()))


def calibrate_command(
    run: ImageRun,
    data: ImageData = None,
    split: Split = "test",
    level: Level = None,
    figure: Figure = None,
    device: Device = "auto",
    threads: Threads = 1,
    overwrite: Overwrite = False,
    json_: Json = False,
) -> None:
    """Say whether a classifier's probabilities can be believed: calibration error, raw and after temperature scaling.

    The temperature is fitted on the validation split.

    Example: ebmtraj calibrate runs/jem --figure reliability.png
    """
    from ebmtraj.report.calibrate import calibration_figure, measure_calibration

    model, store = loaded(run, data, device, threads, figure, overwrite)
    found = measure_calibration(model, store, split=split, level=level)
    if figure is not None:
        calibration_figure(found, figure)
    if json_:
        print_json(found.results)
        return
    r = found.results
    say(
        f"{r['images']} images of the {split} split: accuracy {100 * r['accuracy']:.1f} %, cross-entropy {r['nll']:.3f} nats"
    )
    say(f"calibration error {r['ece']:.4f}; {r['ece_scaled']:.4f} at temperature {r['temperature']:.2f}")


def loaded(run: Path, data: str | None, device: str, threads: int, figure: Path | None, overwrite: bool) -> tuple[Any, Any]:
    """An image model of a run and the store it is measured on; refuses a picture that exists."""
    from ebmtraj.config import read_toml
    from ebmtraj.datasets.images import open_images
    from ebmtraj.device import choose_device, use_threads
    from ebmtraj.errors import EbmtrajError
    from ebmtraj.images.registry import load_image_model

    if figure is not None and figure.exists() and not overwrite:
        raise EbmtrajError(f"{figure} exists; give another --figure, or --overwrite")
    use_threads(threads)
    model, _ = load_image_model(run, choose_device(device))
    store = open_images(data or str(read_toml(run / "config.toml")["data"]))
    if store.shape != model.shape:
        raise EbmtrajError(f"image store {store.path} has images of {store.shape}; the model of {run} is for {model.shape}")
    return model, store
