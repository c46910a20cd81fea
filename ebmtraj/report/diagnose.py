"""Whether a run's own draws are samples of its energy: exact chains from them, and what these say."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ebmtraj.datasets.store import Store
from ebmtraj.datasets.windows import Batch, Transitions, spread_index
from ebmtraj.device import generator
from ebmtraj.errors import EbmtrajError
from ebmtraj.report.assess import load_run
from ebmtraj.report.style import GREY, label_axis, look, new_figure, save
from ebmtraj.samplers.backends import Energy
from ebmtraj.samplers.diagnostics import autocovariance, effective_sample_size, split_rhat
from ebmtraj.samplers.langevin import Info
from ebmtraj.samplers.mcmc import MALAConfig, mala
from ebmtraj.trajectories.registry import ENERGIES
from ebmtraj.trajectories.transition import PairModel, TiltedModel


@dataclass(frozen=True)
class DiagnoseConfig:
    """How long and how many the exact chains are."""

    contexts: int = 32  # transitions of the split, evenly spread over it
    chains: int = 4  # of each
    warmup: int = 100  # steps in which the step size adapts
    steps: int = 400  # after that
    level: float | None = None  # noise level of an energy that has them; None: the lowest of its ladder

    def __post_init__(self) -> None:
        if self.contexts < 1 or self.chains < 2 or self.warmup < 1 or self.steps < 16:
            raise EbmtrajError(
                f"diagnose: contexts = {self.contexts}, chains = {self.chains}, warmup = {self.warmup}, "
                f"steps = {self.steps}; it needs contexts >= 1, chains >= 2, warmup >= 1 and steps >= 16"
            )


@dataclass(frozen=True)
class Probe:
    """A run's energy at some contexts, in its own coordinates: what it drew there, and what happened."""

    energy: Energy
    context: Any
    drawn: Tensor  # (B, D)
    true: Tensor  # (B, D)
    project: Callable[[Tensor], Tensor]
    level: float | None
    own_step: float | None  # of the run's own Langevin steps at this level, where it takes any


@dataclass(frozen=True)
class Diagnosis:
    """What was found, and the histories that a picture shows."""

    results: dict[str, Any]
    energies: Tensor  # (K,) mean over chains, less that of the last quarter
    true: float  # the same of the data
    autocorrelation: Tensor  # (lags, entries), mean over contexts


class AtLevel:
    """A noise-conditional energy at one level."""

    def __init__(self, energy: Any, level: float, device: torch.device) -> None:
        self.energy, self.level = energy, torch.tensor(level, device=device)

    def __call__(self, x: Tensor, context: Any) -> Tensor:
        """Energies `(B,)`."""
        out: Tensor = self.energy(x, context, self.level)
        return out

    def gradient(self, x: Tensor, context: Any) -> Tensor:
        """Their gradient `(B, D)`."""
        out: Tensor = self.energy.gradient(x, context, self.level)
        return out


@torch.no_grad()
def diagnose(path: Path, store: Store, config: DiagnoseConfig, *, split: str, seed: int, device: torch.device) -> Diagnosis:
    """Set out from a run's own draws of held-out transitions and follow its energy by MALA, which is exact.

    Where the draws are samples of the energy, its mean stays where it is. Raises `EbmtrajError` where the run has no energy
    or does not fit the store, and `DivergedError` where the energy is not finite.
    """
    began = time.perf_counter()
    model, header = load_run(path, store, device)
    if not isinstance(model, (PairModel, TiltedModel)):
        raise EbmtrajError(
            f"run {path}: model {header['model']!r} has no energy to follow; diagnose one of {', '.join(ENERGIES)}"
        )
    data = Transitions.load(store, split, actions=model.actions, history=model.history, device=device)
    index = spread_index(data, config.contexts)
    noise = generator(seed, device)
    probe = probe_of(model, data.at(index.repeat_interleave(config.chains)), config.level, noise)
    # a short warm-up from the draws themselves finds the step; the chains that count start from them again
    _, warm = mala(
        probe.energy,
        probe.drawn,
        MALAConfig(steps=1, warmup=config.warmup, step_size=0.1),
        context=probe.context,
        project=probe.project,
        generator=noise,
    )
    assert warm.step_size is not None
    step = float(warm.step_size)
    _, info = mala(
        probe.energy,
        probe.drawn,
        MALAConfig(steps=config.steps, step_size=step, record=True, keep=1),
        context=probe.context,
        project=probe.project,
        generator=noise,
    )
    facts = {
        "run": str(path),
        "data": str(store.path),
        "model": model.name,
        "actions": model.actions,
        "split": split,
        "seed": seed,
        "contexts": len(index),
        "chains": config.chains,
        "steps": config.steps,
        "level": probe.level,
    }
    found = _found(info, probe, config.chains, step, noise)
    seconds = round(time.perf_counter() - began, 1)
    return Diagnosis({**facts, **found.results, "seconds": seconds}, found.energies, found.true, found.autocorrelation)


