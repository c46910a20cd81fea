"""MALA and HMC on the Langevin core's step contract: the same call, with proposals that are accepted or rejected."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from ebmtraj.errors import EbmtrajError
from ebmtraj.samplers.adapt import StepSize
from ebmtraj.samplers.checks import FirstFault, check_chain, check_finite, check_scale, rows
from ebmtraj.samplers.langevin import BACKENDS, Energy, Info, frozen, value_and_gradient_of


@dataclass(frozen=True)
class HMCConfig:
    """Hamiltonian Monte Carlo (Neal 2011): `leapfrog` steps of a particle with fresh momentum, then accept or reject."""

    steps: int = 100  # proposals, after the warm-up
    step_size: float = 0.1  # of a leapfrog step, in units of `scale`; with a warm-up, where that begins
    leapfrog: int = 10
    temperature: float = 1.0  # samples exp(-E / temperature)
    scale: tuple[float, ...] | None = None  # a length an entry of the event: the inverse square root of the mass
    jitter: float = 0.0  # each proposal's step size is drawn from 1 - jitter to 1 + jitter times it, which breaks resonances
    warmup: int = 0  # proposals before the first, in which the step size adapts to `target`; it is fixed afterwards
    target: float = 0.8  # acceptance that it adapts to
    backend: Literal["auto", "autograd", "analytic"] = "auto"
    record: bool = False  # keep energy, gradient norm and energy error of each step in Info
    keep: int = 0  # keep every so manieth state in Info; 0: none

    def __post_init__(self) -> None:
        check_metropolis(self)
        if self.leapfrog < 1 or not 0 <= self.jitter < 1:
            raise EbmtrajError(
                f"sampler: leapfrog = {self.leapfrog}, jitter = {self.jitter}; it needs leapfrog >= 1 and 0 <= jitter < 1"
            )


@dataclass(frozen=True)
class MALAConfig:
    """Metropolis-adjusted Langevin (Roberts and Tweedie 1996): a proper Langevin step, accepted or rejected."""

    steps: int = 100  # proposals, after the warm-up
    step_size: float = 0.01  # as in `LangevinConfig`: the noise's variance; with a warm-up, where that begins
    temperature: float = 1.0  # samples exp(-E / temperature)
    scale: tuple[float, ...] | None = None  # preconditioner: a length an entry of the event
    warmup: int = 0  # proposals before the first, in which the step size adapts to `target`; it is fixed afterwards
    target: float = 0.574  # acceptance that it adapts to: the best one in many dimensions (Roberts and Rosenthal 1998)
    backend: Literal["auto", "autograd", "analytic"] = "auto"
    record: bool = False  # keep energy, gradient norm and energy error of each step in Info
    keep: int = 0  # keep every so manieth state in Info; 0: none

    def __post_init__(self) -> None:
        check_metropolis(self)


def check_metropolis(config: Any) -> None:
    """Raise `EbmtrajError` for settings that no chain can have."""
    if config.steps < 0 or config.warmup < 0 or config.keep < 0 or not 0 < config.step_size < math.inf:
        raise EbmtrajError(
            f"sampler: steps = {config.steps}, warmup = {config.warmup}, keep = {config.keep}, step_size = "
            f"{config.step_size}; steps, warmup and keep must be >= 0 and step_size > 0"
        )
    if not 0 < config.target < 1 or (config.scale is not None and not min(config.scale, default=1.0) > 0):
        raise EbmtrajError(
            f"sampler: target = {config.target}, scale = {config.scale}; it needs 0 < target < 1 and scale > 0"
        )
    if not 0 < getattr(config, "temperature", 1.0) < math.inf:
        raise EbmtrajError(f"sampler: temperature = {config.temperature}; an acceptance needs temperature > 0")
    if config.backend not in BACKENDS:
        raise EbmtrajError(f"unknown sampler backend {config.backend!r}; use one of {', '.join(BACKENDS)}")


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
    drift = size * scale
    kick = drift * beta
    p = torch.addcmul(momentum, kick, state.gradient, value=-0.5)
    new = state
    for step in range(leapfrog):
        if step > 0:
            p = torch.addcmul(p, kick, new.gradient, value=-1)
        new = target(torch.addcmul(new.x, drift, p))
    p = torch.addcmul(p, kick, new.gradient, value=-0.5)
    rise = new.energy - state.energy
    if isinstance(beta, Tensor) or beta != 1:
        rise = rise * (beta.flatten() if isinstance(beta, Tensor) else beta)
    error = torch.add(rise, _square(p) - _square(momentum), alpha=0.5)
    if support is not None:
        error = torch.where(support(new.x), error, math.inf)
    is_accepted = log_uniform + error < 0  # not so where the error is not a number
    return select(is_accepted, new, state), Proposal(error, is_accepted, new.x, new.energy)


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
    """All the noise of a chain, drawn in one order from one generator."""

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

    def jitter(self, share: float) -> Tensor | float:
        """Factors of the step size `(B, 1, ...)`."""
        if share == 0:
            return 1.0
        shape = (len(self.x), *[1] * (self.x.dim() - 1))
        factors = torch.empty(shape, dtype=self.x.dtype, device=self.x.device)
        return factors.uniform_(1 - share, 1 + share, generator=self.generator)


def hmc(
    energy: Energy,
    x: Tensor,
    config: HMCConfig,
    *,
    context: Any = None,
    project: Callable[[Tensor], Tensor] | None = None,
    mask: Tensor | None = None,
    generator: torch.Generator,
) -> tuple[Tensor, Info]:
    """Sample exp(-E(x | context) / T) exactly, by Hamiltonian Monte Carlo from `x`, shape `(B, *event)`.

    The call is `langevin`'s. `project` bounds the support: a proposal that it would move is rejected, which is exact for a
    clamp to a box, and the start is projected. Where `mask` is 0, x keeps its value. Returns the last state and `Info`.
    Raises `EbmtrajError` for what does not fit, and `DivergedError` that names chain and step where the energy of a finite x
    is not a number; an infinite one is a wall.
    """
    return metropolis(
        energy,
        x,
        config,
        leapfrog=config.leapfrog,
        jitter=config.jitter,
        size=config.step_size,
        context=context,
        project=project,
        mask=mask,
        generator=generator,
    )


def mala(
    energy: Energy,
    x: Tensor,
    config: MALAConfig,
    *,
    context: Any = None,
    project: Callable[[Tensor], Tensor] | None = None,
    mask: Tensor | None = None,
    generator: torch.Generator,
) -> tuple[Tensor, Info]:
    """Sample exp(-E(x | context) / T) exactly, by Metropolis-adjusted Langevin steps from `x`, shape `(B, *event)`.

    Call, bounds and errors as in `hmc`, of which this is the case of one leapfrog step.
    """
    x, info = metropolis(
        energy,
        x,
        config,
        leapfrog=1,
        jitter=0.0,
        size=(config.step_size * config.temperature) ** 0.5,
        context=context,
        project=project,
        mask=mask,
        generator=generator,
    )
    size = info.step_size
    return x, info._replace(step_size=None if size is None else size**2 / config.temperature)


def metropolis(
    energy: Energy,
    x: Tensor,
    config: MALAConfig | HMCConfig,
    *,
    leapfrog: int,
    jitter: float,
    size: float,
    context: Any,
    project: Callable[[Tensor], Tensor] | None,
    mask: Tensor | None,
    generator: torch.Generator,
) -> tuple[Tensor, Info]:
    """The chain that `mala` and `hmc` share: warm up, then `steps` Metropolis steps of one size."""
    check_chain(x, mask, generator)
    before = generator.get_state()

    def run(faults: FirstFault | None) -> tuple[Tensor, Info] | None:
        return _metropolis(energy, x, config, leapfrog, jitter, size, context, project, mask, generator, faults)

    out = run(None)
    if out is None:
        generator.set_state(before)
        out = run(FirstFault(x, config.warmup))
        assert out is not None
    return out


def _metropolis(
    energy: Energy,
    x: Tensor,
    config: MALAConfig | HMCConfig,
    leapfrog: int,
    jitter: float,
    size: float,
    context: Any,
    project: Callable[[Tensor], Tensor] | None,
    mask: Tensor | None,
    generator: torch.Generator,
    faults: FirstFault | None,
) -> tuple[Tensor, Info] | None:
    """The chain itself; None where an energy was not a number and there are no `faults` to note where."""
    start, scale, beta = x.detach(), check_scale(x, config.scale), 1 / config.temperature
    noise = Noise(start, mask, generator)
    with frozen(energy), torch.no_grad():
        target = target_of(energy, context, mask, config.backend)
        state = begin(energy, target, start, project, mask)
        adapted = StepSize(size, config.target, start)
        history = History(config.record, config.keep, config.steps, start)
        accepted, worst = torch.zeros_like(state.energy), state.energy
        for k in range(-config.warmup, config.steps):
            before = state
            state, proposal = hamiltonian_step(
                target,
                before,
                noise.momentum(),
                noise.log_uniform(),
                (adapted.exploring if k < 0 else adapted.settled) * noise.jitter(jitter),
                leapfrog=leapfrog,
                beta=beta,
                scale=scale,
                support=within(project),
            )
            if faults is None:
                worst = torch.maximum(worst, proposal.energy)  # to which not-a-number sticks
            else:
                faults.see(proposal.fault, k)
            if k < 0:
                adapted.update(proposal.accept.mean())
            else:
                accepted += proposal.is_accepted
                history.add(k, before, state, proposal)
        if faults is not None:
            faults.check(energy, "energy")
        elif bool(worst.isnan().any()):  # once a chain; so run it again with the same noise and look at every step
            return None
    return state.x, history.info(state, accepted / max(config.steps, 1), adapted.settled if config.warmup else None)


def target_of(energy: Energy, context: Any, mask: Tensor | None, backend: str) -> Target:
    """The energy and its gradient as a chain sees them: at one context, with no slope where x is held."""
    both = value_and_gradient_of(energy, backend)

    def target(x: Tensor) -> State:
        value, g = both(x, context)
        return State(x, value, g if mask is None else torch.where(mask.bool(), g, 0.0))

    return target


def begin(
    energy: Energy, target: Target, x: Tensor, project: Callable[[Tensor], Tensor] | None, mask: Tensor | None
) -> State:
    """The first state; raises `DivergedError` where its energy or gradient is not finite."""
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
    """What is kept of a chain's steps, if anything."""

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

    def info(self, last: State, acceptance: Tensor, step_size: Tensor | None) -> Info:
        """The chain's `Info`."""
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
