"""Whole collection (policy in the loop, workers started, store written) against the open-loop limit and Gymnasium's own.

The limit is what MuJoCo alone reaches in the same workers right after each collection, given all actions beforehand. The
named peers are Gymnasium's vector environments of the same hand and cube with uniform actions, neither policy nor store; the
best number of environments is taken for each.

    python benchmarks/collection.py --out docs/results/collection.json
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
from pathlib import Path
from typing import Any

from stepping import peer

from ebmtraj.collect import CollectConfig, collect
from ebmtraj.runs import cores, machine, versions

POLICY = {"action_rule": "every-4th-random"}


def main() -> None:
    """Run, print, and write with --out."""
    parser = argparse.ArgumentParser(description="Collection against the open-loop limit and its peers")
    parser.add_argument("--episodes", type=int, default=2560)
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--workers", type=int, default=cores())
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--peer-envs", type=int, nargs="+", default=[4, 8, 16, 32, 64])
    parser.add_argument("--out", type=Path, help="also write the figures as JSON")
    options = parser.parse_args()

    rates: list[dict[str, float]] = []
    peers: dict[str, dict[int, list[float]]] = {name: {n: [] for n in options.peer_envs} for name in ("sync", "async")}
    config = CollectConfig(
        episodes=options.episodes,
        steps=options.steps,
        seed=options.seed,
        policy="trained",
        policy_kwargs=POLICY,
        workers=options.workers,
    )
    for _ in range(options.repeats):  # in turns: the machine's load drifts
        with tempfile.TemporaryDirectory() as folder:
            done = collect(Path(folder) / "store.zarr", config)
        assert done.open_loop_steps_per_second
        rates.append({"collect": done.steps_per_second, "open_loop": done.open_loop_steps_per_second})
        for name, found in peers.items():
            for envs, seen in found.items():
                seen.append(envs * 40 / peer(name, envs, 40, options.seed))

    ratio = [one["collect"] / one["open_loop"] for one in rates]
    ours = statistics.median(one["collect"] for one in rates)
    best = {
        f"gymnasium {name}": max((round(statistics.median(seen), 1), envs) for envs, seen in found.items())
        for name, found in peers.items()
    }
    result: dict[str, Any] = {
        "command": " ".join(["python", "benchmarks/collection.py", *sys.argv[1:]]),
        "seed": options.seed,
        "machine": machine(),
        "versions": versions(),
        "episodes": options.episodes,
        "workers": options.workers,
        "policy": {"name": "trained", **POLICY},
        "steps_per_second": rates,
        "of_open_loop_limit": {"median": statistics.median(ratio), "min": min(ratio), "max": max(ratio)},
        "peers": {name: {"steps_per_second": rate, "num_envs": envs} for name, (rate, envs) in best.items()},
        "peers_all": {name: {str(envs): seen for envs, seen in found.items()} for name, found in peers.items()},
        "over_best_peer": ours / max(rate for rate, _ in best.values()),
    }
    print(
        f"collect: {ours:,.0f} steps/s with {options.workers} workers, {statistics.median(ratio):.3f} of the open-loop limit"
    )
    for name, (rate, envs) in best.items():
        print(f"{name}: {rate:,.0f} steps/s with {envs} environments, collect is {ours / rate:.2f} times as fast")
    if options.out:
        options.out.parent.mkdir(parents=True, exist_ok=True)
        options.out.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
