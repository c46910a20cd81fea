"""Effective samples a second of MALA on a correlated Gaussian, beside blackjax where it is installed; one core.

Seconds are processor time of all threads, which other programs hardly disturb; compilation is left out.

Run: python benchmarks/ess.py --out docs/results/ess.json
"""

from __future__ import annotations

import os

os.environ.setdefault("XLA_FLAGS", "--xla_cpu_multi_thread_eigen=false")  # before jax is imported
if hasattr(os, "sched_setaffinity"):
    os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})  # one core for both

import argparse
import importlib.metadata
import importlib.util
import json
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ebmtraj.runs import machine, versions, write_json
from ebmtraj.samplers.backends import Backend
from ebmtraj.samplers.diagnostics import effective_sample_size, split_rhat
from ebmtraj.samplers.mcmc import MALAConfig, mala

DIMENSIONS, STIFF = 50, 20.0


def precision() -> Tensor:
    """Eigenvalues from 1 / STIFF to 1, evenly in the logarithm, in random directions, `(D, D)`."""
    noise = torch.Generator().manual_seed(99)
    turn = torch.linalg.qr(torch.randn(DIMENSIONS, DIMENSIONS, generator=noise, dtype=torch.float64))[0]
    return (turn @ torch.diag(torch.logspace(0, -np.log10(STIFF), DIMENSIONS, dtype=torch.float64)) @ turn.T).float()


class Gaussian:
    """As a user would write it, with the gradient where the product is at hand anyway."""

    def __init__(self, precision: Tensor) -> None:
        self.precision = precision

    def __call__(self, x: Tensor, context: Any = None) -> Tensor:
        """Energies `(B,)`."""
        return 0.5 * torch.linalg.vecdot(x, x @ self.precision)

    def value_and_gradient(self, x: Tensor, context: Any = None) -> tuple[Tensor, Tensor]:
        """Energies `(B,)` and gradients `(B, D)`."""
        g = x @ self.precision
        return 0.5 * torch.linalg.vecdot(x, g), g


def ours(start: Tensor, step: float, steps: int, backend: Backend) -> Callable[[int], Tensor]:
    """Runs chains from a seed, `-> (K, C, D)`."""
    energy = Gaussian(precision())
    config = MALAConfig(steps=steps, step_size=step, keep=1, backend=backend)

    def run(seed: int) -> Tensor:
        _, info = mala(energy, start, config, generator=torch.Generator().manual_seed(seed))
        assert info.states is not None
        return info.states

    return run


def theirs(start: Tensor, step: float, steps: int) -> Callable[[int], Tensor] | None:
    """The same chains by blackjax, compiled; its step is half of ours."""
    try:
        import blackjax
        import jax
    except ImportError:
        return None
    matrix, x = jax.numpy.array(precision().numpy()), jax.numpy.array(start.numpy())
    kernel = blackjax.mala(lambda x: -0.5 * x @ (matrix @ x), step / 2)

    def advance(state: Any, key: Any) -> tuple[Any, Any]:
        state, _ = jax.vmap(kernel.step)(jax.random.split(key, len(x)), state)
        return state, state.position

    @jax.jit
    def chain(key: Any) -> Any:
        return jax.lax.scan(advance, jax.vmap(kernel.init)(x), jax.random.split(key, steps))[1]

    return lambda seed: torch.from_numpy(np.asarray(chain(jax.random.key(seed)).block_until_ready()).copy())


def main() -> None:
    """Interleave the variants, and write medians over the rounds."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--chains", default="1,16,128,1024")
    parser.add_argument("--out", type=Path)
    given = parser.parse_args()
    torch.set_num_threads(1)
    torch.set_flush_denormal(True)
    root = torch.linalg.cholesky(torch.linalg.inv(precision()))
    warm = MALAConfig(steps=1, warmup=400, step_size=0.3)
    _, info = mala(Gaussian(precision()), torch.zeros(512, DIMENSIONS), warm, generator=torch.Generator().manual_seed(0))
    assert info.step_size is not None
    step = float(info.step_size)
    rows = []
    for chains in (int(c) for c in given.chains.split(",")):
        steps = max(400, min(20_000, 200_000 // chains))
        start = torch.randn(chains, DIMENSIONS, generator=torch.Generator().manual_seed(1)) @ root.T
        variants = {
            "ebmtraj": ours(start, step, steps, "auto"),
            "ebmtraj, compiled": ours(start, step, steps, "compiled"),
            "ebmtraj, autograd": ours(start, step, steps, "autograd"),
            "blackjax": theirs(start, step, steps),
        }
        there = {name: run for name, run in variants.items() if run is not None}
        for run in there.values():
            run(0)  # compiles
        found: dict[str, list[dict[str, float]]] = {name: [] for name in there}
        for seed in range(1, given.rounds + 1):
            for name, run in there.items():
                began = time.process_time()
                states = run(seed)
                seconds = time.process_time() - began
                ess = float(effective_sample_size(states).min())
                rate = {"ess_a_second": ess / seconds, "us_a_step": 1e6 * seconds / steps, "ess": ess}
                found[name].append({**rate, "rhat": float(split_rhat(states, rank=False).max())})
        for name, runs in found.items():
            medians = {key: statistics.median(run[key] for run in runs) for key in runs[0]}
            rows.append({"chains": chains, "steps": steps, "sampler": name, **medians})
            print(json.dumps(rows[-1]), flush=True)
    if given.out:
        command = "python benchmarks/ess.py " + " ".join(sys.argv[1:])
        peers = {name: importlib.metadata.version(name) for name in ("blackjax", "jax") if importlib.util.find_spec(name)}
        facts = {"command": command, "machine": machine(), "versions": {**versions(), **peers}}
        facts |= {"dimensions": DIMENSIONS, "stiff": STIFF}
        write_json(given.out, {**facts, "step_size": step, "rounds": given.rounds, "rows": rows})


if __name__ == "__main__":
    main()
