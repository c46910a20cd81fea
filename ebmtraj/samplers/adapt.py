"""Step sizes that adapt to a target acceptance."""

from __future__ import annotations

import math

import torch
from torch import Tensor

SHRINK, SLOW, FORGET = 0.05, 10, 0.75  # gamma, t0 and kappa of Hoffman and Gelman 2014, section 3.2.1


class StepSize:
    """Dual averaging of a log step size (Hoffman and Gelman 2014, algorithm 5), on the device and without a look at it.

    `exploring` is the size to try next, `settled` the one to keep; both are the first one until the first update. `groups`
    adapts that many step sizes side by side. Sizes have the shape `groups`, `()` for one; `like` gives dtype and device.
    """

    def __init__(self, first: float, target: float, like: Tensor, groups: tuple[int, ...] = ()) -> None:
        self.target, self.count = target, 0
        self.middle = math.log(10 * first)
        self.log_exploring = torch.full(groups, math.log(first), dtype=like.dtype, device=like.device)
        self.log_settled = self.log_exploring
        self.error = torch.zeros_like(self.log_exploring)
        self.settled = self.exploring = torch.exp(self.log_exploring)

    def update(self, acceptance: Tensor) -> None:
        """Take in the mean acceptance of a step, of the shape `groups`, as the step sizes: `()` for one."""
        self.count += 1
        share = 1 / (self.count + SLOW)
        self.error = (1 - share) * self.error + share * (self.target - acceptance)
        self.log_exploring = self.middle - self.count**0.5 / SHRINK * self.error
        weight = self.count**-FORGET
        self.log_settled = weight * self.log_exploring + (1 - weight) * self.log_settled
        self.exploring, self.settled = torch.exp(self.log_exploring), torch.exp(self.log_settled)
