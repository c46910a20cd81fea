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
from ebmtraj.locks import LOCK, locked_file
from ebmtraj.seal import of_json, of_recipe, sealed, unsealed

CLEARED = ".cleared"  # where what `clear` removes goes first
_LIBRARIES = ("torch", "numpy", "scipy", "scikit-learn", "mujoco", "gymnasium", "gymnasium-robotics", "zarr", "safetensors")


def write_atomic(path: Path, content: bytes | str) -> None:
    """Write a file so that, killed at any moment, it holds either the old content or the new one.

    Raises `EbmtrajError` where the disk is full or the folder can't be written.
    """
    data = content.encode() if isinstance(content, str) else content
    temporary = path.with_name(f".{path.name}.partial")  # always the same, so that a kill leaves at most one
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with locked_file(temporary) as file:  # of two processes that write the same, one after the other
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
            os.replace(temporary, path)
    except OSError as error:
        with contextlib.suppress(OSError):
            temporary.unlink()
        raise EbmtrajError(f"can't write {path}: {error.strerror or error}") from None


def write_json(path: Path, value: Any) -> None:
    """Write strict JSON (no NaN) atomically; an object gets the `sha256` of its content as last key."""
    if isinstance(value, Mapping):
        value = sealed(json.loads(json.dumps(value, allow_nan=False)))
    write_atomic(path, json.dumps(value, indent=2, allow_nan=False) + "\n")


