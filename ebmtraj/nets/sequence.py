"""A recurrent network with a mixture density on top."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ebmtraj.nets.mixture import Mixture, MixtureMLP


class RecurrentMixture(nn.Module):
    """A gated recurrent unit (Cho et al. 2014) over past moves; a mixture density sees its state beside the context.

    The recurrent state is 0 where nothing is known, and entries that are not known leave it as it is, so a past that is cut
    short is one that begins later.
    """

    def __init__(
        self,
        moves: int,
        context: int,
        outputs: int,
        *,
        components: int,
        width: int = 128,
        depth: int = 2,
        low: float,
        high: float,
        spread: float = 0.5,
    ) -> None:
        """`width` units of the recurrent state and of each of the head's `depth` layers; the rest as in `MixtureMLP`."""
        super().__init__()
        self.width = width
        self.into = nn.Linear(moves, 3 * width)
        self.across = nn.Linear(width, 3 * width)
        for layer in (self.into, self.across):  # as torch's own GRU starts
            for p in layer.parameters():
                nn.init.uniform_(p, -(width**-0.5), width**-0.5)
        size = width + context
        self.head = MixtureMLP(
            size, outputs, components=components, width=width, depth=depth, low=low, high=high, spread=spread
        )

    def forward(self, moves: Tensor, known: Tensor, context: Tensor) -> Mixture:
        """The mixture after all moves `(B, H, M)`, of which those count that are `known` `(B, H)`; context `(B, C)`."""
        return self.head(torch.cat((self.states(moves, known)[:, -1], context), dim=-1))

    def states(self, moves: Tensor, known: Tensor) -> Tensor:
        """The recurrent state before the first move and after each, `(B, H, M), (B, H) -> (B, H + 1, width)`."""
        h = moves.new_zeros(len(moves), self.width)
        states = [h]
        gates = self.into(moves)  # all at once
        for t in range(moves.shape[1]):
            reset, update, new = gates[:, t].chunk(3, dim=-1)
            h_reset, h_update, h_new = self.across(h).chunk(3, dim=-1)
            update = torch.sigmoid(update + h_update)
            new = torch.tanh(new + torch.sigmoid(reset + h_reset) * h_new)
            h = torch.where(known[:, t, None], torch.lerp(new, h, update), h)
            states.append(h)
        return torch.stack(states, dim=1)
