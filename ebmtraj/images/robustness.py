"""Classes read after refinement, and the attack that goes through it.

Refinement (paper 000, section 4.4, in noise-conditional form): noise of a level is added and taken away again in so many
denoising steps of the model's own energy; p(y | x) is the mean over draws. The defender's chain is the sampler's. The
attacker's is the same in differentiable form, so that attacks follow its gradient, averaged over noise (expectation over
transformation, Athalye et al. 2018): a figure that such an attack can't lower is not yet robustness, but any other is less.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ebmtraj.errors import EbmtrajError
from ebmtraj.images.model import ImageModel
from ebmtraj.images.restore import noise_conditional
from ebmtraj.samplers.anneal import Ladder, predict
from ebmtraj.samplers.langevin import LangevinConfig, langevin

Norm = Literal["linf", "l2"]
Classify = Callable[[Tensor], Tensor]  # pixels (B, C, H, W) -> log p(y | x) of each draw of noise, (M, B, K)
LOSSES = ("cross-entropy", "margin")  # either may be flat where the other is not, so attacks use both


@dataclass(frozen=True)
class Defence:
    """How classes are read. Raises `EbmtrajError` for a setting out of its range."""

    steps: int = 10  # refinement steps; 0: the classifier as it is
    level: float = 0.3  # noise that is added, in unit coordinates
    low: float = 0.05  # noise that is left
    draws: int = 16  # over which p(y | x) is averaged

    def __post_init__(self) -> None:
        if self.steps < 0 or self.draws < 1 or not 0 < self.low < self.level:
            raise EbmtrajError(
                f"refinement: steps = {self.steps}, draws = {self.draws}, level = {self.level}, low = {self.low}; it needs "
                "steps >= 0, draws >= 1 and 0 < low < level"
            )

    @property
    def ladder(self) -> Ladder:
        """The levels from the noise that is added to that which is left."""
        return Ladder(self.steps + 1, self.level, self.low, predictor="euler", spacing="angle")


@dataclass(frozen=True)
class AttackConfig:
    """Projected gradient descent (Madry et al. 2018) through the refinement.

    Raises `EbmtrajError` for an unknown norm, and for a setting out of its range.
    """

    norm: Norm = "linf"
    steps: int = 40  # of ascent
    draws: int = 8  # of noise, for each gradient, and for each answer that an attack without gradients asks for
    restarts: int = 1  # from other places within the ball, for each loss

    def __post_init__(self) -> None:
        if self.norm not in ("linf", "l2") or min(self.steps, self.draws, self.restarts) < 1:
            raise EbmtrajError(
                f"attack: norm = {self.norm}, steps = {self.steps}, draws = {self.draws}, restarts = {self.restarts}; it "
                "needs norm linf or l2, and the others at least 1"
            )


class Unlabelled(nn.Module):
    """The model's E(x, s) as an energy for the sampler."""

    def __init__(self, model: ImageModel) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: Tensor, context: None, level: Tensor) -> Tensor:
        """Energies `(B,)`."""
        return self.model.energy(x, context, level)

    def gradient(self, x: Tensor, context: None, level: Tensor) -> Tensor:
        """Gradient in x, `(B, C, H, W)`."""
        return self.model.gradient(x, context, level)


def noised(model: ImageModel, pixels: Tensor, defence: Defence, draws: int, generator: torch.Generator) -> Tensor:
    """Each image `(B, C, H, W)` under noise of the defence's level, M times over, `(M B, C, H, W)` in unit coordinates."""
    x = model.unit(pixels).repeat(draws, 1, 1, 1)
    noise = torch.empty(x.shape, device=x.device).normal_(generator=generator)
    return x + defence.level * noise


@torch.no_grad()
def classify(model: ImageModel, pixels: Tensor, defence: Defence, generator: torch.Generator) -> Tensor:
    """The defender's log p(y | x), `(B, K)`, by the sampler's chain.

    Raises `EbmtrajError` for a model that does not classify, or a refinement that it can't do.
    """
    check_defence(model, defence)
    if defence.steps == 0:
        return model.logits(pixels).log_softmax(-1)
    config = LangevinConfig(steps=0, ladder=defence.ladder)
    x, _ = langevin(Unlabelled(model), noised(model, pixels, defence, defence.draws, generator), config, generator=generator)
    return mean_log_p(_read(model, x, defence.draws))


