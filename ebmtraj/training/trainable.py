"""What the training loop needs of data and of a model."""

from __future__ import annotations

import abc
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, Protocol

import torch
from torch import Tensor, nn

from ebmtraj.training.spread import Loss


class Examples(Protocol):
    """What a model is trained on, whatever a batch of it holds (a dataclass of tensors)."""

    @property
    def device(self) -> torch.device:
        """Where batches lie."""

    def __len__(self) -> int: ...

    def at(self, index: Tensor) -> Any:
        """The batch of the examples with these numbers, `(B,)`."""

    def sample(self, size: int, generator: torch.Generator) -> Any:
        """A batch of `size` examples drawn uniformly with replacement."""

    def seek(self, drawn: int) -> None:
        """Sample next what follows after `drawn` examples, so that a resumed training goes on as it would have."""

    def close(self) -> None:
        """Let go of threads and memory."""


@dataclass(frozen=True)
class Stage:
    """A part of the training with a loss and parameters of its own."""

    name: str
    share: float  # of all steps
    module: nn.Module  # whose parameters are trained
    loss: Loss
    finish: Callable[[Any], None] | None = None  # called once with the training data when its weights are final
    beta1: float | None = None  # where it differs from the recipe's
    rate: float = 1.0  # times the recipe's learning rate
    keep: Literal["best", "last"] = "best"  # which averaged weights: of the least validation loss, or the final ones


class Trainable(nn.Module, abc.ABC):
    """What the loop needs of a model: its weights, its stages, and what its checkpoint must say."""

    spreads: ClassVar[bool] = True  # whether several processes may train it together

    @abc.abstractmethod
    def stages(self) -> list[Stage]:
        """The stages in order; shares sum to 1."""

    @abc.abstractmethod
    def header(self) -> dict[str, Any]:
        """JSON values for the checkpoint: enough to build and use the model years later."""

    def extra_state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """What a resume needs beside the weights: tensors by name, of any shape, and numbers; nothing unless overridden."""
        return {}, {}

    def load_extra_state(self, tensors: dict[str, Tensor], numbers: dict[str, Any]) -> None:
        """The inverse of `extra_state`, with tensors of the same shape each."""