def probe_of(model: PairModel | TiltedModel, batch: Batch, level: float | None, noise: torch.Generator) -> Probe:
    """The energy of a model at these transitions, as its sampler sees it."""
    following = model.sample_next(batch.state, batch.action, noise, batch.past)
    if isinstance(model, PairModel):
        if level is not None:
            raise EbmtrajError(f"--level {level}: model {model.name!r} has no noise levels; drop it")
        drawn, true = (
            model.pair(batch.state, batch.action, then)[:, model.context_size :] for then in (following, batch.next_state)
        )
        context = model.energy.prepare(model.pair(batch.state, batch.action, batch.state)[:, : model.context_size])
        reach = 2 * model.config.reach
        sampler = model.config.sampler
        own = sampler.step_size if sampler.noise is None else None
        return Probe(model.energy, context, drawn, true, lambda x: x.clamp(-reach, reach), None, own)
    ladder = model.config.sampler.ladder
    level = level if level is not None else (0.02 if ladder is None else ladder.sigma_min)
    if not level > 0:
        raise EbmtrajError(f"--level {level}: a noise level must be above 0")
    seen = model.seen(batch.state, batch.action, batch.past)
    base = model.tilted.base(seen)
    drawn, true = (
        model.tilted.residual(model.normaliser.delta(batch.state, then), base) for then in (following, batch.next_state)
    )
    lowest = 0.0 if ladder is None else min(ladder.sigma_min, level)
    drawn = drawn + (level**2 - lowest**2) ** 0.5 * torch.empty_like(drawn).normal_(generator=noise)
    true = true + level * torch.empty_like(true).normal_(generator=noise)  # so that both are of this level
    bound = model.tilted.bound * (1 + level)
    own = model.config.sampler.step_size * level**2 if model.config.sampler.steps else None
    energy = AtLevel(model.tilted.tilt, level, drawn.device)
    context = model.tilted.prepare(seen, base)
    return Probe(energy, context, drawn, true, lambda x: x.clamp(-bound, bound), level, own)


