"""One trial: a command, a fault in the middle of it, the command again, and whether all is as if nothing had happened."""

from __future__ import annotations

import contextlib
import os
import random
import re
import signal
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from harness import Done, Zygote, difference, fresh, left, one_line, sound
from scenarios import Scenario

from ebmtraj import locks

MARGIN = 30.0  # s that a command may take beyond many times its undisturbed time
EXISTS = "exists"
TRIES = 5  # of catching a process while it writes


@dataclass
class Whole:
    """What a scenario leaves where nothing happens to it."""

    scenario: Scenario
    files: dict[str, str]
    seconds: float
    events: int
    faults: list[str] = field(default_factory=list)
    said: frozenset[str] = frozenset()  # its lines for a person, but for their numbers


def told(done: Done) -> frozenset[str]:
    """The lines on stderr, but for their numbers."""
    return frozenset(re.sub(r"[\d.,]+", "#", line) for line in done.errors.splitlines())


class Bench:
    """Where trials happen: a folder with the inputs, and the process that forks the commands."""

    def __init__(self, zygote: Zygote, root: Path) -> None:
        self.zygote, self.root = zygote, root
        self.folder = root / "trial"

    def prepare(self, scenario: Scenario) -> None:
        """An empty folder with what the command needs in it."""
        fresh(self.folder)
        for words in scenario.ready:
            done = self.run(words.split())
            if done.code:
                raise RuntimeError(f"{words}: exit code {done.code}: {done.errors[-300:]}")

    def run(self, words: list[str], fault: dict[str, Any] | None = None, **more: Any) -> Done:
        """A command in the trial's folder."""
        return self.zygote.run(self.folder, words, fault, **more)

    def undisturbed(self, scenario: Scenario, times: int = 2) -> Whole:
        """Run it twice: without a fault, it gives the same bits."""
        found = []
        for _ in range(times):
            self.prepare(scenario)
            done = self.run(scenario.words.split())
            if done.code:
                raise RuntimeError(f"{scenario.words}: exit code {done.code}: {done.errors[-300:]}")
            found.append((left(self.folder), done))
        files, done = found[-1]
        apart = difference(found[0][0], files)
        return Whole(
            scenario, files, done.seconds, done.events or 0, [f"two runs differ: {apart}"] if apart else [], told(done)
        )

    def kill(self, whole: Whole, fault: dict[str, Any], again: Sequence[dict[str, Any]] = ()) -> dict[str, Any] | None:
        """Kill, look, go on (killed again at each of `again`), compare; None where it had ended before the fault."""
        scenario = whole.scenario
        limit = 20 * whole.seconds + MARGIN
        self.prepare(scenario)
        done = self.run(scenario.words.split(), fault, limit=limit)
        by_itself = done.hit == "worker"
        if not (done.killed or by_itself):
            return None
        wrong = [*done.faults, *self.at_once(whole)]
        kills = 1
        if not by_itself:
            for next_fault in again:
                done = self.run(self.anew(scenario), next_fault, limit=limit)
                kills += int(done.killed)
                wrong += [*done.faults, *self.at_once(whole)]
                if not done.killed:
                    break
            if done.killed or done.hit == "worker":
                done = self.run(self.anew(scenario), limit=limit)
        outcome = "went on by itself" if by_itself else "resumed" if kills == 1 else f"resumed {kills} times"
        wrong += self.ended(whole, done)
        if done.code == 2:
            outcome = "had been written"
        return {"faults": [fault, *again][:kills], "kills": kills, "outcome": outcome, "wrong": wrong}

    def refuse(self, whole: Whole, number: int, error: int) -> dict[str, Any]:
        """From a touch of a file on, the disk is full or forbids it; then it is free again."""
        self.prepare(whole.scenario)
        fault = {"at": "write", "number": number, "errno": error}
        done = self.run(whole.scenario.words.split(), fault, limit=20 * whole.seconds + MARGIN)
        wrong = [*done.faults, *self.at_once(whole)]
        wrong += one_line(done) if done.code else []  # it may be of no account, as the measurement of a rate
        return {"fault": fault, "outcome": outcome(done), "wrong": wrong + self.after(whole)}

    def interrupt(self, whole: Whole, name: str, seconds: float) -> dict[str, Any] | None:
        """Ctrl-C or SIGTERM; None where it had ended before."""
        self.prepare(whole.scenario)
        fault = {"at": "time", "seconds": seconds, "signal": name}
        done = self.run(whole.scenario.words.split(), fault, limit=20 * whole.seconds + MARGIN)
        if done.hit is None or done.code == 0:
            return None
        if (
            done.code == -signal.Signals[name]
            and told(done) == whole.said
            and not difference(left(self.folder), whole.files)
        ):
            return None  # Python was shutting down: the command had ended
        wrong = [*done.faults, *self.at_once(whole), *one_line(done, 130 if name == "SIGINT" else 143)]
        if stray := {line for line in told(done) if not line.startswith("error: ")} - whole.said:
            wrong.append(f"said besides: {sorted(stray)}")
        if ("--resume" in done.errors) != whole.scenario.resume:
            wrong.append(f"--resume is said, or not said: {done.errors!r}")
        return {"fault": fault, "outcome": outcome(done), "wrong": wrong + self.after(whole)}

    def clock(self, whole: Whole, number: int, seconds: float, kill: dict[str, Any] | None = None) -> dict[str, Any]:
        """The clock of the day goes back in the middle, and stays so for the resume after a kill."""
        self.prepare(whole.scenario)
        fault = {"at": "clock", "number": number, "seconds": seconds}
        limit = 20 * whole.seconds + MARGIN
        done = self.run(whole.scenario.words.split(), kill, limit=limit) if kill else None
        words = self.anew(whole.scenario) if done else whole.scenario.words.split()
        if done is None or done.killed:
            done = self.run(words, fault, limit=limit)
        return {"fault": fault, "killed": kill, "outcome": outcome(done), "wrong": self.ended(whole, done)}

    def second(self, whole: Whole, other: Zygote, place: str) -> dict[str, Any]:
        """A second process wants the folder that a first one writes: it is told so, and the first one is not disturbed.

        On a busy machine a first one may be through before it is caught holding the folder: then that was no trial, and
        there is another one, a few times at most.
        """
        for tries in range(1, 1 + TRIES):
            if (row := self._second(whole, other, place)) is not None:
                return {"tries": tries, **row}
        return {"tries": TRIES, "wrong": ["nobody was caught holding it"]}

    def _second(self, whole: Whole, other: Zygote, place: str) -> dict[str, Any] | None:
        self.prepare(whole.scenario)
        self.zygote.begin(self.folder, whole.scenario.words.split())
        holder = self._stopped(self.folder / place)
        if holder is None:
            wrong = self.ended(whole, self.zygote.finish())
            return {"wrong": wrong} if wrong else None
        before = left(self.folder)
        try:
            refused = other.run(self.folder, self.anew(whole.scenario))
            wrong = one_line(refused)
            if f"is being written by process {holder} " not in refused.errors:
                wrong.append(f"it does not say who writes: {refused.errors!r}")
            if apart := difference(left(self.folder), before):
                wrong.append(f"the second one changed something: {apart}")
        finally:
            os.kill(holder, signal.SIGCONT)
        return {"wrong": wrong + self.ended(whole, self.zygote.finish())}

    def _stopped(self, path: Path) -> int | None:
        """The process that writes a folder, stopped while it holds it; None where it ended before."""
        while not self.zygote.ended():
            if (holder := holder_of(path)) is not None:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(holder, signal.SIGSTOP)  # so that the other one comes in the middle
                    while not self.zygote.ended() and state_of(holder) not in "TZX":
                        time.sleep(0.001)
                    if state_of(holder) == "T" and holder_of(path) == holder:
                        return holder
                    os.kill(holder, signal.SIGCONT)
            time.sleep(0.001)
        return None

    def after(self, whole: Whole) -> list[str]:
        """What is wrong once the command is given again and nothing disturbs it."""
        return self.ended(whole, self.run(self.anew(whole.scenario), limit=20 * whole.seconds + MARGIN))

    def anew(self, scenario: Scenario) -> list[str]:
        """The command that a user gives after a fault."""
        return [*scenario.words.split(), *(["--resume"] if scenario.resume and "--overwrite" not in scenario.words else [])]

    def at_once(self, whole: Whole) -> list[str]:
        """What is wrong right after a fault: a file that is neither there as a whole nor absent, or a damaged store."""
        found, wrong = left(self.folder), []
        for name in whole.scenario.whole:
            mine = {key: value for key, value in found.items() if key == name or key.startswith(f"{name}/")}
            wanted = {key: value for key, value in whole.files.items() if key == name or key.startswith(f"{name}/")}
            if mine and mine != wanted:
                wrong.append(f"half of {name} is there: {difference(mine, wanted)}")
        return wrong + sound(self.folder)

    def ended(self, whole: Whole, done: Done) -> list[str]:
        """What is wrong at the end: the command failed, or what is left is not what it should be."""
        wrong = list(done.faults)
        if done.code == 2 and not whole.scenario.resume and EXISTS in done.errors:
            wrong += one_line(done)  # it had been written before the fault
        elif done.code:
            wrong.append(f"exit code {done.code}: {done.errors[-300:]}")
        return wrong + difference(left(self.folder), whole.files) + sound(self.folder)


