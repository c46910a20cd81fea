"""`ebmtraj train image`: learn an image energy, or one of its baselines."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Annotated

import typer

from ebmtraj.cli import complete
from ebmtraj.cli.grouped import grouped
from ebmtraj.cli.training import Training

ImagesOf = Annotated[
    str, typer.Option("--data", help="A source of images (digits, mnist, cifar10, ...) or the path of an image store.")
]
Root = Annotated[
    Path | None, typer.Option(help="Folder of named sources and their files. [default: $EBMTRAJ_DATA or ~/.cache/ebmtraj]")
]


@grouped
def image(
    training: Training,
    data: ImagesOf = "digits",
    objective: Annotated[
        str | None,
        typer.Option(
            help="Of the energy: dsm (score matching at all noise levels, the default) or pcd (the papers').",
            autocompletion=complete.among(*complete.IMAGE_OBJECTIVES),
        ),
    ] = None,
    model: Annotated[
        str | None,
        typer.Option(
            help="energy, or a baseline: field, vae, gaussian, class-gaussian, gmm, svm.",
            autocompletion=complete.among(*complete.IMAGE_MODELS),
        ),
    ] = None,
    conditional: Annotated[
        bool | None, typer.Option("--conditional/--unconditional", help="Learn p(x | class) instead of p(x).")
    ] = None,
    condition: Annotated[
        str | None,
        typer.Option(help="Learn p(x | factor) of images whose factors are known, e.g. scale, shape or x,y: see `compose`."),
    ] = None,
    root: Root = None,
) -> None:
    """Learn an energy of images (or a baseline).

    The weights that are kept are those with the best validation loss, so a training that starts to copy its images stops
    counting. Budget, --resume and --set are as in `train transition`; --set training.episodes=500 takes so many images.

    Example: ebmtraj train image --data digits --run runs/digits --conditional
    """
    from ebmtraj.errors import EbmtrajError
    from ebmtraj.images.fit import IMAGE, load_image_recipe, train_image
    from ebmtraj.images.model import ImageModel
    from ebmtraj.images.registry import ENERGIES, MODELS, OF_FACTORS

    if objective is not None and objective not in ENERGIES:
        raise EbmtrajError(f"unknown objective {objective!r}; use one of {', '.join(ENERGIES)}")
    if model == "energy":
        model = objective or "dsm"
    elif model is not None and objective is not None:
        raise EbmtrajError(f"--objective {objective} is for energies; drop it with --model {model}")
    if model in OF_FACTORS and condition is None:
        raise EbmtrajError(f"--model {model} learns of factors; give --condition scale,x,y")
    if model is not None and model not in (*MODELS, *OF_FACTORS):
        raise EbmtrajError(
            f"unknown model {model!r}; use one of energy, {', '.join(m for m in MODELS if m not in ENERGIES)}"
        )
    if condition is not None:
        if conditional is False or objective is not None:
            raise EbmtrajError(f"--condition {condition} makes p(x | {condition}); drop --unconditional and --objective")
        model, conditional = model or "concept", True
    if root is not None:
        from ebmtraj.datasets.images import open_images

        data = open_images(data, root).path
    given = {"model": model or objective, "conditional": conditional, "condition": condition, "data": data}
    trained = training.carry_out(load_image_recipe, train_image, IMAGE, given)
    samples = MODELS[trained[1].model].sample is not ImageModel.sample
    following = "sample {} -n 100 --out samples.png" if samples else "calibrate {}"
    training.tell(trained, ("model", "conditional"), "ebmtraj " + following.format(shlex.quote(str(training.run))))
