"""How near annealed importance sampling comes to normalisers that are known, over seeds, at its default size.

A 2-D ring is held to a sum over a grid, correlated Gaussians in 10 and 50 dimensions to their closed form. The gap is that
between the estimates from below and from above.

    python benchmarks/ais.py --out docs/results/ais.json
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ebmtraj.runs import machine, versions, write_json
from ebmtraj.samplers.ais import AISConfig, GaussianBase, log_normaliser

RADIUS, WIDTH, CELL = 3.0, 0.25, 0.01


class Problem(NamedTuple):
    """An energy with a known log normaliser, and where its samples come from."""

    energy: Callable[..., Tensor]
    log_z: float
    draw: Callable[[int], Tensor]
    base: GaussianBase
    leapfrog: int = 1
    target: float = 0.6


def normal(*shape: int, seed: int) -> Tensor:
    """Standard normal numbers in float64."""
    return torch.empty(*shape, dtype=torch.float64).normal_(generator=torch.Generator().manual_seed(seed))


def ring() -> Problem:
    """A tilted ring in the plane; log Z by a sum over a grid."""

    def energy(x: Tensor, context: Any = None) -> Tensor:
        return 0.5 * ((x.norm(dim=-1) - RADIUS) / WIDTH) ** 2 + 0.3 * x[:, 0]

    axis = torch.arange(-6, 6, CELL, dtype=torch.float64)
    cells = torch.cartesian_prod(axis, axis)
    energies = energy(cells)
    p = torch.softmax(-energies, dim=0)

    def draw(size: int) -> Tensor:
        noise = torch.Generator().manual_seed(9)
        chosen = torch.multinomial(p, size, replacement=True, generator=noise)
        return cells[chosen] + CELL * (torch.rand(size, 2, dtype=torch.float64, generator=noise) - 0.5)

    return Problem(energy, float(torch.logsumexp(-energies, dim=0) + 2 * math.log(CELL)), draw, wide(2, 3.0))


def gaussian(dimensions: int, leapfrog: int, target: float) -> Problem:
    """Eigenvalues of the precision between 1 and 20, in random directions, off the origin."""
    turn = torch.linalg.qr(normal(dimensions, dimensions, seed=5))[0]
    eigenvalues = torch.logspace(0, math.log10(20), dimensions, dtype=torch.float64)
    precision, root = turn @ torch.diag(eigenvalues) @ turn.T, turn @ torch.diag(eigenvalues**-0.5)

    def energy(x: Tensor, context: Any = None) -> Tensor:
        u = x - 0.5
        return 0.5 * (u * (u @ precision)).sum(-1)

    log_z = float(0.5 * dimensions * math.log(2 * math.pi) - 0.5 * eigenvalues.log().sum())
    return Problem(
        energy, log_z, lambda size: normal(size, dimensions, seed=6) @ root.T + 0.5, wide(dimensions, 1.3), leapfrog, target
    )


def wide(dimensions: int, std: float) -> GaussianBase:
    """Where the path begins."""
    return GaussianBase(torch.zeros(dimensions, dtype=torch.float64), torch.full((dimensions,), std, dtype=torch.float64))


def main() -> None:
    """Measure, print, and write with --out."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--out", type=Path)
    given = parser.parse_args()
    torch.set_num_threads(1)
    problems = {"ring, 2-D": ring(), "Gaussian, 10-D": gaussian(10, 1, 0.6), "Gaussian, 50-D": gaussian(50, 4, 0.8)}
    rows = []
    for name, problem in problems.items():
        config = AISConfig(leapfrog=problem.leapfrog, target=problem.target)
        for seed in range(given.seeds):
            began, noise = time.thread_time(), torch.Generator().manual_seed(seed)
            exact = problem.draw(config.particles)
            found = log_normaliser(problem.energy, problem.base, config, exact=exact, generator=noise)
            row = {"problem": name, "seed": seed, "error": float(found.lower) - problem.log_z}
            row |= {"error_above": float(found.upper) - problem.log_z, "gap": abs(float(found.upper - found.lower))}
            rows.append(row | {"seconds": time.thread_time() - began, "leapfrog": problem.leapfrog})
            print(json.dumps(rows[-1]), flush=True)
    summary = {}
    for name in problems:
        own = [row for row in rows if row["problem"] == name]
        worst = {f"worst_{key}": max(abs(row[key]) for row in own) for key in ("error", "gap")}
        summary[name] = {**worst, "seconds": statistics.median(row["seconds"] for row in own)}
        print(json.dumps({name: summary[name]}), flush=True)
    if given.out:
        facts = {"command": "python benchmarks/ais.py " + " ".join(sys.argv[1:]), "machine": machine()}
        facts |= {"versions": versions(), "temperatures": config.temperatures, "particles": config.particles}
        write_json(given.out, {**facts, "summary": summary, "rows": rows})


if __name__ == "__main__":
    main()
