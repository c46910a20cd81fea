"""The inverse model: which action takes a state to the next one."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ebmtraj.config import build, to_plain
from ebmtraj.datasets.normaliser import Normaliser
from ebmtraj.datasets.store import Store
from ebmtraj.datasets.windows import Batch, TransitionData, Transitions
from ebmtraj.errors import EbmtrajError
from ebmtraj.fields import Field, fields_from_json, fields_to_json, total_size
from ebmtraj.nets.mlp import MLP
from ebmtraj.runs import Run
from ebmtraj.training.checkpoint import load_tensors, load_weights
from ebmtraj.training.loop import Progress, Result, Stage, Trainable, TrainingConfig, train
from ebmtraj.trajectories.model import check_network

TRAINING = TrainingConfig(steps=6000, learning_rate=2e-3)


@dataclass(frozen=True)
class InverseConfig:
    """A plain network on the state and the increment to the next one."""

    width: int = 128
    depth: int = 2

    def __post_init__(self) -> None:
        check_network(self.width, self.depth)


class InverseModel(Trainable):
    """a = f(s_t, s_t+1) by least squares; actions are clipped to their fields' bounds."""

    low: Tensor
    high: Tensor

    def __init__(self, state_fields: Sequence[Field], action_fields: Sequence[Field], config: InverseConfig) -> None:
        super().__init__()
        self.state_fields, self.action_fields, self.config = tuple(state_fields), tuple(action_fields), config
        self.normaliser = Normaliser(state_fields, action_fields)
        increments = self.normaliser.increments
        inputs, outputs = increments.feature_size + increments.size, total_size(action_fields)
        self.net = MLP(inputs, outputs, width=config.width, depth=config.depth)
        limits = [field.limits() for field in action_fields]
        for name, side in (("low", 0), ("high", 1)):
            self.register_buffer(name, torch.tensor([value for limit in limits for value in limit[side]]), persistent=False)

    def stages(self) -> list[Stage]:
        """Least squares throughout."""
        return [Stage("inverse", 1.0, self.net, self._loss)]

    def _normal(self, state: Tensor, next_state: Tensor) -> Tensor:
        """The action in normalised coordinates, `(..., S), (..., S) -> (..., A)`."""
        seen = (self.normaliser.context(state), self.normaliser.delta(state, next_state))
        return self.net(torch.cat(seen, dim=-1))

    def _loss(self, batch: Batch, generator: torch.Generator) -> tuple[Tensor, dict[str, Tensor]]:
        assert batch.action is not None
        normaliser = self.normaliser
        target = (batch.action - normaliser.action_mean) / normaliser.action_scale
        return (self._normal(batch.state, batch.next_state) - target).square().mean(), {}

    def forward(self, state: Tensor, next_state: Tensor) -> Tensor:
        """The action that leads from one state to the next, `(..., S), (..., S) -> (..., A)`, within bounds."""
        action = self._normal(state, next_state) * self.normaliser.action_scale + self.normaliser.action_mean
        return torch.minimum(torch.maximum(action, self.low), self.high)

    def header(self) -> dict[str, Any]:
        """What a checkpoint must say so that `load_inverse` gives this model back."""
        return {
            "kind": "inverse",
            "network": dataclasses.asdict(self.config),
            "state_fields": fields_to_json(self.state_fields),
            "action_fields": fields_to_json(self.action_fields),
        }


def train_inverse(
    store: str | Path,
    path: Path,
    *,
    config: InverseConfig | None = None,
    training: TrainingConfig = TRAINING,
    overwrite: bool = False,
    on_progress: Callable[[Progress], None] = lambda progress: None,
) -> tuple[InverseModel, Result]:
    """Train an inverse model on a store's training split into a run directory; raises `EbmtrajError` as training does."""
    opened = Store.open(store)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(training.seed)
        model = InverseModel(opened.state_fields, opened.action_fields, config or InverseConfig())
    with (
        closing(_transitions(opened, "train")) as data,
        closing(_transitions(opened, "validation")) as held_out,
    ):
        model.normaliser.fit(data)
        result = train(model, data, held_out, training, Run.create(path, overwrite=overwrite), on_progress=on_progress)
    return model, result


def _transitions(store: Store, split: str) -> TransitionData:
    return Transitions.load(store, split, actions=True)


def load_inverse(path: Path) -> InverseModel:
    """The inverse model in a checkpoint; raises `EbmtrajError` where it is missing, damaged or another kind of model."""
    header, tensors = load_tensors(path)
    if header.get("kind") != "inverse":
        raise EbmtrajError(f"checkpoint {path} holds {header.get('kind')!r}, not an inverse model")
    try:
        states, actions = fields_from_json(header["state_fields"]), fields_from_json(header["action_fields"])
        network = to_plain(dict(header["network"]))
    except (KeyError, TypeError, ValueError) as error:
        raise EbmtrajError(f"checkpoint {path}: its header is damaged ({error})") from None
    model = InverseModel(states, actions, build(InverseConfig, network, f"checkpoint {path}: network"))
    load_weights(model, tensors, path)
    return model.eval()
