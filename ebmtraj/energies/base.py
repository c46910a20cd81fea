"""The contract of an energy, and the operators that compose energies."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol

from torch import Tensor

from ebmtraj.errors import EbmtrajError

if TYPE_CHECKING:
    from ebmtraj.energies.compose import Composed


class Energy(Protocol):
    """An energy gives one number to each element of a batch: `(B, *event), context[, level] -> (B,)`.

    It is differentiable in its first argument. One that has its input gradient in closed form offers it as
    `gradient(x, context[, level]) -> (B, *event)`; the sampler then uses that. One that is a `Composable` can be composed
    by `&`, `|` and `~`.
    """

    def __call__(self, x: Tensor, context: Any, level: Tensor | None = None) -> Tensor:
        """Energies `(B,)`."""
        ...


class Composable:
    """An energy with operators: `a & b`, `a | b`, `~a`, `a - b`, `2 * a`, `a / 2`; what they mean, `energies.compose` says.

    The other side may be any energy, a task cost or a plain function of x. All raise `EbmtrajError` for energies over events
    of different shapes, as far as they say theirs.
    """

    def __and__(self, other: Any) -> Composed:
        """Both: the product of the densities."""
        from ebmtraj.energies.compose import And

        return And([self, other])

    __add__ = __and__

    def __rand__(self, other: Any) -> Composed:
        """Both, where the other is a plain function."""
        from ebmtraj.energies.compose import And

        return And([other, self])

    __radd__ = __rand__

    def __or__(self, other: Any) -> Composed:
        """At least one: the sum of the densities."""
        from ebmtraj.energies.compose import Or

        return Or([self, other])

    def __ror__(self, other: Any) -> Composed:
        """At least one, where the other is a plain function."""
        from ebmtraj.energies.compose import Or

        return Or([other, self])

    def __invert__(self) -> Composed:
        """Its absence, bounded."""
        from ebmtraj.energies.compose import Not

        return Not(self)

    def __sub__(self, other: Any) -> Composed:
        """What this says beyond the other: the ratio of the densities."""
        from ebmtraj.energies.compose import And

        return And([self, other], [1.0, -1.0])

    def __mul__(self, weight: float) -> Composed:
        """The density to a power."""
        from ebmtraj.energies.compose import And

        if not isinstance(weight, int | float) or not weight >= 0:
            raise EbmtrajError(
                f"an energy times {weight!r}: the weight is a number of at least 0; negate by ~, which is bounded"
            )
        return And([self], [float(weight)])

    __rmul__ = __mul__

    def __truediv__(self, temperature: float) -> Composed:
        """The density tempered."""
        if not isinstance(temperature, int | float) or not temperature > 0:
            raise EbmtrajError(f"an energy at temperature {temperature!r}: it needs a number above 0")
        return self * (1 / temperature)

    def given(self, context: Any) -> Composed:
        """The energy at a context of its own, whatever context the sampler passes: a number, `(1, ...)` or `(B, ...)`."""
        from ebmtraj.energies.compose import Term

        return Term(self, context=context)  # type: ignore[arg-type]
