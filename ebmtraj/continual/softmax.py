"""Classifiers with a softmax over 2 layers of 400: fine-tuning, and those that hold on to old weights or answers.

Kirkpatrick et al. 2017; Schwarz et al. 2018; Zenke et al. 2017; Li & Hoiem 2016.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from ebmtraj.continual.learner import Learner, count
from ebmtraj.continual.steps import DEPTH, WIDTH, StepsConfig, take_steps
from ebmtraj.device import weights_from
from ebmtraj.errors import EbmtrajError
from ebmtraj.nets.mlp import MLP

Heads = Literal["seen", "own"]


@dataclass(frozen=True)
class SoftmaxConfig(StepsConfig):
    """Settings of a classifier."""

    # Over which classes the softmax of a task's loss runs, in the class-incremental scenario: all seen so far (the usual),
    # or the task's own, which leaves old classes' outputs alone (Zeno et al. 2018, the "labels trick").
    heads: Heads = "seen"


class FineTune(Learner):
    """Cross-entropy on one task after the other, and nothing against forgetting."""

    name = "fine-tune"
    title = "fine-tuning"
    Config = SoftmaxConfig
    config: SoftmaxConfig

    def __init__(self, *given: object, **named: object) -> None:
        super().__init__(*given, **named)  # type: ignore[arg-type]
        with weights_from(self.generator.initial_seed()):
            self.net = MLP(self.problem.size, self.problem.answers, width=WIDTH, depth=DEPTH).to(self.device)

    def active(self, classes: Sequence[int]) -> list[int]:
        """The answers that a task's softmax runs over."""
        if self.problem.scenario == "domain":
            return list(range(self.problem.answers))
        if self.problem.scenario == "task" or self.config.heads == "own":
            return list(classes)
        return list(dict.fromkeys((*self.seen, *classes)))

    def _learn(self, x: Tensor, y: Tensor, classes: tuple[int, ...]) -> None:
        x, right, active = self.unit(x), self.problem.right(y), self.active(classes)

        def loss(index: Tensor) -> Tensor:
            return cross_entropy(self.net(x[index]), right[index], active) + self.hold(x[index])

        parameters = list(self.net.parameters())
        take_steps(self.name, parameters, loss, len(x), self.config, self.generator, before=self.before, after=self.after)
        self.finish(x, active)

    def hold(self, x: Tensor) -> Tensor:
        """What is added to a batch's loss against forgetting, `()`."""
        return torch.zeros((), device=self.device)

    def before(self) -> None:
        """Called between gradient and step."""

    def after(self) -> None:
        """Called behind each step."""

    def finish(self, x: Tensor, active: Sequence[int]) -> None:
        """Called at a task's end with its images, scaled, `(N, D)`."""

    @torch.no_grad()
    def scores(self, x: Tensor) -> Tensor:
        """Logits, `(B, A)`."""
        logits: Tensor = self.net(self.unit(x))
        return logits

    def memory(self) -> int:
        """The weights."""
        return count(self.net)


def cross_entropy(logits: Tensor, right: Tensor, active: Sequence[int]) -> Tensor:
    """Mean -log p(y | x) of a softmax over the active answers, `(B, A), (B,) -> ()`."""
    at = torch.full((logits.shape[1],), -1, device=logits.device)
    at[list(active)] = torch.arange(len(active), device=logits.device)
    return F.cross_entropy(logits[:, list(active)], at[right])


@dataclass(frozen=True)
class PenaltyConfig(SoftmaxConfig):
    """A quadratic penalty on moving weights that mattered. Raises `EbmtrajError` for a setting out of its range."""

    weight: float = 100.0  # of the penalty
    decay_old: float = 1.0  # what is left of older tasks' importances when one is added (online EWC's gamma)
    damping: float = 0.1  # SI's xi

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.weight < 0 or not 0 <= self.decay_old <= 1 or not self.damping > 0:
            raise EbmtrajError(
                f"settings: weight = {self.weight}, decay_old = {self.decay_old}, damping = {self.damping}; it needs "
                "weight >= 0, 0 <= decay_old <= 1 and damping > 0"
            )


class EWC(FineTune):
    """Elastic weight consolidation: one penalty a task, by its diagonal Fisher information (Kirkpatrick et al. 2017)."""

    name = "ewc"
    title = "EWC"
    Config = PenaltyConfig
    config: PenaltyConfig
    online = False

    def __init__(self, *given: object, **named: object) -> None:
        super().__init__(*given, **named)
        self.anchors: list[tuple[list[Tensor], list[Tensor]]] = []  # importances and weights, of each task or of all

    def hold(self, x: Tensor) -> Tensor:
        """lambda / 2 sum F (theta - theta*)^2."""
        total = torch.zeros((), device=self.device)
        for importance, old in self.anchors:
            for each, p, before in zip(importance, self.net.parameters(), old, strict=True):
                total = total + (each * (p - before).square()).sum()
        return 0.5 * self.config.weight * total

    def finish(self, x: Tensor, active: Sequence[int]) -> None:
        """Keep this task's Fisher information and weights; online, add it to the decayed sum of the earlier ones."""
        importance = fisher(self.net, x, active, self.generator)
        old = [p.detach().clone() for p in self.net.parameters()]
        if self.online and self.anchors:
            importance = [self.config.decay_old * a + b for a, b in zip(self.anchors[0][0], importance, strict=True)]
        self.anchors = [(importance, old)] if self.online else [*self.anchors, (importance, old)]

    def memory(self) -> int:
        """Weights, and a copy with importances of each anchor."""
        return super().memory() * (1 + 2 * len(self.anchors))


