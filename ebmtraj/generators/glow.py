"""Glow (Kingma and Dhariwal 2018) from normflows' blocks: a flow of images by invertible convolutions."""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, cast

import normflows
import torch
from torch import Tensor, nn

from ebmtraj.errors import EbmtrajError
from ebmtraj.generators.data import EventBatch, Events
from ebmtraj.generators.model import LOG_2PI, Generator
from ebmtraj.training.trainable import Stage


@dataclass(frozen=True)
class GlowConfig:
    """Levels of halved sides with half of the channels split off between them, as in the paper.

    Raises `EbmtrajError` for a setting out of its range.
    """

    blocks: int = 8  # of coupling, 1 x 1 convolution and normalisation at each level
    channels: int = 64  # of the couplings' networks

    def __post_init__(self) -> None:
        if min(self.blocks, self.channels) < 1:
            raise EbmtrajError(f"network: blocks = {self.blocks}, channels = {self.channels}; both must be above 0")


class Glow(Generator):
    """x = f(z), one to one. An energy looks at x, spread evenly over the step of its pixels."""

    name = "glow"
    Config: ClassVar[type] = GlowConfig
    config: GlowConfig
    training_defaults: ClassVar[Mapping[str, Any]] = {
        "steps": 2500,
        "batch": 64,
        "check_every": 50,
    }
    images_only = True

    def __init__(self, shape: Sequence[int], levels: int, config: GlowConfig) -> None:
        super().__init__(shape, levels, config)
        self.latent = math.prod(self.shape)
        channels, height, width = self.shape
        self.parts: list[tuple[int, int, int]] = []  # of the latent, from the first level to split off to the last
        self.levels_of_flow = nn.ModuleList()
        while height % 2 == 0 and width % 2 == 0 and (max(height, width) > 4 or not self.parts):
            channels, height, width = 4 * channels, height // 2, width // 2
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", UserWarning)  # normflows calls torch.lu, which has another name by now
                blocks = [
                    normflows.flows.GlowBlock(channels, config.channels, scale_map="sigmoid_inv")  # sampling never divides
                    for _ in range(config.blocks)
                ]
            self.levels_of_flow.append(nn.ModuleList([normflows.flows.Squeeze(), *blocks]))
            deeper = height % 2 == 0 and width % 2 == 0 and max(height, width) > 4
            if deeper:
                channels //= 2
            self.parts.append((channels, height, width))
        if not self.parts:
            raise EbmtrajError(f"model glow: images of {height} x {width} can't be halved; use flow")

    def prepare(self, data: Events, most: int = 20_000) -> None:
        """Scale pixels, and let the normalisations take their scale from a batch."""
        super().prepare(data, most)
        noise = torch.Generator(device=data.device).manual_seed(0)
        with torch.no_grad():
            self._to_noise(self.view_of(data.x[:256], noise))

    def stages(self) -> list[Stage]:
        """The likelihood throughout."""
        return [Stage("glow", 1.0, self.levels_of_flow, self._loss)]

    def encode(self, x: Tensor, generator: torch.Generator) -> Tensor:
        """The latent of the event, spread evenly over the step of its pixels."""
        return self._to_noise(self.view_of(x, generator))[0]

    def decode(self, z: Tensor) -> Tensor:
        """The flow."""
        return self.event(self.view(z))

    @property
    def view_shape(self) -> tuple[int, ...]:
        """Images."""
        return self.shape

    def view(self, z: Tensor) -> Tensor:
        """The image in unit coordinates."""
        split = z.split([math.prod(part) for part in self.parts], dim=1)
        x = split[-1].view(-1, *self.parts[-1])
        for number in range(len(self.parts) - 1, -1, -1):
            if number < len(self.parts) - 1:
                x = torch.cat((split[number].view(-1, *self.parts[number]), x), dim=1)
            squeeze, *blocks = self._level(number)
            for block in blocks:
                x = block(x)[0]
            x = squeeze(x)[0]
        return x

    def view_of(self, x: Tensor, generator: torch.Generator) -> Tensor:
        """The image in unit coordinates."""
        return self.unit(self.smooth(x, generator))

    def _level(self, number: int) -> list[Any]:
        return list(cast(nn.ModuleList, self.levels_of_flow[number]))

    def _to_noise(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Latent `(B, D)` and log determinant `(B,)`."""
        found, log_det = [], torch.zeros(len(x), device=x.device)
        for number, part in enumerate(self.parts):
            squeeze, *blocks = self._level(number)
            x = squeeze.inverse(x)[0]
            for block in reversed(blocks):
                x, gained = block.inverse(x)
                log_det = log_det + gained
            if number < len(self.parts) - 1:
                x, kept = x[:, part[0] :], x[:, : part[0]]
                found.append(kept.flatten(1))
        found.append(x.flatten(1))
        return torch.cat(found, dim=1), log_det

    def _loss(self, batch: EventBatch, generator: torch.Generator) -> tuple[Tensor, dict[str, Tensor]]:
        z, log_det = self._to_noise(self.view_of(batch.x, generator))
        loss = -(self.log_prior(z) + log_det).mean() / self.latent - 0.5 * LOG_2PI
        return loss, {"validation": loss.detach()}
