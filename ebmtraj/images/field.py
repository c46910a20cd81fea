"""A free vector field in the energy's place: of the same size, with the same objective, base and sampler.

Karras et al. 2022.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ebmtraj.energies.image import ClassGain, Tilt
from ebmtraj.errors import EbmtrajError
from ebmtraj.images.noise_conditional import NoiseConditionalConfig, NoiseConditionalModel
from ebmtraj.nets.mlp import LevelFeatures


@dataclass(frozen=True)
class FieldConfig(NoiseConditionalConfig):
    """As the energy (`dsm`), setting by setting.

    Raises `EbmtrajError` for settings that only an energy or another network has.
    """

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.network not in ("auto", "mlp"):
            raise EbmtrajError(f"network.network = {self.network!r}: model field has dense layers; drop that setting")
        if self.sampler.backend == "autograd" or self.sampler.record:
            raise EbmtrajError("network.sampler: model field has no energy to differentiate or record; drop that setting")


class MLPField(Tilt):
    """A network whose output stands where an energy has the gradient of its tilt, but need not be any gradient."""

    def __init__(self, event: tuple[int, ...], classes: int, *, width: int = 512, depth: int = 2) -> None:
        """Layers as `MLPTilt` has them, but for the one more output that an energy's scalar takes."""
        super().__init__()
        size = int(torch.Size(event).numel())
        self.level_features = LevelFeatures()
        self.input = nn.Linear(size, width)
        self.input_level = nn.Linear(self.level_features.size, width, bias=False)
        self.hidden = nn.ModuleList(nn.Linear(width, width) for _ in range(depth - 1))
        self.output = nn.Linear(width, size)
        self.gains = nn.ModuleList(ClassGain(classes, width) for _ in range(depth)) if classes else None
        nn.init.normal_(self.output.weight, std=1e-3)
        nn.init.zeros_(self.output.bias)

    def forward(self, u: Tensor, label: Tensor | None, level: Tensor) -> Tensor:
        """Refuses: there is no energy; raises `EbmtrajError`."""
        raise EbmtrajError("model field has no energy")

    def gradient(self, u: Tensor, label: Tensor | None, level: Tensor) -> Tensor:
        """The vectors `(B, *event)`."""
        h = self.input(u.flatten(1)) + self.input_level(self.level_features(level))
        for i in range(len(self.hidden) + 1):
            if self.gains is not None:
                gain, bias = cast(ClassGain, self.gains[i])(label, len(u))
                h = h * gain + bias
            h = F.silu(h)
            if i < len(self.hidden):
                h = self.hidden[i](h)
        out: Tensor = self.output(h)
        return out.view_as(u)


class FieldModel(NoiseConditionalModel):
    """The model `dsm` in every respect but one: a network's output stands where the energy's gradient does."""

    name = "field"
    Config = FieldConfig

    def make_tilt(self, classes: int) -> Tilt:
        """The free field, for so many classes (0: no labels)."""
        return MLPField(self.shape, classes, width=self.config.width, depth=self.config.depth)
