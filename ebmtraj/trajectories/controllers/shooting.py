"""Shooting: action sequences tried in a learned one-step model, the best of them carried out.

Pinneri et al. 2020; Williams et al. 2017.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from ebmtraj.datasets.windows import Past
from ebmtraj.envs.batch import BatchEnv
from ebmtraj.errors import EbmtrajError
from ebmtraj.trajectories.control import Decision, check_fields
from ebmtraj.trajectories.controllers.behaviour import Behaviour, Chained
from ebmtraj.trajectories.controllers.imagination import Acts, Dynamics, imagine
from ebmtraj.trajectories.controllers.search import best, coloured_noise, elite_moments, path_integral
from ebmtraj.trajectories.costs import TaskCost
from ebmtraj.trajectories.model import TransitionModel
from ebmtraj.trajectories.terms.term import Path
from ebmtraj.trajectories.window import WindowModel


@dataclass(frozen=True)
class ShootingConfig:
    """How sequences of actions are searched for; a `spread` counts in standard deviations of the data's actions.

    Raises `EbmtrajError` for a setting out of its range.
    """

    method: Literal["cem", "mppi"] = "cem"  # cross-entropy, or path integrals
    horizon: int = 32  # control steps that are imagined
    candidates: int = 32  # sequences a round
    rounds: int = 3  # of search a plan
    elites: int = 6  # of a round, from which CEM draws the next
    keep: int = 2  # elites that stay, from round to round and, moved on, from plan to plan (Pinneri et al. 2020)
    momentum: float = 0.1  # share of the last round's moments that CEM keeps
    temperature: float = 0.1  # of MPPI, in standard deviations of the candidates' costs
    spread: float = 0.5  # of the first round without a prior, and of MPPI's rounds after one
    least: float = 0.05  # spread that CEM keeps at least
    smooth: float = 0.7  # correlation of the noise from step to step
    pessimism: float = 0.0  # standard deviations of the members' costs that are added to their mean
    energy: bool = True  # of a behaviour prior: false: the Gaussian base alone
    levels: int = 6  # noise levels of a behaviour prior's draw
    renoise: float = 0.0  # of rounds after the first, by the prior: level from which elites are drawn anew; 0: Gaussians
    members: int = 0  # of an ensemble that imagine, its first ones; 0: all
    judge: int = 4  # steps between the states that the task judges
    every: int = 2  # control steps between plans

    def __post_init__(self) -> None:
        counts = ("horizon", "candidates", "rounds", "elites", "judge", "every")
        for name in counts:
            if getattr(self, name) < 1:
                raise EbmtrajError(f"controller: {name} = {getattr(self, name)}; it needs at least 1")
        if self.elites > self.candidates or not 0 <= self.keep <= self.elites or self.keep >= self.candidates:
            raise EbmtrajError(
                f"controller: candidates = {self.candidates}, elites = {self.elites}, keep = {self.keep}; it needs "
                "keep <= elites <= candidates and keep < candidates"
            )
        if self.judge > self.horizon or self.every > self.horizon:
            raise EbmtrajError(
                f"controller: horizon = {self.horizon}, judge = {self.judge}, every = {self.every}; neither of the latter "
                "may be above the horizon"
            )
        for name in ("temperature", "spread", "least"):
            if getattr(self, name) <= 0:
                raise EbmtrajError(f"controller: {name} = {getattr(self, name)}; it needs more than 0")
        for name in ("pessimism", "renoise", "members"):
            if getattr(self, name) < 0:
                raise EbmtrajError(f"controller: {name} = {getattr(self, name)}; it needs 0 or more")
        if not 0 <= self.momentum < 1 or not 0 <= self.smooth < 1:
            raise EbmtrajError(
                f"controller: momentum = {self.momentum}, smooth = {self.smooth}; both need to be from 0 to below 1"
            )


class Shooting:
    """CEM (as iCEM, Pinneri et al. 2020) or MPPI (Williams et al. 2017) in a learned one-step model, all episodes at once.

    Without a prior, sequences are drawn from Gaussians around the last plan. With one, those of the first round are windows
    that the data would take, drawn one after the other along the imagined future (with MPPI and one round, as MBOP, Argenson
    & Dulac-Arnold 2021). A sequence costs what the task says of it, mean over the model's members.
    """

    def __init__(self, model: TransitionModel, config: ShootingConfig, prior: WindowModel | None = None) -> None:
        """Raises `EbmtrajError` where the two models, or the model and the task's actions, do not go together."""
        self.model, self.config = model, config
        self.dynamics = Dynamics(model, config.members)
        self.prior = None if prior is None else Behaviour(prior, energy=config.energy, levels=config.levels)
        if prior is not None and (prior.state_fields, prior.action_fields) != (model.state_fields, model.action_fields):
            raise EbmtrajError("the behaviour prior and the one-step model were trained on other states or actions")
        self.seen = max(1, model.history, 0 if prior is None else prior.config.controls)
        low, high = zip(*(limit for f in model.action_fields for limit in zip(*f.limits(), strict=True)), strict=True)
        device = model.normaliser.action_mean.device
        self.low, self.high = torch.tensor(low, device=device), torch.tensor(high, device=device)

    def begin(self, env: BatchEnv, state: Tensor, task: TaskCost, generator: torch.Generator) -> None:
        """Forget the past; see `Controller.begin`."""
        check_fields(env, self.model.state_fields, self.model.action_fields)
        self._task, self._generator = task, generator
        self._state, self._past = state, Past.unknown(state, self.seen, self.model.action_size)
        self._mean = self.model.normaliser.action_mean.expand(len(state), self.config.horizon, -1)
        self._kept: Tensor | None = None  # (B, K, T, A), what goes on from the last plan
        self._decided: Decided | None = None
        self._done = 0  # steps of the plan in use that were carried out

    @torch.no_grad()
    def __call__(self, state: Tensor, previous: Tensor | None) -> Decision:
        """The next action of the plan in use, which is made anew every `config.every` steps."""
        if previous is not None:
            self._past = self._past.push(self._state, previous)
        self._state = state
        if self._decided is None or self._done == self.config.every:
            if self._decided is not None:
                self._mean = _moved_on(self._mean, self.config.every)
                self._kept = None if self._kept is None else _moved_on(self._kept, self.config.every)
            self._decided, self._done = self._search(), 0
        self._done += 1
        return Decision(self._decided.actions[:, self._done - 1], self._decided.cost, self._decided.path)

    def _search(self) -> Decided:
        """Some rounds of sequences, each nearer to what was best in the last."""
        config, steps = self.config, self.config.horizon
        unit = self.model.normaliser.action_scale
        mean, std, kept = self._mean, (config.spread * unit).expand_as(self._mean), self._kept
        known = steps if self.prior is None else steps - config.every  # the prior says how what is kept goes on
        elites: Tensor | None = None
        for number in range(config.rounds):
            gaussian = self.prior is None or (number > 0 and config.renoise == 0)
            given = self._around(mean, std, kept) if gaussian else kept
            tried = self._tried(given, known, None if gaussian else elites)
            known, elites = steps, best(tried.actions, tried.cost, config.elites)[0]
            if config.method == "mppi":
                mean = path_integral(tried.actions, tried.cost, config.temperature).clamp(self.low, self.high)
                kept = mean.unsqueeze(1)
            else:
                momentum = config.momentum if gaussian else 0.0  # a prior's sequences were not drawn around the mean
                mean, std = elite_moments(elites, mean, std, momentum, config.least * unit)
                kept = elites[:, : config.keep]
        if config.method == "mppi":
            tried = self._tried(mean.unsqueeze(1), steps, None, many=1)
        self._mean, self._kept = mean, kept
        return tried.best()

    def _around(self, mean: Tensor, std: Tensor, kept: Tensor | None) -> Tensor:
        """What is kept, and Gaussian sequences around the mean, `(B, N, T, A)` together."""
        many = self.config.candidates - (0 if kept is None else kept.shape[1])
        shape = (len(mean), many, *mean.shape[1:])
        noise = coloured_noise(shape, self.config.smooth, self._generator, mean.device)
        drawn = torch.clamp(mean.unsqueeze(1) + std.unsqueeze(1) * noise, self.low, self.high)
        return drawn if kept is None else torch.cat((kept, drawn), dim=1)

    def _tried(self, given: Tensor | None, known: int, elites: Tensor | None, many: int | None = None) -> Tried:
        """What `many` sequences would come to: those given `(B, K, T, A)`, and windows drawn from the prior beside them.

        Of what is given, the first `known` steps are taken, and the prior goes on. With `elites` `(B, K', T, A)`, what it
        draws are mutations of these, each having as many children.
        """
        many, steps, (batch, _) = many or self.config.candidates, self.config.horizon, self._state.shape
        place = torch.arange(many, device=self._state.device)
        rows = torch.arange(batch, device=place.device).repeat_interleave(many)
        state, past = self._state[rows], self._past.rows(rows)
        sequence, count = state.new_zeros((batch, many, steps, self.model.action_size)), 0
        if given is not None:
            count = given.shape[1]
            sequence[:, :count] = given
        sequence = sequence.flatten(0, 1)
        acts: Acts = partial(_given, sequence)
        if self.prior is not None and (count < many or known < steps):
            fixed = (place < count).repeat(batch).unsqueeze(1) & (torch.arange(steps, device=place.device) < known)
            member = place.repeat(batch) % self.dynamics.members  # in whose future it draws
            parents = None if elites is None else elites[:, place % elites.shape[1]].flatten(0, 1)
            mutation = None if parents is None else (parents, self.config.renoise)
            acts = Chained(self.prior, past, member, self._generator, sequence, fixed, mutation)
        now = self.dynamics.begin(state, past)
        actions, states, times = imagine(self.dynamics, now, acts, steps, self.config.judge)
        costs = self._costs(state, actions, states, times, rows).view(-1, batch, many)
        cost = costs.mean(0) + self.config.pessimism * costs.std(0, unbiased=False)
        expected = self.model.normaliser.increments.project(states.mean(0), states[0])
        return Tried(actions.view(batch, many, steps, -1), cost, Path(state, expected, times, actions))

    def _costs(self, state: Tensor, actions: Tensor, states: Tensor, times: Tensor, rows: Tensor) -> Tensor:
        """What the task says of each member's futures `(M, R, H, S)`, `(M * R,)`; `rows` `(R,)` are their episodes."""
        members = len(states)
        start, taken = (x.expand(members, *x.shape).flatten(0, 1) for x in (state, actions))
        return self._task.rows(rows.repeat(members))(Path(start, states.flatten(0, 1), times, taken))


class Decided(NamedTuple):
    """A sequence for each episode."""

    actions: Tensor  # (B, T, A)
    cost: Tensor  # (B,)
    path: Path  # with the mean of the members' states


class Tried(NamedTuple):
    """Sequences and what they came to."""

    actions: Tensor  # (B, N, T, A)
    cost: Tensor  # (B, N)
    path: Path  # of B * N rows

    def best(self) -> Decided:
        """The one of least cost."""
        batch, many = self.cost.shape
        least, place = self.cost.min(dim=1)
        rows = place + many * torch.arange(batch, device=place.device)
        path = Path(self.path.start[rows], self.path.states[rows], self.path.times, self.actions.flatten(0, 1)[rows])
        return Decided(self.actions.flatten(0, 1)[rows], least, path)


def _given(sequence: Tensor, t: int, states: Tensor) -> Tensor:
    """Actions `(R, T, A)` as they are, whatever comes of them."""
    return sequence[:, t]


def _moved_on(sequences: Tensor, steps: int) -> Tensor:
    """Sequences `(..., T, A)` from `steps` later on; the last action is repeated."""
    return torch.cat((sequences[..., steps:, :], sequences[..., -1:, :].expand_as(sequences[..., :steps, :])), dim=-2)
