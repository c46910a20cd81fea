"""Transition models side by side: each trained for the same seconds on one thread, rolled out and measured alike.

Every model, task and seed is a job with a folder of its own, so that a comparison that is killed goes on where it was.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ebmtraj import config as recipes
from ebmtraj.datasets.store import Store
from ebmtraj.datasets.windows import SPLITS, trajectories
from ebmtraj.device import generator, use_threads
from ebmtraj.errors import DivergedError, EbmtrajError
from ebmtraj.fields import total_size
from ebmtraj.locks import only_writer
from ebmtraj.parallel import Pool, open_pool
from ebmtraj.report.assess import Assessment, assess, load_run, simulator_futures
from ebmtraj.report.compare_rows import TASKS, Row, network_of, recipe_of
from ebmtraj.report.jobs import BUDGETS, OUTCOME, finite, open_folder, same, set_budgets
from ebmtraj.runs import cores, read_json, write_json
from ebmtraj.training.checkpoint import load_tensors, save_tensors
from ebmtraj.training.run import step_seconds
from ebmtraj.trajectories.fit import TRANSITION, TransitionRecipe, completed, train_transition
from ebmtraj.trajectories.rollout import rollout
from ebmtraj.trajectories.stored import check_episodes

MOST_STARTS = 500  # held-out episodes to start from, unless asked for another number
SIMULATED_STARTS = 100  # of them, whose futures are simulated again
SPEED_BATCH, SPEED_STEPS, SPEED_ROUNDS = 256, 5, 5
SIMULATED, FILM = "simulator.safetensors", "film.safetensors"


@dataclass(frozen=True)
class Comparison:
    """What is compared, and how."""

    data: str
    rows: tuple[Row, ...]
    tasks: tuple[str, ...]
    seeds: tuple[int, ...]
    runs: Path  # where the jobs' folders lie
    seconds: float = 190.0  # of training a model, one thread
    steps: int = 100  # of a rollout
    samples: int = 8  # futures of each start
    starts: int = MOST_STARTS  # held-out episodes to start from, at most
    split: str = "test"

    def alike(self, content_hash: str | None) -> dict[str, Any]:
        """What all jobs have in common, and what a resumed comparison may not change."""
        names = ("seconds", "steps", "samples", "starts", "split")
        measured = {"terminated": "held"}  # what is measured otherwise does not belong into one table
        return {"content_hash": content_hash, "measured": measured, **{name: getattr(self, name) for name in names}}


@dataclass(frozen=True)
class Job:
    """One row, task and seed of a comparison."""

    row: Row
    task: str
    seed: int
    comparison: Comparison

    @property
    def path(self) -> Path:
        """Its folder: a run directory, if it trains."""
        return self.comparison.runs / self.task / self.row.name / f"seed-{self.seed}"

    @property
    def label(self) -> str:
        """What a progress bar calls it."""
        return f"{self.row.name} {self.task[:13]} {self.seed}"

    @property
    def trained(self) -> Path:
        """The run directory of the model that it measures."""
        return self.path if self.row.sampler_of is None else self.path.parent.parent / self.row.sampler_of / self.path.name

    def recipe(self) -> TransitionRecipe:
        """What it is to be trained with; a budget in seconds is still in seconds."""
        c = self.comparison
        return recipe_of(self.row, data=c.data, task=self.task, seed=self.seed, seconds=c.seconds)

    @property
    def budget(self) -> str:
        """Under which name its budget is kept, which all seeds share."""
        return f"{self.task}/{self.row.name}"

    def asked(self) -> dict[str, Any]:
        """Settings that decide its outcome, in plain values."""
        if self.row.sampler_of is not None:
            return {"sampler_of": self.row.sampler_of, "set": list(self.row.set)}
        return _plain(self.recipe())

    def outcome(self) -> dict[str, Any] | None:
        """What it came to, or None where it is not done."""
        path = self.path / OUTCOME
        found: dict[str, Any] | None = read_json(path) if path.exists() else None
        return found


def jobs_of(comparison: Comparison) -> list[Job]:
    """All jobs, a seed at a time, rows that need another row's model last."""
    own = [row for row in comparison.rows if row.sampler_of is None]
    later = [row for row in comparison.rows if row.sampler_of is not None]
    return [
        Job(row, task, seed, comparison)
        for rows in (own, later)
        for seed in comparison.seeds
        for row in rows
        for task in comparison.tasks
    ]


