"""Controllers that know nothing: they stay, or they wander."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from ebmtraj.envs.batch import BatchEnv
from ebmtraj.envs.policies import RandomPolicy
from ebmtraj.fields import Field, slices, total_size
from ebmtraj.trajectories.control import Decision
from ebmtraj.trajectories.costs import TaskCost


@dataclass(frozen=True)
class HoldConfig:
    """Nothing to set."""


class HoldStill:
    """Position targets that keep the joints where they are at the start; other actions stay in the middle of their range.

    An action is taken for the target of the joint that has its name.
    """

    def __init__(self, config: HoldConfig) -> None:
        self.config = config

    def begin(self, env: BatchEnv, state: Tensor, task: TaskCost, generator: torch.Generator) -> None:
        """See `Controller.begin`."""
        self._action = start_pose(state, env.state_fields, env.action_fields)

    def __call__(self, state: Tensor, previous: Tensor | None) -> Decision:
        """The same actions at every step."""
        return Decision(self._action)


def start_pose(state: Tensor, state_fields: tuple[Field, ...], action_fields: tuple[Field, ...]) -> Tensor:
    """Actions `(B, A)` that aim joints where states `(B, S)` have them; the middle of the range where no joint is named."""
    joints: dict[str, tuple[int, float, float]] = {}
    for field in state_fields:
        if field.kind == "angle" and field.entries:
            first = slices(state_fields)[field.name].start
            for i, limits in enumerate(zip(field.entries, *field.limits(), strict=True)):
                joints[limits[0]] = (first + i, limits[1], limits[2])
    action = state.new_zeros(len(state), total_size(action_fields))
    column = 0
    for field in action_fields:
        names = field.entries or ("",) * field.size
        for name, low, high in zip(names, *field.limits(), strict=True):
            share = torch.full_like(action[:, 0], 0.5)
            if name in joints:
                place, least, most = joints[name]
                share = ((state[:, place] - least) / (most - least)).clamp(0.0, 1.0)
            if np.isfinite([low, high]).all():
                action[:, column] = low + share * (high - low)
            column += 1
    return action


@dataclass(frozen=True)
class RandomConfig:
    """How the random actions are drawn; see `envs.policies.RandomPolicy`."""

    mode: Literal["smooth", "uniform"] = "smooth"  # smooth: correlated in time; uniform: independent


class RandomActions:
    """Random actions within their bounds."""

    def __init__(self, config: RandomConfig) -> None:
        self.config = config

    def begin(self, env: BatchEnv, state: Tensor, task: TaskCost, generator: torch.Generator) -> None:
        """See `Controller.begin`."""
        low, high = zip(*(limit for f in env.action_fields for limit in zip(*f.limits(), strict=True)), strict=True)
        self._policy = RandomPolicy(low, high, mode=self.config.mode)
        seeds = torch.randint(2**62, (len(state),), generator=generator, device=generator.device)
        self._policy.reset([np.random.default_rng(int(seed)) for seed in seeds])

    def __call__(self, state: Tensor, previous: Tensor | None) -> Decision:
        """The next random actions."""
        return Decision(torch.from_numpy(self._policy(state.cpu().numpy())).to(state.device))
