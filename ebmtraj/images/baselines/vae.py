"""A variational autoencoder whose decoder's noise is learnt (Kingma & Welling 2014; Rybkin et al. 2021)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ebmtraj.errors import EbmtrajError
from ebmtraj.images.data import ImageBatch
from ebmtraj.images.model import ImageModel, Watch
from ebmtraj.nets.coders import coders
from ebmtraj.training.trainable import Stage


@dataclass(frozen=True)
class VAEConfig:
    """Sizes, and how samples are drawn. Raises `EbmtrajError` for a setting out of its range."""

    latent: int = 16  # numbers of a code
    width: int = 256  # of dense layers, or channels of the innermost convolution
    depth: int = 2  # hidden layers
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
        encoder, decoder = coders(self.shape, 2 * config.latent, config.latent, config.width, config.depth, self.told)
        self.net = nn.ModuleDict({"encoder": encoder, "decoder": decoder})
        self.net.register_parameter("log_noise", nn.Parameter(torch.zeros(())))

    def stages(self) -> list[Stage]:
        """The evidence bound throughout."""
        return [Stage("vae", 1.0, self.net, self._loss)]

    def encode(self, unit: Tensor, label: Tensor | None) -> tuple[Tensor, Tensor]:
        """Mean and log standard deviation of q(z | x), each `(B, Z)`.

        Raises `EbmtrajError` where a model that was trained with labels is given none.
        """
        mean, log_std = self.net["encoder"](unit, self._one_hot(label, len(unit))).chunk(2, dim=1)
        return mean, log_std.clamp(-8, 4)

    def decode(self, z: Tensor, label: Tensor | None) -> Tensor:
        """Mean of p(x | z), `(B, C, H, W)`, in unit coordinates. Raises as `encode`."""
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
