"""Terms over positions: heights, obstacles and goals."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from ebmtraj.trajectories.terms.term import Path, Term, rows_of

REACHER = ("joint0", "joint1")  # the joints of Gymnasium's Reacher, whose links are 0.1 m and 0.11 m long
REACHER_LINKS = (0.1, 0.11)
TARGETS = ("target", "goal")  # what the names of a goal's entries or field begin with, where the state holds one


@dataclass(frozen=True, eq=False)
class KeepHeight(Term):
    """Keep a body above a height: mean over t of the squared shortfall below `low` (m), in units of `scale` (m)."""

    name: ClassVar[str] = "keep-height"
    low: float = torch.nan
    entry: str = "z"
    scale: float = 0.01

    def _bind(self) -> None:
        if self.scale <= 0:
            self.refuse(f"scale = {self.scale:g}; give a length above 0 m")
        self.find_entry(self.entry)

    def _value(self, path: Path) -> Tensor:
        height = path.states[..., self.find_entry(self.entry)]
        return ((self.low - height).clamp_min(0) / self.scale).square().mean(1)

    def holds(self, states: Tensor) -> Tensor | None:
        """Whether the body is no lower than `low`."""
        return states[..., self.find_entry(self.entry)] >= self.low

    def meaning(self) -> str:
        """In words."""
        return f"{self.entry} at least {self.low:g} m"


@dataclass(frozen=True, eq=False)
class Obstacle(Term):
    """Keep a position out of a disc or sphere: mean over t of (how deep it is in, over radius + margin)^2.

    `centre` has a coordinate for each entry of the position field, `radius` and `margin` are in metres.
    """

    name: ClassVar[str] = "obstacle"
    centre: tuple[float, ...] | Tensor = ()
    radius: float = torch.nan
    margin: float = 0.0

    def _bind(self) -> None:
        if self.radius <= 0 or self.margin < 0:
            self.refuse(
                f"radius = {self.radius:g}, margin = {self.margin:g}; the radius must be above 0, the margin 0 or more"
            )
        point = Point.find(self)
        size = torch.as_tensor(self.centre).shape[-1]
        if size != point.size:
            self.refuse(f"centre has {size} coordinates and {point.label} has {point.size}; give centre=x,y,...")

    def _value(self, path: Path) -> Tensor:
        reach = self.radius + self.margin
        distance = (Point.find(self).of(path.states) - rows_of(self.centre, path.states)).norm(dim=-1)  # (B, H)
        return ((reach - distance).clamp_min(0) / reach).square().mean(1)

    def holds(self, states: Tensor) -> Tensor | None:
        """Whether the position is outside, the margin left out."""
        return (Point.find(self).of(states) - rows_of(self.centre, states)).norm(dim=-1) >= self.radius

    def meaning(self) -> str:
        """In words."""
        return f"at least {self.radius:g} m from the centre"


@dataclass(frozen=True, eq=False)
class Reach(Term):
    """Bring a position, or a planar arm's fingertip, to a goal: its squared distance in units of `scale` (m).

    `when` says at which times: the mean over t weighted by t ("always"), or at the last one alone ("end"). `goal` has a
    coordinate for each entry, or is a tensor `(B, D)`; without one it is what the start holds under entries or a field named
    target or goal. `links` (m) make the point the tip of a planar arm of the state's first joints; Gymnasium's Reacher is
    known.
    """

    name: ClassVar[str] = "reach"
    goal: tuple[float, ...] | Tensor = ()
    scale: float = 0.1
    when: Literal["always", "end"] = "always"
    links: tuple[float, ...] = ()

    def _bind(self) -> None:
        if self.when not in ("always", "end"):
            self.refuse(f"when = {self.when!r}; use always or end")
        if self.scale <= 0:
            self.refuse(f"scale = {self.scale:g}; give a length above 0 m")
        point = Point.find(self, self.links)
        if isinstance(self.goal, tuple) and not self.goal:
            if len(_target_places(self)) != point.size:
                self.refuse(f"no goal; give goal=... with {point.size} coordinates: the state holds no target of its own")
            return
        goal = torch.as_tensor(self.goal, dtype=torch.float64)
        if goal.ndim > 2 or goal.shape[-1] != point.size:
            self.refuse(f"goal has shape {tuple(goal.shape)}, and {point.label} has {point.size} coordinates")
        point.check_goal(self, goal.reshape(-1, point.size))

    def _value(self, path: Path) -> Tensor:
        distance = (Point.find(self, self.links).of(path.states) - self.goals(path.start)).square().sum(
            -1
        ) / self.scale**2  # (B, H)
        if self.when == "end":
            return distance[:, -1]
        return (distance * path.times / path.times.sum()).sum(1)

    def goals(self, start: Tensor) -> Tensor:
        """The goals of paths from starts `(B, S)`, `(B or 1, 1, D)`."""
        given = not isinstance(self.goal, tuple) or bool(self.goal)
        return rows_of(self.goal if given else start[:, _target_places(self)], start)

    def progress(self, states: Tensor) -> tuple[str, Tensor] | None:
        """Centimetres left to the goal."""
        return "{:.1f} cm left", 100 * (Point.find(self, self.links).of(states) - self.goals(states[:, 0])).norm(dim=-1)


@dataclass(frozen=True)
class Point:
    """A position that a state holds or, for a planar arm, implies."""

    label: str
    size: int
    places: tuple[int, ...]
    low: tuple[float, ...]
    high: tuple[float, ...]
    links: tuple[float, ...] = ()  # of a planar arm whose joint angles stand at `places`

    @classmethod
    def find(cls, term: Term, links: tuple[float, ...] = ()) -> Point:
        """The point that a term is about; raises `EbmtrajError` where its fields hold none, or several."""
        arm = [f for f in term.state_fields if f.kind == "angle" and f.entries == REACHER]
        if not links and arm and not term.field:
            links = REACHER_LINKS
        if links:
            joints = term.find_joints()
            if len(joints.places) < len(links) or min(links) <= 0:
                term.refuse(
                    f"{len(links)} links for {len(joints.places)} joints; give a length above 0 m for the first ones"
                )
            return cls("the fingertip", 2, joints.places[: len(links)], (-torch.inf,) * 2, (torch.inf,) * 2, links)
        positions = [f for f in term.state_fields if f.kind == "position" and not f.name.startswith(TARGETS)]
        if not term.field and len(positions) == 1:
            field = positions[0]
            start = 0
            for other in term.state_fields:
                if other is field:
                    break
                start += other.size
        else:
            field, place = term.find_field("position")
            start = place.start
        low, high = field.limits()
        return cls(f"field {field.name!r}", field.size, tuple(range(start, start + field.size)), low, high)

    def of(self, states: Tensor) -> Tensor:
        """Its coordinates (m), `(..., S) -> (..., D)`."""
        if not self.links:
            return states[..., list(self.places)]
        angle = states[..., list(self.places)].cumsum(-1)
        lengths = torch.tensor(self.links, dtype=states.dtype, device=states.device)
        return torch.stack(((lengths * torch.cos(angle)).sum(-1), (lengths * torch.sin(angle)).sum(-1)), dim=-1)

    def check_goal(self, term: Term, goals: Tensor) -> None:
        """Raise `EbmtrajError` for a goal among `(B, size)` (m) that is out of the point's reach."""
        for k, (low, high) in enumerate(zip(self.low, self.high, strict=True)):
            outside = (goals[:, k] < low) | (goals[:, k] > high)
            if outside.any():
                term.refuse(
                    f"the goal's coordinate {float(goals[outside, k][0]):g} is outside {self.label}, {low:g} to {high:g}"
                )
        if self.links and (goals.norm(dim=-1) > sum(self.links) + 1e-6).any():
            term.refuse(
                f"the goal is {float(goals.norm(dim=-1).max()):.3g} m away, and the arm is {sum(self.links):g} m long"
            )


def _target_places(term: Term) -> list[int]:
    """Where the state holds a goal's coordinates: entries or a position field named target or goal."""
    places, start = [], 0
    for field in term.state_fields:
        if field.kind == "position":
            names = field.entries or ("",) * field.size
            whole = field.name.startswith(TARGETS)
            places += [start + k for k, name in enumerate(names) if whole or name.startswith(TARGETS)]
        start += field.size
    return places