class OnlineEWC(EWC):
    """One running penalty in place of one a task (Schwarz et al. 2018)."""

    name = "online-ewc"
    title = "online EWC"
    online = True


def fisher(net: MLP, x: Tensor, active: Sequence[int], generator: torch.Generator) -> list[Tensor]:
    """The diagonal of the Fisher information at images `(N, D)`, labels drawn from the net's own softmax; as its parameters.

    A linear layer's gradient for one image is an outer product, whose squares sum up to a product of squares.
    """
    inputs, outputs, h = [], [], x
    for layer in net:
        if isinstance(layer, torch.nn.Linear):
            inputs.append(h)
            h = layer(h)
            outputs.append(h)
        else:
            h = layer(h)
    log_p = h[:, list(active)].log_softmax(1)
    drawn = torch.multinomial(log_p.detach().exp(), 1, generator=generator)
    slopes = torch.autograd.grad(log_p.gather(1, drawn).sum(), outputs)
    found = []
    for given, slope in zip(inputs, slopes, strict=True):
        squares = slope.square()
        found += [squares.T @ given.detach().square() / len(x), squares.mean(0)]
    return found


class SynapticIntelligence(FineTune):
    """Importances from how much each weight's path lowered the loss (Zenke et al. 2017)."""

    name = "si"
    title = "SI"
    Config = PenaltyConfig
    config: PenaltyConfig

    def __init__(self, *given: object, **named: object) -> None:
        super().__init__(*given, **named)
        self.importance = [torch.zeros_like(p) for p in self.net.parameters()]
        self.path = [torch.zeros_like(p) for p in self.net.parameters()]
        self.old = [p.detach().clone() for p in self.net.parameters()]
        self._last = [p.detach().clone() for p in self.net.parameters()]
        self._slope = [torch.zeros_like(p) for p in self.net.parameters()]

    def _learn(self, x: Tensor, y: Tensor, classes: tuple[int, ...]) -> None:
        self.path = [torch.zeros_like(p) for p in self.path]
        self._last = [p.detach().clone() for p in self.net.parameters()]
        super()._learn(x, y, classes)

    def hold(self, x: Tensor) -> Tensor:
        """c sum Omega (theta - theta*)^2."""
        parts = [
            (each * (p - before).square()).sum()
            for each, p, before in zip(self.importance, self.net.parameters(), self.old, strict=True)
        ]
        return self.config.weight * torch.stack(parts).sum()

    def before(self) -> None:
        """Keep the loss's slope, less the penalty's own."""
        self._slope = [
            torch.zeros_like(p) if p.grad is None else p.grad - 2 * self.config.weight * each * (p.detach() - before)
            for each, p, before in zip(self.importance, self.net.parameters(), self.old, strict=True)
        ]

    def after(self) -> None:
        """Add up slope times way."""
        for path, slope, p, last in zip(self.path, self._slope, self.net.parameters(), self._last, strict=True):
            now = p.detach()
            path.sub_(slope * (now - last))
            last.copy_(now)

    def finish(self, x: Tensor, active: Sequence[int]) -> None:
        """Importances of the task: its path over the squared way."""
        now = [p.detach().clone() for p in self.net.parameters()]
        for each, path, new, before in zip(self.importance, self.path, now, self.old, strict=True):
            each.add_(path.clamp_min(0) / ((new - before).square() + self.config.damping))
        self.old = now

    def memory(self) -> int:
        """Weights, their copy and importances."""
        return 3 * super().memory()


@dataclass(frozen=True)
class DistilConfig(SoftmaxConfig):
    """Learning without forgetting. Raises `EbmtrajError` for a setting out of its range."""

    weight: float = 1.0  # of the distillation
    temperature: float = 2.0  # of the softmax whose answers are kept

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.weight < 0 or not self.temperature > 0:
            raise EbmtrajError(
                f"settings: weight = {self.weight}, temperature = {self.temperature}; it needs weight >= 0, temperature > 0"
            )


class LearningWithoutForgetting(FineTune):
    """Keep the old network's answers on the new task's images (Li & Hoiem 2016)."""

    name = "lwf"
    title = "LwF"
    Config = DistilConfig
    config: DistilConfig

    def __init__(self, *given: object, **named: object) -> None:
        super().__init__(*given, **named)
        self.old: MLP | None = None

    def hold(self, x: Tensor) -> Tensor:
        """The cross-entropy of old and new answers over old classes, both at a temperature."""
        if self.old is None:
            return super().hold(x)
        t, groups = self.config.temperature, [self.seen]
        if self.problem.scenario == "task":
            groups = [list(plan) for plan in self.problem.plan if set(plan) <= set(self.seen)]
        if self.problem.scenario == "domain":
            groups = [list(range(self.problem.answers))]
        with torch.no_grad():
            before = self.old(x)
        now = self.net(x)
        parts = [-(before[:, g] / t).softmax(1) * (now[:, g] / t).log_softmax(1) for g in groups]
        return self.config.weight * t**2 * torch.stack([part.sum(1).mean() for part in parts]).sum()

    def finish(self, x: Tensor, active: Sequence[int]) -> None:
        """Keep the network as it is now."""
        self.old = copy.deepcopy(self.net).requires_grad_(False)

    def memory(self) -> int:
        """Weights, and those of the old network."""
        return super().memory() * (1 if self.old is None else 2)
