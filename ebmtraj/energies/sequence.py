"""The energy of a whole sequence: a sum over its transitions plus what the sequence is to cost.

Papers 000, section 5, and 002.
"""

from __future__ import annotations

import abc
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

Cost = Callable[[Tensor, Tensor, Tensor | None], Tensor]  # start (B, S), states (B, T, S), actions (B, T, A) -> (B,)


class SequenceContext(NamedTuple):
    """What a sequence is planned from: the start, and what it is to cost."""

    start: Tensor  # (B, S)
    cost: Cost | None = None


class Sequence(NamedTuple):
    """What the coordinates of a sequence stand for."""

    states: Tensor  # (B, T, S), the start left out
    actions: Tensor | None  # (B, T, A), of an energy E(s, a, s')
    seen: Any = None  # what was computed on the way and the transitions' energy needs again


class TransitionCoordinates(nn.Module, abc.ABC):
    """A transition energy, in coordinates in which a Gaussian of unit spread is about its data."""

    event: int  # numbers a transition

    @abc.abstractmethod
    def unroll(self, start: Tensor, x: Tensor) -> Sequence:
        """The states that coordinates `(B, T, D)` lead to from starts `(B, S)`, differentiable in x."""

    @abc.abstractmethod
    def energy(self, start: Tensor, sequence: Sequence, x: Tensor, level: Tensor | None) -> Tensor:
        """Energies `(B, T)` of all transitions of a sequence, growing without bound off the data.

        Coordinates x are `(B, T, D)`, the starts of chains `(B, S)`.
        """


class SequenceEnergy(nn.Module):
    """E(s_1 ... s_T | s_0) = sum over t of E(s_t, s_t+1) + weight * cost(s_0 ... s_T), or of E(s_t, a_t, s_t+1).

    The trajectory energy of Du, Lin & Mordatch 2019 and of paper 000, section 5, plus a task cost. A sequence is given by
    coordinates x `(B, T, D)` of its transitions, from which all states follow: one step of a chain moves all states at once,
    and what is sure (a position follows its velocity) stays so, whence steps of one size fit everywhere. The start is held
    by construction; a goal is a term of the cost.
    """

    def __init__(self, transitions: TransitionCoordinates, *, weight: float = 1.0) -> None:
        super().__init__()
        self.transitions, self.weight = transitions, weight

    def forward(self, x: Tensor, context: SequenceContext, level: Tensor | None = None) -> Tensor:
        """Energies `(B,)` of sequences `(B, T, D)`, at a noise level where the transitions' energy has any."""
        energy, cost, _ = self.parts(x, context, level)
        return energy + self.weight * cost

    def parts(self, x: Tensor, context: SequenceContext, level: Tensor | None = None) -> tuple[Tensor, Tensor, Sequence]:
        """The transitions' energy `(B,)`, the unweighted cost `(B,)`, and the sequence."""
        sequence = self.transitions.unroll(context.start, x)
        energy = self.transitions.energy(context.start, sequence, x, level).sum(1)
        if context.cost is None:
            return energy, torch.zeros_like(energy), sequence
        return energy, context.cost(context.start, sequence.states, sequence.actions), sequence
