"""What a long command would take, before it is begun: a few real steps or episodes are timed, and nothing is kept."""

from __future__ import annotations

import dataclasses
import resource
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ebmtraj.collect import CollectConfig, collect, simulate_block
from ebmtraj.continual.run import take_course
from ebmtraj.device import choose_device, no_denormals, use_threads
from ebmtraj.policy.gaits import search_gait
from ebmtraj.policy.ppo import train_residual
from ebmtraj.policy.simulator import TrainingSimulator, draw_starts
from ebmtraj.policy.train import PolicyConfig
from ebmtraj.report.continual import Job as ContinualJob
from ebmtraj.report.continual import stream_of
from ebmtraj.report.continual_behaviours import RobotTrial
from ebmtraj.runs import Run, cores
from ebmtraj.training.loop import step_time, steps_within
from ebmtraj.training.run import Kind
from ebmtraj.trajectories.fit import TRANSITION, load_recipe

TRIAL = 10  # optimiser steps that are timed
EPISODES, TRANSITIONS = 8, 4000  # at least so many episodes are simulated, about so many transitions
OVERHEAD = 0.05  # of a training's time goes into validation and checkpoints, as in `steps_within`
SHARE = 20  # a continual learner is timed on so small a part of its steps


@dataclass(frozen=True)
class Estimate:
    """What would be made, and what it takes."""

    makes: str
    seconds: float
    measured: str  # what was timed
    bytes: int | None = None  # on disk
    memory: int | None = None  # bytes, the most that timing it took
    beside: str = ""  # what comes on top


def estimate_training(kind: Kind, recipe: Any, path: Path, *, device: str = "auto", overwrite: bool = False) -> Estimate:
    """Time some optimiser steps of a training, data and all; raises `EbmtrajError` as the training itself would at once."""
    Run(path).check_free(overwrite=overwrite)
    where = choose_device(device)
    use_threads(recipe.training.threads)
    store = kind.open(recipe)
    recipe = kind.settle(recipe, store, where)
    model = kind.fresh(recipe, store).to(where)
    with closing(kind.data(store, "train", recipe, model, where)) as data:
        began = time.perf_counter()
        model.prepare(data)
        fitted = time.perf_counter() - began
        if getattr(model, "closed_form", False):
            size = _size(model.state_dict())
            return Estimate(f"run {path}: a model in closed form", fitted, "the fit itself", size, _peak())
        cost = step_time(model, data, recipe.training, TRIAL)
    training = recipe.training
    steps = training.steps if training.seconds is None else steps_within(training.seconds, cost)
    weights, extra = _size(model.state_dict()), _size(model.extra_state()[0])
    moments = 2 * sum(each.numel() * each.element_size() for each in model.parameters())
    return Estimate(
        f"run {path}: {steps:,} optimiser steps of {training.batch} on {where}",
        steps * cost / (1 - OVERHEAD) + fitted,
        f"{cost * 1e3:.3g} ms a step, the median of {TRIAL}",
        4 * weights + moments + extra,  # the best weights, and what a resume needs: three copies and the optimiser's
        _peak(),
    )


