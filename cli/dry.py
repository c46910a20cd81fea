"""`--dry-run`: what a long command would make and take, told instead of begun."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated

import typer

from ebmtraj.cli.common import print_json, say

if TYPE_CHECKING:
    from ebmtraj.report.estimate import Estimate

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


def refuse_resume(resume: bool) -> None:
    """Raise `EbmtrajError` where what is begun is to be gone on with: an estimate is of the whole."""
    from ebmtraj.errors import EbmtrajError

    if resume:
        raise EbmtrajError("--dry-run is for what is not begun yet; drop it, or --resume")
