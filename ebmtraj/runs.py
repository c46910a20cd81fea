"""A run directory: made once, written atomically, resumed, never overwritten unasked.

`runs/<name>/` holds `config.toml`, `versions.json`, `metrics.jsonl`, `checkpoints/`, `samples/`, `figures/` and
`results.json`.
"""

from __future__ import annotations

import contextlib
import importlib.metadata
import json
import os
import platform
import shutil
import signal
import threading
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

from ebmtraj import __version__
from ebmtraj.errors import EbmtrajError

_LIBRARIES = ("torch", "numpy", "scipy", "scikit-learn", "mujoco", "gymnasium", "gymnasium-robotics", "zarr", "safetensors")


def write_atomic(path: Path, content: bytes | str) -> None:
    """Write a file so that, killed at any moment, it holds either the old content or the new one.

    Raises `EbmtrajError` where the disk is full or the folder can't be written.
    """
    data = content.encode() if isinstance(content, str) else content
    temporary = path.with_name(f".{path.name}.partial")  # always the same, so that a kill leaves at most one
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with temporary.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError as error:
        with contextlib.suppress(OSError):
            temporary.unlink()
        raise EbmtrajError(f"can't write {path}: {error.strerror or error}") from None


def write_json(path: Path, value: Any) -> None:
    """Write strict JSON (no NaN) atomically."""
    write_atomic(path, json.dumps(value, indent=2, allow_nan=False) + "\n")


def read_json(path: Path) -> Any:
    """Read a JSON file; raises `EbmtrajError` that names it where it is missing or damaged."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise EbmtrajError(f"{path} does not exist") from None
    except (OSError, ValueError) as error:
        raise EbmtrajError(f"{path} can't be read as JSON: {error}") from None


def versions() -> dict[str, str]:
    """Versions of Python, ebmtraj and the libraries that a result depends on."""
    found = {"python": platform.python_version(), "ebmtraj": __version__}
    for name in _LIBRARIES:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            found[name] = importlib.metadata.version(name)
    return found


def machine() -> dict[str, Any]:
    """Processor and cores, for whoever reads a result."""
    name = platform.processor() or platform.machine()
    with contextlib.suppress(OSError, StopIteration), open("/proc/cpuinfo", encoding="utf-8") as file:
        name = next(line.split(":", 1)[1].strip() for line in file if line.startswith("model name"))
    return {"processor": name, "cores": cores()}


def cores() -> int:
    """Processor cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


@contextlib.contextmanager
def ctrl_c_later() -> Iterator[None]:
    """Hold back Ctrl-C until the end of what must not be left half done."""
    before = signal.getsignal(signal.SIGINT)
    if threading.current_thread() is not threading.main_thread() or not callable(before):
        yield
        return
    came: list[tuple[int, FrameType | None]] = []
    signal.signal(signal.SIGINT, lambda number, frame: came.append((number, frame)))
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
        if came:
            before(*came[-1])


@dataclass(frozen=True)
class Run:
    """Paths of a run directory."""

    path: Path

    @classmethod
    def create(cls, path: Path, *, overwrite: bool = False) -> Run:
        """Make a new run; raises `EbmtrajError` where something is there already and `overwrite` is not set."""
        run = cls(path)
        if path.is_symlink() or (path.exists() and not path.is_dir()):
            raise EbmtrajError(f"{path} is not a folder; choose another --run")
        if path.exists() and any(path.iterdir()):
            if run.config.exists():
                if not overwrite:
                    raise EbmtrajError(f"run {path} exists; use --resume to go on with it or --overwrite to replace it")
                shutil.rmtree(path)
            elif not run._is_bare():
                raise EbmtrajError(f"{path} holds files, but is not a run; choose another --run")
        try:
            for folder in (run.checkpoints, run.samples, run.figures):
                folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise EbmtrajError(f"can't make run {path}: {error.strerror or error}") from None
        return run

    @classmethod
    def open(cls, path: Path, made_by: str = "train transition") -> Run:
        """An existing run; raises `EbmtrajError`, naming the command that makes such a run, where there is none."""
        run = cls(path)
        if not path.is_dir():
            raise EbmtrajError(f"run {path} does not exist; train it first: ebmtraj {made_by} --run {path} ...")
        if not run.config.exists():
            raise EbmtrajError(f"{path} is not a run: it has no config.toml")
        return run

    def _is_bare(self) -> bool:
        """Whether all that is here is what a run that was killed before it wrote its recipe leaves."""
        made = {self.checkpoints, self.samples, self.figures}
        half_written = (".versions.json.", ".config.toml.")  # names of `write_atomic`'s temporary files
        return all(
            entry.name == "versions.json"
            or entry.name.startswith(half_written)
            or (entry in made and not any(entry.iterdir()))
            for entry in self.path.iterdir()
        )

    @property
    def config(self) -> Path:
        """The recipe, written once."""
        return self.path / "config.toml"

    @property
    def metrics(self) -> Path:
        """One JSON object a line."""
        return self.path / "metrics.jsonl"

    @property
    def checkpoints(self) -> Path:
        """Folder of `best.safetensors`, the weights to use, and `resume.safetensors`."""
        return self.path / "checkpoints"

    @property
    def samples(self) -> Path:
        """Folder of rollouts."""
        return self.path / "samples"

    @property
    def figures(self) -> Path:
        """Folder of pictures."""
        return self.path / "figures"

    @property
    def results(self) -> Path:
        """What `evaluate` measured."""
        return self.path / "results.json"

    def read_metrics(self) -> list[dict[str, Any]]:
        """All rows of `metrics.jsonl`; a last line cut short by a kill is left out."""
        return list(_json_lines(self.metrics))


class MetricsWriter:
    """Appends rows to `metrics.jsonl`; on resume, first drops what was logged after the resume state was taken."""

    def __init__(self, path: Path | None, keep: int | None = None) -> None:
        """`keep`: how many rows of an existing file still hold; without a path, nothing is written."""
        self.rows, self._file = 0, None
        if path is None:
            return
        rows = list(_json_lines(path))[:keep] if keep is not None else []
        write_atomic(path, "".join(json.dumps(row) + "\n" for row in rows))
        self.rows = len(rows)
        self._file = path.open("a", encoding="utf-8")

    def write(self, row: Mapping[str, Any]) -> None:
        """Append one row and hand it to the system, so that a reader sees it at once."""
        if self._file is None:
            return
        try:
            self._file.write(json.dumps(dict(row), allow_nan=False) + "\n")
            self._file.flush()
        except OSError as error:
            raise EbmtrajError(f"can't write {self._file.name}: {error.strerror or error}") from None
        self.rows += 1

    def close(self) -> None:
        """Close the file."""
        if self._file is not None:
            self._file.close()


def _json_lines(path: Path) -> Iterator[dict[str, Any]]:
    if not path.exists():
        return
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            yield json.loads(line)
        except ValueError:
            return
