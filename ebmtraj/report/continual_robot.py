"""Behaviours of a robot learnt one after the other by a transition energy, and tested on all of them.

Domain-incremental: which behaviour it is, is not told in a test, unless a row says so.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from threadpoolctl import threadpool_limits
from torch import Tensor

from ebmtraj.collect import CollectConfig, collect
from ebmtraj.datasets.store import Store
from ebmtraj.datasets.windows import Transitions, trajectories
from ebmtraj.device import no_denormals, use_threads
from ebmtraj.errors import EbmtrajError
from ebmtraj.evaluation.scores import energy_score
from ebmtraj.locks import only_writer
from ebmtraj.parallel import open_pool
from ebmtraj.report.continual_behaviours import LEARNERS, BehaviourLearner, JointlyTrained, Mixture, RobotTrial
from ebmtraj.report.jobs import OUTCOME, finite, open_folder
from ebmtraj.runs import cores, machine, read_json, versions, write_json

AXES = ("+x", "-x", "+y", "-y", "+z", "-z")


def collect_behaviours(folder: Path, episodes: int, steps: int, seed: int, workers: int = 0) -> tuple[str, ...]:
    """A store for each of the six axes that the shipped policy turns the cube about; goes on where it was killed."""
    paths = []
    for number, axis in enumerate(AXES):
        path = folder / f"{axis}.zarr"
        config = CollectConfig(
            episodes=episodes,
            steps=steps,
            seed=seed + number,
            policy="trained",
            policy_kwargs={"axis": axis},
            workers=workers,
        )
        collect(path, config, resume=True)
        paths.append(str(path))
    return tuple(paths)


@dataclass(frozen=True)
class RobotJob:
    """One learner and seed."""

    name: str
    seed: int
    trial: RobotTrial

    @property
    def path(self) -> Path:
        """Its folder."""
        return self.trial.runs / self.name / f"seed-{self.seed}"

    @property
    def label(self) -> str:
        """What a progress bar calls it."""
        return f"{self.name} {self.seed}"

    def outcome(self) -> dict[str, Any] | None:
        """What it came to, or None where it is not done."""
        path = self.path / OUTCOME
        found: dict[str, Any] | None = read_json(path) if path.exists() else None
        return found


def choose_behaviour_learners(names: str) -> tuple[str, ...]:
    """The learners named, or all; raises `EbmtrajError` for an unknown one."""
    given = tuple(dict.fromkeys(name.strip() for name in names.split(",") if name.strip()))
    if given == ("all",):
        return tuple(LEARNERS)
    for name in given or ("",):
        if name not in LEARNERS:
            raise EbmtrajError(f"--learners: unknown learner {name!r}; use all or of {', '.join(LEARNERS)}")
    return given


def prepare_robot(trial: RobotTrial, *, resume: bool = False, overwrite: bool = False) -> list[RobotJob]:
    """Check the stores, make the folder of runs, and list the jobs.

    Raises `EbmtrajError` where a store's states are others than the first one's, or has too few episodes, or the folder
    holds something else.
    """
    first = Store.open(trial.stores[0])
    for path in trial.stores:
        store = Store.open(path)
        if [f.name for f in store.state_fields] != [f.name for f in first.state_fields]:
            raise EbmtrajError(f"store {path} has other state fields than {trial.stores[0]}; behaviours are of one robot")
        trajectories(store, trial.split, max(trial.first) + trial.horizon)
    open_folder(trial.runs, trial.alike(), resume=resume, overwrite=overwrite)
    return [RobotJob(name, seed, trial) for seed in trial.seeds for name in trial.learners]


def run_robot(
    jobs: Sequence[RobotJob],
    *,
    workers: int = 0,
    on_done: Callable[[RobotJob, dict[str, Any]], None] = lambda job, outcome: None,
) -> None:
    """Do what is not done, `workers` jobs at once, one thread each; a job that was killed starts anew, to the same bits."""
    waiting = [job for job in jobs if job.outcome() is None]
    if waiting:
        with only_writer(jobs[0].trial.runs, "trial"), open_pool(min(workers or cores(), len(waiting))) as pool:
            for job, outcome in zip(waiting, pool.map(work_robot, waiting, lambda job: str(job.path)), strict=True):
                on_done(job, outcome)


def work_robot(job: RobotJob) -> dict[str, Any]:
    """Take one learner through all behaviours, testing on all of them after each."""
    use_threads(1)
    trial = job.trial
    with threadpool_limits(1), no_denormals():
        stores = [Store.open(path) for path in trial.stores]
        data = [tuple(Transitions.load(store, split) for split in ("train", "validation")) for store in stores]
        states = torch.cat([pair[0].state for pair in data]).numpy()
        mean, std = states.mean(0), np.maximum(states.std(0), 1e-6)  # of the measure alone
        tests = [_windows(store, trial) for store in stores]
        learner = LEARNERS[job.name](trial, stores[0], job.seed, job.path)
        matrix, seconds = np.full((len(stores), len(stores)), np.nan), 0.0
        for number, (own, held_out) in enumerate(data):
            began = time.thread_time()
            learner.observe(own, held_out)
            seconds += time.thread_time() - began
            if isinstance(learner, JointlyTrained) and number < len(data) - 1:
                continue
            for place, truth in enumerate(tests):
                matrix[number, place] = _score(learner, place, truth, trial, job.seed, mean, std, stores[0].state_fields)
        found: dict[str, Any] = {
            "matrix": [[None if np.isnan(v) else round(float(v), 6) for v in row] for row in matrix],
            "seconds": round(seconds, 2),
            "memory": learner.memory(),
        }
        if isinstance(learner, Mixture):
            right = [float((learner.state_energy(t[:, 0]).argmin(1) == k).double().mean()) for k, t in enumerate(tests)]
            found["identified"] = round(float(np.mean(right)), 4)
    outcome: dict[str, Any] = finite(found)
    write_json(job.path / OUTCOME, outcome)
    return outcome


def _windows(store: Store, trial: RobotTrial) -> Tensor:
    """True futures, `(N, horizon + 1, S)`, from each of the steps `first` of every held-out episode."""
    states = trajectories(store, trial.split, max(trial.first) + trial.horizon).states
    return torch.cat([states[:, first : first + trial.horizon + 1] for first in trial.first])


def _score(
    learner: BehaviourLearner,
    place: int,
    truth: Tensor,
    trial: RobotTrial,
    seed: int,
    mean: np.ndarray,
    std: np.ndarray,
    fields: Any,
) -> float:
    """Energy score of futures from all starts of one behaviour's test, the mean over their steps."""
    generator = torch.Generator().manual_seed(seed)
    start = truth[:, 0].repeat_interleave(trial.samples, dim=0)
    futures = learner.sample(start, trial.horizon, generator, place)
    samples = futures.view(len(truth), trial.samples, trial.horizon + 1, -1).numpy()
    score = energy_score(samples, truth.numpy(), mean, std, fields)
    assert score is not None
    return float(score[1:].mean())