def choose_tasks(tasks: str | None, store: Store) -> tuple[str, ...]:
    """The tasks named, or all that the store has data for; raises `EbmtrajError` for one it has no data for."""
    has_actions = total_size(store.action_fields) > 0
    if tasks is None:
        return TASKS if has_actions else TASKS[:1]
    chosen = tuple(dict.fromkeys(task.strip() for task in tasks.split(",") if task.strip()))
    for task in chosen:
        if task not in TASKS:
            raise EbmtrajError(f"--tasks: unknown task {task!r}; use {' or '.join(TASKS)}")
        if task == TASKS[1] and not has_actions:
            raise EbmtrajError(f"store {store.path} holds no actions, which {task} models need; use --tasks {TASKS[0]}")
    if not chosen:
        raise EbmtrajError(f"--tasks names no task; use {','.join(TASKS)}")
    return chosen


def prepare(comparison: Comparison, store: Store, *, resume: bool = False, overwrite: bool = False) -> list[Job]:
    """Check all that can be checked before any work, make the folder of runs, and list the jobs.

    Raises `EbmtrajError` where the store is too small, a row's settings are wrong, the folder holds something else, or a
    resumed comparison was begun under other settings.
    """
    jobs = jobs_of(comparison)
    _check_stores(comparison, store)
    asked = {job.path: job.asked() for job in jobs}  # says which setting of which row is wrong
    open_folder(comparison.runs, comparison.alike(store.content_hash), resume=resume, overwrite=overwrite)
    for job in jobs:
        done = job.outcome()
        if done is not None:
            same(_kept(done.get("asked"), job.path), asked[job.path], str(job.path))
    return jobs


def run_jobs(
    jobs: Sequence[Job],
    store: Store,
    *,
    workers: int = 0,
    on_done: Callable[[Job, dict[str, Any]], None] = lambda job, outcome: None,
) -> str | None:
    """Train and measure what is not done, `workers` jobs at once, one thread each.

    Returns why nothing can be simulated again, or None. A model that diverges is noted in its outcome; any other fault
    raises `EbmtrajError`, and what is done stays done.
    """
    missing = _simulate(jobs, store, workers) if any(job.task == TASKS[0] for job in jobs) else None
    waves = [[job for job in jobs if (job.row.sampler_of is None) == own and job.outcome() is None] for own in (True, False)]
    most = max(map(len, waves), default=0)
    if most:
        with only_writer(jobs[0].comparison.runs, "comparison"), open_pool(min(workers or cores(), most)) as pool:
            _set_budgets(waves[0], pool)
            for wave in waves:
                for job, outcome in zip(wave, pool.map(work, wave, lambda job: str(job.path)), strict=True):
                    on_done(job, outcome)
    return missing


def work(job: Job) -> dict[str, Any]:
    """Train a job's model if it has one, measure it, and write down what it came to; goes on where it was killed."""
    use_threads(1)
    asked = job.asked()
    try:
        facts, assessment = _train_and_measure(job)
    except DivergedError as error:
        outcome: dict[str, Any] = {"asked": asked, "diverged": str(error), "facts": {}}
    else:
        write_json(job.path / "results.json", finite(assessment.results))
        film = {"model": assessment.samples[0, 0], "truth": assessment.truth[0]}
        save_tensors(job.path / FILM, {name: torch.from_numpy(np.array(rows)) for name, rows in film.items()}, {})
        outcome = {"asked": asked, "diverged": None, "facts": facts}
    write_json(job.path / OUTCOME, finite(outcome))  # last, as it says that all else is there
    return outcome


