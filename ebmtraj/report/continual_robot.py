"""Behaviours of a robot learnt one after the other by a transition energy, and tested on all of them.

Domain-incremental: which behaviour it is, is not told in a test, unless a row says so.
"""

from __future__ import annotations

import abc
import copy
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from threadpoolctl import threadpool_limits
from torch import Tensor

from ebmtraj import config as recipes
from ebmtraj.collect import CollectConfig, collect
from ebmtraj.datasets.store import Store
from ebmtraj.datasets.windows import Transitions, trajectories
from ebmtraj.device import no_denormals, use_threads
from ebmtraj.errors import EbmtrajError
from ebmtraj.evaluation.scores import energy_score
from ebmtraj.parallel import open_pool
from ebmtraj.report.jobs import OUTCOME, finite, open_folder
from ebmtraj.runs import Run, cores, machine, read_json, versions, write_json
from ebmtraj.training.loop import train
from ebmtraj.training.settings import TrainingConfig
from ebmtraj.trajectories.model import TransitionModel
from ebmtraj.trajectories.registry import make_model
from ebmtraj.trajectories.rollout import rollout

AXES = ("+x", "-x", "+y", "-y", "+z", "-z")


@dataclass(frozen=True)
class RobotTrial:
    """What is compared, and how."""

    stores: tuple[str, ...]  # one a behaviour, in their order
    names: tuple[str, ...]  # of the behaviours
    learners: tuple[str, ...]
    seeds: tuple[int, ...]
    runs: Path
    steps: int = 1000  # of training on each behaviour
    batch: int = 256
    width: int = 128
    split: str = "test"
    first: tuple[int, ...] = (10, 30)  # steps of an episode where futures begin
    horizon: int = 20  # steps of a future
    samples: int = 8  # futures of each start
    collected: Mapping[str, Any] = field(default_factory=dict, hash=False)  # how the stores were made, for the record

    def alike(self) -> dict[str, Any]:
        """What all jobs have in common, and what a resumed one may not change."""
        keys = ("names", "steps", "batch", "width", "split", "first", "horizon", "samples")
        hashes = [Store.open(path).info()["content_hash"] for path in self.stores]
        plain: dict[str, Any] = recipes.to_plain({key: getattr(self, key) for key in keys})
        return {"compares": "continual-robot", "stores": hashes, **plain}


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