def score_forgetting(matrix: np.ndarray) -> float | None:
    """By how much the score of earlier behaviours is worse in the end than it was at best, a mean over all but the last.

    `matrix` `(T, T)`: energy score (less is better) on behaviour j after behaviour i. As `measures.forgetting`, the other
    way round; None where the matrix is not whole.
    """
    last = len(matrix) - 1
    if last == 0 or np.isnan(matrix[np.tril_indices(len(matrix))]).any():
        return None
    return float(np.mean([matrix[last, j] - matrix[j:last, j].min() for j in range(last)]))


def robot_results(jobs: Sequence[RobotJob], *, command: str = "") -> dict[str, Any]:
    """The object of a trial whose jobs are all done; raises `EbmtrajError` where one is not."""
    trial, rows = jobs[0].trial, []
    for name in trial.learners:
        found = []
        for job in (job for job in jobs if job.name == name):
            outcome = job.outcome()
            if outcome is None:
                raise EbmtrajError(f"{job.path} is not done; run the same command again with --resume")
            found.append(outcome)
        matrices = np.array([each["matrix"] for each in found], np.float64)
        lost = [score_forgetting(matrix) for matrix in matrices]
        final = matrices[:, -1].mean(1)
        known = [each for each in lost if each is not None]
        rows.append(
            {
                "learner": name,
                "title": LEARNERS[name].title,
                "scenario": "task" if LEARNERS[name].told else "domain",
                "replay": LEARNERS[name].replay,
                "seeds": len(found),
                "energy_score_mean": round(float(final.mean()), 4),
                "energy_score_std": round(float(final.std(ddof=1)) if len(final) > 1 else 0.0, 4),
                "forgetting": round(float(np.mean(known)), 4) if known else None,
                "forgetting_std": round(float(np.std(known, ddof=1)), 4) if len(known) > 1 else None,
                "identified": round(float(np.mean([each["identified"] for each in found])), 4)
                if "identified" in found[0]
                else None,
                "seconds": round(float(np.mean([each["seconds"] for each in found])), 1),
                "memory": found[0]["memory"],
                "matrix": [[None if np.isnan(v) else round(float(v), 4) for v in row] for row in matrices.mean(0)],
            }
        )
    return {
        "protocol": {
            "command": command,
            "behaviours": list(trial.names),
            "collected": dict(trial.collected),
            "content_hashes": [Store.open(path).info()["content_hash"] for path in trial.stores],
            "steps": trial.steps,
            "batch": trial.batch,
            "width": trial.width,
            "split": trial.split,
            "starts_at": list(trial.first),
            "horizon": trial.horizon,
            "samples": trial.samples,
            "seeds": list(trial.seeds),
            "machine": machine(),
            "versions": versions(),
        },
        "rows": rows,
    }
