"""The few lines that every neural learner takes its steps with."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ebmtraj.errors import DivergedError, EbmtrajError

WIDTH, DEPTH = 400, 2  # of every network here, as in paper 000, section 6


@dataclass(frozen=True)
class StepsConfig:
    """Steps of Adam on each task. Raises `EbmtrajError` for a setting out of its range."""

    steps: int = 200  # a task
    batch: int = 64  # examples a step
    learning_rate: float = 1e-3  # at a task's start; Adam's moments start anew with each task
    beta1: float = 0.9  # of Adam
    decay: bool = True  # linearly to 0 over a task's steps

    def __post_init__(self) -> None:
        if self.steps < 1 or self.batch < 1 or not self.learning_rate > 0 or not 0 <= self.beta1 < 1:
            raise EbmtrajError(
                f"settings: steps = {self.steps}, batch = {self.batch}, learning_rate = {self.learning_rate}, beta1 = "
                f"{self.beta1}; it needs steps and batch >= 1, learning_rate > 0 and 0 <= beta1 < 1"
            )


def take_steps(
    name: str,
    parameters: Sequence[Tensor],
    loss: Callable[[Tensor], Tensor],
    rows: int,
    config: StepsConfig,
    generator: torch.Generator,
    *,
    before: Callable[[], None] = lambda: None,
    after: Callable[[], None] = lambda: None,
) -> None:
    """Adam on `loss` of the numbers of a batch's images `(B,)`, drawn from `rows` with replacement.

    `before` is called between gradient and step, `after` behind each step. Raises `DivergedError` where the loss is not
    finite in the end.
    """
    optimiser = torch.optim.Adam(list(parameters), lr=config.learning_rate, betas=(config.beta1, 0.999))
    value = torch.zeros(())
    for step in range(config.steps):
        if config.decay:
            for group in optimiser.param_groups:
                group["lr"] = config.learning_rate * (1 - step / config.steps)
        index = torch.randint(rows, (config.batch,), generator=generator, device=generator.device)
        value = loss(index)
        optimiser.zero_grad()
        value.backward()
        before()
        optimiser.step()
        after()
    if not bool(value.isfinite().all()):
        raise DivergedError(f"learner {name} diverged (loss {float(value):g}); use a lower learning_rate")
