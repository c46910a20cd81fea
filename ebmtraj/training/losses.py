"""Losses as pure functions; each returns the loss and what is worth logging."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from ebmtraj.energies.transition import ResidualContext, ResidualEnergy

Logs = dict[str, Tensor]


@dataclass(frozen=True)
class NoiseConfig:
    """Noise levels for denoising score matching: ln s ~ N(mean, std^2) (Karras et al. 2022, table 1)."""

    mean: float = -0.8
    std: float = 1.2

    def draw(self, size: int, generator: torch.Generator) -> Tensor:
        """Levels `(size,)`."""
        normal = torch.empty(size, device=generator.device).normal_(generator=generator)
        return torch.exp(self.mean + self.std * normal)


def denoising_score_matching(
    energy: ResidualEnergy, r: Tensor, context: ResidualContext, noise: NoiseConfig, generator: torch.Generator
) -> Tensor:
    """Denoising score matching with the weights of Karras et al. 2022, per element `(B,)`.

    With unit-variance residuals the denoiser of the energy is D(x) = x - s^2 grad E = x / (1 + s^2) - s / sqrt(1 + s^2)
    grad_u e; weighted by (1 + s^2) / s^2, its squared error is that of grad_u e against (c_skip x - r) / c_out.
    """
    level = noise.draw(len(r), generator)
    s = level.unsqueeze(-1)
    x = r + s * torch.empty_like(r).normal_(generator=generator)
    spread = torch.sqrt(1 + s**2)
    target = (x / spread**2 - r) * spread / s
    return (energy.tilt_gradient(x / spread, context, level) - target).square().mean(-1)


def gaussian_nll(z: Tensor, mean: Tensor, log_std: Tensor, beta: float = 0.0) -> Tensor:
    """Negative log-likelihood of a diagonal Gaussian, mean over dimensions, `(B, D) -> (B,)`, without its constant.

    `beta` > 0 weights each dimension by its variance to that power, detached (Seitzer et al. 2022): beta 1 fits the mean as
    least squares does, and the spread all the same.
    """
    nll = 0.5 * ((z - mean) * torch.exp(-log_std)).square() + log_std
    if beta > 0:
        nll = nll * torch.exp(2 * beta * log_std).detach()
    return nll.mean(-1)


def contrastive_divergence(
    energy: Callable[[Tensor], Tensor], positive: Tensor, negative: Tensor, alpha: float
) -> tuple[Tensor, Logs]:
    """Algorithm 1 of paper 000: E(x+) - E(x-) with an L2 penalty on both energies; `negative` carries no gradient."""
    up, down = energy(positive), energy(negative.detach())
    gap = (up - down).mean()
    loss = gap + alpha * (up.square() + down.square()).mean()
    return loss, {"gap": gap.detach(), "energy_positive": up.detach().mean(), "energy_negative": down.detach().mean()}
