"""Whole collection (policy in the loop, workers started, store written) against the open-loop limit and Gymnasium's own.

The limit is what MuJoCo alone reaches in the same workers right after each collection, given all actions beforehand. The
named peers are Gymnasium's vector environments of the same hand and cube, which collect whole episodes, starts included,
with the same policy and keep them in memory. Beside them stands their bare stepping with uniform actions: neither starts nor
policy. The best number of environments is taken for each.

    python benchmarks/collection.py --out docs/results/collection.json
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
from stepping import generators, peer

from ebmtraj.collect import CollectConfig, collect
from ebmtraj.envs import hand_cube
from ebmtraj.envs.policies import make_policy
from ebmtraj.envs.registry import HAND_CUBE_ID
from ebmtraj.runs import cores, machine, versions

POLICY = {"action_rule": "every-4th-random"}
BARE_STEPS = 40  # of bare stepping


def peer_collects(vectorization: str, envs: int, steps: int, seed: int) -> float:
    """Steps a second of a Gymnasium vector environment that collects an episode of `steps` steps in each environment."""
    env = gymnasium.make_vec(HAND_CUBE_ID, num_envs=envs, vectorization_mode=vectorization)
    policy = make_policy("trained", hand_cube.action_fields(), **POLICY)
    env.reset(seed=seed)
    env.step(np.zeros((envs, hand_cube.ACTION_SIZE), np.float32))  # warm
    began = time.perf_counter()
    states, _ = env.reset(seed=seed)
    policy.reset(generators(seed, envs, 1))
    kept = [states]
    for _ in range(steps):
        states, *_ = env.step(np.asarray(policy(states), np.float32))
        kept.append(states)
    seconds = time.perf_counter() - began
    env.close()
    return envs * steps / seconds


def best_of(peers: dict[str, dict[int, list[float]]]) -> dict[str, dict[str, float]]:
    """Of each peer the median rate with the number of environments that gives the highest."""
    best = {name: max((statistics.median(seen), envs) for envs, seen in found.items()) for name, found in peers.items()}
    return {name: {"steps_per_second": round(rate, 1), "num_envs": envs} for name, (rate, envs) in best.items()}


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
    kinds = ("sync", "async")
    peers: dict[str, dict[int, list[float]]] = {name: {n: [] for n in options.peer_envs} for name in kinds}
    bare: dict[str, dict[int, list[float]]] = {name: {n: [] for n in options.peer_envs} for name in kinds}
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
        for name in kinds:
            for envs in options.peer_envs:
                peers[name][envs].append(peer_collects(name, envs, options.steps, options.seed))
                bare[name][envs].append(envs * BARE_STEPS / peer(name, envs, BARE_STEPS, options.seed))

    ratio = [one["collect"] / one["open_loop"] for one in rates]
    ours = statistics.median(one["collect"] for one in rates)
    best, best_bare = best_of(peers), best_of(bare)
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
        "peers": best,
        "peers_bare_stepping": best_bare,
        "over_best_peer": ours / max(one["steps_per_second"] for one in best.values()),
        "over_best_bare_stepping": ours / max(one["steps_per_second"] for one in best_bare.values()),
        "peers_all": peers,
        "peers_bare_stepping_all": bare,
    }
    limit = f"{statistics.median(ratio):.3f} of the open-loop limit"
    print(f"collect: {ours:,.0f} steps/s with {options.workers} workers, {limit}")
    for what, found in (("collecting", best), ("stepping alone", best_bare)):
        for name, one in found.items():
            rate, envs = one["steps_per_second"], one["num_envs"]
            times = f"collect is {ours / rate:.2f} times as fast"
            print(f"gymnasium {name}, {what}: {rate:,.0f} steps/s with {envs} environments; {times}")
    if options.out:
        options.out.parent.mkdir(parents=True, exist_ok=True)
        options.out.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
