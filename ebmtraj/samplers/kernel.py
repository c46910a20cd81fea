"""The step contract of the samplers that accept or reject: one Metropolis step, with all its noise passed in. Neal 2011."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ebmtraj.samplers.backends import Energy, value_and_gradient_of
from ebmtraj.samplers.checks import check_finite, rows
from ebmtraj.samplers.langevin import Info


class State(NamedTuple):
    """A chain's place, what is known there, and so what a rejection brings back."""

    x: Tensor  # (B, *event)
    energy: Tensor  # (B,)
    gradient: Tensor  # (B, *event)
    parts: tuple[Tensor, ...] = ()  # whatever else the target computed there, each (B, ...)


class Proposal(NamedTuple):
    """What happened in one step."""

    error: Tensor  # (B,) Hamiltonian after less before
    is_accepted: Tensor  # (B,)
    x: Tensor  # (B, *event) the place proposed
    energy: Tensor  # (B,) there

    @property
    def accept(self) -> Tensor:
        """Probability of the proposal, `(B,)`."""
        return torch.exp(-self.error.clamp_min(0)).nan_to_num(0.0)

    @property
    def fault(self) -> Tensor:
        """Whether the energy of a finite place is not a number, `(B,)`."""
        return self.energy.isnan() & rows(self.x).sum(1).isfinite()


Target = Callable[[Tensor], State]


def hamiltonian_step(
    target: Target,
    state: State,
    momentum: Tensor,
    log_uniform: Tensor,
    size: Tensor,
    *,
    leapfrog: int = 1,
    beta: Tensor | float = 1.0,
    scale: Tensor | float = 1.0,
    support: Callable[[Tensor], Tensor] | None = None,
) -> tuple[State, Proposal]:
    """One Metropolis step along `leapfrog` steps of Hamiltonian dynamics; all its noise is passed in.

    `momentum` (B, *event) is standard normal, `log_uniform` (B,) the log of a uniform number, `size` the leapfrog step, `()`
    or `(B, 1, ...)`, and `beta` the inverse temperature, a number or `(B, 1, ...)`. With one leapfrog step this is MALA with
    step size^2 / beta (Neal 2011, section 5.2). A proposal out of reach or outside the `support`, `(B, *event) -> (B,)`, is
    rejected.
    """
    drift = size if _is_one(scale) else size * scale
    kick = drift if _is_one(beta) else drift * beta
    p = torch.addcmul(momentum, kick, state.gradient, value=-0.5)
    new = state
    for step in range(leapfrog):
        if step > 0:
            p = torch.addcmul(p, kick, new.gradient, value=-1)
        new = target(torch.addcmul(new.x, drift, p))
    p = torch.addcmul(p, kick, new.gradient, value=-0.5)
    rise = new.energy - state.energy
    if not _is_one(beta):
        rise = rise * (beta.flatten() if isinstance(beta, Tensor) else beta)
    error = torch.add(rise, _square(p) - _square(momentum), alpha=0.5)
    if support is not None:
        error = torch.where(support(new.x), error, math.inf)
    is_accepted = log_uniform + error < 0  # not so where the error is not a number
    return select(is_accepted, new, state), Proposal(error, is_accepted, new.x, new.energy)


def _is_one(factor: Tensor | float) -> bool:
    return not isinstance(factor, Tensor) and factor == 1


def _square(p: Tensor) -> Tensor:
    p = rows(p)
    return torch.linalg.vecdot(p, p)


def select(chosen: Tensor, a: State, b: State) -> State:
    """The state `a` where `chosen` `(B,)`, else `b`."""

    whole = chosen.view(-1, *[1] * (a.x.dim() - 1)).expand_as(a.x).contiguous()  # once, as a broadcast one is slower to read

    def pick(one: Tensor, other: Tensor) -> Tensor:
        return torch.where(whole if one.dim() == whole.dim() else chosen, one, other)

    parts = tuple(pick(*pair) for pair in zip(a.parts, b.parts, strict=True))
    return State(pick(a.x, b.x), pick(a.energy, b.energy), pick(a.gradient, b.gradient), parts)