class BehaviourLearner(abc.ABC):
    """Learns transitions of one behaviour after the other: `observe(data)`, then `sample(start)` at any time."""

    name: ClassVar[str]
    title: ClassVar[str]
    replay: ClassVar[bool] = False
    told: ClassVar[bool] = False  # whether it is told in a test which behaviour it is

    def __init__(self, trial: RobotTrial, store: Store, seed: int, folder: Path) -> None:
        self.trial, self.store, self.seed, self.folder = trial, store, seed, folder
        self.number = 0  # behaviours observed

    def observe(self, data: Transitions, held_out: Transitions) -> None:
        """Learn the next behaviour."""
        self._learn(data, held_out)
        self.number += 1

    @abc.abstractmethod
    def _learn(self, data: Transitions, held_out: Transitions) -> None: ...

    @abc.abstractmethod
    def sample(self, start: Tensor, steps: int, generator: torch.Generator, behaviour: int) -> Tensor:
        """One future of each start, `(N, S) -> (N, T+1, S)`; only a learner that is `told` may look at the behaviour."""

    @abc.abstractmethod
    def memory(self) -> int:
        """Numbers kept between behaviours."""

    def fresh(self) -> TransitionModel:
        """An untrained transition energy: an explicit base and an energy of its residual."""
        network = {"width": self.trial.width}
        store = self.store
        return make_model("dsm", store.state_fields, store.action_fields, actions=False, network=network, seed=self.seed)

    def train(self, model: TransitionModel, data: Transitions, held_out: Transitions, times: int = 1) -> None:
        """Train both stages of a model, all its weights free."""
        defaults: dict[str, Any] = model.training_defaults
        steps = self.trial.steps * times
        config = TrainingConfig(
            steps=steps, batch=self.trial.batch, seed=self.seed, check_every=max(1, steps // 8), **defaults
        )
        model.train()
        model.requires_grad_(True)
        folder = self.folder / "training"
        shutil.rmtree(folder, ignore_errors=True)
        train(model, data, held_out, config, Run.create(folder))
        shutil.rmtree(folder, ignore_errors=True)


def _size(model: torch.nn.Module) -> int:
    return sum(p.numel() for p in model.parameters())


class FineTuned(BehaviourLearner):
    """One model that is trained on, with the statistics of the first behaviour; the range of states grows with each."""

    name = "fine-tune"
    title = "fine-tuning"
    refit = False

    def __init__(self, trial: RobotTrial, store: Store, seed: int, folder: Path) -> None:
        super().__init__(trial, store, seed, folder)
        self.model = self.fresh()

    def _learn(self, data: Transitions, held_out: Transitions) -> None:
        old = self.model.normaliser
        low, high = old.state_low, old.state_high
        if self.number == 0 or self.refit:
            self.model.prepare(data)
        if self.number:
            own = copy.deepcopy(self.model.normaliser).fit(data)
            self.model.normaliser.state_low = torch.minimum(low, own.state_low)
            self.model.normaliser.state_high = torch.maximum(high, own.state_high)
        self.train(self.model, data, held_out)

    def sample(self, start: Tensor, steps: int, generator: torch.Generator, behaviour: int) -> Tensor:
        """Futures of the one model."""
        return rollout(self.model, start, steps, generator=generator)

    def memory(self) -> int:
        """The weights."""
        return _size(self.model)


class RefittedFineTuned(FineTuned):
    """The same, with the statistics that scale states and increments taken anew from each behaviour."""

    name = "fine-tune-refit"
    title = "fine-tuning, statistics taken anew"
    refit = True


class Mixture(BehaviourLearner):
    """An energy for each behaviour, added up as a mixture (OR) over pairs: ours.

    E(s, s') = -log sum_k exp(-E_k(s) - E_k(s' | s)): E_k(s' | s) is behaviour k's transition energy, begun from the weights
    of the one before and frozen afterwards, E_k(s) that of a Gaussian over its states. A future draws k in proportion to
    exp(-E_k(s_0)) and stays with it, as behaviours do.
    """

    name = "mixture"
    title = "mixture of energies, one a behaviour"

    def __init__(self, trial: RobotTrial, store: Store, seed: int, folder: Path) -> None:
        super().__init__(trial, store, seed, folder)
        self.experts: list[TransitionModel] = []
        self.states: list[tuple[Tensor, Tensor]] = []  # mean (F,) and root of the precision (F, F) of a behaviour's states

    def _learn(self, data: Transitions, held_out: Transitions) -> None:
        model = copy.deepcopy(self.experts[-1]) if self.experts else self.fresh()
        model.prepare(data)
        self.train(model, data, held_out)
        self.experts.append(model.requires_grad_(False))
        features = self._features(data.state)
        mean = features.mean(0)
        centred = (features - mean).double()
        covariance = centred.T @ centred / len(centred)
        covariance += 1e-3 * covariance.diagonal().mean() * torch.eye(len(covariance), dtype=torch.float64)
        self.states.append((mean, torch.linalg.inv(torch.linalg.cholesky(covariance)).float()))

    def _features(self, state: Tensor) -> Tensor:
        """What a Gaussian sees of states: joints and place in the first behaviour's spread, rotations as matrices."""
        first = self.experts[0].normaliser
        return (first.increments.features(state) - first.feature_mean) / first.feature_scale

    def state_energy(self, state: Tensor) -> Tensor:
        """E_k(s) of each behaviour so far, `(N, S) -> (N, K)`."""
        x = self._features(state)
        energies = [0.5 * ((x - mean) @ root.T).square().sum(1) - root.diagonal().log().sum() for mean, root in self.states]
        return torch.stack(energies, dim=1)

    def sample(self, start: Tensor, steps: int, generator: torch.Generator, behaviour: int) -> Tensor:
        """Futures, each of a behaviour drawn by its state's energy."""
        chosen = torch.multinomial((-self.state_energy(start)).softmax(1), 1, generator=generator)[:, 0]
        return self._of(chosen, start, steps, generator)

    def _of(self, chosen: Tensor, start: Tensor, steps: int, generator: torch.Generator) -> Tensor:
        out = start.new_zeros((len(start), steps + 1, start.shape[1]))
        for k, expert in enumerate(self.experts):
            rows = torch.where(chosen == k)[0]
            if len(rows):
                out[rows] = rollout(expert, start[rows], steps, generator=generator)
        return out

    def memory(self) -> int:
        """All weights and Gaussians."""
        gaussians = sum(mean.numel() + mean.numel() * (mean.numel() + 1) // 2 for mean, _ in self.states)
        return sum(map(_size, self.experts)) + gaussians


class ToldMixture(Mixture):
    """The same in the task-incremental scenario: the behaviour is told."""

    name = "mixture-told"
    title = "the same, behaviour told (task-incremental)"
    told = True

    def sample(self, start: Tensor, steps: int, generator: torch.Generator, behaviour: int) -> Tensor:
        """Futures of the behaviour that is told; of the latest one where it is not known yet."""
        k = min(behaviour, len(self.experts) - 1)
        return self._of(torch.full((len(start),), k), start, steps, generator)


class JointlyTrained(BehaviourLearner):
    """One model on all behaviours so far, begun anew when the last one comes: the upper bound of a single model."""

    name = "joint"
    title = "joint training"
    replay = True

    def __init__(self, trial: RobotTrial, store: Store, seed: int, folder: Path) -> None:
        super().__init__(trial, store, seed, folder)
        self.model = self.fresh()
        self.seen: list[tuple[Transitions, Transitions]] = []

    def _learn(self, data: Transitions, held_out: Transitions) -> None:
        self.seen.append((data, held_out))
        if len(self.seen) < len(self.trial.stores):
            return  # what it would be meanwhile is not asked
        together, checks = (_together([pair[part] for pair in self.seen]) for part in (0, 1))
        self.model.prepare(together)
        self.train(self.model, together, checks, times=len(self.seen))

    def sample(self, start: Tensor, steps: int, generator: torch.Generator, behaviour: int) -> Tensor:
        """Futures of the one model."""
        return rollout(self.model, start, steps, generator=generator)

    def memory(self) -> int:
        """Weights and all data."""
        return _size(self.model) + sum(data.state.numel() for data, _ in self.seen)


def _together(parts: Sequence[Transitions]) -> Transitions:
    """Transitions of several stores as one."""
    places = np.cumsum([0, *(len(part.state) for part in parts)])
    rows = torch.cat([part.rows + int(place) for part, place in zip(parts, places, strict=False)])
    return Transitions(torch.cat([part.state for part in parts]), None, rows, rows)


LEARNERS: Mapping[str, type[BehaviourLearner]] = {
    learner.name: learner for learner in (Mixture, ToldMixture, FineTuned, RefittedFineTuned, JointlyTrained)
}


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
        with open_pool(min(workers or cores(), len(waiting))) as pool:
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
