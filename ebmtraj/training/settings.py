"""How long and how to train."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from ebmtraj.errors import EbmtrajError
from ebmtraj.training.guard import GuardConfig
from ebmtraj.training.spread import Precision


@dataclass(frozen=True)
class TrainingConfig:
    """How long and how to train; the budget is in steps, so that a run reproduces to the bit.

    Raises `EbmtrajError` for a setting out of its range.
    """

    steps: int = 30_000  # optimiser steps, all stages together
    seconds: float | None = None  # instead of steps: time a few, then take as many as fit (written to the run as steps)
    episodes: int = 0  # of the training split, its first ones, for curves over the amount of data; 0: all
    batch: int = 512  # of all processes together
    accumulate: int = 1  # parts that a process works its share of a batch through in, which saves memory
    precision: Precision = "fp32"  # bf16: losses under bfloat16 autocast; validation and weights stay fp32
    learning_rate: float = 1e-3  # of Adam, after its warm-up
    warmup: int = 200  # steps of linear warm-up
    constant: float = 0.4  # share of the steps before the cosine decay begins
    beta1: float = 0.9  # of Adam
    ema: float = 0.999  # decay of the averaged weights, which are the ones that are kept
    clip: float = 10.0  # bound on the gradient norm
    check_every: int = 500  # steps between validation, checkpoint and resume state
    log_every: int = 50  # steps between rows of metrics
    validation: int = 8192  # validation transitions at most, always the same ones
    seed: int = 0  # of weights, batches and noise
    threads: int = 1  # CPU threads; another number gives other bits
    guard: GuardConfig = field(default_factory=GuardConfig)  # what is a divergence, and what then

    def __post_init__(self) -> None:
        for name in ("steps", "batch", "learning_rate", "check_every", "log_every", "validation", "clip", "accumulate"):
            if getattr(self, name) <= 0:
                raise EbmtrajError(f"training.{name} = {getattr(self, name)} must be above 0")
        if self.threads < 0 or not 0 <= self.seed < 2**63:
            raise EbmtrajError(
                f"training: threads = {self.threads}, seed = {self.seed}; it needs threads >= 0 and seed < 2^63"
            )
        if self.precision not in ("fp32", "bf16"):
            raise EbmtrajError(f"training.precision = {self.precision!r}; use fp32 or bf16")
        if self.batch % self.accumulate:
            raise EbmtrajError(
                f"training: batch = {self.batch} is no multiple of accumulate = {self.accumulate}; change one of them"
            )
        if self.episodes < 0:
            raise EbmtrajError(f"training.episodes = {self.episodes} must be 0 (all of the split's) or above")
        if self.seconds is not None and not 0 < self.seconds < math.inf:
            raise EbmtrajError(f"training.seconds = {self.seconds} must be a number above 0")
        if not 0 <= self.ema < 1 or not 0 <= self.beta1 < 1 or not 0 <= self.constant <= 1:
            raise EbmtrajError(
                f"training: ema = {self.ema}, beta1 = {self.beta1}, constant = {self.constant}; "
                "it needs 0 <= ema < 1, 0 <= beta1 < 1 and 0 <= constant <= 1"
            )
