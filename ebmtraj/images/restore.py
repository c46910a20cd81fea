"""Restoration of damaged images: the model's energy plus a data term, sampled down the noise ladder.

At level s the sum is E(x, s) + d(D(x, s), s): d says how badly a clean image explains what was observed, and is asked of the
model's own estimate of it, D(x, s) = x - s^2 grad E (Tweedie), which is uncertain by r^2 = s^2 / (1 + s^2) for images of unit
spread (Song et al. 2023, pseudoinverse-guided diffusion). It goes through the sampler that everything else goes through.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
import torch
from scipy.ndimage import median_filter
from torch import Tensor, nn
from torch.nn import functional as F

from ebmtraj.errors import EbmtrajError
from ebmtraj.images.model import ImageModel
from ebmtraj.samplers.anneal import Ladder
from ebmtraj.samplers.langevin import LangevinConfig, langevin

Task = Literal["salt-and-pepper", "inpaint", "super-resolve"]
TASKS: tuple[Task, ...] = ("salt-and-pepper", "inpaint", "super-resolve")


@dataclass(frozen=True)
class RestoreConfig:
    """How images are restored."""

    draws: int = 16  # restorations of each image; their mean has the least squared error
    tolerance: float = 0.05  # standard deviation that an observed pixel is taken to have, in unit coordinates
    sampler: LangevinConfig = field(
        default_factory=lambda: LangevinConfig(steps=0, ladder=Ladder(levels=40, sigma_max=20.0, sigma_min=0.02))
    )

    def __post_init__(self) -> None:
        if self.draws < 1 or not self.tolerance > 0 or self.sampler.ladder is None:
            raise EbmtrajError(
                f"restore: draws = {self.draws}, tolerance = {self.tolerance}; it needs draws >= 1, tolerance > 0 and a "
                "sampler with a ladder"
            )


@dataclass(frozen=True)
class Damaged:
    """What is left of some images."""

    pixels: Tensor  # (B, C, H, W) what was observed, in [0, 1]; for super-resolution the small images, enlarged
    task: Task
    amount: float  # share of pixels replaced, or of rows hidden; for super-resolution the factor


def damage(pixels: Tensor, task: Task, amount: float | None, generator: torch.Generator) -> Damaged:
    """Damage images `(B, C, H, W)`: salt and pepper on a share of the pixels, rows hidden from below, or a factor of size.

    All channels of a pixel go together. Raises `EbmtrajError` for an unknown task or an amount out of range.
    """
    if task not in TASKS:
        raise EbmtrajError(f"unknown task {task!r}; use {', '.join(TASKS)}")
    amount = {"salt-and-pepper": 0.3, "inpaint": 0.5, "super-resolve": 2.0}[task] if amount is None else amount
    height, width = pixels.shape[-2:]
    if task == "super-resolve":
        factor = int(amount)
        if factor != amount or factor < 2 or height % factor or width % factor:
            raise EbmtrajError(f"--amount {amount:g}: images of {height} x {width} can't be that many times smaller; try 2")
        small = F.avg_pool2d(pixels, factor)
        return Damaged(F.interpolate(small, scale_factor=factor, mode="nearest"), task, amount)
    if not 0 < amount < 1:
        raise EbmtrajError(f"--amount {amount:g}: {task} takes a share between 0 and 1")
    if task == "inpaint":
        return Damaged(pixels * known(pixels, amount), task, amount)
    hit, salt = torch.rand((2, len(pixels), 1, height, width), generator=generator, device=pixels.device)
    return Damaged(torch.where(hit < amount, (salt < 0.5).to(pixels), pixels), task, amount)


def known(pixels: Tensor, hidden: float) -> Tensor:
    """1 in the rows that inpainting shows, 0 in the share of rows from below that it hides, `(1, 1, H, W)`."""
    rows = pixels.shape[-2]
    shown = rows - max(1, min(rows - 1, round(hidden * rows)))
    return (torch.arange(rows, device=pixels.device) < shown).to(pixels).view(1, 1, rows, 1).expand(1, 1, *pixels.shape[-2:])


class Restoration(nn.Module):
    """The energy of an image and of what was observed of it, in unit coordinates: what the sampler is given."""

    def __init__(self, model: ImageModel, damaged: Damaged, tolerance: float, resolution: float = 1 / 16) -> None:
        super().__init__()
        self.model, self.damaged, self.tolerance = model, damaged, tolerance
        self.resolution = resolution
        self.observed = model.unit(damaged.pixels)

    def forward(self, x: Tensor, label: Tensor | None, level: Tensor) -> Tensor:
        """E(x, s) + d(D(x, s), s), `(B,)`."""
        clean = self.model.denoise(x, level, label)
        return self.model.energy(x, label, level) + self.data(clean, level)

    def gradient(self, x: Tensor, label: Tensor | None, level: Tensor) -> Tensor:
        """Gradient in x, `(B, C, H, W)`: the model's own, and the data term's through the denoiser."""
        with torch.enable_grad():
            x = x.detach().requires_grad_(True)
            slope = self.model.gradient(x, label, level)
            pull = torch.autograd.grad(self.data(x - level**2 * slope, level).sum(), x)[0]
        return slope.detach() + pull

    def data(self, clean: Tensor, level: Tensor) -> Tensor:
        """How badly clean images explain what was observed, -log p up to a constant, `(B,)`."""
        spread = level**2 / (1 + level**2)
        error, task = (clean - self.observed) ** 2, self.damaged.task
        if task == "inpaint":
            error = error * known(error, self.damaged.amount)
            return 0.5 * error.flatten(1).sum(1) / (spread + self.tolerance**2)
        if task == "super-resolve":
            f = int(self.damaged.amount)
            error = F.avg_pool2d(clean - self.observed, f) ** 2
            return 0.5 * error.flatten(1).sum(1) / (spread / f**2 + self.tolerance**2)
        return self._impulses(error, spread + self.tolerance**2).flatten(1).sum(1)

    def _impulses(self, error: Tensor, variance: Tensor) -> Tensor:
        """-log of: kept, and then near what was observed, or replaced, and then black or white by half, a pixel."""
        share, seen = self.damaged.amount, self.damaged.pixels
        fits = (seen == seen[:, :1]).all(1, keepdim=True) & ((seen[:, :1] == 0) | (seen[:, :1] == 1))  # black or white
        width = self.resolution / self.model.scale
        kept = (width.log() - 0.5 * (error / variance + (2 * math.pi * variance).log())).sum(1, keepdim=True)
        replaced = torch.where(fits, math.log(0.5 * share / (1 - share)), -torch.inf)
        return -torch.logaddexp(kept, replaced)
