"""Cross-entropy of the worst images nearby, for classifiers that are to withstand attacks (Madry et al. 2018)."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

STEPS = 5  # of ascent for each training batch


def adversarial(
    logits: Callable[[Tensor], Tensor],
    pixels: Tensor,
    label: Tensor,
    eps: float,
    generator: torch.Generator,
    steps: int = STEPS,
) -> Tensor:
    """Images `(B, C, H, W)` in [0, 1] within `eps` (L-inf) of the given ones whose labels are harder to tell.

    `logits` takes pixels and must see the same noise at each call, if any.
    """
    noise = torch.empty(pixels.shape, device=pixels.device).uniform_(-eps, eps, generator=generator)
    x = (pixels + noise).clamp(0, 1)
    for _ in range(steps):
        with torch.enable_grad():
            x = x.detach().requires_grad_(True)
            (slope,) = torch.autograd.grad(F.cross_entropy(logits(x), label, reduction="sum"), x)
        with torch.no_grad():
            x = x + 2 * eps / steps * slope.sign()
            x = torch.minimum(torch.maximum(x, pixels - eps), pixels + eps).clamp(0, 1)
    return x.detach()
