"""Mixture density networks (Bishop 1994)."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from ebmtraj.nets.mlp import MLP, softly_bounded


class Mixture(NamedTuple):
    """Diagonal Gaussians with weights."""

    log_weight: Tensor  # (B, K), normalised
    mean: Tensor  # (B, K, D)
    log_std: Tensor  # (B, K, D)


class MixtureMLP(nn.Module):
    """A mixture of `components` diagonal Gaussians, `(B, inputs) -> Mixture` over `(B, outputs)`."""

    def __init__(
        self,
        inputs: int,
        outputs: int,
        *,
        components: int,
        width: int = 128,
        depth: int = 3,
        low: float,
        high: float,
        spread: float = 0.5,
    ) -> None:
        """`low` and `high` bound the log standard deviation; at the start, means lie `spread` apart.

        A component that starts where none of the data is, or like another, never learns. So all begin with the same weight
        and about unit width, whatever the input, and differ in their means alone.
        """
        super().__init__()
        self.net = MLP(inputs, components * (1 + 2 * outputs), width=width, depth=depth, small=True)
        self.components, self.outputs, self.low, self.high = components, outputs, low, high
        bias = self.net[-1].bias
        assert isinstance(bias, Tensor)
        nn.init.normal_(bias[components : components * (1 + outputs)], std=spread)

    def forward(self, inputs: Tensor) -> Mixture:
        """The mixture at each input."""
        k, d = self.components, self.outputs
        logits, mean, raw = self.net(inputs).split((k, k * d, k * d), dim=-1)
        log_std = softly_bounded(raw.unflatten(-1, (k, d)), self.low, self.high)
        return Mixture(logits.log_softmax(-1), mean.unflatten(-1, (k, d)), log_std)


def choose(log_weight: Tensor, generator: torch.Generator) -> Tensor:
    """One index a row with these log probabilities, `(B, K) -> (B,)`, by the Gumbel-max trick."""
    waiting = torch.empty_like(log_weight).exponential_(generator=generator)
    return (log_weight - waiting.log()).argmax(-1)


def pick(values: Tensor, index: Tensor) -> Tensor:
    """The chosen entry of each row, `(B, K, D), (B,) -> (B, D)`."""
    return values.gather(1, index.view(-1, 1, 1).expand(-1, 1, values.shape[-1])).squeeze(1)
