"""Energies of images that a network gives as one number: tilts at every noise level, and plain ones.

Papers 000, section 4, and 004.
"""

from __future__ import annotations

import math
from typing import Literal, cast

import torch
from torch import Tensor, nn

from ebmtraj.energies.image import Tilt
from ebmtraj.energies.image_base import picked
from ebmtraj.nets.conv import ConvNet
from ebmtraj.nets.mlp import MLP
from ebmtraj.nets.resnet import ResNet

Network = Literal["auto", "mlp", "conv", "resnet"]
SMALL = 1024  # entries of an image up to which `auto` is a network of dense layers


def chosen_network(network: Network, shape: tuple[int, int, int]) -> Network:
    """What `auto` is for images of this shape."""
    if network != "auto":
        return network
    return "mlp" if math.prod(shape) <= SMALL else "resnet"


class NetworkTilt(Tilt):
    """e(u, s | y) as the one output of a network; its gradient in u is autograd's."""

    def __init__(self, net: ConvNet | ResNet) -> None:
        """`net` takes events, labels and levels, and gives `(B, 1)`."""
        super().__init__()
        self.net = net
        nn.init.normal_(cast(Tensor, self.net.output.weight), std=1e-2)
        self.net.output.register_parameter("bias", None)  # of which no gradient in u knows

    def forward(self, u: Tensor, label: Tensor | None, level: Tensor) -> Tensor:
        """e `(B,)`."""
        out: Tensor = self.net(u, label, level)
        return out.squeeze(-1)

    def gradient(self, u: Tensor, label: Tensor | None, level: Tensor) -> Tensor:
        """Gradient of e in u, differentiable in the parameters where gradients are enabled."""
        wanted = torch.is_grad_enabled()
        with torch.enable_grad():
            u = u if u.requires_grad and wanted else u.detach().requires_grad_(True)
            return torch.autograd.grad(self(u, label, level).sum(), u, create_graph=wanted)[0]


class PlainEnergy(nn.Module):
    """E(x) or E(x | y) as a network's one output, without noise levels: what contrastive divergence trains (paper 000).

    A spectrally normalised network is nearly flat at unit scale, so its output is multiplied by `scale`. With a `prior`
    above 0 it tilts a Gaussian of that precision, so that the energy grows without bound off the data.
    """

    def __init__(
        self,
        shape: tuple[int, int, int],
        classes: int,
        *,
        network: Network = "auto",
        width: int = 512,
        depth: int = 2,
        channels: int = 64,
        spectral: bool = True,
        scale: float = 1.0,
        prior: float = 0.0,
    ) -> None:
        """`classes` 0: no labels; dense layers have an output a class, and without a label E(x) is that of them all."""
        super().__init__()
        kind = chosen_network(network, shape)
        self.scale, self.prior, self.classes = scale, prior, classes
        self.net: nn.Module
        self.dense = kind == "mlp"
        if self.dense:
            self.net = MLP(math.prod(shape), max(1, classes), width=width, depth=depth, spectral=spectral)
        else:
            self.net = (ConvNet if kind == "conv" else ResNet)(shape, 1, classes=classes, width=channels, spectral=spectral)

    def forward(self, x: Tensor, label: Tensor | None = None, level: Tensor | None = None) -> Tensor:
        """Energies `(B,)` of events `(B, C, H, W)`; the level is not looked at."""
        if self.dense:
            value = self.net(x.flatten(1))
            if self.classes:
                value = -picked(-value, label).unsqueeze(1)
        else:
            value = self.net(x, label)
        total: Tensor = self.scale * value.squeeze(-1)
        return total + 0.5 * self.prior * x.square().flatten(1).sum(1) if self.prior else total
