"""Energies composed by and, or, not, scaled, tempered: new energies that any sampler takes (papers 000, section 7, and 003).

With p_a = exp(-E_a) and p_b = exp(-E_b), neither of which need be normalised:

    a & b   p_a p_b                         E_a + E_b
    a | b   p_a + p_b                       -log(exp(-E_a) + exp(-E_b))
    ~a      1 / (1 + p_a)                   log(1 + exp(-E_a)), between 0 and log(1 + max p_a)
    a - b   p_a / p_b                       E_a - E_b: what a says beyond b, such as E(x | c) - E(x)
    w * a   p_a^w                           w E_a;  a / T tempers

Paper 003 negates an energy by -alpha E_a, which pulls without bound to wherever E_a is highest, mostly to no data at all.
~a repels no more than there is to repel: where p_a is a likelihood ratio of a concept against the rest, it is what Bayes'
rule gives for its absence, and where a does not hold it is flat.

At a noise level above 0 a product of noised densities is not the noised product (Du et al. 2023), so a chain that goes down
a ladder needs corrector steps at each level (`LangevinConfig.steps` above 0), which only an energy can offer.
"""

from __future__ import annotations

import abc
import inspect
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ebmtraj.energies.base import Composable
from ebmtraj.errors import EbmtrajError
from ebmtraj.samplers.backends import Energy
from ebmtraj.samplers.checks import check_energy

Pair = tuple[Tensor, Tensor]  # energies (B,) and their gradient (B, *event)


class Composed(Composable, nn.Module, abc.ABC):
    """An energy made of others: `(x (B, *event), context, level) -> (B,)`, with its gradient in closed form of theirs."""

    def __init__(self, parts: Sequence[Any]) -> None:
        """Raises `EbmtrajError` for parts over events of different shapes, as far as they say theirs."""
        super().__init__()
        made = [as_term(part) for part in parts]
        self.parts = nn.ModuleList(made)
        self.event = shared_event(made)

    @abc.abstractmethod
    def join(self, values: Sequence[Tensor]) -> Tensor:
        """The energy `(B,)`, given those of the parts."""

    @abc.abstractmethod
    def slopes(self, values: Sequence[Tensor]) -> Sequence[Tensor | float]:
        """Derivative of `join` in each part's energy, `(B,)` or a number."""

    @property
    def each(self) -> list[Composed]:
        """The parts."""
        return [part for part in self.parts if isinstance(part, Composed)]

    needs_values = True  # whether `slopes` looks at the values

    def forward(self, x: Tensor, context: Any = None, level: Tensor | None = None) -> Tensor:
        """Energies `(B,)`; raises `EbmtrajError` where x is of another shape than the parts take."""
        self._check(x)
        return self.join([part(x, context, level) for part in self.parts])

    def value_and_gradient(self, x: Tensor, context: Any = None, level: Tensor | None = None) -> Pair:
        """Energies `(B,)` and their gradient `(B, *event)`; raises `EbmtrajError` for x of another shape."""
        self._check(x)
        values, gradients = zip(*(part.value_and_gradient(x, context, level) for part in self.each), strict=True)
        return self.join(values), _weighted(self.slopes(values), gradients)

    def gradient(self, x: Tensor, context: Any = None, level: Tensor | None = None) -> Tensor:
        """Gradient in x, `(B, *event)`; raises `EbmtrajError` where x is of another shape than the parts take."""
        if self.needs_values:
            return self.value_and_gradient(x, context, level)[1]
        self._check(x)
        return _weighted(self.slopes(()), [part.gradient(x, context, level) for part in self.each])

    def _check(self, x: Tensor) -> None:
        if self.event is not None and tuple(x.shape[1:]) != self.event:
            raise EbmtrajError(f"composed energy: events of shape {tuple(x.shape[1:])}; its parts take {self.event}")


def _weighted(slopes: Sequence[Tensor | float], gradients: Sequence[Tensor]) -> Tensor:
    """Sum of the gradients `(B, *event)`, each times its slope `(B,)`."""
    total: Tensor | None = None
    for slope, g in zip(slopes, gradients, strict=True):
        each = g if isinstance(slope, float) and slope == 1 else g * _spread(slope, g)
        total = each if total is None else total + each
    assert total is not None
    return total


