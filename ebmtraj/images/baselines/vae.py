"""A variational autoencoder whose decoder's noise is learnt (Kingma & Welling 2014; Rybkin et al. 2021)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ebmtraj.errors import EbmtrajError
from ebmtraj.images.data import ImageBatch
from ebmtraj.images.model import ImageModel, Watch
from ebmtraj.training.trainable import Stage

SMALL = 1024  # entries of an image up to which layers are dense


@dataclass(frozen=True)
class VAEConfig:
    """Sizes, and how samples are drawn."""

    latent: int = 16
    width: int = 256  # of dense layers, or channels of the innermost convolution
    depth: int = 2
    beta: float = 3.0  # weight of the divergence to the prior (Higgins et al. 2017); 1: the evidence bound
    sample: Literal["mean", "noisy"] = "mean"  # of the decoder: its mean, or a draw with its noise

    def __post_init__(self) -> None:
        if min(self.latent, self.width, self.depth) < 1 or self.beta <= 0:
            raise EbmtrajError(
                f"network: latent = {self.latent}, width = {self.width}, depth = {self.depth}, beta = {self.beta}; "
                "all must be above 0"
            )


class VAEModel(ImageModel):
    """p(x) = E_z p(x | z) with z normal; conditional ones are told the class on both sides."""

    name = "vae"
    Config = VAEConfig
    config: VAEConfig
    conditional_defaults: ClassVar[dict[str, Any]] = {"beta": 1.0}
    training_defaults: ClassVar[dict[str, Any]] = {"steps": 4000, "batch": 128, "check_every": 250, "learning_rate": 1e-3}

    def __init__(self, shape: Sequence[int], classes: Sequence[str], *, conditional: bool, config: VAEConfig) -> None:
        super().__init__(shape, classes, conditional=conditional, config=config)
        self.told = len(self.classes) if conditional else 0
        dense = self.shape[0] * self.shape[1] * self.shape[2] <= SMALL
        coders = (_dense_coders if dense else _convolutional_coders)(self.shape, self.told, config)
        self.net = nn.ModuleDict({"encoder": coders[0], "decoder": coders[1]})
        self.net.register_parameter("log_noise", nn.Parameter(torch.zeros(())))

    def stages(self) -> list[Stage]:
        """The evidence bound throughout."""
        return [Stage("vae", 1.0, self.net, self._loss)]

    def encode(self, unit: Tensor, label: Tensor | None) -> tuple[Tensor, Tensor]:
        """Mean and log standard deviation of q(z | x), each `(B, Z)`."""
        mean, log_std = self.net["encoder"](unit, self._one_hot(label, len(unit))).chunk(2, dim=1)
        return mean, log_std.clamp(-8, 4)

    def decode(self, z: Tensor, label: Tensor | None) -> Tensor:
        """Mean of p(x | z), `(B, C, H, W)`, in unit coordinates."""
        mean: Tensor = self.net["decoder"](z, self._one_hot(label, len(z)))
        return mean

    @torch.no_grad()
    def sample(
        self, count: int, generator: torch.Generator, labels: Tensor | None = None, *, watch: Watch | None = None
    ) -> Tensor:
        """Decode draws of the prior, `(count, C, H, W)` pixels."""
        labels = self.check_labels(count, labels)
        z = torch.empty((count, self.config.latent), device=self.shift.device).normal_(generator=generator)
        x = self.decode(z, labels)
        if self.config.sample == "noisy":
            x = x + self._noise().exp() * torch.empty_like(x).normal_(generator=generator)
        return self.pixels(x)

    def _loss(self, batch: ImageBatch, generator: torch.Generator) -> tuple[Tensor, dict[str, Tensor]]:
        """-ELBO a pixel: Gaussian reconstruction at the learnt noise, and the divergence to the prior."""
        x, label = self.unit(batch.x), batch.label if self.conditional else None
        mean, log_std = self.encode(x, label)
        z = mean + log_std.exp() * torch.empty_like(mean).normal_(generator=generator)
        log_noise = self._noise()
        errors = (x - self.decode(z, label)).square().flatten(1).sum(1) * torch.exp(-2 * log_noise)
        size = x[0].numel()
        divergence = 0.5 * (mean.square() + (2 * log_std).exp() - 1 - 2 * log_std).sum(1)
        loss = (0.5 * errors + size * log_noise + self.config.beta * divergence).mean() / size
        return loss, {"validation": loss.detach(), "divergence": divergence.detach().mean()}

    def _noise(self) -> Tensor:
        return self.net.get_parameter("log_noise").clamp(-5, 2)

    def _one_hot(self, label: Tensor | None, count: int) -> Tensor | None:
        if not self.told:
            return None
        if label is None:
            raise EbmtrajError("model vae was trained with labels; give one an image")
        return F.one_hot(label, self.told).float()


class _Dense(nn.Module):
    """Fully connected layers on flat inputs and, where there is one, a one-hot class."""

    def __init__(self, inputs: int, outputs: int, told: int, width: int, depth: int, event: tuple[int, ...]) -> None:
        super().__init__()
        sizes = [inputs + told, *[width] * depth]
        layers = [layer for a, b in pairwise(sizes) for layer in (nn.Linear(a, b), nn.SiLU())]
        self.body = nn.Sequential(*layers, nn.Linear(width, outputs))
        self.event = event

    def forward(self, x: Tensor, told: Tensor | None) -> Tensor:
        flat = x.flatten(1)
        out: Tensor = self.body(flat if told is None else torch.cat([flat, told], dim=1))
        return out.view(len(x), *self.event)


class _ConvEncoder(nn.Module):
    def __init__(self, shape: tuple[int, int, int], sides: list[tuple[int, int]], told: int, config: VAEConfig) -> None:
        super().__init__()
        widths = [max(16, config.width >> (len(sides) - 1 - i)) for i in range(len(sides))]
        layers: list[nn.Module] = [nn.Conv2d(shape[0] + told, widths[0], 3, padding=1), nn.SiLU()]
        for a, b in pairwise(widths):
            layers += [nn.Conv2d(a, b, 3, stride=2, padding=1), nn.GroupNorm(8, b), nn.SiLU()]
        self.body = nn.Sequential(
            *layers, nn.Flatten(), nn.Linear(widths[-1] * sides[-1][0] * sides[-1][1], 2 * config.latent)
        )

    def forward(self, x: Tensor, told: Tensor | None) -> Tensor:
        if told is not None:
            x = torch.cat([x, told[:, :, None, None].expand(-1, -1, *x.shape[2:])], dim=1)
        out: Tensor = self.body(x)
        return out


class _ConvDecoder(nn.Module):
    def __init__(self, shape: tuple[int, int, int], sides: list[tuple[int, int]], told: int, config: VAEConfig) -> None:
        super().__init__()
        widths = [max(16, config.width >> (len(sides) - 1 - i)) for i in range(len(sides))]
        self.first = (widths[-1], *sides[-1])
        self.input = nn.Linear(config.latent + told, widths[-1] * sides[-1][0] * sides[-1][1])
        layers: list[nn.Module] = []
        for i in range(len(sides) - 1, 0, -1):
            layers += [nn.Upsample(size=sides[i - 1]), nn.Conv2d(widths[i], widths[i - 1], 3, padding=1)]
            layers += [nn.GroupNorm(8, widths[i - 1]), nn.SiLU()]
        self.body = nn.Sequential(nn.SiLU(), *layers, nn.Conv2d(widths[0], shape[0], 3, padding=1))

    def forward(self, z: Tensor, told: Tensor | None) -> Tensor:
        out: Tensor = self.body(self.input(z if told is None else torch.cat([z, told], dim=1)).view(len(z), *self.first))
        return out


def _dense_coders(shape: tuple[int, int, int], told: int, config: VAEConfig) -> tuple[nn.Module, nn.Module]:
    size, (width, depth, latent) = shape[0] * shape[1] * shape[2], (config.width, config.depth, config.latent)
    return (
        _Dense(size, 2 * latent, told, width, depth, (2 * latent,)),
        _Dense(latent, size, told, width, depth, shape),
    )


def _convolutional_coders(shape: tuple[int, int, int], told: int, config: VAEConfig) -> tuple[nn.Module, nn.Module]:
    sides = [(shape[1], shape[2])]
    while max(sides[-1]) > 4:
        sides.append(((sides[-1][0] + 1) // 2, (sides[-1][1] + 1) // 2))
    return _ConvEncoder(shape, sides, told, config), _ConvDecoder(shape, sides, told, config)
