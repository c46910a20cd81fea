"""Joint energy models: one network that classifies and is an energy of images (paper 001)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal, cast

import torch
from torch import Tensor
from torch.nn import functional as F

from ebmtraj.device import generator
from ebmtraj.energies.image_base import MOST_ENTRIES, MixtureBase, UnitGaussian, spread_out
from ebmtraj.energies.image_conv import Network
from ebmtraj.energies.joint import Frame, Guided, JointEnergy, joint_tilt
from ebmtraj.errors import EbmtrajError
from ebmtraj.images.adversary import adversarial
from ebmtraj.images.data import ImageBatch, ImageData
from ebmtraj.images.labels import kept_labels
from ebmtraj.images.model import ImageModel, Watch
from ebmtraj.images.noise_conditional import LADDER
from ebmtraj.samplers.langevin import LangevinConfig, langevin
from ebmtraj.training.losses import NoiseConfig
from ebmtraj.training.trainable import Stage

DRAWN, COMPONENTS, FLOOR = 2000, 4, 0.03  # images that an adversary has besides the data's: of each class, of so many
SHARE = 0.8  # Gaussians with that variance added; and how often it takes one of them


@dataclass(frozen=True)
class JointConfig:
    """A classifier whose logits are an energy at every noise level: cross-entropy and denoising score matching.

    Raises `EbmtrajError` for a setting out of its range, for a base of classes where labels are missing, and for a sampler
    without a ladder.
    """

    network: Network = "auto"  # auto: mlp for images of at most 1,024 entries, else resnet
    width: int = 512  # units of a layer of mlp
    depth: int = 3  # its hidden layers
    channels: int = 64  # of a convolutional network's first layer
    base: Literal["unit", "gaussian", "mixture", "classes"] = "mixture"  # what is tilted; classes: Gaussians of each class
    components: int = 10  # of a mixture, or of each class
    floor: float = 0.05  # added to the variances of a fitted base
    level: float = 0.2  # the noise level at which classes and densities are read
    classification: float = 0.3  # weight of the cross-entropy, beside the score matching of E(x)
    conditional: float = 1.0  # weight of score matching of E(x, y), of the images whose label is known
    adversary: float = 0.0  # L-inf distance in pixels within which labels are also to be told in the worst case; 0: off
    adversary_weight: float = 0.5  # of that cross-entropy
    factored: bool = False  # the ablation p(x) p(y | x)
    labelled: int = 0  # training images that keep their label, evenly over the classes; 0: all
    label_seed: int = 0  # which ones
    noise: NoiseConfig = field(default_factory=NoiseConfig)
    sampler: LangevinConfig = field(default_factory=lambda: LangevinConfig(steps=0, ladder=LADDER))
    guidance: float = 2.2  # samples of a class are of p(x) p(y | x)^guidance; 1: of p(x | y) as it was learnt
    validation_draws: int = 16  # noise levels for each validation image

    def __post_init__(self) -> None:
        sizes = (self.width, self.depth, self.channels, self.components, self.validation_draws)
        if min(sizes) < 1 or self.floor <= 0 or self.level <= 0:
            raise EbmtrajError(
                f"network: width = {self.width}, depth = {self.depth}, channels = {self.channels}, components = "
                f"{self.components}, validation_draws = {self.validation_draws}, floor = {self.floor}, level = "
                f"{self.level}; all must be above 0"
            )
        if min(self.classification, self.conditional, self.labelled, self.guidance) < 0:
            raise EbmtrajError(
                f"network: classification = {self.classification}, conditional = {self.conditional}, labelled = "
                f"{self.labelled}, guidance = {self.guidance}; none may be below 0"
            )
        if not 0 <= self.adversary <= 1 or self.adversary_weight < 0:
            raise EbmtrajError(
                f"network: adversary = {self.adversary}, adversary_weight = {self.adversary_weight}; it needs 0 <= "
                "adversary <= 1 and a weight from 0 up"
            )
        if self.labelled and self.base == "classes":
            raise EbmtrajError(
                f"network.labelled = {self.labelled}: base = classes needs every image's label; use base = mixture"
            )
        if self.sampler.ladder is None:
            raise EbmtrajError("network.sampler: this model is sampled down a noise ladder; set network.sampler.ladder")


class Classifier(ImageModel):
    """What all classifiers here share: labels, of which some may be hidden in training."""

    classifies = True
    labelled = True
    config: Any
    net: Any  # with logits(x, level), forward and gradient
    known: Tensor  # by an image's number in the store, whether its label may be seen

    def __init__(self, shape: Sequence[int], classes: Sequence[str], *, conditional: bool, config: Any) -> None:
        if not classes:
            raise EbmtrajError(f"model {self.name}: these images have no labels; learn p(x) alone: ebmtraj train image")
        super().__init__(shape, classes, conditional=True, config=config)  # p(x | y) is always there
        self.register_buffer("known", torch.zeros(0, dtype=torch.bool), persistent=False)

    def prepare(self, data: ImageData, most: int = 20_000) -> None:
        """As every model; and choose the images that keep their label."""
        super().prepare(data, most)
        assert data.label is not None, "a model that is `labelled` is refused data without labels"
        kept = kept_labels(data.label, self.config.labelled, len(self.classes), self.config.label_seed)
        self.known = torch.zeros(int(data.index.max()) + 1, dtype=torch.bool, device=data.device)
        self.known[data.index] = kept

    def seen(self, batch: ImageBatch, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Labelled images in unit coordinates `(B, C, H, W)` and labels `(B,)`, as many as the batch has images in all."""
        assert batch.label is not None
        x, label = self.unit(batch.x), batch.label
        if not self.training or not self.config.labelled:
            return x, label
        rows = torch.nonzero(self.known[batch.index]).squeeze(1)
        if not len(rows):
            return x[:0], label[:0]
        drawn = rows[torch.randint(len(rows), (len(x),), generator=generator, device=x.device)]
        return x[drawn], label[drawn]

    def energy(self, unit: Tensor, label: Tensor | None, level: Tensor) -> Tensor:
        """E(x, s), or E(x, y, s) given labels, `(B,)`."""
        value: Tensor = self.net(unit, label, level)
        return value

    def gradient(self, unit: Tensor, label: Tensor | None, level: Tensor) -> Tensor:
        """Gradient of the energy in the image, `(B, C, H, W)`."""
        value: Tensor = self.net.gradient(unit, label, level)
        return value

    def logits(self, pixels: Tensor, level: Tensor | float | None = None) -> Tensor:
        """log p(x, y) up to a constant, `(B, K)`, whose softmax is p(y | x), read at `config.level` unless told."""
        value: Tensor = self.net.logits(self.unit(pixels), self._level(level, pixels))
        return value

    def log_density(self, pixels: Tensor, level: Tensor | float | None = None, label: Tensor | None = None) -> Tensor:
        """log p(x), or log p(x, y), up to a constant, `(B,)`, read at `config.level` unless told."""
        return -self.energy(self.unit(pixels), label, self._level(level, pixels))

    def check_labels(self, count: int, labels: Tensor | None) -> Tensor | None:
        """Labels that samples are drawn for; without any, samples are of p(x)."""
        return None if labels is None else super().check_labels(count, labels)

    def _level(self, level: Tensor | float | None, like: Tensor) -> Tensor:
        own = getattr(self.config, "level", 1.0)  # a classifier without levels takes any, and looks at none
        return torch.as_tensor(own if level is None else level, device=like.device, dtype=like.dtype)


