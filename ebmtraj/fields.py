"""What the numbers in a state or action vector mean: names, kinds, units and limits.

Both ends of the data flow speak this: environments declare their fields, the store writes them into its attributes, and
models read them to know which numbers wrap, which form a quaternion and which are plain.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

from ebmtraj.errors import EbmtrajError

Kind = Literal["plain", "angle", "position", "quaternion"]
KINDS: tuple[Kind, ...] = ("plain", "angle", "position", "quaternion")
Symmetry = Literal["cube"]
LARGEST = 1_000_000  # numbers of a field
DEGREES = ("deg", "degree", "degrees", "°")


@dataclass(frozen=True)
class Coupling:
    """A weighted sum of a field's entries that the simulator limits, such as the length of a tendon over two joints.

    Raises `EbmtrajError` where names, entries and weights do not go together.
    """

    name: str
    entries: tuple[int, ...]
    weights: tuple[float, ...]

    def __post_init__(self) -> None:
        if not isinstance(self.name, str) or not self.name:
            raise EbmtrajError(f"a coupling's name is {self.name!r}; give a text")
        if len(self.entries) != len(self.weights) or not self.entries:
            raise EbmtrajError(
                f"coupling {self.name!r}: {len(self.entries)} entries and {len(self.weights)} weights; give one for each"
            )
        if not all(isinstance(entry, int) and not isinstance(entry, bool) for entry in self.entries):
            raise EbmtrajError(f"coupling {self.name!r}: entries {list(self.entries)} are not all whole numbers")
        if not all(
            isinstance(weight, int | float) and not isinstance(weight, bool) and math.isfinite(weight)
            for weight in self.weights
        ):
            raise EbmtrajError(f"coupling {self.name!r}: weights {list(self.weights)} are not all finite numbers")


@dataclass(frozen=True)
class Field:
    """A named slice of a state or action vector.

    `kind` decides how two successive values are compared: `plain` and `position` (metres) by difference, `angle` (radians)
    by difference wrapped to [-pi, pi), `quaternion` (w, x, y, z; size 4) by the world-frame rotation between. `low` and
    `high` are hard limits of the simulator, one number an entry, where there are any; an entry without one has -inf or inf
    there (null in JSON). `couplings` say which sums of entries matter by themselves, and `symmetry` that the body whose
    orientation a quaternion gives looks and moves alike in several poses: a cube in 24. Raises `EbmtrajError` for an unknown
    kind, for sizes that disagree, and for an angle in degrees.
    """

    name: str
    size: int
    kind: Kind = "plain"
    unit: str = ""
    low: tuple[float, ...] | None = None
    high: tuple[float, ...] | None = None
    entries: tuple[str, ...] | None = None  # one name an entry, e.g. the joints'
    couplings: tuple[Coupling, ...] | None = None
    symmetry: Symmetry | None = None

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise EbmtrajError(f"field {self.name!r}: unknown kind {self.kind!r}; use one of {', '.join(KINDS)}")
        if not isinstance(self.size, int) or self.size > LARGEST:
            raise EbmtrajError(f"field {self.name!r}: size {self.size!r}; give a whole number up to {LARGEST:,}")
        if self.size < 1 or (self.kind == "quaternion" and self.size != 4):
            raise EbmtrajError(f"field {self.name!r}: size {self.size} does not fit kind {self.kind!r}")
        for label in ("low", "high", "entries"):
            value = getattr(self, label)
            if value is not None and len(value) != self.size:
                raise EbmtrajError(f"field {self.name!r}: {label} has {len(value)} values for size {self.size}")
        if self.symmetry is not None and (self.symmetry != "cube" or self.kind != "quaternion"):
            raise EbmtrajError(
                f"field {self.name!r}: symmetry {self.symmetry!r} of a {self.kind}; a quaternion may have symmetry 'cube'"
            )
        for coupling in self.couplings or ():
            for entry in coupling.entries:
                if not 0 <= entry < self.size:
                    raise EbmtrajError(
                        f"field {self.name!r}: coupling {coupling.name!r} names entry {entry}; it has 0 to {self.size - 1}"
                    )
                if self.kind == "quaternion" or self.turning()[entry]:
                    raise EbmtrajError(
                        f"field {self.name!r}: coupling {coupling.name!r} adds up entry {entry}, which turns without end; "
                        "give it limits, or drop the coupling"
                    )
        if self.kind == "angle" and self.unit.lower().rstrip(".") in DEGREES:
            raise EbmtrajError(
                f"field {self.name!r}: an angle is in radians, not in {self.unit!r}; convert it, or make it plain"
            )

    def limits(self) -> tuple[tuple[float, ...], tuple[float, ...]]:
        """Lower and upper limit of each entry, infinite where there is none."""
        return self.low or (-math.inf,) * self.size, self.high or (math.inf,) * self.size

    def turning(self) -> tuple[bool, ...]:
        """Which entries are angles without limits, which may turn without end: a whole turn on, the pose is the same."""
        free = (math.isinf(low) and math.isinf(high) for low, high in zip(*self.limits(), strict=True))
        return tuple(self.kind == "angle" and is_free for is_free in free)


def total_size(fields: Iterable[Field]) -> int:
    """Length of the vector that these fields make up."""
    return sum(field.size for field in fields)


def has_rates(fields: Iterable[Field]) -> bool:
    """Whether velocities are among them, so that a state says where its motion goes: a unit per second, as rad/s."""
    return any(field.unit.replace(" ", "").endswith("/s") for field in fields)


def slices(fields: Iterable[Field]) -> dict[str, slice]:
    """Where each field stands in the vector, by name."""
    places: dict[str, slice] = {}
    start = 0
    for field in fields:
        places[field.name] = slice(start, start + field.size)
        start += field.size
    return places


def fields_to_json(fields: Sequence[Field]) -> list[dict[str, Any]]:
    """Plain JSON values, for the store's attributes and a checkpoint's header."""
    keys = ("name", "size", "kind", "unit", "low", "high", "entries")
    rows = []
    for field in fields:
        values = {key: getattr(field, key) for key in keys}
        row = {k: _listed(v) if isinstance(v, tuple) else v for k, v in values.items() if v is not None}
        if field.couplings is not None:
            row["couplings"] = [
                {"name": c.name, "entries": list(c.entries), "weights": list(c.weights)} for c in field.couplings
            ]
        if field.symmetry:
            row["symmetry"] = field.symmetry
        rows.append(row)
    return rows


def _listed(values: tuple[Any, ...]) -> list[Any]:
    """JSON has no infinity: an entry without a limit is null."""
    return [None if isinstance(value, float) and math.isinf(value) else value for value in values]


def fields_from_json(rows: Sequence[Mapping[str, Any]]) -> tuple[Field, ...]:
    """The inverse of `fields_to_json`; raises `EbmtrajError` where a row is not a field or a name comes twice."""
    fields = []
    for row in rows:
        try:
            values: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in row.items()}
            for key, unlimited in (("low", -math.inf), ("high", math.inf)):
                if values.get(key) is not None:
                    values[key] = tuple(unlimited if value is None else float(value) for value in values[key])
            if values.get("couplings") is not None:
                values["couplings"] = tuple(
                    Coupling(**{**c, "entries": tuple(c["entries"]), "weights": tuple(c["weights"])})
                    for c in values["couplings"]
                )
            fields.append(Field(**values))
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise EbmtrajError(f"not a field description: {row!r}") from error
        if any(field.name == fields[-1].name for field in fields[:-1]):
            raise EbmtrajError(f"field {fields[-1].name!r} comes twice; give each a name of its own")
    return tuple(fields)


class Described(NamedTuple):
    """What an environment says of vectors of its states and actions that came from elsewhere."""

    state_fields: tuple[Field, ...]
    action_fields: tuple[Field, ...]
    control_timestep: float  # s
    env_attributes: dict[str, Any]  # with which its episodes are stored
    said: str  # what the states are taken for
