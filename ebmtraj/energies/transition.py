"""Transition energies E(s_t, s_t+1) and E(s_t, a_t, s_t+1) in normalised coordinates.

Papers 000, section 5, and 004, equation 1.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ebmtraj.nets.base import TiltedBase
from ebmtraj.nets.mlp import MLP, LevelFeatures, known_features, silu_with_slope
from ebmtraj.samplers.analytic import SILU, Layers, Pass, blocks


class PairEnergy(nn.Module):
    """The energy of paper 000, section 5: 3 x 128 swish units with spectral norm on a pair of successive states.

    The pair is one event `(B, C + D)`: the normalised state (and action), then the normalised next state or increment. A
    spectrally normalised network is nearly flat at unit scale, so its output is multiplied by `scale`.
    """

    def __init__(self, event: int, *, width: int = 128, depth: int = 3, spectral: bool = True, scale: float = 1.0) -> None:
        super().__init__()
        self.net = MLP(event, 1, width=width, depth=depth, spectral=spectral)
        self.scale = scale

    def forward(self, x: Tensor, context: None = None) -> Tensor:
        """Energies `(B,)`."""
        return self.scale * self.net(x).squeeze(-1)


class TiltedPairEnergy(PairEnergy):
    """A Gaussian over the second half of a pair, tilted by the network's energy of the whole pair.

    E(c, z) = prior |z|^2 / 2 + scale f(c, z): with a prior above 0 the energy grows without bound off the data, as the
    network's alone need not, and an untrained model already samples increments of the data's own spread.
    """

    def __init__(
        self, first: int, second: int, *, prior: float, width: int, depth: int, spectral: bool, scale: float
    ) -> None:
        super().__init__(first + second, width=width, depth=depth, spectral=spectral, scale=scale)
        self.first, self.prior = first, prior

    def tilt(self, pair: Tensor) -> Tensor:
        """The network's share of the energy, `(B, C + D) -> (B,)`."""
        return super().forward(pair)

    def forward(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        """Energies `(B,)` of whole pairs `(B, C + D)` or, given what `prepare` made of the first halves, of second ones."""
        if context is None:
            return self.tilt(x) + 0.5 * self.prior * x[..., self.first :].square().sum(-1)
        h = context + F.linear(x, self._linears()[0].weight[:, self.first :])
        for layer in list(self.net)[1:]:
            h = layer(h)
        return self.scale * h.squeeze(-1) + 0.5 * self.prior * x.square().sum(-1)

    def prepare(self, context: Tensor) -> Tensor:
        """The first half's share of the first layer, computed once a chain, `(B, C) -> (B, width)`."""
        entry = self._linears()[0]
        return F.linear(context, entry.weight[:, : self.first], entry.bias)

    def gradient(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        """Gradient of the energy in x, `(B, C + D)` or `(B, D)`, in closed form: products of matrices forward and back."""
        entry, *hidden, output = self._linears()
        if context is None:
            weight = entry.weight
            h = F.linear(x, weight, entry.bias)
            pull = F.pad(x[..., self.first :], (self.first, 0))
        else:
            weight = entry.weight[:, self.first :]
            h = F.linear(x, weight) + context
            pull = x
        value, slope = silu_with_slope(h)
        slopes = [slope]
        for layer in hidden:
            value, slope = silu_with_slope(layer(value))
            slopes.append(slope)
        back = output.weight[0] * slopes[-1]
        for layer, slope in zip(reversed(hidden), reversed(slopes[:-1]), strict=True):
            back = (back @ layer.weight) * slope
        return self.scale * (back @ weight) + self.prior * pull

    def _linears(self) -> list[nn.Linear]:
        return [layer for layer in self.net if isinstance(layer, nn.Linear)]


class ResidualContext(NamedTuple):
    """What a residual energy is given: its first layer's share of the context, computed once a chain."""

    hidden: Tensor  # (B, width)


class ResidualEnergy(nn.Module):
    """Noise-conditional energy of a base model's whitened residual r at noise level s.

    E(r, s | c) = |u|^2 / 2 + e(u, c, s) / s with u = r / sqrt(1 + s^2) and e = u . G + g, where G and g are the outputs
    of one swish network: at every level an exponential tilt (paper 004) of a unit Gaussian. The input gradient is a product
    of matrices, written out in `gradient`, so that training on it needs no second autograd pass.
    """

    def __init__(self, event: int, context: int, *, width: int = 128, depth: int = 3, frequencies: int = 8) -> None:
        super().__init__()
        self.event = event
        self.level_features = LevelFeatures(frequencies)
        self.input_event = nn.Linear(event, width)
        self.input_context = nn.Linear(context, width, bias=False)
        self.input_level = nn.Linear(self.level_features.size, width, bias=False)
        self.hidden = nn.ModuleList(nn.Linear(width, width) for _ in range(depth - 1))
        self.output = nn.Linear(width, event + 1)
        nn.init.normal_(self.output.weight, std=1e-3)
        nn.init.zeros_(self.output.bias)

    def prepare(self, context: Tensor) -> ResidualContext:
        """The context's share of the first layer, `(B, C) -> (B, width)`."""
        return ResidualContext(self.input_context(context))

    def forward(self, r: Tensor, context: ResidualContext, level: Tensor) -> Tensor:
        """Energies `(B,)` of residuals `(B, D)` at level `()` or `(B,)`."""
        u = r * torch.rsqrt(1 + level**2).unsqueeze(-1)
        h = self.input_event(u) + context.hidden + self.input_level(self.level_features(level))
        for layer in self.hidden:
            h = layer(F.silu(h))
        out = self.output(F.silu(h))
        tilt = (u * out[..., : self.event]).sum(-1) + out[..., self.event]
        return 0.5 * (u**2).sum(-1) + tilt / level

    def tilt_gradient(self, u: Tensor, context: ResidualContext, level: Tensor) -> Tensor:
        """Gradient of e in u, `(B, D)`: three products forward, three back."""
        value, slope = silu_with_slope(self.input_event(u) + context.hidden + self.input_level(self.level_features(level)))
        slopes = [slope]
        for layer in self.hidden:
            value, slope = silu_with_slope(layer(value))
            slopes.append(slope)
        direct = F.linear(value, self.output.weight[: self.event], self.output.bias[: self.event])
        back = u @ self.output.weight[: self.event] + self.output.weight[self.event]
        for layer, slope in zip(reversed(self.hidden), reversed(slopes[1:]), strict=True):
            back = (back * slope) @ cast(Tensor, layer.weight)
        return direct + (back * slopes[0]) @ self.input_event.weight

    def gradient(self, r: Tensor, context: ResidualContext, level: Tensor) -> Tensor:
        """Gradient of the energy in r, `(B, D)`, in closed form."""
        level = level.unsqueeze(-1)
        shrink = torch.rsqrt(1 + level**2)
        u = r * shrink
        return (u + self.tilt_gradient(u, context, level.squeeze(-1)) / level) * shrink

    def chain_gradient(
        self, r: Tensor, context: ResidualContext, dtype: torch.dtype | None = None
    ) -> Callable[[Tensor, Tensor], Tensor]:
        """`gradient` at this context for chains of the shape of r, for as long as the weights stay; see `samplers`."""
        return _ResidualChain(self, r, context, dtype or r.dtype)


class _ResidualChain:
    """`ResidualEnergy.gradient` for one chain, in buffers and from the weights as they are; a call overwrites the last."""

    def __init__(self, energy: ResidualEnergy, r: Tensor, context: ResidualContext, dtype: torch.dtype) -> None:
        d, first, output = energy.event, energy.input_event, energy.output
        weight, bias = output.weight.detach().to(dtype), output.bias.detach().to(dtype)
        self.energy, self.dtype = energy, dtype
        self.hidden = (context.hidden + first.bias).detach().to(dtype)
        self.entry = first.weight.detach().to(dtype)
        self.down, self.down_bias, self.up_bias = weight[:d], weight[d], bias[:d]
        hidden = [cast(nn.Linear, layer) for layer in energy.hidden]
        pairs = [(layer.weight, layer.bias) for layer in hidden]
        layers = Layers(pairs, [SILU] * (len(hidden) + 1), dtype, brief=True)
        width = len(self.down_bias)
        self.u, self.g = r.new_empty(r.shape), r.new_empty(r.shape, dtype=dtype)
        seed = r.new_empty((len(r), width), dtype=dtype)
        passes: dict[int, Pass] = {}
        self.parts: list[tuple[slice, Pass]] = []
        for rows in blocks(len(r), width, seed):
            size = rows.stop - rows.start
            if size not in passes:
                passes[size] = Pass(layers, seed[:size], width, whole=True, constant=False)
            self.parts.append((rows, passes[size]))

    def __call__(self, r: Tensor, level: Tensor) -> Tensor:
        """Gradient `(B, D)` at residuals and a level, `()` or `(B,)`."""
        energy, inverse, shrink = self.energy, 0.0, 0.0
        plain = level.dim() == 0 and level.device.type == "cpu"  # on a GPU a look at it would cost more
        if plain:
            number = float(level)
            inverse, shrink = 1 / number, (1 + number**2) ** -0.5
            noise = energy.input_level.weight.detach() @ known_features(energy.level_features, number)
            u = torch.mul(r, shrink, out=self.u)
        else:
            noise, column = energy.input_level(energy.level_features(level)), level.unsqueeze(-1)
            u = torch.mul(r, torch.rsqrt(1 + column**2), out=self.u)
        noise, given = noise.to(self.dtype), u.to(self.dtype)
        for rows, work in self.parts:
            part = given[rows]
            torch.add(self.hidden[rows], noise if noise.dim() == 1 else noise[rows], out=work.entry)
            work.entry.addmm_(part, self.entry.t())
            torch.addmm(self.down_bias, part, self.down, out=work.seed)
            back = work.run()
            torch.addmm(self.up_bias, work.top, self.down.t(), out=self.g[rows]).addmm_(back, self.entry)
        if plain:
            return u.add_(self.g, alpha=inverse).mul_(shrink)
        return u.add_(self.g / column).mul_(torch.rsqrt(1 + column**2))


class TiltedTransition(TiltedBase):
    """An explicit Gaussian base over the normalised increment z, tilted by an energy of its residual.

    p(z | c) is proportional to N(z; mu(c), sigma(c)) tilted by the `ResidualEnergy` of r = (z - mu) / sigma, which also
    sees mu and log sigma, see `TiltedBase`.
    """

    def __init__(
        self,
        event: int,
        context: int,
        *,
        width: int = 128,
        depth: int = 3,
        mildness: float = 0.5,
        bound: float = 8.0,
        base: bool = True,
        base_context: bool = True,
    ) -> None:
        super().__init__(
            event,
            context,
            width=width,
            depth=depth,
            mildness=mildness,
            bound=bound,
            base=base,
            base_context=base_context,
        )
        self.energy = ResidualEnergy(event, self.tilt_context, width=width, depth=depth)

    @property
    def tilt(self) -> ResidualEnergy:
        """The residual's energy."""
        return self.energy

    def forward(self, z: Tensor, context: Tensor, level: Tensor) -> Tensor:
        """Energy of normalised increments `(B, D)` at a noise level, up to a constant of each context.

        The volume of the residual coordinates (the sum of log sigma) is included, so energies compare across contexts as
        the base's negative log-likelihood does.
        """
        base = self.base(context)
        return self.energy(self.residual(z, base), self.prepare(context, base), level) + base.log_std.sum(-1)