def differentiable(model: ImageModel, defence: Defence, generator: torch.Generator, draws: int | None = None) -> Classify:
    """The attacker's view of `classify`: gradients flow through every step, and each call draws new noise.

    A chain of `draws` noises an image, as many as the defender's unless told; none where there is no refinement.
    """
    check_defence(model, defence)
    count = defence.draws if draws is None else draws

    def found(pixels: Tensor) -> Tensor:
        if defence.steps == 0:
            return model.logits(pixels).log_softmax(-1).unsqueeze(0)
        x = noised(model, pixels, defence, count, generator)
        sigmas = defence.ladder.sigmas(x.device)
        for above, below in itertools.pairwise(sigmas):
            x = predict(lambda x, level: model.gradient(x, None, level), x, above, below, "euler")
        return _read(model, x, count)

    return found


def _read(model: ImageModel, unit: Tensor, draws: int) -> Tensor:
    """Classes of images in unit coordinates, `(M, B, K)`; not clamped to [0, 1], so that gradients pass."""
    pixels = unit * model.scale + model.shift
    return model.logits(pixels).log_softmax(-1).view(draws, len(unit) // draws, -1)


def mean_log_p(each: Tensor) -> Tensor:
    """The log of the mean over draws of p(y | x), `(M, B, K) -> (B, K)`."""
    return each.logsumexp(0) - torch.log(torch.tensor(float(len(each)), device=each.device))


def check_defence(model: ImageModel, defence: Defence) -> None:
    """Raise `EbmtrajError` where the model does not classify or can't refine."""
    if not model.classifies:
        raise EbmtrajError(
            f"model {model.name} does not classify, so there is nothing to attack; train one: ebmtraj train jem"
        )
    if defence.steps and not noise_conditional(model):
        raise EbmtrajError(f"model {model.name} has no energy at every noise level to refine by; use --refine 0")


def pgd(
    seen: Classify,
    pixels: Tensor,
    labels: Tensor,
    eps: float,
    config: AttackConfig,
    loss: str,
    generator: torch.Generator,
) -> Tensor:
    """Adversarial images `(B, C, H, W)` in [0, 1] within `eps` of the given ones, by ascent on one of `LOSSES`.

    L-inf steps follow the gradient's signs, L2 steps its direction (eps counts the whole image's Euclidean distance); they
    shrink linearly to nothing.
    """
    start = torch.empty_like(pixels).uniform_(-1, 1, generator=generator)
    if config.norm == "l2":
        start = start * torch.rand((len(pixels), 1, 1, 1), generator=generator, device=pixels.device) / _length(start)
    x = (pixels + eps * start).clamp(0, 1)
    for step in range(config.steps):
        x = x.detach().requires_grad_(True)
        (slope,) = torch.autograd.grad(objective(seen(x), labels, loss).sum(), x)
        size = 5 * eps / config.steps * (1 - step / config.steps)
        with torch.no_grad():
            ahead = slope.sign() if config.norm == "linf" else slope / _length(slope)
            x = project(x + size * ahead, pixels, eps, config.norm)
    return x.detach()


def objective(each: Tensor, labels: Tensor, loss: str) -> Tensor:
    """What the attacker raises, `(B,)`: the mean over draws of the cross-entropy, or of the best other class's lead."""
    if loss == "cross-entropy":
        return -each[:, torch.arange(len(labels)), labels].mean(0)
    mean = each.mean(0)
    own = F.one_hot(labels, mean.shape[1]).bool()
    return mean.masked_fill(own, -torch.inf).amax(1) - mean[own]


def project(x: Tensor, around: Tensor, eps: float, norm: str) -> Tensor:
    """The nearest image to x within `eps` of the one `around`, and in [0, 1], all `(B, C, H, W)`."""
    change = x - around
    change = change.clamp(-eps, eps) if norm == "linf" else change * (eps / _length(change)).clamp(max=1)
    return (around + change).clamp(0, 1)


def _length(x: Tensor) -> Tensor:
    return x.flatten(1).norm(dim=1).clamp_min(1e-12).view(-1, 1, 1, 1)
