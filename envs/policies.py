"""Policies that make data: numpy only, so that a collection worker needs no torch."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Literal, Protocol, get_args

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ebmtraj.errors import EbmtrajError
from ebmtraj.fields import Field

Mode = Literal["smooth", "uniform"]
MODES: tuple[Mode, ...] = get_args(Mode)


class Policy(Protocol):
    """Actions for B episodes at once; those of an episode depend on its own generator and states alone."""

    def reset(self, generators: Sequence[np.random.Generator]) -> None:
        """Start one episode a generator. Don't draw from the generators elsewhere until the episodes have ended."""
        ...

    def __call__(self, states: NDArray[np.float32]) -> NDArray[np.float32]:
        """Actions (B, A) for the states (B, S)."""
        ...

    def describe(self) -> dict[str, Any]:
        """JSON values that make this policy again."""
        ...


class RandomPolicy:
    """Random actions within `action_low` and `action_high` (A,), which must be finite.

    `uniform` draws a fresh action each step. `smooth` lets each action dimension wander: a stationary first-order
    autoregressive process (Ornstein-Uhlenbeck in discrete time) with a correlation time of `correlation_steps` and a
    spread of `scale` half ranges, clipped at the bounds. Correlated targets let the fingers travel their whole range,
    where white noise averages out. Raises `EbmtrajError` for other modes and for bounds that are infinite.
    """

    BLOCK = 64  # steps of noise drawn at a time from each episode's generator; changing it changes the data

    def __init__(
        self,
        action_low: ArrayLike,
        action_high: ArrayLike,
        mode: Mode = "smooth",
        correlation_steps: float = 6.0,
        scale: float = 0.7,
    ) -> None:
        low, high = np.asarray(action_low, dtype=np.float64), np.asarray(action_high, dtype=np.float64)
        if mode not in MODES:
            raise EbmtrajError(f"random policy: unknown mode {mode!r}; use one of {', '.join(MODES)}")
        if low.shape != high.shape or low.ndim != 1 or not (np.isfinite(low) & np.isfinite(high) & (low < high)).all():
            raise EbmtrajError("random policy: needs finite action bounds with low < high, one pair a dimension")
        if not (correlation_steps > 0.0 and scale > 0.0):
            raise EbmtrajError("random policy: correlation_steps and scale must be positive")
        self.mode = mode
        self.correlation_steps = float(correlation_steps)
        self.scale = float(scale)
        self._low, self._high = low.astype(np.float32), high.astype(np.float32)
        self._middle, self._half = (low + high) / 2.0, (high - low) / 2.0
        self._decay = float(np.exp(-1.0 / self.correlation_steps))

    def reset(self, generators: Sequence[np.random.Generator]) -> None:
        """Start one episode a generator."""
        self._generators = list(generators)
        self._noise = np.empty((len(self._generators), self.BLOCK, len(self._low)))
        self._drawn = 0  # steps since reset
        self._wander = np.zeros((len(self._generators), len(self._low)))

    def __call__(self, states: NDArray[np.float32]) -> NDArray[np.float32]:
        """Actions (B, A), float32; the states only give the batch size."""
        if len(states) != len(self._generators):
            raise EbmtrajError(f"random policy: {len(states)} states for {len(self._generators)} episodes; reset it first")
        step = self._drawn % self.BLOCK
        if step == 0:
            self._draw_block()
        noise = self._noise[:, step]
        if self.mode == "uniform":
            position = 2.0 * noise - 1.0
        else:
            spread = np.sqrt(1.0 - self._decay**2) if self._drawn else 1.0  # stationary from the first step
            self._wander = self._decay * self._wander + spread * noise
            position = self.scale * self._wander
        self._drawn += 1
        actions = (self._middle + self._half * position).astype(np.float32)
        return np.clip(actions, self._low, self._high)

    def _draw_block(self) -> None:
        for block, generator in zip(self._noise, self._generators, strict=True):
            block[:] = generator.random(block.shape) if self.mode == "uniform" else generator.standard_normal(block.shape)

    def describe(self) -> dict[str, Any]:
        """JSON values that make this policy again."""
        smooth = {"correlation_steps": self.correlation_steps, "scale": self.scale} if self.mode == "smooth" else {}
        return {"name": "random", "mode": self.mode, **smooth}


POLICIES: dict[str, Callable[..., Policy]] = {"random": RandomPolicy}


def make_policy(name: str, action_fields: Sequence[Field], **kwargs: Any) -> Policy:
    """A policy by its registry name for these action fields.

    Raises `EbmtrajError` for unknown names and options, and for actions without finite bounds.
    """
    if name not in POLICIES:
        raise EbmtrajError(f"unknown policy {name!r}; use one of {', '.join(POLICIES)}")
    low: list[float] = []
    high: list[float] = []
    for field in action_fields:
        if field.low is None or field.high is None:
            raise EbmtrajError(f"policy {name!r}: the action field {field.name!r} has no finite bounds to draw within")
        low.extend(field.low)
        high.extend(field.high)
    try:
        return POLICIES[name](low, high, **kwargs)
    except TypeError as error:
        raise EbmtrajError(f"policy {name!r}: {str(error).split('() ')[-1]}; options given: {sorted(kwargs)}") from error