def outcome(done: Done) -> str:
    """In a word."""
    return {0: "went through", 2: "refused", 130: "interrupted", 143: "ended"}.get(done.code, f"exit code {done.code}")


def holder_of(folder: Path) -> int | None:
    """The process that writes a folder, if there is one."""
    try:
        handle = os.open(folder, os.O_RDONLY)
    except OSError:
        return None
    try:
        return locks._holder(handle)
    finally:
        os.close(handle)


def state_of(pid: int) -> str:
    """What a process is doing, as a letter of /proc: T has been stopped, Z and X have ended."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return "X"


def faults_of(whole: Whole, count: int, rng: random.Random) -> list[list[dict[str, Any]]]:
    """So many kills: at touches of files, in the middle of a write, at any time; in each second trial, of resumes, too."""
    events = list(range(1, whole.events + 1))
    rng.shuffle(events)

    def one(kind: int) -> dict[str, Any]:
        if whole.scenario.workers:
            victim = "worker" if kind % 2 else "parent"
            return {"at": "time", "seconds": round(rng.uniform(0, whole.seconds), 3), "victim": victim, "which": kind}
        if kind % 3 == 2:
            return {"at": "time", "seconds": round(rng.uniform(0, whole.seconds), 3)}
        number = events[kind % len(events)]
        return {"at": "event", "number": number, **({"torn": round(rng.random(), 3)} if kind % 3 else {})}

    found, kinds = [], iter(range(count))
    for kind in kinds:
        more = 0 if len(found) % 2 == 0 else rng.randint(1, 2)
        found.append([one(kind), *(one(next(kinds)) for _ in range(min(more, count - kind - 1)))])
    return found
