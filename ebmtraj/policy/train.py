"""Make the policy that turns the cube: gaits first, then the network that corrects them; killed, it resumes by stage."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ebmtraj.config import build, first_difference, read_toml, to_plain, to_toml
from ebmtraj.envs.trained import AXIS_NAMES, Body, save_checkpoint
from ebmtraj.errors import EbmtrajError
from ebmtraj.locks import only_writer
from ebmtraj.policy.gaits import GaitConfig, reversed_gait, search_gait
from ebmtraj.policy.ppo import Iteration, Layers, PPOConfig, train_residual
from ebmtraj.policy.simulator import Array, TrainingSimulator, draw_starts
from ebmtraj.runs import MetricsWriter, Run, machine, read_json, versions, write_atomic, write_json

SAVE_EVERY = 20  # iterations between checkpoints that can be looked at while it trains
CLOCK_GAP = 60.0  # seconds; a longer pause between two reports was a stopped process, and is not training time


@dataclass(frozen=True)
class PolicyConfig:
    """Everything that decides the policy, but for the machine. Raises `EbmtrajError` for a setting out of its range."""

    seed: int = 0  # of all that is drawn
    threads: int = 2  # of the simulator, where it changes nothing, and of torch, where it changes the last bits
    starts: int = 1024  # settled starts of the real environment to train from
    timestep: float = 0.004  # seconds of physics; the real environment's 2 ms is 1.8 times slower
    gaits: GaitConfig = field(default_factory=GaitConfig)  # how they are searched for
    ppo: PPOConfig = field(default_factory=PPOConfig)  # how the network is trained

    def __post_init__(self) -> None:
        for name, least in (("seed", 0), ("threads", 1), ("starts", 1)):
            if getattr(self, name) < least:
                raise EbmtrajError(f"{name} is {getattr(self, name)}; give a whole number of at least {least}")
        if self.timestep not in (0.002, 0.004):
            raise EbmtrajError(f"timestep is {self.timestep}; use 0.004 (fast) or 0.002 (as the real environment)")


@dataclass(frozen=True)
class Progress:
    """Where training stands."""

    stage: str  # "gait +x" or "network"
    done: int
    total: int
    note: str


@dataclass(frozen=True)
class TrainedResult:
    """What training made."""

    checkpoint: Path
    seconds: float  # of work, all resumes together
    gait_fitness: dict[str, float]  # rad until a drop with every 4th action random, less the cost of drops


def train_policy(
    path: Path,
    config: PolicyConfig,
    *,
    resume: bool = False,
    overwrite: bool = False,
    on_progress: Callable[[Progress], None] | None = None,
) -> TrainedResult:
    """Search the gaits and train the network into the run directory `path`; `checkpoints/policy.safetensors` is the policy.

    The same recipe gives the same bits on one machine; other processors and torch builds sum in another order and end in
    another policy of like strength. Killed, it goes on with `resume` after the last finished gait; the network starts anew.
    Raises `EbmtrajError` where a run exists and neither `overwrite` nor `resume` is given, or where the recipe differs.
    """
    if overwrite and resume:
        raise EbmtrajError("choose one of --resume and --overwrite: the first goes on with a run, the second replaces it")
    with only_writer(path, "run"):
        return _train_policy(path, config, resume, overwrite, on_progress)


def _train_policy(
    path: Path,
    config: PolicyConfig,
    resume: bool,
    overwrite: bool,
    on_progress: Callable[[Progress], None] | None,
) -> TrainedResult:
    run = _open(path, config, resume, overwrite)
    clock = _Clock(run.path / "stages.json")
    simulator = TrainingSimulator(config.threads, config.timestep)
    torch_threads = torch.get_num_threads()
    try:
        torch.set_num_threads(config.threads)
        starts = draw_starts([_generator(config.seed, 0, i) for i in range(config.starts)], config.threads)
        gaits = _gaits(config, clock, simulator, starts, on_progress)
        checkpoint = run.checkpoints / "policy.safetensors"
        _network(config, clock, simulator, starts, gaits, run, checkpoint, on_progress)
    finally:
        torch.set_num_threads(torch_threads)
        simulator.close()
    return TrainedResult(checkpoint, clock.seconds, {name: gait["fitness"] for name, gait in clock.gaits.items()})


def _gaits(
    config: PolicyConfig,
    clock: _Clock,
    simulator: TrainingSimulator,
    starts: Array,
    on_progress: Callable[[Progress], None] | None,
) -> Array:
    """The six gaits (6, 61), each kept on disk as soon as it is found."""
    total = config.gaits.generations + config.gaits.refine_generations
    for index, name in enumerate(AXIS_NAMES):
        if name in clock.gaits:
            continue
        opposite = clock.gaits.get(AXIS_NAMES[index ^ 1])
        hints = [reversed_gait(np.array(opposite["values"]))] if opposite else []
        done = 0

        def report(score: float, name: str = name) -> None:
            nonlocal done
            done += 1
            clock.tick()
            if on_progress:
                on_progress(Progress(f"gait {name}", done, total, f"elite {score:.2f} rad"))

        generator = _generator(config.seed, 1, index)
        gait, fitness = search_gait(index, config.gaits, simulator, starts, generator, hints, report)
        clock.keep(name, gait, fitness)
    return np.array([clock.gaits[name]["values"] for name in AXIS_NAMES])


def _network(
    config: PolicyConfig,
    clock: _Clock,
    simulator: TrainingSimulator,
    starts: Array,
    gaits: Array,
    run: Run,
    checkpoint: Path,
    on_progress: Callable[[Progress], None] | None,
) -> None:
    body = Body(gaits, config.ppo.residual, config.ppo.speed)
    metrics = MetricsWriter(run.metrics)

    def save(layers: Layers, iterations: int) -> None:
        made = {"config": to_plain(asdict(config)), "iterations": iterations, "seconds": round(clock.seconds, 1)}
        recipe = {**made, "versions": versions(), "machine": machine()}
        save_checkpoint(checkpoint, body, layers, recipe)

    def report(now: Iteration, layers: Callable[[], Layers]) -> None:
        clock.tick()
        metrics.write({**asdict(now), "seconds": round(clock.seconds, 1)})
        if now.iteration % SAVE_EVERY == 0:
            save(layers(), now.iteration)
        if on_progress:
            note = f"{now.turned:.2f} rad, {now.drops:.2f} drops per 100 steps"
            on_progress(Progress("network", now.iteration, config.ppo.iterations, note))

    try:
        save(train_residual(gaits, config.ppo, simulator, starts, config.seed, report), config.ppo.iterations)
    finally:
        metrics.close()


class _Clock:
    """What the stages found so far, and the seconds of work in them; time spent stopped does not count."""

    def __init__(self, path: Path) -> None:
        self._path = path
        kept = read_json(path) if path.exists() else {}
        self.gaits: dict[str, dict[str, Any]] = kept.get("gaits", {})
        self.seconds: float = kept.get("seconds", 0.0)
        self._last = time.monotonic()

    def tick(self) -> None:
        now = time.monotonic()
        self.seconds += min(now - self._last, CLOCK_GAP)
        self._last = now

    def keep(self, name: str, gait: Array, fitness: float) -> None:
        self.tick()
        self.gaits[name] = {"fitness": fitness, "values": gait.tolist()}
        write_json(self._path, {"gaits": self.gaits, "seconds": self.seconds})


def _open(path: Path, config: PolicyConfig, resume: bool, overwrite: bool) -> Run:
    if resume and (path / "config.toml").exists():
        run = Run.open(path)
        before = build(PolicyConfig, read_toml(run.config), f"recipe {run.config}")
        if found := first_difference(to_plain(asdict(before)), to_plain(asdict(config))):
            key, old, new = found
            raise EbmtrajError(f"run {path} was begun with {key} = {old}, not {new}; use the same recipe, or another --run")
        return run
    run = Run.create(path, overwrite=overwrite)
    write_json(run.path / "versions.json", {**versions(), **machine()})
    write_atomic(run.config, to_toml(config))
    return run


def _generator(seed: int, stream: int, index: int) -> np.random.Generator:
    # Another spawn key than collection's and evaluation's: training never sees their starts.
    return np.random.Generator(np.random.Philox(np.random.SeedSequence(seed, spawn_key=(8, stream, index))))
