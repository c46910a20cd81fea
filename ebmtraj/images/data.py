"""Images of a store's split as the training loop wants them."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ebmtraj.datasets.images import ImageStore


@dataclass(frozen=True)
class ImageBatch:
    """Some images."""

    x: Tensor  # (B, C, H, W) pixels in [0, 1]
    label: Tensor | None  # (B,) int64, or None where the store has no labels
    index: Tensor  # (B,) their numbers in the store


class ImageData:
    """All images of a split in memory, as bytes, on a device."""

    def __init__(self, raw: Tensor, label: Tensor | None, index: Tensor, levels: int, classes: tuple[str, ...]) -> None:
        """`raw` (N, C, H, W) holds whole numbers from 0 to `levels`; `label` and `index` are (N,)."""
        self.raw, self.label, self.index, self.levels, self.classes = raw, label, index, levels, classes

    @classmethod
    def load(cls, store: ImageStore, split: str, device: torch.device | str = "cpu", limit: int | None = None) -> ImageData:
        """The first `limit` images of "train", "validation" or "test", or all; raises `EbmtrajError` as the store does."""
        raw, label, index, _ = store.read_raw(split)
        labels = None if label is None else torch.from_numpy(label[:limit]).long().to(device)
        own = torch.from_numpy(raw[:limit]).to(device)
        return cls(own, labels, torch.from_numpy(index[:limit]).to(device), store.levels, store.classes)

    @property
    def device(self) -> torch.device:
        """Where batches lie."""
        return self.raw.device

    @property
    def pixels(self) -> Tensor:
        """All images, `(N, C, H, W)` in [0, 1]."""
        return self.raw.float() / self.levels

    def __len__(self) -> int:
        return len(self.raw)

    def at(self, index: Tensor) -> ImageBatch:
        """The batch of the images with these numbers in the split, `(B,)`."""
        return ImageBatch(
            x=self.raw[index].float() / self.levels,
            label=None if self.label is None else self.label[index],
            index=self.index[index],
        )

    def sample(self, size: int, generator: torch.Generator) -> ImageBatch:
        """A batch of `size` images drawn uniformly with replacement."""
        return self.at(torch.randint(len(self), (size,), generator=generator, device=self.device))

    def seek(self, drawn: int) -> None:
        """Nothing: what is drawn depends on the generator alone."""

    def close(self) -> None:
        """Nothing is held open."""
