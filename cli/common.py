"""Options and output that the commands share."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from ebmtraj.cli.complete import DEVICES, among

Json = Annotated[bool, typer.Option("--json", help="Print one JSON object on stdout and nothing else.")]
Seed = Annotated[int, typer.Option("--seed", help="Same seed, same bits.", min=0, max=2**63 - 1)]
Device = Annotated[
    str, typer.Option("--device", help="auto (a GPU where there is one), cpu or cuda.", autocompletion=among(*DEVICES))
]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace what is there; without it nothing is.")]
Resume = Annotated[bool, typer.Option("--resume", help="Go on where an interrupted one stopped, to the same bits.")]
Set = Annotated[
    list[str] | None, typer.Option("--set", help="Change one key of the recipe, e.g. --set training.steps=5000; repeatable.")
]
Threads = Annotated[
    int,
    typer.Option("--threads", help="CPU threads; 0 leaves it to torch, far slower on a busy machine.", min=0),
]
Recipe = Annotated[Path | None, typer.Option("--recipe", help="A TOML recipe; keys as in --set.")]
Data = Annotated[str, typer.Option("--data", help="The store of rollouts: a folder, or any fsspec URL.")]

stderr = Console(stderr=True)
speaks = os.environ.get("WORLD_SIZE", "1") == "1" or os.environ.get("RANK", "0") == "0"  # of torchrun's processes, one


def progress() -> Progress:
    """A progress bar with time left on stderr; silent where stderr is not a terminal."""
    return Progress(
        TextColumn("{task.description:<28}"),
        BarColumn(bar_width=24),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
        TextColumn("{task.fields[note]}"),
        console=stderr,
        disable=not (speaks and sys.stderr.isatty()),
        transient=True,
    )


def print_json(value: Any) -> None:
    """The one object on stdout."""
    if speaks:
        print(json.dumps(value, allow_nan=False))


def say(text: str) -> None:
    """A line for a person, on stderr."""
    if speaks:
        stderr.print(text, highlight=False, soft_wrap=True, markup=False)
