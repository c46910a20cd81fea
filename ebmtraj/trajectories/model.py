"""What every transition model shares: fields, normaliser, stages for the loop, and sampling of the next state."""

from __future__ import annotations

import abc
import dataclasses
from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor

from ebmtraj.datasets.normaliser import Normaliser
from ebmtraj.datasets.windows import Batch, Past, TransitionData
from ebmtraj.errors import EbmtrajError
from ebmtraj.fields import Field, fields_to_json, total_size
from ebmtraj.training.trainable import Trainable
from ebmtraj.trajectories.history import forgotten, moves, settled
from ebmtraj.trajectories.scaling import better_gaussianised


def check_network(width: int, depth: int) -> None:
    """Raise `EbmtrajError` for sizes that make no network."""
    if width < 1 or depth < 1:
        raise EbmtrajError(f"network: width = {width}, depth = {depth}; both must be at least 1")


def check_likelihood(low: float, high: float, beta: float = 0.0) -> None:
    """Raise `EbmtrajError` for bounds of a log standard deviation, or a beta, that make no likelihood."""
    if low >= high or beta < 0:
        raise EbmtrajError(f"network: low = {low}, high = {high}, beta = {beta}; it needs low < high and beta >= 0")


class TransitionModel(Trainable):
    """p(s_t+1 | s_t) or, with actions, p(s_t+1 | s_t, a_t), in whatever form; states `(B, S)`, actions `(B, A)`.

    A subclass sets `name` and `Config`, builds its networks in `__init__`, and gives `stages` and `sample_next`. One whose
    settings have `history` above 0 also sees that many states before the present one, as far as they are known.
    """

    name: ClassVar[str]
    Config: ClassVar[type]
    training_defaults: ClassVar[dict[str, Any]] = {}  # of the recipe's `training`, where they differ from the usual ones
    members: int = 0  # networks that expect a next state each, see `expected_move`; 0: it can't be asked
    action_defaults: ClassVar[dict[str, Any]] = {}  # of the recipe's `network`, for models that are given actions

    def __init__(self, state_fields: Sequence[Field], action_fields: Sequence[Field], *, actions: bool, config: Any) -> None:
        """Raises `EbmtrajError` where the settings do not fit the fields, or want controls of a model without actions."""
        super().__init__()
        self.state_fields, self.action_fields = tuple(state_fields), tuple(action_fields)
        self.actions, self.config = actions, settled(config, state_fields)
        self.normaliser = Normaliser(state_fields, action_fields, rotation=getattr(config, "rotation", "world"))
        self.state_size = total_size(state_fields)
        self.delta_size = self.normaliser.increments.size
        self.action_size = total_size(action_fields) if actions else 0
        self.history: int = getattr(self.config, "history", 0)
        if getattr(self.config, "previous_control", False) and not actions:  # a rollout without actions has none to see
            raise EbmtrajError("network.previous_control = true: model is given no actions; add --actions or drop it")
        self.matrices = getattr(config, "matrices", True)  # quaternions are seen as rotation matrices
        seen = self.normaliser.increments.feature_size if self.matrices else self.state_size
        controls = self.action_size if getattr(self.config, "previous_control", False) else 0
        self.context_size = seen + self.action_size
        self.moves_size = self.history * (self.delta_size + controls + 1)  # of the past, where a network sees it flat

    def prepare(self, data: TransitionData) -> None:
        """Take what must be known of the training data before the first step."""
        whiten, gaussianise = (getattr(self.config, name, False) for name in ("whiten", "gaussianise"))
        ask = gaussianise == "auto" and not whiten
        self.normaliser.fit(data, whiten=whiten, gaussianise=ask or gaussianise is True)
        if ask and not better_gaussianised(self.normaliser, data, actions=self.actions):
            self.normaliser.marginals.reset()

    def context(self, state: Tensor, action: Tensor | None) -> Tensor:
        """What the networks are given, `(B, S), (B, A) or None -> (B, C)`; a model without actions does not look at any."""
        return self.normaliser.context(state, action if self.actions else None, matrices=self.matrices)

    def seen(
        self,
        state: Tensor,
        action: Tensor | None,
        past: Past | None,
        noise: float = 0.0,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """`context` and, of a model with history, the moves that led to the state, `(B, C)`."""
        context = self.context(state, action)
        if self.history == 0:
            return context
        past, controls = past or self.no_past(state), self.config.previous_control
        before = moves(self.normaliser, state, past, controls=controls, noise=noise, generator=generator)
        return torch.cat((context, before.flatten(1)), dim=-1)

    def seen_of(self, batch: Batch, generator: torch.Generator | None = None) -> Tensor:
        """`seen` of a batch, `(B, C)`; with a generator, as training blurs and forgets the past."""
        past, noise = batch.past, 0.0
        if self.history and past is not None and generator is not None and self.training:
            past, noise = forgotten(past, self.config.forget, generator), self.config.history_noise
        return self.seen(batch.state, batch.action, past, noise, generator)

    def expected_move(self, state: Tensor, seen: Tensor) -> Tensor:
        """Each member's expected increment, normalised, `(M, B, S), (M, B, C) -> (M, B, D)`, given what `seen` gives.

        Raises `EbmtrajError` for a model that expects none.
        """
        raise EbmtrajError(f"model {self.name} expects no next state")

    @abc.abstractmethod
    def sample_next(
        self, state: Tensor, action: Tensor | None, generator: torch.Generator, past: Past | None = None
    ) -> Tensor:
        """One sample of the state that follows, `(B, S), (B, A) or None -> (B, S)`.

        `past` holds `history` states; without it none is known. A model without history does not look at it.
        """

    def no_past(self, state: Tensor) -> Past:
        """What is known at a start `(B, S)` of which only the state is given."""
        return Past.unknown(state, self.history, self.action_size if self.actions else None)

    def header(self) -> dict[str, Any]:
        """What a checkpoint must say so that `load_model` gives this model back."""
        network = dataclasses.asdict(self.config)
        if network.get("gaussianise") == "auto":  # what it came to
            network["gaussianise"] = self.normaliser.marginals.fitted
        return {
            "kind": "transition",
            "model": self.name,
            "actions": self.actions,
            "network": network,
            "state_fields": fields_to_json(self.state_fields),
            "action_fields": fields_to_json(self.action_fields),
        }
