"""Compositions over the plane: sampled, held against integration on a grid, and drawn."""

from __future__ import annotations

import dataclasses
import math
import textwrap
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from PIL import Image
from torch import Tensor

from ebmtraj.device import generator
from ebmtraj.energies.compose import Composed, Shifted
from ebmtraj.energies.expression import Leaf, build, fault, numbers_of, parse, unknown
from ebmtraj.energies.plane import BOUND, LEAVES, grid_density, plane_energy, sampled_density, total_variation
from ebmtraj.errors import EbmtrajError
from ebmtraj.report.style import save
from ebmtraj.report.video import encode_gif
from ebmtraj.runs import write_atomic
from ebmtraj.samplers.anneal import Ladder
from ebmtraj.samplers.langevin import LangevinConfig, langevin
from ebmtraj.samplers.mcmc import MALAConfig, mala

BINS = 24  # fields a side, in which probabilities are compared
ANNEALED = LangevinConfig(steps=10, step_size=0.15, ladder=Ladder(levels=16, sigma_max=5.0, sigma_min=0.05))
FINAL = MALAConfig(steps=200, step_size=0.05, warmup=50, keep=20)


class PlaneSamples(NamedTuple):
    """What the chains came to."""

    points: Tensor  # (N, 2)
    path: list[Tensor]  # states on the way, (500, 2) each
    acceptance: float | None


def plane_composition(text: str) -> Composed:
    """The energy of an expression over the leaves of the plane; raises `EbmtrajError`, naming the column of a fault."""

    def energy(leaf: Leaf) -> Any:
        if leaf.name not in LEAVES:
            raise unknown(leaf, LEAVES, "energy of the plane (give runs for factors of images)")
        try:
            own = plane_energy(leaf.name, numbers_of(leaf, LEAVES[leaf.name]))
            return Shifted(own, -2 * math.log(2 * BOUND))  # against a uniform density, as ~ needs
        except EbmtrajError as error:
            raise error if str(error).startswith("expression") else fault(leaf.value_column, str(error)) from None

    found: Composed = build(parse(text), energy)
    return found


def sample_plane(
    energy: Composed,
    count: int,
    seed: int,
    annealed: LangevinConfig | None = ANNEALED,
    final: MALAConfig | None = FINAL,
) -> PlaneSamples:
    """Chains down a noise ladder, corrected at each level, then by MALA at none; states of the latter are pooled.

    Without `annealed` they set out from a wide Gaussian. The plane is a box of side 2 BOUND.
    """
    noise = generator(seed, torch.device("cpu"))
    x = (BOUND / 2) * torch.empty(count, 2).normal_(generator=noise)
    path: list[Tensor] = [x[:500]]

    def seen(x: Tensor) -> Tensor:
        x = x.clamp(-4 * BOUND, 4 * BOUND)
        path.append(x[:500])
        return x

    if annealed is not None:
        assert annealed.ladder is not None
        x, _ = langevin(energy, x * annealed.ladder.sigma_max / (BOUND / 2), annealed, project=seen, generator=noise)
    x = x.clamp(-0.999 * BOUND, 0.999 * BOUND)
    if final is None:
        return PlaneSamples(x, path, None)
    x, info = mala(energy, x, final, project=lambda x: x.clamp(-BOUND, BOUND), generator=noise)
    states = x.unsqueeze(0) if info.states is None else info.states
    path.extend(state[:500] for state in states)
    accepted = None if info.acceptance is None else float(info.acceptance.mean())
    return PlaneSamples(states.flatten(0, 1), path, accepted)


def plane_facts(energy: Composed, drawn: PlaneSamples, seed: int) -> dict[str, Any]:
    """Total variation between the samples' share of each field and the integral, and what exact samples would have."""
    wanted = grid_density(energy, BINS)
    exact = torch.multinomial(
        wanted.flatten(), len(drawn.points), replacement=True, generator=generator(seed + 1, torch.device("cpu"))
    )
    floor = torch.bincount(exact, minlength=BINS * BINS).double().view(BINS, BINS) / len(drawn.points)
    return {
        "total_variation": total_variation(sampled_density(drawn.points, BINS), wanted),
        "exact_samples": total_variation(floor, wanted),
        "fields": BINS * BINS,
        "samples": len(drawn.points),
        "acceptance": drawn.acceptance,
    }


def plane_picture(panels: list[tuple[str, Composed, Tensor]], path: Path) -> Path:
    """For each (title, energy, samples): the integral above, the samples below, on one scale each."""
    figure = Figure(figsize=(2.3 * len(panels), 4.9), layout="constrained")
    axes = np.atleast_2d(figure.subplots(2, len(panels), squeeze=False))
    for i, (title, energy, points) in enumerate(panels):
        both = grid_density(energy, 2 * BINS), sampled_density(points, 2 * BINS)
        for axis, table, says in zip(axes[:, i], both, ("integral", "samples"), strict=True):
            extent = (-BOUND, BOUND, -BOUND, BOUND)
            axis.imshow(table.numpy(), origin="lower", extent=extent, vmin=0, vmax=float(both[0].max()), cmap="magma")
            axis.set(xticks=[], yticks=[])
            axis.set_title(textwrap.fill(title, 26) if says == "integral" else says, fontsize=8)
    return save(figure, path)


def plane_film(energy: Composed, states: list[Tensor], path: Path, pages: int = 40) -> Path:
    """The chains on their way as an endless GIF, over the density that they go to."""
    table = grid_density(energy, 4 * BINS).numpy()
    chosen = sorted({round(i) for i in np.linspace(0, len(states) - 1, min(pages, len(states)))})
    drawn = []
    for i in chosen:
        figure = Figure(figsize=(3, 3))
        axis = figure.add_axes((0, 0, 1, 1))
        axis.imshow(table, origin="lower", extent=(-BOUND, BOUND, -BOUND, BOUND), cmap="Greys", vmax=2 * table.max())
        axis.plot(*states[i].numpy().T, ".", ms=2.5, color="#0072b2")
        axis.set(xticks=[], yticks=[], xlim=(-BOUND, BOUND), ylim=(-BOUND, BOUND))
        canvas = FigureCanvasAgg(figure)
        canvas.draw()
        drawn.append(Image.fromarray(np.asarray(canvas.buffer_rgba())[..., :3]))
    write_atomic(path, encode_gif(drawn, round(1000 * 4 / len(drawn) / 10) * 10))
    return path


def shorter(config: LangevinConfig, steps: int) -> LangevinConfig:
    """The same ladder with other corrector steps at each level."""
    return dataclasses.replace(config, steps=steps)
