"""Several networks of one shape as one batched network."""

from __future__ import annotations

import itertools
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ebmtraj.nets.mlp import hidden_sizes, softly_bounded


class EnsembleLinear(nn.Module):
    """`members` linear layers with weights of their own, `(M, B, inputs) -> (M, B, outputs)`, in one batched product."""

    def __init__(self, members: int, inputs: int, outputs: int) -> None:
        super().__init__()
        bound = inputs**-0.5  # as nn.Linear starts
        self.weight = nn.Parameter(torch.empty(members, inputs, outputs).uniform_(-bound, bound))
        self.bias = nn.Parameter(torch.empty(members, 1, outputs).uniform_(-bound, bound))

    def forward(self, x: Tensor) -> Tensor:
        """Each member's product with its own inputs; of fewer inputs than members, the first members'."""
        return torch.baddbmm(self.bias[: len(x)], x, self.weight[: len(x)])


class EnsembleGaussianMLP(nn.Module):
    """`GaussianMLP`, `members` times over: `(B, inputs) -> (M, B, outputs), (M, B, outputs)`.

    Inputs `(M, B, inputs)` are each member's own, or the first M members' where these are fewer.
    """

    def __init__(
        self, members: int, inputs: int, outputs: int, *, width: int = 128, depth: int = 3, low: float, high: float
    ) -> None:
        """`low` and `high` bound the log standard deviation."""
        super().__init__()
        sizes = [inputs, *hidden_sizes(width, depth), 2 * outputs]
        self.layers = nn.ModuleList(EnsembleLinear(members, a, b) for a, b in itertools.pairwise(sizes))
        self.members, self.low, self.high = members, low, high

    def forward(self, inputs: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and log standard deviation of every member."""
        mean, raw = self.layers[-1](self._hidden(inputs)).chunk(2, dim=-1)
        return mean, softly_bounded(raw, self.low, self.high)

    def mean(self, inputs: Tensor) -> Tensor:
        """The mean alone, `(M, B, outputs)`."""
        h, last = self._hidden(inputs), cast(EnsembleLinear, self.layers[-1])
        half = last.bias.shape[-1] // 2
        return torch.baddbmm(last.bias[: len(h), :, :half], h, last.weight[: len(h), :, :half])

    def _hidden(self, inputs: Tensor) -> Tensor:
        h = inputs if inputs.dim() == 3 else inputs.expand(self.members, *inputs.shape)
        for layer in list(self.layers)[:-1]:
            h = F.silu(layer(h))
        return h


class EnsembleMLP(nn.Module):
    """`members` swish networks of an event and its context, `(B, D), (B, C) -> (M, B, outputs)`.

    The context's share of the first layer is a call of its own, `prepare`, so that many events of one context share it.
    """

    def __init__(self, members: int, event: int, context: int, outputs: int, *, width: int = 256, depth: int = 2) -> None:
        """`depth` hidden layers of `width` units."""
        super().__init__()
        self.members = members
        self.input_event = EnsembleLinear(members, event, width)
        self.input_context = EnsembleLinear(members, context, width)
        sizes = [*hidden_sizes(width, depth), outputs]
        self.layers = nn.ModuleList(EnsembleLinear(members, a, b) for a, b in itertools.pairwise(sizes))

    def prepare(self, context: Tensor) -> Tensor:
        """What `forward` needs of the context, `(B, C) -> (M, B, width)`."""
        return self.input_context(context.expand(self.members, *context.shape))

    def forward(self, event: Tensor, prepared: Tensor) -> Tensor:
        """The output of every member."""
        h = self.input_event(event.expand(self.members, *event.shape)) + prepared
        for layer in self.layers:
            h = layer(F.silu(h))
        return h
