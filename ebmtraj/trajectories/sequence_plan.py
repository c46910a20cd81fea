"""Plans by the trajectory energy: sequences of states drawn from summed transition energies plus a task cost.

Papers 000, section 5, and 002; Du, Lin and Mordatch 2019.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from ebmtraj.energies.sequence import SequenceContext, SequenceEnergy
from ebmtraj.envs.batch import BatchEnv
from ebmtraj.errors import EbmtrajError
from ebmtraj.samplers.anneal import Ladder
from ebmtraj.samplers.langevin import LangevinConfig, frozen, langevin
from ebmtraj.trajectories.control import Decision, check_fields
from ebmtraj.trajectories.costs import Path, TaskCost
from ebmtraj.trajectories.model import TransitionModel
from ebmtraj.trajectories.sequence_coordinates import coordinates_of

REACH = 6.0  # standard deviations at which chains are stopped

Inverse = Callable[[Tensor, Tensor], Tensor]  # states (B, S), the next ones (B, S) -> actions (B, A)


@dataclass(frozen=True)
class SequenceConfig:
    """How sequences are planned; nothing here is trained, so all of it can be set anew for each task.

    Raises `EbmtrajError` for a setting out of its range.
    """

    horizon: int = 16  # control steps
    plans: int = 4  # chains a start; the one of least energy plus cost is followed
    fresh: int = 0  # of them, chains that set out anew at each plan: a way around what the others are stuck at
    correlation: float = 0.0  # from step to step of the noise that chains set out from; near 1, they go far apart
    weight: float = 30.0  # of the task cost; far above 1,000, plans leave the data
    level: float = 0.4  # noise level at which dsm's energy judges plans, and the last of its ladder
    first: float = 1.0  # the first
    again: float = 0.8  # the first where the last plan, some steps on, is gone on with
    levels: int = 4  # noise levels from the first to the last
    steps: int = 6  # Langevin steps at each level
    step_size: float = 0.3  # times the level's square
    temperature: float = 0.02  # 1 samples the data's own sequences, tilted by the cost; near 0, the best ones
    clip: float = 5.0  # bound on each entry of the gradient
    every: int = 1  # control steps between plans
    deadline: int = 0  # control step of an episode at which every plan ends, nearer than its horizon; 0: none

    def __post_init__(self) -> None:
        if min(self.horizon, self.plans, self.levels - 1, self.steps, self.every) < 1 or min(self.weight, self.deadline) < 0:
            raise EbmtrajError(
                f"sequence plan: horizon = {self.horizon}, plans = {self.plans}, levels = {self.levels}, steps = "
                f"{self.steps}, every = {self.every}, weight = {self.weight}, deadline = {self.deadline}; it needs "
                "levels >= 2, weight and deadline >= 0, the others >= 1"
            )
        if not 0 < self.level < self.again <= self.first:
            raise EbmtrajError(
                f"sequence plan: level = {self.level}, again = {self.again}, first = {self.first}; "
                "it needs 0 < level < again <= first"
            )
        if not 0 <= self.fresh < self.plans or not 0 <= self.correlation < 1:
            raise EbmtrajError(
                f"sequence plan: fresh = {self.fresh}, plans = {self.plans}, correlation = {self.correlation}; it needs "
                "0 <= fresh < plans and 0 <= correlation < 1"
            )
        self.sampler(cold=True)

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

    states: Tensor  # (B, N, T, S)
    energy: Tensor  # (B, N) of the transitions
    cost: Tensor  # (B, N) of the task, unweighted
    best: Tensor  # (B,)
    actions: Tensor | None  # (B, N, T, A), of an energy that is given them
    coordinates: Tensor  # (B, N, T, D) of the transitions; what the next plan goes on with

    def of_best(self, values: Tensor) -> Tensor:
        """Each start's best of values `(B, N, ...)`, `(B, ...)`."""
        return values[torch.arange(len(self.best), device=values.device), self.best]


