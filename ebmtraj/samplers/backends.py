"""How the gradient of an energy is computed; whichever way, the chain is the same but for rounding.

autograd: the reference. analytic: a closed form in buffers made once a chain: the energy's own, or that of a plain network,
which is recognised from its code. channels_last: autograd with images and convolutions laid out channel by channel.
bf16: any of these in bfloat16, with state and noise in the state's own precision. compiled: blocks of steps by
torch.compile, noise drawn outside. cuda_graph: blocks of steps captured once and replayed. auto: the fastest of those that
neither round nor compile, as far as measured; `explain` says which, and why.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any, Literal, NamedTuple, get_args

import torch
from torch import Tensor, nn

from ebmtraj.errors import EbmtrajError
from ebmtraj.samplers.analytic import PlainGradient
from ebmtraj.samplers.checks import check_energy, check_gradient, name_of
from ebmtraj.samplers.compiled import compiled_slope
from ebmtraj.samplers.recognise import looks_plain, plain_network

Energy = Callable[..., Tensor]  # (x (B, *event), context[, level]) -> (B,)
Gradient = Callable[..., Tensor]  # (x (B, *event), context[, level]) -> (B, *event)
Backend = Literal["auto", "autograd", "analytic", "channels_last", "bf16", "compiled", "cuda_graph"]
BACKENDS: tuple[str, ...] = get_args(Backend)
Both = Callable[..., tuple[Tensor, Tensor]]  # energy (B,) and gradient (B, *event)
_CONVOLUTIONS = (nn.Conv2d, nn.ConvTranspose2d)


class Choice(NamedTuple):
    """How a gradient is computed, and why so."""

    way: str  # buffers, plain, closed, channels_last or autograd
    why: str


def choose(energy: Energy, backend: str, x: Tensor | None = None, *conditions: Any) -> Choice:
    """Which way a backend takes with this energy, and at x `(B, *event)` where one is given.

    The steps of `compiled` and `cuda_graph` and the rounded ones of `bf16` are of the way that `auto` takes.
    """
    if backend == "autograd":
        return Choice("autograd", "the reference")
    if backend == "channels_last":
        return Choice("channels_last", "autograd with convolutions laid out channel by channel")
    if getattr(energy, "chain_gradient", None) is not None:
        return Choice("buffers", "its own closed-form gradient, in buffers made once a chain")
    if getattr(energy, "gradient", None) is not None:
        return Choice("closed", "its own closed-form gradient")
    bare = not conditions or (conditions[0] is None and len(conditions) == 1)
    if bare and (looks_plain(energy) if x is None else plain_network(energy, x) is not None):
        return Choice("plain", "a plain network, whose gradient is written out, in buffers made once a chain")
    laid_out = isinstance(energy, nn.Module) and any(isinstance(m, _CONVOLUTIONS) for m in energy.modules())
    if laid_out and (x is None or (x.dim() == 4 and x.device.type == "cpu")):
        return Choice("channels_last", "autograd with convolutions laid out channel by channel, which is faster on a CPU")
    return Choice("autograd", "autograd, as it has no closed-form `gradient` and is no plain network")


def chain_gradient(energy: Energy, backend: str, x: Tensor, *conditions: Any) -> Gradient:
    """The input gradient of an energy as one chain needs it, by this backend; its parameters must be frozen.

    `x` `(B, *event)` and the `conditions` (context, and a level if there are any) are what it will be called with, but for
    their values. Buffers are made here, from the weights as they are, and a call may overwrite what the last one gave.
    Raises `EbmtrajError` for an unknown backend, or `analytic` on an energy that has no closed form.
    """
    check_backend(energy, backend)
    dtype = torch.bfloat16 if backend == "bf16" else None
    if backend == "compiled":
        return _checked(energy, compiled_slope(energy))
    way = choose(energy, backend, x, *conditions).way
    if backend == "analytic" and way not in ("buffers", "closed", "plain"):
        raise EbmtrajError(_no_closed_form(energy))
    if way == "plain" and (plain := plain_network(energy, x)) is not None:
        return PlainGradient(plain, x, dtype)
    own: Any = energy
    if way == "buffers":
        buffered: Gradient = own.chain_gradient(x, *conditions[:1], dtype)
        return lambda x, context, *level: buffered(x, *level)
    slope = _checked(energy, own.gradient) if way == "closed" else _autograd_slope(energy, way == "channels_last")
    if dtype is None:
        return slope

    def rounded(x: Tensor, *conditions: Any) -> Tensor:
        with torch.autocast(x.device.type, dtype):
            return slope(x, *conditions).to(x.dtype)

    return rounded


def gradient_of(energy: Energy, backend: str = "auto") -> Gradient:
    """The input gradient of an energy, `(B, *event) -> (B, *event)`, by this backend, made anew at every call.

    Raises `EbmtrajError` for an unknown backend, or `analytic` on an energy that has no closed form.
    """
    check_backend(energy, backend)

    def gradient(x: Tensor, *conditions: Any) -> Tensor:
        with torch.no_grad():
            return chain_gradient(energy, backend, x, *conditions)(x, *conditions)

    return gradient


def value_and_gradient_of(energy: Energy, backend: str = "auto") -> Both:
    """Energy `(B,)` and input gradient `(B, *event)` at once, as the samplers that accept or reject need them.

    An energy that shares work between the two may offer `value_and_gradient(x, context)` itself. Energies decide what is
    accepted, so they are never computed in bf16. What is given is the caller's own. Raises `EbmtrajError` for an unknown
    backend and, when called, where "analytic" is asked of an energy without a closed form.
    """
    check_backend(energy, backend)
    own = getattr(energy, "value_and_gradient", None)
    if own is not None and backend not in ("autograd", "bf16"):
        return _both_checked(energy, own)
    if backend != "bf16":
        made: dict[str, Any] = {}

        def both(x: Tensor, *conditions: Any) -> tuple[Tensor, Tensor]:
            if made.get("shape") != x.shape:
                made["shape"], made["of"] = x.shape, None
                way = choose(energy, backend, x, *conditions).way
                if backend == "analytic" and way in ("autograd", "channels_last"):
                    raise EbmtrajError(_no_closed_form(energy))
                if way == "plain" and (plain := plain_network(energy, x)) is not None:
                    with torch.no_grad():
                        made["of"] = PlainGradient(plain, x, whole=True)
                made["by_autograd"] = way in ("autograd", "channels_last")
            if made["of"] is not None:
                with torch.no_grad():
                    pair: tuple[Tensor, Tensor] = made["of"].value_and_gradient(x)
                return pair
            if made["by_autograd"]:
                return _autograd(energy)(x, *conditions)
            return energy(x, *conditions), energy.gradient(x, *conditions)  # type: ignore[attr-defined]

        return _both_checked(energy, both)
    slope = gradient_of(energy, "bf16")
    return _both_checked(energy, lambda x, *conditions: (energy(x, *conditions), slope(x, *conditions)))


def explain(energy: Energy, backend: str = "auto", x: Tensor | None = None, context: Any = None) -> str:
    """Which way `auto`, or the backend that is asked for, takes with this energy, and why: one line.

    With an `x` `(B, *event)` the answer is for chains of that shape, on that device.
    """
    check_backend(energy, backend)
    way, why = choose(energy, backend, x, context)
    names = {"buffers": "analytic", "closed": "analytic", "plain": "analytic"}
    if backend == "auto":
        way = names.get(way, way)
        return f"{name_of(energy)}: {way}: {why}" + (
            "; write one, or try backend 'compiled' for long chains of one shape" if way == "autograd" else ""
        )
    faster = choose(energy, "auto", x, context).way != "autograd" and backend == "autograd"
    return (
        f"{name_of(energy)}: {backend}: "
        + {
            "autograd": why + ("; backend 'auto' knows a faster way" if faster else ""),
            "analytic": why,
            "channels_last": why,
            "compiled": f"{why}, in blocks of steps by torch.compile, once an energy and shape; worth it for long chains",
            "cuda_graph": f"{why}, in blocks of steps captured as a CUDA graph, once a chain; for small batches on a GPU",
            "bf16": f"{why}, rounded to bfloat16; worth it for large batches and convolutions",
        }[backend]
    )


def check_backend(energy: Energy, backend: str) -> None:
    """Raise `EbmtrajError` for a backend that is unknown, or that this energy can't have."""
    if backend not in BACKENDS:
        raise EbmtrajError(f"unknown sampler backend {backend!r}; use one of {', '.join(BACKENDS)}")
    if backend == "analytic" and getattr(energy, "gradient", None) is None and not looks_plain(energy):
        raise EbmtrajError(_no_closed_form(energy))


