"""The model that plans are made of: which actions the data would take next, and where actions are expected to lead.

The tilt of a base: paper 004, equation 1.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ebmtraj.datasets.ahead import Window, Windows
from ebmtraj.datasets.normaliser import Normaliser
from ebmtraj.datasets.windows import Batch, Past, spread_index
from ebmtraj.energies.transition import TiltedTransition
from ebmtraj.errors import EbmtrajError
from ebmtraj.fields import Field, fields_to_json, total_size
from ebmtraj.nets.base import Base, TiltedBase
from ebmtraj.nets.ensemble import EnsembleMLP
from ebmtraj.training.losses import NoiseConfig
from ebmtraj.training.trainable import Stage, Trainable
from ebmtraj.trajectories.baselines.field import FieldTransition
from ebmtraj.trajectories.history import present, present_size
from ebmtraj.trajectories.model import check_network
from ebmtraj.trajectories.terms.term import Path
from ebmtraj.trajectories.tilted import TiltedLosses

PRIORS: dict[str, type[TiltedBase]] = {
    "energy": TiltedTransition,  # a noise-conditional energy of the base's residual
    "field": FieldTransition,  # a free vector field in place of the energy's gradient
}


@dataclass(frozen=True)
class WindowConfig:
    """An energy of the next actions on an explicit base, and a model of what they are expected to lead to.

    Raises `EbmtrajError` for a setting out of its range.
    """

    actions: int = 8  # steps of a window
    horizons: tuple[int, ...] = (2, 4, 8, 16, 32)  # steps ahead at which outcomes are expected
    width: int = 256  # units of a hidden layer
    depth: int = 2  # hidden layers
    members: int = 2  # networks whose mean is the expected outcome
    controls: int = 1  # actions before the present that are seen: with more, a model knows when random ones are due
    base_share: float = 0.2  # of the training steps
    outcome_share: float = 0.3  # of the training steps, for the model of outcomes
    mildness: float = 0.5  # how much of the base's varying spread is kept; 1 keeps all, 0 none
    bound: float = 8.0  # residuals are clamped here
    beta: float = 1.0  # of the base's beta-NLL
    noise: NoiseConfig = field(default_factory=lambda: NoiseConfig(mean=-0.4, std=1.4))  # noise levels in training

    def __post_init__(self) -> None:
        check_network(self.width, self.depth)
        if min(self.actions, self.members, self.controls) < 1:
            raise EbmtrajError(
                f"network: actions = {self.actions}, members = {self.members}, controls = {self.controls}; "
                "each must be at least 1"
            )
        if not self.horizons or min(self.horizons) < 1 or list(self.horizons) != sorted(set(self.horizons)):
            raise EbmtrajError(f"network.horizons = {list(self.horizons)}; give rising numbers of steps, from 1 on")
        if self.base_share <= 0 or self.outcome_share <= 0 or self.base_share + self.outcome_share >= 1:
            raise EbmtrajError(
                f"network: base_share = {self.base_share}, outcome_share = {self.outcome_share}; both must be above 0 and "
                "their sum below 1"
            )
        if not 0 <= self.mildness <= 1 or self.bound <= 0 or self.beta < 0:
            raise EbmtrajError(
                f"network: mildness = {self.mildness}, bound = {self.bound}, beta = {self.beta}; it needs "
                "0 <= mildness <= 1, bound > 0 and beta >= 0"
            )


class Situation(NamedTuple):
    """A present `(B, ...)` as the planner needs it, computed once a plan."""

    state: Tensor  # (B, S)
    base: Base  # (B, W * A) each
    prior: Any  # what the residual's energy is given
    outcome: Tensor  # (M, B, width), what the outcome model is given

    def repeated(self, times: int) -> Situation:
        """Each present `times` times over (a count), copies side by side, `(times * B, ...)`."""
        if times == 1:
            return self

        def rows(x: Tensor, dim: int = 0) -> Tensor:
            return x.repeat_interleave(times, dim=dim)

        prior = type(self.prior)(*map(rows, self.prior)) if isinstance(self.prior, tuple) else rows(self.prior)
        return Situation(rows(self.state), Base(*map(rows, self.base)), prior, rows(self.outcome, 1))


class WindowModel(TiltedLosses, Trainable):
    """p(a_t ... a_t+W-1 | present) as an energy on a Gaussian base, and E[s_t+h | present, actions] for each horizon h.

    The present is the state, the move that led to it and the last actions. Actions are z-scored, `(B, W * A)`; outcomes are
    increments from the present state (a quaternion's is a world-frame rotation vector), scaled per horizon.
    """

    outcome_mean: Tensor
    outcome_scale: Tensor
    action_low: Tensor
    action_high: Tensor
    times: Tensor  # of the horizons

    def __init__(
        self,
        state_fields: Sequence[Field],
        action_fields: Sequence[Field],
        *,
        prior: str,
        config: WindowConfig,
        environment: dict[str, Any],
    ) -> None:
        """`environment` says in which simulator such plans can be carried out."""
        super().__init__()
        self.state_fields, self.action_fields = tuple(state_fields), tuple(action_fields)
        self.prior_name, self.config, self.environment = prior, config, environment
        self.normaliser = Normaliser(state_fields, action_fields)
        self.state_size, self.action_size = total_size(state_fields), total_size(action_fields)
        move = self.normaliser.increments.size
        event, outcomes = config.actions * self.action_size, len(config.horizons) * move
        context = present_size(self.normaliser, config.controls)
        width, depth = config.width, config.depth
        self.tilted = PRIORS[prior](event, context, width=width, depth=depth, mildness=config.mildness, bound=config.bound)
        self.outcome = EnsembleMLP(config.members, event, context, outcomes, width=width, depth=depth)
        low, high = zip(*(limit for f in action_fields for limit in zip(*f.limits(), strict=True)), strict=True)
        for name, value in (
            ("outcome_mean", torch.zeros(outcomes)),
            ("outcome_scale", torch.ones(outcomes)),
            ("action_low", torch.tensor(low)),
            ("action_high", torch.tensor(high)),
        ):
            self.register_buffer(name, value)
        self.register_buffer("times", torch.tensor(config.horizons, dtype=torch.float32), persistent=False)

    @torch.no_grad()
    def prepare(self, data: Windows, most: int = 65536) -> None:
        """Take the statistics of the training data before the first step."""
        self.normaliser.fit(data)
        outcomes = self._outcomes(data.at(spread_index(data, most)))
        self.outcome_mean.copy_(outcomes.mean(0))
        spread = outcomes.std(0)
        self.outcome_scale.copy_(torch.where(spread > 1e-6, spread, 1.0))

    def stages(self) -> list[Stage]:
        """The base, the outcome model, then the energy of the base's residual."""
        base, outcome = self.config.base_share, self.config.outcome_share
        return [
            Stage("base", base, self.tilted.base_net, self._base_loss, self._calibrate),
            Stage("outcome", outcome, self.outcome, self._outcome_loss),
            Stage(self.prior_name, 1 - base - outcome, self.tilted.tilt, self._residual_loss),
        ]

    def header(self) -> dict[str, Any]:
        """What a checkpoint must say so that `load_plan_model` gives this model back."""
        return {
            "kind": "window",
            "model": self.prior_name,
            "network": dataclasses.asdict(self.config),
            "environment": self.environment,
            "state_fields": fields_to_json(self.state_fields),
            "action_fields": fields_to_json(self.action_fields),
        }

    def context(self, state: Tensor, past: Past) -> Tensor:
        """What the networks see of the present, `(B, S) -> (B, C)`; `past` holds `controls` states and actions."""
        return present(self.normaliser, state, past)

    def normalised(self, actions: Tensor) -> Tensor:
        """Actions `(B, W, A)` as the networks see them, `(B, W * A)`."""
        return ((actions - self.normaliser.action_mean) / self.normaliser.action_scale).flatten(1)

    def restored(self, z: Tensor) -> Tensor:
        """The inverse of `normalised`, within the actions' bounds."""
        actions = z.unflatten(-1, (self.config.actions, self.action_size))
        actions = actions * self.normaliser.action_scale + self.normaliser.action_mean
        return torch.minimum(torch.maximum(actions, self.action_low), self.action_high)

    def situation(self, state: Tensor, past: Past) -> Situation:
        """All that a plan needs of the present, `(B, S)` and its past."""
        context = self.context(state, past)
        base = self.tilted.base(context)
        return Situation(state, base, self.tilted.prepare(context, base), self.outcome.prepare(context))

    def expected(self, situation: Situation, actions: Tensor) -> Path:
        """Where actions `(B, W, A)` are expected to lead, differentiable in them."""
        scaled = self.outcome(self.normalised(actions), situation.outcome).mean(0)
        increments = (scaled * self.outcome_scale + self.outcome_mean).unflatten(-1, (len(self.config.horizons), -1))
        start = situation.state.unsqueeze(1).expand(-1, len(self.config.horizons), -1)
        turn = self.normaliser.increments.turn()
        turned = None if turn is None else increments[..., turn]
        return Path(situation.state, self.normaliser.increments.apply(start, increments), self.times, actions, turned)

    def _outcomes(self, batch: Window) -> Tensor:
        start = batch.state.unsqueeze(1).expand_as(batch.ahead)
        return self.normaliser.increments.between(start, batch.ahead).flatten(1)

    def _outcome_loss(self, batch: Batch, generator: torch.Generator) -> tuple[Tensor, dict[str, Tensor]]:
        assert isinstance(batch, Window)
        z, context = self._coordinates(batch)
        target = (self._outcomes(batch) - self.outcome_mean) / self.outcome_scale
        predicted = self.outcome(z, self.outcome.prepare(context))
        validation = (predicted.detach().mean(0) - target).square().mean()
        return (predicted - target).square().mean(), {"validation": validation}

    def _coordinates(self, batch: Batch, generator: torch.Generator | None = None) -> tuple[Tensor, Tensor]:
        """Normalised actions and the context."""
        assert isinstance(batch, Window)
        assert batch.past is not None
        with torch.no_grad():
            return self.normalised(batch.actions), self.context(batch.state, batch.past)
