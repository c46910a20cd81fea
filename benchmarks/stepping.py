"""How close batched closed-loop stepping of the hand and cube comes to the open-loop limit of `mujoco.rollout`.

Open loop, MuJoCo is given all actions beforehand and never comes back to Python; closed loop, a policy sees every state.
Both do the same simulations: same starts, same actions (those of the closed loop), same threads, in turns within one run;
the ratio is the median over the pairs. Gymnasium's vector environments of the single environment are the named peers.

    python benchmarks/stepping.py --out docs/results/stepping.json
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import sys
import time
from pathlib import Path
from typing import Any, NamedTuple

import gymnasium
import mujoco
import mujoco.rollout
import numpy as np
from numpy.typing import NDArray

from ebmtraj.envs import hand_cube
from ebmtraj.envs.batch import HandCubeBatch
from ebmtraj.envs.policies import make_policy
from ebmtraj.envs.registry import HAND_CUBE_ID

Generators = list[np.random.Generator]


class Seconds(NamedTuple):
    """Time on the clock, and processor time of all threads together, which other programs hardly disturb."""

    wall: float
    cpu: float


class Clock:
    """Starts when made."""

    def __init__(self) -> None:
        self._wall, self._cpu = time.perf_counter(), time.process_time()

    def elapsed(self) -> Seconds:
        """Time since the start."""
        return Seconds(time.perf_counter() - self._wall, time.process_time() - self._cpu)


def generators(seed: int, count: int, stream: int) -> Generators:
    """One generator an episode."""
    return [np.random.default_rng([seed, stream, i]) for i in range(count)]


def closed_loop(
    env: HandCubeBatch, start: NDArray[np.float64], steps: int, mode: str, seed: int
) -> tuple[Seconds, NDArray[np.float32]]:
    """Seconds for `steps` control steps from these physics states (B, P), policy included, and the actions (steps, B, A)."""
    policy = make_policy("random", env.action_fields, mode=mode)
    env.physics_state = start
    taken = []
    began = Clock()
    policy.reset(generators(seed, len(start), 1))
    states = env.states
    for _ in range(steps):
        actions = policy(states)
        states, _ = env.step(actions)
        taken.append(actions)
    return began.elapsed(), np.stack(taken)


def peer(vectorization: str, batch: int, steps: int, seed: int) -> float:
    """Seconds for `steps` control steps of `batch` environments in a Gymnasium vector environment, uniform actions."""
    env = gymnasium.make_vec(HAND_CUBE_ID, num_envs=batch, vectorization_mode=vectorization)
    env.reset(seed=seed)
    actions = np.random.default_rng(seed).uniform(-1, 1, (steps, batch, 20)).astype(np.float32)
    env.step(actions[0])
    began = time.perf_counter()
    for action in actions:
        env.step(action)
    seconds = time.perf_counter() - began
    env.close()
    return seconds


def machine() -> dict[str, Any]:
    """What it ran on."""
    cpu = platform.processor()
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        cpu = next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), cpu)
    except OSError:
        pass
    return {"cpu": cpu, "cores": os.cpu_count(), "load_before": os.getloadavg()[0], "system": platform.system()}


def summary(batch: int, steps: int, threads: int, seconds: list[float]) -> dict[str, Any]:
    """Control steps per second, the median over repetitions, in all and a thread."""
    rate = batch * steps / statistics.median(seconds)
    return {"steps_per_second": round(rate), "steps_per_second_per_thread": round(rate / threads), "seconds": seconds}


def main() -> None:
    """Run, print, and write with --out."""
    parser = argparse.ArgumentParser(description="Closed-loop batched stepping against the open-loop limit")
    parser.add_argument("--batch", type=int, default=256)
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--steps", type=int, default=50)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--mode", choices=("smooth", "uniform"), default="smooth")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--peer-batch", type=int, default=16, help="environments of the vector environments; 0 leaves them out"
    )
    parser.add_argument("--out", type=Path, help="also write the figures as JSON")
    options = parser.parse_args()
    batch, threads, steps = options.batch, options.threads, options.steps

    began = time.perf_counter()
    hand_cube.build_model()
    build_seconds = time.perf_counter() - began
    result: dict[str, Any] = {
        "command": " ".join(["python", "benchmarks/stepping.py", *sys.argv[1:]]),
        "seed": options.seed,
        "machine": machine(),
        "versions": {
            "python": platform.python_version(),
            "mujoco": mujoco.__version__,
            "gymnasium": gymnasium.__version__,
            "numpy": np.__version__,
        },
        "batch": batch,
        "threads": threads,
        "steps": steps,
        "policy": f"random, {options.mode}",
        "build_model_seconds": build_seconds,
    }

    env = HandCubeBatch(threads)
    env.reset(generators(options.seed, batch, 0))
    start = env.physics_state
    _, actions = closed_loop(env, start, steps, options.mode, options.seed)
    limit = env.open_loop(start, actions)
    limit()  # both are warm
    closed, opened = [], []
    for repeat in range(options.repeats):  # in turns, first and second place alternating: the machine's load drifts
        for which in ("closed", "open") if repeat % 2 == 0 else ("open", "closed"):
            if which == "closed":
                closed.append(closed_loop(env, start, steps, options.mode, options.seed)[0])
            else:
                began = Clock()
                limit()
                opened.append(began.elapsed())
    env.close()
    ratios = [o.wall / c.wall for o, c in zip(opened, closed, strict=True)]
    cpu_ratios = [o.cpu / c.cpu for o, c in zip(opened, closed, strict=True)]
    result["open_loop_mujoco_rollout"] = summary(batch, steps, threads, [o.wall for o in opened])
    result["closed_loop_hand_cube_batch"] = summary(batch, steps, threads, [c.wall for c in closed])
    result["closed_over_open"] = {"median": statistics.median(ratios), "min": min(ratios), "max": max(ratios)}
    result["closed_over_open_by_cpu_time"] = {
        "median": statistics.median(cpu_ratios),
        "min": min(cpu_ratios),
        "max": max(cpu_ratios),
    }
    if options.peer_batch:
        for name in ("sync", "async"):
            seconds = [peer(name, options.peer_batch, steps, options.seed) for _ in range(3)]
            used = 1 if name == "sync" else threads
            result[f"gymnasium_{name}_vector_env"] = {
                "num_envs": options.peer_batch,
                **summary(options.peer_batch, steps, used, seconds),
            }

    print(f"{result['machine']['cpu']}, {threads} threads, batch {batch}, {steps} control steps of 40 ms")
    for key, value in result.items():
        if isinstance(value, dict) and "steps_per_second" in value:
            rate, each = value["steps_per_second"], value["steps_per_second_per_thread"]
            print(f"{key:32s}{rate:>8,} control steps/s{each:>8,} a thread")
    print(f"closed / open loop: {statistics.median(ratios):.3f}, the median of {len(ratios)} pairs")
    print(f"the same by processor time: {statistics.median(cpu_ratios):.3f}")
    print(f"build_model: {build_seconds:.3f} s")
    if options.out:
        options.out.parent.mkdir(parents=True, exist_ok=True)
        options.out.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