def _step_cost(job: Job) -> float:
    return step_seconds(TRANSITION, job.recipe())


def _set_budgets(jobs: Sequence[Job], pool: Pool) -> None:
    """Turn seconds into steps, once for all seeds."""
    if jobs:
        asked = {job.budget: (job, job.recipe().training.seconds) for job in jobs}
        timed = {name: (job, seconds) for name, (job, seconds) in asked.items() if seconds is not None}
        set_budgets(jobs[0].comparison.runs / BUDGETS, timed, _step_cost, pool, lambda job: str(job.path))


def _with_budget(job: Job) -> TransitionRecipe:
    """A job's recipe with its budget in steps."""
    recipe = job.recipe()
    if recipe.training.seconds is None:
        return recipe
    steps = read_json(job.comparison.runs / BUDGETS)[job.budget]
    return dataclasses.replace(recipe, training=dataclasses.replace(recipe.training, steps=steps, seconds=None))


def _train_and_measure(job: Job) -> tuple[dict[str, Any], Assessment]:
    c = job.comparison
    network = network_of(job.row) if job.row.sampler_of is not None else None
    core: float | None = None  # seconds
    if network is None:
        whole = not (job.path / "checkpoints" / "resume.safetensors").exists()
        began = time.thread_time()
        train_transition(_with_budget(job), job.path, device="cpu", resume=True)
        core = round(time.thread_time() - began, 1) if whole else None  # nobody knows what a killed one took
    elif network is not None:
        base = next(each for each in c.rows if each.name == job.row.sampler_of)
        said = Job(base, job.task, job.seed, c).outcome() or {}
        if said.get("diverged"):
            raise DivergedError(f"row {base.name}, whose model it samples: {said['diverged']}")
    store = Store.open(c.data)
    model, header = load_run(job.trained, store, network=network)
    parameters = sum(each.numel() for each in model.parameters())
    began = time.perf_counter()
    assessment = assess(
        job.trained,
        store,
        steps=c.steps,
        samples=c.samples,
        starts=c.starts,
        split=c.split,
        seed=job.seed,
        simulator=_simulated(c.runs) if job.task == TASKS[0] else None,
        network=network,
    )
    facts = {
        "train_seconds": header.get("seconds"),
        "train_core_seconds": core,
        "train_steps": header.get("steps"),
        "parameters": parameters,
        "evaluation_seconds": round(time.perf_counter() - began, 1),
    }
    return facts, assessment


def measure_speed(
    jobs: Sequence[Job], store: Store, on_round: Callable[[int, int], None] = lambda done, total: None
) -> dict[Path, float]:
    """Milliseconds of a core for a rollout step at a batch of 256, one job's model after the other on one thread.

    Rounds over all models, so that a machine that slows down slows all of them; the median of the rounds counts.
    """
    threads = torch.get_num_threads()
    use_threads(1)
    try:
        ready = [job for job in jobs if not (job.outcome() or {"diverged": "not done"})["diverged"]]
        times: dict[Path, list[float]] = {job.path: [] for job in ready}
        if not ready:
            return {}
        c = ready[0].comparison
        truth = trajectories(store, c.split, SPEED_STEPS, limit=SPEED_BATCH)
        rows = torch.arange(SPEED_BATCH) % len(truth.states)
        start, actions = truth.states[rows, 0], truth.actions[rows]
        for number in range(SPEED_ROUNDS):
            for job in ready:
                model, _ = load_run(job.trained, store, network=network_of(job.row) if job.row.sampler_of else None)
                noise = generator(0)
                for steps in (1, SPEED_STEPS):  # the first warms up
                    began = time.thread_time()  # other processes' time is not the model's
                    rollout(model, start, steps, actions=actions if model.actions else None, generator=noise)
                    taken = 1e3 * (time.thread_time() - began) / steps
                times[job.path].append(taken)
            on_round(number + 1, SPEED_ROUNDS)
        return {path: float(np.median(values)) for path, values in times.items()}
    finally:
        torch.set_num_threads(threads)


