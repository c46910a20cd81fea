"""Annealed importance sampling: the normaliser of an energy from below, and in reverse from above.

Neal 2001; Grosse et al. 2015.
"""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from ebmtraj.errors import EbmtrajError
from ebmtraj.samplers.backends import BACKENDS, Backend, Energy
from ebmtraj.samplers.checks import FirstFault, check_chain, check_finite, rows
from ebmtraj.samplers.kernel import Noise, State, Target, hamiltonian_step, target_of
from ebmtraj.samplers.langevin import frozen


@dataclass(frozen=True)
class AISConfig:
    """How an energy is reached from a Gaussian (Neal 2001): many temperatures, a few exact steps at each.

    Raises `EbmtrajError` for counts below 1, shares out of range and an unknown backend.
    """

    temperatures: int = 1000  # steps of the path from the Gaussian, at inverse temperature 0, to the energy, at 1
    particles: int = 1024  # that take the path side by side
    transitions: int = 1  # Metropolis steps at each
    leapfrog: int = 1  # of each; 1: MALA
    jitter: float = 0.5  # each proposal's step size is drawn from 1 - jitter to 1 + jitter times it
    spacing: Literal["adaptive", "sigmoid", "linear"] = "adaptive"  # of inverse temperatures, see `betas` and `pilot`
    step_size: float = 0.5  # of a leapfrog step, in the Gaussian's standard deviations: where the pilot begins
    target: float = 0.6  # acceptance that the pilot seeks at each temperature
    pilot: int = 128  # particles that go ahead to find the schedule, so that it is fixed for those that count
    backend: Backend = "auto"

    def __post_init__(self) -> None:
        counts = (self.temperatures, self.particles, self.transitions, self.leapfrog, self.pilot)
        if min(counts) < 1 or not self.step_size > 0 or not 0 < self.target < 1 or not 0 <= self.jitter < 1:
            raise EbmtrajError(
                f"ais: temperatures, particles, transitions, leapfrog, pilot = {counts}, step_size = {self.step_size}, "
                f"target = {self.target}, jitter = {self.jitter}; it needs counts >= 1, step_size > 0, 0 < target < 1 and "
                "0 <= jitter < 1"
            )
        if self.backend not in BACKENDS:
            raise EbmtrajError(f"unknown sampler backend {self.backend!r}; use one of {', '.join(BACKENDS)}")

    def betas(self, like: Tensor) -> Tensor:
        """Inverse temperatures from 0 to 1, `(temperatures + 1,)`, closer at both ends unless linear (Grosse et al. 2015).

        Adaptive ones begin so, and are then spaced by what the pilot found.
        """
        ramp = torch.linspace(0, 1, self.temperatures + 1, dtype=torch.float64)
        if self.spacing != "linear":
            raw = torch.sigmoid(4 * (2 * ramp - 1))
            ramp = (raw - raw[0]) / (raw[-1] - raw[0])
        return ramp.to(like)


