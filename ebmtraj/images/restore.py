"""Restoration of damaged images: the model's energy plus a data term, sampled down the noise ladder.

At level s the sum is E(x, s) + d(D(x, s), s): d says how badly a clean image explains what was observed, and is asked of
the model's own estimate of it, D(x, s) = x - s^2 grad E (Tweedie), which is uncertain by r^2 = s^2 / (1 + s^2) for images
of unit spread (Song et al. 2023, pseudoinverse-guided diffusion). It goes through the same sampler as everything else.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal, get_args

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ebmtraj.errors import EbmtrajError
from ebmtraj.images.model import ImageModel
from ebmtraj.samplers.anneal import Ladder
from ebmtraj.samplers.langevin import LangevinConfig, langevin

Task = Literal["salt-and-pepper", "inpaint", "super-resolve"]
TASKS: tuple[str, ...] = get_args(Task)
AMOUNTS = {"salt-and-pepper": 0.3, "inpaint": 0.5, "super-resolve": 2.0}


@dataclass(frozen=True)
class RestoreConfig:
    """How images are restored. Raises `EbmtrajError` for a setting out of its range, and for a sampler without a ladder."""

    tolerance: float = 0.1  # standard deviation that an observed pixel is taken to have, in unit coordinates
    resolution: float = 1 / 16  # salt and pepper: black or white pixels within this much of black or white were perhaps kept
    sampler: LangevinConfig = field(  # corrector steps at each level, so that known and unknown pixels come to agree
        default_factory=lambda: LangevinConfig(steps=3, step_size=0.4, ladder=Ladder(levels=20, sigma_max=8.0))
    )

    def __post_init__(self) -> None:
        if not self.tolerance > 0 or not self.resolution > 0 or self.sampler.ladder is None:
            raise EbmtrajError(
                f"restore: tolerance = {self.tolerance}, resolution = {self.resolution}; both must be above 0, and the "
                "sampler needs a ladder"
            )


@dataclass(frozen=True)
class Damaged:
    """What is left of some images."""

    pixels: Tensor  # (B, C, H, W) what was observed, in [0, 1]; for super-resolution the small images, enlarged in blocks
    task: Task
    amount: float  # share of pixels replaced, or of rows hidden; for super-resolution the factor

    def repeat(self, times: int) -> Damaged:
        """All images, so many times over."""
        return Damaged(self.pixels.repeat(times, 1, 1, 1), self.task, self.amount)


def damage(pixels: Tensor, task: str, amount: float | None, generator: torch.Generator) -> Damaged:
    """Damage images `(B, C, H, W)`: salt and pepper on a share of the pixels, rows hidden from below, or a factor of size.

    All channels of a pixel go together. Raises `EbmtrajError` for an unknown task or an amount out of range.
    """
    if task not in TASKS:
        raise EbmtrajError(f"unknown task {task!r}; use {', '.join(TASKS)}")
    amount = AMOUNTS[task] if amount is None else amount
    height, width = pixels.shape[-2:]
    if task == "super-resolve":
        factor = int(amount)
        if factor != amount or factor < 2 or height % factor or width % factor:
            raise EbmtrajError(
                f"--amount {amount:g}: images of {height} x {width} can't be so many times smaller; give a whole divisor"
            )
        small = F.avg_pool2d(pixels, factor)
        return Damaged(F.interpolate(small, scale_factor=factor, mode="nearest"), "super-resolve", amount)
    if not 0 < amount < 1:
        raise EbmtrajError(f"--amount {amount:g}: {task} takes a share between 0 and 1")
    if task == "inpaint":
        return Damaged(pixels * shown(pixels, amount), "inpaint", amount)
    hit, salt = torch.rand((2, len(pixels), 1, height, width), generator=generator, device=pixels.device)
    return Damaged(torch.where(hit < amount, (salt < 0.5).to(pixels), pixels), "salt-and-pepper", amount)


def shown(pixels: Tensor, hidden: float) -> Tensor:
    """1 in the rows that inpainting shows, 0 in the share of rows from below that it hides, `(1, 1, H, W)`."""
    rows, columns = pixels.shape[-2:]
    kept = rows - max(1, min(rows - 1, round(hidden * rows)))
    return (torch.arange(rows, device=pixels.device) < kept).to(pixels).view(1, 1, rows, 1).expand(1, 1, rows, columns)


class Restoration(nn.Module):
    """The energy of an image and of what was observed of it, in unit coordinates: what the sampler is given."""

    def __init__(self, model: ImageModel, damaged: Damaged, config: RestoreConfig) -> None:
        super().__init__()
        self.model, self.damaged, self.config = model, damaged, config
        self.observed = model.unit(damaged.pixels)

    def forward(self, x: Tensor, label: Tensor | None, level: Tensor) -> Tensor:
        """E(x, s) + d(D(x, s), s), `(B,)`."""
        return self.model.energy(x, label, level) + self.data(self.model.denoise(x, level, label), level)

    def gradient(self, x: Tensor, label: Tensor | None, level: Tensor) -> Tensor:
        """Gradient in x, `(B, C, H, W)`: the model's own, and the data term's through the denoiser."""
        with torch.enable_grad():
            x = x.detach().requires_grad_(True)
            slope = self.model.gradient(x, label, level)
            pull = torch.autograd.grad(self.data(x - level**2 * slope, level).sum(), x)[0]
        return slope.detach() + pull

    def data(self, clean: Tensor, level: Tensor) -> Tensor:
        """How badly clean images explain what was observed, -log p up to a constant, `(B,)`."""
        damaged, tolerance = self.damaged, self.config.tolerance**2
        spread = level**2 / (1 + level**2)
        error = clean - self.observed
        if damaged.task == "salt-and-pepper":
            return self._impulses(error**2, spread + tolerance)
        if damaged.task == "inpaint":
            return 0.5 * (error * shown(error, damaged.amount)).square().flatten(1).sum(1) / (spread + tolerance)
        factor = int(damaged.amount)
        return 0.5 * F.avg_pool2d(error, factor).square().flatten(1).sum(1) / (spread / factor**2 + tolerance)

    def _impulses(self, error: Tensor, variance: Tensor) -> Tensor:
        """-log of two cases a pixel: kept, and so near what is seen; or replaced, and then black or white evenly, `(B,)`."""
        share, seen = self.damaged.amount, self.damaged.pixels
        fits = (seen == seen[:, :1]).all(1, keepdim=True) & ((seen[:, :1] == 0) | (seen[:, :1] == 1))
        width = self.config.resolution / self.model.scale
        kept = (width.log() - 0.5 * (error / variance + (2 * math.pi * variance).log())).sum(1, keepdim=True)
        replaced = torch.where(fits, math.log(0.5 * share / (1 - share)), -torch.inf)
        return -torch.logaddexp(kept, replaced).flatten(1).sum(1)


def restore(
    model: ImageModel,
    damaged: Damaged,
    generator: torch.Generator,
    config: RestoreConfig | None = None,
    *,
    draws: int = 16,
    on_draw: Callable[[int], None] = lambda done: None,
) -> Tensor:
    """Sample images given what was observed of them, `(draws, B, C, H, W)` pixels; their mean has the least squared error.

    Raises `EbmtrajError` for a model without an energy at every noise level.
    """
    check_restores(model)
    config = config or RestoreConfig()
    ladder = config.sampler.ladder
    assert ladder is not None, "checked by RestoreConfig"
    energy, found = Restoration(model, damaged, config), []
    for draw in range(draws):
        start = torch.empty_like(damaged.pixels).normal_(generator=generator) * (1 + ladder.sigma_max**2) ** 0.5
        x, _ = langevin(energy, start, config.sampler, generator=generator)
        out = model.pixels(x)
        if damaged.task == "inpaint":
            out = torch.where(shown(out, damaged.amount).bool(), damaged.pixels, out)
        found.append(out)
        on_draw(draw + 1)
    return torch.stack(found)


def check_restores(model: ImageModel) -> None:
    """Raise `EbmtrajError` for a model that is no energy at every noise level."""
    if not noise_conditional(model):
        raise EbmtrajError(
            f"model {model.name} has no energy at every noise level; restore with a run of train image or train jem"
        )


def noise_conditional(model: ImageModel) -> bool:
    """Whether the model was trained under noise of all levels, so that it can be sampled down a ladder."""
    return type(model).energy is not ImageModel.energy and hasattr(model.config, "noise")


def denoised_once(model: ImageModel, damaged: Damaged, level: float) -> Tensor:
    """The model's expected clean image, taking all damage for Gaussian noise of this level, `(B, C, H, W)` pixels."""
    check_restores(model)
    with torch.no_grad():
        return model.pixels(model.denoise(model.unit(damaged.pixels), damaged.pixels.new_tensor(level)))