def _spread(slope: Tensor | float, g: Tensor) -> Tensor | float:
    return slope.reshape(-1, *[1] * (g.dim() - 1)) if isinstance(slope, Tensor) else slope


class Term(Composed):
    """Any energy as a part: a module, a task cost, or a plain function of x; at a context of its own where one is given."""

    def __init__(
        self, energy: Energy, *, context: Any = None, event: Sequence[int] | None = None, title: str | None = None
    ) -> None:
        """`context` stands in place of the one that a sampler passes; `event` is the shape that it takes, where known."""
        super().__init__([])
        self.energy, self.title = energy, title
        if context is None or isinstance(context, Tensor):
            self.register_buffer("context", context, persistent=False)
        else:
            self.context = context
        own = getattr(energy, "event", None) if event is None else event
        self.event = None if own is None else tuple(int(size) for size in own)
        self._takes = _arguments(energy)

    def _conditions(self, x: Tensor, context: Any, level: Tensor | None) -> tuple[Any, ...]:
        own: Any = context if self.context is None else self.context
        if isinstance(own, Tensor) and own.dim() and len(own) == 1 and len(x) != 1:
            own = own.expand(len(x), *own.shape[1:])
        return (own, *(() if level is None else (level,)))[: self._takes]

    def forward(self, x: Tensor, context: Any = None, level: Tensor | None = None) -> Tensor:
        """Energies `(B,)`."""
        self._check(x)
        value = self.energy(x, *self._conditions(x, context, level))
        check_energy(self.energy, value, x)
        return value

    def value_and_gradient(self, x: Tensor, context: Any = None, level: Tensor | None = None) -> Pair:
        """Energies `(B,)` and gradient `(B, *event)`: its own closed form where it has one, else autograd's."""
        if getattr(self.energy, "gradient", None) is not None:
            return self(x, context, level), self.gradient(x, context, level)
        wanted = torch.is_grad_enabled()
        with torch.enable_grad():
            x = x if x.requires_grad and wanted else x.detach().requires_grad_(True)
            value = self(x, context, level)
            g = torch.autograd.grad(value.sum(), x, create_graph=wanted)[0]
        return (value if wanted else value.detach()), g

    def gradient(self, x: Tensor, context: Any = None, level: Tensor | None = None) -> Tensor:
        """Gradient in x, `(B, *event)`."""
        closed = getattr(self.energy, "gradient", None)
        if closed is None:
            return self.value_and_gradient(x, context, level)[1]
        self._check(x)
        out: Tensor = closed(x, *self._conditions(x, context, level))
        return out

    def join(self, values: Sequence[Tensor]) -> Tensor:
        """Not asked: it has no parts."""
        raise NotImplementedError

    def slopes(self, values: Sequence[Tensor]) -> Sequence[Tensor | float]:
        """Not asked: it has no parts."""
        raise NotImplementedError


class And(Composed):
    """All at once: the product of the densities, each to the power of its weight."""

    needs_values = False

    def __init__(self, parts: Sequence[Any], weights: Sequence[float] | None = None) -> None:
        """Weights are 1 where none are given; a weight below 0 divides, see `a - b`."""
        super().__init__(parts)
        self.weights = [1.0] * len(self.parts) if weights is None else [float(weight) for weight in weights]
        if not self.parts or len(self.weights) != len(self.parts):
            raise EbmtrajError(f"and: {len(self.parts)} energies and {len(self.weights)} weights; give one weight an energy")

    def join(self, values: Sequence[Tensor]) -> Tensor:
        """Their sum."""
        return torch.stack([w * value for w, value in zip(self.weights, values, strict=True)]).sum(0)

    def slopes(self, values: Sequence[Tensor]) -> Sequence[Tensor | float]:
        """The weights."""
        return self.weights


