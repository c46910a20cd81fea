"""Losses as pure functions; each returns the loss and what is worth logging.

Paper 000, algorithm 1; Vincent 2011; Karras et al. 2022; Lipman et al. 2023; Bishop 1994.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import torch
from torch import Tensor

from ebmtraj.errors import EbmtrajError

Logs = dict[str, Tensor]


class Tilt(Protocol):
    """What denoising score matching can train: a noise-conditional energy, or a free field in place of its gradient."""

    def tilt_gradient(self, u: Tensor, context: Any, level: Tensor) -> Tensor:
        """The gradient of e in u, see `ResidualEnergy`, `(B, D)`."""
        ...


@dataclass(frozen=True)
class NoiseConfig:
    """Noise levels for denoising score matching: ln s ~ N(mean, std^2) (Karras et al. 2022, table 1).

    Raises `EbmtrajError` for a setting out of its range.
    """

    mean: float = -0.8
    std: float = 1.2

    def __post_init__(self) -> None:
        if self.std < 0:
            raise EbmtrajError(f"noise: std = {self.std}; it needs std >= 0")

    def draw(self, size: int, generator: torch.Generator) -> Tensor:
        """Levels `(size,)`."""
        normal = torch.empty(size, device=generator.device).normal_(generator=generator)
        return torch.exp(self.mean + self.std * normal)


@dataclass(frozen=True)
class TimeConfig:
    """Times in [0, 1] for flow matching. Raises `EbmtrajError` for a setting out of its range."""

    law: Literal["logit-normal", "uniform"] = "logit-normal"  # as Esser et al. 2024
    mean: float = 0.0  # of logit t; above 0 is nearer the data
    std: float = 1.0  # of logit t

    def __post_init__(self) -> None:
        if self.std < 0:
            raise EbmtrajError(f"time: std = {self.std}; it needs std >= 0")

    def draw(self, size: int, generator: torch.Generator) -> Tensor:
        """Times `(size,)`."""
        values = torch.empty(size, device=generator.device)
        if self.law == "uniform":
            return values.uniform_(generator=generator)
        return torch.sigmoid(self.mean + self.std * values.normal_(generator=generator))


def denoising_score_matching(
    energy: Tilt,
    r: Tensor,
    context: Any,
    noise: NoiseConfig,
    generator: torch.Generator,
    base: Callable[[Tensor, Any, Tensor], Tensor] | None = None,
) -> Tensor:
    """Denoising score matching with the weights of Karras et al. 2022, per element `(B,)`.

    With unit-variance residuals the denoiser of the energy is D(x) = x - s^2 grad E = x / (1 + s^2) - s / sqrt(1 + s^2)
    grad_u e; weighted by (1 + s^2) / s^2, its squared error is that of grad_u e against (c_skip x - r) / c_out. Events `r`
    are of any shape `(B, *event)`. Where something else than a unit Gaussian is tilted, `base` is the gradient of its energy
    at a noise level, `(x, context, level) -> (B, *event)`, and its denoiser stands in place of x / (1 + s^2).
    """
    level = noise.draw(len(r), generator)
    s = level.reshape(-1, *[1] * (r.dim() - 1))
    x = r + s * torch.empty_like(r).normal_(generator=generator)
    spread = torch.sqrt(1 + s**2)
    if base is None:
        known = x / spread**2
    else:
        with torch.no_grad():
            known = x - s**2 * base(x, context, level)
    target = (known - r) * spread / s
    return (energy.tilt_gradient(x / spread, context, level) - target).square().flatten(1).mean(-1)


def flow_matching(
    velocity: Callable[[Tensor, Tensor, Tensor], Tensor],
    z: Tensor,
    context: Tensor,
    time: TimeConfig,
    generator: torch.Generator,
) -> Tensor:
    """Squared error of the velocity along straight paths from noise (t = 0) to data (t = 1), per element `(B,)`.

    Data z are `(B, D)`, contexts `(B, C)`, and `velocity` is `(x, context, t (B,)) -> (B, D)`. Lipman et al. 2023 with
    sigma_min = 0, the rectified flow of Liu et al. 2023.
    """
    t = time.draw(len(z), generator)
    start = torch.empty_like(z).normal_(generator=generator)
    x = torch.lerp(start, z, t.unsqueeze(-1))
    return (velocity(x, context, t) - (z - start)).square().mean(-1)


def gaussian_nll(z: Tensor, mean: Tensor, log_std: Tensor, beta: float = 0.0) -> Tensor:
    """Negative log-likelihood of a diagonal Gaussian, mean over dimensions, without its constant, `(B,)`.

    z, `mean` and `log_std` are `(B, D)`. `beta` > 0 weights each dimension by its variance to that power, detached (Seitzer
    et al. 2022): beta 1 fits the mean as least squares does, and the spread all the same.
    """
    nll = 0.5 * ((z - mean) * torch.exp(-log_std)).square() + log_std
    if beta > 0:
        nll = nll * torch.exp(2 * beta * log_std).detach()
    return nll.mean(-1)


def mixture_nll(z: Tensor, log_weight: Tensor, mean: Tensor, log_std: Tensor) -> Tensor:
    """Negative log-likelihood of a mixture of diagonal Gaussians, over the number of dimensions and without its constant.

    `z` (B, D), `log_weight` (B, K) normalised, `mean` and `log_std` (B, K, D), gives `(B,)`: with one component it is
    `gaussian_nll`, so the two compare.
    """
    each = -(0.5 * ((z.unsqueeze(1) - mean) * torch.exp(-log_std)).square() + log_std).sum(-1)
    return -torch.logsumexp(log_weight + each, dim=-1) / z.shape[-1]


def contrastive_divergence(
    energy: Callable[[Tensor], Tensor], positive: Tensor, negative: Tensor, alpha: float
) -> tuple[Tensor, Logs]:
    """Algorithm 1 of paper 000: E(x+) - E(x-) with an L2 penalty on both energies; `negative` carries no gradient.

    Events `(B, *event)` -> a loss `()`.
    """
    up, down = energy(positive), energy(negative.detach())
    gap = (up - down).mean()
    loss = gap + alpha * (up.square() + down.square()).mean()
    return loss, {"gap": gap.detach(), "energy_positive": up.detach().mean(), "energy_negative": down.detach().mean()}
