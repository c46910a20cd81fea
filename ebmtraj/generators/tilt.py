"""Learning and sampling the tilt of a trained generator, which stays as it is (paper 004)."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor

from ebmtraj.device import weights_from
from ebmtraj.energies.latent import LatentEnergy, ViewEnergy
from ebmtraj.errors import EbmtrajError
from ebmtraj.generators.data import EventBatch, Events
from ebmtraj.generators.model import Generator
from ebmtraj.samplers.langevin import LangevinConfig
from ebmtraj.samplers.mcmc import MALAConfig
from ebmtraj.samplers.registry import sample
from ebmtraj.samplers.start import resample_tilt
from ebmtraj.training.losses import contrastive_divergence
from ebmtraj.training.objectives import density_ratio
from ebmtraj.training.trainable import Stage, Trainable

Objective = Literal["ratio", "likelihood", "both"]
On = Literal["auto", "latent", "event"]
Method = Literal["langevin", "mala"]
BATCH = 512  # latents that are sampled at a time, which bounds memory


@dataclass(frozen=True)
class TiltConfig:
    """The energy, how it is learnt, and how it is sampled.

    Raises `EbmtrajError` for a setting out of its range, and for chains with a ladder.
    """

    objective: Objective = "ratio"  # density ratio, maximum likelihood by short chains, or the first and then the second
    on: On = "auto"  # what the energy looks at: auto is the generator's own view
    width: int = 256  # units of a hidden layer
    depth: int = 2  # hidden layers
    fourier: tuple[float, ...] = ()  # standard deviations of the frequencies that it sees its view by
    channels: int = 64  # of the network of large images
    pool: int = 20_000  # draws of the generator that real events are told from
    share: float = 0.5  # of the steps that the density ratio takes in `both`
    slower: float = 1.0  # the rate of maximum likelihood over that of the density ratio
    alpha: float = 0.0  # weight of squared energies in maximum likelihood
    candidates: int = 1  # that chains of training start from one of
    chain: LangevinConfig = field(default_factory=lambda: LangevinConfig(steps=60, step_size=0.01))  # of training
    start: int = 16  # candidates that samples start from one of
    shared: bool = False  # candidates are all chains' alike: less biased, but trusts the energy where it is lowest
    method: Method = "langevin"  # by which samples are drawn: `sampler` or `mala`
    # of samples, by Langevin steps
    sampler: LangevinConfig = field(default_factory=lambda: LangevinConfig(steps=100, step_size=0.01))
    # of samples, by steps that are accepted or rejected
    mala: MALAConfig = field(default_factory=lambda: MALAConfig(steps=100, step_size=0.01, warmup=50))

    def __post_init__(self) -> None:
        least = min(self.width, self.depth, self.channels, self.candidates, self.start)
        if least < 1 or self.pool < 100 or not 0 < self.share < 1 or self.slower <= 0 or self.alpha < 0:
            raise EbmtrajError(
                f"network: width = {self.width}, depth = {self.depth}, channels = {self.channels}, candidates = "
                f"{self.candidates}, start = {self.start}, pool = {self.pool}, share = {self.share}, slower = {self.slower} "
                f"and alpha = {self.alpha} must be above 0 (alpha 0 at least, pool 100, share below 1)"
            )
        if min(self.fourier, default=1.0) <= 0 or self.sampler.ladder is not None or self.chain.ladder is not None:
            raise EbmtrajError(f"network: fourier = {self.fourier} must be above 0, and chains go without a ladder")


class Tilt(Trainable):
    """An energy that tilts a generator's prior, and the generator, which is not trained and not in its checkpoint."""

    name = "tilt"
    spreads = False

    def __init__(self, base: Generator, config: TiltConfig) -> None:
        super().__init__()
        self.config = config
        self._held = (base.eval().requires_grad_(False),)  # in a tuple, so that it is no part of the weights
        self.energy = ViewEnergy(
            self.view_shape, width=config.width, depth=config.depth, fourier=config.fourier, channels=config.channels
        )
        self.drawn: dict[str, Tensor] = {}  # views of the generator's draws, made anew by `prepare`

    def _apply(self, fn: Any, recurse: bool = True) -> Any:
        """What moves the energy to a device moves the generator, too."""
        self.base._apply(fn, recurse)  # type: ignore[no-untyped-call]
        return super()._apply(fn, recurse)  # type: ignore[no-untyped-call]

    @property
    def base(self) -> Generator:
        """The generator."""
        return self._held[0]

    @property
    def view_shape(self) -> tuple[int, ...]:
        """Of what the energy looks at."""
        return {"auto": self.base.view_shape, "latent": (self.base.latent,), "event": self.base.shape}[self.config.on]

    def view(self, z: Tensor) -> Tensor:
        """What the energy looks at, `(B, *view)`."""
        if self.config.on == "latent":
            return z
        return self.base.decode(z) if self.config.on == "event" else self.base.view(z)

    def view_of(self, x: Tensor, generator: torch.Generator) -> Tensor:
        """The same of real events `(B, *event)`, `(B, *view)`."""
        if self.config.on == "latent":
            return self.base.encode(x, generator)
        return self.base.smooth(x, generator) if self.config.on == "event" else self.base.view_of(x, generator)

    def latent_energy(self) -> LatentEnergy:
        """What chains over latents sample."""
        return LatentEnergy(self.energy, self.view, self.base.log_prior)

    @torch.no_grad()
    def prepare(self, data: Events) -> None:
        """Draw from the generator what real events are told from, for training and for validation."""
        device = data.device
        noise = torch.Generator(device=device).manual_seed(0)
        parts = [min(4096, self.config.pool - start) for start in range(0, self.config.pool, 4096)]
        views = torch.cat([self.view(self.base.sample_latent(size, noise)) for size in parts])
        held = max(50, self.config.pool // 5)
        self.drawn = {"train": views[held:], "validation": views[:held]}
        self.energy.prepare(views[held:])

    def stages(self) -> list[Stage]:
        """The density ratio, maximum likelihood, or one after the other."""
        c = self.config
        ratio = Stage("ratio", c.share if c.objective == "both" else 1.0, self.energy, self._ratio_loss)
        rest = 1 - c.share if c.objective == "both" else 1.0
        likelihood = Stage("likelihood", rest, self.energy, self._likelihood_loss, rate=c.slower)
        return {"ratio": [ratio], "likelihood": [likelihood], "both": [ratio, likelihood]}[c.objective]

    def header(self) -> dict[str, Any]:
        """What a checkpoint must say so that `load_tilt` gives this tilt back."""
        return {"kind": "tilt", "network": dataclasses.asdict(self.config), "view": list(self.view_shape)}

    def _ratio_loss(self, batch: EventBatch, generator: torch.Generator) -> tuple[Tensor, dict[str, Tensor]]:
        """Tell real events from the generator's."""
        with torch.no_grad():
            real = self.view_of(batch.x, generator)
        loss, logs = density_ratio(self.energy, real, self._drawn(len(real), generator))
        return loss, {"validation": loss.detach(), "accuracy": logs["accuracy"]}

    def _likelihood_loss(self, batch: EventBatch, generator: torch.Generator) -> tuple[Tensor, dict[str, Tensor]]:
        """Maximum likelihood by short chains (paper 004, equations 5 and 8); -log p / base on validation data."""
        with torch.no_grad():
            real = self.view_of(batch.x, generator)
        if not self.training:
            with torch.no_grad():
                log_z = torch.logsumexp(-self.energy(self.drawn["validation"]), 0)
                log_z = log_z - torch.tensor(float(len(self.drawn["validation"])), device=log_z.device).log()
                return self.energy(real).mean() + log_z, {}
        z = self._chain(len(real), self.config.candidates, self.config.chain, generator)
        with torch.no_grad():
            made = self.view(z)
        return contrastive_divergence(self.energy, real, made, self.config.alpha)

    def _drawn(self, count: int, generator: torch.Generator) -> Tensor:
        if not self.training:
            return self.drawn["validation"]
        pool = self.drawn["train"]
        return pool[torch.randint(len(pool), (count,), generator=generator, device=pool.device)]

    def _chain(self, count: int, candidates: int, config: LangevinConfig | MALAConfig, generator: torch.Generator) -> Tensor:
        """Latents `(count, Z)`: one of several draws of the prior each, then a chain."""
        z = self._start(count, candidates, generator)
        return sample(self.latent_energy(), z, config, generator=generator)[0] if config.steps else z

    def _start(self, count: int, candidates: int, generator: torch.Generator) -> Tensor:
        """Draws of the prior, chosen by the energy."""

        def draw() -> Tensor:
            return self.base.sample_latent(count, generator)

        tilt, shared = self.latent_energy().tilt, self.config.shared
        return resample_tilt(tilt, draw, candidates, shared=shared, generator=generator)[0]

    @torch.no_grad()
    def sample_latent(self, count: int, generator: torch.Generator) -> Tensor:
        """Latents of the tilted prior, `(count, Z)`; raises `DivergedError` where a chain does not stay finite."""
        c = self.config
        config: LangevinConfig | MALAConfig = c.sampler if c.method == "langevin" else c.mala
        sizes = [min(BATCH, count - begin) for begin in range(0, count, BATCH)]
        return torch.cat([self._chain(size, c.start, config, generator) for size in sizes])

    @torch.no_grad()
    def path(self, count: int, generator: torch.Generator, frames: int = 20) -> list[Tensor]:
        """About so many states `(count, Z)` on the way of samples: draws of the prior, and a chain from there.

        Where candidates are shared the chain sets out from what was chosen among them, as samples do; else from the prior
        itself, so that no chain jumps.
        """
        c = self.config
        config: LangevinConfig | MALAConfig = c.sampler if c.method == "langevin" else c.mala
        config = dataclasses.replace(config, keep=max(1, config.steps // frames))
        z = self.base.sample_latent(count, generator)
        start = self._start(count, c.start, generator) if c.shared else z
        _, info = sample(self.latent_energy(), start, config, generator=generator)
        return [z, *([start] if c.shared else []), *([] if info.states is None else info.states)]

    @torch.no_grad()
    def sample(self, count: int, generator: torch.Generator) -> Tensor:
        """Events `(count, *event)` of the tilted generator."""
        z = self.sample_latent(count, generator)
        return torch.cat([self.base.shown(self.base.decode(part)) for part in z.split(BATCH)])


def make_tilt(base: Generator, config: TiltConfig, seed: int = 0) -> Tilt:
    """A fresh tilt of a generator, whose weights are drawn from `seed`."""
    with weights_from(seed):
        tilt = Tilt(base, config)
    return tilt.to(base.shift.device)


def check_events(x: Tensor, base: Generator) -> None:
    """Raise `EbmtrajError` where events `(B, *event)` are not of the generator's shape."""
    if tuple(x.shape[1:]) != base.shape:
        raise EbmtrajError(f"events of shape {tuple(x.shape[1:])}; the generator makes {base.shape}")
