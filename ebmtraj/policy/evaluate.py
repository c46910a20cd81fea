"""How far a policy turns the cube about each commanded axis, and how often it drops it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from ebmtraj.envs.batch import HandCubeBatch
from ebmtraj.envs.policies import make_policy
from ebmtraj.envs.trained import AXES, AXIS_NAMES
from ebmtraj.errors import EbmtrajError
from ebmtraj.policy.simulator import quaternions, rotation_between


@dataclass(frozen=True)
class EvaluateConfig:
    """Fresh starts of the real environment; the command is fixed for an episode, with equally many episodes an axis.

    Raises `EbmtrajError` for a setting out of its range.
    """

    policy: str = "trained"  # a name of `envs.policies`
    checkpoint: str | None = None  # of the trained policy; the shipped one without it
    episodes: int = 256  # rounded up to a multiple of six
    steps: int = 100  # control steps an episode
    action_rule: str = "every-4th-random"  # which of its actions are random
    seed: int = 0  # of starts and random actions
    threads: int = 1  # of the simulator; they change nothing

    def __post_init__(self) -> None:
        for name, least in (("episodes", 1), ("steps", 1), ("seed", 0), ("threads", 1)):
            if getattr(self, name) < least:
                raise EbmtrajError(f"{name} is {getattr(self, name)}; give a whole number of at least {least}")


def evaluate_policy(config: EvaluateConfig, on_axis: Callable[[int], None] | None = None) -> dict[str, Any]:
    """Turning and drops of the policy and of random actions, as JSON values.

    `progress_rad_per_100` is the mean over the six axes of the sum of world-frame rotation vectors along the commanded axis
    until a drop, scaled to 100 steps; `per_axis` holds the six, `drop_rate` is the share of episodes that drop the cube.
    Raises `EbmtrajError` for unknown policies, rules and files. `on_axis` is told how many of the twelve parts are done.
    """
    parts = 0

    def done() -> None:
        nonlocal parts
        parts += 1
        if on_axis:
            on_axis(parts)

    env = HandCubeBatch(config.threads)
    try:
        own = _measure(env, config, config.policy, done)
        random = _measure(env, config, "random", done)
    finally:
        env.close()
    per_axis = -(-config.episodes // len(AXES))
    return {
        **own,
        "random": random,
        "episodes": per_axis * len(AXES),
        "steps": config.steps,
        "action_rule": config.action_rule,
        "seed": config.seed,
    }


def _measure(env: HandCubeBatch, config: EvaluateConfig, name: str, done: Callable[[], None]) -> dict[str, Any]:
    per_axis = -(-config.episodes // len(AXES))
    progress, drops, errors = [], [], []
    described: dict[str, Any] = {}
    for index, (axis_name, axis) in enumerate(zip(AXIS_NAMES, AXES, strict=True)):
        options: dict[str, Any] = {"axis": axis_name, "checkpoint": config.checkpoint} if name == "trained" else {}
        policy = make_policy(name, env.action_fields, config.action_rule, **options)
        described = policy.describe()
        episodes = range(index * per_axis, (index + 1) * per_axis)
        states = env.reset([_generator(config.seed, episode, 0) for episode in episodes])
        policy.reset([_generator(config.seed, episode, 1) for episode in episodes])
        turned = np.zeros(per_axis)
        dropped = np.zeros(per_axis, dtype=np.bool_)
        for _ in range(config.steps):
            before = quaternions(env.physics_state)
            states, dropped = env.step(policy(states))
            turned += (rotation_between(before, quaternions(env.physics_state)) @ axis) * ~dropped
            if dropped.all():
                break
        turned *= 100.0 / config.steps
        progress.append(float(turned.mean()))
        errors.append(float(turned.std() / np.sqrt(per_axis)))
        drops.append(float(dropped.mean()))
        done()
    described.pop("axis", None)
    return {
        "progress_rad_per_100": float(np.mean(progress)),
        "per_axis": dict(zip(AXIS_NAMES, progress, strict=True)),
        "drop_rate": float(np.mean(drops)),
        "standard_error": float(np.sqrt(np.sum(np.square(errors)))) / len(AXES),
        "drop_rate_per_axis": dict(zip(AXIS_NAMES, drops, strict=True)),
        "policy": described,
    }


def _generator(seed: int, episode: int, stream: int) -> np.random.Generator:
    # Another spawn key than collection's and training's: these starts are seen nowhere else.
    return np.random.Generator(np.random.Philox(np.random.SeedSequence(seed, spawn_key=(7, episode, stream))))
