"""The one Langevin core: every application is this chain on another energy. Paper 000, equation 1; Welling and Teh 2011."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from ebmtraj.errors import DivergedError, EbmtrajError
from ebmtraj.samplers.analytic import PlainGradient
from ebmtraj.samplers.anneal import Ladder, predict
from ebmtraj.samplers.backends import Backend, Energy, chain_gradient, check_backend, laid_out
from ebmtraj.samplers.blocks import BLOCKS, Step
from ebmtraj.samplers.checks import check_chain, check_finite, check_scale, name_of, rows


@dataclass(frozen=True)
class LangevinConfig:
    """Settings of the chain; all samplers of the package are settings of this one.

    Raises `EbmtrajError` where a number is out of its range, and for `noise` beside a ladder.
    """

    steps: int = 60  # Langevin steps; with a ladder, corrector steps at each level
    step_size: float = 0.01  # lambda of paper 000, equation 1
    noise: float | None = None  # None: proper, tied to the step; a number: the relaxed noise of the papers' code (std)
    temperature: float = 1.0  # of the proper chain: samples exp(-E / temperature)
    cooled: float | None = None  # with a ladder: the level up to which the temperature holds, 1 above; None: at all levels
    scale: tuple[float, ...] | None = None  # preconditioner: a length an entry of the event, squared into step and noise
    clip: float | None = None  # bound on each entry of the gradient
    ladder: Ladder | None = None  # annealed noise levels for an energy that takes a level
    backend: Backend = "auto"  # how the gradient is computed, see `backends`
    record: bool = False  # keep the energy and gradient norm of each step in Info
    keep: int = 0  # keep every so manieth state in Info; 0: none

    def __post_init__(self) -> None:
        if self.keep < 0:
            raise EbmtrajError(f"sampler: keep = {self.keep}; it needs keep >= 0")
        if self.steps < 0 or not self.step_size > 0 or self.temperature < 0 or (self.noise is not None and self.noise < 0):
            raise EbmtrajError(
                f"sampler: steps = {self.steps}, step_size = {self.step_size}, temperature = {self.temperature}, "
                f"noise = {self.noise}; steps, temperature and noise must be >= 0 and step_size > 0"
            )
        if (self.clip is not None and self.clip <= 0) or (self.scale is not None and min(self.scale, default=1.0) <= 0):
            raise EbmtrajError(f"sampler: clip = {self.clip}, scale = {self.scale}; both must be above 0")
        if self.cooled is not None and (self.ladder is None or not self.cooled > 0):
            raise EbmtrajError(f"sampler: cooled = {self.cooled}; it is a level above 0 of a ladder")
        if self.ladder is not None and self.noise is not None:
            raise EbmtrajError(f"sampler: noise = {self.noise} does not go with a ladder, whose steps set their own noise")


class Info(NamedTuple):
    """What is known of a chain when it ends; histories are None unless `record` was set, states unless `keep` was."""

    energy: Tensor | None  # (B,) at the last state
    energies: Tensor | None  # (K, B) before each step
    gradient_norm: Tensor | None  # (K, B) before each step, after mask and clip
    acceptance: Tensor | None  # (B,) share of accepted proposals; None where nothing is ever rejected
    energy_error: Tensor | None = None  # (K, B) Hamiltonian after less before each proposal's leapfrog steps
    states: Tensor | None = None  # (K // keep, B, *event) every `keep`-th state
    step_size: Tensor | None = None  # () or one a temperature: what a warm-up settled at
    swaps: Tensor | None = None  # (R - 1,) share of accepted swaps between neighbouring temperatures


def langevin(
    energy: Energy,
    x: Tensor,
    config: LangevinConfig,
    *,
    context: Any = None,
    project: Callable[[Tensor], Tensor] | None = None,
    mask: Tensor | None = None,
    generator: torch.Generator,
) -> tuple[Tensor, Info]:
    """Sample exp(-E(x | context)) by Langevin dynamics from `x`, shape `(B, *event)`.

    Proper (`noise=None`): x <- x - step/2 M grad E + N(0, step T M), with M the squared `scale` (paper 000, equation 1;
    Welling and Teh 2011). Relaxed: x <- x - step M grad E + N(0, noise^2 M), the setting of the papers' code. With a
    `ladder`, each level is entered by a predictor step of the probability flow and corrected by `steps` proper steps
    whose size grows with the level's square. `project` is applied after every step (a clamp, a unit quaternion). Where
    `mask` (broadcastable to x) is 0, x keeps its value. Noise comes from `generator` alone.

    Returns the last state and `Info`. Gradients never flow through the chain, and the energy's parameters stay frozen.
    Raises `EbmtrajError` for an unknown backend, `analytic` on an energy without a `gradient`, an energy, mask or generator
    that does not fit x, and `DivergedError` that names chain and step where an energy or gradient is not finite.
    """
    check_chain(x, mask, generator)
    noise = generator.get_state()
    # A gradient that is not finite makes x so for good, unless something bounds x; then all gradients are summed up.
    bounded = config.clip is not None or project is not None
    seen = torch.zeros_like(x) if bounded else None
    out = _chain(energy, x, config, context, project, mask, generator, None if seen is None else seen.add_)
    if not bool((out[0] if seen is None else seen).isfinite().all()):
        _find_fault(energy, x, config, context, project, mask, generator, noise)
    for k, energies in enumerate(() if out[1].energies is None else (*out[1].energies, out[1].energy)):
        check_finite(energy, "energy", energies, k)
    return out


def _find_fault(
    energy: Energy,
    x: Tensor,
    config: LangevinConfig,
    context: Any,
    project: Callable[[Tensor], Tensor] | None,
    mask: Tensor | None,
    generator: torch.Generator,
    noise: Tensor,
) -> None:
    """Run a chain again with the same noise, and look at every step; raises `DivergedError`."""
    count = -1

    def look(g: Tensor) -> None:
        nonlocal count
        count += 1
        check_finite(energy, "gradient", g, count, "step" if config.ladder is None else "gradient evaluation")

    generator.set_state(noise)
    check_finite(energy, "state", x)
    plain = "auto" if config.backend in ("compiled", "cuda_graph") else config.backend
    last, _ = _chain(energy, x, dataclasses.replace(config, backend=plain), context, project, mask, generator, look)
    check_finite(energy, "state", last, config.steps)
    raise DivergedError(
        f"{name_of(energy)}: a gradient was not finite with backend {config.backend!r}, and all are with {plain!r}; use that"
    )


def _chain(
    energy: Energy,
    x: Tensor,
    config: LangevinConfig,
    context: Any,
    project: Callable[[Tensor], Tensor] | None,
    mask: Tensor | None,
    generator: torch.Generator,
    watch: Callable[[Tensor], Any] | None,
) -> tuple[Tensor, Info]:
    """The chain itself; `watch` is shown each gradient before it is clipped."""
    start, scale = x.detach(), check_scale(x, config.scale)
    held = None if mask is None else mask.bool()
    check_backend(energy, config.backend)
    trail = _Trail(config, energy, context)
    push, noise = torch.empty_like(start), torch.empty_like(start)
    free = project is None and held is None and not config.keep  # then nobody else holds x, and it moves where it lies

    def settle(new: Tensor) -> Tensor:
        if project is not None:
            new = project(new)
        return new if held is None else torch.where(held, new, start)

    def slope(x: Tensor, level: Tensor | None) -> Tensor:
        g = gradient(x, context) if level is None else gradient(x, context, level)
        if held is not None:
            g = torch.where(held, g, 0.0)  # so that the predictor's trial point holds the same values, too
        if watch is not None:
            watch(g)
        return g if config.clip is None else g.clamp(-config.clip, config.clip)

    def step(x: Tensor, level: Tensor | None, drift: Tensor, spread: Tensor) -> Tensor:
        """x - drift grad E + spread epsilon"""
        g = slope(x, level)
        trail.before(x, g, level)
        torch.mul(g, drift, out=push)
        new = x.sub_(push) if free else x - push
        new = settle(new.add_(noise.normal_(generator=generator).mul_(spread)))
        trail.after(new)
        return new

    with frozen(energy), torch.no_grad(), laid_out(energy, config.backend, start, context):
        x = settle(start)
        x = x.clone() if free else x
        level: Tensor | None = None
        gradient = chain_gradient(energy, config.backend, x, context, *([] if config.ladder is None else [x]))
        if config.ladder is None:
            drift, spread = sizes(config, scale, 1.0, config.temperature)
            done = 0
            if config.backend in BLOCKS and not (config.record or config.keep):
                alike = Step(energy, context, drift, spread, config.clip, project, held, start, watch)
                x, done = BLOCKS[config.backend](alike, x, config.steps, generator)
            if (
                free
                and isinstance(gradient, PlainGradient)
                and config.clip is None
                and not config.record
                and scale.dim() == 0
            ):
                far, wide = float(drift), float(spread)  # the last product of a gradient adds to x
                for _ in range(config.steps - done):
                    gradient.descend(x, far)
                    x.add_(noise.normal_(generator=generator), alpha=wide)
            else:
                for _ in range(config.steps - done):
                    x = step(x, None, drift, spread)
        else:
            ladder, sigmas = config.ladder, config.ladder.sigmas(x.device)
            for k in range(ladder.levels):
                level = sigmas[k]
                if k > 0 and ladder.predictor != "none":
                    x = settle(predict(slope, x, sigmas[k - 1], level, ladder.predictor))
                if config.steps:
                    drift, spread = sizes(config, scale, level**2, _temperature(config, level))
                for _ in range(config.steps):
                    x = step(x, level, drift, spread)
        last = evaluate(energy, x, context, level) if config.record else None
    return x, trail.info(last)


def _temperature(config: LangevinConfig, level: Tensor) -> Tensor | float:
    """The temperature at a noise level."""
    if config.cooled is None:
        return config.temperature
    return torch.where(level > config.cooled, 1.0, config.temperature)


def sizes(
    config: LangevinConfig, scale: Tensor, growth: Tensor | float, temperature: Tensor | float
) -> tuple[Tensor, Tensor]:
    """What multiplies gradient and noise in a step, each `()` or `(*event,)` as `scale`.

    `growth` is a level's square, `temperature` a number or `()`.
    """
    if config.noise is None:
        size = config.step_size * growth
        return 0.5 * size * scale**2, (size * temperature) ** 0.5 * scale
    return config.step_size * growth * scale**2, config.noise * scale


class _Trail:
    """What is kept of a chain's steps, if anything."""

    def __init__(self, config: LangevinConfig, energy: Energy, context: Any) -> None:
        self.config, self.energy, self.context, self.done = config, energy, context, 0
        self.energies: list[Tensor] = []
        self.norms: list[Tensor] = []
        self.states: list[Tensor] = []

    def before(self, x: Tensor, g: Tensor, level: Tensor | None) -> None:
        if self.config.record:
            self.energies.append(evaluate(self.energy, x, self.context, level))
            self.norms.append(rows(g).norm(dim=1))

    def after(self, x: Tensor) -> None:
        self.done += 1
        if self.config.keep and self.done % self.config.keep == 0:
            self.states.append(x)

    def info(self, last: Tensor | None) -> Info:
        return Info(
            energy=last,
            energies=torch.stack(self.energies) if self.energies else None,
            gradient_norm=torch.stack(self.norms) if self.norms else None,
            acceptance=None,
            states=torch.stack(self.states) if self.states else None,
        )


def evaluate(energy: Energy, x: Tensor, context: Any, level: Tensor | None) -> Tensor:
    """The energy at x, `(B, *event) -> (B,)`, with its noise level where there is one."""
    return energy(x, context) if level is None else energy(x, context, level)


@contextlib.contextmanager
def frozen(energy: Energy) -> Iterator[None]:
    """Freeze a module's parameters and materialise its parametrised weights (spectral norm) once for a whole chain."""
    if not isinstance(energy, nn.Module):
        yield
        return
    trainable = [p for p in energy.parameters() if p.requires_grad]
    awake = [module for module in energy.modules() if module.training]
    for p in trainable:
        p.requires_grad_(False)
    for module in awake:
        module.training = False  # no power iteration inside the chain
    try:
        with parametrize.cached():
            yield
    finally:
        for p in trainable:
            p.requires_grad_(True)
        for module in awake:
            module.training = True