@torch.no_grad()
def plan_sequences(
    energy: SequenceEnergy,
    start: Tensor,
    task: TaskCost,
    config: SequenceConfig,
    *,
    generator: torch.Generator,
    last: SequencePlan | None = None,
    horizon: int | None = None,
) -> SequencePlan:
    """Langevin chains over whole sequences from starts `(B, S)`, from a Gaussian or from the `last` plan, `every` steps on.

    With `horizon`, plans are shorter than `config` says. `task` may have options with a value for each start. Raises
    `EbmtrajError` where a chain does not stay finite.
    """
    fold, horizon = (len(start), config.plans), horizon or config.horizon
    x = torch.empty(*fold, horizon, energy.transitions.event, device=start.device).normal_(generator=generator)
    for t in range(1, horizon):
        x[:, :, t] = config.correlation * x[:, :, t - 1] + (1 - config.correlation**2) ** 0.5 * x[:, :, t]
    if last is not None:
        x[:, : config.plans - config.fresh] = _moved_on(last, config.every)[:, : config.plans - config.fresh, :horizon]
    x = x.flatten(0, 1)
    rows = torch.arange(len(start), device=start.device).repeat_interleave(config.plans)
    each = task.rows(rows)
    context = SequenceContext(start[rows], lambda *path: each.cost(Path.sequence(*path)))
    sampler = config.sampler(cold=last is None)
    x, _ = langevin(energy, x, sampler, context=context, project=lambda x: x.clamp(-REACH, REACH), generator=generator)
    with frozen(energy):
        energies, cost, sequence = energy.parts(x, context)
    total = (energies + energy.weight * cost).view(fold)
    if not total.isfinite().all():
        raise EbmtrajError("a sequence plan did not stay finite; lower step_size or weight")
    actions = None if sequence.actions is None else sequence.actions.unflatten(0, fold)
    states, coordinates = sequence.states.unflatten(0, fold), x.unflatten(0, fold)
    return SequencePlan(states, energies.view(fold), cost.view(fold), total.argmin(1), actions, coordinates)


def _moved_on(last: SequencePlan, steps: int) -> Tensor:
    """The last plan's coordinates `(B, N, T, D)`, some steps on, with the base's mean at the end.

    The first chain goes on with the best plan, the others each with their own.
    """
    x = last.coordinates.clone()
    x[:, 0] = last.of_best(last.coordinates)
    return torch.cat((x[:, :, steps:], torch.zeros_like(x[:, :, :steps])), dim=2)


class SequencePlanner:
    """Plan, follow the first steps, plan again; see `Controller`.

    `model` is a trained transition energy: E(s, s'), `dsm` or `cd`, whose plans the `inverse` model follows, or a `dsm` one
    E(s, a, s'), whose plans hold actions. Raises `EbmtrajError` for other models.
    """

    def __init__(self, model: TransitionModel, inverse: Inverse | None = None, config: SequenceConfig | None = None) -> None:
        self.model, self.inverse, self.config = model, inverse, config or SequenceConfig()
        if inverse is None and not model.actions:
            raise EbmtrajError("to act on a plan of states, an inverse model is needed; use a run of ebmtraj train sequence")
        self.energy = SequenceEnergy(coordinates_of(model, self.config.level), weight=self.config.weight)

    def begin(self, env: BatchEnv, state: Tensor, task: TaskCost, generator: torch.Generator) -> None:
        """Forget the last plan; see `Controller.begin`."""
        check_fields(env, self.model.state_fields, self.model.action_fields)
        self._task, self._generator = task, generator
        self._plan: SequencePlan | None = None
        self._time = self._done = 0  # steps carried out, of the episode and of the plan in use

    @torch.no_grad()
    def __call__(self, state: Tensor, previous: Tensor | None) -> Decision:
        """The action that takes states `(B, S)` to the next ones of the plan, made anew every `config.every` steps."""
        config = self.config
        if self._plan is None or self._done == min(config.every, self._plan.states.shape[2]):
            left = config.deadline - self._time if config.deadline else config.horizon
            self._plan = plan_sequences(
                self.energy,
                state,
                self._task,
                config,
                generator=self._generator,
                last=self._plan,
                horizon=max(1, min(config.horizon, left)),
            )
            self._path = Path.sequence(state, self._plan.of_best(self._plan.states))
            self._done = 0
        if self.inverse is not None:
            action = self.inverse(state, self._path.states[:, self._done])
        else:
            assert self._plan.actions is not None
            action = self._plan.of_best(self._plan.actions)[:, self._done]
        self._done += 1
        self._time += 1
        return Decision(action, self._plan.of_best(self._plan.cost), self._path)
