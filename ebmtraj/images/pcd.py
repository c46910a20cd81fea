"""The papers' image energy: contrastive divergence with a replay buffer (paper 000, Algorithm 1)."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.func import functional_call

from ebmtraj.energies.image_conv import Network, PlainEnergy
from ebmtraj.errors import EbmtrajError
from ebmtraj.images.data import ImageBatch, ImageData
from ebmtraj.images.model import ImageModel, Watch
from ebmtraj.samplers.buffer import ReplayBuffer
from ebmtraj.samplers.langevin import LangevinConfig, langevin
from ebmtraj.training.losses import contrastive_divergence
from ebmtraj.training.trainable import Stage


@dataclass(frozen=True)
class PCDConfig:
    """Contrastive divergence as in paper 000; steps and noise are in unit coordinates.

    The defaults were chosen on the digits, and stay stable there. The paper's own setting is `network=resnet spectral=true
    alpha=1 data_noise=0 buffer=10000 beta1=0 snapshots=10 sampler.steps=60 sampler.step_size=10 sampler.noise=0.005`, each
    with `--set network.` before it. Raises `EbmtrajError` for a setting out of its range, and for a sampler with a ladder.
    """

    network: Network = "auto"  # auto: mlp for images of at most 1,024 entries, else resnet
    width: int = 512  # of dense layers
    depth: int = 2  # hidden layers
    channels: int = 32  # of the first convolution
    spectral: bool = False  # spectral normalisation of every layer (the paper's way to bound the energy's slope)
    scale: float = 1.0  # of the network's output, which spectral normalisation leaves nearly flat
    prior: float = 0.0  # precision of the Gaussian that the network tilts; 0: none (paper)
    alpha: float = 0.03  # weight of the L2 penalty on energies
    data_noise: float = 0.06  # standard deviation, added to the training images, in pixels
    buffer: int = 2000  # replay buffer, in samples
    keep: float = 0.95  # share of chains that start from the buffer; the others start from uniform noise
    beta1: float = 0.5  # of Adam
    snapshots: int = 1  # past networks that samples are drawn from together (paper 000: 10), the latest included
    snapshot_every: int = 100  # training steps between them
    sampler: LangevinConfig = field(default_factory=lambda: LangevinConfig(steps=30, step_size=1.4, noise=0.027))
    sample_steps: int = 300  # Langevin steps of a fresh chain once trained

    def __post_init__(self) -> None:
        if self.buffer < 1 or not 0 <= self.keep <= 1 or self.sample_steps < 0 or self.alpha < 0 or self.data_noise < 0:
            raise EbmtrajError(
                f"network: buffer = {self.buffer}, keep = {self.keep}, alpha = {self.alpha}, data_noise = "
                f"{self.data_noise}, sample_steps = {self.sample_steps}; it needs buffer >= 1, 0 <= keep <= 1 and the "
                "others >= 0"
            )
        if self.snapshots < 1 or self.snapshot_every < 1 or self.width < 1 or self.depth < 1 or self.channels < 1:
            raise EbmtrajError(
                f"network: snapshots = {self.snapshots}, snapshot_every = {self.snapshot_every}, width = {self.width}, "
                f"depth = {self.depth}, channels = {self.channels}; all must be above 0"
            )
        if not 0 <= self.beta1 < 1 or self.prior < 0:
            raise EbmtrajError(f"network: beta1 = {self.beta1}, prior = {self.prior}; it needs 0 <= beta1 < 1, prior >= 0")
        if self.sampler.ladder is not None:
            raise EbmtrajError("network.sampler.ladder: model pcd's energy has no noise levels; drop the ladder")


class Snapshots(nn.Module):
    """The mean energy of a network's present weights and some past ones (paper 000, section 4.1)."""

    past: Tensor  # (count, W) past sets of W weights, the newest first
    held: Tensor  # () how many there are so far

    def __init__(self, energy: PlainEnergy, count: int) -> None:
        """`count` past sets of weights, besides the present ones."""
        super().__init__()
        self.energy = energy
        size = sum(value.numel() for value in self._state().values())
        self.register_buffer("past", torch.zeros(count, size))
        self.register_buffer("held", torch.zeros((), dtype=torch.int64))  # how many there are so far

    def _state(self) -> dict[str, Tensor]:
        return {name: value for name, value in self.energy.state_dict().items() if value.is_floating_point()}

    @torch.no_grad()
    def take(self) -> None:
        """Keep the present weights as the newest past ones."""
        if len(self.past):
            flat = torch.cat([value.flatten() for value in self._state().values()])
            self.past.copy_(torch.cat((flat[None], self.past[:-1])))
            self.held.add_(1).clamp_(max=len(self.past))

    def forward(self, x: Tensor, label: Tensor | None = None, level: Tensor | None = None) -> Tensor:
        """Energies `(B,)`."""
        total: Tensor = self.energy(x, label, level)
        count = int(self.held)
        for flat in self.past[:count]:
            own, start = {}, 0
            for name, value in self._state().items():
                own[name] = flat[start : start + value.numel()].view_as(value)
                start += value.numel()
            total = total + functional_call(self.energy, own, (x, label, level))
        return total / (1 + count)


class PCDModel(ImageModel):
    """Objective `pcd`: persistent contrastive divergence with data noise, an averaged model and an L2 penalty."""

    name = "pcd"
    spreads = False  # the replay buffer is a process's own
    Config = PCDConfig
    config: PCDConfig
    training_defaults: ClassVar[dict[str, Any]] = {
        "steps": 1500,
        "batch": 128,
        "learning_rate": 5e-4,
        "constant": 0.0,
        "ema": 0.99,
        "check_every": 100,
        "clip": 1.0,
    }
    kept: Tensor

    def __init__(self, shape: Sequence[int], classes: Sequence[str], *, conditional: bool, config: PCDConfig) -> None:
        super().__init__(shape, classes, conditional=conditional, config=config)
        plain = PlainEnergy(
            self.shape,
            len(self.classes) if conditional else 0,
            network=config.network,
            width=config.width,
            depth=config.depth,
            channels=config.channels,
            spectral=config.spectral,
            scale=config.scale,
            prior=config.prior,
        )
        self.net = Snapshots(plain, config.snapshots - 1)
        event = (math.prod(self.shape) + 1,)  # an image and its label, which stay together
        self.buffer = ReplayBuffer(config.buffer, event)
        self.steps = 0
        self.register_buffer("kept", torch.zeros(config.buffer, *event))  # the buffer at the end, for samples from it

    def stages(self) -> list[Stage]:
        """Contrastive divergence throughout."""
        return [Stage(self.name, 1.0, self.net.energy, self._loss, finish=self._keep, beta1=self.config.beta1)]

    def extra_state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """The replay buffer, and how many steps were taken."""
        tensors, numbers = self.buffer.state()
        return tensors, {**numbers, "steps": self.steps}

    def load_extra_state(self, tensors: dict[str, Tensor], numbers: dict[str, Any]) -> None:
        """The inverse of `extra_state`."""
        self.buffer.load(tensors, numbers)
        self.steps = int(numbers["steps"])

    def energy(self, unit: Tensor, label: Tensor | None, level: Tensor) -> Tensor:
        """E(x) or E(x | y), `(B,)`; it has no noise levels and does not look at any."""
        value: Tensor = self.net(unit, label)
        return value

    def gradient(self, unit: Tensor, label: Tensor | None, level: Tensor) -> Tensor:
        """Gradient of the energy in the image, `(B, C, H, W)`."""
        with torch.enable_grad():
            x = unit.detach().requires_grad_(True)
            return torch.autograd.grad(self.energy(x, label, level).sum(), x)[0]

    def denoise(self, unit: Tensor, level: Tensor, label: Tensor | None = None) -> Tensor:
        """Refuses: an energy without noise levels has no denoiser; raises `EbmtrajError`."""
        raise EbmtrajError("model pcd has no noise levels to denoise from; use --objective dsm")

    @torch.no_grad()
    def sample(
        self,
        count: int,
        generator: torch.Generator,
        labels: Tensor | None = None,
        *,
        watch: Watch | None = None,
        buffer: bool = False,
    ) -> Tensor:
        """Draw images, `(count, C, H, W)` pixels, by chains from uniform noise or from the replay `buffer`.

        Raises `EbmtrajError` for labels as `check_labels`, and where the buffer holds none that are asked for.
        """
        labels = self.check_labels(count, labels)
        steps = self.config.sample_steps
        if buffer:
            start, labels = self._from_buffer(count, labels, generator)
            steps = self.config.sampler.steps
        else:
            start = self._noise(count, generator)
        return self.pixels(self._chain(start, labels, steps, generator, watch))

    def _from_buffer(self, count: int, labels: Tensor | None, generator: torch.Generator) -> tuple[Tensor, Tensor | None]:
        """Samples of training's last chains, each of the class that is asked for where there are classes."""
        device = self.shift.device
        if labels is None:
            index = torch.randint(len(self.kept), (count,), generator=generator, device=device)
        else:
            fits = (self.kept[:, -1].long() == labels[:, None]).float()
            if not bool((fits.sum(1) > 0).all()):
                raise EbmtrajError("the replay buffer holds no image of a class that is asked for; use --fresh")
            index = torch.multinomial(fits, 1, generator=generator).squeeze(1)
        return self.kept[index, :-1].view(count, *self.shape), labels

    def _noise(self, count: int, generator: torch.Generator) -> Tensor:
        """Uniform noise over pixel values, in unit coordinates."""
        pixels = torch.rand((count, *self.shape), generator=generator, device=self.shift.device)
        return self.unit(pixels)

    def _project(self, x: Tensor) -> Tensor:
        """`x` with pixels in [0, 1]."""
        return torch.maximum(torch.minimum(x, (1 - self.shift) / self.scale), -self.shift / self.scale)

    def _chain(
        self,
        start: Tensor,
        label: Tensor | None,
        steps: int,
        generator: torch.Generator,
        watch: Watch | None = None,
        energy: nn.Module | None = None,
    ) -> Tensor:
        def project(x: Tensor) -> Tensor:
            x = self._project(x)
            if watch is not None:
                watch(self.pixels(x))
            return x

        sampler = dataclasses.replace(self.config.sampler, steps=steps)
        x, _ = langevin(energy or self.net, start, sampler, context=label, project=project, generator=generator)
        return x

    def _loss(self, batch: ImageBatch, generator: torch.Generator) -> tuple[Tensor, dict[str, Tensor]]:
        positive, label = self.unit(batch.x), batch.label if self.conditional else None
        if not self.training:  # the loss says nothing of sample quality: judge by fresh chains
            distance = self._energy_distance(positive[:512], None if label is None else label[:512], generator)
            return distance, {"validation": distance}
        noise = torch.empty_like(positive).normal_(generator=generator)
        positive = positive + self.config.data_noise / self.scale * noise
        fresh = self._noise(len(positive), generator)
        own = label if label is not None else torch.zeros(len(fresh), dtype=torch.int64, device=fresh.device)
        start = self.buffer.start(torch.cat((fresh.flatten(1), own[:, None]), dim=1), generator, self.config.keep)
        asked = start[:, -1].long()
        context = None if label is None else asked
        negative = self._chain(
            start[:, :-1].view_as(positive), context, self.config.sampler.steps, generator, energy=self.net.energy
        )
        self.buffer.push(torch.cat((negative.flatten(1), asked[:, None].to(negative.dtype)), dim=1))

        def energy(x: Tensor) -> Tensor:
            value: Tensor = self.net.energy(x, label if x is positive else context)
            return value

        loss, logs = contrastive_divergence(energy, positive, negative, self.config.alpha)
        logs["outermost"] = start[:, :-1].abs().amax()
        self.steps += 1
        if self.steps % self.config.snapshot_every == 0:
            self.net.take()
        return loss, logs

    @torch.no_grad()
    def _energy_distance(self, real: Tensor, label: Tensor | None, generator: torch.Generator) -> Tensor:
        """Energy distance between images and fresh samples of the same classes (Szekely and Rizzo 2013), `()`."""
        drawn = self._chain(self._noise(len(real), generator), label, self.config.sample_steps, generator)
        x, y = drawn.flatten(1), real.flatten(1)
        if label is not None:  # images of other classes are far away, so that classes are compared one by one, nearly
            told = 10.0 * torch.nn.functional.one_hot(label, len(self.classes)).to(x)
            x, y = torch.cat((x, told), dim=1), torch.cat((y, told), dim=1)
        count = len(x)
        among = (torch.cdist(x, x).sum() + torch.cdist(y, y).sum()) / max(1, count * (count - 1))
        return 2 * torch.cdist(x, y).mean() - among

    def _keep(self, data: ImageData) -> None:
        """Leave the replay buffer in the weights, so that samples can be drawn from it later."""
        held = self.buffer.items[: self.buffer.count]
        if len(held):
            self.kept.copy_(held[torch.arange(len(self.kept), device=held.device) % len(held)])
