"""What plans of states are made of: a transition energy E(s, s'), and the inverse model that says how to follow it.

Papers 000, section 5, and 002.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from ebmtraj.config import build, merge, to_plain
from ebmtraj.datasets.windows import Batch, TransitionData
from ebmtraj.errors import EbmtrajError
from ebmtraj.fields import Field, fields_to_json, total_size
from ebmtraj.nets.mlp import MLP
from ebmtraj.training.trainable import Stage, Trainable
from ebmtraj.trajectories.model import check_network
from ebmtraj.trajectories.registry import ENERGIES, MODELS, model_class
from ebmtraj.trajectories.sequence_coordinates import bounds_of

# Planning asks for many evaluations rather than for the last digit of sample quality: a narrower network than `train
# transition` has.
DEFAULTS: dict[str, dict[str, Any]] = {"dsm": {"width": 128}, "cd": {}, "icd": {}}


@dataclass(frozen=True)
class InverseConfig:
    """A plain network on the state and the increment to the next one."""

    width: int = 256  # units of a hidden layer
    depth: int = 2  # hidden layers

    def __post_init__(self) -> None:
        check_network(self.width, self.depth)


@dataclass(frozen=True)
class SequenceNetwork:
    """A transition energy and an inverse model, trained one after the other.

    Raises `EbmtrajError` for an unknown objective and a share out of its range.
    """

    objective: str = "dsm"  # of the transition energy: dsm, cd or icd
    transition: dict[str, Any] = field(default_factory=dict)  # its settings, as `network` of `train transition`
    inverse: InverseConfig = field(default_factory=InverseConfig)
    inverse_share: float = 0.35  # of the training steps

    def __post_init__(self) -> None:
        if self.objective not in ENERGIES:
            raise EbmtrajError(f"network.objective = {self.objective!r}; use one of {', '.join(ENERGIES)}")
        if not 0 < self.inverse_share < 1:
            raise EbmtrajError(f"network.inverse_share = {self.inverse_share}; it must be above 0 and below 1")

    def completed(self, source: str) -> SequenceNetwork:
        """These settings with all of the transition energy's; raises `EbmtrajError` for those that it does not know."""
        config: Any = MODELS[self.objective].Config
        usual = merge(to_plain(dataclasses.asdict(config())), DEFAULTS[self.objective])
        settings: Any = build(config, merge(usual, to_plain(self.transition)), f"{source}: network.transition")
        if getattr(settings, "history", 0):
            raise EbmtrajError(
                "network.transition.history: a sequence plan needs an energy of one transition; leave it at 0"
            )
        return dataclasses.replace(self, transition=dataclasses.asdict(settings))


class SequenceModel(Trainable):
    """E(s_t, s_t+1) as `train transition` learns it, and a = f(s_t, s_t+1) by least squares, in one checkpoint."""

    action_low: Tensor  # (A,), in the action's units, as the next
    action_high: Tensor  # (A,)

    def __init__(
        self,
        state_fields: Sequence[Field],
        action_fields: Sequence[Field],
        *,
        network: SequenceNetwork,
        environment: dict[str, Any],
    ) -> None:
        """`environment` says in which simulator such plans can be carried out; `network` is `completed`."""
        super().__init__()
        self.state_fields, self.action_fields = tuple(state_fields), tuple(action_fields)
        self.network, self.environment = network, environment
        cls = model_class(network.objective)
        config: Any = build(cls.Config, to_plain(network.transition), "recipe: network.transition")
        self.transition = cls(state_fields, action_fields, actions=False, config=config)
        increments = self.transition.normaliser.increments
        inputs, outputs = increments.feature_size + increments.size, total_size(action_fields)
        self.inverse = MLP(inputs, outputs, width=network.inverse.width, depth=network.inverse.depth)
        low, high = bounds_of(action_fields)
        self.register_buffer("action_low", low)
        self.register_buffer("action_high", high)

    def prepare(self, data: TransitionData) -> None:
        """Take the statistics of the training data before the first step."""
        self.transition.prepare(data)

    def stages(self) -> list[Stage]:
        """The transition energy's own stages, then the inverse model."""
        share = self.network.inverse_share
        own = [dataclasses.replace(stage, share=(1 - share) * stage.share) for stage in self.transition.stages()]
        return [*own, Stage("inverse", share, self.inverse, self._inverse_loss)]

    def header(self) -> dict[str, Any]:
        """What a checkpoint must say so that `load_sequence_model` gives this model back."""
        return {
            "kind": "sequence",
            "model": self.network.objective,
            "network": dataclasses.asdict(self.network),
            "environment": self.environment,
            "state_fields": fields_to_json(self.state_fields),
            "action_fields": fields_to_json(self.action_fields),
        }

    def extra_state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """That of the transition energy."""
        return self.transition.extra_state()

    def load_extra_state(self, tensors: dict[str, Tensor], numbers: dict[str, Any]) -> None:
        """The inverse of `extra_state`, with tensors of the same shapes."""
        self.transition.load_extra_state(tensors, numbers)

    def act(self, state: Tensor, next_state: Tensor) -> Tensor:
        """The action that leads from one state to the next, `(B, S), (B, S) -> (B, A)`, within bounds."""
        n = self.transition.normaliser
        action = self._normal_action(state, next_state) * n.action_scale + n.action_mean
        return torch.minimum(torch.maximum(action, self.action_low), self.action_high)

    def _normal_action(self, state: Tensor, next_state: Tensor) -> Tensor:
        n = self.transition.normaliser
        return self.inverse(torch.cat((n.context(state), n.delta(state, next_state)), dim=-1))

    def _inverse_loss(self, batch: Batch, generator: torch.Generator) -> tuple[Tensor, dict[str, Tensor]]:
        assert batch.action is not None
        n = self.transition.normaliser
        target = (batch.action - n.action_mean) / n.action_scale
        return (self._normal_action(batch.state, batch.next_state) - target).square().mean(), {}
