"""Langevin steps in blocks: compiled, or captured as a CUDA graph and replayed. The chain and its noise stay the same."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ebmtraj.errors import EbmtrajError
from ebmtraj.samplers.backends import Energy, chain_gradient
from ebmtraj.samplers.compiled import STEPS, compiled, langevin_block, parts

CAPTURED = 10  # steps of a graph: to capture them costs about as much as to take them once


class Step(NamedTuple):
    """What all steps of a chain share: x <- x - drift grad E + spread epsilon, bounded and held."""

    energy: Energy
    context: Any
    drift: Tensor  # () or (*event,), as the next
    spread: Tensor  # () or (*event,)
    clip: float | None
    project: Callable[[Tensor], Tensor] | None
    mask: Tensor | None  # broadcasts to (B, *event): True where x moves
    start: Tensor  # (B, *event) what x keeps where the mask is 0
    watch: Callable[[Tensor], Any] | None  # is shown the gradients, or their sum, before they are clipped


def compiled_steps(step: Step, x: Tensor, steps: int, generator: torch.Generator) -> tuple[Tensor, int]:
    """As many whole blocks as fit in `steps`, each compiled; x `(B, *event)` and the steps that were taken."""
    length = STEPS if x.dim() <= 2 else 1  # a step of images takes longer than its call, and to compile ten takes minutes
    blocks = steps // length
    if blocks == 0:
        return x, 0
    plain, weights = parts(step.energy, x, step.context)
    key = ("langevin", x.shape, plain is not None, step.mask is None, step.project is None, step.clip)
    run = compiled(step.energy, langevin_block, key)
    noise, seen = x.new_empty((length, *x.shape)), torch.zeros_like(x)
    rows = noise.unbind(0)
    for _ in range(blocks):
        for row in rows:
            row.normal_(generator=generator)
        x, seen = run(
            step.energy,
            plain,
            weights,
            step.context,
            x,
            noise,
            step.drift,
            step.spread,
            step.start,
            seen,
            step.mask,
            step.project,
            step.clip,
        )
    if step.watch is not None:
        step.watch(seen)
    return x, blocks * length


def graph_steps(step: Step, x: Tensor, steps: int, generator: torch.Generator) -> tuple[Tensor, int]:
    """As many whole blocks as fit in `steps`, one captured as a CUDA graph and replayed; x `(B, *event)` and steps taken.

    The generator is registered with the graph, so every replay draws what the steps would have drawn. Raises `EbmtrajError`
    where x is on no CUDA device.
    """
    if x.device.type != "cuda":
        raise EbmtrajError(f"backend 'cuda_graph': the chain is on {x.device} and needs a CUDA device; use 'auto'")
    blocks = steps // CAPTURED
    if blocks == 0:
        return x, 0
    gradient = chain_gradient(step.energy, "auto", x, step.context)
    state, noise, seen = x.clone(), torch.empty_like(x), torch.zeros_like(x)

    def advance() -> None:
        g = gradient(state, step.context)
        if step.mask is not None:
            g = torch.where(step.mask, g, 0.0)
        seen.add_(g)
        if step.clip is not None:
            g = g.clamp(-step.clip, step.clip)
        new = state - step.drift * g + step.spread * noise.normal_(generator=generator)
        if step.project is not None:
            new = step.project(new)
        state.copy_(new if step.mask is None else torch.where(step.mask, new, step.start))

    before, aside = generator.get_state(), torch.cuda.Stream(x.device)
    aside.wait_stream(torch.cuda.current_stream(x.device))
    with torch.cuda.stream(aside):  # what is allocated or chosen at a first call must not be captured
        for _ in range(2):
            advance()
    torch.cuda.current_stream(x.device).wait_stream(aside)
    generator.set_state(before)
    state.copy_(x)
    seen.zero_()
    graph = torch.cuda.CUDAGraph()
    graph.register_generator_state(generator)
    with torch.cuda.graph(graph):
        for _ in range(CAPTURED):
            advance()
    for _ in range(blocks):
        graph.replay()
    if step.watch is not None:
        step.watch(seen)
    return state, blocks * CAPTURED


BLOCKS: dict[str, Callable[[Step, Tensor, int, torch.Generator], tuple[Tensor, int]]] = {
    "compiled": compiled_steps,
    "cuda_graph": graph_steps,
}
