"""`ebmtraj attack`: a classifier's accuracy under attack, through refinement."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from ebmtraj.cli.common import Device, Json, Seed, Threads, print_json, progress, say
from ebmtraj.cli.joint import ImageData, ImageRun, Split, loaded


def attack_command(
    run: ImageRun,
    norm: Annotated[str, typer.Option(help="linf, or l2 of the whole image.")] = "linf",
    eps: Annotated[
        str, typer.Option(help="Distances in pixels of [0, 1]. [default: 0.05,0.1,0.2, or 0.5,1,1.5 in l2]")
    ] = "",
    refine: Annotated[str, typer.Option(help="Numbers of refinement steps.")] = "0,1,10",
    attacks: Annotated[
        str, typer.Option(help="Of pgd, autoattack, square, boundary and transfer.")
    ] = "pgd,autoattack,boundary,transfer",
    surrogate: Annotated[
        list[Path] | None, typer.Option(help="A run whose classifier's adversarial images are tried, too; repeatable.")
    ] = None,
    steps: Annotated[int, typer.Option(help="Steps of PGD.", min=1)] = 40,
    queries: Annotated[int, typer.Option(help="Of the attacks without a gradient.", min=1)] = 500,
    level: Annotated[float | None, typer.Option(help="Noise that refinement adds and takes away again.")] = None,
    limit: Annotated[int, typer.Option(help="Images of the split; 0: all.", min=0)] = 200,
    data: ImageData = None,
    split: Split = "test",
    seed: Seed = 0,
    device: Device = "auto",
    threads: Threads = 1,
    json_: Json = False,
) -> None:
    """Attack a classifier, with gradients through its refinement, by transfer and without gradients.

    PGD raises both cross-entropy and margin, averaged over noise; an image counts where no image found within the distance
    is taken for another class. `lowest` counts all attacks at the largest distance together.

    Example: ebmtraj attack runs/jem --refine 0,10 --attacks pgd,transfer --surrogate runs/classifier
    """
    import dataclasses

    from ebmtraj.errors import EbmtrajError
    from ebmtraj.images.registry import load_image_model
    from ebmtraj.images.robustness import AttackConfig, Defence
    from ebmtraj.report.robustness import RobustnessConfig, measure_robustness

    if norm not in ("linf", "l2"):
        raise EbmtrajError(f"--norm {norm}: use linf or l2")
    defence = Defence() if level is None else dataclasses.replace(Defence(), level=level)
    config = RobustnessConfig(
        attack=AttackConfig(norm="l2" if norm == "l2" else "linf", steps=steps),
        eps=tuple(_numbers("--eps", eps, float)),
        refine=tuple(_numbers("--refine", refine, int)),
        attacks=tuple(name.strip() for name in attacks.split(",") if name.strip()),
        defence=defence,
        queries=queries,
        split=split,
        limit=limit,
        seed=seed,
    )
    model, store = loaded(run, data, device, threads, None, False)
    others = [load_image_model(path, model.shift.device)[0] for path in surrogate or ()]
    with progress() as bar:
        task = bar.add_task("attacking", total=None, note="")
        found = measure_robustness(
            model, store, config, others, watch=lambda what: bar.update(task, description=what, advance=1)
        )
    if json_:
        print_json(found)
        return
    p = found["protocol"]
    say(f"{p['images']} images of the {split} split, {norm}; accuracy, others than pgd at {config.radii[-1]:g}")
    for count, row in found["refine"].items():
        near = ", ".join(f"{e}: {100 * share:.1f}" for e, share in row.get("pgd", {}).items())
        rest = ", ".join(f"{k} {100 * v:.1f}" for k, v in row.items() if k not in ("clean", "pgd"))
        say(f"{count} steps: clean {100 * row['clean']:.1f} %" + (f"; pgd {near}" if near else "") + f"; {rest}")


def _numbers(option: str, text: str, kind: type) -> list[Any]:
    from ebmtraj.errors import EbmtrajError

    try:
        return [kind(part) for part in text.split(",") if part.strip()]
    except ValueError:
        raise EbmtrajError(f"{option} {text!r}: give numbers with commas between, e.g. {option} 0,1,10") from None
