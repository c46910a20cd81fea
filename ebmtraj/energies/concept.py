"""A concept's energy: of images and one factor of theirs, at every noise level, made to be composed with others.

    E(x, s) = |x|^2 / (2 (1 + s^2)) + e(u, s) / s        E(x, s | c) = E(x, s) - log p(c | u, s) / p(c)

with u = x / sqrt(1 + s^2), and e and the logits of p(c | u, s) of a network each. As p(x | c) / p(x) = p(c | x) / p(c), the
difference of the two is normalised at every level, which | and ~ need.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ebmtraj.energies.base import Composable
from ebmtraj.energies.image_base import UnitGaussian, spread_out
from ebmtraj.nets.encoder import Encoder, class_codes


def _slope(energy: nn.Module, x: Tensor, label: Tensor | None, level: Tensor) -> Tensor:
    """Gradient in x by autograd, `(B, *event)`; differentiable in the parameters where gradients are enabled."""
    wanted = torch.is_grad_enabled()
    with torch.enable_grad():
        x = x if x.requires_grad and wanted else x.detach().requires_grad_(True)
        return torch.autograd.grad(energy(x, label, level).sum(), x, create_graph=wanted)[0]


def shrunk(x: Tensor, level: Tensor) -> Tensor:
    """x / sqrt(1 + s^2), which has unit spread at every level, `(B, *event)`."""
    return x * torch.rsqrt(1 + spread_out(level, x) ** 2)


class PriorEnergy(Composable, nn.Module):
    """E(x, s) of images `(B, *event)`; labels are not looked at."""

    def __init__(self, shape: tuple[int, int, int], *, width: int = 48) -> None:
        super().__init__()
        self.event, self.base = shape, UnitGaussian()
        self.net = Encoder(shape, 1, width=width)
        nn.init.normal_(self.net.output.weight, std=1e-2)

    def forward(self, x: Tensor, label: Tensor | None, level: Tensor) -> Tensor:
        """Energies `(B,)` at level `()` or `(B,)`."""
        level = level.expand(len(x))
        return self.base(x, None, level) + self.net(shrunk(x, level), level).float().squeeze(1) / level

    def gradient(self, x: Tensor, label: Tensor | None, level: Tensor) -> Tensor:
        """Gradient in x, `(B, *event)`."""
        return _slope(self, x, label, level)


class Evidence(Composable, nn.Module):
    """E(x | c) - E(x) = -log p(c | x) / p(c): what the factor's value c says beyond the prior; 0 where it is -1 or None."""

    codes: Tensor

    def __init__(self, shape: tuple[int, int, int], classes: tuple[str, ...], *, width: int = 16) -> None:
        super().__init__()
        codes = class_codes(classes)
        self.event, self.classes = shape, len(classes)
        self.register_buffer("codes", codes, persistent=False)
        self.net = Encoder(shape, codes.shape[1], width=width, stride=1, normalise=True)

    def log_shares(self, x: Tensor, level: Tensor) -> Tensor:
        """log p(c | x) of all values, `(B, K)`, at level `()` or `(B,)`."""
        level = level.expand(len(x))
        return F.log_softmax(self.net(shrunk(x, level), level).float() @ self.codes.T, dim=1)

    def forward(self, x: Tensor, label: Tensor | None, level: Tensor) -> Tensor:
        """Energies `(B,)`."""
        if label is None:
            return x.flatten(1).sum(1) * 0
        own = self.log_shares(x, level).gather(1, label.clamp_min(0).unsqueeze(1)).squeeze(1) + math.log(self.classes)
        return -torch.where(label < 0, 0.0, own)

    def gradient(self, x: Tensor, label: Tensor | None, level: Tensor) -> Tensor:
        """Gradient in x, `(B, *event)`."""
        return torch.zeros_like(x) if label is None else _slope(self, x, label, level)


class ConceptEnergy(Composable, nn.Module):
    """E(x, s | c) given labels `(B,)`, and E(x, s) where there are none (-1 or None)."""

    def __init__(
        self, shape: tuple[int, int, int], classes: tuple[str, ...], *, width: int = 48, evidence_width: int = 16
    ) -> None:
        super().__init__()
        self.event = shape
        self.prior = PriorEnergy(shape, width=width)
        self.evidence = Evidence(shape, classes, width=evidence_width)

    def forward(self, x: Tensor, label: Tensor | None, level: Tensor) -> Tensor:
        """Energies `(B,)` of events `(B, *event)` at level `()` or `(B,)`."""
        value: Tensor = self.prior(x, None, level)
        return value if label is None else value + self.evidence(x, label, level)

    def gradient(self, x: Tensor, label: Tensor | None, level: Tensor) -> Tensor:
        """Gradient in x, `(B, *event)`."""
        slope = self.prior.gradient(x, None, level)
        return slope if label is None else slope + self.evidence.gradient(x, label, level)
