"""Blocks of steps by torch.compile, with all their noise passed in: once an energy and shape, and let go with the energy.

A compiled draw of noise would be another stream, and slower on a CPU, so the noise is drawn as without a compiler.
"""

from __future__ import annotations

import types
import weakref
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from ebmtraj.errors import EbmtrajError
from ebmtraj.samplers.analytic import plain_slope, plain_weights
from ebmtraj.samplers.checks import name_of
from ebmtraj.samplers.recognise import plain_network

STEPS = 10  # in a block: the call then costs little, and to compile it takes seconds
_COMPILED: weakref.WeakKeyDictionary[Any, dict[Any, Callable[..., Any]]] = weakref.WeakKeyDictionary()


def compiled(energy: Any, function: Callable[..., Any], key: Any) -> Callable[..., Any]:
    """`function` compiled, the same one for the same energy and key.

    Raises `EbmtrajError`, when called, for what does not compile.
    """
    kept = _COMPILED.setdefault(energy, {})
    if key not in kept:
        code = function.__code__.replace()  # of its own, as the compiler keeps only so many versions of one code
        own = types.FunctionType(code, function.__globals__, function.__name__, function.__defaults__, function.__closure__)
        own.__kwdefaults__ = function.__kwdefaults__
        kept[key] = torch.compile(own, dynamic=False, fullgraph=True)
    fast, name = kept[key], name_of(energy)

    def call(*arguments: Any) -> Any:
        try:
            return fast(*arguments)
        except EbmtrajError:
            raise
        except Exception as error:
            first = (str(error).splitlines() or [type(error).__name__])[0]
            raise EbmtrajError(f"{name} does not compile ({first}); use backend 'auto'") from error

    return call


def slope(energy: Any, plain: Any, weights: Sequence[Tensor], x: Tensor, conditions: Sequence[Any]) -> Tensor:
    """The gradient at x, `(B, *event)`, as a compiler wants it: the closed form where there is one, else by torch.func.

    `plain` and `weights` are as `parts` gives them.
    """
    if plain is not None:
        return plain_slope(plain, weights, x)
    if getattr(energy, "gradient", None) is not None:
        out: Tensor = energy.gradient(x, *conditions)
        return out
    return torch.func.grad(lambda y: energy(y, *conditions).sum())(x)


def value_and_slope(
    energy: Any, plain: Any, weights: Sequence[Tensor], x: Tensor, conditions: Sequence[Any]
) -> tuple[Tensor, Tensor]:
    """Energies `(B,)` and the gradient at x, `(B, *event)`, as a compiler wants them.

    `plain` and `weights` are as `parts` gives them.
    """
    own = getattr(energy, "value_and_gradient", None)
    if own is not None:
        value, g = own(x, *conditions)
        return value, g
    if plain is not None or getattr(energy, "gradient", None) is not None:
        return energy(x, *conditions), slope(energy, plain, weights, x, conditions)
    g, value = torch.func.grad(lambda y: (lambda e: (e.sum(), e))(energy(y, *conditions)), has_aux=True)(x)
    return value, g


def parts(energy: Any, x: Tensor, *conditions: Any) -> tuple[Any, list[Tensor]]:
    """The plain network that an energy is in x `(B, *event)`, and its weights now.

    None and no weights where it has a form of its own.
    """
    own = getattr(energy, "gradient", None) is not None or any(c is not None for c in conditions)
    plain = None if own else plain_network(energy, x)
    return plain, [] if plain is None else plain_weights(plain)


def compiled_slope(energy: Any) -> Callable[..., Tensor]:
    """The gradient alone, `(B, *event) -> (B, *event)`, compiled, for chains whose steps are not all alike."""
    made: dict[Any, Any] = {}

    def gradient(x: Tensor, *conditions: Any) -> Tensor:
        if "parts" not in made:
            made["parts"] = parts(energy, x, *conditions)
        plain, weights = made["parts"]
        out: Tensor = compiled(energy, slope, ("slope", x.shape, plain is not None))(energy, plain, weights, x, conditions)
        return out

    return gradient


def langevin_block(
    energy: Any,
    plain: Any,
    weights: Sequence[Tensor],
    context: Any,
    x: Tensor,
    noise: Tensor,
    drift: Tensor,
    spread: Tensor,
    start: Tensor,
    seen: Tensor,
    mask: Tensor | None,
    project: Callable[[Tensor], Tensor] | None,
    clip: float | None,
) -> tuple[Tensor, Tensor]:
    """K Langevin steps by noise `(K, B, *event)`: x and the sum of all gradients before they are clipped, `(B, *event)`.

    `weights` are as `parts` gives them, `drift` and `spread` as `sizes` of `langevin` does; `seen` is the sum so far and
    `start` what x keeps where the mask is 0, both `(B, *event)`.
    """
    for epsilon in noise.unbind(0):
        g = slope(energy, plain, weights, x, (context,))
        if mask is not None:
            g = torch.where(mask, g, 0.0)
        seen = seen + g
        if clip is not None:
            g = g.clamp(-clip, clip)
        x = x - drift * g + spread * epsilon
        if project is not None:
            x = project(x)
        if mask is not None:
            x = torch.where(mask, x, start)
    return x, seen
