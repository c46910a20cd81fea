"""Objectives that train any energy: improved contrastive divergence, noise contrast, density ratio, score matching.

An energy is anything that gives `(x (B, *event), context) -> (B,)` and is differentiable in x and its own parameters. Paper
003; Du et al. 2021; Gutmann and Hyvärinen 2010; Vincent 2011.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from ebmtraj.errors import EbmtrajError
from ebmtraj.samplers.backends import Energy, value_and_gradient_of
from ebmtraj.samplers.checks import check_energy, check_scale, rows
from ebmtraj.samplers.langevin import LangevinConfig, langevin
from ebmtraj.training.losses import Logs


def slope_with_graph(energy: Energy, x: Tensor, context: Any = None) -> Tensor:
    """The input gradient of an energy as a function of its parameters, `(B, *event)`."""
    closed = getattr(energy, "gradient", None)
    if closed is not None:
        out: Tensor = closed(x, context)
        return out
    if not x.requires_grad:
        x = x.detach().requires_grad_(True)
    value = energy(x, context)
    check_energy(energy, value, x)
    return torch.autograd.grad(value.sum(), x, create_graph=True)[0]


def improved_contrastive_divergence(
    energy: Energy,
    positive: Tensor,
    start: Tensor,
    config: LangevinConfig,
    *,
    context: Any = None,
    bank: Tensor | None = None,
    alpha: float = 0.0,
    weight: float = 1.0,
    entropy_weight: float = 1.0,
    generator: torch.Generator,
) -> tuple[Tensor, Logs, Tensor]:
    """Contrastive divergence with the KL term that it leaves out; the loss, logs, and the negatives `(B, *event)`.

    Chains run from `start` `(B, *event)` for `config.steps` steps, the last of which carries gradients to the parameters:
    L = E(x+) - E(sg x-) + weight [E(x-; sg theta) - entropy_weight H(x-)] (Du et al. 2021; paper 003, L_Full). The
    entropy H is estimated from nearest neighbours, among the negatives or in a `bank` `(N, *event)` of past ones. `alpha`
    weights the L2 penalty on both energies. Raises `EbmtrajError` for a config without steps or with a ladder.
    """
    if config.steps < 1 or config.ladder is not None:
        raise EbmtrajError(
            f"improved contrastive divergence: steps = {config.steps}, ladder = {config.ladder}; "
            "it needs steps >= 1 and no ladder"
        )
    before = dataclasses.replace(config, steps=config.steps - 1)
    x, _ = langevin(energy, start, before, context=context, generator=generator)
    negative = last_step(energy, x, config, context=context, generator=generator)
    up, down = energy(positive, context), energy(negative.detach(), context)
    check_energy(energy, up, positive)
    gap = (up - down).mean()
    fooled = held_energy(energy, negative, context).mean()
    entropy = nearest_neighbour_entropy(negative, bank)
    penalty = alpha * (up.square() + down.square()).mean() if alpha else 0.0
    loss = gap + weight * (fooled - entropy_weight * entropy) + penalty
    logs = {"gap": gap, "energy_positive": up.mean(), "energy_negative": down.mean(), "entropy": entropy}
    return loss, {name: value.detach() for name, value in logs.items()}, negative.detach()


def last_step(
    energy: Energy, x: Tensor, config: LangevinConfig, *, context: Any = None, generator: torch.Generator
) -> Tensor:
    """One Langevin step from a place that is given, as a function of the energy's parameters, `(B, *event)`."""
    x, scale = x.detach(), check_scale(x, config.scale)
    slope = slope_with_graph(energy, x, context)
    if config.clip is not None:
        slope = slope.clamp(-config.clip, config.clip)
    epsilon = torch.empty_like(x).normal_(generator=generator)
    if config.noise is None:
        step = config.step_size
        return x - 0.5 * step * scale**2 * slope + (step * config.temperature) ** 0.5 * scale * epsilon
    return x - config.step_size * scale**2 * slope + config.noise * scale * epsilon


def held_energy(energy: Energy, x: Tensor, context: Any = None) -> Tensor:
    """Energies `(B,)` whose gradient goes to x alone: the parameters are held."""
    with torch.no_grad():
        value, slope = value_and_gradient_of(energy)(x.detach(), context)
    return value + rows((x - x.detach()) * slope).sum(1)


