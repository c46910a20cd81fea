"""The contract of every learner: it observes tasks one after the other and predicts at any time."""

from __future__ import annotations

import abc
from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from ebmtraj.continual.tasks import Problem, Task
from ebmtraj.errors import EbmtrajError


class Learner(abc.ABC):
    """Learns tasks one after the other; a subclass gives `name`, `title`, `Config`, `_learn` and `scores`.

    What it keeps between tasks is counted by `memory`; images of earlier tasks may be among it only where `replay` says so.
    """

    name: ClassVar[str]
    title: ClassVar[str]
    Config: ClassVar[type]
    replay: ClassVar[bool] = False  # whether it keeps images of earlier tasks, or sees them again
    neural: ClassVar[bool] = True  # whether its fit depends on a seed
    one_for_all: ClassVar[bool] = False  # whether it learns the same whatever it will be asked

    def __init__(self, problem: Problem, config: Any = None, seed: int = 0, device: torch.device | str = "cpu") -> None:
        """Draws its weights from `seed`, as all that is random in it."""
        self.problem, self.device = problem, torch.device(device)
        self.config = self.Config() if config is None else config
        self.generator = torch.Generator(device=self.device).manual_seed(seed)
        self.seen: list[int] = []  # classes so far, in their order
        self.shift, self.scale = 0.0, 1.0

    @property
    def number(self) -> int:
        """How many tasks it has observed."""
        return sum(set(plan) <= set(self.seen) for plan in self.problem.plan)

    def observe(self, task: Task) -> None:
        """Learn the next task.

        Raises `EbmtrajError` where the task has no labels, or labels that are not its own, and for a task that is out of
        turn.
        """
        number = self.number
        if number == len(self.problem.plan):
            raise EbmtrajError(f"learner {self.name} has seen all {number} tasks; make a new one")
        if task.number != number or tuple(task.classes) != self.problem.plan[number]:
            raise EbmtrajError(f"learner {self.name}: task {task.number} comes out of turn; task {number} is next")
        if task.y is None:
            raise EbmtrajError(f"learner {self.name} needs labels, and task {task.number} has none; label its images")
        if task.x.dim() != 2 or task.x.shape[1] != self.problem.size or len(task.x) != len(task.y) or not len(task.x):
            raise EbmtrajError(
                f"learner {self.name}: task {task.number} has images {tuple(task.x.shape)} and {len(task.y)} labels; "
                f"it needs (N, {self.problem.size}) and N labels, N >= 1"
            )
        if not bool(torch.isin(task.y, torch.tensor(task.classes, device=task.y.device)).all()):
            raise EbmtrajError(f"learner {self.name}: task {task.number} has labels of classes that are not its own")
        x, y = task.x.to(self.device), task.y.to(self.device)
        for label in task.classes:
            if not bool((y == label).any()):
                raise EbmtrajError(f"learner {self.name}: task {task.number} has no image of its class {label}")
        if not self.seen:  # pixels are scaled by what the first task shows: nothing is known of later ones
            self.shift, self.scale = float(x.mean()), float(x.std().clamp_min(1e-3))
        self._learn(x, y, tuple(task.classes))
        self.seen += task.classes

    @abc.abstractmethod
    def _learn(self, x: Tensor, y: Tensor, classes: tuple[int, ...]) -> None:
        """Learn from images `(N, D)` in [0, 1] of these classes `(N,)`; `self.seen` holds the earlier ones."""

    @abc.abstractmethod
    def scores(self, x: Tensor) -> Tensor:
        """What speaks for each answer, `(B, D) -> (B, A)`: logits, or minus energies where these compare."""

    def predict(self, x: Tensor, task: int | None = None) -> Tensor:
        """The answers, `(B, D) -> (B,)`; in the task-incremental scenario `task` is told, else it is not looked at.

        Raises `EbmtrajError` before the first task, and where the task is not told although the scenario has it.
        """
        if not self.seen:
            raise EbmtrajError(f"learner {self.name} has seen no task yet; observe one first")
        return self.allowed(self.scores(x.to(self.device)), task).argmax(1)

    def allowed(self, scores: Tensor, task: int | None) -> Tensor:
        """`scores` `(B, K)` with minus infinity where an answer can't be: classes not seen, or of another task than is told.

        Raises `EbmtrajError` where the task is not told although the scenario has it.
        """
        scenario, may = self.problem.scenario, list(range(scores.shape[1]))
        if scenario == "class":
            may = self.seen
        if scenario == "task":
            if task is None:
                raise EbmtrajError(f"learner {self.name}: in the task-incremental scenario the task must be told")
            may = list(self.problem.plan[task])
        out = torch.full_like(scores, -torch.inf)
        out[:, may] = scores[:, may]
        return out

    @abc.abstractmethod
    def memory(self) -> int:
        """Numbers that are kept from task to task: weights, copies of them, importances, means, images."""

    def unit(self, x: Tensor) -> Tensor:
        """Pixels `(B, D)` scaled to mean 0 and spread 1 over the first task's images."""
        return (x - self.shift) / self.scale


class ClassScores(Learner):
    """A learner with a score for each class that was seen, from which all three questions are answered."""

    one_for_all = True

    @abc.abstractmethod
    def energies(self, x: Tensor) -> Tensor:
        """E(x | y) of all classes, `(B, D) -> (B, C)`; those of classes not seen yet are not looked at."""

    def scores(self, x: Tensor) -> Tensor:
        """Minus energies; in the domain-incremental scenario those of a mixture over the tasks seen (OR)."""
        return self.answers(self.energies(x.to(self.device)))

    def answers(self, energy: Tensor) -> Tensor:
        """Scores of each answer from energies of each class, `(B, C) -> (B, A)`."""
        if self.problem.scenario != "domain":
            return -energy
        answer = self.problem.answer_of()
        out = torch.full((len(energy), self.problem.answers), -torch.inf, device=energy.device)
        for place in range(self.problem.answers):
            own = [label for label in self.seen if int(answer[label]) == place]
            if own:
                out[:, place] = torch.logsumexp(-energy[:, own], dim=1)
        return out


def count(tensors: Sequence[Tensor] | nn.Module) -> int:
    """How many numbers these tensors, of any shape, hold."""
    own = list(tensors.parameters()) if isinstance(tensors, nn.Module) else tensors
    return sum(tensor.numel() for tensor in own)
