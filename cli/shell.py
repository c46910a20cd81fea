"""ebmtraj's own commands as processes, for commands that are made of others."""

from __future__ import annotations

import contextlib
import json
import shlex
import signal
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from rich.progress import Progress, TaskID

from ebmtraj.cli.common import progress
from ebmtraj.errors import EbmtrajError


class Shell:
    """Runs ebmtraj commands as processes, several at a time, and shows how far each is."""

    def __init__(self, workers: int, device: str) -> None:
        self.workers, self.device = workers, device
        self.commands: list[str] = []
        self._running: set[subprocess.Popen[str]] = set()
        self._lock = threading.Lock()

    def run(self, words: list[str]) -> dict[str, Any]:
        """One command, its bar drawn by itself; its JSON object."""
        try:
            return self._json(words, show=True)
        except KeyboardInterrupt:
            self._stop()
            raise

    def run_all(self, jobs: dict[str, list[str]], runs: dict[str, Path] | None = None) -> dict[str, dict[str, Any]]:
        """Several commands, `workers` at a time; with `runs`, a bar follows each training's metrics."""
        with progress() as bar, ThreadPoolExecutor(self.workers) as pool:
            stop = threading.Event()
            watcher = threading.Thread(target=_watch, args=(bar, jobs, runs or {}, stop), daemon=True)
            watcher.start()
            try:
                futures = {key: pool.submit(self._json, words) for key, words in jobs.items()}
                return {key: future.result() for key, future in futures.items()}
            except BaseException:
                pool.shutdown(wait=False, cancel_futures=True)
                self._stop()
                raise
            finally:
                stop.set()
                watcher.join()

    def _json(self, words: list[str], show: bool = False) -> dict[str, Any]:
        with self._lock:
            self.commands.append(shlex.join(["ebmtraj", *words]))
        process = subprocess.Popen(
            [sys.executable, "-m", "ebmtraj", *words, "--json"],
            stdout=subprocess.PIPE,
            stderr=None if show and sys.stderr.isatty() else subprocess.PIPE,
            text=True,
        )
        with self._lock:
            self._running.add(process)
        stdout, errors = process.communicate()
        with self._lock:
            self._running.discard(process)
        if process.returncode != 0:
            lines = [line for line in (errors or "").splitlines() if line.strip()]
            line = lines[-1].removeprefix("error: ") if lines else f"exit code {process.returncode}"
            raise EbmtrajError(f"demo: `ebmtraj {' '.join(words)}` failed: {line}")
        return json.loads(stdout)

    def _stop(self) -> None:
        with self._lock:
            for process in self._running:
                with contextlib.suppress(ProcessLookupError):
                    process.send_signal(signal.SIGTERM)


def _watch(bar: Progress, jobs: dict[str, list[str]], runs: dict[str, Path], stop: threading.Event) -> None:
    """Follow each training by the last row of its metrics."""
    tasks: dict[str, TaskID] = {}
    for key, words in jobs.items():
        steps = next((word.split("=")[1] for word in words if word.startswith("training.steps=")), None)
        tasks[key] = bar.add_task(key, total=int(steps) if steps else None, note="", start=key not in runs)
    while not stop.wait(0.5):
        for key, run in runs.items():
            path = run / "metrics.jsonl"
            if not path.exists():
                continue
            with contextlib.suppress(ValueError, OSError, IndexError):
                row = json.loads(path.read_text(encoding="utf-8").splitlines()[-1])
                bar.start_task(tasks[key])
                bar.update(tasks[key], completed=row["step"], note=row.get("stage", ""))
