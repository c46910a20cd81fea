"""Which energies are plain networks: their code is traced once, and what is found is held to what they compute."""

from __future__ import annotations

import operator
import weakref
from typing import Any, NamedTuple

import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F

from ebmtraj.samplers.analytic import Activation, PlainGradient, PlainNetwork, activation_of

_FUNCTIONS: dict[Any, nn.Module] = {
    F.silu: nn.SiLU(),
    F.relu: nn.ReLU(),
    torch.relu: nn.ReLU(),
    torch.tanh: nn.Tanh(),
    F.tanh: nn.Tanh(),
    torch.sigmoid: nn.Sigmoid(),
    F.sigmoid: nn.Sigmoid(),
    F.softplus: nn.Softplus(),
    F.gelu: nn.GELU(),
}
_METHODS = {"relu": nn.ReLU(), "tanh": nn.Tanh(), "sigmoid": nn.Sigmoid()}
_DROPS = [  # what brings (B, 1) to (B,)
    *(("squeeze", [dim]) for dim in (-1, 1)),
    *((name, [-1]) for name in ("view", "reshape")),
    *(("flatten", rest) for rest in ([], [0])),
]
_CLOSE = 1e-3  # relative; another formula is off by far more
_KNOWN: weakref.WeakKeyDictionary[nn.Module, PlainNetwork | None] = weakref.WeakKeyDictionary()


class _Other(Exception):
    """What is traced is not a plain network."""


class _Units(NamedTuple):
    linears: tuple[nn.Linear, ...] = ()
    activations: tuple[Activation, ...] = ()


class _Squares(NamedTuple):
    factor: float = 1.0  # of x squared, entry by entry


class _Rows(NamedTuple):
    """One number an element of the batch."""

    units: _Units | None = None
    scale: float = 0.0
    curvature: float = 0.0
    shift: float = 0.0


def plain_network(energy: Any, x: Tensor) -> PlainNetwork | None:
    """The plain network that this energy is in x `(B, D)`, without context or level; None where it is none.

    An energy's code is traced once. Whether what was found still holds (a factor may have been changed) is seen from one
    energy at every call; the gradient is compared with autograd's when it is found.
    """
    if not isinstance(energy, nn.Module) or x.dim() != 2 or len(x) == 0:
        return None
    with torch.no_grad():
        if energy in _KNOWN and (_KNOWN[energy] is None or _still(energy, _KNOWN[energy], x)):
            return _KNOWN[energy]
        found = traced(energy)
        if found is not None and (found.linears[0].in_features != x.shape[1] or not _holds(energy, found, x[:2])):
            found = None
        _KNOWN[energy] = found
        return found


def looks_plain(energy: Any) -> bool:
    """Whether an energy's code is that of a plain network, as far as can be said without an x."""
    if not isinstance(energy, nn.Module):
        return False
    return (_KNOWN[energy] if energy in _KNOWN else traced(energy)) is not None


def _still(energy: nn.Module, found: PlainNetwork | None, x: Tensor) -> bool:
    assert found is not None
    if found.linears[0].in_features != x.shape[1]:
        return False
    row = x[:1]
    units = row
    for linear, activation in zip(found.linears, (*found.activations, None), strict=True):
        units = linear(units)
        if activation is not None:
            units = activation.value(units)
    value = found.scale * units[:, 0] + 0.5 * found.curvature * row.square().sum(-1) + found.shift
    return bool(((energy(row, None) - value).abs() <= _CLOSE * (1 + value.abs())).all())


def _holds(energy: nn.Module, found: PlainNetwork, x: Tensor) -> bool:
    try:
        value, slope = PlainGradient(found, x, whole=True).value_and_gradient(x)
        with torch.enable_grad():
            y = x.detach().requires_grad_(True)
            energies = energy(y, None)
            expected = torch.autograd.grad(energies.sum(), y)[0]
    except Exception:  # whatever is wrong with it is said where it is called as it is
        return False
    return energies.shape == value.shape and all(
        bool(((a - b).abs() <= _CLOSE * (1e-6 + b.abs().max())).all()) for a, b in ((value, energies), (slope, expected))
    )


class _Tracer(fx.Tracer):
    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return isinstance(m, nn.Linear | nn.Dropout | nn.Identity) or activation_of(m) is not None


def traced(energy: nn.Module) -> PlainNetwork | None:
    """What an energy's code says it is."""
    try:
        graph = _Tracer().trace(energy, {"context": None})
        return _read(energy, graph)
    except Exception:  # code that can't be traced is not plain
        return None


