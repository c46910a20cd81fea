"""`ebmtraj curves`: the course of trainings, as a picture or for TensorBoard."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ebmtraj.cli.common import Json, Overwrite, print_json, say


def curves_command(
    runs: Annotated[list[Path], typer.Argument(help="Runs, finished or not.")],
    out: Annotated[
        Path | None, typer.Option(help="A PNG of one run. [default: RUN/figures/training.png, without --tensorboard]")
    ] = None,
    tensorboard: Annotated[
        Path | None,
        typer.Option(help="A folder for TensorBoard, one sub-folder a run (needs the extra `tensorboard`)."),
    ] = None,
    follow: Annotated[
        bool, typer.Option("--follow", help="With --tensorboard: go on with what comes, until the runs are finished.")
    ] = False,
    overwrite: Overwrite = False,
    json_: Json = False,
) -> None:
    """Show how trainings went: loss, validation, what else was logged, and where the guard rolled back.

    The same rows are in each run's metrics.jsonl; `ebmtraj report` shows them with everything else.

    Example: ebmtraj curves runs/hand runs/gaussian --tensorboard curves && tensorboard --logdir curves
    """
    from ebmtraj.errors import EbmtrajError
    from ebmtraj.runs import Run

    opened = [Run.open(run, "train ...") for run in runs]
    if follow and tensorboard is None:
        raise EbmtrajError("--follow writes for TensorBoard; say where with --tensorboard FOLDER")
    written: list[Path] = []
    if tensorboard is not None:
        from ebmtraj.report.curves import write_events

        if follow:
            say(f"writing to {tensorboard} until the runs are finished; Ctrl-C ends it")
        written += write_events(opened, tensorboard, follow=follow, overwrite=overwrite)
    if out is not None or tensorboard is None:
        from ebmtraj.report.figures import training_figure

        if len(runs) > 1:
            raise EbmtrajError("a picture shows one run; give one, or --tensorboard FOLDER for several")
        target = out or runs[0] / "figures" / "training.png"
        if target.suffix.lower() != ".png":
            raise EbmtrajError(f"--out {target}: give a path that ends in .png")
        if target.exists() and not overwrite:
            raise EbmtrajError(f"{target} exists; give another --out or --overwrite")
        written.append(training_figure(opened[0].read_metrics(), target))
    if json_:
        print_json({"written": [str(path) for path in written]})
        return
    for path in written:
        say(str(path))
    if tensorboard is not None:
        say(f"next: tensorboard --logdir {tensorboard}")
