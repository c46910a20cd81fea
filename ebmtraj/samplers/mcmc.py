"""MALA and HMC on the Langevin core's step contract: the same call, with proposals that are accepted or rejected.

Neal 2011; Roberts and Tweedie 1996.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ebmtraj.errors import EbmtrajError
from ebmtraj.samplers.adapt import StepSize
from ebmtraj.samplers.backends import BACKENDS, Backend, Energy
from ebmtraj.samplers.checks import FirstFault, check_chain, check_scale
from ebmtraj.samplers.kernel import History, Noise, Proposal, State, begin, hamiltonian_step, target_of, within
from ebmtraj.samplers.langevin import Info, frozen
from ebmtraj.samplers.metropolis_block import Alike, compiled_steps


@dataclass(frozen=True)
class HMCConfig:
    """Hamiltonian Monte Carlo (Neal 2011): `leapfrog` steps of a particle with fresh momentum, then accept or reject.

    Raises `EbmtrajError` where a number is out of its range.
    """

    steps: int = 100  # proposals, after the warm-up
    step_size: float = 0.1  # of a leapfrog step, in units of `scale`; with a warm-up, where that begins
    leapfrog: int = 10
    temperature: float = 1.0  # samples exp(-E / temperature)
    scale: tuple[float, ...] | None = None  # a length an entry of the event: the inverse square root of the mass
    jitter: float = 0.0  # each proposal's step size is drawn from 1 - jitter to 1 + jitter times it, which breaks resonances
    warmup: int = 0  # proposals before the first, in which the step size adapts to `target`; it is fixed afterwards
    target: float = 0.8  # acceptance that it adapts to
    backend: Backend = "auto"  # how the gradient is computed, see `backends`
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
    backend: Backend = "auto"  # how the gradient is computed, see `backends`
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
    """The chain that `mala` and `hmc` share, `(B, *event)`: warm up, then `steps` Metropolis steps of one size."""
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
    start, beta = x.detach(), 1 / config.temperature
    scale = 1.0 if config.scale is None else check_scale(x, config.scale)
    noise = Noise(start, mask, generator)
    with frozen(energy), torch.no_grad():
        target = target_of(energy, context, mask, config.backend)
        state = begin(energy, target, start, project, mask)
        adapted = StepSize(size, config.target, start)
        history = History(config.record, config.keep, config.steps, start)
        accepted, worst = torch.zeros_like(state.energy), state.energy

        def step(k: int, size: Tensor) -> tuple[State, Proposal]:
            given = noise.momentum(), noise.log_uniform(), noise.sized(size, jitter)
            out = hamiltonian_step(target, state, *given, leapfrog=leapfrog, beta=beta, scale=scale, support=within(project))
            if faults is not None:
                faults.see(out[1].fault, k)
            return out

        for k in range(-config.warmup, 0):
            state, proposal = step(k, adapted.exploring)
            worst = torch.maximum(worst, proposal.energy)  # to which not-a-number sticks
            adapted.update(proposal.accept.mean())
        done = 0
        if config.backend == "compiled" and not config.record and faults is None:
            alike = Alike(energy, context, mask, project, leapfrog, jitter, beta, scale)
            state, done, accepted, highest = compiled_steps(alike, state, config.steps, noise, adapted.settled, history)
            worst = torch.maximum(worst, highest)
        for k in range(done, config.steps):
            before = state
            state, proposal = step(k, adapted.settled)
            worst = torch.maximum(worst, proposal.energy)
            accepted += proposal.is_accepted
            history.add(k, before, state, proposal)
        if faults is not None:
            faults.check(energy, "energy")
        elif bool(worst.isnan().any()):  # once a chain; so run it again with the same noise and look at every step
            return None
    return state.x, history.info(state, accepted / max(config.steps, 1), adapted.settled if config.warmup else None)
