"""A constraint that no training saw, added to a task at plan time: how much of the time it is kept, and what it costs.

The ring finger is to stay straight while the hand turns the cube about all six axes. Straight means that none of its joints
is bent by more than 0.6 rad; how often that is so in the data, and without the constraint, stands beside it.

    python benchmarks/composed.py runs/plan --weight 1.5 --reach 1.5 --out docs/results/composed.json
"""

from __future__ import annotations

import argparse
import json
import shlex
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch

from ebmtraj.config import read_toml
from ebmtraj.datasets.store import Store
from ebmtraj.datasets.windows import trajectories
from ebmtraj.runs import machine, versions, write_json
from ebmtraj.trajectories.costs import parse_task

TERM = "keep-straight finger=ring"


def in_data(store: Store) -> dict[str, Any]:
    """How straight the finger is in the test split."""
    states = trajectories(store, "test", 100, limit=1000).states
    (term,) = parse_task(TERM, store.state_fields).parts
    holds, bent = term.holds(states), term.progress(states)
    assert holds is not None
    assert bent is not None
    quantiles = torch.tensor([0.01, 0.05, 0.25, 0.5, 0.75, 0.95, 0.99])
    found = torch.quantile(bent[1].flatten(), quantiles)
    return {
        "share": float(holds.double().mean()),
        "means": term.meaning(),
        "most_bent_joint_rad": {f"{q:g}": round(float(v), 3) for q, v in zip(quantiles, found, strict=True)},
        "episodes": len(states),
    }


def carried_out(run: Path, task: str, arguments: argparse.Namespace, *settings: str) -> dict[str, Any]:
    """What `ebmtraj plan` makes of a task, and the command."""
    words = ["plan", str(run), "--task", task, "--episodes", str(arguments.episodes), "--seed", str(arguments.seed)]
    for setting in settings:
        words += ["--set", setting]
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "ebmtraj", *words, "--out", str(Path(folder) / "r.json"), "--json"]
        done = subprocess.run(command, check=True, capture_output=True, text=True)
    return {**json.loads(done.stdout), "run": run.name, "command": shlex.join(["ebmtraj", *words])}


def main() -> None:
    """Carry out both tasks and write the file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, help="A run of `ebmtraj train plan`.")
    parser.add_argument("--weight", type=float, default=1.5)
    parser.add_argument("--reach", type=float, default=1.5)
    parser.add_argument("--episodes", type=int, default=192)
    parser.add_argument("--seed", type=int, default=9000)
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    recipe = read_toml(arguments.run / "config.toml")
    store = Store.open(recipe["data"])
    with_it = f"rotate axis=all + {TERM} weight={arguments.weight:g}"
    together = carried_out(arguments.run, with_it, arguments, f"reach={arguments.reach:g}")
    alone = carried_out(arguments.run, f"rotate axis=all + {TERM} weight=0", arguments)
    write_json(
        arguments.out,
        {
            "together": together,
            "alone": alone,
            "kept": together["kept"]["keep-straight"],
            "kept_without": alone["kept"]["keep-straight"],
            "turning_lost": 1 - together["progress_rad_per_100"] / alone["progress_rad_per_100"],
            "data": in_data(store),
            "training": {
                "steps": recipe["training"]["steps"],
                "episodes": recipe["training"]["episodes"] or len(store.split("train")),
                "content_hash": store.content_hash,
            },
            "machine": machine(),
            "versions": versions(),
        },
    )


if __name__ == "__main__":
    main()
