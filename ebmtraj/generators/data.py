"""What generators are trained on: the images of a store, or points of a plane whose density is known."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from ebmtraj.datasets.blocks import SPLITS
from ebmtraj.datasets.images import ImageStore, open_images
from ebmtraj.datasets.toy import TOYS, Toy, sample, toy_hash
from ebmtraj.errors import EbmtrajError

TOY_COUNTS = {"train": 20_000, "validation": 5_000, "test": 5_000}
TOY_SEED = 0  # of the points; trainings differ by their own seed


@dataclass(frozen=True)
class EventBatch:
    """Some events."""

    x: Tensor  # (B, *event) in the data's own units
    index: Tensor  # (B,)


class Events:
    """Events of a split in memory."""

    def __init__(self, x: Tensor) -> None:
        """`x` (N, *event)."""
        self.x = x

    @property
    def device(self) -> torch.device:
        """Where batches lie."""
        return self.x.device

    def __len__(self) -> int:
        return len(self.x)

    def at(self, index: Tensor) -> EventBatch:
        """The batch of the events with these numbers, `(B,)`."""
        return EventBatch(self.x[index], index)

    def sample(self, size: int, generator: torch.Generator) -> EventBatch:
        """A batch of `size` events drawn uniformly with replacement."""
        return self.at(torch.randint(len(self), (size,), generator=generator, device=self.device))

    def seek(self, drawn: int) -> None:
        """Nothing: what is drawn depends on the generator alone."""

    def close(self) -> None:
        """Nothing is held open."""


@dataclass(frozen=True)
class EventSource:
    """A toy, or a store of images."""

    name: str
    toy: Toy | None = None
    store: ImageStore | None = None

    @property
    def shape(self) -> tuple[int, ...]:
        """Of an event."""
        return (2,) if self.store is None else self.store.shape

    @property
    def levels(self) -> int:
        """Steps between the least and the greatest value; 0: values are continuous."""
        return 0 if self.store is None else self.store.levels

    @cached_property
    def content_hash(self) -> str:
        """The same for the same data."""
        return toy_hash(self.name, TOY_COUNTS["train"], TOY_SEED) if self.store is None else self.store.content_hash

    def read(self, split: str) -> Tensor:
        """Events of "train", "validation" or "test", `(N, *event)`; raises `EbmtrajError` for another split."""
        if split not in SPLITS:
            raise EbmtrajError(f"unknown split {split!r}; use one of {', '.join(SPLITS)}")
        if self.store is not None:
            return torch.from_numpy(self.store.read(split).pixels)
        return torch.from_numpy(sample(self.name, TOY_COUNTS[split], TOY_SEED, split)).float()


def open_source(data: str) -> EventSource:
    """The toy of this name, or the images of a source's name or store; raises `EbmtrajError` where there is neither."""
    if data in TOYS:
        return EventSource(data, toy=TOYS[data])
    try:
        return EventSource(data, store=open_images(data))
    except EbmtrajError as error:
        if "neither a store nor a source" not in str(error):
            raise
        raise EbmtrajError(f"{str(error).removesuffix('.')}; toys are {', '.join(TOYS)}") from None
