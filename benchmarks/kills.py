"""Kill a collection at random moments, go on with it, and compare the store with that of an undisturbed run.

The real command line collects in a process of its own. At a moment drawn over the whole run, start-up and finish
included, SIGKILL goes in turn to the parent, to a worker, and to the whole process group. After a worker's death the run
must finish by itself; otherwise `--resume` goes on, and some of those runs are killed again. At the end the content hash
must be that of the undisturbed run, `ebmtraj data verify` must agree, and no process and no file may be left over.

    python benchmarks/kills.py --kills 20 --out docs/results/kills.json
    python benchmarks/kills.py --kills 3 -- --workers 3 --steps 50      # options of `ebmtraj collect` follow the --
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

from ebmtraj.datasets.store import Store
from ebmtraj.datasets.verify import verify
from ebmtraj.errors import EbmtrajError
from ebmtraj.runs import machine, versions

Victim = Literal["parent", "worker", "group"]
VICTIMS: tuple[Victim, ...] = ("parent", "worker", "group")

# Small blocks, so that there are many commits to hit; the content does not depend on them.
COLLECT = "--env hand-cube --policy trained --action-rule every-4th-random --episodes 240 --workers 2 --seed 11"
COLLECT += " --set block_episodes=16"
MARK = "EBMTRAJ_KILLS"  # this variable of the environment marks every process that a run starts
PATIENCE = 90.0  # s; so long may workers take to see that their parent is gone: those of Ray take more than a minute


class Run:
    """A command line in a process group of its own, and all the processes that it starts."""

    def __init__(self, words: list[str], log: Path) -> None:
        self._mark = f"{MARK}={uuid.uuid4().hex}"
        self._log = log
        self._seen: set[tuple[int, str]] = set()  # processes by number and time of start
        name, _, value = self._mark.partition("=")
        self._errors = log.with_suffix(".errors")
        with log.open("w") as out, self._errors.open("w") as errors:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "ebmtraj", *words],
                stdout=out,
                stderr=errors,
                env={**os.environ, name: value},
                start_new_session=True,
            )

    def wait(self, seconds: float) -> int | None:
        """Exit code, or None where it is still running after so many seconds."""
        try:
            return self._process.wait(seconds)
        except subprocess.TimeoutExpired:
            return None

    def kill(self, victim: Victim, rng: random.Random) -> str:
        """Send SIGKILL; returns who got it: before the first worker has started, the parent does."""
        processes = self.processes()
        if victim == "group":
            os.killpg(self._process.pid, signal.SIGKILL)
            return "group"
        workers = [pid for pid in processes if _is_worker(pid)] if victim == "worker" else []
        if workers:
            try:
                os.kill(rng.choice(workers), signal.SIGKILL)
                return "worker"
            except ProcessLookupError:  # it has just ended by itself
                pass
        os.kill(self._process.pid, signal.SIGKILL)
        return "parent" if victim == "parent" else "parent (no worker then)"

    def processes(self) -> list[int]:
        """All living processes of this run: those with its mark, and whatever they and their children started."""
        living = {pid: (parent, start) for pid, parent, start in _living()}
        family = {pid for pid in living if _has_mark(pid, self._mark.encode())}
        family |= {pid for pid, start in self._seen if pid in living and living[pid][1] == start}
        while more := {pid for pid, (parent, _) in living.items() if parent in family} - family:
            family |= more
        self._seen |= {(pid, living[pid][1]) for pid in family}
        return sorted(family)

    def left_behind(self) -> list[str]:
        """What processes still live some time after their parent's end; they are killed then."""
        deadline = time.monotonic() + PATIENCE
        while (left := self.processes()) and time.monotonic() < deadline:
            time.sleep(0.05)
        names = [_command(pid)[:80].decode(errors="replace") for pid in left]
        for pid in left:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        return names

    def output(self) -> str:
        """What it printed on stdout."""
        return self._log.read_text(errors="replace").strip()

    def errors(self) -> str:
        """The end of what it printed on stderr."""
        return self._errors.read_text(errors="replace").strip()[-300:]


