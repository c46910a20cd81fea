"""Kill, starve, interrupt and crowd every command that writes, and compare what it leaves in the end, to the bit.

Each command runs at a tiny size, as it is on the command line. Faults are drawn from a seed: SIGKILL at a touch of a file,
in the middle of a write or at any time (some resumes are killed, too, and of commands with workers a worker); the disk full
or forbidden from some write on; Ctrl-C and SIGTERM; the clock of the day going back; a second process on the same folder.
Afterwards the same command is given again, with --resume where it has one.

    make faults        # or: python benchmarks/faults.py --kills 7 --out docs/results/faults.json
"""

from __future__ import annotations

import argparse
import contextlib
import errno
import json
import os
import queue
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests" / "faults"))

from harness import Zygote, one_line
from scenarios import SCENARIOS, Scenario, make_inputs
from trials import Bench, Whole, faults_of

from ebmtraj.runs import machine, versions, write_json

DAY = 86_400.0  # s
ALONE = {  # what a second process is kept from: the folder that each of these writes
    "collect": "s.zarr",
    "data import npz": "s.zarr",
    "train transition fc": "r",
    "train image dsm": "r",
    "train generator": "r",
    "tilt": "t",
    "policy train": "r",
    "continual": "c",
    "compare tilting": "c",
}
SMALL_DISK = {"collect": 40, "data import npz": 24, "data export npz": 16, "train transition fc": 120}  # KiB that it has


def kills(bench: Bench, whole: Whole, count: int, rng: random.Random) -> list[dict[str, Any]]:
    """SIGKILL so many times, or until there is hardly a moment left to hit."""
    rows: list[dict[str, Any]] = []
    for _ in range(3):
        for fault, *again in faults_of(whole, count - sum(row["kills"] for row in rows), rng):
            row = bench.kill(whole, fault, again)
            rows += [row] if row else []
    return rows


def disks(bench: Bench, whole: Whole, rng: random.Random) -> list[dict[str, Any]]:
    """The disk is full, and may not be written, from one touch of a file on."""
    errors = (errno.ENOSPC, errno.EACCES, errno.EROFS)
    return [bench.refuse(whole, rng.randint(1, whole.events), error) for error in rng.sample(errors, 2)]


def signals(bench: Bench, whole: Whole, rng: random.Random) -> list[dict[str, Any]]:
    """Ctrl-C and SIGTERM at some time."""
    rows = []
    for name in ("SIGINT", "SIGTERM"):
        for _ in range(3):
            row = bench.interrupt(whole, name, round(rng.uniform(0.05, 0.95 * whole.seconds), 3))
            if row:
                rows.append(row)
                break
    return rows


def clocks(bench: Bench, whole: Whole, rng: random.Random) -> list[dict[str, Any]]:
    """The clock goes back by a day, some readings after a kill and the resume."""
    kill = {"at": "event", "number": rng.randint(1, whole.events)}
    return [bench.clock(whole, rng.randint(0, 20), -DAY, kill)]


@contextlib.contextmanager
def small_disk(folder: Path, kib: int) -> Iterator[bool]:
    """A disk of so many KiB at `folder`; False where only root may make one, and this is not root."""
    folder.mkdir(parents=True, exist_ok=True)
    words = ["mount", "-t", "tmpfs", "-o", f"size={kib}k", "tmpfs", str(folder)]
    try:
        made = subprocess.run(words, capture_output=True, check=False).returncode == 0
    except FileNotFoundError:
        made = False
    try:
        yield made
    finally:
        if made:
            subprocess.run(["umount", str(folder)], check=True)


def full(bench: Bench, whole: Whole, kib: int) -> list[dict[str, Any]]:
    """A real small disk, which fills up in the middle of a write; then it grows."""
    own = Bench(bench.zygote, bench.root / "small")
    own.folder = bench.root / "small"
    words = whole.scenario.words.split()
    with small_disk(own.folder, kib) as made:
        if not made:
            return []
        done = own.run(words)
        wrong = [*done.faults, *one_line(done), *own.at_once(whole)]
        subprocess.run(["mount", "-o", "remount,size=64m", str(own.folder)], check=True)
        return [{"kib": kib, "said": done.errors.strip(), "wrong": wrong + own.after(whole)}]


