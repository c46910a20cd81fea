"""Gradients of plain networks in closed form: products of matrices into buffers that are made once a chain.

A plain network is Linear layers with elementwise activations between them. Forward and back it takes two products a layer
and two passes over each layer's units, whatever its size; large batches go through in blocks that stay in the cache.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

BLOCK = 1 << 18  # bytes of a layer's units and their gradient in a block of rows: all layers' then stay in the cache
aten = torch.ops.aten


@dataclass(frozen=True)
class Activation:
    """An elementwise function, and how a gradient goes back through it, by the functions behind torch's own."""

    forward: Any
    backward: Any
    settings: tuple[Any, ...] = ()  # of `forward`, after its tensor
    behind: tuple[Any, ...] = ()  # of `backward`
    named: tuple[tuple[str, Any], ...] = ()  # of both
    by_value: bool = False  # its slope is known from its value, not from what it was given

    def value(self, h: Tensor) -> Tensor:
        """Of units before their activation, of any shape."""
        out: Tensor = self.forward(h, *self.settings, **dict(self.named))
        return out

    def pull(self, g: Tensor, h: Tensor, value: Tensor) -> Tensor:
        """The gradient before the activation, given that behind it, of the same shape."""
        out: Tensor = self.backward(g, value if self.by_value else h, *self.behind, **dict(self.named))
        return out

    def value_into(self, h: Tensor, out: Tensor) -> Callable[[], Any]:
        """`value` of what is in one buffer then, into another of the same shape."""
        return partial(getattr(self.forward, "out", self.forward), h, *self.settings, out=out, **dict(self.named))

    def pull_into(self, g: Tensor, h: Tensor, value: Tensor, out: Tensor) -> Callable[[], Any]:
        """`pull` of what is in these buffers then, all of the same shape, into another or the gradient's own."""
        given = (g, value if self.by_value else h, *self.behind)
        return partial(self.backward.grad_input, *given, grad_input=out, **dict(self.named))


SILU = Activation(aten.silu, aten.silu_backward)


def activation_of(module: nn.Module) -> Activation | None:
    """The rules of an activation module; None where they are not known."""
    m: Any = module
    known: dict[type, Callable[[], Activation]] = {
        nn.SiLU: lambda: SILU,
        nn.ReLU: lambda: Activation(aten.relu, aten.threshold_backward, (), (0,)),
        nn.LeakyReLU: lambda: Activation(
            aten.leaky_relu, aten.leaky_relu_backward, (m.negative_slope,), (m.negative_slope, False)
        ),
        nn.GELU: lambda: Activation(aten.gelu, aten.gelu_backward, named=(("approximate", m.approximate),)),
        nn.Softplus: lambda: Activation(aten.softplus, aten.softplus_backward, (m.beta, m.threshold), (m.beta, m.threshold)),
        nn.Tanh: lambda: Activation(aten.tanh, aten.tanh_backward, by_value=True),
        nn.Sigmoid: lambda: Activation(aten.sigmoid, aten.sigmoid_backward, by_value=True),
    }
    return known[type(module)]() if type(module) in known else None


class Layers:
    """The weights of hidden layers as a chain needs them: in its precision, and transposed once."""

    def __init__(
        self,
        hidden: Sequence[tuple[Tensor, Tensor | None]],
        activations: Sequence[Activation],
        dtype: torch.dtype,
        *,
        brief: bool = False,
    ) -> None:
        """`hidden`: weight `(out, in)` and bias `(out,)` of all layers but the first and last; `activations` is one longer.

        A `brief` chain does not pay back what it costs to lay out the transposed weights.
        """
        self.weights = [weight.detach().to(dtype) for weight, _ in hidden]
        self.turned = [weight.t() if brief else weight.t().contiguous() for weight in self.weights]
        self.biases = [None if bias is None else bias.detach().to(dtype) for _, bias in hidden]
        self.activations = tuple(activations)


class Pass:
    """Forward and back through hidden layers for one number of rows, without a new tensor.

    The caller fills `entry`, the first layer's units before their activation, and `seed`, the gradient at the last layer's
    units; `run` brings it back to `entry`, see `slope`. With `whole`, `top` then holds the last layer's units.
    """

    def __init__(self, layers: Layers, seed: Tensor, width: int, *, whole: bool, constant: bool) -> None:
        """`seed` `(rows, width)` is what all buffers are like; a run overwrites it unless it is `constant`.

        `width` is the first layer's. The way back takes the buffers of the way forward where nobody looks at them again.
        """
        widths = [width, *(len(weight) for weight in layers.weights)]
        before, after = ([seed.new_empty(len(seed), w) for w in widths] for _ in range(2))
        last = len(widths) - 1
        down = [seed.new_empty(a.shape) if layers.activations[i].by_value else a for i, a in enumerate(after)]
        if not constant:
            down[last] = seed
        elif whole:
            down[last] = seed.new_empty(seed.shape)
        self.entry, self.top, self.slope, self.seed = before[0], after[-1], down[0], seed
        self.steps: list[Callable[[], Any]] = []
        for i, activation in enumerate(layers.activations):
            if i < last or whole or activation.by_value:
                self.steps.append(activation.value_into(before[i], after[i]))
            if i < last:
                bias, given = layers.biases[i], (after[i], layers.turned[i])
                product = partial(torch.mm, *given) if bias is None else partial(torch.addmm, bias, *given)
                self.steps.append(partial(product, out=before[i + 1]))
        for i in range(last, -1, -1):
            g = seed if i == last else down[i]
            self.steps.append(layers.activations[i].pull_into(g, before[i], after[i], down[i]))
            if i > 0:
                self.steps.append(partial(torch.mm, down[i], layers.weights[i - 1], out=down[i - 1]))

    def run(self) -> Tensor:
        """The gradient at `entry`, `(rows, width)`; the next run overwrites it."""
        for step in self.steps:
            step()
        return self.slope


