"""The paper's generative baseline: a conditional variational autoencoder, an image's class by the best bound.

Paper 000, section 6.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from ebmtraj.continual.learner import ClassScores, count
from ebmtraj.continual.steps import DEPTH, WIDTH, StepsConfig, take_steps
from ebmtraj.continual.tasks import Problem
from ebmtraj.device import weights_from
from ebmtraj.errors import EbmtrajError
from ebmtraj.nets.mlp import MLP


@dataclass(frozen=True)
class VAEConfig(StepsConfig):
    """Encoder and decoder see the label. Raises `EbmtrajError` for a setting out of its range."""

    latent: int = 10  # numbers of a code
    draws: int = 16  # of the latent variable, for an image's bound

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.latent < 1 or self.draws < 1:
            raise EbmtrajError(f"settings: latent = {self.latent}, draws = {self.draws}; both must be at least 1")


class ConditionalVAE(ClassScores):
    """p(x | y) by encoder and decoder of 2 layers of 400 each, Bernoulli pixels (paper 000, section 6)."""

    name = "vae"
    title = "conditional VAE"
    Config = VAEConfig
    config: VAEConfig

    def __init__(
        self, problem: Problem, config: VAEConfig | None = None, seed: int = 0, device: torch.device | str = "cpu"
    ) -> None:
        super().__init__(problem, config, seed, device)
        latent = self.config.latent
        with weights_from(seed):
            self.encoder = MLP(problem.size + problem.classes, 2 * latent, width=WIDTH, depth=DEPTH).to(self.device)
            self.decoder = MLP(latent + problem.classes, problem.size, width=WIDTH, depth=DEPTH).to(self.device)

    def _learn(self, x: Tensor, y: Tensor, classes: tuple[int, ...]) -> None:
        def loss(index: Tensor) -> Tensor:
            noise = torch.empty((1, len(index), self.config.latent), device=self.device).normal_(generator=self.generator)
            return -self._bound(x[index], y[index], noise).mean()

        parameters = [*self.encoder.parameters(), *self.decoder.parameters()]
        take_steps(self.name, parameters, loss, len(x), self.config, self.generator)

    def _bound(self, x: Tensor, y: Tensor, noise: Tensor) -> Tensor:
        """log 1/K sum p(x, z_k | y) / q(z_k | x, y), `(B,)` (Burda et al. 2016), of noise `(K, B or 1, Z)`."""
        told = F.one_hot(y, self.problem.classes).to(x)
        mean, log_std = self.encoder(torch.cat((self.unit(x), told), dim=1)).chunk(2, dim=1)
        log_std = log_std.clamp(-6, 3)
        draws = len(noise)
        z = mean + log_std.exp() * noise
        logits = self.decoder(torch.cat((z, told.expand(draws, -1, -1)), dim=2))
        fit = -F.binary_cross_entropy_with_logits(logits, x.expand(draws, -1, -1), reduction="none").sum(2)
        weight = fit + (0.5 * noise.square() + log_std - 0.5 * z.square()).sum(2)
        return torch.logsumexp(weight, dim=0) - math.log(draws)

    @torch.no_grad()
    def energies(self, x: Tensor) -> Tensor:
        """Minus the bound, for each class; the same noise for all images and classes, so that none hangs on the batch."""
        generator = torch.Generator(device=self.device).manual_seed(0)
        noise = torch.empty((self.config.draws, 1, self.config.latent), device=self.device).normal_(generator=generator)
        found = []
        for label in range(self.problem.classes):
            parts = [self._bound(part, torch.full((len(part),), label, device=x.device), noise) for part in x.split(256)]
            found.append(-torch.cat(parts))
        return torch.stack(found, dim=1)

    def memory(self) -> int:
        """Both networks."""
        return count(self.encoder) + count(self.decoder)
