"""Rollouts over many steps, in batch, from any state."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from ebmtraj.datasets.windows import Past
from ebmtraj.errors import EbmtrajError
from ebmtraj.trajectories.model import TransitionModel

Terminates = Callable[[Tensor], Tensor]  # states (B, S) -> whether an episode ends in them (B,)


@torch.no_grad()
def rollout(
    model: TransitionModel,
    start: Tensor,
    steps: int,
    *,
    actions: Tensor | None = None,
    past: Past | None = None,
    terminates: Terminates | None = None,
    generator: torch.Generator,
    on_step: Callable[[int], None] = lambda step: None,
) -> Tensor:
    """Self-predicted trajectories from `start` `(B, S)`, with `actions` `(B, T, A)` if the model takes them, `(B, T+1, S)`.

    A model with history is given as much of `past` as it sees, then its own steps; without `past`, it begins with none.
    After each step the state is kept within the training data's range (widened a little) and its quaternions unit, so a
    model that errs errs within bounds. A rollout that comes to a state of which the environment says that an episode
    `terminates` there stays in it: the data say nothing of what would follow. Raises `EbmtrajError` where the starts or the
    past have another shape, or actions are missing or too few.
    """
    if start.dim() != 2 or start.shape[1] != model.state_size or len(start) == 0:
        raise EbmtrajError(f"starts have shape {tuple(start.shape)}; this model needs (B, {model.state_size}) with B >= 1")
    if model.actions and (actions is None or actions.shape[1] < steps):
        have = 0 if actions is None else actions.shape[1]
        raise EbmtrajError(f"this model takes actions: {steps} steps need as many actions, and there are {have}")
    state = model.normaliser.increments.project(start)
    before = _given(model, state, past) if model.history else None
    states = torch.empty((steps + 1, *start.shape), dtype=start.dtype, device=start.device)
    states[0] = state
    over = None if terminates is None else terminates(state)
    for t in range(steps):
        action = actions[:, t] if model.actions and actions is not None else None
        following = model.normaliser.clamp(model.sample_next(state, action, generator, before))
        before = None if before is None else before.push(state, action)
        if terminates is not None and over is not None:
            following = torch.where(over[:, None], state, following)
            over = over | terminates(following)
        state = following
        states[t + 1] = state
        on_step(t + 1)
    return states.transpose(0, 1)


def _given(model: TransitionModel, start: Tensor, past: Past | None) -> Past:
    """As much of the past as the model sees, stand-ins where none is known."""
    if past is None:
        return model.no_past(start)
    if past.state.shape != (len(start), past.length, model.state_size) or past.valid.shape != past.state.shape[:2]:
        raise EbmtrajError(
            f"the past has shape {tuple(past.state.shape)}; {len(start)} starts of this model need "
            f"({len(start)}, H, {model.state_size})"
        )
    if model.actions and (past.action is None or past.action.shape != (len(start), past.length, model.action_size)):
        raise EbmtrajError("this model takes actions: the past that it is given must have them too, one a state")
    return (past if model.actions else Past(past.state, None, past.valid)).recent(model.history)


def sample_futures(
    model: TransitionModel,
    start: Tensor,
    steps: int,
    samples: int,
    *,
    actions: Tensor | None = None,
    past: Past | None = None,
    terminates: Terminates | None = None,
    generator: torch.Generator,
    chunk: int = 4096,
    on_step: Callable[[int, int], None] = lambda done, total: None,
) -> Tensor:
    """`samples` futures of each start, `(N, S) -> (N, samples, T+1, S)` on the CPU, `chunk` rollouts at a time.

    `actions` and `past` as in `rollout`, for each start; `terminates` too.
    """
    many = start.repeat_interleave(samples, dim=0)
    # rows of the actions are looked up, not repeated, as they can be large
    owner = torch.arange(len(start), device=start.device).repeat_interleave(samples)
    total = -(-len(many) // chunk) * steps
    parts = []
    for number, first in enumerate(range(0, len(many), chunk)):
        rows = slice(first, first + chunk)
        given = None if actions is None else actions[owner[rows]]
        before = None if past is None or model.history == 0 else past.rows(owner[rows])

        def report(step: int, before: int = number * steps) -> None:
            on_step(before + step, total)

        states = rollout(
            model,
            many[rows],
            steps,
            actions=given,
            past=before,
            terminates=terminates,
            generator=generator,
            on_step=report,
        )
        parts.append(states.cpu())
    return torch.cat(parts).view(len(start), samples, steps + 1, -1)