def _read(energy: nn.Module, graph: fx.Graph) -> PlainNetwork | None:
    modules = dict(energy.named_modules())
    values: dict[fx.Node, Any] = {}

    def known(argument: Any) -> Any:
        return values[argument] if isinstance(argument, fx.Node) else argument

    inputs = 0
    for node in graph.nodes:
        given = [known(argument) for argument in node.args]
        named = {name: known(argument) for name, argument in node.kwargs.items()}
        if node.op == "placeholder":
            inputs += 1
            values[node] = "x" if inputs == 1 else None
        elif not node.users and node.op != "output":  # what nobody looks at, such as that the context is None
            continue
        elif node.op == "call_module":
            values[node] = _through(modules[node.target], given[0])
        elif node.op == "call_function":
            values[node] = _function(node.target, given, named)
        elif node.op == "call_method":
            values[node] = _method(node.target, given, named)
        elif node.op == "output":
            out = given[0]
            if not isinstance(out, _Rows) or out.units is None:
                return None
            return PlainNetwork(*out.units, scale=out.scale, curvature=out.curvature, shift=out.shift)
        else:
            raise _Other(node.op)
    return None


def _through(module: nn.Module, value: Any) -> Any:
    if isinstance(module, nn.Dropout | nn.Identity):  # a chain runs in evaluation mode
        return value
    units = _Units() if value == "x" else value
    if not isinstance(units, _Units):
        raise _Other(module)
    if isinstance(module, nn.Linear):
        if len(units.linears) != len(units.activations):
            raise _Other("two layers with nothing between them")
        return _Units((*units.linears, module), units.activations)
    activation = activation_of(module)
    if activation is None or len(units.linears) != len(units.activations) + 1:
        raise _Other(module)
    return _Units(units.linears, (*units.activations, activation))


def _column(value: Any) -> _Rows:
    """A network's one output as one number an element."""
    if not isinstance(value, _Units) or len(value.linears) < 2 or len(value.linears) != len(value.activations) + 1:
        raise _Other(value)
    if value.linears[-1].out_features != 1:
        raise _Other("several outputs")
    return _Rows(value, 1.0)


def _function(function: Any, given: list[Any], named: dict[str, Any]) -> Any:
    if function in _FUNCTIONS and len(given) == 1 and not set(named) - {"inplace"}:
        return _through(_FUNCTIONS[function], given[0])
    if function is operator.getitem and given[1] in ((slice(None), 0), (..., 0), (slice(None), -1), (..., -1)):
        return _column(given[0])
    if function in (operator.neg, torch.neg):
        return _times(given[0], -1.0)
    if function in (operator.mul, torch.mul):
        if given == ["x", "x"]:
            return _Squares()
        return _times(given[1], given[0]) if isinstance(given[0], int | float) else _times(given[0], given[1])
    if function in (operator.truediv, torch.div):
        return _times(given[0], 1 / given[1])
    if function in (operator.add, torch.add) and not named:
        return _plus(*given)
    if function in (operator.sub, torch.sub) and not named:
        return _plus(given[0], _times(given[1], -1.0))
    if function in (operator.pow, torch.pow) and given == ["x", 2]:
        return _Squares()
    name = getattr(function, "__name__", "")
    return _method(name, given, named)


def _method(name: str, given: list[Any], named: dict[str, Any]) -> Any:
    value, rest = given[0], [*given[1:], *named.values()]
    if name in _METHODS and not rest:
        return _through(_METHODS[name], value)
    if (name == "square" and not rest) or (name == "pow" and rest == [2]):
        if value == "x":
            return _Squares()
    elif name == "sum" and rest in ([-1], [1], [(-1,)], [(1,)]):
        if isinstance(value, _Squares):
            return _Rows(curvature=2 * value.factor)
        return _column(value)
    elif (name, rest) in _DROPS:
        return _column(value)
    elif name == "neg":
        return _times(value, -1.0)
    elif name in ("mul", "add", "sub", "div"):
        return _function(getattr(torch, name), given, named)
    raise _Other(name)


def _times(value: Any, factor: Any) -> Any:
    if not isinstance(factor, int | float):
        raise _Other("a factor that is not a number")
    if isinstance(value, int | float):
        return value * factor
    if isinstance(value, _Squares):
        return _Squares(value.factor * factor)
    if isinstance(value, _Units):  # (B, 1), before it is squeezed
        raise _Other("a factor before the last dimension is dropped")
    if not isinstance(value, _Rows):
        raise _Other(value)
    return _Rows(value.units, value.scale * factor, value.curvature * factor, value.shift * factor)


def _plus(a: Any, b: Any) -> _Rows:
    parts = [_Rows(shift=float(v)) if isinstance(v, int | float) else v for v in (a, b)]
    if not all(isinstance(part, _Rows) for part in parts) or all(part.units is not None for part in parts):
        raise _Other("a sum of other things")
    first, second = parts
    network = first if first.units is not None else second
    return _Rows(network.units, network.scale, first.curvature + second.curvature, first.shift + second.shift)
