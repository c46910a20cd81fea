"""A learner taken through a stream: after each task it is tested on all of them."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ebmtraj.continual.learner import ClassScores, Learner
from ebmtraj.continual.registry import make_learner
from ebmtraj.continual.tasks import Scenario, Stream


@dataclass(frozen=True)
class Course:
    """What became of one learner, scenario and seed."""

    scenario: Scenario
    matrix: NDArray[np.float64]  # (T, T) accuracy on task j after task i, in [0, 1]
    images: NDArray[np.int64]  # (T,) held-out images of each task
    chance: NDArray[np.float64]  # (T,) of a guess on each task
    seconds: float  # of this thread, for learning all tasks
    test_seconds: float  # and for all tests
    memory: int  # numbers kept at the end
    scores: Tensor  # (N, A) of all held-out images at the end, where answers that can't be have minus infinity
    right: Tensor  # (N,) their right answers
    energies: Tensor | None  # (N, C), of a learner that has any
    y: Tensor  # (N,) their classes
    spare: tuple[Tensor, Tensor] | None = None  # scores (M, A) and right answers (M,) of the stream's spare images


def take_course(
    stream: Stream,
    name: str,
    scenarios: Sequence[Scenario],
    seed: int,
    changes: Mapping[str, Any] | None = None,
    device: torch.device | str = "cpu",
) -> list[Course]:
    """Learn all tasks in turn, testing after each; a learner that learns the same for all scenarios does it once.

    Raises `EbmtrajError` as the learner does.
    """
    first = make_learner(name, stream.problem(scenarios[0]), seed, changes, device)
    if first.one_for_all:
        return _course(stream, first, scenarios)
    learners = [first] + [make_learner(name, stream.problem(each), seed, changes, device) for each in scenarios[1:]]
    return [_course(stream, learner, [each])[0] for learner, each in zip(learners, scenarios, strict=True)]


def _course(stream: Stream, learner: Learner, scenarios: Sequence[Scenario]) -> list[Course]:
    x = torch.cat([test.x for test in stream.tests]).to(learner.device)
    y = torch.cat([test.y for test in stream.tests if test.y is not None]).to(learner.device)
    sizes = [len(test.x) for test in stream.tests]
    matrices = {each: np.zeros((len(sizes), len(sizes))) for each in scenarios}
    learning = testing = 0.0
    energies: Tensor | None = None
    final: dict[Scenario, tuple[Tensor, Tensor]] = {}
    for number, task in enumerate(stream.tasks):
        began = time.thread_time()
        learner.observe(task)
        learned = time.thread_time()
        learning += learned - began
        energies = learner.energies(x) if isinstance(learner, ClassScores) else None
        for each in scenarios:
            learner.problem = stream.problem(each)
            scores = (
                learner.answers(energies) if isinstance(learner, ClassScores) and energies is not None else learner.scores(x)
            )
            right = learner.problem.right(y)
            told = [learner.allowed(part, place) for place, part in enumerate(scores.split(sizes))]
            matrices[each][number] = [
                float((part.argmax(1) == own).double().mean()) for part, own in zip(told, right.split(sizes), strict=True)
            ]
            final[each] = (torch.cat(told), right)
        testing += time.thread_time() - learned
    courses, spare = [], stream.spare
    spare_energies = learner.energies(spare.x.to(x)) if spare is not None and isinstance(learner, ClassScores) else None
    for each in scenarios:
        answers = stream.problem(each).answers
        chance = [0.0 if each == "class" else 1 / (answers if each == "domain" else len(plan)) for plan in stream.plan]
        scores, right = final[each]
        learner.problem, kept = stream.problem(each), None
        if spare is not None and spare.y is not None and each != "task":
            found = learner.scores(spare.x.to(x)) if spare_energies is None else learner.answers(spare_energies)  # type: ignore[attr-defined]
            kept = (found.cpu(), learner.problem.right(spare.y))
        courses.append(
            Course(
                each,
                matrices[each],
                np.array(sizes),
                np.array(chance),
                learning,
                testing,
                learner.memory(),
                scores.cpu(),
                right.cpu(),
                None if energies is None else energies.cpu(),
                y.cpu(),
                kept,
            )
        )
    return courses
