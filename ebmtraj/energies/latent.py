"""The tilt of a generator: p(z) exp(-E(G(z))), where E looks at the latent, a code or the event (paper 004, eq. 6)."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ebmtraj.energies.image_conv import SMALL, PlainEnergy
from ebmtraj.nets.mlp import MLP


class ViewEnergy(nn.Module):
    """E of what is looked at, `(B, *view)`: dense layers with Fourier features, or for large images a residual network."""

    shift: Tensor
    scale: Tensor
    frequencies: Tensor

    def __init__(
        self,
        shape: Sequence[int],
        *,
        width: int = 256,
        depth: int = 2,
        fourier: Sequence[float] = (),
        features: int = 32,
        channels: int = 64,
    ) -> None:
        """`fourier`: standard deviations of random frequencies, `features` of each; without any, the view itself alone."""
        super().__init__()
        self.shape = tuple(shape)
        size = math.prod(self.shape)
        self.register_buffer("shift", torch.zeros(self.shape))
        self.register_buffer("scale", torch.ones(self.shape))
        self.register_buffer(
            "frequencies", torch.cat([torch.empty(size, 0), *[s * torch.randn(size, features) for s in fourier]], 1)
        )
        self.dense = len(self.shape) != 3 or size <= SMALL
        self.net: nn.Module
        if self.dense:
            self.net = MLP(size + 2 * self.frequencies.shape[1], 1, width=width, depth=depth)
        else:
            image = (self.shape[0], self.shape[1], self.shape[2])
            self.net = PlainEnergy(image, 0, network="resnet", channels=channels, spectral=False)

    @torch.no_grad()
    def prepare(self, views: Tensor) -> None:
        """Take mean and spread of what will be looked at, `(N, *view)`: of each entry, of images over all."""
        self.shift.copy_(views.mean(0))
        self.scale.copy_(views.std(0).clamp_min(1e-3) if len(self.shape) != 3 else views.std().expand(self.shape))

    def forward(self, view: Tensor, context: Any = None, level: Tensor | None = None) -> Tensor:
        """Energies `(B,)`."""
        u = (view - self.shift) / self.scale
        if not self.dense:
            out: Tensor = self.net(u)
            return out
        u = u.flatten(1)
        phase = u @ self.frequencies
        value: Tensor = self.net(torch.cat((u, phase.sin(), phase.cos()), dim=1)).squeeze(-1)
        return value


class LatentEnergy(nn.Module):
    """-log p(z) + E(view(z)): what chains over latents `(B, Z)` sample (paper 004, equation 8)."""

    def __init__(self, energy: nn.Module, view: Callable[[Tensor], Tensor], log_prior: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.energy, self.view, self.log_prior = energy, view, log_prior

    def tilt(self, z: Tensor, context: Any = None) -> Tensor:
        """E alone, `(B,)`: the log of how much less a latent is wanted than the prior has it."""
        value: Tensor = self.energy(self.view(z), context)
        return value

    def forward(self, z: Tensor, context: Any = None, level: Tensor | None = None) -> Tensor:
        """Energies `(B,)`."""
        return self.tilt(z, context) - self.log_prior(z)