def read_json(path: Path) -> Any:
    """Read a JSON file, without its `sha256`; raises `EbmtrajError` that names it where it is missing or damaged."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise EbmtrajError(f"{path} does not exist") from None
    except (OSError, ValueError, RecursionError) as error:
        raise EbmtrajError(f"{path} can't be read as JSON: {error}") from None
    content = unsealed(value) if isinstance(value, dict) else value
    if content is None:
        raise EbmtrajError(f"{path} is damaged, or was edited: its content is not what its sha256 says; make it again")
    return content


def refuse_links(folder: Path, what: str) -> None:
    """Raise `EbmtrajError` where a link below a folder leads out of it, to read or to write what is not its own."""
    home = folder.resolve()
    for path, folders, files in os.walk(folder):  # which follows no links
        for name in (*folders, *files):
            link = Path(path, name)
            if link.is_symlink() and not link.resolve().is_relative_to(home):
                raise EbmtrajError(f"{what}: {link.relative_to(folder)} is a link that leads out of it; put the file there")


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
    """Hold back Ctrl-C, and SIGTERM where it is handled, until the end of what must not be left half done."""
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    handled = {number: handler for number, handler in before.items() if callable(handler)}
    if threading.current_thread() is not threading.main_thread() or not handled:
        yield
        return
    came: list[tuple[int, FrameType | None]] = []
    for number in handled:
        signal.signal(number, lambda number, frame: came.append((number, frame)))
    try:
        yield
    finally:
        for number, handler in handled.items():
            signal.signal(number, handler)
        if came:
            handled[signal.Signals(came[-1][0])](*came[-1])


def holds_anything(folder: Path) -> bool:
    """Whether there is more in a folder than a lock, and what a kill left of `clear` or of a file that was being written."""
    return any(
        each.name not in (LOCK, CLEARED) and not (each.name.startswith(".") and each.name.endswith(".partial"))
        for each in folder.iterdir()
    )


def clear(folder: Path, *, last: str) -> None:
    """Empty a folder but for its lock: killed at any moment, it holds whole parts, and the file `last` until no other.

    What is cleared is first moved out of the way, so that no half of it is taken for the whole. Raises `EbmtrajError` where
    rights are missing.
    """
    gone = folder / CLEARED
    try:
        shutil.rmtree(gone, ignore_errors=True)
        gone.mkdir()
        for each in sorted(folder.iterdir(), key=lambda each: (each.name == last, each.name)):
            if each.name not in (CLEARED, LOCK):
                each.rename(gone / each.name)
        shutil.rmtree(gone)
    except OSError as error:
        raise EbmtrajError(f"can't clear {folder}: {error.strerror or error}; mend the rights") from None


@dataclass(frozen=True)
class Run:
    """Paths of a run directory."""

    path: Path

    @classmethod
    def create(cls, path: Path, *, overwrite: bool = False) -> Run:
        """Make a new run; raises `EbmtrajError` where something is there already and `overwrite` is not set."""
        run = cls(path)
        run.check_free(overwrite=overwrite)
        if run.config.exists():
            clear(path, last=run.config.name)
        try:
            shutil.rmtree(path / CLEARED, ignore_errors=True)  # of a kill while it was cleared
            for folder in (run.checkpoints, run.samples, run.figures):
                folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise EbmtrajError(f"can't make run {path}: {error.strerror or error}") from None
        return run

    def check_free(self, *, overwrite: bool = False) -> None:
        """Raise `EbmtrajError` where a run can't be made here: something is there, and is no run that may be replaced."""
        path = self.path
        if path.is_symlink() or (path.exists() and not path.is_dir()):
            raise EbmtrajError(f"{path} is not a folder; choose another --run")
        if path.exists() and holds_anything(path):
            if self.config.exists():
                if not overwrite:
                    raise EbmtrajError(f"run {path} exists; use --resume to go on with it or --overwrite to replace it")
            elif any(self.checkpoints.glob("*.safetensors")):
                raise EbmtrajError(f"run {path} has lost its recipe, {self.config}; restore it, or choose another --run")
            elif not self._is_bare():
                raise EbmtrajError(f"{path} holds files, but is not a run; choose another --run")

    @classmethod
    def open(cls, path: Path, made_by: str = "train transition") -> Run:
        """An existing run; raises `EbmtrajError`, naming the command that makes such a run, where there is none."""
        run = cls(path)
        if not path.is_dir():
            raise EbmtrajError(f"run {path} does not exist; train it first: ebmtraj {made_by} --run {path} ...")
        if not run.config.is_file():
            raise EbmtrajError(f"{path} is not a run: it has no config.toml")
        refuse_links(path, f"run {path}")
        return run

    def _is_bare(self) -> bool:
        """Whether all that is here is what a run that was killed before it wrote its recipe leaves."""
        made = {self.checkpoints, self.samples, self.figures}
        half_written = (".versions.json.", ".config.toml.")  # names of `write_atomic`'s temporary files
        return all(
            entry.name in ("versions.json", LOCK, CLEARED)
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
        """All rows of `metrics.jsonl`; a last line cut short by a kill is left out.

        Raises `EbmtrajError` where a line is damaged, or the file is another run's.
        """
        return list(_json_lines(self.metrics))


class MetricsWriter:
    """Appends rows to `metrics.jsonl`; on resume, first drops what was logged after the resume state was taken.

    Each line ends in the first characters of a sha256 over it and all before it, begun with the run's recipe.
    """

    def __init__(self, path: Path | None, keep: int | None = None) -> None:
        """`keep`: how many rows of an existing file still hold; without a path, nothing is written.

        Raises `EbmtrajError` where the file lacks rows that hold, or can't be written, and `ValueError` as `write`.
        """
        self.rows, self._file = 0, None
        if path is None:
            return
        rows = list(_json_lines(path))[:keep] if keep is not None else []
        if path.exists() and keep is not None and len(rows) < keep:
            raise EbmtrajError(
                f"{path} holds {len(rows)} of the {keep} rows that were logged: it was cut short or emptied; restore it, "
                "or remove it: it is a log alone"
            )
        self._chain = _chain_start(path)
        write_atomic(path, "".join([self._line(row) for row in rows]))
        self.rows = len(rows)
        try:
            self._file = path.open("a", encoding="utf-8")
        except OSError as error:
            raise EbmtrajError(f"can't write {path}: {error.strerror or error}") from None

    def write(self, row: Mapping[str, Any]) -> None:
        """Append one row and hand it to the system, so that a reader sees it at once.

        Raises `EbmtrajError` where it can't be written, `ValueError` for a row with the key of its seal.
        """
        if self._file is None:
            return
        try:
            self._file.write(self._line(row))
            self._file.flush()
        except OSError as error:
            raise EbmtrajError(f"can't write {self._file.name}: {error.strerror or error}") from None
        self.rows += 1

    def sync(self) -> None:
        """Have what was written on the disk, so that a state that counts these rows is never ahead of them."""
        if self._file is not None:
            os.fsync(self._file.fileno())

    def close(self) -> None:
        """Close the file."""
        if self._file is not None:
            with contextlib.suppress(OSError):  # every row was handed on, or its fault has been said
                self._file.close()

    def _line(self, row: Mapping[str, Any]) -> str:
        plain = json.loads(json.dumps(dict(row), allow_nan=False))
        if _CHAIN in plain:
            raise ValueError(f"a row of metrics has no {_CHAIN!r} of its own: it is the key of its seal")
        self._chain = _chained(self._chain, plain)
        return json.dumps({**plain, _CHAIN: self._chain}) + "\n"


_CHAIN = "chain"  # the key of a line's seal


def _chain_start(path: Path) -> str:
    from ebmtraj.config import read_toml  # slow to import, and stores need this module

    recipe = path.with_name("config.toml")
    return of_recipe(read_toml(recipe)) if recipe.is_file() else ""


def _chained(before: str, row: Mapping[str, Any]) -> str:
    return of_json([before, dict(row)])[:12]


def _json_lines(path: Path) -> Iterator[dict[str, Any]]:
    """Each row without its seal; raises `EbmtrajError` where a line but the last can't be read."""
    if not path.exists():
        return
    chain, begun = _chain_start(path), False
    try:
        lines = path.read_bytes().decode().split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise EbmtrajError(f"{path} can't be read: {error}; restore it, or remove it: it is a log alone") from None
    for number, line in enumerate(lines, 1):
        try:
            row = json.loads(line)
        except (ValueError, RecursionError):
            if number == len(lines):  # cut short by a kill, or the nothing after the last line
                return
            row = None
        expected = _chained(chain, _unchained(row)) if isinstance(row, dict) and (begun or _CHAIN in row) else None
        if not isinstance(row, dict) or row.get(_CHAIN) != expected:
            raise EbmtrajError(
                f"{path}, line {number}: damaged, or of another run; restore the file, or remove it: it is a log alone"
            )
        chain, begun = expected or chain, begun or expected is not None
        yield _unchained(row)


def _unchained(row: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in row.items() if key != _CHAIN}