def _no_closed_form(energy: Energy) -> str:
    return (
        f"backend 'analytic': {type(energy).__name__} has no closed-form gradient: no method `gradient`, and it is no plain "
        "network of x alone; use 'autograd'"
    )


def _checked(energy: Energy, gradient: Gradient) -> Gradient:
    def checked(x: Tensor, *conditions: Any) -> Tensor:
        g = gradient(x, *conditions)
        check_gradient(energy, g, x)
        return g

    return checked


def _both_checked(energy: Energy, both: Both) -> Both:
    def checked(x: Tensor, *conditions: Any) -> tuple[Tensor, Tensor]:
        value, g = both(x, *conditions)
        check_energy(energy, value, x)
        check_gradient(energy, g, x)
        return value, g

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


def _autograd_slope(energy: Energy, laid_out: bool) -> Gradient:
    both = _autograd(energy)
    if not laid_out:
        return lambda x, *conditions: both(x, *conditions)[1]

    def slope(x: Tensor, *conditions: Any) -> Tensor:
        if x.dim() == 4:
            x = x.to(memory_format=torch.channels_last)
        with channels_last(energy):
            return both(x, *conditions)[1]

    return slope


def laid_out(energy: Energy, backend: str, x: Tensor, context: Any) -> contextlib.AbstractContextManager[None]:
    """For a whole chain of x `(B, *event)`, what `channels_last` does, where that is the way."""
    images = x.dim() == 4 and backend != "autograd"
    return channels_last(energy) if images and choose(energy, backend, x, context).way == "channels_last" else _NOTHING


_NOTHING: contextlib.AbstractContextManager[None] = contextlib.nullcontext()


@contextlib.contextmanager
def channels_last(energy: Any) -> Iterator[None]:
    """Lay out the weights of a module's convolutions channel by channel, and as they were when it is over."""
    moved: list[tuple[nn.Parameter, Tensor]] = []
    for module in energy.modules() if isinstance(energy, nn.Module) else ():
        if isinstance(module, _CONVOLUTIONS):
            for parameter in module.parameters():
                if parameter.dim() == 4:
                    # `to`, as `contiguous` leaves the strides of a single channel, by which the whole network then goes
                    laid_out = parameter.data.to(memory_format=torch.channels_last)
                    if laid_out.stride() != parameter.stride():
                        moved.append((parameter, parameter.data))
                        parameter.data = laid_out
    try:
        yield
    finally:
        for parameter, data in moved:
            parameter.data = data