def _found(info: Info, probe: Probe, chains: int, step: float, noise: torch.Generator) -> Diagnosis:
    """Numbers of the chains; energies are compared within each context, as between two they say nothing."""
    assert info.energies is not None
    assert info.states is not None
    assert info.acceptance is not None
    assert info.gradient_norm is not None
    assert info.energy_error is not None
    steps = len(info.energies)
    energies = info.energies.double().view(steps, -1, chains)
    late = energies[-(steps // 4) :]
    level = late.mean((0, 2), keepdim=True)
    deviation = float((late - level).std().clamp_min(1e-30))
    true = probe.energy(probe.true, probe.context).double().view(1, -1, chains) - level
    course = (energies - level).mean((1, 2))
    states = info.states.view(steps, -1, chains, info.states.shape[-1]).transpose(1, 2)  # (K, C, N, D)
    ess, rhat = effective_sample_size(states), split_rhat(states)
    ess, rhat = ess[ess.isfinite()] / (steps * chains), rhat[rhat.isfinite()]
    results = {
        "acceptance": float(info.acceptance.mean()),
        "step_size": step,
        "own_step": None if probe.own_step is None else _own_step(probe, noise),
        "energy_error": float(info.energy_error[info.energy_error.isfinite()].abs().mean()),
        "gradient_norm": float(info.gradient_norm.mean()),
        "gradient_norm_max": float(info.gradient_norm.max()),
        "energy_deviation": deviation,
        "energy_of_draws": float(course[0]),
        "energy_of_draws_sd": float(course[0]) / deviation,
        "energy_of_data": float(true.mean()),
        "energy_of_data_sd": float(true.mean()) / deviation,
        "ess_per_step_median": float(ess.median()) if len(ess) else None,
        "ess_per_step_min": float(ess.min()) if len(ess) else None,
        "rhat_median": float(rhat.median()) if len(rhat) else None,
        "rhat_max": float(rhat.max()) if len(rhat) else None,
        "rhat_above_1.1": float((rhat > 1.1).double().mean()) if len(rhat) else None,
    }
    correlation = autocovariance(states.double())
    correlation = (correlation / correlation[:1].clamp_min(1e-30)).mean((1, 2))[: steps // 2]
    return Diagnosis(results, course, float(true.mean()), correlation)


def _own_step(probe: Probe, noise: torch.Generator) -> dict[str, float]:
    """How often Metropolis would accept the run's own Langevin steps, which it takes unasked."""
    assert probe.own_step is not None
    _, info = mala(
        probe.energy,
        probe.drawn,
        MALAConfig(steps=20, step_size=probe.own_step),
        context=probe.context,
        project=probe.project,
        generator=noise,
    )
    assert info.acceptance is not None
    return {"step_size": probe.own_step, "acceptance": float(info.acceptance.mean())}


def notes(results: dict[str, Any]) -> list[str]:
    """What the numbers mean, for a person."""
    lines = []
    gap = results["energy_of_draws_sd"]
    if abs(gap) < 0.25:
        lines.append("the run's draws have the energy of its exact chains: they look like samples of it")
    else:
        side = "above" if gap > 0 else "below"
        lines.append(
            f"the run's draws lie {abs(gap):.2f} deviations {side} the energy of its exact chains: its sampler is not in "
            "equilibrium with it"
        )
    gap = results["energy_of_data_sd"]
    if abs(gap) >= 0.25:
        lines.append(
            f"the data lie {abs(gap):.2f} deviations {'above' if gap > 0 else 'below'} it: the energy is not theirs"
        )
    if results["rhat_above_1.1"] is not None and results["rhat_above_1.1"] > 0.05:
        lines.append(
            f"{results['rhat_above_1.1']:.0%} of the entries have not mixed (R-hat above 1.1): give more --steps before "
            "trusting the rest"
        )
    own = results["own_step"]
    if own is not None and own["acceptance"] < 0.5:
        lines.append(
            f"Metropolis would accept {own['acceptance']:.0%} of the run's own Langevin steps: their size biases its draws"
        )
    return lines


def diagnosis_figure(found: Diagnosis, path: Path) -> Path:
    """Draw the energy over the exact chains' steps beside the data's, and how fast the chains forget, as PNG."""
    figure, (left, right) = new_figure(2)
    own = look(found.results["model"])
    left.plot(found.energies.cpu().numpy(), color=own.color, linewidth=1.6, label="chains from the run's draws")
    left.axhline(0.0, color=GREY, linewidth=1.0, label="their last quarter")
    left.axhline(found.true, color="#222222", linewidth=1.4, linestyle=(0, (5, 1.5)), label="data")
    label_axis(left, "Energy along exact chains", "MALA step", "mean energy, nats")
    left.legend(fontsize=10, frameon=False)
    curves = found.autocorrelation.cpu()
    right.plot(curves.median(1).values.numpy(), color=own.color, linewidth=1.8, label="median entry")
    slowest = curves[: max(2, len(curves) // 4)].sum(0).argmax()
    right.plot(curves[:, slowest].numpy(), color=own.color, linewidth=1.4, linestyle=(0, (1.2, 1.2)), label="slowest entry")
    right.axhline(0.0, color=GREY, linewidth=1.0)
    label_axis(right, "How fast chains forget", "lag, steps", "autocorrelation")
    right.legend(fontsize=10, frameon=False)
    return save(figure, path)
