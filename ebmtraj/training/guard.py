"""The guard: notices a training that diverges, rolls it back and tries again more carefully, a bounded number of times."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ebmtraj.errors import EbmtrajError


@dataclass(frozen=True)
class GuardConfig:
    """When a training counts as diverged and what is tried then. Raises `EbmtrajError` for a setting out of its range."""

    factor: float = 50.0  # a watched number this many times its usual size is a divergence
    floor: float = 10.0  # ... unless it is smaller than this anyhow
    limit: float = 1e6  # above this it is one at once, usual or not
    retries: int = 3  # roll-backs before giving up
    lower_rate: float = 0.5  # learning rate after a roll-back, as a share of the one before

    def __post_init__(self) -> None:
        if self.factor <= 1 or self.retries < 0 or not 0 < self.lower_rate <= 1:
            raise EbmtrajError(
                f"guard: factor = {self.factor}, retries = {self.retries}, lower_rate = {self.lower_rate}; "
                "it needs factor > 1, retries >= 0 and 0 < lower_rate <= 1"
            )


class Guard:
    """Gathers the worst of each watched number on the device and looks at it only when asked, so no step waits.

    Watched are the loss, the gradient norm and, for contrastive divergence, the energy gap and how far out chains start.
    """

    def __init__(self, config: GuardConfig) -> None:
        self.config = config
        self.usual: dict[str, float] = {}  # running mean of the worst of each window that was good
        self.tries = 0
        self._worst: dict[str, Tensor] = {}

    def watch(self, **numbers: Tensor) -> None:
        """Take in one step's numbers `()`; NaN stays NaN through the maximum."""
        for name, value in numbers.items():
            size = value.detach().abs()
            old = self._worst.get(name)
            self._worst[name] = size if old is None else torch.maximum(old, size)

    def look(self) -> str | None:
        """What is wrong with the steps since the last look, or None; reads the device once."""
        if not self._worst:
            return None
        names = list(self._worst)
        values = torch.stack([self._worst[name].float() for name in names]).tolist()
        self._worst = {}
        for name, value in zip(names, values, strict=True):
            if value != value or value == float("inf"):
                return f"{name} is not finite"
            usual = self.usual.get(name)
            bound = self.config.limit
            if usual is not None:
                bound = min(bound, max(self.config.factor * usual, self.config.floor))
            if value > bound:
                return f"{name} = {value:.3g} exceeds {bound:.3g}"
        for name, value in zip(names, values, strict=True):
            self.usual[name] = value if name not in self.usual else 0.9 * self.usual[name] + 0.1 * value
        return None

    def forget(self) -> None:
        """Start anew with what is usual, as a new stage has other sizes."""
        self.usual, self._worst = {}, {}

    def state(self) -> dict[str, object]:
        """JSON values that bring this guard back."""
        return {"usual": self.usual, "tries": self.tries}

    def load(self, state: dict[str, object]) -> None:
        """The inverse of `state`."""
        self.usual = dict(state["usual"])  # type: ignore[call-overload]
        self.tries = int(state["tries"])  # type: ignore[call-overload]
        self._worst = {}
