"""Plans by the trajectory energy: sequences of states drawn from summed transition energies plus a task cost."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from ebmtraj.energies.sequence import SequenceContext, SequenceEnergy, TransitionCoordinates
from ebmtraj.errors import EbmtrajError
from ebmtraj.fields import Field
from ebmtraj.samplers.anneal import Ladder
from ebmtraj.samplers.langevin import LangevinConfig, frozen, langevin
from ebmtraj.trajectories.costs import Path, TaskCost
from ebmtraj.trajectories.inverse import InverseModel
from ebmtraj.trajectories.model import TransitionModel
from ebmtraj.trajectories.transition import PairModel, TiltedModel

BOUND = 3.0  # standard deviations of a residual beyond which a wall is added to the energy
REACH = 6.0  # at which chains are stopped


class TiltedCoordinates(TransitionCoordinates):
    """A `dsm` model's energy of its base's residuals r, with a wall where they leave the data.

    The base's mean and spread carry the states on, s_t+1 = s_t + mu(s_t) + sigma(s_t) r_t. In r, the density of a sequence
    is the product of the tilts alone: the base's log sigma is the volume of the change of coordinates. Score matching leaves
    a constant of each context open; it is set so that r = 0 has energy 0 everywhere, as it has under the base.
    """

    def __init__(self, model: TiltedModel, level: float) -> None:
        super().__init__()
        if model.history:
            raise EbmtrajError("a sequence plan needs an energy of one transition; train it with --set network.history=0")
        self.model, self.level, self.residuals = model, level, model.delta_size
        self.event = model.delta_size + model.action_size
        # what never moved in the data is left at its mean
        self.moves = model.normaliser.delta_inverse.any(dim=0).to(model.normaliser.delta_inverse)

    def states(self, start: Tensor, x: Tensor) -> Tensor:
        """The states `(B, T, S)` that residuals (and actions) `(B, T, D + A)` lead to."""
        states, tilted, actions = [start], self.model.tilted, self.actions(x)
        for t in range(x.shape[1]):
            base = tilted.base(self.model.context(states[-1], None if actions is None else actions[:, t]))
            r = x[:, t, : self.residuals] * self.moves
            states.append(self.model.normaliser.advance(states[-1], tilted.increment(r, base)))
        return torch.stack(states[1:], dim=1)

    def actions(self, x: Tensor) -> Tensor | None:
        """The actions `(..., A)` that stand behind the residuals, where the model is given any."""
        if not self.model.actions:
            return None
        low, high = bounds_of(self.model.action_fields, x)
        return 0.5 * (low + high) + 0.5 * (high - low) * torch.tanh(x[..., self.residuals :])

    def energy(self, state: Tensor, x: Tensor, level: Tensor | None) -> Tensor:
        """Energies `(B,)` of residuals, any action as good as another; without a noise level, at the lowest one."""
        tilted, r = self.model.tilted, x[..., : self.residuals] * self.moves
        context = self.model.context(state, self.actions(x))
        prepared = tilted.prepare(context, tilted.base(context))
        level = x.new_full((), self.level) if level is None else level
        energy = tilted.tilt(r, prepared, level) - tilted.tilt(torch.zeros_like(r), prepared, level)
        return energy + _wall(x) + _outside(self.model, state)


class PairCoordinates(TransitionCoordinates):
    """A `cd` model's energy of normalised increments, which its own Gaussian bounds."""

    def __init__(self, model: PairModel) -> None:
        super().__init__()
        if model.actions or model.config.space != "delta":
            raise EbmtrajError("a sequence of states needs a cd model of increments (network.space=delta) without --actions")
        self.model, self.event = model, model.delta_size

    def states(self, start: Tensor, x: Tensor) -> Tensor:
        """The states `(B, T, S)` that normalised increments `(B, T, D)` lead to."""
        states = [start]
        for t in range(x.shape[1]):
            states.append(self.model.normaliser.advance(states[-1], x[:, t]))
        return torch.stack(states[1:], dim=1)

    def energy(self, state: Tensor, x: Tensor, level: Tensor | None) -> Tensor:
        """Energies `(B,)` of transitions; contrastive divergence knows no noise levels."""
        pair = torch.cat((self.model.context(state, None), x), dim=-1)
        return self.model.energy(pair) + _wall(x) + _outside(self.model, state)


