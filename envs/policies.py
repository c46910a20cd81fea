"""Policies that make data: numpy only, so that a collection worker needs no torch."""

from __future__ import annotations

import hashlib
import importlib
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal, Protocol, get_args

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ebmtraj.envs.trained import TrainedPolicy
from ebmtraj.errors import EbmtrajError
from ebmtraj.fields import Field

Mode = Literal["smooth", "uniform"]
MODES: tuple[Mode, ...] = get_args(Mode)
Rule = Literal["none", "every-4th-random", "twice"]
ACTION_RULES: tuple[Rule, ...] = get_args(Rule)


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


class GoalPolicy(RandomPolicy):
    """Straight to a goal, with a share of smooth random actions: for `ebmtraj/Particle-v0` and what is shown alike.

    Of an observation, the first A numbers are a position and the last A a goal; the action is `gain` times the way between,
    clipped, mixed with `noise` parts of `RandomPolicy`'s. Raises `EbmtrajError` where noise is not between 0 and 1.
    """

    def __init__(
        self, action_low: ArrayLike, action_high: ArrayLike, gain: float = 5.0, noise: float = 0.3, **smooth: Any
    ) -> None:
        super().__init__(action_low, action_high, **smooth)
        if not 0.0 <= noise <= 1.0 or not gain > 0.0:
            raise EbmtrajError(f"policy to-goal: gain = {gain}, noise = {noise}; it needs gain > 0 and noise from 0 to 1")
        self.gain, self.noise = float(gain), float(noise)

    def __call__(self, states: NDArray[np.float32]) -> NDArray[np.float32]:
        """Actions (B, A) for observations (B, O)."""
        random = super().__call__(states)
        size = len(self._low)
        if states.shape[1] < 2 * size:
            raise EbmtrajError(f"policy to-goal needs observations of a position and a goal, {size} numbers each")
        ahead = np.clip(self.gain * (states[:, -size:] - states[:, :size]), self._low, self._high)
        return np.clip((1.0 - self.noise) * ahead + self.noise * random, self._low, self._high).astype(np.float32)

    def describe(self) -> dict[str, Any]:
        """JSON values that make this policy again."""
        return {**super().describe(), "name": "to-goal", "gain": self.gain, "noise": self.noise}


class CallablePolicy:
    """A user's own `module:name`: any callable that takes states (B, S) and returns actions (B, A) within the bounds.

    A `reset(generators)` of the callable is called at the start of episodes with one generator each; what it returns must
    not depend on how episodes are batched, or the data depend on the number of workers. `sha256` refuses a module whose
    source is another. Raises `EbmtrajError` where it can't be imported, fails, or returns what is not an action.
    """

    def __init__(self, action_low: ArrayLike, action_high: ArrayLike, target: str, sha256: str | None = None) -> None:
        self._low, self._high = np.asarray(action_low, dtype=np.float32), np.asarray(action_high, dtype=np.float32)
        self.target = target
        self._function, self.sha256 = _import_callable(target)
        if sha256 is not None and sha256 != self.sha256:
            raise EbmtrajError(
                f"policy {target}: its source has changed since the data were begun; restore it or start anew"
            )
        self._batch = 0

    def reset(self, generators: Sequence[np.random.Generator]) -> None:
        """Start one episode a generator."""
        self._batch = len(generators)
        if callable(reset := getattr(self._function, "reset", None)):
            self._guarded(reset, list(generators))

    def __call__(self, states: NDArray[np.float32]) -> NDArray[np.float32]:
        """Actions (B, A), float32."""
        given = self._guarded(self._function, states.copy())
        shape = (len(states), len(self._low))
        try:
            array = np.asarray(given)
            if array.dtype.kind not in "fiub":
                raise TypeError
            actions = array.astype(np.float32)
        except (TypeError, ValueError, RuntimeError):
            kind = f"an array of {given.dtype}" if isinstance(given, np.ndarray) else type(given).__name__
            raise EbmtrajError(f"policy {self.target} returned {kind}; return an array of real numbers {shape}") from None
        if actions.shape != shape:
            raise EbmtrajError(
                f"policy {self.target} returned actions of shape {actions.shape} for states {states.shape}; return {shape}"
            )
        if not np.isfinite(actions).all():
            raise EbmtrajError(f"policy {self.target} returned NaN or infinity; check it with the states that it was given")
        if not ((actions >= self._low) & (actions <= self._high)).all():
            worst = actions.flat[int(np.maximum(actions - self._high, self._low - actions).argmax())]
            raise EbmtrajError(f"policy {self.target} returned {worst:g}, outside the action bounds; clip its actions")
        return actions

    def _guarded(self, function: Callable[..., Any], *given: Any) -> Any:
        try:
            return function(*given)
        except EbmtrajError:
            raise
        except (Exception, SystemExit) as error:  # a policy that exits would end the collection without a word
            raise EbmtrajError(f"policy {self.target} failed: {type(error).__name__}: {error}") from error

    def describe(self) -> dict[str, Any]:
        """JSON values that make this policy again."""
        return {"name": self.target, "sha256": self.sha256}


