"""Conditional energies trained by contrast: with Langevin samples (paper 000), or with wrong labels (Li et al. 2020)."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ebmtraj.continual.learner import ClassScores, count
from ebmtraj.continual.masked import MaskedNet
from ebmtraj.continual.steps import WIDTH, StepsConfig, take_steps
from ebmtraj.continual.tasks import Problem
from ebmtraj.errors import EbmtrajError
from ebmtraj.samplers.buffer import ReplayBuffer
from ebmtraj.samplers.langevin import LangevinConfig, langevin
from ebmtraj.training.losses import contrastive_divergence


class GatedNet(nn.Module):
    """2 layers of 400 units, each scaled by a number that its class learns, `(B, D), (B,) -> (B, 1)`."""

    def __init__(self, inputs: int, classes: int, spread: float, layers: int, generator: torch.Generator) -> None:
        """Gates start at N(1, spread^2); with `layers` 1, only the first layer has any."""
        super().__init__()
        device = generator.device
        self.entry = nn.Linear(inputs, WIDTH, device=device)
        self.middle, self.exit = nn.Linear(WIDTH, WIDTH, device=device), nn.Linear(WIDTH, 1, device=device)
        for layer in (self.entry, self.middle, self.exit):
            for p in layer.parameters():
                nn.init.uniform_(p, -(layer.in_features**-0.5), layer.in_features**-0.5, generator=generator)
        self.gates = nn.Parameter(
            torch.empty(layers, classes, WIDTH, device=device).normal_(1.0, spread, generator=generator)
        )

    def forward(self, x: Tensor, label: Tensor) -> Tensor:
        """Outputs for images and their classes."""
        h = F.silu(self.entry(x)) * self.gates[0, label]
        h = F.silu(self.middle(h))
        h = h * self.gates[1, label] if len(self.gates) > 1 else h
        out: Tensor = self.exit(h)
        return out


class EnergyOf(nn.Module):
    """A network with one output as an energy, `(B, D), (B,) -> (B,)`."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, x: Tensor, label: Tensor) -> Tensor:
        """Energies of images given classes."""
        out: Tensor = self.net(x, label).squeeze(-1)
        return out


@dataclass(frozen=True)
class ContrastiveConfig(StepsConfig):
    """Contrastive divergence on the present task's classes. Raises `EbmtrajError` for a setting out of its range."""

    steps: int = 100
    learning_rate: float = 3e-4
    beta1: float = 0.0  # of Adam
    decay: bool = False
    alpha: float = 1.0  # of the squared energies
    buffer: int = 1000  # replay buffer, in samples
    fresh: float = 0.05  # share of chains that start from noise
    # of the negatives
    sampler: LangevinConfig = field(default_factory=lambda: LangevinConfig(steps=10, step_size=0.1, noise=0.005))
    gate_spread: float = 0.5  # of the gates where they start
    gated: int = 2  # layers with gates
    keep: float = 0.2  # share of each layer that a class uses, of the masked one
    shift: bool = False  # take off each class's mean energy over its own training images

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.alpha < 0 or self.buffer < 1 or not 0 <= self.fresh <= 1 or self.gate_spread < 0 or self.gated not in (1, 2):
            raise EbmtrajError(
                f"settings: alpha = {self.alpha}, buffer = {self.buffer}, fresh = {self.fresh}, gate_spread = "
                f"{self.gate_spread}, gated = {self.gated}; it needs alpha and gate_spread >= 0, buffer >= 1, "
                "0 <= fresh <= 1 and gated 1 or 2"
            )


