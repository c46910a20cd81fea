"""Transition energies in the coordinates that whole sequences are planned in, bounded off their data.

Papers 000, section 5, and 004.
"""

from __future__ import annotations

from collections.abc import Sequence as Several

import torch
from torch import Tensor

from ebmtraj.energies.sequence import Sequence, TransitionCoordinates
from ebmtraj.errors import EbmtrajError
from ebmtraj.fields import Field
from ebmtraj.nets.base import Base
from ebmtraj.trajectories.model import TransitionModel
from ebmtraj.trajectories.transition import PairModel, TiltedModel

BOUND = 3.0  # standard deviations of a transition's coordinate, and of a state, beyond which a wall stands
STEEP = 1e3  # of the wall around the states


class TiltedCoordinates(TransitionCoordinates):
    """A `dsm` model's energy of its base's residuals r, with walls where they or the states leave the data.

    The base's mean and spread carry the states on: s_t+1 = s_t + mu(s_t) + sigma(s_t) r_t. In r, the density of a sequence
    is the product of the tilts alone: the base's log sigma is the volume of the change of coordinates. Score matching leaves
    a constant of each context open; it is set so that r = 0 has energy 0 everywhere, as it has under the base.
    """

    def __init__(self, model: TiltedModel, level: float) -> None:
        """`level` is the noise level at which plans are judged. Raises `EbmtrajError` for a model that sees a past."""
        super().__init__()
        if model.history:
            raise EbmtrajError("a sequence plan needs an energy of one transition; train it with --set network.history=0")
        self.model, self.level, self.residuals = model, level, model.delta_size
        self.event = model.delta_size + model.action_size
        self.bounds = bounds_of(model.action_fields) if model.actions else None
        # what never moved in the data is left at its mean
        self.register_buffer("moves", model.normaliser.delta_inverse.any(dim=0).float(), persistent=False)

    moves: Tensor  # (D,) 1 for each residual that moves a state, 0 for the others

    def unroll(self, start: Tensor, x: Tensor) -> Sequence:
        """The states that residuals, followed by actions of a model that is given any, `(B, T, D + A)`, lead to."""
        model, r = self.model, x[..., : self.residuals] * self.moves
        actions = self._actions(x)
        state, states, contexts, bases = start, [], [], []
        for t in range(x.shape[1]):
            context = model.context(state, None if actions is None else actions[:, t])
            base = model.tilted.base(context)
            state = model.normaliser.advance(state, model.tilted.increment(r[:, t], base))
            states.append(state)
            contexts.append(context)
            bases.append(base)
        seen = torch.stack(contexts, 1), Base(*(torch.stack(part, 1) for part in zip(*bases, strict=True)))
        return Sequence(torch.stack(states, 1), actions, seen)

    def _actions(self, x: Tensor) -> Tensor | None:
        """The actions `(B, T, A)` that stand behind the residuals, within their bounds."""
        if self.bounds is None:
            return None
        low, high = (side.to(x) for side in self.bounds)
        return 0.5 * (low + high) + 0.5 * (high - low) * torch.tanh(x[..., self.residuals :])

    def energy(self, start: Tensor, sequence: Sequence, x: Tensor, level: Tensor | None) -> Tensor:
        """Energies `(B, T)`, any action as good as another; without a noise level, at the one plans are judged at."""
        tilted, r = self.model.tilted, x[..., : self.residuals] * self.moves
        prepared = tilted.prepare(*sequence.seen)
        level = x.new_full((), self.level) if level is None else level
        still = tilted.tilt(torch.zeros_like(r), prepared, level)
        return tilted.tilt(r, prepared, level) - still + wall(x) + outside(self.model, sequence.states)


class PairCoordinates(TransitionCoordinates):
    """A `cd` model's energy of normalised increments, which its own Gaussian bounds, with the same walls."""

    def __init__(self, model: PairModel) -> None:
        """Raises `EbmtrajError` for a model of next states or of actions."""
        super().__init__()
        if model.actions or model.config.space != "delta":
            raise EbmtrajError("a sequence of states needs a cd model of increments (network.space=delta) without --actions")
        self.model, self.event = model, model.delta_size

    def unroll(self, start: Tensor, x: Tensor) -> Sequence:
        """The states that normalised increments `(B, T, D)` lead to."""
        states = [start]
        for t in range(x.shape[1]):
            states.append(self.model.normaliser.advance(states[-1], x[:, t]))
        return Sequence(torch.stack(states[1:], dim=1), None)

    def energy(self, start: Tensor, sequence: Sequence, x: Tensor, level: Tensor | None) -> Tensor:
        """Energies `(B, T)`; contrastive divergence knows no noise levels."""
        before = torch.cat((start[:, None], sequence.states[:, :-1]), dim=1)
        pairs = torch.cat((self.model.context(before, None), x), dim=-1)
        return self.model.energy(pairs) + wall(x) + outside(self.model, sequence.states)


def coordinates_of(model: TransitionModel, level: float) -> TransitionCoordinates:
    """The coordinates of a transition energy; raises `EbmtrajError` for a model that is none."""
    if isinstance(model, TiltedModel):
        return TiltedCoordinates(model, level)
    if isinstance(model, PairModel):
        return PairCoordinates(model)
    raise EbmtrajError(f"a sequence plan needs a transition energy (dsm or cd), not model {model.name!r}")


def wall(x: Tensor) -> Tensor:
    """What keeps coordinates `(..., D)` where the data is, and the energy bounded, `(...)`."""
    return (x.abs() - BOUND).clamp_min(0).square().sum(-1)


def outside(model: TransitionModel, state: Tensor) -> Tensor:
    """A wall where states leave the data, `(..., S) -> (...)`: its range, or three standard deviations about its mean.

    Beyond, nothing keeps the base's mean and the energy from going anywhere.
    """
    n = model.normaliser
    low = torch.maximum(n.state_low, n.state_mean - BOUND * n.state_scale)
    high = torch.minimum(n.state_high, n.state_mean + BOUND * n.state_scale)
    excess = (low - state).clamp_min(0) + (state - high).clamp_min(0)
    return STEEP * torch.where(n.unbounded, 0.0, excess / n.state_scale).square().sum(-1)


def bounds_of(fields: Several[Field]) -> tuple[Tensor, Tensor]:
    """Lower and upper limits of actions, both `(A,)`; raises `EbmtrajError` where there is none."""
    limits = [field.limits() for field in fields]
    low, high = (torch.tensor([value for limit in limits for value in limit[side]]) for side in (0, 1))
    if not (low.isfinite().all() and high.isfinite().all()):
        raise EbmtrajError("plans of actions need actions with bounds; say low and high of the action fields")
    return low, high