@dataclass(frozen=True)
class GaussianBase:
    """Where the path begins: a Gaussian with this mean and standard deviation, tensors of the event's shape.

    Raises `EbmtrajError` where their shapes differ, a mean is not finite or a standard deviation not above 0.
    """

    mean: Tensor  # (*event,)
    std: Tensor  # (*event,)

    def __post_init__(self) -> None:
        if self.mean.shape != self.std.shape or not bool((self.std > 0).all() & self.mean.isfinite().all()):
            raise EbmtrajError(
                f"ais: the base's mean {tuple(self.mean.shape)} and std {tuple(self.std.shape)} must be of one shape, "
                "finite, and std above 0"
            )

    def draw(self, size: int, generator: torch.Generator) -> Tensor:
        """Samples `(size, *event)`."""
        z = torch.empty((size, *self.mean.shape), dtype=self.mean.dtype, device=self.mean.device)
        return self.mean + self.std * z.normal_(generator=generator)

    def energy(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Minus the log density, normalised, `(B,)`, and its gradient."""
        u = (x - self.mean) / self.std
        constant = self.std.log().sum() + 0.5 * math.log(2 * math.pi) * self.std.numel()
        return 0.5 * rows(u.square()).sum(1) + constant, u / self.std


class Schedule(NamedTuple):
    """The way from base to energy, fixed before any particle that counts sets out."""

    betas: Tensor  # (temperatures + 1,) inverse temperatures from 0 to 1
    sizes: Tensor  # (temperatures + 1,) leapfrog step at each


class Path(NamedTuple):
    """What a pass along the path comes to."""

    log_weight: Tensor  # (N,) forward: exp of it has mean Z; in reverse: mean 1 / Z
    x: Tensor  # (N, *event) where the particles end
    acceptance: Tensor  # (temperatures,) mean at each


class Normaliser(NamedTuple):
    """log Z = log of the integral of exp(-E), from both sides; all `()`."""

    lower: Tensor  # forward AIS: below log Z in the mean, and with probability 1 - 1/e^t not more than t above
    upper: Tensor  # reverse AIS: above it, in the same sense, as far as the reverse pass began from true samples
    error: Tensor  # standard error of `lower`
    effective: Tensor  # effective number of forward particles
    forward: Path
    reverse: Path


@torch.no_grad()
def log_normaliser(
    energy: Energy,
    base: GaussianBase,
    config: AISConfig,
    *,
    context: Any = None,
    exact: Tensor | None = None,
    generator: torch.Generator,
) -> Normaliser:
    """Bound log Z of an energy of x `(B, *event)` by annealed importance sampling forward and in reverse.

    The path is E_b = (1 - b) E_base + b E, b from 0 to 1. Forward particles start from the base (Neal 2001); their log Z is
    a lower bound in the mean. Reverse ones start from `exact` `(N, *event)`, samples of exp(-E), and give an upper bound
    (Grosse et al. 2015); without `exact`, from the forward particles, resampled by their weights and moved on, so that the
    upper bound holds as far as these have mixed. The base should be wider than the energy. `context` must suit any number of
    particles. Raises `EbmtrajError` as `mala` does.
    """
    if exact is not None and (exact.shape[1:] != base.mean.shape or not len(exact)):
        raise EbmtrajError(
            f"ais: exact samples have shape {tuple(exact.shape)}; the base's events have {tuple(base.mean.shape)}"
        )
    schedule = pilot(energy, base, config, context=context, generator=generator)
    forward = ais(energy, base, config, schedule, context=context, generator=generator)
    share = torch.softmax(forward.log_weight, dim=0)
    if exact is None:
        chosen = torch.multinomial(share, config.particles, replacement=True, generator=generator)
        exact = _moved_on(energy, forward.x[chosen], config, schedule, base, context, generator)
    reverse = ais(energy, base, config, schedule, context=context, start=exact, generator=generator)
    spread = (share * len(share)).std() / len(share) ** 0.5
    return Normaliser(
        lower=_log_mean(forward.log_weight),
        upper=-_log_mean(reverse.log_weight),
        error=spread,
        effective=1 / share.square().sum(),
        forward=forward,
        reverse=reverse,
    )


@torch.no_grad()
def ais(
    energy: Energy,
    base: GaussianBase,
    config: AISConfig,
    schedule: Schedule,
    *,
    context: Any = None,
    start: Tensor | None = None,
    generator: torch.Generator,
) -> Path:
    """One pass along the `schedule` that `pilot` found: forward or, given a `start` `(N, *event)`, in reverse."""
    x = base.draw(config.particles, generator) if start is None else start.detach()
    check_chain(x, None, generator)
    noise, faults = Noise(x, None, generator), FirstFault(x)
    log_weight = torch.zeros(len(x), dtype=x.dtype, device=x.device)
    acceptance = torch.zeros(config.temperatures, dtype=x.dtype, device=x.device)
    order = list(range(config.temperatures + 1))
    order = order if start is None else order[::-1]
    with frozen(energy):
        bridge = Bridge(energy, base, context, config.backend)
        parts = bridge.at(x, schedule.betas[order[0]]).parts
        check_finite(energy, "energy", parts[0])
        for number, (now, then) in enumerate(itertools.pairwise(order)):
            e, _, e_base, _ = parts
            log_weight = log_weight - (schedule.betas[then] - schedule.betas[now]) * (e - e_base)
            target = bridge.between(schedule.betas[then])
            state = bridge.combined(x, parts, schedule.betas[then])
            for _ in range(config.transitions):
                state, proposal = hamiltonian_step(
                    target,
                    state,
                    noise.momentum(),
                    noise.log_uniform(),
                    noise.sized(schedule.sizes[then], config.jitter),
                    leapfrog=config.leapfrog,
                    scale=base.std,
                )
                faults.see(proposal.fault, number)
                acceptance[number] += proposal.accept.mean() / config.transitions
            x, parts = state.x, state.parts
        faults.check(energy, "energy")
    return Path(log_weight, x, acceptance)


@torch.no_grad()
def pilot(
    energy: Energy, base: GaussianBase, config: AISConfig, *, context: Any = None, generator: torch.Generator
) -> Schedule:
    """The schedule that `pilot` particles find on their way: step sizes that are accepted as often as `target`.

    Adaptive inverse temperatures are spaced so that log weights gather as much variance in each step: even in the integral
    of the standard deviation of E - E_base (thermodynamic length, Gelman and Meng 1998, section 4.2).
    """
    x = base.draw(config.pilot, generator)
    check_chain(x, None, generator)
    betas, noise = config.betas(x), Noise(x, None, generator)
    log_size = torch.full((), math.log(config.step_size), dtype=x.dtype, device=x.device)
    sizes, spread = torch.empty_like(betas), torch.empty_like(betas)
    with frozen(energy):
        bridge = Bridge(energy, base, context, config.backend)
        parts = bridge.at(x, betas[0]).parts
        check_finite(energy, "energy", parts[0])
        for k in range(-50, config.temperatures + 1):  # the first ones on the base itself, to find its step
            beta = betas[max(k, 0)]
            state, proposal = hamiltonian_step(
                bridge.between(beta),
                bridge.combined(x, parts, beta),
                noise.momentum(),
                noise.log_uniform(),
                noise.sized(torch.exp(log_size), config.jitter),
                leapfrog=config.leapfrog,
                scale=base.std,
            )
            x, parts = state.x, state.parts
            log_size = log_size + 0.15 * (proposal.accept.mean() - config.target)
            sizes[max(k, 0)], spread[max(k, 0)] = log_size, (parts[0] - parts[2]).std(correction=0)
    if config.spacing != "adaptive":
        return Schedule(betas, torch.exp(sizes))
    length = torch.cumsum(0.5 * (spread[1:] + spread[:-1]) * betas.diff(), dim=0)
    length = torch.cat((torch.zeros_like(length[:1]), length))
    length = length / length[-1].clamp_min(1e-30) + 0.1 * betas  # never so far apart that a part of the way is jumped
    even = torch.linspace(0, 1, len(betas), dtype=x.dtype, device=x.device) * length[-1]
    chosen = _interpolate(even, length, betas)
    chosen[0], chosen[-1] = 0, 1
    return Schedule(chosen, torch.exp(_interpolate(chosen, betas, sizes)))


def _interpolate(wanted: Tensor, x: Tensor, y: Tensor) -> Tensor:
    """The value at `wanted` of the line through the points (x, y), x rising, all `(K,)`."""
    right = torch.searchsorted(x, wanted).clamp(1, len(x) - 1)
    share = ((wanted - x[right - 1]) / (x[right] - x[right - 1])).clamp(0, 1)
    return torch.lerp(y[right - 1], y[right], share)


class Bridge:
    """The energies between the base and the one sought, with what both are at a place kept beside."""

    def __init__(self, energy: Energy, base: GaussianBase, context: Any, backend: str) -> None:
        self.target = target_of(energy, context, None, backend)
        self.base = base

    def between(self, beta: Tensor) -> Target:
        """The bridge at this inverse temperature `()`, as a chain sees it."""
        return lambda x: self.at(x, beta)

    def at(self, x: Tensor, beta: Tensor) -> State:
        """The bridge's energy `(B,)` and gradient `(B, *event)` at x, of the gradient's shape.

        Parts: E, its gradient, the base's energy, its gradient.
        """
        there = self.target(x)
        return self.combined(x, (there.energy, there.gradient, *self.base.energy(x)), beta)

    @staticmethod
    def combined(x: Tensor, parts: tuple[Tensor, ...], beta: Tensor) -> State:
        """The same at another inverse temperature `()` from the parts, `(B,)` and `(B, *event)`; no energy is called."""
        e, g, base, base_g = parts
        return State(x, torch.lerp(base, e, beta), torch.lerp(base_g, g, beta), parts)


def _moved_on(
    energy: Energy,
    x: Tensor,
    config: AISConfig,
    schedule: Schedule,
    base: GaussianBase,
    context: Any,
    generator: torch.Generator,
    steps: int = 200,
) -> Tensor:
    """Places after Metropolis steps on the energy itself, so that what was resampled twice parts."""
    noise = Noise(x, None, generator)
    with frozen(energy):
        target = target_of(energy, context, None, config.backend)
        state = target(x)
        for _ in range(steps):
            state, _ = hamiltonian_step(
                target,
                state,
                noise.momentum(),
                noise.log_uniform(),
                noise.sized(schedule.sizes[-1], config.jitter),
                leapfrog=config.leapfrog,
                scale=base.std,
            )
    return state.x


def _log_mean(log_weight: Tensor) -> Tensor:
    return torch.logsumexp(log_weight, dim=0) - math.log(len(log_weight))
