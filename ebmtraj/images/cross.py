"""From one class to another along p(x | y), and what the classifier calls sure far from any image.

Cross-class: paper 000, section 4.3 (an image's energy of another label is sampled from that image). Distal adversarials:
paper 001, section 5.3.3 (p(y | x) is raised from noise; with a sound p(x) what comes out looks like the class).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ebmtraj.errors import EbmtrajError
from ebmtraj.images.model import ImageModel
from ebmtraj.images.restore import noise_conditional
from ebmtraj.samplers.anneal import Ladder
from ebmtraj.samplers.langevin import LangevinConfig, langevin

Watch = Callable[[Tensor], None]


@dataclass(frozen=True)
class CrossConfig:
    """How far an image is let go before it is sampled toward another class.

    Raises `EbmtrajError` for a setting out of its range.
    """

    level: float = 2.0  # noise added to the image, in unit coordinates: more keeps less of it
    low: float = 0.02  # the ladder's last level
    levels: int = 24  # of the ladder
    steps: int = 2  # Langevin steps at each level
    step_size: float = 0.3  # times the level's square

    def __post_init__(self) -> None:
        if not 0 < self.low < self.level or self.levels < 2 or self.steps < 0 or not self.step_size > 0:
            raise EbmtrajError(
                f"cross-class: level = {self.level}, low = {self.low}, levels = {self.levels}, steps = {self.steps}, "
                f"step_size = {self.step_size}; it needs 0 < low < level, levels >= 2, steps >= 0 and step_size > 0"
            )

    @property
    def sampler(self) -> LangevinConfig:
        """The chain."""
        ladder = Ladder(self.levels, self.level, self.low)
        return LangevinConfig(steps=self.steps, step_size=self.step_size, ladder=ladder)


class Labelled(nn.Module):
    """The model's E(x, s | y) as an energy for the sampler, the labels its context."""

    def __init__(self, model: ImageModel) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: Tensor, label: Tensor, level: Tensor) -> Tensor:
        """Energies `(B,)`."""
        return self.model.energy(x, label, level)

    def gradient(self, x: Tensor, label: Tensor, level: Tensor) -> Tensor:
        """Gradient in x, `(B, C, H, W)`."""
        return self.model.gradient(x, label, level)


def cross_class(
    model: ImageModel,
    pixels: Tensor,
    toward: Tensor,
    generator: torch.Generator,
    config: CrossConfig | None = None,
    *,
    watch: Watch | None = None,
) -> Tensor:
    """Images `(B, C, H, W)` sampled toward the labels `(B,)`, each from its own image under noise.

    `watch` is shown the chains in pixels. Raises `EbmtrajError` for a model without an energy of each class at every noise
    level, or labels that it does not know.
    """
    if not (noise_conditional(model) and model.conditional):
        raise EbmtrajError(
            f"model {model.name} has no energy of each class at every noise level; use a run of train jem, or of "
            "train image --conditional"
        )
    config = config or CrossConfig()
    labels = model.check_labels(len(pixels), toward)
    noise = torch.empty_like(pixels).normal_(generator=generator)
    start = model.unit(pixels) + config.level * noise

    def seen(x: Tensor) -> Tensor:
        if watch is not None:
            watch(model.pixels(x))
        return x

    x, _ = langevin(Labelled(model), start, config.sampler, context=labels, project=seen, generator=generator)
    return model.pixels(x)


@dataclass(frozen=True)
class DistalConfig:
    """Ascent on p(y | x) from noise. Raises `EbmtrajError` for a setting out of its range."""

    steps: int = 100  # of ascent
    step_size: float = 0.05  # in pixels, along the normalised gradient of an image
    level: float = 1.0  # noise level at which energies are read, so that they slope far from the data, too
    energy: float = 1.0  # weight of log p(x) beside log p(y | x), where it counts

    def __post_init__(self) -> None:
        if self.steps < 1 or not self.step_size > 0 or not self.level > 0 or self.energy < 0:
            raise EbmtrajError(
                f"distal: steps = {self.steps}, step_size = {self.step_size}, level = {self.level}, energy = {self.energy}; "
                "it needs steps >= 1, step_size and level > 0 and energy >= 0"
            )


@dataclass(frozen=True)
class Distal:
    """Images that the classifier is sure of, made from noise."""

    pixels: Tensor  # (B, C, H, W)
    probability: Tensor  # (B,) p(y | x) of the label asked for
    log_density: Tensor  # (B,) log p(x) up to a constant


def distal(
    model: ImageModel, labels: Tensor, generator: torch.Generator, config: DistalConfig | None = None, *, energy: bool
) -> Distal:
    """From uniform noise, raise log p(y | x) for the labels `(B,)` or, with `energy`, log p(y | x) + w log p(x).

    Steps are of fixed length along the gradient and shrink linearly. Raises `EbmtrajError` for a model that does not
    classify, or labels out of range.
    """
    if not model.classifies:
        raise EbmtrajError(f"model {model.name} does not classify, so it is sure of nothing; train one with train jem")
    config = config or DistalConfig()
    labels_ = model.check_labels(len(labels), labels)
    assert labels_ is not None
    device = model.shift.device
    x = torch.rand((len(labels), *model.shape), generator=generator, device=device)
    level = torch.tensor(config.level, device=device)
    for step in range(config.steps):
        x = x.detach().requires_grad_(True)
        gain = -F.cross_entropy(model.logits(x), labels_, reduction="none")
        if energy:
            gain = gain - config.energy * model.energy(model.unit(x), None, level)
        (slope,) = torch.autograd.grad(gain.sum(), x)
        with torch.no_grad():
            length = slope.flatten(1).norm(dim=1).clamp_min(1e-12).view(-1, 1, 1, 1)
            size = config.step_size * slope[0].numel() ** 0.5 * (1 - step / config.steps)
            x = (x + size * slope / length).clamp(0, 1)
    with torch.no_grad():
        found = model.logits(x).softmax(-1).gather(1, labels_.unsqueeze(1)).squeeze(1)
        return Distal(x.detach(), found, model.log_density(x))
