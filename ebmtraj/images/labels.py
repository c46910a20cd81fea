"""Which images keep their label where most are to be unlabelled."""

from __future__ import annotations

import torch
from torch import Tensor

from ebmtraj.errors import EbmtrajError


def kept_labels(labels: Tensor, count: int, classes: int, seed: int) -> Tensor:
    """Which of the images with these labels `(N,)` keep theirs: `count` in all, evenly over the classes, `(N,)` bool.

    All, where `count` is 0; the same ones for the same seed. Raises `EbmtrajError` where there are not so many.
    """
    if count == 0:
        return torch.ones(len(labels), dtype=torch.bool, device=labels.device)
    if not classes <= count <= len(labels):
        raise EbmtrajError(
            f"network.labelled = {count}: there are {len(labels)} training images of {classes} classes; give a number from "
            f"{classes} to {len(labels)}, or 0 for all"
        )
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(seed))
    own = labels.cpu()[order]
    turn = torch.zeros(len(labels), dtype=torch.long)  # how many of its class come before it
    for kind in range(classes):
        where = own == kind
        turn[where] = torch.arange(int(where.sum()))
    kept = torch.zeros(len(labels), dtype=torch.bool)
    kept[order[torch.argsort(turn, stable=True)[:count]]] = True
    return kept.to(labels.device)
