"""Parallel tempering: hot chains cross barriers, and hand their places down by swaps. Geyer 1991."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ebmtraj.errors import EbmtrajError
from ebmtraj.samplers.adapt import StepSize
from ebmtraj.samplers.backends import Backend, Energy
from ebmtraj.samplers.checks import FirstFault, check_chain, check_scale
from ebmtraj.samplers.kernel import (
    History,
    Noise,
    Proposal,
    State,
    begin,
    hamiltonian_step,
    target_of,
    within,
)
from ebmtraj.samplers.langevin import Info, frozen
from ebmtraj.samplers.mcmc import check_metropolis


@dataclass(frozen=True)
class TemperingConfig:
    """Replica exchange (Geyer 1991): every chain at every temperature, all in one batch.

    Raises `EbmtrajError` for fewer than two temperatures, where they do not rise from above 0, and for a number out of its
    range.
    """

    steps: int = 100  # rounds after the warm-up: a proposal at each temperature, then swaps
    temperatures: tuple[float, ...] = (1.0, 2.0, 4.0, 8.0)  # rising; the first is the one that is sampled
    step_size: float = 0.1  # of a leapfrog step at temperature 1; it grows with the temperature's square root
    leapfrog: int = 1  # 1: MALA
    scale: tuple[float, ...] | None = None  # a length an entry of the event
    warmup: int = 0  # rounds before the first, in which each temperature's step size adapts to `target`
    target: float = 0.6  # acceptance that they adapt to
    backend: Backend = "auto"  # how the gradient is computed, see `backends`
    record: bool = False  # keep energy, gradient norm and energy error of the first temperature in Info
    keep: int = 0  # keep every so manieth state of the first temperature in Info; 0: none

    def __post_init__(self) -> None:
        check_metropolis(self)
        rising = all(a < b for a, b in zip(self.temperatures, self.temperatures[1:], strict=False))
        if len(self.temperatures) < 2 or not self.temperatures[0] > 0 or not rising or self.leapfrog < 1:
            raise EbmtrajError(
                f"sampler: temperatures = {list(self.temperatures)}, leapfrog = {self.leapfrog}; it needs two "
                "temperatures or more, above 0 and rising, and leapfrog >= 1"
            )


def tempering(
    energy: Energy,
    x: Tensor,
    config: TemperingConfig,
    *,
    context: Any = None,
    project: Callable[[Tensor], Tensor] | None = None,
    mask: Tensor | None = None,
    generator: torch.Generator,
) -> tuple[Tensor, Info]:
    """Sample exp(-E(x | context) / T) at the first of the temperatures, from `x`, shape `(B, *event)`, by replica exchange.

    Each chain has a replica at each temperature, which begin together at x. In each round all take a Metropolis step, then
    neighbours swap places with probability min(1, exp((1/T - 1/T') (E - E'))), even pairs and odd ones in turn. Call, bounds
    and errors as in `hmc`; a tensor in `context` has one row a chain. `Info` also has the share of swaps and each
    temperature's step size.
    """
    check_chain(x, mask, generator)
    many, size = len(config.temperatures), len(x)
    scale, copies = check_scale(x, config.scale), (many, *[1] * (x.dim() - 1))
    held = None if mask is None else mask.broadcast_to(x.shape).repeat(copies)
    temperatures = torch.tensor(config.temperatures, dtype=x.dtype, device=x.device)
    column = (-1, *[1] * (x.dim() - 1))
    beta = (1 / temperatures).repeat_interleave(size).view(column)
    with frozen(energy), torch.no_grad():
        begun = begin(energy, target_of(energy, context, mask, config.backend), x.detach(), project, mask)
        state = State(begun.x.repeat(copies), begun.energy.repeat(many), begun.gradient.repeat(copies))
        target = target_of(energy, repeated(context, many, size), held, config.backend)
        noise, faults = Noise(state.x, held, generator), FirstFault(state.x, config.warmup)
        adapted = StepSize(config.step_size, config.target, x, (many,))
        history = History(config.record, config.keep, config.steps, x)
        accepted, swapped = torch.zeros_like(state.energy), torch.zeros_like(temperatures[1:])
        for k in range(-config.warmup, config.steps):
            step = (adapted.exploring if k < 0 else adapted.settled) * temperatures.sqrt()
            before = state
            state, proposal = hamiltonian_step(
                target,
                before,
                noise.momentum(),
                noise.log_uniform(),
                step.repeat_interleave(size).view(column),
                leapfrog=config.leapfrog,
                beta=beta,
                scale=scale,
                support=within(project),
            )
            faults.see(proposal.fault, k)
            state, swaps = swap(state, temperatures, noise.log_uniform(state.energy), k % 2)
            if k < 0:
                adapted.update(proposal.accept.view(many, size).mean(1))
            else:
                accepted += proposal.is_accepted
                swapped += swaps
                history.add(k, first(before, size), first(state, size), Proposal(*(v[:size] for v in proposal)))
        faults.check(energy, "energy", size)
    rounds = max(config.steps, 1)
    sizes = adapted.settled if config.warmup else None
    info = history.info(first(state, size), accepted[:size] / rounds, sizes)
    tried = torch.tensor([max(1, len(range(pair % 2, config.steps, 2))) for pair in range(many - 1)], device=x.device)
    return state.x[:size], info._replace(swaps=swapped / tried)


def swap(state: State, temperatures: Tensor, log_uniform: Tensor, odd: int) -> tuple[State, Tensor]:
    """Swap neighbours from the pair `odd` on, every other pair; the new state and the share of each pair's, `(R - 1,)`.

    Of `temperatures` `(R,)`. Rows of `state` are `(R B, ...)`, the first temperature's first; of `log_uniform` (R B,) the
    colder one's decides.
    """
    many = len(temperatures)
    energy = state.energy.view(many, -1)
    gain = (1 / temperatures[:-1] - 1 / temperatures[1:]).unsqueeze(1) * (energy[:-1] - energy[1:])
    turn = (torch.arange(many - 1, device=temperatures.device) % 2 == odd).unsqueeze(1)
    is_swapped = turn & (log_uniform.view(many, -1)[:-1] < gain)  # (R - 1, B)
    place = torch.arange(many, device=temperatures.device).unsqueeze(1).expand_as(energy)
    none = torch.zeros_like(is_swapped[:1])
    up, down = torch.cat((is_swapped, none)), torch.cat((none, is_swapped))  # with the next hotter one, the next colder one
    source = (place + up.long() - down.long()) * energy.shape[1] + torch.arange(energy.shape[1], device=energy.device)
    source = source.flatten()
    new = State(state.x[source], state.energy[source], state.gradient[source])
    return new, is_swapped.to(energy.dtype).mean(1)


def first(state: State, size: int) -> State:
    """The first temperature's rows."""
    return State(state.x[:size], state.energy[:size], state.gradient[:size])


def repeated(context: Any, many: int, size: int) -> Any:
    """A context for every replica: tensors with one row a chain are repeated, wherever they stand in tuples and dicts."""
    if isinstance(context, Tensor):
        return context.repeat(many, *[1] * (context.dim() - 1)) if context.dim() and len(context) == size else context
    if isinstance(context, tuple) and hasattr(context, "_fields"):
        return type(context)(*(repeated(value, many, size) for value in context))
    if isinstance(context, (tuple, list)):
        return type(context)(repeated(value, many, size) for value in context)
    if isinstance(context, dict):
        return {name: repeated(value, many, size) for name, value in context.items()}
    return context
