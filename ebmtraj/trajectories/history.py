"""How a model sees the states before the present one: as the moves that led there."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import Tensor

from ebmtraj.datasets.normaliser import Normaliser
from ebmtraj.datasets.windows import Past
from ebmtraj.errors import EbmtrajError
from ebmtraj.fields import Field, has_rates

LENGTH = 2  # states before the present one, where they are seen at all
BOUND = 6.0  # moves are clamped here, in standard deviations


def check_history(
    history: int | Literal["auto"], history_noise: float, forget: float, previous_control: bool = False
) -> None:
    """Raise `EbmtrajError` for settings that make no past."""
    if history == "auto":
        history = LENGTH
    if history < 0 or history_noise < 0 or not 0 <= forget <= 1:
        raise EbmtrajError(
            f"network: history = {history}, history_noise = {history_noise}, forget = {forget}; "
            "it needs history >= 0, history_noise >= 0 and 0 <= forget <= 1"
        )
    if previous_control and history == 0:
        raise EbmtrajError("network.previous_control = true needs a past; set network.history = 1 or more, or it to false")


def settled(config: Any, fields: Sequence[Field]) -> Any:
    """The settings of a model of states of these fields, with a `history` that is left to them decided.

    Where the state has velocities, none: it says where the motion goes, and blurred moves of the past only stand in the
    way. Else two states, and the controls taken there.
    """
    if getattr(config, "history", 0) != "auto":
        return config
    if has_rates(fields):
        return dataclasses.replace(config, history=0, previous_control=False)
    return dataclasses.replace(config, history=LENGTH)


def moves(
    normaliser: Normaliser,
    state: Tensor,
    past: Past,
    *,
    controls: bool = False,
    noise: float = 0.0,
    generator: torch.Generator | None = None,
) -> Tensor:
    """The normalised increments that led to `state` `(B, S)`, oldest first, `(B, H, D + 1)`, or `(B, H, D + A + 1)`.

    With `controls`, each comes with the action that was taken. The last entry says whether it is known; one that is not is 0
    throughout. With `noise`, increments are blurred by Gaussian noise of that many standard deviations of the data. Raises
    `EbmtrajError` where controls are wanted and the past has none.
    """
    states = torch.cat((past.state, state.unsqueeze(1)), dim=1)
    z = normaliser.delta(states[:, :-1], states[:, 1:])
    if noise > 0:
        z = z + noise * torch.empty_like(z).normal_(generator=generator)
    parts = [z]
    if controls:
        if past.action is None:
            raise EbmtrajError("this model sees the actions of the past, and the past that it is given has none")
        parts.append((past.action - normaliser.action_mean) / normaliser.action_scale)
    known = past.valid.unsqueeze(-1)
    seen = torch.where(known, torch.cat(parts, dim=-1).clamp(-BOUND, BOUND), 0.0)
    return torch.cat((seen, known.to(seen.dtype)), dim=-1)


def present(normaliser: Normaliser, state: Tensor, past: Past) -> Tensor:
    """What is seen of states `(B, S)` and a past with actions: the state, the move that led to it, the past's actions.

    All normalised, `(B, present_size)`; an action that is not known is 0, and a flag beside each says so.
    """
    assert past.action is not None
    move = moves(normaliser, state, past.recent(1))[:, 0, :-1]
    known = past.valid.unsqueeze(-1)
    controls = (past.action - normaliser.action_mean) / normaliser.action_scale
    seen = torch.cat((torch.where(known, controls, 0.0), known.to(controls.dtype)), dim=-1)
    return torch.cat((normaliser.context(state), move, seen.flatten(1)), dim=-1)


def present_size(normaliser: Normaliser, controls: int) -> int:
    """How many numbers `present` gives with that many actions of the past."""
    return normaliser.increments.feature_size + normaliser.increments.size + controls * (len(normaliser.action_mean) + 1)


def forgotten(past: Past, share: float, generator: torch.Generator) -> Past:
    """`past` cut short in a random `share` of the batch: of H states, the latest 0 to H - 1 remain.

    A rollout begins without a past, and data in which hardly any episode does teaches no model how to go on from there.
    """
    shape, device = past.valid.shape[:1], past.valid.device
    cut = torch.rand(shape, generator=generator, device=device) < share
    kept = torch.randint(past.length, shape, generator=generator, device=device)
    age = torch.arange(past.length, 0, -1, device=device)
    return dataclasses.replace(past, valid=past.valid & ~(cut.unsqueeze(1) & (age > kept.unsqueeze(1))))