def nearest_neighbour_entropy(x: Tensor, bank: Tensor | None = None) -> Tensor:
    """Entropy in nats of what `x` `(B, *event)` was drawn from, `()`, differentiable in x.

    Kozachenko and Leonenko 1987: H = digamma(N) - digamma(1) + log V_D + D mean log rho, rho being the distance to the
    nearest other row or, with a `bank` `(N, *event)`, to the nearest of its rows. Raises `EbmtrajError` for too few rows.
    """
    points = rows(x)
    others = points if bank is None else rows(bank.detach())
    count, size = len(others) - (bank is None), points.shape[1]
    if count < 1 or len(points) < 1:
        raise EbmtrajError(f"entropy: {len(points)} rows and {count} others; it needs one of each at least")
    distance = torch.cdist(points, others)
    if bank is None:
        distance = distance + torch.diag(torch.full((len(points),), torch.inf, dtype=x.dtype, device=x.device))
    nearest = distance.argmin(1)  # then again for the nearest alone, whose gradient is that of a plain distance
    rho = (points - others[nearest]).square().sum(1).clamp_min(torch.finfo(x.dtype).tiny).sqrt()
    ball = 0.5 * size * math.log(math.pi) - math.lgamma(0.5 * size + 1)
    harmonic = float(torch.digamma(torch.tensor(count + (bank is None), dtype=torch.float64))) + 0.5772156649015329
    return harmonic + ball + size * rho.log().mean()


def noise_contrastive(
    energy: Energy,
    positive: Tensor,
    noise: Tensor,
    log_density_positive: Tensor,
    log_density_noise: Tensor,
    *,
    log_z: Tensor | float = 0.0,
    context: Any = None,
    noise_context: Any = None,
) -> tuple[Tensor, Logs]:
    """Noise-contrastive estimation (Gutmann and Hyvärinen 2010): tell data `(B, *event)` from noise `(N, *event)`.

    The noise's normalised log density is given at both, `log_density_positive` `(B,)` and `log_density_noise` `(N,)`;
    `log_z` is the energy's log normaliser, a parameter that is learnt along, or 0 where the energy is to learn it. At the
    optimum exp(-E - log_z) is the density of the `positive`. Raises `EbmtrajError` where energies and log densities differ
    in shape.
    """
    up, down = energy(positive, context), energy(noise, noise_context if noise_context is not None else context)
    check_energy(energy, up, positive)
    check_energy(energy, down, noise)
    for name, given, wanted in (("positive", log_density_positive, up), ("noise", log_density_noise, down)):
        if given.shape != wanted.shape:
            raise EbmtrajError(
                f"noise contrast: log_density_{name} has shape {tuple(given.shape)}; it needs {tuple(wanted.shape)}"
            )
    ratio = math.log(len(noise) / len(positive))  # of the priors
    real = -up - log_z - log_density_positive - ratio
    false = -down - log_z - log_density_noise - ratio
    loss = F.softplus(-real).mean() + math.exp(ratio) * F.softplus(false).mean()
    right = 0.5 * ((real > 0).float().mean() + (false < 0).float().mean())
    return loss, {"accuracy": right.detach(), "energy_positive": up.detach().mean(), "energy_noise": down.detach().mean()}


def density_ratio(
    energy: Energy, positive: Tensor, base: Tensor, *, context: Any = None, base_context: Any = None
) -> tuple[Tensor, Logs]:
    """Learn the tilt of a base: at the optimum exp(-E) is the data's density over the base's.

    Noise contrast of data `positive` `(B, *event)` whose noise is the base's own samples `(N, *event)` and whose density
    need not be known.
    """
    return noise_contrastive(
        energy,
        positive,
        base,
        torch.zeros(len(positive), dtype=positive.dtype, device=positive.device),
        torch.zeros(len(base), dtype=base.dtype, device=base.device),
        context=context,
        noise_context=base_context,
    )


def score_matching(energy: Energy, x: Tensor, level: float, *, context: Any = None, generator: torch.Generator) -> Tensor:
    """Denoising score matching of any energy at one noise level (Vincent 2011), per element `(B,)`.

    Squared error of level grad E(x + level z) against z, mean over the event: at the optimum exp(-E) is the data's density
    under noise of this level. Raises `EbmtrajError` for a level that is not above 0.
    """
    if not level > 0:
        raise EbmtrajError(f"score matching: level = {level}; it needs level > 0")
    z = torch.empty_like(x).normal_(generator=generator)
    slope = slope_with_graph(energy, x + level * z, context)
    return rows((level * slope - z).square()).mean(1)