def bounds_of(fields: Sequence[Field], like: Tensor) -> tuple[Tensor, Tensor]:
    """Lower and upper limits of actions, both `(A,)`; raises `EbmtrajError` where there is none."""
    limits = [field.limits() for field in fields]
    low, high = (torch.tensor([v for limit in limits for v in limit[side]]).to(like) for side in (0, 1))
    if not (low.isfinite().all() and high.isfinite().all()):
        raise EbmtrajError("plans of actions need actions with bounds; say low and high of the action fields")
    return low, high


def _wall(x: Tensor) -> Tensor:
    """What keeps coordinates `(B, D)` where the data is, and the energy bounded, `(B,)`."""
    return (x.abs() - BOUND).clamp_min(0).square().sum(-1)


def _outside(model: TransitionModel, state: Tensor) -> Tensor:
    """A wall where a state leaves the range of the data, `(B, S) -> (B,)`, in standard deviations."""
    n = model.normaliser
    low, high = (torch.where(n.unbounded, side, end) for side, end in ((-torch.inf, n.state_low), (torch.inf, n.state_high)))
    excess = (low - state).clamp_min(0) + (state - high).clamp_min(0)
    return 1e3 * (excess / n.state_scale).square().sum(-1)


@dataclass(frozen=True)
class SequenceConfig:
    """How sequences are planned."""

    horizon: int = 16  # control steps
    plans: int = 4  # chains a start; the one of least energy plus cost is followed
    weight: float = 30.0  # of the task cost; far above 1,000, plans leave the data
    level: float = 0.4  # noise level at which dsm's energy judges plans, and the last of its ladder
    first: float = 1.0  # the first
    again: float = 0.8  # the first where the last plan, some steps on, is gone on with
    levels: int = 4
    steps: int = 6  # Langevin steps at each level
    step_size: float = 0.3  # times the level's square
    temperature: float = 0.02  # 1 samples the data's own sequences, tilted by the cost; near 0, the best ones
    clip: float = 5.0  # bound on each entry of the gradient
    follow: int = 1  # control steps before planning anew

    def __post_init__(self) -> None:
        if min(self.horizon, self.plans, self.levels - 1, self.steps, self.follow) < 1 or self.weight < 0:
            raise EbmtrajError(
                f"sequence plan: horizon = {self.horizon}, plans = {self.plans}, levels = {self.levels}, steps = "
                f"{self.steps}, follow = {self.follow}, weight = {self.weight}; levels >= 2, weight >= 0, the others >= 1"
            )
        if not 0 < self.level < self.again <= self.first:
            raise EbmtrajError(
                f"sequence plan: level = {self.level}, again = {self.again}, first = {self.first}; "
                "it needs 0 < level < again <= first"
            )

    def sampler(self, *, cold: bool) -> LangevinConfig:
        """The chain: annealed from `first`, or from `again` where there is a plan to go on with."""
        top = self.first if cold else self.again
        return LangevinConfig(
            steps=self.steps,
            step_size=self.step_size,
            temperature=self.temperature,
            clip=self.clip,
            ladder=Ladder(levels=self.levels, sigma_max=top, sigma_min=self.level, rho=3.0, predictor="none"),
        )


class SequencePlan(NamedTuple):
    """Plans from each of B starts, N each, and which one is best."""

    states: Tensor  # (B, N, T+1, S)
    energy: Tensor  # (B, N) of the transitions
    cost: Tensor  # (B, N) of the task, unweighted
    best: Tensor  # (B,)
    actions: Tensor | None  # (B, N, T, A), of an energy that is given them
    coordinates: Tensor  # (B, N, T, D) of the transitions; what the next plan goes on with

    def followed(self) -> Tensor:
        """The best plan's states, `(B, T+1, S)`."""
        return self.states[torch.arange(len(self.best)), self.best]


