"""Carry out every command that README.md and docs/ give a reader, each as it stands but for its size.

usage: python docs/check_commands.py [--page README.md] [--keep FOLDER]

Commands run in the order of the pages in one empty folder, so that each finds what those before it made. Sizes are cut by
options that come after the reader's own, comparisons to `--dry-run`; nothing else is changed. What needs a cluster, a
download, a display or another's module is said to be left out.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from commands import PAGES, ROOT, Command, commands

STEPS = ("--set", "training.steps=30", "--set", "training.check_every=15")
SMALL: Sequence[
    tuple[tuple[str, ...], tuple[str, ...]]
] = (  # how a command begins, and what is added to it; the first that fits
    (("collect",), ("--episodes", "60", "--workers", "2")),
    (("train", "transition"), STEPS),
    (("train", "sequence"), STEPS),
    (("train", "plan"), STEPS),
    (("train",), ("--set", "training.steps=30", "--set", "training.check_every=30")),
    (("tilt",), ("--set", "training.steps=20", "--set", "training.check_every=20", "--samples", "200")),
    (("plan",), ("--episodes", "2", "--steps", "5")),
    (("rollout",), ("--steps", "10", "--samples", "2")),
    (("sample",), ("-n", "20")),
    (("compose",), ("-n", "8")),
    (("restore",), ("--limit", "4", "--draws", "2")),
    (("attack",), ("--limit", "2", "--steps", "2", "--queries", "10")),
    (("diagnose",), ("--chains", "8", "--steps", "20", "--contexts", "4")),
    (("policy", "evaluate"), ("--episodes", "8", "--steps", "10")),
    (("policy", "train"), ("--dry-run",)),
    (("compare", "plans"), ("--dry-run", "--episodes", "6")),
    (("compare",), ("--dry-run",)),
    (("continual",), ("--dry-run",)),
    (("continual-robot",), ("--dry-run",)),
)
LEFT_OUT = {  # a word of a command: why it can't run here
    "--address": "needs a running Ray cluster",
    "my_module:policy": "needs a module of the reader's",
    "my_cost:far": "needs a module of the reader's",
    "cifar10": "needs the official archive",
    "cifar10.zarr": "needs the official archive",
    "search.json": "goes on from a search that takes long",
    "square,disc|ring,star|...": "leaves tasks out",
    "inception.onnx": "needs a network of the reader's",
}


def small(words: Sequence[str]) -> list[str]:
    """The command with its sizes cut; what it makes may stand there from a page before."""
    added: tuple[str, ...] = next((more for start, more in SMALL if tuple(words[: len(start)]) == start), ())
    dry = "--dry-run" in added
    makes = words[0] in (
        "collect",
        "train",
        "tilt",
        "plan",
        "rollout",
        "sample",
        "compose",
        "restore",
        "evaluate",
        "diagnose",
        "report",
    )
    writes = makes or tuple(words[:2]) in (("data", "export"), ("data", "card"), ("data", "merge"), ("data", "show"))
    return [*words, *added, *(["--overwrite"] if writes and not dry and "--overwrite" not in words else [])]


def reason(command: Command) -> str | None:
    """Why a command is left out, or None."""
    if "--interactive" in command.words and not os.environ.get("DISPLAY"):
        return "needs a display"
    return next((why for word, why in LEFT_OUT.items() if word in command.words), None)


def main() -> int:
    """Run them; 1 if any fails."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--page", help="only commands of this page, e.g. README.md")
    parser.add_argument("--keep", type=Path, help="work in this folder and leave it")
    given = parser.parse_args()
    folder = given.keep or Path(tempfile.mkdtemp(prefix="ebmtraj-docs-"))
    folder.mkdir(parents=True, exist_ok=True)
    for name in ("docs/results", "docs/images"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    for rows in (ROOT / "docs").glob("*.toml"):
        shutil.copy(rows, folder / "docs")
    shutil.copy(ROOT / "examples" / "own_cost.py", folder)
    subprocess.run([sys.executable, ROOT / "examples" / "own_rollouts.py", "rollouts.npz", "60"], cwd=folder, check=True)
    (folder / "mine.toml").write_text('[[row]]\nname = "ebm-wide"\nmodel = "ebm"\nset = ["network.width=256"]\n')
    done: set[tuple[str, ...]] = set()
    failed, order = 0, sorted(commands(), key=lambda c: PAGES.index(c.page))
    for command in order:
        if command.words in done or (given.page and command.page.name != given.page):
            continue
        done.add(command.words)
        line = "ebmtraj " + subprocess.list2cmdline(command.words)
        why = reason(command)
        if why:
            print(f"left out  {command.page.name}: {line} ({why})", flush=True)
            continue
        began = time.perf_counter()
        words = [sys.executable, "-m", "ebmtraj", *small(command.words)]
        run = subprocess.run(words, cwd=folder, capture_output=True, text=True, check=False)
        took = time.perf_counter() - began
        if run.returncode:
            failed += 1
            print(f"FAILED    {command.page.name}: {line}\n{run.stderr.strip()[-600:]}", flush=True)
        else:
            print(f"ok {took:5.1f} s {command.page.name}: {line}", flush=True)
    if given.keep is None:
        shutil.rmtree(folder, ignore_errors=True)
    return int(failed > 0)


if __name__ == "__main__":
    sys.exit(main())