def estimate_collection(path: str, config: CollectConfig) -> Estimate:
    """Simulate and store some episodes; raises `EbmtrajError` as the collection itself would at once."""
    count = min(config.episodes, max(EPISODES, TRANSITIONS // config.steps))
    small = dataclasses.replace(config, episodes=count, workers=1, backend="local", address=None)
    with tempfile.TemporaryDirectory() as folder:
        began = time.perf_counter()
        made = collect(Path(folder) / "some.zarr", small)
        first = time.perf_counter() - began
        size = sum(each.stat().st_size for each in Path(folder).rglob("*") if each.is_file())
    began = time.perf_counter()
    simulate_block(small, (0, count))  # once more, now that the simulator is there
    again = time.perf_counter() - began
    workers = min(config.workers or cores(), config.episodes)
    transitions = round(config.episodes / count * made.transitions)
    return Estimate(
        f"store {path}: {config.episodes:,} episodes, about {transitions:,} transitions, by {workers} workers",
        config.episodes / count * again / workers + max(0.0, first - again),
        f"{made.transitions / again:,.0f} steps a second and core, over {count} episodes",
        round(config.episodes / count * size),
        _peak() * workers,
    )


def estimate_policy(path: Path, config: PolicyConfig, *, overwrite: bool = False) -> Estimate:
    """Time a generation of the gait search and an iteration of the network's training."""
    Run(path).check_free(overwrite=overwrite)
    simulator = TrainingSimulator(config.threads, config.timestep)
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(config.threads)
        began = time.perf_counter()
        few = min(config.starts, 64)
        starts = draw_starts([np.random.default_rng(i) for i in range(few)], config.threads)
        settled = (time.perf_counter() - began) * config.starts / few
        one = dataclasses.replace(config.gaits, generations=1, refine_generations=1)
        ticks: list[float] = []
        began = time.perf_counter()
        search_gait(
            0, one, simulator, starts, np.random.default_rng(0), None, lambda score: ticks.append(time.perf_counter())
        )
        generation, refined, rest = ticks[0] - began, ticks[1] - ticks[0], time.perf_counter() - ticks[1]
        gaits = 6 * (config.gaits.generations * generation + config.gaits.refine_generations * refined + rest)
        ticks.clear()
        few_iterations = dataclasses.replace(config.ppo, iterations=2)  # the first one also warms up
        train_residual(
            np.zeros((6, 61)), few_iterations, simulator, starts, 0, lambda now, layers: ticks.append(time.perf_counter())
        )
        iteration = ticks[1] - ticks[0]
    finally:
        torch.set_num_threads(threads)
        simulator.close()
    return Estimate(
        f"run {path}: six gaits, and {config.ppo.iterations:,} iterations of the network that corrects them",
        settled + gaits + config.ppo.iterations * iteration,
        f"a generation {generation:.1f} s, an iteration {iteration:.1f} s, on {config.threads} threads",
        memory=_peak(),
    )


@dataclass(frozen=True)
class Piece:
    """Trainings of one recipe in a comparison; a budget in seconds is taken as it is."""

    name: str
    kind: Kind
    recipe: Any
    count: int  # trainings, one a seed


def estimate_trainings(
    what: str, pieces: Sequence[Piece], workers: int, tell: Callable[[str], None] = lambda name: None
) -> Estimate:
    """Time some steps of each recipe on one thread and add the trainings up; measuring the models comes on top."""
    seconds, longest, timed, disk = 0.0, 0.0, 0, 0
    for piece in pieces:
        if piece.recipe.training.seconds is not None:
            one = float(piece.recipe.training.seconds)
        else:
            tell(piece.name)
            with tempfile.TemporaryDirectory() as folder:
                found = estimate_training(piece.kind, piece.recipe, Path(folder) / "run", device="cpu")
            one, timed = found.seconds, timed + 1
            disk += piece.count * (found.bytes or 0)
        seconds, longest = seconds + piece.count * one, max(longest, one)
    jobs = sum(piece.count for piece in pieces)
    used = max(1, min(workers or cores(), jobs))
    budgets = f"{TRIAL} steps of {timed} recipes timed" if timed else "each has its seconds"
    return Estimate(
        f"{what}: {jobs} trainings, {used} at once",
        max(seconds / used, longest),
        budgets + (", others have their seconds" if timed and timed < len(pieces) else ""),
        disk or None,
        _peak() * used,
        "measuring the trained models",
    )


def estimate_continual(
    what: str, jobs: Sequence[ContinualJob], workers: int, tell: Callable[[str], None] = lambda name: None
) -> Estimate:
    """Take each learner through all tasks once with a small part of its steps."""
    use_threads(1)
    found: dict[tuple[Any, ...], tuple[float, float, int]] = {}  # learning and testing, for so many steps a task
    total = longest = 0.0
    for job in jobs:
        key = (job.name, job.scenarios)
        steps = int(job.settings.get("steps", 0))
        if key not in found:
            tell(job.name)
            few = max(2, steps // SHARE) if steps else 0
            settings = {**job.settings, "steps": few} if steps else job.settings
            with no_denormals():
                courses = take_course(stream_of(job.trial), job.name, job.scenarios, job.seed, settings)
            apart = {id(course): course for course in courses}.values() if not _shared(courses) else courses[:1]
            found[key] = sum(course.seconds for course in apart), sum(course.test_seconds for course in apart), few
        learning, testing, few = found[key]
        one = learning * (steps / few if few else 1.0) + testing
        total, longest = total + one, max(longest, one)
    used = max(1, min(workers or cores(), len(jobs)))
    return Estimate(
        f"{what}: {len(jobs)} runs, {used} at once",
        max(total / used, longest),
        f"each of {len(found)} learners once through all tasks, with 1/{SHARE} of its steps",
        memory=_peak() * used,
    )


def estimate_robot(
    what: str, trial: RobotTrial, episodes: int | None, workers: int, tell: Callable[[str], None] = lambda name: None
) -> Estimate:
    """Time some steps of the energy that every learner of behaviours trains, and the collection, if there is to be one.

    `episodes` of each behaviour are collected first; None: the trial's stores are there.
    """
    used, collecting = workers or cores(), 0.0
    with tempfile.TemporaryDirectory() as folder:
        store = trial.stores[0]
        if episodes is not None:
            tell("the collection")
            length = max(trial.first) + trial.horizon
            config = CollectConfig(episodes=episodes, steps=length, policy="trained", workers=workers)
            collecting = len(trial.names) * estimate_collection("-", config).seconds
            store = str(Path(folder) / "some.zarr")
            collect(store, dataclasses.replace(config, episodes=40, workers=1))
        tell("the energy")
        settings = [f"training.steps={trial.steps}", f"training.batch={trial.batch}", "training.threads=1"]
        recipe = load_recipe(None, [*settings, f"network.width={trial.width}"], {"data": store})
        one = estimate_training(TRANSITION, recipe, Path(folder) / "run", device="cpu")
    jobs = len(trial.learners) * len(trial.seeds)
    whole = jobs * len(trial.names) * one.seconds / max(1, min(used, jobs))
    return Estimate(
        f"{what}: {jobs} runs of {len(trial.names)} trainings each, {min(used, jobs)} at once",
        collecting + whole,
        one.measured,
        memory=_peak() * min(used, jobs),
        beside="testing; a learner that sees all behaviours again trains longer, which",
    )


def _shared(courses: Sequence[Any]) -> bool:
    """Whether one learning served all scenarios, so that its time stands in each course."""
    return len({course.seconds for course in courses}) == 1


@contextmanager
def nowhere(comparison: Any) -> Iterator[Any]:
    """The comparison with a folder of runs that vanishes, in which all that is checked before any work can be checked."""
    with tempfile.TemporaryDirectory() as folder:
        yield dataclasses.replace(comparison, runs=Path(folder) / "runs")


def in_words(estimate: Estimate) -> list[str]:
    """Lines for a person."""
    lines = [f"would make {estimate.makes}", f"about {duration(estimate.seconds)} ({estimate.measured})"]
    if estimate.beside:
        lines.append(f"{estimate.beside} comes on top")
    if estimate.bytes is not None:
        free = shutil.disk_usage(Path.cwd()).free
        lines.append(f"about {amount(estimate.bytes)} on disk ({amount(free)} are free here)")
    if estimate.memory is not None:
        lines.append(f"about {amount(estimate.memory)} of memory at most")
    return [*lines, "nothing was written"]


def duration(seconds: float) -> str:
    """So many seconds, as a person says it."""
    if seconds < 100:
        return f"{seconds:.0f} s" if seconds >= 10 else f"{seconds:.1f} s"
    if seconds < 5400:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h"


def amount(count: int) -> str:
    """So many bytes, as a person says it."""
    for unit, size in (("GB", 1e9), ("MB", 1e6)):
        if count >= 0.95 * size:
            return f"{count / size:.1f} {unit}"
    return f"{count / 1e3:.0f} kB"


def _size(tensors: Any) -> int:
    return sum(each.numel() * each.element_size() for each in tensors.values())


def _peak() -> int:
    """The most memory that this process has held so far, bytes."""
    found = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return int(found) * (1 if sys.platform == "darwin" else 1024)
