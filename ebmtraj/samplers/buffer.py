"""Replay buffer of past samples (paper 000, section 3.2)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


class ReplayBuffer:
    """A ring of at most `capacity` events on the device of its samples; its randomness comes from the given generator."""

    def __init__(self, capacity: int, event: Sequence[int]) -> None:
        self.capacity = capacity
        self.items = torch.zeros((capacity, *event))
        self.count = 0  # how many places hold a sample
        self.place = 0  # where the next one goes

    def push(self, samples: Tensor) -> None:
        """Add samples `(B, *event)`, the newest in place of the oldest."""
        samples = samples.detach()[-self.capacity :]
        self.items = self.items.to(samples.device)
        index = (self.place + torch.arange(len(samples), device=self.items.device)) % self.capacity
        self.items[index] = samples
        self.place = (self.place + len(samples)) % self.capacity
        self.count = min(self.capacity, self.count + len(samples))

    def start(self, fresh: Tensor, generator: torch.Generator, keep: float = 0.95) -> Tensor:
        """Chain starts `(B, *event)`: from the buffer with probability `keep`, else from `fresh` (Algorithm 1)."""
        if self.count == 0:
            return fresh
        size, device = len(fresh), self.items.device
        index = torch.randint(self.count, (size,), generator=generator, device=device)
        old = torch.rand(size, generator=generator, device=device) < keep
        return torch.where(old.view(-1, *[1] * (fresh.dim() - 1)), self.items[index], fresh)

    def state(self) -> tuple[dict[str, Tensor], dict[str, int]]:
        """Tensors and numbers that bring this buffer back to the same bits."""
        return {"items": self.items}, {"count": self.count, "place": self.place}

    def load(self, tensors: dict[str, Tensor], numbers: dict[str, int]) -> None:
        """The inverse of `state`."""
        self.items = self.items.to(tensors["items"].device).copy_(tensors["items"])
        self.count, self.place = numbers["count"], numbers["place"]