class SequencePlanner:
    """Plan, follow the first steps, plan again: `act(states (B, S)) -> actions (B, A)`.

    `model` is a trained transition energy: E(s, s'), `dsm` or `cd`, whose plans the `inverse` model follows, or a `dsm` one
    E(s, a, s'), whose plans hold actions. Raises `EbmtrajError` for other models and for a task or
    an inverse model of other fields.
    """

    def __init__(
        self,
        model: TransitionModel,
        task: TaskCost,
        inverse: InverseModel | None = None,
        config: SequenceConfig | None = None,
    ) -> None:
        self.config = config or SequenceConfig()
        self.task, self.inverse = task, inverse
        names = [(f.name, f.size) for f in model.state_fields]
        for label, other in (("task", task.state_fields), ("inverse model", inverse.state_fields if inverse else None)):
            if other is not None and [(f.name, f.size) for f in other] != names:
                raise EbmtrajError(
                    f"the {label} is of other state fields than the transition model; make both from one store"
                )
        self.transitions: TransitionCoordinates
        if isinstance(model, TiltedModel):
            self.transitions = TiltedCoordinates(model, self.config.level)
        elif isinstance(model, PairModel):
            self.transitions = PairCoordinates(model)
        else:
            raise EbmtrajError(f"a sequence plan needs a transition energy (dsm or cd), not model {model.name!r}")
        self.energy = SequenceEnergy(self.transitions, weight=self.config.weight)
        self.last: SequencePlan | None = None
        self._age = 0

    def reset(self) -> None:
        """Forget the last plan: episodes begin."""
        self.last, self._age = None, 0

    def plan(self, start: Tensor, generator: torch.Generator, last: SequencePlan | None = None) -> SequencePlan:
        """Plans from starts `(B, S)`: chains from a Gaussian or from the `last` plan, `follow` steps on."""
        config, batch = self.config, len(start)
        shape = (batch * config.plans, config.horizon, self.transitions.event)
        x = torch.empty(shape).normal_(generator=generator)
        if last is not None:
            on = min(config.follow, config.horizon)
            old = last.coordinates.flatten(0, 1)
            x = torch.cat((old[:, on:], torch.zeros_like(old[:, :on])), dim=1)
            x[:: config.plans] = x[torch.arange(batch) * config.plans + last.best]  # the best one is gone on with, too
        rows = torch.arange(batch).repeat_interleave(config.plans)
        task = self.task.rows(rows)
        context = SequenceContext(start[rows], lambda *path: task.cost(Path.sequence(*path)))
        sampler = config.sampler(cold=last is None)
        x, _ = langevin(
            self.energy, x, sampler, context=context, project=lambda x: x.clamp(-REACH, REACH), generator=generator
        )
        with frozen(self.energy), torch.no_grad():
            energy, cost, states = self.energy.parts(x, context)
            actions = self.transitions.actions(x)
        states = torch.cat((context.start[:, None], states), dim=1)
        total = (energy + config.weight * cost).view(batch, config.plans)
        if not total.isfinite().all():
            raise EbmtrajError("a sequence plan did not stay finite; lower step_size or weight")
        fold = (batch, config.plans)
        return SequencePlan(
            states.view(*fold, *states.shape[1:]),
            energy.view(fold),
            cost.view(fold),
            total.argmin(1),
            None if actions is None else actions.view(*fold, *actions.shape[1:]),
            x.view(*fold, *x.shape[1:]),
        )

    @torch.no_grad()
    def act(self, states: Tensor, generator: torch.Generator) -> Tensor:
        """Actions `(B, A)` in states `(B, S)`, planning anew every `follow` steps; call `reset` when episodes begin."""
        if self.inverse is None and self.transitions.actions(states.new_zeros(1, 1, self.transitions.event)) is None:
            raise EbmtrajError("to act on a plan of states, an inverse model is needed; train one on the same store")
        if self.last is None or self._age >= self.config.follow:
            last = self.last if self.last is not None and len(self.last.best) == len(states) else None
            self.last, self._age = self.plan(states, generator, last), 0
        self._age += 1
        if self.inverse is not None:
            return self.inverse(states, self.last.followed()[:, self._age])
        assert self.last.actions is not None
        return self.last.actions[torch.arange(len(states)), self.last.best, self._age - 1]
