"""Train the data policy on several seeds and measure each: does the recipe work, or was it one lucky seed?

The shipped policy stands beside them. A run that is there and finished is only measured.

    python benchmarks/policy_seeds.py --seeds 1 2 --runs runs/policy --out docs/results/policy_seeds.json
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from ebmtraj.envs.trained import load_checkpoint
from ebmtraj.policy.evaluate import EvaluateConfig, evaluate_policy
from ebmtraj.policy.train import PolicyConfig, train_policy
from ebmtraj.runs import machine, versions

KEPT = ("progress_rad_per_100", "standard_error", "per_axis", "drop_rate", "episodes")


def finished(checkpoint: Path, config: PolicyConfig) -> bool:
    """Whether the checkpoint of a whole training is there."""
    return checkpoint.exists() and load_checkpoint(checkpoint).header["recipe"]["iterations"] == config.ppo.iterations


def measured(checkpoint: Path | None, episodes: int, threads: int) -> dict[str, Any]:
    """A row of the result: what training took, and how far the policy turns the cube under the paper's action rule."""
    recipe = load_checkpoint(checkpoint).header["recipe"]
    config = EvaluateConfig(
        policy="trained",
        checkpoint=None if checkpoint is None else str(checkpoint),
        episodes=episodes,
        action_rule="every-4th-random",
        threads=threads,
    )
    found = evaluate_policy(config)
    return {
        "seed": recipe["config"]["seed"],
        "shipped": checkpoint is None,
        "training_minutes": round(recipe["seconds"] / 60, 1),
        "threads": recipe["config"]["threads"],
        "trained_on": recipe["machine"],
        **{key: found[key] for key in KEPT},
    }


def main() -> None:
    """Run, print, and write with --out."""
    parser = argparse.ArgumentParser(description="The data policy on several seeds")
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2])
    parser.add_argument(
        "--runs", type=Path, default=Path("runs/policy"), help="run directories are this with the seed added"
    )
    parser.add_argument("--episodes", type=int, default=256)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--out", type=Path, help="also write the figures as JSON")
    options = parser.parse_args()

    rows = [measured(None, options.episodes, options.threads)]
    for seed in options.seeds:
        config = PolicyConfig(seed=seed, threads=options.threads)
        path = options.runs.with_name(f"{options.runs.name}{seed}")
        checkpoint = path / "checkpoints" / "policy.safetensors"
        if not finished(checkpoint, config):
            train_policy(path, config, resume=True, on_progress=lambda now: print(now, file=sys.stderr))
        rows.append(measured(checkpoint, options.episodes, options.threads))
    for row in rows:
        axes = "  ".join(f"{axis} {value:.2f}" for axis, value in row["per_axis"].items())
        print(f"seed {row['seed']}: {row['progress_rad_per_100']:.2f} rad, {row['drop_rate']:.1%} dropped, {axes}")
    result = {
        "command": " ".join(["python", "benchmarks/policy_seeds.py", *sys.argv[1:]]),
        "action_rule": "every-4th-random",
        "machine": machine(),
        "versions": versions(),
        "rows": rows,
    }
    if options.out:
        options.out.parent.mkdir(parents=True, exist_ok=True)
        options.out.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
