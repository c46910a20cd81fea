"""Every sampler by its settings: one call for all."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ebmtraj.errors import EbmtrajError
from ebmtraj.samplers.backends import Energy
from ebmtraj.samplers.langevin import Info, LangevinConfig, langevin
from ebmtraj.samplers.mcmc import HMCConfig, MALAConfig, hmc, mala
from ebmtraj.samplers.tempering import TemperingConfig, tempering

SamplerConfig = LangevinConfig | MALAConfig | HMCConfig | TemperingConfig
SAMPLERS: dict[type, Callable[..., tuple[Tensor, Info]]] = {
    LangevinConfig: langevin,
    MALAConfig: mala,
    HMCConfig: hmc,
    TemperingConfig: tempering,
}


def sample(
    energy: Energy,
    x: Tensor,
    config: SamplerConfig,
    *,
    context: Any = None,
    project: Callable[[Tensor], Tensor] | None = None,
    mask: Tensor | None = None,
    generator: torch.Generator,
) -> tuple[Tensor, Info]:
    """Sample exp(-E(x | context)) from `x`, shape `(B, *event)`, by the sampler whose settings these are.

    `energy` is any callable `(x, context) -> (B,)`. Returns the last state and `Info`. Raises `EbmtrajError` as they do.
    """
    if type(config) not in SAMPLERS:
        raise EbmtrajError(
            f"unknown sampler settings {type(config).__name__}; give one of {', '.join(cls.__name__ for cls in SAMPLERS)}"
        )
    return SAMPLERS[type(config)](energy, x, config, context=context, project=project, mask=mask, generator=generator)
