"""Collect, train and roll out again and again in one process, and watch what a leak would make grow.

Every round runs the real command line: a store is collected (now and then by worker processes), a transition energy is
trained on it, stopped half-way by a step limit and gone on with, and futures are written; all replace those of the round
before. After each round: memory of the process, open files, threads, child processes, files in the folder for temporary
files, files beside the results, and bytes of the logs.

    OMP_NUM_THREADS=1 python benchmarks/long_run.py --minutes 60 --out docs/results/long_run.json
"""

from __future__ import annotations

import argparse
import contextlib
import gc
import io
import json
import os
import shutil
import sys
import tempfile
import time
from pathlib import Path
from statistics import median
from typing import Any

from ebmtraj.cli import app
from ebmtraj.runs import machine, versions, write_json

BAR = 0.05  # growth of memory after the warm-up that is allowed
WARM_UP = 0.1  # share of the rounds
WINDOW = 0.1  # share of the rounds at either end whose medians are compared
WORKERS_EVERY = 5  # rounds; the others simulate in this process
TRAINED = "--set training.steps=120 --set training.check_every=40 --set training.batch=64 --set training.validation=64"
SMALL = f"{TRAINED} --set network.width=64 --device cpu --set training.threads=1"


def command(*words: object) -> dict[str, Any]:
    """A command line run in this process; its JSON, raises where it fails."""
    before, output, errors = sys.argv, io.StringIO(), io.StringIO()
    sys.argv = ["ebmtraj", *map(str, words), "--json"]
    try:
        with contextlib.redirect_stdout(output), contextlib.redirect_stderr(errors):
            app.main()
        code = 0
    except SystemExit as stop:
        code = int(stop.code or 0)
    finally:
        sys.argv = before
    if code:
        raise RuntimeError(f"{' '.join(map(str, words))}: exit code {code}: {errors.getvalue()[-300:]}")
    return {**json.loads(output.getvalue()), "said": len(errors.getvalue())}


def a_round(folder: Path, number: int) -> dict[str, int]:
    """Collect, train, roll out; bytes of what was logged."""
    store, run, out = folder / "hand.zarr", folder / "run", folder / "futures.npz"
    workers = 2 if number % WORKERS_EVERY == WORKERS_EVERY - 1 else 1
    collect = ["collect", store, "--env", "hand-cube", "--seed", number, "--workers", workers, "--steps", 30]
    collect += ["--set", "block_episodes=8"]
    said = command(*collect, "--episodes", 16, "--overwrite")["said"]
    said += command(*collect, "--episodes", 40, "--resume")["said"]
    train = ["train", "transition", "--data", store, "--run", run, *SMALL.split()]
    said += command(*train, "--overwrite")["said"]
    said += command(*train, "--resume")["said"]  # finds it finished
    rollout = ["rollout", run, "--data", store, "--steps", 10, "--samples", 2, "--out", out, "--device", "cpu"]
    said += command(*rollout, "--overwrite")["said"]
    return {"stderr_bytes": said, "metrics_bytes": (run / "metrics.jsonl").stat().st_size}


def state(folder: Path, temporary: Path) -> dict[str, int]:
    """What a leak would make grow."""
    gc.collect()
    fields = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    children = Path(f"/proc/self/task/{os.getpid()}/children").read_text().split()
    files = [each for each in folder.rglob("*") if each.is_file()]
    return {
        "memory_kib": int(fields["VmRSS"].split()[0]),
        "open_files": len(os.listdir("/proc/self/fd")) - 1,  # that of the listing itself
        "threads": int(fields["Threads"]),
        "children": len(children),
        "temporary_files": sum(1 for each in temporary.rglob("*")),
        "files": len(files),
        "bytes": sum(each.stat().st_size for each in files),
        "objects": len(gc.get_objects()),
    }


def verdict(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Growth from the end of the warm-up to the end: medians over a tenth of the rounds on either side."""
    first = max(1, round(WARM_UP * len(rows)))
    width = max(1, round(WINDOW * len(rows)))
    early, late = rows[first : first + width], rows[-width:]
    found: dict[str, Any] = {"warm_up_rounds": first, "window_rounds": width}
    for key in ("memory_kib", "open_files", "threads", "children", "temporary_files", "files", "objects", "metrics_bytes"):
        before, after = (median(row[key] for row in part) for part in (early, late))
        found[key] = {"after_warm_up": before, "at_the_end": after, "growth": after / before - 1 if before else after}
    flat = {key: found[key]["growth"] <= 0 for key in ("open_files", "threads", "children", "temporary_files", "files")}
    bounded = max(row["stderr_bytes"] + row["metrics_bytes"] for row in rows[first:])
    return {
        **found,
        "most_log_bytes_a_round": bounded,
        "memory_flat": found["memory_kib"]["growth"] <= BAR,
        "nothing_leaked": all(flat.values()),
        "logs_bounded": found["metrics_bytes"]["growth"] <= BAR,
    }


def main() -> None:
    """Run, print a line a minute, and write with --out; exit code 1 where something grew."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--minutes", type=float, default=60.0)
    parser.add_argument("--out", type=Path, help="also write the rounds as JSON, every minute")
    options = parser.parse_args()
    if not Path("/proc/self/status").exists():
        raise SystemExit("this needs Linux's /proc")
    rows: list[dict[str, Any]] = []
    began = shown = time.monotonic()
    head = {
        "command": " ".join(["python", "benchmarks/long_run.py", *sys.argv[1:]]),
        "machine": machine(),
        "versions": versions(),
        "bar": BAR,
    }
    root = Path(tempfile.mkdtemp(prefix="long-run-"))
    temporary, folder = root / "tmp", root / "work"
    temporary.mkdir()
    folder.mkdir()
    os.environ["TMPDIR"] = tempfile.tempdir = str(temporary)
    try:
        while time.monotonic() - began < 60 * options.minutes or len(rows) < 10:
            row = {**a_round(folder, len(rows)), **state(folder, temporary)}
            rows.append({"seconds": round(time.monotonic() - began, 1), **row})
            if time.monotonic() - shown > 60 or len(rows) == 1:
                shown = time.monotonic()
                print(json.dumps({"round": len(rows), **rows[-1]}), flush=True)
    finally:
        shutil.rmtree(root)
    found = {**head, "rounds": len(rows), "minutes": (time.monotonic() - began) / 60, **verdict(rows), "rows": rows}
    good = found["memory_flat"] and found["nothing_leaked"] and found["logs_bounded"]
    print(json.dumps({key: value for key, value in found.items() if key not in ("rows", "versions")}, indent=1))
    if options.out:
        write_json(options.out, found)
    sys.exit(0 if good else 1)


if __name__ == "__main__":
    main()