def _living() -> Iterator[tuple[int, int, str]]:
    """Number, parent and time of start of every process that has not ended."""
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit():
            with contextlib.suppress(OSError):  # it has just ended
                fields = (folder / "stat").read_text().rpartition(")")[2].split()
                if fields[0] not in "ZX":
                    yield int(folder.name), int(fields[1]), fields[19]


def _has_mark(pid: int, mark: bytes) -> bool:
    try:
        return mark in Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
    except OSError:  # it has ended, or is another user's
        return False


def _is_worker(pid: int) -> bool:
    line = _command(pid)
    return b"spawn_main" in line or (line.startswith(b"ray::") and b"Agent" not in line)


def _command(pid: int) -> bytes:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ")
    except OSError:  # it has ended
        return b""


def stored(store: Path) -> int:
    """Episodes that a store holds, each checked against its digest; 0 where it was not yet made."""
    try:
        store_now = Store.open(store)
    except EbmtrajError:
        if (store / "zarr.json").exists():
            raise
        return 0
    if store_now.episodes and not verify(store)["ok"]:
        raise EbmtrajError(f"{store} is damaged after the kill")
    return store_now.episodes


def files(folder: Path) -> list[str]:
    """All files below a folder."""
    return sorted(str(each.relative_to(folder)) for each in folder.rglob("*") if each.is_file())


class Trial:
    """One store that is killed, gone on with and compared."""

    def __init__(self, folder: Path, words: list[str], whole: dict[str, Any], rng: random.Random) -> None:
        self.store, self.words, self.whole, self.rng = folder / "killed.zarr", words, whole, rng
        self.log = folder / "log"
        self.faults: list[str] = []

    def attempt(self, victim: Victim | None, seconds: float = 0.0) -> tuple[str | None, dict[str, Any] | None]:
        """Start or resume, and kill after so many seconds where there is a victim.

        Returns how it went on (None where it has to be resumed), and what was killed (None where it had ended before).
        """
        run = Run(["collect", str(self.store), *self.words, "--json", "--resume"], self.log)
        killed = None
        began = time.monotonic()
        code = run.wait(seconds) if victim else None
        if victim and code is None:
            moment = time.monotonic() - began
            name = run.kill(victim, self.rng)
            killed = {"victim": name, "seconds": round(moment, 3)}
            if name != "worker":
                run.wait(PATIENCE)
                left = run.left_behind()
                killed["episodes_stored"] = stored(self.store)
                if left:
                    self.faults.append(f"outlived the {name}: {left}")
                return None, killed
            killed["episodes_stored"] = self._committed()
        code = run.wait(20 * self.whole["seconds"] + 60) if code is None else code
        if code is None:
            run.kill("group", self.rng)
            self.faults.append("hung")
        if left := run.left_behind():
            self.faults.append(f"left behind: {left}")
        if code != 0:
            self.faults.append(f"exit code {code}: {run.errors()}")
            return None, killed
        try:
            found = json.loads(run.output())["content_hash"]
        except ValueError:
            found = None
        if found != self.whole["content_hash"]:
            self.faults.append(f"it reported content hash {found}: {run.output()[:300]}")
        return "went on by itself" if killed else "finished", killed

    def _committed(self) -> int:
        try:
            return Store.open(self.store).episodes
        except EbmtrajError:  # not yet made
            return 0

    def row(self, number: int, victim: Victim) -> dict[str, Any] | None:
        """Kill, resume, compare; None where the run had ended before the moment of the kill."""
        outcome, killed = self.attempt(victim, self.rng.uniform(0.0, self.whole["seconds"]))
        if killed is None:
            return None
        kills = [killed]
        if outcome is None:
            outcome = "resumed"
            if number % 4 == 3:
                share = 1.0 - killed["episodes_stored"] / self.whole["episodes"]
                again, second = self.attempt(
                    self.rng.choice(VICTIMS), self.rng.uniform(0.0, max(share, 0.2) * self.whole["seconds"])
                )
                kills += [second] if second else []
                if again is None:
                    outcome = "resumed twice"
                    self.attempt(None)
            else:
                self.attempt(None)
        checked = json.loads(command(["data", "verify", str(self.store), "--json"], self.log))
        equal = checked["content_hash"] == self.whole["content_hash"]
        if not (checked["ok"] and checked["complete"]):
            self.faults.append("verify: not sound or not complete")
        if files(self.store) != self.whole["files"]:
            extra = set(files(self.store)) ^ set(self.whole["files"])
            self.faults.append(f"files differ: {sorted(extra)[:5]}")
        beside = {each.name for each in self.store.parent.iterdir()} - {
            self.store.name,
            self.log.name,
            f"{self.log.name}.errors",
        }
        if beside:
            self.faults.append(f"left beside the store: {sorted(beside)}")
        return {
            "kills": kills,
            "outcome": outcome,
            "hash_equal": equal,
            "verified": checked["ok"] and checked["complete"],
            "faults": self.faults,
        }


