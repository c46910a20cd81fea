"""Actions as the data would take them, drawn from a window model along a future that is only imagined.

Mutations: Yang et al. 2024.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ebmtraj.datasets.windows import Past
from ebmtraj.samplers.anneal import Ladder
from ebmtraj.samplers.langevin import frozen
from ebmtraj.trajectories.window import WindowModel


class Behaviour:
    """Draws windows of actions from a window model's energy, or from its Gaussian base alone."""

    def __init__(self, model: WindowModel, *, energy: bool = True, levels: int = 6) -> None:
        self.model, self.energy, self.levels = model, energy, levels
        self.length = model.config.actions

    @torch.no_grad()
    def draw(
        self, state: Tensor, past: Past, generator: torch.Generator, near: Tensor | None = None, renoise: float = 0.0
    ) -> Tensor:
        """A window of actions `(R, W, A)` in each state `(R, S)`.

        With `near` `(R, W, A)`, what is drawn is those actions with noise of level `renoise` on their residuals, taken back
        off by the model: a mutation that stays where the data are (the truncated diffusion of Yang et al. 2024).
        """
        model = self.model
        situation = model.situation(state, past.recent(model.config.controls))
        x = torch.empty_like(situation.base.mean).normal_(generator=generator)
        top = 5.0
        if near is not None:
            r = model.tilted.residual(model.normalised(near), situation.base)
            x, top = r + renoise * x, renoise
        elif self.energy:
            x = x * (1 + top**2) ** 0.5
        if self.energy:
            with frozen(model):
                sigmas = torch.cat((Ladder(self.levels, top, min(0.05, 0.5 * top)).sigmas(x.device), x.new_zeros(1)))
                for k in range(self.levels):
                    s = sigmas[k]
                    denoised = x - s**2 * model.tilted.tilt.gradient(x, situation.prior, s)
                    x = denoised + sigmas[k + 1] / s * (x - denoised)
        elif near is not None:  # of a unit Gaussian, the noise is taken off in closed form
            x = x / (1 + renoise**2) ** 0.5
        bounded = x.clamp(-model.tilted.bound, model.tilted.bound)
        return model.restored(model.tilted.increment(bounded, situation.base))


class Chained:
    """Actions of R imagined futures, see `imagine`: given ones as far as there are any, and else windows drawn one by one.

    A row's window is drawn in the state in which the last one left it, as one `member` `(R,)` of the model sees it.
    """

    def __init__(
        self,
        prior: Behaviour,
        past: Past,
        member: Tensor,
        generator: torch.Generator,
        sequence: Tensor,
        fixed: Tensor,
        mutation: tuple[Tensor, float] | None = None,
    ) -> None:
        """`sequence` `(R, T, A)` is given where `fixed` `(R, T)`; `mutation` is parents `(R, T, A)` and a level of noise."""
        self.prior, self.past, self.member, self.generator = prior, past, member, generator
        self.sequence, self.fixed, self.mutation = sequence, fixed, mutation
        self._rows = torch.arange(len(member), device=member.device)

    def __call__(self, t: int, states: Tensor) -> Tensor:
        """The actions of step t in states `(M, R, S)`."""
        own, length = states[self.member, self._rows], self.prior.length
        if t % length == 0:
            parents, level = self.mutation or (None, 0.0)
            near = None if parents is None else _filled(parents[:, t : t + length], length)
            self._window = self.prior.draw(own, self.past, self.generator, near, level)
        action = torch.where(self.fixed[:, t].unsqueeze(1), self.sequence[:, t], self._window[:, t % length])
        self.past = self.past.push(own, action)
        return action


def _filled(actions: Tensor, length: int) -> Tensor:
    """A window `(R, length, A)`: where there are fewer actions, the last one repeated."""
    missing = length - actions.shape[1]
    return torch.cat((actions, actions[:, -1:].expand(-1, missing, -1)), dim=1) if missing else actions