class JointModel(Classifier):
    """`jem`: cross-entropy at every noise level, and score matching of E(x) = -logsumexp of the same logits.

    Paper 001's joint energy with the noise-conditional objective in the place of its contrastive divergence.
    """

    name = "jem"
    Config = JointConfig
    config: JointConfig
    net: JointEnergy
    training_defaults: ClassVar[dict[str, Any]] = {"steps": 2000, "batch": 128, "learning_rate": 2e-3, "check_every": 100}

    def __init__(self, shape: Sequence[int], classes: Sequence[str], *, conditional: bool, config: JointConfig) -> None:
        super().__init__(shape, classes, conditional=conditional, config=config)
        count = len(self.classes)
        base: UnitGaussian | MixtureBase = UnitGaussian()
        if config.base != "unit":
            components = 1 if config.base == "gaussian" else config.components
            base = MixtureBase(self.shape, components, count if config.base == "classes" else 0)
        tilt = joint_tilt(
            config.network, self.shape, count, width=config.width, depth=config.depth, channels=config.channels
        )
        self.net = JointEnergy(base, Frame(self.shape, config.base != "unit"), tilt, factored=config.factored)
        self.register_buffer("drawn", torch.zeros(0, *self.shape), persistent=False)  # for the adversary, class after class

    def prepare(self, data: ImageData, most: int = 20_000) -> None:
        """As every classifier; and fit the base."""
        super().prepare(data, most)
        if self.config.adversary > 0:
            self.drawn = self._drawn(data, most)
        if isinstance(self.net.base, MixtureBase):
            batch = data.at(torch.arange(min(most, len(data)), device=data.device))
            x = self.unit(batch.x)
            self.net.frame.fit(x, self.config.floor)
            self.net.base.fit(x, batch.label if self.net.base.classes else None, self.config.floor)

    def stages(self) -> list[Stage]:
        """Both terms throughout."""
        return [Stage(self.name, 1.0, self.net.tilt, self._loss, keep="last")]

    @torch.no_grad()
    def sample(
        self, count: int, generator: torch.Generator, labels: Tensor | None = None, *, watch: Watch | None = None
    ) -> Tensor:
        """Draw images down the noise ladder, of p(x) or, given labels, of p(x | y), `(count, C, H, W)`."""
        labels = self.check_labels(count, labels)

        def seen(x: Tensor) -> Tensor:
            if watch is not None:
                watch(self.pixels(x))
            return x

        ladder = self.config.sampler.ladder
        start = self.net.start(count, self.shape, labels, ladder.sigma_max if ladder else 1.0, generator)
        energy = Guided(self.net, self.config.guidance)
        x, _ = langevin(energy, start, self.config.sampler, context=labels, project=seen, generator=generator)
        return self.pixels(x)

    def _loss(self, batch: ImageBatch, generator: torch.Generator) -> tuple[Tensor, dict[str, Tensor]]:
        config = self.config
        x, label = self.unit(batch.x), batch.label
        assert label is not None
        if not self.training:  # few images: several levels of noise each, always the same
            draws = max(1, min(config.validation_draws, 4096 // len(x)))
            x, label = x.repeat(draws, 1, 1, 1), label.repeat(draws)
        level = config.noise.draw(len(x), generator)
        noised = self._noised(x, level, generator)
        told = self._hidden(label, batch) if config.conditional else None
        logits, *slopes = self.net.with_gradients(noised, told, level, "none" if told is None else "marginal")
        matching = denoising_error(x, noised, slopes[-1], level).mean()
        if self.training and config.labelled:
            own, label = self.seen(batch, generator)
            at = level[: len(own)]
            logits = self.net.logits(self._noised(own, at, generator), at)
        entropy = F.cross_entropy(logits, label) if len(label) else matching.new_zeros(())
        loss = matching + config.classification * entropy
        if config.conditional:
            loss = loss + config.conditional * denoising_error(x, noised, slopes[0], level).mean()
        if self.training and config.adversary > 0:
            loss = loss + config.adversary_weight * self._worst_entropy(batch, generator)
        return loss, {"score_matching": matching.detach(), "cross_entropy": entropy.detach()}

    def _hidden(self, label: Tensor, batch: ImageBatch) -> Tensor:
        """The labels, -1 where they are not to be seen."""
        if not self.training or not self.config.labelled:
            return label
        return label.masked_fill(~self.known[batch.index], -1)

    def _worst_entropy(self, batch: ImageBatch, generator: torch.Generator) -> Tensor:
        """Cross-entropy of adversarial images of the labelled ones, under noise of at most the level classes are read at."""
        unit, label = self.seen(batch, generator)
        if not len(label):
            return unit.sum() * 0
        if len(self.drawn):  # generated images, too (Gowal et al. 2021): few real ones are learnt by heart
            index = torch.randint(len(self.drawn), (len(unit),), generator=generator, device=unit.device)
            own = torch.rand(len(unit), generator=generator, device=unit.device) >= SHARE
            unit = torch.where(spread_out(own, unit), unit, self.drawn[index])
            label = torch.where(own, label, index * len(self.classes) // len(self.drawn))
        level = self.config.level * torch.rand(len(unit), generator=generator, device=unit.device).clamp_min(0.05)
        noise = spread_out(level, unit) * torch.empty_like(unit).normal_(generator=generator)

        def logits(pixels: Tensor) -> Tensor:
            return self.net.logits(self.unit(pixels) + noise, level)

        worst = adversarial(logits, self.pixels(unit), label, self.config.adversary, generator)
        return F.cross_entropy(logits(worst), label)

    def _drawn(self, data: ImageData, most: int) -> Tensor:
        """As many images of each class, drawn from Gaussians of the labelled ones, in unit coordinates, `(N, C, H, W)`.

        None of images that are too large for full covariances, or where a class has too few labels.
        """
        count = len(self.classes)
        batch = data.at(torch.arange(len(data), device=data.device)[self.known[data.index]][:most])
        least = int(torch.bincount(cast(Tensor, batch.label), minlength=count).min())
        if math.prod(self.shape) > MOST_ENTRIES or least <= COMPONENTS:
            return self.drawn
        mixture = MixtureBase(self.shape, COMPONENTS, count).to(data.device)
        mixture.fit(self.unit(batch.x), batch.label, FLOOR)
        label = torch.arange(count, device=data.device).repeat_interleave(DRAWN)
        found = mixture.sample(len(label), label, 0.0, generator(self.config.label_seed, data.device))
        return self.unit(self.pixels(found.view(-1, *self.shape)))

    def _noised(self, x: Tensor, level: Tensor, generator: torch.Generator) -> Tensor:
        return x + spread_out(level, x) * torch.empty_like(x).normal_(generator=generator)


def denoising_error(x: Tensor, noised: Tensor, slope: Tensor, level: Tensor) -> Tensor:
    """Squared error of the denoiser x~ - s^2 grad E, weighted by (1 + s^2) / s^2 (Karras et al. 2022), `(B,)`.

    Images x, `noised` and the `slope` there are all `(B, C, H, W)`.
    """
    s = spread_out(level, x)
    return ((noised - s**2 * slope - x).square().flatten(1).mean(1)) * (1 + level**2) / level**2
