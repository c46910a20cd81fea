"""Free vector fields: what a diffusion or flow model learns where an energy-based one has a gradient. Karras et al. 2022."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ebmtraj.nets.mlp import LevelFeatures, TimeFeatures


class VectorField(nn.Module):
    """A vector `(B, D)` of an event `(B, D)`, its context `(B, C)` and a noise level or time `()` or `(B,)`."""

    def __init__(
        self, event: int, context: int, features: LevelFeatures | TimeFeatures, *, width: int = 128, depth: int = 3
    ) -> None:
        """`depth` hidden layers of `width` swish units; the last layer starts near 0."""
        super().__init__()
        self.features = features
        self.input_event = nn.Linear(event, width)
        self.input_context = nn.Linear(context, width, bias=False)
        self.input_level = nn.Linear(features.size, width, bias=False)
        self.hidden = nn.ModuleList(nn.Linear(width, width) for _ in range(depth - 1))
        self.output = nn.Linear(width, event)
        nn.init.normal_(self.output.weight, std=1e-3)
        nn.init.zeros_(self.output.bias)

    def prepare(self, context: Tensor) -> Tensor:
        """The context's share of the first layer, computed once a chain, `(B, C) -> (B, width)`."""
        return self.input_context(context)

    def forward(self, x: Tensor, context: Tensor, level: Tensor) -> Tensor:
        """The vectors `(B, D)`; `context` is what `prepare` made of it."""
        h = self.input_event(x) + context + self.input_level(self.features(level))
        for layer in self.hidden:
            h = layer(F.silu(h))
        return self.output(F.silu(h))


class Denoiser(VectorField):
    """The denoiser of Karras et al. 2022 (table 1, data of unit spread), written as the gradient of an energy is.

    D(x; s) = x / (1 + s^2) - s / sqrt(1 + s^2) f(x / sqrt(1 + s^2), c, ln s) with f the network. A noise-conditional energy
    has grad_u e(u, c, s) in place of f, so loss and sampler are the same; but f need not be the gradient of anything.
    """

    def __init__(self, event: int, context: int, *, width: int = 128, depth: int = 3) -> None:
        super().__init__(event, context, LevelFeatures(), width=width, depth=depth)

    def tilt_gradient(self, u: Tensor, context: Tensor, level: Tensor) -> Tensor:
        """f, which stands where an energy has the gradient of its tilt, `(B, D)`."""
        return self(u, context, level)

    def gradient(self, x: Tensor, context: Tensor, level: Tensor) -> Tensor:
        """Minus the score, (x - D(x; s)) / s^2, `(B, D)`."""
        level = level.unsqueeze(-1)
        shrink = torch.rsqrt(1 + level**2)
        u = x * shrink
        return (u + self(u, context, level.squeeze(-1)) / level) * shrink