class GatedEBM(ClassScores):
    """The paper's conditional energy: contrastive divergence with a buffer of samples of the present task (Algorithm 1).

    Negatives are of present classes only, so that what is pushed up is what these classes look like to the model.
    """

    name = "paper-ebm"
    title = "conditional EBM of paper 000, learned gates"
    Config = ContrastiveConfig
    config: ContrastiveConfig

    def __init__(
        self, problem: Problem, config: ContrastiveConfig | None = None, seed: int = 0, device: torch.device | str = "cpu"
    ) -> None:
        super().__init__(problem, config, seed, device)
        self.energy = EnergyOf(self._make()).to(self.device)
        self.offset = torch.zeros(problem.classes, device=self.device)

    def _make(self) -> nn.Module:
        c = self.config
        return GatedNet(self.problem.size, self.problem.classes, c.gate_spread, c.gated, self.generator)

    def _learn(self, x: Tensor, y: Tensor, classes: tuple[int, ...]) -> None:
        buffer = ReplayBuffer(self.config.buffer, (self.problem.size + 1,))  # an image and its class, which stay together
        own = torch.tensor(classes, device=self.device)

        def loss(index: Tensor) -> Tensor:
            drawn = torch.randint(len(own), (len(index),), generator=self.generator, device=self.device)
            noise = torch.rand((len(index), self.problem.size), generator=self.generator, device=self.device)
            start = buffer.start(torch.cat((noise, own[drawn, None]), dim=1), self.generator, 1 - self.config.fresh)
            label = start[:, -1].long()
            negative, _ = langevin(
                self.energy,
                start[:, :-1],
                self.config.sampler,
                context=label,
                project=lambda z: z.clamp(0, 1),
                generator=self.generator,
            )
            buffer.push(torch.cat((negative, label[:, None].to(negative.dtype)), dim=1))
            positive = x[index]

            def energy(z: Tensor) -> Tensor:
                value: Tensor = self.energy(z, y[index] if z is positive else label)
                return value

            return contrastive_divergence(energy, positive, negative, self.config.alpha)[0]

        take_steps(self.name, list(self.energy.parameters()), loss, len(x), self.config, self.generator)
        with torch.no_grad():
            for label in classes:
                self.offset[label] = self.energy(x[y == label], y[y == label]).mean()

    @torch.no_grad()
    def energies(self, x: Tensor) -> Tensor:
        """E(x | y), less each class's stored shift where there is one."""
        found = torch.zeros((len(x), self.problem.classes), device=self.device)
        for label in self.seen:
            found[:, label] = self.energy(x, torch.full((len(x),), label, device=self.device))
        return found - self.offset if self.config.shift else found

    def memory(self) -> int:
        """The weights, and a shift a class where it is used; the buffer is emptied after each task."""
        return count(self.energy) + (self.problem.classes if self.config.shift else 0)


class MaskedContrastive(GatedEBM):
    """Fixed random masks with the paper's objective: what masks alone bring."""

    name = "ebm-cd"
    title = "masked EBM by contrastive divergence"

    def _make(self) -> nn.Module:
        return MaskedNet(self.problem.size, 1, self.problem.classes, self.config.keep, self.generator)


@dataclass(frozen=True)
class LabelConfig(StepsConfig):
    """Contrast between the right label and wrong ones."""

    gate_spread: float = 0.5  # of the gates where they start
    gated: int = 1  # layers with gates


class LabelContrast(ClassScores):
    """Push down the energy of the right label, up that of another label of the batch (Li et al. 2020, equation 8)."""

    name = "label-contrast"
    title = "label-contrast EBM of Li et al."
    Config = LabelConfig
    config: LabelConfig

    def __init__(
        self, problem: Problem, config: LabelConfig | None = None, seed: int = 0, device: torch.device | str = "cpu"
    ) -> None:
        super().__init__(problem, config, seed, device)
        net = GatedNet(problem.size, problem.classes, self.config.gate_spread, self.config.gated, self.generator)
        self.energy = EnergyOf(net).to(self.device)

    def _learn(self, x: Tensor, y: Tensor, classes: tuple[int, ...]) -> None:
        unit, own = self.unit(x), torch.tensor(classes, device=self.device)

        def loss(index: Tensor) -> Tensor:
            right = y[index]
            if len(own) == 1:
                return self.energy(unit[index], right).mean() * 0.0  # a task of one class has no wrong label
            at = (own[None, :] == right[:, None]).float().argmax(1)
            skip = torch.randint(1, len(own), (len(index),), generator=self.generator, device=self.device)
            wrong = own[(at + skip) % len(own)]
            return F.softplus(self.energy(unit[index], right) - self.energy(unit[index], wrong)).mean()

        take_steps(self.name, list(self.energy.parameters()), loss, len(x), self.config, self.generator)

    @torch.no_grad()
    def energies(self, x: Tensor) -> Tensor:
        """E(x | y)."""
        unit = self.unit(x)
        found = [
            self.energy(unit, torch.full((len(x),), label, device=self.device)) for label in range(self.problem.classes)
        ]
        return torch.stack(found, dim=1)

    def memory(self) -> int:
        """The weights."""
        return count(self.energy)