def blocks(rows: int, widest: int, like: Tensor) -> list[slice]:
    """Rows that go through together, where the widest layer has so many units; `like`, of any shape, gives the device."""
    size = max(64, BLOCK // (widest * 8)) if like.device.type == "cpu" and like.dtype == torch.float32 else max(rows, 1)
    return [slice(first, min(first + size, rows)) for first in range(0, rows, size)]


class PlainNetwork(NamedTuple):
    """E(x) = scale f(x) + curvature |x|^2 / 2 + shift, where f is a plain network, `(B, D) -> (B, 1)`."""

    linears: tuple[nn.Linear, ...]
    activations: tuple[Activation, ...]
    scale: float = 1.0
    curvature: float = 0.0
    shift: float = 0.0


class PlainGradient:
    """Gradient of a `PlainNetwork` for one chain; the weights are those at its making."""

    def __init__(self, plain: PlainNetwork, x: Tensor, dtype: torch.dtype | None = None, whole: bool = False) -> None:
        """For chains like x `(B, D)`, in another precision where `dtype` is given; `whole` if energies are wanted, too."""
        self.plain, self.dtype, self.whole = plain, dtype or x.dtype, whole
        first, *hidden, self.last = plain.linears
        self.weight = first.weight.detach().to(self.dtype).contiguous()
        self.turned = self.weight.t().contiguous()
        self.bias = None if first.bias is None else first.bias.detach().to(self.dtype)
        layers = Layers([(linear.weight, linear.bias) for linear in hidden], plain.activations, self.dtype)
        out = (plain.scale * self.last.weight.detach()).to(self.dtype)
        passes: dict[int, Pass] = {}
        self.out = torch.empty_like(x)
        self.parts: list[tuple[Pass, slice, Tensor]] = []
        for rows in blocks(len(x), max(linear.in_features for linear in plain.linears), out):
            size = rows.stop - rows.start
            if size not in passes:
                seed = out.expand(size, -1).contiguous()
                passes[size] = Pass(layers, seed, len(self.weight), whole=whole, constant=True)
            self.parts.append((passes[size], rows, self.out[rows]))
        rounds = self.dtype != x.dtype
        self.rounded = (x.new_empty(x.shape, dtype=self.dtype), x.new_empty(x.shape, dtype=self.dtype)) if rounds else None

    def __call__(self, x: Tensor, context: None = None) -> Tensor:
        """Gradient `(B, D)`; the next call overwrites it."""
        curvature = self.plain.curvature
        if self.rounded is not None:
            given, g = self.rounded
            given.copy_(x)
            for work, rows, _ in self.parts:
                torch.mm(self._run(given[rows], work), self.weight, out=g[rows])
            self.out.copy_(g)
            return self.out.add_(x, alpha=curvature) if curvature else self.out
        for work, rows, out in self.parts:
            given = x if len(self.parts) == 1 else x[rows]
            if curvature:
                torch.addmm(given, self._run(given, work), self.weight, beta=curvature, out=out)
            else:
                torch.mm(self._run(given, work), self.weight, out=out)
        return self.out

    def descend(self, x: Tensor, drift: float) -> None:
        """Move x `(B, D)` against its gradient, where it lies: the last product adds to it."""
        if self.rounded is not None:
            x.sub_(self(x), alpha=drift)
            return
        for work, rows, _ in self.parts:
            given = x if len(self.parts) == 1 else x[rows]
            given.addmm_(self._run(given, work), self.weight, beta=1 - drift * self.plain.curvature, alpha=-drift)

    def _run(self, x: Tensor, work: Pass) -> Tensor:
        if self.bias is None:
            torch.mm(x, self.turned, out=work.entry)
        else:
            torch.addmm(self.bias, x, self.turned, out=work.entry)
        return work.run()

    def value_and_gradient(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Energies `(B,)` and gradients `(B, D)`, which are the caller's own."""
        plain, values = self.plain, x.new_empty(len(x))
        for work, rows, _ in self.parts:
            g = self._run(x[rows], work)
            torch.mv(work.top, self.last.weight[0], out=values[rows])
            torch.addmm(x[rows], g, self.weight, beta=plain.curvature, out=self.out[rows])
        energy = plain.scale * (values if self.last.bias is None else values + self.last.bias) + plain.shift
        if plain.curvature:
            energy = energy + 0.5 * plain.curvature * x.square().sum(-1)
        return energy, self.out.clone()


def plain_weights(plain: PlainNetwork) -> list[Tensor]:
    """Each layer's weight `(out, in)` and bias `(out,)` that `plain_slope` wants, as they are now; a missing bias is 0."""
    pairs = [
        (m.weight.detach(), m.weight.new_zeros(m.out_features) if m.bias is None else m.bias.detach()) for m in plain.linears
    ]
    return [tensor for pair in pairs for tensor in pair]


def plain_slope(plain: PlainNetwork, weights: Sequence[Tensor], x: Tensor) -> Tensor:
    """The gradient of `PlainGradient` without buffers, `(B, D) -> (B, D)`, as a compiler wants it."""
    before, after = [], [x]
    for k, activation in enumerate(plain.activations):
        before.append(torch.addmm(weights[2 * k + 1], after[-1], weights[2 * k].t()))
        after.append(activation.value(before[-1]))
    g = (plain.scale * weights[-2]).expand(len(x), -1)
    for k in range(len(before) - 1, -1, -1):
        g = plain.activations[k].pull(g, before[k], after[k + 1]) @ weights[2 * k]
    return g + plain.curvature * x if plain.curvature else g
