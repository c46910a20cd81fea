"""Classifiers that see images again: a few that were kept, or all.

Chaudhry et al. 2019, "On tiny episodic memories in continual learning".
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from ebmtraj.continual.learner import count
from ebmtraj.continual.softmax import FineTune, SoftmaxConfig, cross_entropy
from ebmtraj.continual.steps import take_steps
from ebmtraj.errors import EbmtrajError


@dataclass(frozen=True)
class ReplayConfig(SoftmaxConfig):
    """Keeping images. Raises `EbmtrajError` for a setting out of its range."""

    kept: int = 20  # images a class; 0: all

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.kept < 0:
            raise EbmtrajError(f"settings: kept = {self.kept}; it needs kept >= 0")


class Replay(FineTune):
    """Half of each batch from a few images kept of every earlier class."""

    name = "replay"
    title = "replay of 20 images a class"
    Config = ReplayConfig
    config: ReplayConfig
    replay = True

    def __init__(self, *given: object, **named: object) -> None:
        super().__init__(*given, **named)
        self.images = torch.zeros((0, self.problem.size), device=self.device)
        self.labels = torch.zeros(0, dtype=torch.int64, device=self.device)

    def _learn(self, x: Tensor, y: Tensor, classes: tuple[int, ...]) -> None:
        old_x, old_y = self.unit(self.images), self.problem.right(self.labels)
        own_x, own_y, active = self.unit(x), self.problem.right(y), self.active(classes)

        def loss(index: Tensor) -> Tensor:
            if not len(old_x):
                return cross_entropy(self.net(own_x[index]), own_y[index], active)
            again = torch.randint(len(old_x), (len(index) // 2,), generator=self.generator, device=self.device)
            own = index[len(again) :]
            logits = self.net(torch.cat((old_x[again], own_x[own])))
            right = torch.cat((old_y[again], own_y[own]))
            if self.problem.scenario == "task":
                return self._by_task(logits, right)
            return cross_entropy(logits, right, active)

        take_steps(self.name, list(self.net.parameters()), loss, len(x), self.config, self.generator)
        for label in classes:
            rows = torch.where(y == label)[0]
            order = torch.randperm(len(rows), generator=self.generator, device=self.device)
            chosen = rows[order[: self.config.kept or len(rows)]]
            self.images = torch.cat((self.images, x[chosen]))
            self.labels = torch.cat((self.labels, y[chosen]))

    def _by_task(self, logits: Tensor, right: Tensor) -> Tensor:
        """Each image's softmax over its own task's classes."""
        owner = torch.zeros(self.problem.classes, dtype=torch.int64, device=logits.device)
        for number, classes in enumerate(self.problem.plan):
            owner[list(classes)] = number
        other = owner[None, :] != owner[right][:, None]
        return F.cross_entropy(logits.masked_fill(other, -torch.inf), right)

    def memory(self) -> int:
        """Weights and images."""
        return super().memory() + count([self.images])


class Joint(Replay):
    """A fresh network on all images of all tasks so far: the upper bound of a classifier of this size."""

    name = "joint"
    title = "joint training (upper bound)"

    def _learn(self, x: Tensor, y: Tensor, classes: tuple[int, ...]) -> None:
        self.images, self.labels = torch.cat((self.images, x)), torch.cat((self.labels, y))
        for layer in self.net:
            if isinstance(layer, torch.nn.Linear):
                bound = layer.in_features**-0.5
                for p in layer.parameters():
                    p.data.uniform_(-bound, bound, generator=self.generator)
        own_x, right, active = self.unit(self.images), self.problem.right(self.labels), [*self.seen, *classes]
        if self.problem.scenario == "domain":
            active = list(range(self.problem.answers))

        def loss(index: Tensor) -> Tensor:
            logits = self.net(own_x[index])
            if self.problem.scenario == "task":
                return self._by_task(logits, right[index])
            return cross_entropy(logits, right[index], active)

        # as many steps an image as the other learners have, whose networks have been through all earlier tasks, too
        config = dataclasses.replace(self.config, steps=self.config.steps * (1 + self.number))
        take_steps(self.name, list(self.net.parameters()), loss, len(own_x), config, self.generator)