def command(words: list[str], log: Path) -> str:
    """Run a command that must succeed; what it printed."""
    run = Run(words, log)
    if run.wait(600) != 0:
        raise SystemExit(f"{' '.join(words)} failed: {run.errors()}")
    return run.output()


def undisturbed(folder: Path, words: list[str]) -> dict[str, Any]:
    """The store and time of a run that nobody kills."""
    store = folder / "whole.zarr"
    began = time.monotonic()
    facts = json.loads(command(["collect", str(store), *words, "--json"], folder / "log"))
    seconds = time.monotonic() - began
    return {**facts, "seconds": seconds, "files": files(store)}


def main() -> None:
    """Run, print a line a kill, and write with --out; exit code 1 where anything differs."""
    own, mark, collect = sys.argv[1:], "--", []
    if mark in own:
        own, collect = own[: own.index(mark)], own[own.index(mark) + 1 :]
    parser = argparse.ArgumentParser(
        description=(__doc__ or "").partition("\n")[0], usage="%(prog)s [options] [-- COLLECT...]"
    )
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0, help="of moments and victims")
    parser.add_argument("--out", type=Path, help="also write the rows as JSON")
    options = parser.parse_args(own)
    if not Path("/proc/self/environ").exists():
        raise SystemExit("this needs Linux's /proc to find a run's processes")
    words = [*COLLECT.split(), *collect]  # of an option given twice, the last counts
    rng = random.Random(options.seed)
    result: dict[str, Any] = {
        "command": " ".join(["python", "benchmarks/kills.py", *sys.argv[1:]]),
        "collect": " ".join(["ebmtraj", "collect", "STORE", *words]),
        "seed": options.seed,
        "machine": {**machine(), "load_before": os.getloadavg()[0]},
        "versions": versions(),
    }
    rows: list[dict[str, Any]] = []
    missed = 0
    began = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="kills-") as root:
        (Path(root) / "whole").mkdir()
        whole = undisturbed(Path(root) / "whole", words)
        print(f"undisturbed: {whole['seconds']:.1f} s, {whole['episodes']} episodes, hash {whole['content_hash'][:16]}")
        while len(rows) < options.kills and missed <= 2 * options.kills:
            with tempfile.TemporaryDirectory(dir=root) as folder:
                trial = Trial(Path(folder), words, whole, rng)
                row = trial.row(len(rows), VICTIMS[len(rows) % 3])
            if row is None:
                missed += 1
                continue
            rows.append(row)
            good = row["hash_equal"] and row["verified"] and not row["faults"]
            said = "; ".join(
                f"{k['victim']} at {k['seconds']:.2f} s with {k['episodes_stored']} stored" for k in row["kills"]
            )
            print(f"{len(rows):3d}  {'ok  ' if good else 'BAD '} {said}: {row['outcome']} {row['faults'] or ''}", flush=True)
    good = [row["hash_equal"] and row["verified"] and not row["faults"] for row in rows]
    result |= {
        "undisturbed": {key: whole[key] for key in ("episodes", "transitions", "content_hash", "seconds")},
        "seconds": time.monotonic() - began,
        "ended_before_the_kill": missed,
        "kills": sum(len(row["kills"]) for row in rows),
        "rows": rows,
        "all_equal": len(rows) == options.kills and all(good),
    }
    print(f"{sum(good)} of {len(rows)} stores are as if nothing had happened; {result['seconds']:.0f} s")
    if options.out:
        options.out.parent.mkdir(parents=True, exist_ok=True)
        options.out.write_text(json.dumps(result, indent=2) + "\n")
    sys.exit(0 if result["all_equal"] else 1)


if __name__ == "__main__":
    main()
