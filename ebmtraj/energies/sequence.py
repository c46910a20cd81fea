"""The energy of a whole sequence: a sum over its transitions, bounded off the data."""

from __future__ import annotations

import abc
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor, nn


class SequenceContext(NamedTuple):
    """What a sequence is planned from: the start, and what it is to cost."""

    start: Tensor  # (B, S)
    cost: (
        Callable[[Tensor, Tensor, Tensor | None], Tensor] | None
    )  # start (B, S), states (B, T, S), actions (B, T, A) -> (B,)


class TransitionCoordinates(nn.Module, abc.ABC):
    """A trained transition energy, in coordinates in which a Gaussian of unit spread is about its data."""

    event: int  # numbers a transition

    @abc.abstractmethod
    def states(self, start: Tensor, x: Tensor) -> Tensor:
        """The states `(B, T, S)` that coordinates `(B, T, D)` lead to from a start `(B, S)`."""

    def actions(self, x: Tensor) -> Tensor | None:
        """The actions `(B, T, A)` that are part of the coordinates, for an energy E(s, a, s')."""
        return None

    @abc.abstractmethod
    def energy(self, state: Tensor, x: Tensor, level: Tensor | None) -> Tensor:
        """Energies of transitions from states, `(B, S), (B, D) -> (B,)`, growing without bound off the data."""


class SequenceEnergy(nn.Module):
    """E(s_1 ... s_T | s_0) = sum over t of E(s_t, s_t+1) + weight * cost(s_0 ... s_T), or of E(s_t, a_t, s_t+1).

    The trajectory energy of Du, Lin & Mordatch 2019 and of paper 000, section 5, plus a task cost. A sequence is given by
    coordinates x `(B, T, D)` of its transitions, from which all states follow: one step of a chain moves all states at once,
    and what is sure (a position follows its velocity) stays so, whence a step of one size fits everywhere. The start is held
    by construction; a goal is a term of the cost.
    """

    def __init__(self, transitions: TransitionCoordinates, *, weight: float = 1.0) -> None:
        super().__init__()
        self.transitions, self.weight = transitions, weight

    def forward(self, x: Tensor, context: SequenceContext, level: Tensor | None = None) -> Tensor:
        """Energies `(B,)` of sequences `(B, T, D)`, at a noise level where there are any."""
        energy, cost, _ = self.parts(x, context, level)
        return energy + self.weight * cost

    def parts(self, x: Tensor, context: SequenceContext, level: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor]:
        """The transitions' energy `(B,)`, the unweighted cost `(B,)`, and the states `(B, T, S)`."""
        states = self.transitions.states(context.start, x)
        before = torch.cat((context.start[:, None], states[:, :-1]), dim=1)
        energy = self.transitions.energy(before.flatten(0, 1), x.flatten(0, 1), level).view(x.shape[:2]).sum(1)
        if context.cost is None:
            return energy, torch.zeros_like(energy), states
        return energy, context.cost(context.start, states, self.transitions.actions(x)), states