class Or(Composed):
    """At least one: the sum of the densities as they are, so that an energy's constant decides its share (see `Shifted`)."""

    def __init__(self, parts: Sequence[Any]) -> None:
        super().__init__(parts)
        if not self.parts:
            raise EbmtrajError("or: there is no energy; give one at least")

    def join(self, values: Sequence[Tensor]) -> Tensor:
        """Soft minimum."""
        return -torch.logsumexp(-torch.stack(list(values)), dim=0)

    def slopes(self, values: Sequence[Tensor]) -> Sequence[Tensor | float]:
        """Each one's share of the density."""
        return list(torch.softmax(-torch.stack(list(values)), dim=0))


class Not(Composed):
    """Where the density exp(-E) is far above 1 it is divided out, where it is far below 1 nothing changes."""

    def __init__(self, part: Any, threshold: float = 0.0, sharpness: float = 1.0) -> None:
        """E = softplus(k (threshold - E_a)) / k with k the sharpness: 0 where a does not hold, never below."""
        super().__init__([part])
        if not sharpness > 0:
            raise EbmtrajError(f"not: sharpness = {sharpness}; it needs sharpness > 0")
        self.threshold, self.sharpness = threshold, sharpness

    def join(self, values: Sequence[Tensor]) -> Tensor:
        """The bounded energy."""
        return F.softplus(self.sharpness * (self.threshold - values[0])) / self.sharpness

    def slopes(self, values: Sequence[Tensor]) -> Sequence[Tensor | float]:
        """-1 deep inside of a, 0 outside."""
        return [-torch.sigmoid(self.sharpness * (self.threshold - values[0]))]


class Shifted(Composed):
    """An energy and a constant, which may depend on the noise level: what makes densities comparable in | and ~.

    `offset` is a number or, of a level `()` or `(B,)` or None, a number or `(B,)`.
    """

    def __init__(self, part: Any, offset: float | Callable[[Tensor | None], Tensor | float]) -> None:
        super().__init__([part])
        self.offset = offset

    def _constant(self, level: Tensor | None) -> Tensor | float:
        return self.offset(level) if callable(self.offset) else self.offset

    def forward(self, x: Tensor, context: Any = None, level: Tensor | None = None) -> Tensor:
        """Energies `(B,)`."""
        value: Tensor = self.parts[0](x, context, level)
        return value + self._constant(level)

    def value_and_gradient(self, x: Tensor, context: Any = None, level: Tensor | None = None) -> Pair:
        """Energies `(B,)` and gradient `(B, *event)`."""
        value, g = self.each[0].value_and_gradient(x, context, level)
        return value + self._constant(level), g

    def gradient(self, x: Tensor, context: Any = None, level: Tensor | None = None) -> Tensor:
        """The part's own."""
        return self.each[0].gradient(x, context, level)

    def join(self, values: Sequence[Tensor]) -> Tensor:
        """The part's energy, without the constant, which needs a level."""
        return values[0]

    def slopes(self, values: Sequence[Tensor]) -> Sequence[Tensor | float]:
        """1."""
        return [1.0]


def as_term(part: Any) -> Composed:
    """A part of a composition; raises `EbmtrajError` for what is no energy."""
    if isinstance(part, Composed):
        return part
    if not callable(part):
        raise EbmtrajError(f"a {type(part).__name__} is no energy; compose modules or functions (B, *event) -> (B,)")
    return Term(part)


def shared_event(parts: Sequence[Composed]) -> tuple[int, ...] | None:
    """The shape of the events that all parts take; raises `EbmtrajError` where two differ."""
    known = [part.event for part in parts if part.event is not None]
    for event in known[1:]:
        if event != known[0]:
            raise EbmtrajError(
                f"energies over different shapes can't be composed: one takes events {known[0]}, another {event}"
            )
    return known[0] if known else None


def _arguments_of(function: Callable[..., Any]) -> int:
    try:
        kinds = [p.kind for p in inspect.signature(function).parameters.values()]
    except (TypeError, ValueError):
        return 2
    if inspect.Parameter.VAR_POSITIONAL in kinds:
        return 2
    positional = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    return max(0, min(2, sum(kind in positional for kind in kinds) - 1))


def _arguments(energy: Any) -> int:
    """How many of context and level an energy takes after x: a task cost takes neither."""
    return _arguments_of(energy.forward if isinstance(energy, nn.Module) else energy)
