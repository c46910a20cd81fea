"""`ebmtraj score`: measure images of a file, whatever made them."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ebmtraj.cli import complete
from ebmtraj.cli.common import Json, Seed, Threads, print_json, say


def score_command(
    images: Annotated[Path, typer.Argument(help="An .npz with `pixels` (N, C, H, W) from 0 to 1, perhaps `labels` (N,).")],
    data: Annotated[str, typer.Option(help="Measured against these: a source's name, or an image store.")] = "digits",
    split: Annotated[
        str, typer.Option(help="Which real images: test, or another.", autocompletion=complete.among(*complete.SPLITS))
    ] = "test",
    features: Annotated[
        Path | None,
        typer.Option(help="An ONNX network (N, C, H, W) -> (N, D), such as Inception v3: distances of its features, too."),
    ] = None,
    seed: Seed = 0,
    threads: Threads = 1,
    json_: Json = False,
) -> None:
    """Measure images, whatever made them: distances to real ones, classes, spread, and whether they are copies.

    Both sides have the same count and seed; the floor is what as many training images score. Features are those of a
    classifier trained on the same images and named by its hash, as in `compare images`.

    Example: ebmtraj score digits.npz --data digits
    """
    from ebmtraj.datasets.images import open_images
    from ebmtraj.device import use_threads
    from ebmtraj.report.score import score_images

    use_threads(threads)
    found = score_images(images, open_images(data), split=split, features=features, seed=seed)
    if json_:
        print_json(found)
        return
    both = [("features of our classifier", found)] + ([(f"of {features.name}", found["features"])] if features else [])
    for name, scores in both:
        floor = scores["floor"]
        say(
            f"{name}: Frechet {scores['frechet']:.4g} (floor {floor['frechet']:.4g}), kernel {scores['kernel']:.3g} "
            f"(floor {floor['kernel']:.3g}), {scores['count']} images a side"
        )
    if features and found["features"]["count"] < found["features"]["size"]:
        say(f"note: fewer images than its {found['features']['size']:,} features: compare its distances at this count only")
    memory = found["memory"]
    say(f"nearer to a training image than a held-out one is: {memory['copying']:.0%} (50 % is as it should be)")
    if "classes" in found:
        kept = found["classes"]
        agreement = f", {kept['agreement']:.1%} what was asked for" if "agreement" in kept else ""
        spread = "" if kept["spread"] is None else f", spread within classes {kept['spread']:.0%} of the real one"
        say(f"rarest class {kept['least_share']:.1%}{agreement}{spread}")
