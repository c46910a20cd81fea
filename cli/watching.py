"""Progress bars that follow jobs by what they write, whichever process works on them."""

from __future__ import annotations

import contextlib
import json
import shlex
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Protocol

from rich.progress import Progress, TaskID

from ebmtraj.cli.common import progress


class WatchedJob(Protocol):
    """A job with a folder of its own, which holds `outcome.json` when it is done."""

    @property
    def path(self) -> Path:
        """Its folder."""

    @property
    def label(self) -> str:
        """What its bar is called."""


def command_line() -> str:
    """What was asked for, without how far it had come and how it is printed."""
    left_out = ("--resume", "--overwrite", "--json", "--done-only")
    return shlex.join(["ebmtraj", *(word for word in sys.argv[1:] if word not in left_out)])


@contextlib.contextmanager
def watched(jobs: Sequence[WatchedJob]) -> Iterator[Callable[[], str]]:
    """Bars that follow the jobs; gives a function that says how many are done."""
    stop = threading.Event()
    total = len(jobs)

    def count() -> str:
        return f"{sum((job.path / 'outcome.json').exists() for job in jobs)}/{total}"

    with progress() as bar:
        watcher = threading.Thread(target=_watch, args=(bar, jobs, stop), daemon=True)
        watcher.start()
        try:
            yield count
        finally:
            stop.set()
            watcher.join()


def _watch(bar: Progress, jobs: Sequence[WatchedJob], stop: threading.Event) -> None:
    """One bar for all jobs, and one for each that is under way."""
    whole = bar.add_task("all", total=len(jobs), note="")
    shown: dict[Path, TaskID] = {}
    began = time.time()
    while not stop.wait(1.0):
        done = {job.path for job in jobs if (job.path / "outcome.json").exists()}
        bar.update(whole, completed=len(done))
        for job in jobs:
            metrics = job.path / "metrics.jsonl"
            with contextlib.suppress(OSError, ValueError, IndexError, KeyError):
                if job.path in done or metrics.stat().st_mtime < began:
                    if job.path in shown:
                        bar.remove_task(shown.pop(job.path))
                    continue
                if job.path not in shown:
                    shown[job.path] = bar.add_task(job.label, total=_steps(job.path), note="")
                row = json.loads(metrics.read_text(encoding="utf-8").splitlines()[-1])
                measuring = (job.path / "checkpoints" / "best.safetensors").exists()
                bar.update(shown[job.path], completed=row["step"], note="measuring" if measuring else row.get("stage", ""))


def _steps(run: Path) -> int | None:
    """How many steps a run trains for, once its recipe is written."""
    from ebmtraj.config import read_toml

    steps: int | None = read_toml(run / "config.toml")["training"]["steps"]
    return steps
