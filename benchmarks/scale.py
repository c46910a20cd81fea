"""Collect at the paper's scale (200,000 episodes x 100 steps) and measure time, memory, size and files.

The real command line runs in a process of its own; memory is the sum over it and its workers, looked at every few seconds.
With --minutes it is interrupted then, and the whole is extrapolated from the rate so far; run again, it goes on.

    python benchmarks/scale.py runs/paper-scale.zarr --out docs/results/scale.json
"""

from __future__ import annotations

import argparse
import json
import signal
import subprocess
import sys
import time
from datetime import timedelta
from pathlib import Path
from typing import Any

from ebmtraj.datasets.store import Store
from ebmtraj.errors import EbmtrajError
from ebmtraj.runs import machine, versions

RULE = ["--env", "hand-cube", "--policy", "trained", "--action-rule", "every-4th-random"]


def family(pid: int) -> list[int]:
    """A process and all below it."""
    try:
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    except OSError:
        return [pid]
    return [pid, *(one for child in children for one in family(int(child)))]


def resident(pid: int) -> tuple[int, int]:
    """Bytes that a process holds: all, and with what it shares counted in part (0 where it has gone)."""
    found = {"Rss:": 0, "Pss:": 0}
    try:
        for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
            key, *rest = line.split()
            if key in found:
                found[key] = int(rest[0]) * 1024
    except OSError:
        pass
    return found["Rss:"], found["Pss:"]


def episodes_in(path: Path) -> int:
    """Episodes stored by now."""
    try:
        return Store.open(path).episodes
    except EbmtrajError:
        return 0


def main() -> None:
    """Run, print, and write with --out."""
    parser = argparse.ArgumentParser(description="Collection at the paper's scale")
    parser.add_argument("store", type=Path)
    parser.add_argument("--episodes", type=int, default=200_000)
    parser.add_argument("--workers", type=int, default=0, help="0: all cores")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--minutes", type=float, default=float("inf"), help="interrupt it then")
    parser.add_argument("--every", type=float, default=5.0, help="seconds between looks")
    parser.add_argument("--out", type=Path, help="also write the figures as JSON")
    options = parser.parse_args()

    recipe = ["--episodes", str(options.episodes), "--workers", str(options.workers), "--seed", str(options.seed)]
    command = ["collect", str(options.store), *RULE, *recipe, "--resume", "--json"]
    before = episodes_in(options.store)
    began = time.monotonic()
    process = subprocess.Popen([sys.executable, "-m", "ebmtraj", *command], stdout=subprocess.PIPE, text=True)
    peak, peak_shared, growth, minute, interrupted = 0, 0, [], 0, False
    while process.poll() is None:
        time.sleep(options.every)
        held = [resident(pid) for pid in family(process.pid)]
        peak, peak_shared = max(peak, sum(one[0] for one in held)), max(peak_shared, sum(one[1] for one in held))
        seconds = time.monotonic() - began
        if seconds >= 60 * minute:
            growth.append(
                {"seconds": round(seconds), "episodes": episodes_in(options.store), "bytes": sum(o[0] for o in held)}
            )
            minute += 1
            print(growth[-1], file=sys.stderr, flush=True)
        if seconds > 60 * options.minutes and not interrupted:
            process.send_signal(signal.SIGINT)
            interrupted = True
    if process.returncode and not interrupted:
        sys.exit(process.returncode)
    seconds = time.monotonic() - began
    said = process.communicate()[0]
    store = Store.open(options.store)
    files = [file for file in options.store.rglob("*") if file.is_file()]
    size = sum(file.stat().st_size for file in files)
    added = store.episodes - before
    result: dict[str, Any] = {
        "command": " ".join(["ebmtraj", *command[:1], "STORE", *command[2:]]),
        "seed": options.seed,
        "machine": machine(),
        "versions": versions(),
        "complete": store.complete,
        "episodes": store.episodes,
        "transitions": store.transitions,
        "terminated": int(store.terminated.sum()),
        "content_hash": store.content_hash,
        "episodes_of_this_run": added,
        "minutes": round(seconds / 60, 2),
        "minutes_for_all": round(seconds / 60 * options.episodes / added, 1) if added else None,
        "steps_per_second": round(int(store.lengths[before:].sum()) / seconds, 1),
        "peak_resident_bytes": peak,
        "peak_resident_bytes_shared_counted_once": peak_shared,
        "store_bytes": size,
        "raw_bytes": store.info()["raw_bytes"],
        "store_bytes_for_all": round(size * options.episodes / store.episodes),
        "files": len(files),
        "collect": json.loads(said) if said.strip() else None,
        "growth": growth,
    }
    print(f"{store.episodes:,} episodes, {store.transitions:,} transitions in {timedelta(seconds=round(seconds))}")
    rate = f"{result['steps_per_second']:,.0f} steps/s"
    print(f"{rate}, peak memory {peak / 1e9:.2f} GB, {size / 1e9:.2f} GB in {len(files)} files")
    if options.out:
        options.out.parent.mkdir(parents=True, exist_ok=True)
        options.out.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
