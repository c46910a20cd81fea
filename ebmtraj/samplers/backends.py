"""How the gradient of an energy is computed; whichever way, the chain is the same but for rounding.

autograd: the reference. analytic: the energy's own `gradient`, products of matrices without a graph. compiled: either by
torch.compile, once an energy (noise is drawn outside). bf16: either under autocast to bfloat16, with state and noise in the
state's own precision. auto: analytic where there is one, else autograd; `explain` says so.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from ebmtraj.errors import EbmtrajError
from ebmtraj.samplers.checks import check_energy, check_gradient, name_of

Energy = Callable[..., Tensor]  # (x (B, *event), context[, level]) -> (B,)
Backend = Literal["auto", "autograd", "analytic", "compiled", "bf16"]
BACKENDS: tuple[str, ...] = get_args(Backend)
Both = Callable[..., tuple[Tensor, Tensor]]  # energy (B,) and gradient (B, *event)
_COMPILED: weakref.WeakKeyDictionary[Any, Callable[..., Tensor]] = weakref.WeakKeyDictionary()


def gradient_of(energy: Energy, backend: str = "auto") -> Callable[..., Tensor]:
    """The input gradient of an energy, `(B, *event) -> (B, *event)`, by this backend.

    Raises `EbmtrajError` for an unknown backend, `analytic` on an energy without a `gradient`, or what does not compile.
    """
    check_backend(energy, backend)
    if backend == "compiled":
        return _compiled(energy)
    if backend == "bf16":
        return _autocast(energy)
    if _is_closed(energy, backend):
        return _checked(energy, energy.gradient)  # type: ignore[attr-defined]
    both = _autograd(energy)
    return lambda x, *conditions: both(x, *conditions)[1]


def value_and_gradient_of(energy: Energy, backend: str = "auto") -> Both:
    """Energy `(B,)` and input gradient `(B, *event)` at once, as the samplers that accept or reject need them.

    An energy that shares work between the two may offer `value_and_gradient(x, context)` itself. Energies decide what is
    accepted, so they are never computed in bf16.
    """
    check_backend(energy, backend)
    own = getattr(energy, "value_and_gradient", None)
    shared = own is not None and backend in ("auto", "analytic")
    if backend in ("auto", "autograd") and not shared and not _is_closed(energy, backend):
        return _autograd(energy)
    slope = None if shared else gradient_of(energy, backend)

    def both(x: Tensor, *conditions: Any) -> tuple[Tensor, Tensor]:
        value, g = (energy(x, *conditions), slope(x, *conditions)) if slope is not None else own(x, *conditions)  # type: ignore[misc]
        check_energy(energy, value, x)
        check_gradient(energy, g, x)
        return value, g

    return both


def explain(energy: Energy, backend: str = "auto") -> str:
    """Which way `auto`, or the backend that is asked for, takes with this energy, and why: one line."""
    check_backend(energy, backend)
    name, closed = name_of(energy), getattr(energy, "gradient", None) is not None
    source = "its own closed-form gradient" if closed else "autograd, as it has no closed-form `gradient`"
    if backend == "auto":
        return f"{name}: {'analytic' if closed else 'autograd'}: {source}" + (
            "" if closed else "; write one, or try backend 'compiled' for long chains of one shape"
        )
    return {
        "autograd": f"{name}: autograd: the reference"
        + ("; it has a closed-form gradient, which is faster" if closed else ""),
        "analytic": f"{name}: analytic: {source}",
        "compiled": f"{name}: compiled: {source}, by torch.compile once an energy and shape; worth it for many chains",
        "bf16": f"{name}: bf16: {source}, under autocast to bfloat16; worth it for large batches and convolutions",
    }[backend]


def check_backend(energy: Energy, backend: str) -> None:
    """Raise `EbmtrajError` for a backend that is unknown, or that this energy can't have."""
    if backend not in BACKENDS:
        raise EbmtrajError(f"unknown sampler backend {backend!r}; use one of {', '.join(BACKENDS)}")
    if backend == "analytic" and getattr(energy, "gradient", None) is None:
        raise EbmtrajError(f"backend 'analytic': {type(energy).__name__} has no closed-form gradient; use 'autograd'")


def _is_closed(energy: Energy, backend: str) -> bool:
    return backend != "autograd" and getattr(energy, "gradient", None) is not None


def _checked(energy: Energy, gradient: Callable[..., Tensor]) -> Callable[..., Tensor]:
    def checked(x: Tensor, *conditions: Any) -> Tensor:
        g = gradient(x, *conditions)
        check_gradient(energy, g, x)
        return g

    return checked


def _autograd(energy: Energy) -> Both:
    def both(x: Tensor, *conditions: Any) -> tuple[Tensor, Tensor]:
        with torch.enable_grad():
            x = x.detach().requires_grad_(True)
            value = energy(x, *conditions)
            check_energy(energy, value, x)
            if not value.requires_grad:
                raise EbmtrajError(f"{name_of(energy)} has no gradient in x; compute it from x with torch operations alone")
            return value.detach(), torch.autograd.grad(value.sum(), x)[0]

    return both


def _compiled(energy: Energy) -> Callable[..., Tensor]:
    """Compiled once an energy, and kept as long as it lives."""
    if energy not in _COMPILED:
        alive = weakref.ref(energy)  # what is kept for an energy must not keep it

        def raw(x: Tensor, *conditions: Any) -> Tensor:
            there: Any = alive()
            if getattr(there, "gradient", None) is not None:
                out: Tensor = there.gradient(x, *conditions)
                return out
            return torch.func.grad(lambda y: there(y, *conditions).sum())(x)

        _COMPILED[energy] = torch.compile(raw, dynamic=False)
    compiled = _COMPILED[energy]

    def gradient(x: Tensor, *conditions: Any) -> Tensor:
        try:
            return compiled(x, *conditions)
        except EbmtrajError:
            raise
        except Exception as error:
            first = (str(error).splitlines() or [type(error).__name__])[0]
            raise EbmtrajError(f"{name_of(energy)} does not compile ({first}); use backend 'auto'") from error

    return _checked(energy, gradient)


def _autocast(energy: Energy) -> Callable[..., Tensor]:
    slope = gradient_of(energy, "auto")

    def gradient(x: Tensor, *conditions: Any) -> Tensor:
        with torch.autocast(x.device.type, torch.bfloat16):
            return slope(x, *conditions).to(x.dtype)

    return gradient
