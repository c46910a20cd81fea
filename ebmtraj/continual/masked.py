"""Our continual learner: one energy of all classes in one network, each class in its own fixed random part of it.

Masks: Masse et al. 2018.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ebmtraj.continual.learner import ClassScores, count
from ebmtraj.continual.steps import WIDTH, StepsConfig, take_steps
from ebmtraj.continual.tasks import Problem
from ebmtraj.errors import EbmtrajError


class MaskedNet(nn.Module):
    """2 layers of 400 units, of which each class uses a fixed random share, `(B, D), (B,) -> (B, outputs)`.

    Two classes share keep of each other's units and keep^2 of the weights between the layers. Masks as in context-dependent
    gating (Masse et al. 2018), by class in place of by task.
    """

    mask1: Tensor  # (K, 400) of the first layer, 1 where a class uses the unit
    mask2: Tensor  # (K, 400) of the second

    def __init__(
        self, inputs: int, outputs: int, classes: int, keep: float, generator: torch.Generator, gain: float = 1.0
    ) -> None:
        """Weights, `gain` times the usual size, and masks are drawn from `generator`."""
        super().__init__()
        device = generator.device
        self.entry = nn.Linear(inputs, WIDTH, device=device)
        self.middle = nn.Linear(WIDTH, WIDTH, device=device)
        self.exit = nn.Linear(WIDTH, outputs, bias=False, device=device)  # a bias would be shared by all classes
        for layer, fan in ((self.entry, inputs), (self.middle, keep * WIDTH), (self.exit, keep * WIDTH)):
            bound = gain * fan**-0.5
            nn.init.uniform_(layer.weight, -bound, bound, generator=generator)
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)
        size = max(1, round(keep * WIDTH))
        for name in ("mask1", "mask2"):
            order = torch.rand((classes, WIDTH), generator=generator, device=device).argsort(1)
            self.register_buffer(name, (order < size).float())

    def forward(self, x: Tensor, label: Tensor) -> Tensor:
        """Outputs for images and their classes."""
        h = F.silu(self.entry(x)) * self.mask1[label]
        out: Tensor = self.exit(F.silu(self.middle(h)) * self.mask2[label])
        return out

    def of_class(self, x: Tensor, label: int) -> Tensor:
        """As `forward` for images `(B, D)` of one class, `(B, outputs)`, by its own units alone, which is far cheaper."""
        a, b = self.mask1[label].bool(), self.mask2[label].bool()
        h = F.silu(F.linear(x, self.entry.weight[a], self.entry.bias[a]))
        h = F.silu(F.linear(h, self.middle.weight[b][:, a], self.middle.bias[b]))
        return F.linear(h, self.exit.weight[:, b])

    def free(self, seen: Sequence[int]) -> list[Tensor]:
        """1 where a weight is used by none of these classes, else 0; as the parameters, or broadcasting to their shape."""
        a, b = self.mask1[list(seen)], self.mask2[list(seen)]
        taken1, taken2 = a.amax(0) if len(seen) else a.sum(0), b.amax(0) if len(seen) else b.sum(0)
        between = torch.einsum("ci,cj->ij", b, a).clamp_max(1.0)
        return [(1 - taken1)[:, None], 1 - taken1, 1 - between, 1 - taken2, (1 - taken2)[None, :]]

    def part(self, classes: Sequence[int], seen: Sequence[int] = ()) -> MaskedPart:
        """The units that some of `classes` use, to be trained by themselves; weights that `seen` classes use are held."""
        return MaskedPart(self, classes, seen)


class MaskedPart(nn.Module):
    """The units of a masked network that some classes use: the same outputs and gradients, several times as fast."""

    def __init__(self, whole: MaskedNet, classes: Sequence[int], seen: Sequence[int]) -> None:
        """Takes a copy of the weights; `put_back` returns them."""
        super().__init__()
        self.a, self.b = (mask[list(classes)].amax(0).nonzero()[:, 0] for mask in (whole.mask1, whole.mask2))
        self.mask1, self.mask2 = whole.mask1[:, self.a], whole.mask2[:, self.b]
        self.weights = nn.ParameterList(
            [nn.Parameter(each.detach().clone()) for each in self._cut(list(whole.parameters()))]
        )
        held = [each.expand_as(p) for each, p in zip(whole.free(seen), whole.parameters(), strict=True)]
        self.free = self._cut(held)

    def _cut(self, whole: list[Tensor]) -> list[Tensor]:
        entry, entry_bias, middle, middle_bias, last = whole
        a, b = self.a, self.b
        return [entry[a], entry_bias[a], middle[b][:, a], middle_bias[b], last[:, b]]

    def forward(self, x: Tensor, label: Tensor) -> Tensor:
        """As `MaskedNet.forward`, `(B, D), (B,) -> (B, outputs)`, for these classes."""
        entry, entry_bias, middle, middle_bias, last = self.weights
        h = F.silu(F.linear(x, entry, entry_bias)) * self.mask1[label]
        return F.linear(F.silu(F.linear(h, middle, middle_bias)) * self.mask2[label], last)

    def hold(self) -> None:
        """Take the gradient off weights that are held, before a step."""
        for p, free in zip(self.weights, self.free, strict=True):
            if p.grad is not None:
                p.grad.mul_(free)

    @torch.no_grad()
    def put_back(self, whole: MaskedNet) -> None:
        """Give the weights back."""
        entry, entry_bias, middle, middle_bias, last = self.weights
        whole.entry.weight[self.a], whole.entry.bias[self.a] = entry, entry_bias
        whole.middle.weight[self.b[:, None], self.a[None, :]], whole.middle.bias[self.b] = middle, middle_bias
        whole.exit.weight[:, self.b] = last


@dataclass(frozen=True)
class MaskedConfig(StepsConfig):
    """The masked energy E(x | y) = |x - f(x; m_y)|^2 / 2 s^2. Raises `EbmtrajError` for a setting out of its range."""

    steps: int = 300
    keep: float = 0.2  # share of each layer that a class uses
    # denoise: |f(x + s n) - x|^2; score: the same of x - s^2 grad E, whose gradient also goes through f's own slope
    objective: Literal["denoise", "score"] = "denoise"
    noise: float = 0.6  # s, in units of the pixels' spread
    hold: bool = True  # weights that an earlier class uses stay as they are; new classes may still use them
    shift: bool = False  # take off each class's mean energy over its own training images, one stored number a class

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < self.keep <= 1 or not self.noise > 0:
            raise EbmtrajError(f"settings: keep = {self.keep}, noise = {self.noise}; it needs 0 < keep <= 1 and noise > 0")


class MaskedEBM(ClassScores):
    """Learn to undo noise (denoising score matching, Vincent 2011); the energy is how far that moves an image.

    f is trained on |f(x + s n) - x|^2, so that (x - f(x)) / s^2 is the score of the class's images under noise s up to its
    sign, and E is s^2 / 2 times its square: 0 on the images, whatever the class, which is what makes energies of classes
    that were never seen together comparable.
    """

    name = "ebm"
    title = "masked EBM"
    Config = MaskedConfig
    config: MaskedConfig

    def __init__(
        self, problem: Problem, config: MaskedConfig | None = None, seed: int = 0, device: torch.device | str = "cpu"
    ) -> None:
        super().__init__(problem, config, seed, device)
        self.net = self._make()
        self.offset = torch.zeros(problem.classes, device=self.device)

    def _make(self) -> MaskedNet:
        size = self.problem.size
        return MaskedNet(size, size, self.problem.classes, self.config.keep, self.generator).to(self.device)

    def _held(self) -> list[int]:
        """The classes whose weights stay as they are."""
        return self.seen if self.config.hold else []

    def _learn(self, x: Tensor, y: Tensor, classes: tuple[int, ...]) -> None:
        clean, part = self.unit(x), self.net.part(classes, self._held())

        def loss(index: Tensor) -> Tensor:
            noise = torch.empty_like(clean[index]).normal_(generator=self.generator)
            noisy = clean[index] + self.config.noise * noise
            if self.config.objective == "denoise":
                back = part(noisy, y[index])
            else:
                noisy.requires_grad_(True)
                half = 0.5 * (noisy - part(noisy, y[index])).square().sum()
                back = noisy - torch.autograd.grad(half, noisy, create_graph=True)[0]
            return (back - clean[index]).square().sum(1).mean()

        take_steps(self.name, list(part.parameters()), loss, len(x), self.config, self.generator, before=part.hold)
        part.put_back(self.net)
        for label in classes:
            self.offset[label] = self._energy(x[y == label], label).mean()

    @torch.no_grad()
    def _energy(self, x: Tensor, label: int) -> Tensor:
        unit = self.unit(x)
        return (unit - self.net.of_class(unit, label)).square().sum(1) / (2 * self.config.noise**2)

    def energies(self, x: Tensor) -> Tensor:
        """E(x | y), less each class's stored shift where there is one."""
        found = torch.zeros((len(x), self.problem.classes), device=self.device)
        for label in self.seen:
            found[:, label] = self._energy(x, label) - (self.offset[label] if self.config.shift else 0.0)
        return found

    def memory(self) -> int:
        """The weights, and a shift a class where it is used; masks come back from the seed."""
        return count(self.net) + (self.problem.classes if self.config.shift else 0)


class SeparateNets(MaskedEBM):
    """The same energy with a network of its own for each class: as many times the memory, nothing is shared."""

    name = "separate"
    title = "a network for each class, same energy"

    def _make(self) -> MaskedNet:
        self.nets = [
            MaskedNet(self.problem.size, self.problem.size, self.problem.classes, 1.0, self.generator).to(self.device)
            for _ in range(self.problem.classes)
        ]
        return self.nets[0]

    def _learn(self, x: Tensor, y: Tensor, classes: tuple[int, ...]) -> None:
        whole = self.config
        self.config = dataclasses.replace(whole, steps=max(1, whole.steps // len(classes)))  # as many a task as one network
        for label in classes:
            self.net = self.nets[label]
            super()._learn(x[y == label], y[y == label], (label,))
        self.config = whole

    def _held(self) -> list[int]:
        return []

    def _energy(self, x: Tensor, label: int) -> Tensor:
        self.net = self.nets[label]
        return super()._energy(x, label)

    def memory(self) -> int:
        """All networks."""
        return sum(map(count, self.nets)) + (self.problem.classes if self.config.shift else 0)
