"""Where chains of training go on from: a replay buffer of past samples, and chains that persist."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ebmtraj.errors import EbmtrajError
from ebmtraj.samplers.backends import Energy
from ebmtraj.samplers.registry import SamplerConfig, sample


class ReplayBuffer:
    """Replay buffer of past samples (paper 000, section 3.2).

    A ring of at most `capacity` events on the device of its samples; its randomness comes from the given generator.
    """

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
        """Tensors, "items" `(capacity, *event)`, and numbers that bring this buffer back to the same bits."""
        return {"items": self.items}, {"count": self.count, "place": self.place}

    def load(self, tensors: dict[str, Tensor], numbers: dict[str, int]) -> None:
        """The inverse of `state`, with "items" of the same shape."""
        self.items = self.items.to(tensors["items"].device).copy_(tensors["items"])
        self.count, self.place = numbers["count"], numbers["place"]


class PersistentChains:
    """Chains that go on where they were while the energy changes: persistent contrastive divergence (Tieleman 2008)."""

    def __init__(self, start: Tensor) -> None:
        """`start` (N, *event): the first states, one chain each."""
        self.x = start.detach().clone()

    def advance(
        self,
        energy: Energy,
        config: SamplerConfig,
        *,
        context: Any = None,
        fresh: Tensor | None = None,
        restart: float = 0.0,
        generator: torch.Generator,
    ) -> Tensor:
        """Run all chains by any sampler's settings; their states `(N, *event)`, which are the negatives.

        A share `restart` of them begins anew from `fresh` `(N, *event)` first, which frees those that are stuck. Raises
        `EbmtrajError` for a share out of [0, 1] or fresh states of another shape, and what the sampler raises.
        """
        if not 0 <= restart <= 1 or (restart > 0 and (fresh is None or fresh.shape != self.x.shape)):
            raise EbmtrajError(
                f"persistent chains: restart = {restart}; it needs 0 <= restart <= 1 and, above 0, fresh states of shape "
                f"{tuple(self.x.shape)}"
            )
        if restart > 0 and fresh is not None:
            anew = torch.rand(len(self.x), generator=generator, device=self.x.device) < restart
            self.x = torch.where(anew.view(-1, *[1] * (self.x.dim() - 1)), fresh, self.x)
        self.x, _ = sample(energy, self.x, config, context=context, generator=generator)
        return self.x

    def state(self) -> tuple[dict[str, Tensor], dict[str, int]]:
        """Tensors, "chains" `(N, *event)`, and numbers that bring these chains back to the same bits."""
        return {"chains": self.x}, {}

    def load(self, tensors: dict[str, Tensor], numbers: dict[str, int]) -> None:
        """The inverse of `state`: "chains" `(N, *event)`."""
        self.x = tensors["chains"].clone()
