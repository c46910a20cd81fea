"""What every term of a task cost shares: the path that it judges, its options, and how it finds its fields by name."""

from __future__ import annotations

import abc
import dataclasses
import difflib
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor

from ebmtraj.errors import EbmtrajError
from ebmtraj.fields import Field, Kind, slices, total_size

TURNING_FROM = 8  # control steps ahead from which an orientation counts: nearer ones say little of where a turn leads
TURNING_UNIT = 32.0  # control steps ahead at which it counts fully


class Path(NamedTuple):
    """A planned or expected future: states at some control steps after a start, and the actions on the way.

    The states may be a whole sequence (times 1 to T) or those at some horizons only (2, 4, 8, 16, 32).
    """

    start: Tensor  # (B, S)
    states: Tensor  # (B, H, S)
    times: Tensor  # (H,) control steps after the start, rising
    actions: Tensor | None = None  # (B, W, A)
    turned: Tensor | None = None  # (B, H, 3) world-frame rotation vectors from the start, where the state has one quaternion

    @classmethod
    def sequence(cls, start: Tensor, states: Tensor, actions: Tensor | None = None) -> Path:
        """A path whose states `(B, T, S)` follow the start step by step."""
        times = torch.arange(1, states.shape[1] + 1, dtype=states.dtype, device=states.device)
        return cls(start, states, times, actions)


@dataclass(frozen=True, eq=False)
class Term(abc.ABC):
    """One named term of a task cost, bound to the fields of a state: `term(path) -> (B,)`, before its weight.

    A subclass is a frozen dataclass of its options, says in `_bind` what it needs of the fields, and gives `_value`. An
    option may also be a tensor `(B, ...)` with a value for each row of the paths it is given. `field` names the field that
    the term looks at, where the state has several of its kind. Raises `EbmtrajError` for a setting out of its range.
    """

    name: ClassVar[str]
    state_fields: tuple[Field, ...]
    weight: float = 1.0
    field: str = ""

    def __post_init__(self) -> None:
        if not math.isfinite(self.weight) or self.weight < 0:
            raise EbmtrajError(f"task term {self.label()}: weight = {self.weight}; give a finite number, 0 or more")
        for option in dataclasses.fields(self):
            value = getattr(self, option.name)
            numbers = value if isinstance(value, tuple) else (value,)
            if any(isinstance(number, float) and math.isnan(number) for number in numbers):
                self.refuse(f"{option.name} is not a number; give {option.name}=...")
            if isinstance(value, Tensor) and not value.isfinite().all():
                self.refuse(f"{option.name} holds NaN or infinity")
        self._bind()

    @abc.abstractmethod
    def _bind(self) -> None:
        """Look up what the term needs; raises `EbmtrajError` where the fields or options do not fit."""

    @abc.abstractmethod
    def _value(self, path: Path) -> Tensor:
        """The term's cost of each path, `(B,)`, differentiable in states and actions."""

    def __call__(self, path: Path) -> Tensor:
        """The term's cost of each path, `(B,)`; raises `EbmtrajError` where it is not finite or of another shape."""
        cost = self._value(path)
        if cost.shape != path.start.shape[:1]:
            self.refuse(f"gives shape {tuple(cost.shape)} for {len(path.start)} paths; it must be ({len(path.start)},)")
        if not cost.isfinite().all():
            if not path.states.isfinite().all():
                raise EbmtrajError(
                    f"task term {self.label()} was given planned states that are not finite: the plan diverged"
                )
            self.refuse("its value is NaN or infinite for a plan of finite states; mend that term or leave it out")
        return cost

    def holds(self, states: Tensor) -> Tensor | None:
        """Whether a term that is a constraint holds in each of the states `(B, T, S)`, `(B, T)`; None of other terms."""
        return None

    def meaning(self) -> str:
        """What `holds` takes for kept, with its tolerance."""
        return ""

    def progress(self, states: Tensor) -> tuple[str, Tensor] | None:
        """How far states `(B, T+1, S)` have come: words such as "turned {:.2f} rad" and values `(B, T+1)`, if any."""
        return None

    def label(self) -> str:
        """What messages and logs call this term."""
        return self.name

    def refuse(self, message: str) -> Any:
        """Raise `EbmtrajError` with the one line that names this term."""
        raise EbmtrajError(f"task term {self.label()}: {message}")

    def find_field(self, kind: Kind) -> tuple[Field, slice]:
        """The field that this term looks at and its place in the state: the one named, or the only one of its kind."""
        places = slices(self.state_fields)
        fitting = [field for field in self.state_fields if field.kind == kind]
        if self.field:
            named = [field for field in self.state_fields if field.name == self.field]
            if not named:
                self.refuse(f"the state has no field {self.field!r}; it has {', '.join(places)}")
            if named[0].kind != kind:
                self.refuse(f"field {self.field!r} is a {named[0].kind}, and the term needs a {kind}")
            return named[0], places[self.field]
        if len(fitting) != 1:
            found = f"has {len(fitting)}: choose one by field=..., of {', '.join(f.name for f in fitting)}"
            missing = f"has none; its fields are {', '.join(f'{f.name} ({f.kind})' for f in self.state_fields)}"
            self.refuse(f"needs a field of kind {kind}, and the state " + (found if fitting else missing))
        return fitting[0], places[fitting[0].name]

    def find_joints(self, names: Sequence[str] = ()) -> Joints:
        """The joints (entries of angle fields) of these names, or all; raises `EbmtrajError` for an unknown name."""
        found: dict[str, tuple[int, float, float]] = {}
        for field in self.state_fields:
            if field.kind != "angle" or (self.field and field.name != self.field):
                continue
            first = slices(self.state_fields)[field.name].start
            for i, (low, high) in enumerate(zip(*field.limits(), strict=True)):
                found[field.entries[i] if field.entries else f"{field.name}.{i}"] = (first + i, low, high)
        if not found:
            self.find_field("angle")
            self.refuse("needs joint angles, and the state has none")
        for name in names:
            if name not in found:
                close = difflib.get_close_matches(name, found, n=1)
                hint = f"did you mean {close[0]}?" if close else f"there are {', '.join(found)}"
                self.refuse(f"the state has no joint {name!r}; {hint}")
        chosen = list(names) or list(found)
        places, lows, highs = zip(*(found[name] for name in chosen), strict=True)
        return Joints(tuple(chosen), places, lows, highs)

    def find_entry(self, entry: str) -> int:
        """Where the state holds this entry of the term's position field; raises `EbmtrajError` where it does not."""
        field, place = self.find_field("position")
        if entry not in (field.entries or ()):
            self.refuse(f"field {field.name!r} has no entry {entry!r}; it has {', '.join(field.entries or ('no names',))}")
        return int(place.start) + (field.entries or ()).index(entry)


