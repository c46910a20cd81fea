"""`ebmtraj data images`: make a store of images."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ebmtraj.cli.common import Json, Overwrite, print_json, progress, say


def images_command(
    source: Annotated[
        str,
        typer.Argument(
            help="digits, mnist, fashion-mnist, cifar10, cifar100, svhn, sprites (or -28, -32, -64) or hand-frames."
        ),
    ],
    out: Annotated[Path | None, typer.Option(help="The folder to write. [default: the cache folder]")] = None,
    root: Annotated[
        Path | None, typer.Option(help="Where the official files lie. [default: $EBMTRAJ_DATA or ~/.cache/ebmtraj]")
    ] = None,
    store: Annotated[str | None, typer.Option(help="hand-frames: the store of rollouts to render.")] = None,
    size: Annotated[int, typer.Option(help="hand-frames: pixels a side, 32 or 64.")] = 32,
    count: Annotated[int, typer.Option(help="hand-frames: how many states are drawn.", min=10)] = 5000,
    seed: Annotated[int, typer.Option(help="hand-frames: which states are drawn.", min=0)] = 0,
    overwrite: Overwrite = False,
    json_: Json = False,
) -> None:
    """Make a store of images, to train image energies and classifiers from.

    Official files are read where they are, else downloaded; either way they must be the published ones to the byte. What is
    in a store, `data info` says, and `data verify` recomputes its hash.

    Example: ebmtraj data images digits --out digits.zarr
    """
    from ebmtraj.datasets.image_sources import load_source
    from ebmtraj.datasets.image_writer import check_image_target, write_images
    from ebmtraj.datasets.images import open_images
    from ebmtraj.errors import EbmtrajError

    if source == "hand-frames":
        if store is None or out is None:
            raise EbmtrajError("hand-frames need --store, the store of rollouts to render, and --out")
        from ebmtraj.report.hand_frames import hand_frames

        with progress() as bar:
            task = bar.add_task("render", total=count, note="frames")
            made = hand_frames(
                store,
                out,
                size=size,
                count=count,
                seed=seed,
                overwrite=overwrite,
                on_progress=lambda done, total: bar.update(task, completed=done, total=total),
            )
    elif store is not None:
        raise EbmtrajError(f"--store goes with hand-frames; {source} has its own images")
    elif out is None:
        made = open_images(source, root)
    else:
        check_image_target(out, overwrite=overwrite)
        made = write_images(out, load_source(source, root), overwrite=overwrite)
    facts = made.info()
    if json_:
        print_json(facts)
        return
    shape = " x ".join(map(str, facts["shape"]))
    splits = ", ".join(f"{number:,} {name}" for name, number in facts["splits"].items())
    say(f"{made.path}: {facts['images']:,} images of {shape} ({splits}), content hash {made.content_hash[:16]}")
