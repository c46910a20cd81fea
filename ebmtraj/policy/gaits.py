"""Open-loop gaits that turn the cube: sinusoidal joint targets found by the cross-entropy method.

u(phi) = clip(offset + a sin(phi) + b cos(phi), -1, 1), one frequency: 3 x 20 + 1 numbers a gait, one gait a cube axis and
sign. Cross-entropy method: Rubinstein 1999; de Boer et al. 2005, "A tutorial on the cross-entropy method".
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ebmtraj.envs.trained import AXES, BASE_OMEGA, GAIT_SIZE, MAX_OMEGA, N_ACTIONS
from ebmtraj.errors import EbmtrajError
from ebmtraj.policy.simulator import Array, TrainingSimulator, quaternions, rotation_between


@dataclass(frozen=True)
class GaitConfig:
    """How each of the six gaits is searched for. Raises `EbmtrajError` for a setting out of its range."""

    seeds: int = 2  # searches an axis that start apart; the best goes on to the refinement
    population: int = 48  # candidates a generation
    elites: int = 12  # of them, which the next is drawn from
    starts: int = 2  # episodes a candidate in the first search
    steps: int = 100  # control steps an episode
    generations: int = 10  # of the first search
    refine_starts: int = 4  # episodes a candidate in the refinement
    refine_generations: int = 6  # with every 4th action random
    smoothing: float = 0.3  # share of the old mean and spread that is kept
    spread: float = 0.5  # standard deviation of the first candidates
    spread_floor: float = 0.05  # below which it does not fall
    clip: float = 0.4  # rad a step that count at most: a falling cube spins
    drop_cost: float = 1.0  # rad

    def __post_init__(self) -> None:
        counts = ("seeds", "population", "elites", "starts", "steps", "generations", "refine_starts", "refine_generations")
        for name in counts:
            if getattr(self, name) < 1:
                raise EbmtrajError(f"gaits.{name} is {getattr(self, name)}; give a whole number of at least 1")
        if self.elites > self.population:
            raise EbmtrajError(f"gaits.elites is {self.elites}, more than gaits.population {self.population}; give fewer")
        if not 0.0 <= self.smoothing < 1.0:
            raise EbmtrajError(f"gaits.smoothing is {self.smoothing}; give a number from 0 to below 1")


def search_gait(
    axis: int,
    config: GaitConfig,
    simulator: TrainingSimulator,
    starts: Array,
    generator: np.random.Generator,
    hints: list[NDArray[np.float64]] | None = None,
    on_generation: Callable[[float], None] | None = None,
) -> tuple[NDArray[np.float64], float]:
    """The best gait (61,) found for `AXES[axis]`, and its mean fitness under every 4th action random.

    `hints` are gaits (61,) that the first searches start from, such as the opposite axis's run backwards. `starts` (N, 62)
    are physics states to begin from.
    """
    means = np.tile(np.r_[np.zeros(N_ACTIONS), np.full(N_ACTIONS, 0.4), np.zeros(N_ACTIONS + 1)], (config.seeds, 1))
    for mean, hint in zip(means, hints or [], strict=False):
        mean[:] = hint
    spreads = np.full_like(means, config.spread)
    for _ in range(config.generations):
        scores = _generation(axis, config, simulator, starts, generator, means, spreads, config.starts, random=False)
        if on_generation:
            on_generation(float(scores.max()))
    finals = evaluate_gaits(axis, config, simulator, starts, generator, means, repeats=32, random=True)
    best = int(np.argmax(finals))
    mean, spread = means[best : best + 1], np.maximum(spreads[best : best + 1], 0.1)
    for _ in range(config.refine_generations):
        scores = _generation(axis, config, simulator, starts, generator, mean, spread, config.refine_starts, random=True)
        if on_generation:
            on_generation(float(scores.max()))
    candidates = np.stack([means[best], mean[0]])
    finals = evaluate_gaits(axis, config, simulator, starts, generator, candidates, repeats=64, random=True)
    return candidates[int(np.argmax(finals))], float(finals.max())


def _generation(
    axis: int,
    config: GaitConfig,
    simulator: TrainingSimulator,
    starts: Array,
    generator: np.random.Generator,
    means: NDArray[np.float64],
    spreads: NDArray[np.float64],
    repeats: int,
    random: bool,
) -> NDArray[np.float64]:
    """One step of the method for all searches (G, 61) side by side, in place; returns their elites' mean fitness (G,)."""
    noise = generator.standard_normal((len(means), config.population, GAIT_SIZE))
    candidates = means[:, None] + spreads[:, None] * noise
    fitness = evaluate_gaits(
        axis, config, simulator, starts, generator, candidates.reshape(-1, GAIT_SIZE), repeats, random
    ).reshape(len(means), config.population)
    scores = np.empty(len(means))
    for i in range(len(means)):
        best = np.argsort(-fitness[i], kind="stable")[: config.elites]
        elite = candidates[i, best]
        means[i] = config.smoothing * means[i] + (1 - config.smoothing) * elite.mean(axis=0)
        spread = config.smoothing * spreads[i] + (1 - config.smoothing) * elite.std(axis=0)
        spreads[i] = np.maximum(spread, config.spread_floor)
        scores[i] = fitness[i, best].mean()
    return scores


def evaluate_gaits(
    axis: int,
    config: GaitConfig,
    simulator: TrainingSimulator,
    starts: Array,
    generator: np.random.Generator,
    gaits: NDArray[np.float64],
    repeats: int,
    random: bool,
) -> NDArray[np.float64]:
    """Mean fitness (G,) of gaits (G, 61): clipped turning about the axis until a drop, which costs.

    All gaits meet the same starts, phases and random actions.
    """
    n, k = len(gaits), repeats
    physics = np.tile(starts[generator.integers(len(starts), size=k)], (n, 1))
    phase = np.tile(generator.uniform(0.0, 2.0 * np.pi, k), n)
    stagger = np.tile(generator.integers(4, size=k), n)
    wild = generator.uniform(-1.0, 1.0, (config.steps, k, N_ACTIONS)) if random else None
    owner = np.repeat(np.arange(n), k)
    offset, a, b = (gaits[owner, i * N_ACTIONS : (i + 1) * N_ACTIONS] for i in range(3))
    omega = np.minimum(BASE_OMEGA * np.exp(gaits[:, -1]), MAX_OMEGA)[owner]
    total = np.zeros(n * k)
    running = np.arange(n * k)
    for step in range(config.steps):
        angle = (phase[running] + step * omega[running])[:, None]
        actions = offset[running] + a[running] * np.sin(angle) + b[running] * np.cos(angle)
        if wild is not None:
            chance = (step + stagger[running]) % 4 == 0
            actions[chance] = wild[step, running[chance] % k]
        before = quaternions(physics)
        physics, dropped = simulator.step(physics, np.clip(actions, -1.0, 1.0).astype(np.float32))
        turned = rotation_between(before, quaternions(physics)) @ AXES[axis]
        total[running] += np.clip(turned, -config.clip, config.clip) * ~dropped - config.drop_cost * dropped
        running, physics = running[~dropped], physics[~dropped]
        if not len(running):
            break
    return total.reshape(n, k).mean(axis=1)


def reversed_gait(gait: NDArray[np.float64]) -> NDArray[np.float64]:
    """The same movement (61,) run backwards in time."""
    a = slice(N_ACTIONS, 2 * N_ACTIONS)
    backwards = gait.copy()
    backwards[a] = -gait[a]
    return backwards