class Report:
    """Rows of every kind, as they come."""

    def __init__(self) -> None:
        self.commands: dict[str, dict[str, Any]] = {}
        self.bad = 0

    def add(self, name: str, kind: str, rows: list[dict[str, Any]], root: Path) -> None:
        """Note rows without the name of the temporary folder, and print those in which something is wrong."""
        rows = json.loads(json.dumps(rows).replace(f"{root}/", ""))
        self.commands.setdefault(name, {})[kind] = rows
        for row in rows:
            if row["wrong"]:
                self.bad += 1
                print(f"  BAD {name}, {kind}: {row}", flush=True)

    def count(self, kind: str) -> int:
        """Rows of a kind; of kills, the kills."""
        return sum(row.get("kills", 1) for command in self.commands.values() for row in command.get(kind, []))


def one_command(
    bench: Bench, other: Zygote, scenario: Scenario, options: argparse.Namespace, rng: random.Random, report: Report
) -> None:
    """All faults of one command."""
    began = time.monotonic()
    whole = bench.undisturbed(scenario)

    def add(kind: str, rows: list[dict[str, Any]]) -> None:
        report.add(scenario.name, kind, rows, bench.root)

    add("undisturbed", [{"seconds": whole.seconds, "events": whole.events, "wrong": whole.faults}])
    add("kills", kills(bench, whole, options.kills, rng))
    if not options.kills_only:
        add("disks", [] if scenario.workers else disks(bench, whole, rng))
        add("signals", signals(bench, whole, rng))
        add("clocks", [] if scenario.workers else clocks(bench, whole, rng))
        if scenario.name in ALONE:
            add("second process", [bench.second(whole, other, ALONE[scenario.name])])
        if scenario.name in SMALL_DISK:
            add("full disk", full(bench, whole, SMALL_DISK[scenario.name]))
    counts = {kind: len(rows) for kind, rows in report.commands[scenario.name].items() if kind != "undisturbed"}
    print(f"{scenario.name}: {counts}, {time.monotonic() - began:.0f} s", flush=True)


def a_place(folder: Path, stack: contextlib.ExitStack) -> tuple[Bench, Zygote]:
    """Where one command after the other is tried, and a second process for it."""
    folder.mkdir()
    zygote = stack.enter_context(Zygote(folder / "zygote.log"))
    other = stack.enter_context(Zygote(folder / "other.log"))
    make_inputs(zygote, folder / "inputs")
    return Bench(zygote, folder), other


def main() -> None:
    """Run, print a line a command, and write with --out; exit code 1 where anything was lost, wrong or unclear."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--kills", type=int, default=7, help="of each command")
    parser.add_argument("--kills-only", action="store_true", help="no other fault")
    parser.add_argument("--only", help="commands whose name contains this")
    parser.add_argument("--seed", type=int, default=0, help="of which faults, and when")
    parser.add_argument("--jobs", type=int, default=1, help="commands at once")
    parser.add_argument("--out", type=Path, help="also write the rows as JSON")
    options = parser.parse_args()
    if not Path("/proc/self/environ").exists():
        raise SystemExit("this needs Linux")
    report, began = Report(), time.monotonic()
    found: dict[str, Any] = {
        "command": " ".join(["python", "benchmarks/faults.py", *sys.argv[1:]]),
        "seed": options.seed,
        "machine": {**machine(), "load_before": os.getloadavg()[0]},
        "versions": versions(),
    }
    chosen = [pair for pair in enumerate(SCENARIOS) if options.only is None or options.only in pair[1].name]
    with tempfile.TemporaryDirectory(prefix="faults-") as root, contextlib.ExitStack() as stack:
        places: queue.SimpleQueue[tuple[Bench, Zygote]] = queue.SimpleQueue()
        for job in range(options.jobs):
            places.put(a_place(Path(root) / str(job), stack))

        def carry_out(pair: tuple[int, Scenario]) -> None:
            number, scenario = pair
            bench, other = places.get()
            one_command(bench, other, scenario, options, random.Random(1000 * options.seed + number), report)
            places.put((bench, other))

        with ThreadPoolExecutor(options.jobs) as threads:
            list(threads.map(carry_out, chosen))
    kinds = ("kills", "disks", "full disk", "signals", "clocks", "second process")
    totals = {kind: report.count(kind) for kind in kinds}
    found |= {"seconds": time.monotonic() - began, "totals": totals, "bad": report.bad}
    found["commands"] = {scenario.name: report.commands[scenario.name] for _, scenario in chosen}
    print(f"{totals}: {report.bad} lost, wrong or unclear; {found['seconds']:.0f} s")
    if options.out:
        write_json(options.out, found)
    sys.exit(1 if report.bad else 0)


if __name__ == "__main__":
    main()
