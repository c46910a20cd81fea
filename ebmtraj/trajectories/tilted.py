"""How an explicit base and what tilts it are trained, whatever they are over.

Paper 004, equation 1; Vincent 2011; Karras et al. 2022.
"""

from __future__ import annotations

import abc
from typing import Any

import torch
from torch import Tensor

from ebmtraj.datasets.windows import Batch, TransitionData, spread_index
from ebmtraj.nets.base import TiltedBase
from ebmtraj.training.losses import denoising_score_matching, gaussian_nll


class TiltedLosses(abc.ABC):
    """The base by its likelihood, then, with that frozen, the tilt of its residual by denoising score matching.

    A model brings `tilted`, a `config` with `beta` and `noise`, and says in `_coordinates` what the event and context of a
    batch are.
    """

    tilted: TiltedBase
    config: Any

    @abc.abstractmethod
    def _coordinates(self, batch: Batch, generator: torch.Generator | None = None) -> tuple[Tensor, Tensor]:
        """Normalised event `(B, D)` and context `(B, C)`."""

    def _base_loss(self, batch: Batch, generator: torch.Generator) -> tuple[Tensor, dict[str, Tensor]]:
        z, context = self._coordinates(batch, generator)
        mean, log_std = self.tilted.base_net(context)
        with torch.no_grad():
            validation = gaussian_nll(z, mean, log_std).mean()
        return gaussian_nll(z, mean, log_std, self.config.beta).mean(), {"validation": validation}

    @torch.no_grad()
    def _calibrate(self, data: TransitionData, most: int = 65536) -> None:
        self.tilted.calibrate(*self._coordinates(data.at(spread_index(data, most))))

    def _residual_loss(self, batch: Batch, generator: torch.Generator) -> tuple[Tensor, dict[str, Tensor]]:
        z, context = self._coordinates(batch, generator)
        with torch.no_grad():
            base = self.tilted.base(context)
            r = self.tilted.residual(z, base)
        prepared = self.tilted.prepare(context, base)
        loss = denoising_score_matching(self.tilted.tilt, r, prepared, self.config.noise, generator).mean()
        return loss, {"validation": loss.detach()}
