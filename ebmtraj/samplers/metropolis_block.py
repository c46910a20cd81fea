"""Steps of MALA and HMC in compiled blocks: the same steps, with all their noise passed in."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ebmtraj.samplers.backends import Energy
from ebmtraj.samplers.compiled import STEPS, compiled, parts, value_and_slope
from ebmtraj.samplers.kernel import Block, History, Noise, State, hamiltonian_step, within


def block(
    energy: Any,
    plain: Any,
    weights: Sequence[Tensor],
    context: Any,
    given: tuple[Tensor, Tensor, Tensor],
    momenta: Tensor,
    log_uniforms: Tensor,
    sizes: Tensor,
    mask: Tensor | None,
    project: Callable[[Tensor], Tensor] | None,
    leapfrog: int,
    beta: float,
    scale: Tensor | float,
    keep: bool,
) -> tuple[tuple[Tensor, Tensor, Tensor], Tensor, Tensor, Tensor | None]:
    """As many Metropolis steps as there are `momenta` `(K, B, *event)`, see `hamiltonian_step` for the noise.

    `given` are place, energy and gradient, `(B, *event)`, `(B,)` and `(B, *event)`; `log_uniforms` `(K, B)`, `sizes` `()` or
    `(K, B, 1, ...)`, `scale` a number, `()` or `(*event,)`, and `weights` as `parts` gives them. Gives the state, accepted
    `(B,)`, the highest energy `(B,)` and all states `(K, B, *event)`.
    """

    def target(x: Tensor) -> State:
        value, g = value_and_slope(energy, plain, weights, x, (context,))
        return State(x, value, g if mask is None else torch.where(mask, g, 0.0))

    state, states = State(*given), []
    accepted, worst = torch.zeros_like(state.energy), state.energy
    for k in range(len(momenta)):
        given_noise = momenta[k], log_uniforms[k], sizes if sizes.dim() == 0 else sizes[k]
        state, proposal = hamiltonian_step(
            target, state, *given_noise, leapfrog=leapfrog, beta=beta, scale=scale, support=within(project)
        )
        accepted = accepted + proposal.is_accepted
        worst = torch.maximum(worst, proposal.energy)
        if keep:
            states.append(state.x)
    return (state.x, state.energy, state.gradient), accepted, worst, torch.stack(states) if keep else None


class Alike(NamedTuple):
    """What all steps of a chain share."""

    energy: Energy
    context: Any
    mask: Tensor | None  # broadcasts to (B, *event): True where x moves
    project: Callable[[Tensor], Tensor] | None
    leapfrog: int
    jitter: float
    beta: float
    scale: Tensor | float  # a number, () or (*event,)


def compiled_steps(
    chain: Alike, state: State, steps: int, noise: Noise, size: Tensor, history: History
) -> tuple[State, int, Tensor, Tensor]:
    """As many whole blocks as fit in `steps`: state, steps taken, accepted `(B,)` and highest energy `(B,)`."""
    energy, context, mask, project, leapfrog, jitter, beta, scale = chain
    length = max(1, STEPS // leapfrog)
    accepted, worst = torch.zeros_like(state.energy), state.energy
    held, keep = None if mask is None else mask.bool(), history.states is not None
    plain, weights = parts(energy, state.x, context)
    shared = (held is None, project is None, leapfrog, jitter > 0, beta, keep)
    run = compiled(energy, block, ("metropolis", state.x.shape, plain is not None, *shared))
    draw = Block(noise, length, size, jitter)
    fixed = (held, project, leapfrog, beta, scale, keep)
    for done in range(0, length * (steps // length), length):
        given = (state.x, state.energy, state.gradient)
        after, agreed, highest, states = run(energy, plain, weights, context, given, *draw(), *fixed)
        state = State(*after)
        accepted, worst = accepted + agreed, torch.maximum(worst, highest)
        if states is not None:
            history.add_all(done, states)
    return state, length * (steps // length), accepted, worst
