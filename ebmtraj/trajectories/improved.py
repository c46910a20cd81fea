"""The paper's transition energy trained by improved contrastive divergence: with the term that plain CD leaves out.

Paper 003; Du et al. 2021.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

import torch
from torch import Tensor

from ebmtraj.datasets.windows import Batch
from ebmtraj.errors import EbmtrajError
from ebmtraj.training.losses import contrastive_divergence
from ebmtraj.training.objectives import held_energy, last_step, nearest_neighbour_entropy
from ebmtraj.trajectories.transition import PairConfig, PairModel


@dataclass(frozen=True)
class ImprovedConfig(PairConfig):
    """As `PairConfig`, and how much the KL term weighs; chains move the second half of a pair.

    Raises `EbmtrajError` for a setting out of its range.
    """

    kl: float = 0.1  # weight of the KL term: the negatives' energy less their entropy
    entropy: float = 1.0  # weight of the entropy within it
    bank: int = 1000  # past samples among which nearest neighbours are looked for

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.kl < 0 or self.entropy < 0 or self.bank < 1:
            raise EbmtrajError(
                f"network: kl = {self.kl}, entropy = {self.entropy}, bank = {self.bank}; it needs kl >= 0, entropy >= 0 and "
                "bank >= 1"
            )
        if self.negatives != "next" or self.sampler.steps < 1:
            raise EbmtrajError(
                f"network: negatives = {self.negatives!r}, sampler.steps = {self.sampler.steps}; objective icd needs "
                "negatives = 'next' and sampler.steps >= 1"
            )


class ImprovedPairModel(PairModel):
    """Objective `icd`: contrastive divergence with a gradient through the last step of its chains (paper 003, L_Full).

    L = E(x+) - E(sg x-) + kl [E(x-; sg theta) - entropy H(x-)], where x- is the end of a chain as a function of theta. The
    entropy is that of whole pairs, the first half of which is held, so its gradient is that of p(s' | s).
    """

    name = "icd"
    Config = ImprovedConfig
    config: ImprovedConfig

    def _loss(self, batch: Batch, generator: torch.Generator) -> tuple[Tensor, dict[str, Tensor]]:
        if not self.training:
            return super()._loss(batch, generator)
        positive, sampler = self.pair(batch.state, batch.action, batch.next_state), self.config.sampler
        fresh = self._fresh(self.pair(batch.state, batch.action, batch.state), generator)
        start = self.buffer.start(fresh, generator, self.config.keep)
        before = self._move_next(positive, start, dataclasses.replace(sampler, steps=sampler.steps - 1), generator)
        first, second = positive[:, : self.context_size], before[:, self.context_size :]
        context = self.energy.prepare(first)
        moved = self._project(last_step(self.energy, second, sampler, context=context, generator=generator))
        negative = torch.cat((first, moved), dim=-1)
        loss, logs = contrastive_divergence(self.energy.tilt, positive, negative.detach(), self.config.alpha)
        if self.config.kl:
            fooled = held_energy(self.energy, moved, context.detach()).mean()
            entropy = nearest_neighbour_entropy(negative, self._bank())
            loss = loss + self.config.kl * (fooled - self.config.entropy * entropy)
            logs |= {"kl": (fooled - self.config.entropy * entropy).detach(), "entropy": entropy.detach()}
        self.buffer.push(negative)
        return loss, logs

    def _bank(self) -> Tensor | None:
        """The newest past samples; none at first, when neighbours are looked for among the negatives themselves."""
        buffer = self.buffer
        if buffer.count < 2:
            return None
        newest = torch.arange(buffer.place - min(self.config.bank, buffer.count), buffer.place) % buffer.capacity
        return buffer.items[newest.to(buffer.items.device)]
