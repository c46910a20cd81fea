"""Gradients of plain networks in closed form: products of matrices into buffers that are made once a chain.

A plain network is Linear layers with elementwise activations between them. Forward and back it takes two products a layer
and two passes over each layer's units, whatever its size; large batches go through in blocks that stay in the cache.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

BLOCK = 512  # rows at a time on a CPU: the buffers of a layer of 128 units then stay in its second-level cache
aten = torch.ops.aten


class Activation(NamedTuple):
    """An elementwise function, and how a gradient goes back through it; both write into `out` where one is given."""

    value: Callable[..., Tensor]  # (before, out=None)
    pull: Callable[..., Tensor]  # (gradient, before, after, out=None); out may be the gradient itself
    needs_after: bool = False  # whether `pull` looks at what `value` gave


def _activation(
    forward: Any, backward: Any, *settings: Any, back: tuple[Any, ...] | None = None, **named: Any
) -> Activation:
    """By the functions behind torch's own; `settings` follow their tensors."""
    behind = settings if back is None else back

    def value(h: Tensor, out: Tensor | None = None) -> Tensor:
        result: Tensor = forward(h, *settings, **named) if out is None else forward.out(h, *settings, out=out, **named)
        return result

    def pull(g: Tensor, h: Tensor, a: Tensor, out: Tensor | None = None) -> Tensor:
        given = (g, h, *behind)
        result: Tensor = backward(*given, **named) if out is None else backward.grad_input(*given, grad_input=out, **named)
        return result

    return Activation(value, pull)


def _by_value(forward: Any, backward: Any) -> Activation:
    """An activation whose slope is known from its value."""

    def value(h: Tensor, out: Tensor | None = None) -> Tensor:
        result: Tensor = forward(h, out=out)
        return result

    def pull(g: Tensor, h: Tensor, a: Tensor, out: Tensor | None = None) -> Tensor:
        result: Tensor = backward(g, a) if out is None else backward.grad_input(g, a, grad_input=out)
        return result

    return Activation(value, pull, needs_after=True)


SILU = _activation(aten.silu, aten.silu_backward)


def activation_of(module: nn.Module) -> Activation | None:
    """The rules of an activation module; None where they are not known."""
    m: Any = module
    known: dict[type, Callable[[], Activation]] = {
        nn.SiLU: lambda: SILU,
        nn.ReLU: lambda: _activation(aten.relu, aten.threshold_backward, back=(0,)),
        nn.LeakyReLU: lambda: _activation(
            aten.leaky_relu, aten.leaky_relu_backward, m.negative_slope, back=(m.negative_slope, False)
        ),
        nn.GELU: lambda: _activation(aten.gelu, aten.gelu_backward, approximate=m.approximate),
        nn.Softplus: lambda: _activation(aten.softplus, aten.softplus_backward, m.beta, m.threshold),
        nn.Tanh: lambda: _by_value(torch.tanh, aten.tanh_backward),
        nn.Sigmoid: lambda: _by_value(torch.sigmoid, aten.sigmoid_backward),
    }
    return known[type(module)]() if type(module) in known else None


class Layers:
    """The weights of hidden layers as a chain needs them: in its precision, and transposed once."""

    def __init__(
        self, hidden: Sequence[tuple[Tensor, Tensor | None]], activations: Sequence[Activation], dtype: torch.dtype
    ) -> None:
        """`hidden` are weight and bias of all layers but the first and last; `activations` is one longer."""
        self.weights = [weight.detach().to(dtype) for weight, _ in hidden]
        self.turned = [weight.t().contiguous() for weight in self.weights]
        self.biases = [None if bias is None else bias.detach().to(dtype) for _, bias in hidden]
        self.activations = tuple(activations)


class Pass:
    """Forward and back through hidden layers for one number of rows, without a new tensor.

    The caller fills `entry`, the first layer's units before their activation; `lift` goes up to the last one's, and `pull`
    brings the gradient of a sum of these back to `entry`.
    """

    def __init__(self, layers: Layers, width: int, rows: int, like: Tensor) -> None:
        self.layers = layers
        widths = [width, *(len(weight) for weight in layers.weights)]

        def buffers() -> list[Tensor]:
            dtype = layers.weights[0].dtype if layers.weights else like.dtype
            return [torch.empty(rows, w, dtype=dtype, device=like.device) for w in widths]

        self.before, self.after, self.down = buffers(), buffers(), buffers()
        self.entry = self.before[0]

    def lift(self, whole: bool) -> Tensor:
        """The last layer's units, `(rows, width)`; unless `whole`, only as far as `pull` needs them."""
        layers, top = self.layers, len(self.before) - 1
        for i, activation in enumerate(layers.activations):
            if i < top or whole or activation.needs_after:
                activation.value(self.before[i], out=self.after[i])
            if i < top:
                bias = layers.biases[i]
                if bias is None:
                    torch.mm(self.after[i], layers.turned[i], out=self.before[i + 1])
                else:
                    torch.addmm(bias, self.after[i], layers.turned[i], out=self.before[i + 1])
        return self.after[-1]

    def pull(self, seed: Tensor) -> Tensor:
        """The gradient at `entry`, given that at the last units, both `(rows, width)`."""
        layers, g = self.layers, seed
        for i in range(len(self.before) - 1, -1, -1):
            layers.activations[i].pull(g, self.before[i], self.after[i], out=self.down[i])
            g = self.down[i]
            if i > 0:
                g = torch.mm(g, layers.weights[i - 1], out=self.down[i - 1])
        return g


