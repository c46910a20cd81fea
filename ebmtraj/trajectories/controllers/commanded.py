"""The policy that made the data, given its command: privileged, as no state holds its phase or its network's memory."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ebmtraj.envs import hand_cube
from ebmtraj.envs.batch import BatchEnv
from ebmtraj.envs.trained import Memory, forward, load_checkpoint
from ebmtraj.errors import EbmtrajError
from ebmtraj.fields import slices
from ebmtraj.trajectories.clone import turn_label
from ebmtraj.trajectories.control import Decision
from ebmtraj.trajectories.controllers.cloned import Wish
from ebmtraj.trajectories.costs import TaskCost


@dataclass(frozen=True)
class CommandedConfig:
    """Which policy, and how it is commanded. Raises `EbmtrajError` for a setting out of its range."""

    checkpoint: str = ""  # a file of `ebmtraj policy train`; empty: the shipped one
    every: int = 1  # control steps between commands
    random_every: int = 0  # each so many-th action is random, at an offset of its own an episode; 0: none

    def __post_init__(self) -> None:
        if self.every < 1 or self.random_every < 0:
            raise EbmtrajError(
                f"commanded policy: every = {self.every}, random_every = {self.random_every}; it needs every >= 1 and "
                "random_every >= 0"
            )


class Commanded:
    """Commands the axis that a task names or, as a servo, the one nearest to what remains to be turned."""

    def __init__(self, config: CommandedConfig) -> None:
        self.config = config
        self._policy = load_checkpoint(Path(config.checkpoint) if config.checkpoint else None)

    def begin(self, env: BatchEnv, state: Tensor, task: TaskCost, generator: torch.Generator) -> None:
        """Start with a random phase; see `Controller.begin`."""
        if env.action_fields != hand_cube.action_fields():
            raise EbmtrajError(f"the commanded policy acts on hand-cube, not on {env.env_id}; leave it out")
        self._place = slices(env.state_fields)["cube_quaternion"]
        self._wish, self._generator, self._step = Wish(task, state), generator, 0
        device = generator.device
        phase = 2 * torch.pi * torch.rand(len(state), generator=generator, device=device)
        self._offset = torch.randint(max(1, self.config.random_every), (len(state),), generator=generator, device=device)
        self._memory = Memory.start(self._command(state), phase.double().cpu().numpy(), state.cpu().numpy())

    def __call__(self, state: Tensor, previous: Tensor | None) -> Decision:
        """The policy's actions under the present command."""
        if self._step % self.config.every == 0:
            self._memory.axis = self._command(state)
        states, body = state.cpu().numpy(), self._policy.body
        features, base = body.observe(states, self._memory)
        action = body.act(states, base, forward(self._policy.layers, features), self._memory)
        chosen = torch.from_numpy(action).to(state.device)
        if self.config.random_every:
            random = 2 * torch.rand(chosen.shape, generator=self._generator, device=chosen.device) - 1
            due = self._offset == self._step % self.config.random_every
            chosen = torch.where(due.unsqueeze(1), random, chosen)
        self._step += 1
        return Decision(chosen)

    def _command(self, state: Tensor) -> np.ndarray:
        turn = self._wish.turn(state[:, self._place], 1.0)
        return turn_label(turn)[:, :6].argmax(1).cpu().numpy()