def _import_callable(target: str) -> tuple[Callable[..., Any], str]:
    """What `module:name` stands for, from the installed packages or the working folder; and the sha256 of its source."""
    module_name, _, name = target.partition(":")
    if (here := os.getcwd()) not in sys.path:
        sys.path.append(here)
    try:
        module = importlib.import_module(module_name)
    except (Exception, SystemExit) as error:
        raise EbmtrajError(
            f"policy {target!r}: module {module_name!r} can't be imported ({type(error).__name__}: {error}); run in its "
            "folder or put it on PYTHONPATH"
        ) from error
    function = getattr(module, name, None)
    if isinstance(function, type):
        raise EbmtrajError(f"policy {target!r} is a class; give a function, or make an instance in the module and name that")
    if not callable(function):
        raise EbmtrajError(f"policy {target!r}: module {module_name!r} has no callable {name!r}; give module:function")
    source = getattr(module, "__file__", None)
    return function, hashlib.sha256(Path(source).read_bytes() if source else module_name.encode()).hexdigest()


class ActionRule:
    """A policy whose actions are disturbed by rule, so that the data hold more than the policy's own habits.

    `every-4th-random`: each 4th action of an episode is uniform in the action box, at its own offset an episode (Du &
    Mordatch 2019, section 4.4, without the offset). `twice`: each action is held for two control steps, the first with
    0.1 times a uniform random action added; every second state is what the code published with that paper recorded. The
    noise has its own stream, seeded by one draw from the episode's generator. Raises `EbmtrajError` for other rules.
    """

    BLOCK = 16  # random actions drawn at a time from each episode's stream; changing it changes the data
    NOISE = 0.1  # of `twice`

    def __init__(self, policy: Policy, rule: str, action_low: ArrayLike, action_high: ArrayLike) -> None:
        if rule not in ACTION_RULES or rule == "none":
            raise EbmtrajError(f"unknown action rule {rule!r}; use one of {', '.join(ACTION_RULES)}")
        self.policy, self.rule = policy, rule
        self._low, self._high = np.asarray(action_low, dtype=np.float64), np.asarray(action_high, dtype=np.float64)

    def reset(self, generators: Sequence[np.random.Generator]) -> None:
        """Start one episode a generator."""
        keys = [generator.integers(2**64, size=2, dtype=np.uint64) for generator in generators]
        self._streams = [np.random.Generator(np.random.Philox(key=key)) for key in keys]
        self._offset = np.array([int(stream.integers(4)) for stream in self._streams], dtype=np.int64)
        self._noise = np.empty((len(keys), self.BLOCK, len(self._low)))
        self._step = 0
        self._held = np.empty(0, dtype=np.float32)
        self.policy.reset(generators)

    def __call__(self, states: NDArray[np.float32]) -> NDArray[np.float32]:
        """Actions (B, A), float32."""
        step = self._step
        self._step += 1
        return self._every_4th(step, states) if self.rule == "every-4th-random" else self._twice(step, states)

    def _every_4th(self, step: int, states: NDArray[np.float32]) -> NDArray[np.float32]:
        actions = self.policy(states)
        random = self._random(step // 4) if step % 4 == 0 else self._noise[:, step // 4 % self.BLOCK]
        chosen = np.equal(self._offset, step % 4)[:, None]
        return np.where(chosen, random, actions).astype(np.float32)

    def _twice(self, step: int, states: NDArray[np.float32]) -> NDArray[np.float32]:
        if step % 2 == 1:
            return self._held
        self._held = self.policy(states)
        disturbed = self._held + self.NOISE * self._random(step // 2)
        return np.clip(disturbed, self._low, self._high).astype(np.float32)

    def _random(self, number: int) -> NDArray[np.float64]:
        """The episodes' uniform actions (B, A) of this number, counted from 0; ask for them in order."""
        if number % self.BLOCK == 0:
            for block, stream in zip(self._noise, self._streams, strict=True):
                block[:] = stream.uniform(self._low, self._high, block.shape)
        return self._noise[:, number % self.BLOCK]

    def describe(self) -> dict[str, Any]:
        """JSON values that make this policy again."""
        return {**self.policy.describe(), "action_rule": self.rule}


POLICIES: dict[str, Callable[..., Policy]] = {"random": RandomPolicy, "trained": TrainedPolicy, "to-goal": GoalPolicy}


def make_policy(name: str, action_fields: Sequence[Field], action_rule: str = "none", **kwargs: Any) -> Policy:
    """A policy by its registry name, or a user's `module:callable`, for these action fields, under an action rule.

    Raises `EbmtrajError` for unknown names, options and rules, and for actions without finite bounds.
    """
    if name not in POLICIES and ":" not in name:
        raise EbmtrajError(f"unknown policy {name!r}; use one of {', '.join(POLICIES)}, or your own module:function")
    if action_rule not in ACTION_RULES:
        raise EbmtrajError(f"unknown action rule {action_rule!r}; use one of {', '.join(ACTION_RULES)}")
    low: list[float] = []
    high: list[float] = []
    for field in action_fields:
        if field.low is None or field.high is None:
            raise EbmtrajError(f"policy {name!r}: the action field {field.name!r} has no finite bounds to draw within")
        low.extend(field.low)
        high.extend(field.high)
    try:
        policy = POLICIES[name](low, high, **kwargs) if name in POLICIES else CallablePolicy(low, high, name, **kwargs)
    except TypeError as error:
        raise EbmtrajError(f"policy {name!r}: {str(error).split('() ')[-1]}; options given: {sorted(kwargs)}") from error
    return policy if action_rule == "none" else ActionRule(policy, action_rule, low, high)
