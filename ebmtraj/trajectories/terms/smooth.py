"""Terms over how states and actions change."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import ClassVar, Literal

import torch
from torch import Tensor

from ebmtraj.datasets.coordinates import Increments
from ebmtraj.trajectories.terms.term import Path, Term


@dataclass(frozen=True, eq=False)
class Smooth(Term):
    """Move little from step to step: mean over t of the squared change a control step, summed over the entries.

    `of` says of what: states (their increments: angles wrapped, rotation vectors in rad), actions, or both, which counts
    what the path has.
    """

    name: ClassVar[str] = "smooth"
    of: Literal["both", "states", "actions"] = "both"

    def _bind(self) -> None:
        if self.of not in ("both", "states", "actions"):
            self.refuse(f"of = {self.of!r}; use states, actions or both")

    @cached_property
    def _increments(self) -> Increments:
        return Increments(self.state_fields)

    def _value(self, path: Path) -> Tensor:
        if self.of == "actions" and path.actions is None:
            self.refuse("of=actions, and these plans have no actions; use of=states")
        cost = torch.zeros_like(path.start[:, 0])
        if self.of != "actions":
            states = torch.cat((path.start[:, None], path.states), dim=1)
            steps = torch.diff(path.times, prepend=torch.zeros_like(path.times[:1]))[:, None]  # (H, 1)
            change = self._increments.between(states[:, :-1], states[:, 1:]) / steps
            cost = cost + change.square().sum(-1).mean(1)
        if self.of != "states" and path.actions is not None and path.actions.shape[1] > 1:
            cost = cost + path.actions.diff(dim=1).square().sum(-1).mean(1)
        return cost