class Joints(NamedTuple):
    """Some joints of a state: names, places and limits (rad)."""

    names: tuple[str, ...]
    places: tuple[int, ...]
    low: tuple[float, ...]
    high: tuple[float, ...]

    def of(self, states: Tensor) -> Tensor:
        """Their angles, `(..., S) -> (..., J)`."""
        return states[..., list(self.places)]


def turning_weights(times: Tensor) -> Tensor:
    """How much an orientation counts at each of these control steps ahead, `(H,)`: time / 32 from 8 on, or all if none is.

    The weights of the horizons 8, 16 and 32 are 0.25, 0.5 and 1.
    """
    late = times >= TURNING_FROM
    counted = late if bool(late.any()) else torch.ones_like(late)
    return torch.where(counted, times / TURNING_UNIT, 0.0)


def decided(path: Path) -> Tensor:
    """Weights `(H,)` of a mean over the times that the path's actions reach, or over all where there are none so near.

    Later states are what the data would do by itself after the plan; a constraint on joints, which follow their targets at
    once, gains nothing from pulling at them, and other terms lose.
    """
    steps = path.times[-1] if path.actions is None else torch.full_like(path.times[-1], path.actions.shape[1])
    near = path.times <= steps
    counted = (near if bool(near.any()) else torch.ones_like(near)).to(path.states.dtype)
    return counted / counted.sum()


def rows_of(option: Tensor | Sequence[float], like: Tensor) -> Tensor:
    """An option as `(B, 1, D)`, or `(1, 1, D)` where it is the same for all, to compare with states `(B, H, D)`."""
    values = torch.as_tensor(option, dtype=like.dtype, device=like.device)
    return values.reshape(-1, 1, values.shape[-1])


def check_state(fields: Sequence[Field], path: Path) -> None:
    """Raise `EbmtrajError` for a path whose shapes do not fit these fields or each other."""
    size, batch, steps = total_size(fields), len(path.start), len(path.times)
    if path.start.shape != (batch, size) or path.states.shape != (batch, steps, size) or steps < 1:
        raise EbmtrajError(
            f"a task cost of {size} state numbers was given a start {tuple(path.start.shape)}, states "
            f"{tuple(path.states.shape)} and {steps} times; they must be (B, {size}), (B, H, {size}) and H"
        )