class Noise:
    """All the noise of a chain of states x `(B, *event)`, drawn in one order from one generator."""

    def __init__(self, x: Tensor, mask: Tensor | None, generator: torch.Generator) -> None:
        self.x, self.mask, self.generator = x, mask, generator

    def momentum(self) -> Tensor:
        """Standard normal `(B, *event)`, 0 where x is held."""
        p = torch.empty_like(self.x).normal_(generator=self.generator)
        return p if self.mask is None else torch.where(self.mask.bool(), p, 0.0)

    def log_uniform(self, like: Tensor | None = None) -> Tensor:
        """Minus an exponential number, `(B,)` or as `like`, which is how the log of a uniform one is distributed."""
        empty = (
            torch.empty(len(self.x), dtype=self.x.dtype, device=self.x.device) if like is None else torch.empty_like(like)
        )
        return -empty.exponential_(generator=self.generator)

    def sized(self, size: Tensor, share: float) -> Tensor:
        """The step size, with a `share` of jitter times a factor of each chain, `(B, 1, ...)`."""
        if share == 0:
            return size
        shape = (len(self.x), *[1] * (self.x.dim() - 1))
        factors = torch.empty(shape, dtype=self.x.dtype, device=self.x.device)
        return size * factors.uniform_(1 - share, 1 + share, generator=self.generator)


class Block:
    """The noise of several steps, drawn in the order of one step after the other; `size` is one step's, `()`."""

    def __init__(self, noise: Noise, length: int, size: Tensor, jitter: float) -> None:
        self.noise, self.size, self.jitter = noise, size, jitter
        self.momenta = noise.x.new_empty((length, *noise.x.shape))
        self.exponentials = noise.x.new_empty((length, len(noise.x)))
        self.rows = list(zip(self.momenta.unbind(0), self.exponentials.unbind(0), strict=True))

    def __call__(self) -> tuple[Tensor, Tensor, Tensor]:
        """Momenta `(K, B, *event)`, logs of uniform numbers `(K, B)` and step sizes, `()` or `(K, B, 1, ...)`."""
        sizes = []
        for momentum, exponential in self.rows:
            momentum.normal_(generator=self.noise.generator)
            exponential.exponential_(generator=self.noise.generator)
            if self.jitter:
                sizes.append(self.noise.sized(self.size, self.jitter))
        held = self.noise.mask
        momenta = self.momenta if held is None else torch.where(held.bool(), self.momenta, 0.0)
        return momenta, -self.exponentials, torch.stack(sizes) if sizes else self.size


def target_of(energy: Energy, context: Any, mask: Tensor | None, backend: str) -> Target:
    """The energy and its gradient as a chain sees them: at one context, with no slope where x `(B, *event)` is held."""
    both = value_and_gradient_of(energy, backend)

    def target(x: Tensor) -> State:
        value, g = both(x, context)
        return State(x, value, g if mask is None else torch.where(mask.bool(), g, 0.0))

    return target


def begin(
    energy: Energy, target: Target, x: Tensor, project: Callable[[Tensor], Tensor] | None, mask: Tensor | None
) -> State:
    """The first state, at x `(B, *event)`; raises `DivergedError` where its energy or gradient is not finite."""
    check_finite(energy, "state", x)
    first = x if project is None else project(x)
    state = target(first if mask is None else torch.where(mask.bool(), first, x))
    check_finite(energy, "energy", state.energy)
    check_finite(energy, "gradient", state.gradient)
    return state


def within(project: Callable[[Tensor], Tensor] | None) -> Callable[[Tensor], Tensor] | None:
    """Whether a place is one that `project` leaves as it is, `(B, *event) -> (B,)`."""
    return None if project is None else lambda x: rows(project(x) == x).all(1)


class History:
    """What is kept of the steps of a chain of states x `(B, *event)`, if anything."""

    def __init__(self, record: bool, keep: int, steps: int, x: Tensor) -> None:
        self.record, self.keep = record, keep
        self.states = x.new_empty((steps // keep, *x.shape)) if keep else None
        self.energies: list[Tensor] = []
        self.norms: list[Tensor] = []
        self.errors: list[Tensor] = []

    def add(self, k: int, before: State, after: State, proposal: Proposal) -> None:
        """Take in step k, counted from 0."""
        if self.record:
            self.energies.append(before.energy)
            self.norms.append(rows(before.gradient).norm(dim=1))
            self.errors.append(proposal.error)
        if self.states is not None and (k + 1) % self.keep == 0:
            self.states[(k + 1) // self.keep - 1] = after.x

    def add_all(self, first: int, states: Tensor) -> None:
        """Take in the states `(K, B, *event)` after the steps from `first` on, of which nothing else is recorded."""
        if self.states is not None:
            before = first // self.keep
            kept = states[(before + 1) * self.keep - 1 - first :: self.keep]
            self.states[before : before + len(kept)] = kept

    def info(self, last: State, acceptance: Tensor, step_size: Tensor | None) -> Info:
        """The chain's `Info`, given its acceptance `(B,)` and step size, `()` or one a temperature."""
        energies, norms, errors = (
            torch.stack(values) if values else None for values in (self.energies, self.norms, self.errors)
        )
        return Info(
            energy=last.energy if self.record else None,
            energies=energies,
            gradient_norm=norms,
            acceptance=acceptance,
            energy_error=errors,
            states=self.states,
            step_size=step_size,
        )
