"""Learners of a robot's behaviours: transition energies that see one behaviour after the other."""

from __future__ import annotations

import abc
import copy
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from ebmtraj import config as recipes
from ebmtraj.datasets.store import Store
from ebmtraj.datasets.windows import Transitions
from ebmtraj.runs import Run
from ebmtraj.training.loop import train
from ebmtraj.training.settings import TrainingConfig
from ebmtraj.trajectories.model import TransitionModel
from ebmtraj.trajectories.registry import make_model
from ebmtraj.trajectories.rollout import rollout


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
