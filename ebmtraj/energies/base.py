"""The contract of an energy."""

from __future__ import annotations

from typing import Any, Protocol

from torch import Tensor


class Energy(Protocol):
    """An energy gives one number to each element of a batch: `(B, *event), context[, level] -> (B,)`.

    It is differentiable in its first argument. One that has its input gradient in closed form offers it as
    `gradient(x, context[, level]) -> (B, *event)`; the sampler then uses that.
    """

    def __call__(self, x: Tensor, context: Any, level: Tensor | None = None) -> Tensor:
        """Energies `(B,)`."""
        ...
