"""Where chains start: drawn from many candidates by how well the energy likes them. Rubin 1987."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ebmtraj.errors import EbmtrajError
from ebmtraj.samplers.backends import Energy
from ebmtraj.samplers.checks import check_chain, check_energy, check_finite, name_of
from ebmtraj.samplers.langevin import frozen


def resample(
    energy: Energy,
    candidates: Tensor,
    log_density: Tensor,
    *,
    context: Any = None,
    temperature: float = 1.0,
    generator: torch.Generator,
) -> tuple[Tensor, Tensor]:
    """Start each chain at one of its candidates, by sampling-importance resampling (Rubin 1987).

    `candidates` (N, B, *event) were drawn from a proposal whose `log_density` (N, B) is given, up to a constant of each
    chain; candidate n of chain b is taken with a probability in proportion to exp(-E / temperature) over its density.
    Returns the starts `(B, *event)` and the effective number of candidates `(B,)`: where it is near 1, the proposal does not
    cover the energy. Raises `EbmtrajError` where shapes do not fit or a chain has no candidate of finite energy.
    """
    if candidates.dim() < 2 or log_density.shape != candidates.shape[:2] or not len(candidates):
        raise EbmtrajError(
            f"resample: candidates {tuple(candidates.shape)} and log_density {tuple(log_density.shape)}; they need "
            "(N, B, *event) and (N, B) with N >= 1"
        )
    if not temperature > 0:
        raise EbmtrajError(f"resample: temperature = {temperature}; it needs temperature > 0")
    check_chain(candidates[0], None, generator)
    with frozen(energy), torch.no_grad():
        energies = torch.stack([energy(x, context) for x in candidates])
    check_energy(energy, energies[0], candidates[0])
    log_weight = -energies / temperature - log_density
    if bool(log_weight.isnan().any()):
        check_finite(energy, "energy", torch.where(log_weight.isnan(), torch.nan, 0.0).sum(0))
    if bool((log_weight == -torch.inf).all(0).any()):
        chain = int((log_weight == -torch.inf).all(0).nonzero()[0])
        raise EbmtrajError(f"{name_of(energy)}: all candidates of chain {chain} have infinite energy; give others")
    noise = -torch.empty_like(log_weight).exponential_(generator=generator).log()  # Gumbel: the greatest sum is the draw
    chosen = (log_weight + noise).argmax(0)
    share = torch.softmax(log_weight, dim=0)
    return candidates[chosen, torch.arange(len(chosen), device=chosen.device)], 1 / share.square().sum(0)


def resample_tilt(
    tilt: Energy,
    draw: Callable[[], Tensor],
    candidates: int,
    *,
    context: Any = None,
    shared: bool = False,
    generator: torch.Generator,
) -> tuple[Tensor, Tensor]:
    """Sample base(x | context) exp(-tilt(x | context)) by sampling-importance resampling from the base itself.

    `draw` gives one draw of the base for each chain, `(B, *event)`, whose density need not be known: it cancels. It is
    called `candidates` times; 1 leaves the base as it is. `shared`: all chains have the same context, so each start may be
    any of all the candidates, with a far smaller bias. Returns and raises as `resample`; the effective number of shared
    candidates is over all of them. Raises `EbmtrajError` for fewer than one candidate, too.
    """
    if candidates < 1:
        raise EbmtrajError(f"resample: candidates = {candidates}; it needs 1 at least")
    with torch.no_grad():
        drawn = torch.stack([draw() for _ in range(candidates)])
    chains = drawn.shape[1]
    if candidates == 1:
        return drawn[0], torch.ones(chains, device=drawn.device)
    if not shared:
        even = torch.zeros(drawn.shape[:2], dtype=drawn.dtype, device=drawn.device)
        return resample(tilt, drawn, even, context=context, generator=generator)
    check_chain(drawn[0], None, generator)
    with frozen(tilt), torch.no_grad():
        energies = torch.stack([tilt(x, context) for x in drawn])
    check_energy(tilt, energies[0], drawn[0])
    check_finite(tilt, "energy", torch.where(energies.isnan(), torch.nan, 0.0).sum(0))
    share = torch.softmax(-energies.flatten(), dim=0)
    chosen = torch.multinomial(share, chains, replacement=True, generator=generator)
    return drawn.flatten(0, 1)[chosen], (1 / share.square().sum()).expand(chains)
