"""Whether chains have mixed: effective sample size, split R-hat, and a summary of what `Info` holds. Vehtari et al. 2021."""

from __future__ import annotations

import torch
from torch import Tensor

from ebmtraj.errors import EbmtrajError
from ebmtraj.samplers.langevin import Info


def autocovariance(states: Tensor) -> Tensor:
    """Biased autocovariance along the first dimension at every lag, `(K, ...) -> (K, ...)`."""
    size = len(states)
    centred = states - states.mean(0)
    spectrum = torch.fft.rfft(centred, n=2 * size, dim=0)
    return torch.fft.irfft(spectrum * spectrum.conj(), n=2 * size, dim=0)[:size] / size


def effective_sample_size(states: Tensor) -> Tensor:
    """How many independent draws the mean over steps and chains is worth, `(K, C, *event) -> (*event)`.

    Geyer's initial monotone sequence over the chains together, each split in two, as in Vehtari et al. 2021, section 3.2;
    chains that have not mixed lower it. Of a number that never changes it is not known: NaN. Raises `EbmtrajError` for fewer
    than 8 states of a chain.
    """
    split = split_chains(states.detach().double())
    steps, chains = split.shape[:2]
    covariance = autocovariance(split).mean(1)  # (K, *event)
    within = covariance[0] * steps / (steps - 1)
    between = split.mean(0).var(0) if chains > 1 else torch.zeros_like(within)
    total = within * (steps - 1) / steps + between
    rho = 1 - (within - covariance * steps / (steps - 1)) / total
    rho[0] = 1.0
    pairs = rho[: steps // 2 * 2].unflatten(0, (-1, 2)).sum(1)  # sums of an even and an odd lag: positive, falling
    falling = torch.cummin(torch.where(torch.cummin(pairs, 0).values > 0, pairs, 0.0), 0).values
    tau = (2 * falling.sum(0) - 1).clamp_min(1 / torch.log10(torch.tensor(float(steps * chains))))
    return torch.where(total > 0, steps * chains / tau, torch.nan)


def split_rhat(states: Tensor, *, rank: bool = True) -> Tensor:
    """Split R-hat, `(K, C, *event) -> (*event)`: near 1 where chains agree with each other and with their own other half.

    With `rank`, the greater of those of rank-normalised states and of their distances from the median (Vehtari et al. 2021,
    section 4); without, the classical one. Raises `EbmtrajError` for fewer than 8 states of a chain.
    """
    split = split_chains(states.detach().double())
    if not rank:
        return _rhat(split)
    folded = (split - split.flatten(0, 1).median(0).values).abs()
    return torch.maximum(_rhat(_rank_normal(split)), _rhat(_rank_normal(folded)))


def split_chains(states: Tensor) -> Tensor:
    """Each chain as two, `(K, C, *event) -> (K // 2, 2 C, *event)`; raises `EbmtrajError` for K below 8 or no chain."""
    if states.dim() < 2 or len(states) < 8 or states.shape[1] < 1:
        raise EbmtrajError(
            f"diagnostics: states have shape {tuple(states.shape)}; they need (K, C, *event) with K >= 8 and C >= 1"
        )
    half = len(states) // 2
    return torch.cat((states[:half], states[-half:]), dim=1)


def _rhat(split: Tensor) -> Tensor:
    steps = len(split)
    within = split.var(0).mean(0)
    between = split.mean(0).var(0)
    return torch.where(within > 0, ((steps - 1) / steps + between / within).sqrt(), torch.nan)


def _rank_normal(values: Tensor) -> Tensor:
    """Each number's normal quantile by its rank among all steps and chains; equal ones share the mean of theirs."""
    flat = values.flatten(0, 1)
    ordered = flat.sort(0).values.movedim(0, -1).contiguous()
    wanted = flat.movedim(0, -1).contiguous()
    low, high = (torch.searchsorted(ordered, wanted, right=right) for right in (False, True))
    rank = 0.5 * (low + high + 1).to(flat.dtype)
    return torch.special.ndtri((rank - 0.375) / (len(flat) + 0.25)).movedim(-1, 0).view(values.shape)


def energy_drift(energies: Tensor) -> Tensor:
    """Rise of the mean energy from the first to the last quarter of the steps, in standard deviations, `(K, B) -> ()`.

    Near 0 where chains began in equilibrium; where it is not, the first states were not samples of this energy. The
    deviation is that of the energies within the last quarter.
    """
    quarter = max(1, len(energies) // 4)
    first, last = energies[:quarter].double(), energies[-quarter:].double()
    return (last.mean() - first.mean()) / last.std().clamp_min(1e-30)


def summary(info: Info, states: Tensor | None = None) -> dict[str, float | None]:
    """What is known of a chain as plain numbers; None for what was not recorded.

    `states` (K, C, *event), those of `info` by default: the least and the median effective sample size over the entries, and
    the greatest split R-hat.
    """
    states = info.states if states is None else states
    out: dict[str, float | None] = dict.fromkeys(
        ("ess_min", "ess_median", "rhat_max", "acceptance", "step_size", "energy", "energy_drift", "energy_error")
    )
    out |= dict.fromkeys(("gradient_norm", "gradient_norm_max"))
    if states is not None:
        ess, rhat = effective_sample_size(states).flatten(), split_rhat(states).flatten()
        out |= {"ess_min": _plain(ess.nan_to_num(torch.inf).min()), "ess_median": _plain(ess.nanmedian())}
        out["rhat_max"] = _plain(rhat.nan_to_num(0.0).max())
    if info.acceptance is not None:
        out["acceptance"] = _plain(info.acceptance.mean())
    if info.step_size is not None:
        out["step_size"] = _plain(info.step_size.flatten()[0])
    if info.energies is not None:
        quarter = max(1, len(info.energies) // 4)
        out |= {"energy": _plain(info.energies[-quarter:].mean()), "energy_drift": _plain(energy_drift(info.energies))}
    if info.energy_error is not None:
        out["energy_error"] = _plain(info.energy_error[info.energy_error.isfinite()].abs().mean())
    if info.gradient_norm is not None:
        out |= {
            "gradient_norm": _plain(info.gradient_norm.mean()),
            "gradient_norm_max": _plain(info.gradient_norm.max()),
        }
    return out


def _plain(value: Tensor) -> float | None:
    number = float(value)
    return number if number == number and abs(number) != float("inf") else None
