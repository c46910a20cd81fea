"""Actions as the data would take them, drawn from a window model along a future that is only imagined."""

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
