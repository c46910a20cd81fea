"""Plain classifiers, and the joint energy that papers 000 and 001 make of one by contrastive divergence."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.nn import functional as F

from ebmtraj.energies.image_conv import Network
from ebmtraj.energies.joint import LogitEnergy, joint_tilt
from ebmtraj.errors import EbmtrajError
from ebmtraj.images.data import ImageBatch
from ebmtraj.images.joint import Classifier
from ebmtraj.images.model import Watch
from ebmtraj.samplers.buffer import ReplayBuffer
from ebmtraj.samplers.langevin import LangevinConfig, langevin
from ebmtraj.training.losses import contrastive_divergence
from ebmtraj.training.trainable import Stage

LEVEL = 0.3  # what the network is told in the place of a noise level, always the same


@dataclass(frozen=True)
class ClassifierConfig:
    """The network of `jem`, trained to classify and nothing else. Raises `EbmtrajError` for a setting out of its range."""

    network: Network = "auto"  # as that of `jem`
    width: int = 512  # of dense layers
    depth: int = 2  # hidden layers
    channels: int = 64  # of the first convolution
    labelled: int = 0  # training images that keep their label, evenly over the classes; 0: all
    label_seed: int = 0  # which ones

    def __post_init__(self) -> None:
        if min(self.width, self.depth, self.channels) < 1 or self.labelled < 0:
            raise EbmtrajError(
                f"network: width = {self.width}, depth = {self.depth}, channels = {self.channels}, labelled = "
                f"{self.labelled}; it needs the first three above 0 and labelled >= 0"
            )


class ClassifierModel(Classifier):
    """`classifier`: cross-entropy alone. Its logits are an energy, too, as any classifier's are (paper 001, equation 6)."""

    name = "classifier"
    Config = ClassifierConfig
    net: LogitEnergy
    training_defaults: ClassVar[dict[str, Any]] = {"steps": 2000, "batch": 128, "check_every": 100}

    def __init__(self, shape: Sequence[int], classes: Sequence[str], *, conditional: bool, config: Any) -> None:
        super().__init__(shape, classes, conditional=conditional, config=config)
        tilt = joint_tilt(
            config.network,
            self.shape,
            len(self.classes),
            width=config.width,
            depth=config.depth,
            channels=config.channels,
        )
        self.net = LogitEnergy(tilt, LEVEL)

    def stages(self) -> list[Stage]:
        """Cross-entropy throughout."""
        return [Stage(self.name, 1.0, self.net, self._loss)]

    def _loss(self, batch: ImageBatch, generator: torch.Generator) -> tuple[Tensor, dict[str, Tensor]]:
        x, label = self.seen(batch, generator)
        entropy = F.cross_entropy(self.net.logits(x), label) if len(label) else 0 * self.net.logits(self.unit(batch.x)).sum()
        return entropy, {"cross_entropy": entropy.detach()}


@dataclass(frozen=True)
class JointCDConfig(ClassifierConfig):
    """Cross-entropy and contrastive divergence of E(x) = -logsumexp of the logits, with settings that stay stable.

    Steps and noise are in unit coordinates, in which the digits' grey levels from 0 to 1 span 2.7. Raises `EbmtrajError` for
    a setting out of its range, and for a sampler with a ladder.
    """

    divergence: float = 0.3  # weight of contrastive divergence
    alpha: float = 0.03  # of the L2 penalty on energies
    data_noise: float = 0.16  # added to the images that chains are held against
    buffer: int = 2000  # past samples
    keep: float = 0.95  # share of chains that go on from the buffer; the others start from uniform noise
    sampler: LangevinConfig = field(default_factory=lambda: LangevinConfig(steps=30, step_size=1.4, noise=0.027))
    sample_steps: int = 200  # Langevin steps that draw images once trained

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.buffer < 1 or not 0 <= self.keep <= 1 or min(self.divergence, self.alpha, self.data_noise) < 0:
            raise EbmtrajError(
                f"network: buffer = {self.buffer}, keep = {self.keep}, divergence = {self.divergence}, "
                f"alpha = {self.alpha}, data_noise = {self.data_noise}; it needs buffer >= 1, 0 <= keep <= 1 and none of "
                "the others below 0"
            )
        if self.sampler.ladder is not None:
            raise EbmtrajError("network.sampler.ladder: model jem-cd's energy has no noise levels; drop the ladder")


class JointCDModel(ClassifierModel):
    """`jem-cd`: the papers' joint energy model (paper 001, algorithm 1)."""

    name = "jem-cd"
    spreads = False  # the replay buffer is a process's own
    Config = JointCDConfig
    config: JointCDConfig
    training_defaults: ClassVar[dict[str, Any]] = {
        "steps": 1500,
        "batch": 128,
        "check_every": 100,
        "learning_rate": 5e-4,
        "beta1": 0.5,
        "constant": 0.0,
        "ema": 0.99,
    }

    def __init__(self, shape: Sequence[int], classes: Sequence[str], *, conditional: bool, config: JointCDConfig) -> None:
        super().__init__(shape, classes, conditional=conditional, config=config)
        self.buffer = ReplayBuffer(config.buffer, self.shape)

    def stages(self) -> list[Stage]:
        """Both terms throughout."""
        return [Stage(self.name, 1.0, self.net, self._joint_loss, keep="last")]

    def extra_state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """The replay buffer."""
        return self.buffer.state()

    def load_extra_state(self, tensors: dict[str, Tensor], numbers: dict[str, Any]) -> None:
        """The inverse of `extra_state`."""
        self.buffer.load(tensors, numbers)

    @torch.no_grad()
    def sample(
        self, count: int, generator: torch.Generator, labels: Tensor | None = None, *, watch: Watch | None = None
    ) -> Tensor:
        """Chains of `sample_steps` from uniform noise, of p(x) or, given labels, of p(x | y), `(count, C, H, W)`."""
        labels = self.check_labels(count, labels)
        sampler = dataclasses.replace(self.config.sampler, steps=self.config.sample_steps)
        start = self._fresh(torch.empty((count, *self.shape), device=self.shift.device), generator)
        return self.pixels(self._chain(start, labels, sampler, generator, watch))

    def _fresh(self, like: Tensor, generator: torch.Generator) -> Tensor:
        return self.unit(torch.empty_like(like).uniform_(generator=generator))

    def _chain(
        self, x: Tensor, labels: Tensor | None, sampler: LangevinConfig, generator: torch.Generator, watch: Watch | None
    ) -> Tensor:
        def inside(x: Tensor) -> Tensor:
            pixels = self.pixels(x)  # which clamps to [0, 1]
            if watch is not None:
                watch(pixels)
            return self.unit(pixels)

        return langevin(self.net, x, sampler, context=labels, project=inside, generator=generator)[0]

    def _joint_loss(self, batch: ImageBatch, generator: torch.Generator) -> tuple[Tensor, dict[str, Tensor]]:
        entropy, logs = self._loss(batch, generator)
        if not self.training:
            return entropy, logs
        x = self.unit(batch.x)
        positive = x + self.config.data_noise * torch.empty_like(x).normal_(generator=generator)
        start = self.buffer.start(self._fresh(x, generator), generator, self.config.keep)
        negative = self._chain(start, None, self.config.sampler, generator, None)
        self.buffer.push(negative)
        divergence, more = contrastive_divergence(lambda x: self.net(x, None), positive, negative, self.config.alpha)
        return entropy + self.config.divergence * divergence, {**logs, **more, "outermost": start.abs().amax()}
