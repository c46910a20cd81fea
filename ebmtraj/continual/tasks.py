"""The protocol: classes split into tasks that come one after the other, and three questions that may be asked afterwards.

Confusing the three is the field's standing mistake (van de Ven & Tolias 2019; Hsu et al. 2018): figures of one say nothing
of another.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor

from ebmtraj.datasets.images import ImageStore
from ebmtraj.errors import EbmtrajError

Scenario = Literal["class", "task", "domain"]
SCENARIOS: tuple[Scenario, ...] = get_args(Scenario)
SAYS: dict[Scenario, str] = {
    "class": "class-incremental: which of all classes so far? The task is not told",
    "task": "task-incremental: which of this task's classes? The task is told",
    "domain": "domain-incremental: which place in its task (first class, second, ...)? The task is not told",
}


@dataclass(frozen=True)
class Split:
    """Images of some classes."""

    x: Tensor  # (N, D) pixels in [0, 1], flat
    y: Tensor | None  # (N,) int64 class among all classes of the stream; None where nobody knows


@dataclass(frozen=True)
class Task:
    """What a learner is given at a time."""

    number: int
    classes: tuple[int, ...]
    x: Tensor  # (N, D) pixels in [0, 1], flat
    y: Tensor | None  # (N,) int64 class among all classes of the stream


@dataclass(frozen=True)
class Problem:
    """What a learner knows before the first task: sizes, the plan of classes, and what it will be asked.

    Raises `EbmtrajError` for an unknown scenario, and for a plan that does not share out the classes.
    """

    size: int  # D, numbers of an image
    plan: tuple[tuple[int, ...], ...]  # classes of each task
    scenario: Scenario = "class"

    def __post_init__(self) -> None:
        if self.scenario not in SCENARIOS:
            raise EbmtrajError(f"unknown scenario {self.scenario!r}; use one of {', '.join(SCENARIOS)}")
        check_plan(self.plan, sum(map(len, self.plan)))

    @property
    def classes(self) -> int:
        """How many classes there are in all."""
        return sum(map(len, self.plan))

    @property
    def answers(self) -> int:
        """How many answers there are: classes, or in the domain-incremental scenario places in a task."""
        return max(map(len, self.plan)) if self.scenario == "domain" else self.classes

    def answer_of(self) -> Tensor:
        """The answer that is right for each class, `(C,)`."""
        answer = torch.arange(self.classes)
        if self.scenario == "domain":
            for classes in self.plan:
                answer[list(classes)] = torch.arange(len(classes))
        return answer

    def right(self, y: Tensor) -> Tensor:
        """The right answers for classes `(N,)`."""
        return self.answer_of().to(y.device)[y]


def check_plan(plan: Sequence[Sequence[int]], classes: int) -> None:
    """Raise `EbmtrajError` where a class is in two tasks, in none, or not there, or a task is empty."""
    owner: dict[int, int] = {}
    for number, task in enumerate(plan):
        if not task:
            raise EbmtrajError(f"task {number} has no classes; give each task at least one")
        for label in task:
            if not 0 <= label < classes:
                raise EbmtrajError(f"task {number} asks for class {label}; classes go from 0 to {classes - 1}")
            if label in owner:
                raise EbmtrajError(f"class {label} is in task {owner[label]} and in task {number}; tasks must not overlap")
            owner[label] = number
    missing = sorted(set(range(classes)) - set(owner))
    if missing:
        raise EbmtrajError(f"class {missing[0]} is in no task; every class needs one (missing: {missing})")


def even_plan(classes: int, size: int = 2) -> tuple[tuple[int, ...], ...]:
    """Classes in their order, `size` a task; the last may have fewer.

    Raises `EbmtrajError` where that makes fewer than two tasks.
    """
    plan = tuple(tuple(range(first, min(first + size, classes))) for first in range(0, classes, max(1, size)))
    if size < 1 or len(plan) < 2:
        raise EbmtrajError(f"{classes} classes in tasks of {size} make {len(plan)} task(s); at least two are needed")
    return plan


def parse_plan(text: str, names: Sequence[str]) -> tuple[tuple[int, ...], ...]:
    """A plan such as "0,1|2,3", of class numbers or of their names; raises `EbmtrajError` as `check_plan` does."""
    plan = []
    for part in text.split("|"):
        task = []
        for word in filter(None, (piece.strip() for piece in part.split(","))):
            if word in names:
                task.append(list(names).index(word))
            elif word.isdigit():
                task.append(int(word))
            else:
                raise EbmtrajError(
                    f"--tasks: unknown class {word!r}; use numbers from 0 to {len(names) - 1} or {', '.join(names)}"
                )
        plan.append(tuple(task))
    check_plan(plan, len(names))
    return tuple(plan)


@dataclass(frozen=True)
class Stream:
    """Tasks in their order, and what each learner is tested on."""

    plan: tuple[tuple[int, ...], ...]
    tasks: tuple[Task, ...]
    tests: tuple[Split, ...]  # held-out images of each task
    spare: Split | None = None  # images of all classes that nothing is trained or tested on, for a temperature

    def problem(self, scenario: Scenario) -> Problem:
        """What a learner is told of it beforehand."""
        return Problem(self.tasks[0].x.shape[1], self.plan, scenario)


def make_stream(store: ImageStore, plan: Sequence[Sequence[int]], split: str = "test") -> Stream:
    """The tasks of a labelled image store: training images, and those of `split` for tests.

    Raises `EbmtrajError` where the store has no labels, the plan does not fit its classes, or a class has no images.
    """
    if not store.classes:
        raise EbmtrajError(f"image store {store.path} has no labels; tasks are made of classes")
    check_plan(plan, len(store.classes))
    found = {}
    for name in dict.fromkeys(("train", split, "validation")):
        images = store.read(name)
        assert images.labels is not None
        found[name] = Split(torch.from_numpy(images.pixels).flatten(1), torch.from_numpy(images.labels).long())
    tasks, tests = [], []
    for number, classes in enumerate(plan):
        for label in classes:
            for name in ("train", split):
                part = found[name]
                if part.y is None or not bool((part.y == label).any()):
                    raise EbmtrajError(
                        f"image store {store.path}: class {label} has no {name} images; leave it out or add some"
                    )
        train, test = (_of_classes(found[name], classes) for name in ("train", split))
        tasks.append(Task(number, tuple(classes), train.x, train.y))
        tests.append(test)
    return Stream(
        tuple(tuple(task) for task in plan), tuple(tasks), tuple(tests), found["validation"] if split == "test" else None
    )


def _of_classes(part: Split, classes: Sequence[int]) -> Split:
    assert part.y is not None
    rows = torch.isin(part.y, torch.tensor(classes))
    return Split(part.x[rows], part.y[rows])
