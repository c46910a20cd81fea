"""A decoder of the user's own, with a Gaussian prior."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ebmtraj.errors import EbmtrajError
from ebmtraj.generators.model import Generator


@dataclass(frozen=True)
class OwnConfig:
    """Nothing: the network is the user's."""


class OwnGenerator(Generator):
    """Any module that takes latents `(B, latent)` to events `(B, *event)`; with an encoder, the energy looks at its codes.

    Without one, real events are told from decoded ones in data space. What is given is used as it is, and never trained.
    """

    name = "own"
    Config = OwnConfig

    def __init__(
        self, decoder: nn.Module, latent: int, encoder: Callable[[Tensor], Tensor] | None = None, *, levels: int = 0
    ) -> None:
        """`levels` above 0: events are pixels in [0, 1]. Raises `EbmtrajError` where decoder and latent size do not fit."""
        if latent < 1:
            raise EbmtrajError(f"a decoder's latent size must be above 0, not {latent}")
        try:
            with torch.no_grad():
                weights = next(decoder.parameters(), torch.zeros(()))
                made = decoder(torch.zeros(2, latent, device=weights.device))
        except (RuntimeError, ValueError, TypeError) as error:
            reason = str(error).strip().splitlines()[0]
            raise EbmtrajError(f"the decoder does not take latents of size {latent}: {reason}; give its own size") from None
        if not isinstance(made, Tensor) or made.dim() < 2 or len(made) != 2:
            what = tuple(made.shape) if isinstance(made, Tensor) else type(made).__name__
            raise EbmtrajError(f"the decoder gave {what} for latents (2, {latent}); it must give (B, *event)")
        super().__init__(made.shape[1:], levels, OwnConfig())
        self.to(weights.device)
        self.latent, self.decoder, self.encoder = latent, decoder.eval(), encoder

    def prepare(self, data: Any, most: int = 20_000) -> None:
        """Nothing: events stay as they are."""

    def encode(self, x: Tensor, generator: torch.Generator) -> Tensor:
        """By the user's encoder; raises `EbmtrajError` where there is none, or its codes are of another size."""
        if self.encoder is None:
            raise EbmtrajError("this decoder has no encoder; give OwnGenerator one")
        z = self.encoder(x)
        if tuple(z.shape) != (len(x), self.latent):
            raise EbmtrajError(
                f"the encoder gave {tuple(z.shape)} for {len(x)} events; it must give {(len(x), self.latent)}"
            )
        return z

    def decode(self, z: Tensor) -> Tensor:
        """By the user's decoder; raises `EbmtrajError` for latents of another size."""
        if z.shape[1:] != (self.latent,):
            raise EbmtrajError(f"latents of shape {tuple(z.shape[1:])}; this decoder takes {(self.latent,)}")
        x: Tensor = self.decoder(z)
        return x

    @property
    def view_shape(self) -> tuple[int, ...]:
        """Events, or codes where there is an encoder."""
        return self.shape if self.encoder is None else (self.latent,)

    def view(self, z: Tensor) -> Tensor:
        """The event, or the latent where there is an encoder."""
        return self.decode(z) if self.encoder is None else z

    def view_of(self, x: Tensor, generator: torch.Generator) -> Tensor:
        """The real event, or its code."""
        return x if self.encoder is None else self.encode(x, generator)
