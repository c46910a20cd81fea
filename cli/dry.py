"""`--dry-run`: what a long command would make and take, told instead of begun."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ebmtraj.cli.common import print_json, progress, say

if TYPE_CHECKING:
    from ebmtraj.report.estimate import Estimate, Piece

DryRun = Annotated[
    bool,
    typer.Option("--dry-run", help="Say what it would make and how long it would take, by timing some real steps; no more."),
]


def tell_estimate(estimate: Estimate, json_: bool) -> None:
    """An estimate in lines, or as the one object; the command ends here."""
    from ebmtraj.report.estimate import in_words

    if json_:
        print_json(asdict(estimate))
    else:
        for line in in_words(estimate):
            say(line)
    raise typer.Exit


def tell_trainings(
    comparison: Any,
    pieces: Callable[[Any], list[Piece]],
    out: Path,
    workers: int | None,
    json_: bool,
    beside: str = "measuring the trained models",
) -> None:
    """Time the trainings that `pieces` lists of a comparison, whose runs lie in a folder that vanishes; ends the command."""
    from ebmtraj.report.estimate import estimate_trainings, nowhere

    with nowhere(comparison) as tried, progress() as bar:
        task = bar.add_task("timing", total=None, note="")
        found = estimate_trainings(str(out), pieces(tried), workers or 0, lambda name: bar.update(task, note=name))
    tell_estimate(replace(found, beside=beside), json_)


def refuse_resume(resume: bool) -> None:
    """Raise `EbmtrajError` where what is begun is to be gone on with: an estimate is of the whole."""
    from ebmtraj.errors import EbmtrajError

    if resume:
        raise EbmtrajError("--dry-run is for what is not begun yet; drop it, or --resume")
