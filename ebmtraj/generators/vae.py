"""A variational autoencoder and what replaces its prior after training: a second one, or a flow.

Kingma and Welling 2014; Dai and Wipf 2019.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from ebmtraj.errors import EbmtrajError
from ebmtraj.generators.data import EventBatch
from ebmtraj.generators.model import Generator
from ebmtraj.nets.coders import coders
from ebmtraj.training.trainable import Stage

Logs = dict[str, Tensor]


@dataclass(frozen=True)
class VAEConfig:
    """Sizes, and the noise of the decoder. Raises `EbmtrajError` for a setting out of its range."""

    latent: int = 16  # numbers of a code
    width: int = 256  # of dense layers, or channels of the innermost convolution
    depth: int = 2  # hidden layers
    beta: float = 1.0  # weight of the divergence to the prior; 1: the evidence bound
    noise: float | None = None  # standard deviation of the decoder, of data of spread 1; None: learnt

    def __post_init__(self) -> None:
        if min(self.latent, self.width, self.depth) < 1 or self.beta <= 0 or (self.noise is not None and self.noise <= 0):
            raise EbmtrajError(
                f"network: latent = {self.latent}, width = {self.width}, depth = {self.depth}, beta = {self.beta}, "
                f"noise = {self.noise}; all must be above 0"
            )


class Coder(nn.Module):
    """Encoder, decoder and noise of a variational autoencoder of vectors or images with spread 1."""

    def __init__(self, shape: Sequence[int], latent: int, width: int, depth: int, noise: float | None = None) -> None:
        super().__init__()
        self.encoder, self.decoder = coders(shape, 2 * latent, latent, width, depth)
        self.noise = noise
        self.log_noise = nn.Parameter(torch.zeros(()), requires_grad=noise is None)

    def log_std(self) -> Tensor:
        """Of the decoder, `()`."""
        fixed = None if self.noise is None else torch.full_like(self.log_noise, self.noise).log()
        return self.log_noise.clamp(-5, 2) if fixed is None else fixed

    def moments(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and log standard deviation of q(z | x), each `(B, Z)`."""
        mean, log_std = self.encoder(x).chunk(2, dim=1)
        return mean, log_std.clamp(-8, 4)

    def draw(self, x: Tensor, generator: torch.Generator) -> Tensor:
        """A draw of q(z | x), `(B, Z)`."""
        mean, log_std = self.moments(x)
        return mean + log_std.exp() * torch.empty_like(mean).normal_(generator=generator)

    def loss(self, x: Tensor, beta: float, generator: torch.Generator) -> tuple[Tensor, Logs]:
        """-ELBO an entry of x `(B, *event)`: Gaussian reconstruction, and the divergence to the prior, `()`.

        Kingma and Welling 2014.
        """
        mean, log_std = self.moments(x)
        z = mean + log_std.exp() * torch.empty_like(mean).normal_(generator=generator)
        noise, size = self.log_std(), x[0].numel()
        errors = (x - self.decoder(z)).square().flatten(1).sum(1) * torch.exp(-2 * noise)
        divergence = 0.5 * (mean.square() + (2 * log_std).exp() - 1 - 2 * log_std).sum(1)
        loss = (0.5 * errors + size * noise + beta * divergence).mean() / size
        return loss, {"validation": loss.detach(), "divergence": divergence.detach().mean()}


class VAE(Generator):
    """z normal, x the decoder's mean (Kingma and Welling 2014; learnt noise: Rybkin et al. 2021)."""

    name = "vae"
    Config: ClassVar[type] = VAEConfig
    config: Any
    training_defaults: ClassVar[Mapping[str, Any]] = {"steps": 3000, "batch": 128, "check_every": 100}
    point_defaults: ClassVar[Mapping[str, Any]] = {
        "network": {"latent": 2, "width": 128, "depth": 3, "noise": 0.05},
        "training": {"steps": 4000, "batch": 256, "check_every": 500},
    }

    def __init__(self, shape: Sequence[int], levels: int, config: Any) -> None:
        super().__init__(shape, levels, config)
        self.latent = config.latent
        self.coder = Coder(self.shape, config.latent, config.width, config.depth, config.noise)

    def stages(self) -> list[Stage]:
        """The evidence bound throughout."""
        return [Stage("vae", 1.0, self.coder, self._loss)]

    def encode(self, x: Tensor, generator: torch.Generator) -> Tensor:
        """A draw of q(z | x)."""
        return self.coder.draw(self.unit(x), generator)

    def decode(self, z: Tensor) -> Tensor:
        """Mean of p(x | z)."""
        return self.event(self.coder.decoder(z))

    def _loss(self, batch: EventBatch, generator: torch.Generator) -> tuple[Tensor, Logs]:
        return self.coder.loss(self.unit(batch.x), self.config.beta, generator)


@dataclass(frozen=True)
class TwoStageConfig(VAEConfig):
    """As the first autoencoder; the second has as many layers of the same width."""


class TwoStageVAE(VAE):
    """A second autoencoder learns the first one's codes (Dai and Wipf 2019).

    Its latent is the second one's code and the noise of the second decoder, which belongs to its samples: z = (u, epsilon).
    """

    name = "two-stage"
    Config: ClassVar[type] = TwoStageConfig
    training_defaults: ClassVar[Mapping[str, Any]] = {**VAE.training_defaults, "steps": 6000}
    point_defaults: ClassVar[Mapping[str, Any]] = {
        "network": VAE.point_defaults["network"],
        "training": {"steps": 8000, "batch": 256, "check_every": 500},
    }

    def __init__(self, shape: Sequence[int], levels: int, config: Any) -> None:
        super().__init__(shape, levels, config)
        self.latent = 2 * config.latent
        self.second = Coder((config.latent,), config.latent, config.width, config.depth)

    def stages(self) -> list[Stage]:
        """One after the other."""
        return [Stage("vae", 0.5, self.coder, self._loss), Stage("second", 0.5, self.second, self._second_loss)]

    def encode(self, x: Tensor, generator: torch.Generator) -> Tensor:
        """A draw of both codes, the first one as the noise that the second one's decoder leaves."""
        code = self.coder.draw(self.unit(x), generator)
        u = self.second.draw(code, generator)
        return torch.cat((u, (code - self.second.decoder(u)) * torch.exp(-self.second.log_std())), dim=1)

    def decode(self, z: Tensor) -> Tensor:
        """Through both decoders."""
        u, epsilon = z.chunk(2, dim=1)
        return self.event(self.coder.decoder(self.second.decoder(u) + self.second.log_std().exp() * epsilon))

    def _second_loss(self, batch: EventBatch, generator: torch.Generator) -> tuple[Tensor, Logs]:
        with torch.no_grad():
            code = self.coder.draw(self.unit(batch.x), generator)
        return self.second.loss(code, 1.0, generator)