def film_of(job: Job) -> dict[str, np.ndarray] | None:
    """The first start's true future and the model's first sample, (T+1, S) each; None where the job has none."""
    path = job.path / FILM
    return {name: each.numpy() for name, each in load_tensors(path)[1].items()} if path.exists() else None


def _simulate(jobs: Sequence[Job], store: Store, workers: int) -> str | None:
    """Simulate other true futures once for all jobs; says why where that can't be done."""
    c = jobs[0].comparison
    path = c.runs / SIMULATED
    if not path.exists():
        starts = min(c.starts, SIMULATED_STARTS)
        try:
            futures = simulator_futures(
                store, steps=c.steps, samples=max(2, c.samples), starts=starts, split=c.split, workers=workers
            )
        except EbmtrajError as error:  # a store that this package did not collect
            return str(error)
        save_tensors(path, {"futures": torch.from_numpy(futures)}, {})
    return None


def _simulated(runs: Path) -> np.ndarray | None:
    path = runs / SIMULATED
    return load_tensors(path)[1]["futures"].numpy() if path.exists() else None


def _check_stores(comparison: Comparison, store: Store) -> None:
    if not store.complete:
        raise EbmtrajError(f"store {store.path} is not finished; go on with the command that made it and --resume")
    if comparison.split not in SPLITS[1:]:
        raise EbmtrajError(
            f"--split {comparison.split}: models are trained on train; use test, or validation to choose settings"
        )
    for split in SPLITS:
        needed = 4 if split == comparison.split else 1
        held = int((store.lengths[store.split(split)] >= (comparison.steps if needed > 1 else 1)).sum())
        if held < needed:
            what = f"{needed} episodes of {comparison.steps} steps" if needed > 1 else "an episode"
            raise EbmtrajError(
                f"store {store.path} holds {store.episodes} episode{'s' * (store.episodes != 1)}, {held} for {split}, and a "
                f"comparison needs {what} there; collect more, or use fewer --steps"
            )
    judged = set(store.seeds[store.split(comparison.split)].tolist())
    for row in comparison.rows:
        other = store if row.data is None else Store.open(row.data)
        if row.sampler_of is None:
            recipe = Job(row, comparison.tasks[0], comparison.seeds[0], comparison).recipe()
            try:
                check_episodes(recipe.training, other)
            except EbmtrajError as error:
                raise EbmtrajError(f"row {row.name}: {error}") from None
        if row.data is None:
            continue
        if [f.kind for f in other.state_fields] != [f.kind for f in store.state_fields]:
            raise EbmtrajError(f"row {row.name}: store {other.path} has other state fields than {store.path}")
        seen = np.concatenate([other.seeds[other.split(name)] for name in ("train", "validation")]).tolist()
        shared = {seed for seed in judged & set(seen) if seed >= 2**32}  # smaller ones are numbers that an import gave
        if shared and store.attributes.get("env") == other.attributes.get("env"):
            raise EbmtrajError(
                f"row {row.name}: store {other.path} would train on {len(shared)} of the episodes that {store.path} "
                "judges by; collect it with another --seed"
            )


def _plain(recipe: TransitionRecipe) -> dict[str, Any]:
    """The settings of a recipe that decide a job's outcome."""
    plain: dict[str, Any] = recipes.to_plain(dataclasses.asdict(recipe))
    return {key: value for key, value in plain.items() if key not in ("data", "content_hash", "stream")}


def _kept(asked: Any, path: Path) -> Any:
    """What a finished job was asked for, with settings that an older version did not have yet at their defaults."""
    if not isinstance(asked, dict) or "model" not in asked:  # a row with sampler_of
        return asked
    return _plain(completed(recipes.build(TransitionRecipe, asked, str(path)), f"{path}: network"))