def blocks(rows: int, device: torch.device) -> Iterator[slice]:
    """Rows that go through together."""
    size = BLOCK if device.type == "cpu" else max(rows, 1)
    return (slice(first, min(first + size, rows)) for first in range(0, rows, size))


class PlainNetwork(NamedTuple):
    """E(x) = scale f(x) + curvature |x|^2 / 2 + shift, where f is a plain network, `(B, D) -> (B, 1)`."""

    linears: tuple[nn.Linear, ...]
    activations: tuple[Activation, ...]
    scale: float = 1.0
    curvature: float = 0.0
    shift: float = 0.0


class PlainGradient:
    """Gradient of a `PlainNetwork` for one chain; the weights are those at its making."""

    def __init__(self, plain: PlainNetwork, x: Tensor, dtype: torch.dtype | None = None) -> None:
        self.plain, self.dtype = plain, dtype or x.dtype
        first, *hidden, last = plain.linears
        self.weight = first.weight.detach().to(self.dtype).contiguous()
        self.turned = self.weight.t().contiguous()
        self.bias = None if first.bias is None else first.bias.detach().to(self.dtype)
        self.last = last
        layers = Layers([(linear.weight, linear.bias) for linear in hidden], plain.activations, self.dtype)
        like = torch.empty((), dtype=self.dtype, device=x.device)
        passes: dict[int, tuple[Pass, Tensor]] = {}
        self.parts: list[tuple[slice, Pass, Tensor]] = []
        for rows in blocks(len(x), x.device):
            size = rows.stop - rows.start
            if size not in passes:
                seed = (plain.scale * last.weight.detach()).to(self.dtype).expand(size, -1).contiguous()
                passes[size] = Pass(layers, len(self.weight), size, like), seed
            self.parts.append((rows, *passes[size]))
        self.out = torch.empty_like(x)
        self.views = [(self.out[rows], work, seed, rows) for rows, work, seed in self.parts]
        rounds = self.dtype != x.dtype
        self.rounded = (torch.empty(x.shape, dtype=self.dtype, device=x.device), torch.empty_like(like)) if rounds else None

    def __call__(self, x: Tensor) -> Tensor:
        """Gradient `(B, D)`; the next call overwrites it."""
        if len(self.views) == 1:
            self._block(x, *self.views[0][:3])
        else:
            for out, work, seed, rows in self.views:
                self._block(x[rows], out, work, seed)
        return self.out

    def _block(self, x: Tensor, out: Tensor, work: Pass, seed: Tensor, value: bool = False) -> None:
        given = x if self.dtype == x.dtype else x.to(self.dtype)
        if self.bias is None:
            torch.mm(given, self.turned, out=work.entry)
        else:
            torch.addmm(self.bias, given, self.turned, out=work.entry)
        work.lift(whole=value)
        g = work.pull(seed)
        if given is not x:
            out.copy_(g @ self.weight)
            if self.plain.curvature:
                out.add_(x, alpha=self.plain.curvature)
        elif self.plain.curvature:
            torch.addmm(x, g, self.weight, beta=self.plain.curvature, out=out)
        else:
            torch.mm(g, self.weight, out=out)

    def value_and_gradient(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Energies `(B,)` and gradients `(B, D)`, which are the caller's own."""
        plain, values = self.plain, []
        for out, work, seed, rows in self.views:
            self._block(x[rows], out, work, seed, value=True)
            value = work.after[-1] @ self.last.weight[0]
            values.append(value if self.last.bias is None else value + self.last.bias)
        energy = plain.scale * (values[0] if len(values) == 1 else torch.cat(values))
        if plain.curvature:
            energy = energy + 0.5 * plain.curvature * x.square().sum(-1)
        return energy + plain.shift if plain.shift else energy, self.out.clone()


def plain_weights(plain: PlainNetwork) -> list[Tensor]:
    """The weights and biases that `plain_slope` wants, as they are now; a missing bias is 0."""
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
