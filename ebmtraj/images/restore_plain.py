"""What restores images without an energy: median filter, mean fill, enlargement, and a Gaussian given what is known."""

from __future__ import annotations

import numpy as np
import torch
from scipy.ndimage import median_filter
from torch import Tensor
from torch.nn import functional as F

from ebmtraj.errors import EbmtrajError
from ebmtraj.images.restore import Damaged, shown

MOST_ENTRIES = 4096  # of an image, for a full covariance


def median_filtered(damaged: Damaged, size: int = 3) -> Tensor:
    """Median of the `size` x `size` pixels around each one, channel by channel, mirrored at the border, `(B, C, H, W)`."""
    filtered = median_filter(damaged.pixels.cpu().numpy(), size=(1, 1, size, size), mode="reflect")
    return torch.from_numpy(np.ascontiguousarray(filtered)).to(damaged.pixels)


def mean_filled(damaged: Damaged, train: Tensor) -> Tensor:
    """Hidden pixels take the mean of the training images `(N, C, H, W)`, `(B, C, H, W)`."""
    return torch.where(shown(train, damaged.amount).bool(), damaged.pixels, train.mean(0))


def enlarged(damaged: Damaged) -> Tensor:
    """The small images, enlarged bicubically, `(B, C, H, W)`."""
    small = F.avg_pool2d(damaged.pixels, int(damaged.amount))
    return F.interpolate(small, scale_factor=damaged.amount, mode="bicubic", align_corners=False).clamp(0, 1)


def gaussian_given(damaged: Damaged, train: Tensor, variance: float = 1e-3) -> Tensor:
    """Expected images `(B, C, H, W)` of a Gaussian fitted to the training ones `(N, C, H, W)`, given what was observed.

    For hidden rows or small images y = A x: E[x | y] = m + C A' (A C A' + v)^-1 (y - A m). For salt and pepper, the same
    with the damage's own mean and covariance (the linear estimate of least squared error). Raises `EbmtrajError` for images
    too large for a full covariance.
    """
    shape, size = damaged.pixels.shape[1:], damaged.pixels[0].numel()
    if size > MOST_ENTRIES:
        raise EbmtrajError(f"images of {size} entries; a full Gaussian takes at most {MOST_ENTRIES}")
    flat = train.flatten(1).double()
    mean, cov = flat.mean(0), torch.cov(flat.T)
    y, eye = damaged.pixels.flatten(1).double(), torch.eye(size, dtype=torch.double, device=flat.device)
    if damaged.task == "salt-and-pepper":
        a = damaged.amount
        seen, observed = (1 - a) * mean + 0.5 * a, (1 - a) ** 2 * cov
        own = (1 - a) * (cov.diagonal() + mean**2) + 0.5 * a - seen**2  # of black, white and kept pixels together
        observed = observed - torch.diag(observed.diagonal()) + torch.diag(own)
        cross = (1 - a) * cov
    else:
        if damaged.task == "inpaint":
            linear = torch.diag(shown(train, damaged.amount).expand(1, *shape).flatten().double())
        else:
            basis = eye.float().view(size, *shape)
            blocks = F.interpolate(
                F.avg_pool2d(basis, int(damaged.amount)), scale_factor=int(damaged.amount), mode="nearest"
            )
            linear = blocks.flatten(1).double().T
        seen, observed, cross = linear @ mean, linear @ cov @ linear.T, cov @ linear.T
    gain = torch.linalg.solve(observed + variance * eye, cross.T).T
    out = (mean + (y - seen) @ gain.T).view(-1, *shape).to(damaged.pixels).clamp(0, 1)
    return torch.where(shown(out, damaged.amount).bool(), damaged.pixels, out) if damaged.task == "inpaint" else out
