"""Commands that faults happen to, and what is left of them afterwards, compared to the bit with an undisturbed run."""

from __future__ import annotations

import hashlib
import json
import os
import select
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent.parent
SEALS = ("sha256", "chain")  # over what they stand in, times included
TIMES = ("seconds", "steps_per_second", "open_loop", "machine", "versions", "processor", "of_open_loop_limit", "date")


@dataclass(frozen=True)
class Done:
    """What became of a command."""

    code: int  # exit code; below 0: the signal that ended it
    out: str
    errors: str
    seconds: float
    events: int | None  # times that it touched files; None where it was killed
    hit: str | None  # who got a timed signal
    faults: tuple[str, ...]  # it hung, or something outlived it

    @property
    def killed(self) -> bool:
        """Whether SIGKILL, or the signal of a file that is too large, ended it."""
        return self.code in (-9, -25)


class Zygote:
    """The process that forks commands; a context manager."""

    def __init__(self, log: Path) -> None:
        threads = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")
        self._log = log.open("w")
        self._process = subprocess.Popen(
            [sys.executable, str(HERE / "zygote.py")],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log,
            text=True,
            env={**os.environ, **threads, "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])},
        )
        self._ready = False
        self._beside: dict[str, Path] = {}

    def run(self, folder: Path, words: list[str], fault: dict[str, Any] | None = None, **more: Any) -> Done:
        """Run a command with `folder` as the current one; its output goes beside the folder."""
        self.begin(folder, words, fault, **more)
        return self.finish()

    def begin(self, folder: Path, words: list[str], fault: dict[str, Any] | None = None, **more: Any) -> None:
        """Start a command; `finish` waits for it."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        if not self._ready:
            line = self._process.stdout.readline()
            if line != "ready\n":
                raise RuntimeError(f"the zygote did not start: {line} {Path(self._log.name).read_text()[-2000:]}")
            self._ready = True
        folder.mkdir(parents=True, exist_ok=True)
        beside = {name: f"{folder}.{id(self)}.{name}" for name in ("out", "errors", "events")}
        self._beside = {name: Path(path) for name, path in beside.items()}
        self._beside["events"].unlink(missing_ok=True)
        request = {"folder": str(folder), "words": [str(word) for word in words], "fault": fault, **beside, **more}
        self._process.stdin.write(json.dumps(request) + "\n")
        self._process.stdin.flush()

    def ended(self) -> bool:
        """Whether the command that was begun has ended."""
        return bool(select.select([self._process.stdout], [], [], 0)[0])

    def finish(self) -> Done:
        """Wait for the command that was begun."""
        assert self._process.stdout is not None
        answer = json.loads(self._process.stdout.readline())
        events = self._beside["events"]
        faults = (["hung"] if answer["hung"] else []) + ([f"{answer['outlived']} outlived it"] if answer["outlived"] else [])
        return Done(
            answer["code"],
            self._beside["out"].read_text(errors="replace"),
            self._beside["errors"].read_text(errors="replace"),
            answer["seconds"],
            int(events.read_text()) if events.exists() else None,
            answer["hit"],
            tuple(faults),
        )

    def close(self) -> None:
        """End it."""
        for pipe in (self._process.stdin, self._process.stdout):
            assert pipe is not None
            pipe.close()
        self._process.wait()
        self._log.close()

    def __enter__(self) -> Zygote:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


# --- What is left, without times ------------------------------------------------------------------------------------------


def timeless(value: Any) -> Any:
    """JSON without what differs from run to run by its nature: times and the machine."""
    if isinstance(value, dict):
        kept = {key: inner for key, inner in value.items() if key not in SEALS and not any(name in key for name in TIMES)}
        return {key: timeless(inner) for key, inner in kept.items()}
    return [timeless(inner) for inner in value] if isinstance(value, list) else value


def _tensors(content: bytes) -> str:
    """A safetensors file without the times in its header."""
    size = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + size])
    said = timeless(json.loads(header.pop("__metadata__", {}).get("header", "{}")))
    return _hash(json.dumps([said, header], sort_keys=True).encode() + content[8 + size :])


def _hash(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()[:24]


def left(folder: Path) -> dict[str, str]:
    """Every file below a folder with a hash of what it says; a store of rollouts by its content hash and its files."""
    from ebmtraj.datasets.zarr_files import FORMAT

    found = {}
    stores = {}
    for path in sorted(folder.rglob("zarr.json")):
        said = json.loads(path.read_text())
        if said.get("attributes", {}).get("format") == FORMAT:
            stores[path.parent] = said["attributes"]
    for path in sorted(folder.rglob("*")):
        name = str(path.relative_to(folder))
        if path.is_dir():
            found[f"{name}/"] = "folder"
            continue
        content = path.read_bytes()
        store = next((each for each in stores if each in path.parents), None)
        if store is not None:
            found[name] = str(stores[store].get("content_hash")) if path == store / "zarr.json" else "of a store"
        else:
            found[name] = _said(path.suffix, content)
    return found


def _said(suffix: str, content: bytes) -> str:
    """A hash of what a file says, times left out; of all its bytes where it can't be read (cut in the middle of a write)."""
    try:
        if suffix == ".safetensors":
            return _tensors(content)
        if suffix in (".json", ".jsonl"):
            rows = [content] if suffix == ".json" else content.splitlines()
            return _hash("\n".join(json.dumps(timeless(json.loads(row)), sort_keys=True) for row in rows).encode())
    except ValueError:
        return f"damaged {_hash(content)}"
    return _hash(content)


def sound(folder: Path) -> list[str]:
    """What `verify` finds wrong with the stores of rollouts below a folder."""
    from ebmtraj.datasets.verify import verify
    from ebmtraj.datasets.zarr_files import FORMAT

    wrong = []
    for path in folder.rglob("zarr.json"):
        said = json.loads(path.read_text())
        if said.get("attributes", {}).get("format") == FORMAT and said["attributes"]["committed"]["episodes"]:
            wrong += [] if verify(path.parent)["ok"] else [f"{path.parent.name} is damaged"]
    return wrong


def difference(found: dict[str, str], wanted: dict[str, str]) -> list[str]:
    """Names that are missing, too many or of another content."""
    names = sorted(set(found) | set(wanted))
    return [
        f"{name}: {'missing' if name not in found else 'left over' if name not in wanted else 'differs'}"
        for name in names
        if found.get(name) != wanted.get(name)
    ][:6]


def one_line(done: Done, code: int = 2) -> list[str]:
    """What is wrong with how a command said that it could not: a traceback, more lines than one, or the wrong exit code."""
    errors = done.errors.strip()
    wrong = [] if "Traceback" not in errors else ["a traceback"]
    if not errors.splitlines() or not errors.splitlines()[-1].startswith("error: ") or errors.count("error: ") != 1:
        wrong.append(f"no clear line: {errors[-300:]!r}")
    return wrong if done.code == code else [*wrong, f"exit code {done.code}"]


def fresh(folder: Path) -> Path:
    """An empty folder."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    return folder
