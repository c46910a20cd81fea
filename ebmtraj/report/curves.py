"""The course of trainings as TensorBoard reads it."""

from __future__ import annotations

import contextlib
import shutil
import time
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ebmtraj.errors import EbmtrajError
from ebmtraj.report.figures import kept_rows
from ebmtraj.report.report import run_names
from ebmtraj.runs import Run
from ebmtraj.training.run import CHECKPOINT

PAUSE = 2.0  # seconds between looks at runs that are followed
EVENTS = "events.out.tfevents."  # how TensorBoard's files are called


def write_events(runs: Sequence[Run], folder: Path, *, follow: bool = False, overwrite: bool = False) -> list[Path]:
    """Write every number of the runs' metrics as TensorBoard events, one sub-folder a run; returns those folders.

    Tags are `stage/number`; wall times are those of the training as far as they were logged. With `follow`, what is logged
    later is added until every run is finished, or Ctrl-C. Raises `EbmtrajError` where `tensorboard` is missing, or a folder
    exists and may not be replaced.
    """
    make = _writer()
    places = {name: folder / name.strip("/").replace("/", "-") for name in run_names([run.path for run in runs])}
    for place in places.values():
        _clear(place, overwrite)
    writers: dict[str, tuple[Run, Any]] = {}
    try:
        for (name, place), run in zip(places.items(), runs, strict=True):
            writers[name] = run, make(str(place))
        done = {name: _write(writer, run, kept_rows(run.read_metrics())) for name, (run, writer) in writers.items()}
        seen = {name: len(run.read_metrics()) for name, (run, _) in writers.items()}
        with contextlib.suppress(KeyboardInterrupt):
            while follow and not all((run.path / CHECKPOINT).exists() for run in runs):
                time.sleep(PAUSE)
                for name, (run, writer) in writers.items():
                    rows = run.read_metrics()
                    done[name] += _write(writer, run, rows[seen[name] :])
                    seen[name] = max(seen[name], len(rows))
                    writer.flush()
    finally:
        for _, writer in writers.values():
            writer.close()
    empty = [name for name, count in done.items() if not count]
    if empty and not follow:
        raise EbmtrajError(f"run {empty[0]} has logged nothing yet; give --follow to wait for it")
    return list(places.values())


def _write(writer: Any, run: Run, rows: Sequence[Mapping[str, Any]]) -> int:
    """Write rows; how many there were."""
    began = run.config.stat().st_mtime
    seconds = 0.0
    for row in rows:
        stage, step = row.get("stage", "training"), row.get("step", row.get("iteration", 0))
        seconds = row.get("seconds", seconds)
        if "event" in row:
            writer.add_text("guard", f"{stage}: {row['event']} ({row.get('why', '')})", step, walltime=began + seconds)
            continue
        for key, value in row.items():
            if isinstance(value, int | float) and key not in ("step", "iteration", "seconds"):
                writer.add_scalar(f"{stage}/{key}", value, step, walltime=began + seconds)
    return len(rows)


def _clear(place: Path, overwrite: bool) -> None:
    if not place.exists():
        return
    held = list(place.iterdir()) if place.is_dir() else [place]
    if not all(each.name.startswith(EVENTS) for each in held):
        raise EbmtrajError(f"{place} holds other files than TensorBoard's; choose another --tensorboard folder")
    if held and not overwrite:
        raise EbmtrajError(f"{place} exists; give another --tensorboard folder or --overwrite")
    shutil.rmtree(place)


def _writer() -> Any:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # what its own dependencies deprecate
            from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        raise EbmtrajError("tensorboard is not installed; run pip install 'ebmtraj[tensorboard]'") from None
    return SummaryWriter
