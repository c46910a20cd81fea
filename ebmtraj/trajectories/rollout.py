"""Rollouts over many steps, in batch, from any state."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from ebmtraj.errors import EbmtrajError
from ebmtraj.trajectories.model import TransitionModel


@torch.no_grad()
def rollout(
    model: TransitionModel,
    start: Tensor,
    steps: int,
    *,
    actions: Tensor | None = None,
    generator: torch.Generator,
    on_step: Callable[[int], None] = lambda step: None,
) -> Tensor:
    """Self-predicted trajectories from `start` `(B, S)`, with `actions` `(B, T, A)` if the model takes them, `(B, T+1, S)`.

    After each step the state is kept within the training data's range (widened a little) and its quaternions unit, so a
    model that errs errs within bounds. Raises `EbmtrajError` where the starts have another shape, or actions are missing or
    too few.
    """
    if start.dim() != 2 or start.shape[1] != model.state_size or len(start) == 0:
        raise EbmtrajError(f"starts have shape {tuple(start.shape)}; this model needs (B, {model.state_size}) with B >= 1")
    if model.actions and (actions is None or actions.shape[1] < steps):
        have = 0 if actions is None else actions.shape[1]
        raise EbmtrajError(f"this model takes actions: {steps} steps need as many actions, and there are {have}")
    state = model.normaliser.increments.project(start)
    states = torch.empty((steps + 1, *start.shape), dtype=start.dtype, device=start.device)
    states[0] = state
    for t in range(steps):
        action = actions[:, t] if model.actions and actions is not None else None
        state = model.normaliser.clamp(model.sample_next(state, action, generator))
        states[t + 1] = state
        on_step(t + 1)
    return states.transpose(0, 1)


def sample_futures(
    model: TransitionModel,
    start: Tensor,
    steps: int,
    samples: int,
    *,
    actions: Tensor | None = None,
    generator: torch.Generator,
    chunk: int = 4096,
    on_step: Callable[[int, int], None] = lambda done, total: None,
) -> Tensor:
    """`samples` futures of each start, `(N, S) -> (N, samples, T+1, S)` on the CPU, `chunk` rollouts at a time."""
    many = start.repeat_interleave(samples, dim=0)
    # rows of the actions are looked up, not repeated, as they can be large
    owner = torch.arange(len(start), device=start.device).repeat_interleave(samples)
    total = -(-len(many) // chunk) * steps
    parts = []
    for number, first in enumerate(range(0, len(many), chunk)):
        rows = slice(first, first + chunk)
        given = None if actions is None else actions[owner[rows]]

        def report(step: int, before: int = number * steps) -> None:
            on_step(before + step, total)

        parts.append(rollout(model, many[rows], steps, actions=given, generator=generator, on_step=report).cpu())
    return torch.cat(parts).view(len(start), samples, steps + 1, -1)
