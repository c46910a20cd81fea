"""A concept's energy: of images and one factor of theirs, at every noise level, made to be composed with others.

    E(x, s) = |x|^2 / (2 (1 + s^2)) + e(u, s) / s        E(x, s | c) = E(x, s) - log p(c | u, s) / p(c)

with u = x / sqrt(1 + s^2), and e and the logits of p(c | u, s) of a network each. As p(x | c) / p(x) = p(c | x) / p(c), the
difference of the two is normalised at every level, which | and ~ need. Composed as in paper 000, section 7; that form of a
condition: Dhariwal and Nichol 2021.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ebmtraj.energies.base import Composable
from ebmtraj.energies.image_base import UnitGaussian, spread_out
from ebmtraj.nets.encoder import Encoder
from ebmtraj.nets.mlp import softly_bounded

LOG_STD = (-4.0, 0.5)  # bounds, so that no measure is taken for more exact than it can be


def autograd_slope(energy: Callable[..., Tensor], x: Tensor, label: Tensor | None, level: Tensor) -> Tensor:
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

    def __init__(self, shape: tuple[int, int, int], *, width: int = 24) -> None:
        super().__init__()
        self.event, self.base = shape, UnitGaussian()
        self.net = Encoder(shape, 1, width=width, details=True, torus=True)
        nn.init.normal_(self.net.output.weight, std=1e-2)

    def forward(self, x: Tensor, label: Tensor | None, level: Tensor) -> Tensor:
        """Energies `(B,)` at level `()` or `(B,)`."""
        level = level.expand(len(x))
        return self.base(x, None, level) + self.net(shrunk(x, level), level).to(x.dtype).squeeze(1) / level

    def gradient(self, x: Tensor, label: Tensor | None, level: Tensor) -> Tensor:
        """Gradient in x, `(B, *event)`."""
        return autograd_slope(self, x, label, level)


class Evidence(Composable, nn.Module):
    """E(x | c) - E(x) = -log p(c | x) / p(c): what the factor's value c says beyond the prior; 0 where it is -1 or None.

    p(c | x) is a softmax over the names of classes. Where these are measures, as "0.5" or "0.5,0.25" (whole numbers count as
    names), it is a Gaussian in each of their numbers: it pulls to the value itself, not only to within reach of it.
    """

    values: Tensor  # (K, F) the F measures of each of K classes; (0, 0) where they are names

    def __init__(self, shape: tuple[int, int, int], classes: tuple[str, ...], *, width: int = 16) -> None:
        super().__init__()
        values = measures(classes)
        self.event, self.classes, self.measured = shape, len(classes), values is not None
        self.register_buffer("values", torch.zeros(0, 0) if values is None else values, persistent=False)
        outputs = len(classes) if values is None else 2 * values.shape[1]
        self.net = Encoder(shape, outputs, width=width, normalise=True)

    def _outputs(self, x: Tensor, level: Tensor) -> Tensor:
        level = level.expand(len(x))
        out: Tensor = self.net(shrunk(x, level), level).to(x.dtype)
        return out

    def _log_densities(self, out: Tensor, values: Tensor) -> Tensor:
        """log p(c | x) / p(c) of measures `(B, K, F)` or `(B, 1, F)`, with p(c) uniform from -1 to 1, `(B, K)`."""
        mean, log_std = out.unsqueeze(1).chunk(2, dim=-1)
        log_std = softly_bounded(log_std, *LOG_STD)
        each = -0.5 * ((values - mean) * torch.exp(-log_std)).square() - log_std - 0.5 * math.log(2 * math.pi)
        return (each + math.log(2)).sum(-1)

    def log_shares(self, x: Tensor, level: Tensor) -> Tensor:
        """log p(c | x) of all classes, `(B, K)`, at level `()` or `(B,)`."""
        out = self._outputs(x, level)
        return F.log_softmax(self._log_densities(out, self.values.unsqueeze(0)) if self.measured else out, dim=1)

    def forward(self, x: Tensor, label: Tensor | None, level: Tensor) -> Tensor:
        """Energies `(B,)`."""
        if label is None:
            return x.flatten(1).sum(1) * 0
        out, own = self._outputs(x, level), label.clamp_min(0)
        if self.measured:
            said = self._log_densities(out, self.values[own].unsqueeze(1)).squeeze(1)
        else:
            said = F.log_softmax(out, dim=1).gather(1, own.unsqueeze(1)).squeeze(1) + math.log(self.classes)
        return -torch.where(label < 0, 0.0, said)

    def gradient(self, x: Tensor, label: Tensor | None, level: Tensor) -> Tensor:
        """Gradient in x, `(B, *event)`."""
        return torch.zeros_like(x) if label is None else autograd_slope(self, x, label, level)


def measures(classes: tuple[str, ...]) -> Tensor | None:
    """The numbers that classes are named by, `(K, F)`, each column from -1 to 1; None for names and whole numbers."""
    if not any("." in name for name in classes):
        return None
    try:
        numbers = torch.tensor([[float(part) for part in name.split(",")] for name in classes], dtype=torch.float64)
    except ValueError:
        return None
    low, high = numbers.min(0).values, numbers.max(0).values
    return (2 * (numbers - low) / (high - low).clamp_min(1e-9) - 1).float()


class ConceptEnergy(Composable, nn.Module):
    """E(x, s | c) given labels `(B,)`, and E(x, s) where there are none (-1 or None)."""

    def __init__(
        self, shape: tuple[int, int, int], classes: tuple[str, ...], *, width: int = 24, evidence_width: int = 16
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
