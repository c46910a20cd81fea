"""Feed-forward prediction, the paper's baseline. Paper 000, section 5.1."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from ebmtraj.datasets.windows import Batch, Past
from ebmtraj.fields import Field
from ebmtraj.nets.mlp import MLP
from ebmtraj.training.trainable import Stage
from ebmtraj.trajectories.history import check_history
from ebmtraj.trajectories.model import TransitionModel, check_network


@dataclass(frozen=True)
class FeedForwardConfig:
    """The paper's feed-forward network (paper 000, section 5.1): 3 x 128 with spectral normalisation, squared error."""

    width: int = 128  # units of a hidden layer
    depth: int = 3  # hidden layers
    spectral: bool = True  # "to prevent multi-step explosion"
    space: Literal["state", "delta"] = "state"  # predict the next state (the paper) or the increment to it
    matrices: bool = False  # see quaternions as rotation matrices
    history: int = 0  # states before the present one that are seen, as the moves between them
    previous_control: bool = False  # with the actions that were taken there; for models that are given actions
    history_noise: float = 0.1  # on those moves, in training: a rollout's own are not quite the data's
    forget: float = 0.1  # share of the training transitions whose past is cut short, as it is when a rollout begins

    def __post_init__(self) -> None:
        check_network(self.width, self.depth)
        check_history(self.history, self.history_noise, self.forget, self.previous_control)


class FeedForwardModel(TransitionModel):
    """One prediction, no spread."""

    name = "fc"
    members = 1
    Config = FeedForwardConfig
    config: FeedForwardConfig

    def __init__(
        self, state_fields: Sequence[Field], action_fields: Sequence[Field], *, actions: bool, config: FeedForwardConfig
    ) -> None:
        super().__init__(state_fields, action_fields, actions=actions, config=config)
        outputs = self.state_size if config.space == "state" else self.delta_size
        self.net = MLP(
            self.context_size + self.moves_size, outputs, width=config.width, depth=config.depth, spectral=config.spectral
        )

    def stages(self) -> list[Stage]:
        """Least squares throughout."""
        return [Stage("regression", 1.0, self.net, self._loss)]

    def _loss(self, batch: Batch, generator: torch.Generator) -> tuple[Tensor, dict[str, Tensor]]:
        predicted = self.net(self.seen_of(batch, generator))
        if self.config.space == "state":
            target = self.normaliser.normalise_state(batch.next_state)
        else:
            target = self.normaliser.delta(batch.state, batch.next_state)
        return (predicted - target).square().mean(), {}

    def expected_move(self, state: Tensor, seen: Tensor) -> Tensor:
        """The prediction, see `TransitionModel.expected_move`."""
        predicted: Tensor = self.net(seen)
        if self.config.space == "delta":
            return predicted
        following = self.normaliser.increments.project(self.normaliser.restore_state(predicted), state)
        return self.normaliser.delta(state, following)

    @torch.no_grad()
    def sample_next(
        self, state: Tensor, action: Tensor | None, generator: torch.Generator, past: Past | None = None
    ) -> Tensor:
        """The prediction; `generator` is not used."""
        predicted = self.net(self.seen(state, action, past))
        if self.config.space == "state":
            return self.normaliser.increments.project(self.normaliser.restore_state(predicted), state)
        return self.normaliser.advance(state, predicted)
