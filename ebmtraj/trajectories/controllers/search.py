"""Searches over action sequences by sampling: the cross-entropy method and path integrals, for B problems at once.

De Boer et al. 2005; Williams et al. 2017; Pinneri et al. 2020.
"""

from __future__ import annotations

import torch
from torch import Tensor


def coloured_noise(shape: tuple[int, ...], smooth: float, generator: torch.Generator, device: torch.device) -> Tensor:
    """Noise `(..., T, A)` of unit variance whose correlation from step to step is `smooth`, 0 for white noise."""
    noise = torch.empty(shape, device=device).normal_(generator=generator)
    for t in range(1, shape[-2]):
        noise[..., t, :] = smooth * noise[..., t - 1, :] + (1 - smooth**2) ** 0.5 * noise[..., t, :]
    return noise


def best(actions: Tensor, cost: Tensor, count: int = 1) -> tuple[Tensor, Tensor]:
    """The `count` of least cost, best first: `(B, N, T, A), (B, N) -> (B, count, T, A), (B, count)`."""
    least, order = cost.sort(dim=1, stable=True)
    rows = torch.arange(len(actions), device=actions.device).unsqueeze(1)
    return actions[rows, order[:, :count]], least[:, :count]


def elite_moments(
    elites: Tensor, mean: Tensor, std: Tensor, momentum: float, least: float | Tensor
) -> tuple[Tensor, Tensor]:
    """The cross-entropy method's next Gaussian: moments of the elites `(B, K, T, A)`, `momentum` of the last ones kept.

    `mean` and `std` are `(B, T, A)`; the spread does not fall below `least` (de Boer et al. 2005, section 4, smoothed).
    """
    mean = momentum * mean + (1 - momentum) * elites.mean(1)
    std = momentum * std + (1 - momentum) * elites.std(1, unbiased=False)
    return mean, torch.maximum(std, torch.as_tensor(least, dtype=std.dtype, device=std.device))


def path_integral(actions: Tensor, cost: Tensor, temperature: float) -> Tensor:
    """The mean of `actions` `(B, N, T, A)` with weights proportional to exp(-cost / lambda), `(B, T, A)`.

    That is the update of model predictive path integral control (Williams et al. 2017, equation 26), with lambda the
    `temperature` times the costs' standard deviation, so that one setting serves tasks of any unit.
    """
    scale = temperature * cost.std(dim=1, keepdim=True, unbiased=False).clamp_min(1e-12)
    weights = torch.softmax(-(cost - cost.amin(dim=1, keepdim=True)) / scale, dim=1)
    return (weights[:, :, None, None] * actions).sum(1)
