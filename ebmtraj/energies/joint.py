"""A classifier as a joint energy of image and label, at every noise level (paper 001, equations 5 to 7).

Any network's logits define E(x, y) = -logits[y], and with it E(x) = -logsumexp logits and p(y | x) = softmax logits. Here

    logits[y](x, s) = log b(x, s | y) - e(u, s) / s + f[y](u, s)

with a base b that is known at every level (see `image_base`), and e and f outputs of one network: E(x) is an exponential
tilt of the base (paper 004), as the energies of `image` are. The network sees x as the base's own spread lets it be told
from noise, u = A diag(v / (v + s^2))^(1/2) A' (x - m) with m, A and v the mean, axes and variances of all the data: it
hardly sees directions in which the data vary less than the noise, in which the energy grows as the base's does.
"""

from __future__ import annotations

import abc
from collections.abc import Callable
from typing import Literal, NamedTuple, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ebmtraj.energies.image_base import MixtureBase, UnitGaussian, picked, spread_out
from ebmtraj.energies.image_conv import Network, chosen_network
from ebmtraj.nets.conv import ConvNet
from ebmtraj.nets.mlp import LevelFeatures, silu_with_slope
from ebmtraj.nets.resnet import ResNet


class Pull(NamedTuple):
    """A network's outputs at u, and their joint gradient there."""

    e: Tensor  # (B,)
    f: Tensor  # (B, K)
    back: Callable[[Tensor, Tensor], Tensor]  # (a (B,), b (B, K)) -> gradient in u of sum a e + sum b f, (B, *event)


class JointTilt(nn.Module, abc.ABC):
    """The network's share of a joint energy: a scalar e(u, s) and class scores f(u, s)."""

    @abc.abstractmethod
    def forward(self, u: Tensor, level: Tensor) -> tuple[Tensor, Tensor]:
        """e `(B,)` and f `(B, K)` of events `(B, *event)` at levels `(B,)`."""

    @abc.abstractmethod
    def pull(self, u: Tensor, level: Tensor) -> Pull:
        """e `(B,)` and f `(B, K)` with their gradient, differentiable in the parameters where gradients are enabled."""


class MLPJointTilt(JointTilt):
    """e = u . G + g and f, with G, g and f the outputs of one swish network; the gradient is a product of matrices."""

    def __init__(self, event: tuple[int, ...], classes: int, *, width: int = 512, depth: int = 2) -> None:
        super().__init__()
        self.size, self.classes = int(torch.Size(event).numel()), classes
        self.level_features = LevelFeatures()
        self.input = nn.Linear(self.size, width)
        self.input_level = nn.Linear(self.level_features.size, width, bias=False)
        self.hidden = nn.ModuleList(nn.Linear(width, width) for _ in range(depth - 1))
        self.output = nn.Linear(width, self.size + 1 + classes)
        nn.init.normal_(self.output.weight, std=1e-3)
        nn.init.zeros_(self.output.bias)

    def forward(self, u: Tensor, level: Tensor) -> tuple[Tensor, Tensor]:
        """e `(B,)` and f `(B, K)`."""
        flat = u.flatten(1)
        out = self.output(self._layers(flat, level)[0])
        return (flat * out[:, : self.size]).sum(1) + out[:, self.size], out[:, self.size + 1 :]

    def pull(self, u: Tensor, level: Tensor) -> Pull:
        """As many products back as forward."""
        flat = u.flatten(1)
        value, slopes = self._layers(flat, level)
        direct, scores = self.output(value).split((self.size, 1 + self.classes), dim=1)
        weight = self.output.weight

        def back(a: Tensor, b: Tensor) -> Tensor:
            a = a.unsqueeze(1)
            h = torch.cat((a * flat, a, b), dim=1) @ weight
            for i in reversed(range(len(slopes))):
                h = (h * slopes[i]) @ (cast(Tensor, self.hidden[i - 1].weight) if i else self.input.weight)
            return (a * direct + h).view_as(u)

        return Pull((flat * direct).sum(1) + scores[:, 0], scores[:, 1:], back)

    def _layers(self, flat: Tensor, level: Tensor) -> tuple[Tensor, list[Tensor]]:
        h = self.input(flat) + self.input_level(self.level_features(level))
        value, slope = silu_with_slope(h)
        slopes = [slope]
        for layer in self.hidden:
            value, slope = silu_with_slope(layer(value))
            slopes.append(slope)
        return value, slopes


class NetworkJointTilt(JointTilt):
    """e and f as the outputs of a convolutional network; their gradient is autograd's."""

    def __init__(self, net: ConvNet | ResNet) -> None:
        """`net` takes events, labels and levels, and gives `(B, 1 + K)`."""
        super().__init__()
        self.net = net
        nn.init.normal_(cast(Tensor, self.net.output.weight), std=1e-2)

    def forward(self, u: Tensor, level: Tensor) -> tuple[Tensor, Tensor]:
        """e `(B,)` and f `(B, K)`."""
        out = self.net(u, None, level)
        return out[:, 0], out[:, 1:]

    def pull(self, u: Tensor, level: Tensor) -> Pull:
        """One pass back for each gradient that is asked for."""
        wanted = torch.is_grad_enabled()
        with torch.enable_grad():
            u = u if u.requires_grad and wanted else u.detach().requires_grad_(True)
            outputs = self(u, level)

        def back(a: Tensor, b: Tensor) -> Tensor:
            return torch.autograd.grad(outputs, u, (a, b), create_graph=wanted, retain_graph=True)[0]

        e, f = outputs if wanted else (each.detach() for each in outputs)
        return Pull(e, f, back)


def joint_tilt(
    network: Network, shape: tuple[int, int, int], classes: int, *, width: int, depth: int, channels: int
) -> JointTilt:
    """The network for images of this shape: dense layers for small ones, a residual network for others, or as said."""
    kind = chosen_network(network, shape)
    if kind == "mlp":
        return MLPJointTilt(shape, classes, width=width, depth=depth)
    return NetworkJointTilt((ConvNet if kind == "conv" else ResNet)(shape, 1 + classes, levels=True, width=channels))


class Frame(nn.Module):
    """What the network sees of x under noise of level s: each axis of the data by its share of signal; see above."""

    mean: Tensor  # (D,) where fitted, as the others
    axes: Tensor  # (D, D) in columns
    variance: Tensor  # (D,) along each axis

    def __init__(self, event: tuple[int, ...], fitted: bool) -> None:
        """Fitted to the data or not: then x / sqrt(1 + s^2)."""
        super().__init__()
        self.fitted = fitted
        if fitted:
            size = int(torch.Size(event).numel())
            self.register_buffer("mean", torch.zeros(size))
            self.register_buffer("axes", torch.eye(size))
            self.register_buffer("variance", torch.ones(size))

    @torch.no_grad()
    def fit(self, x: Tensor, floor: float) -> None:
        """Take mean, axes and variances of events `(N, *event)`."""
        flat = x.flatten(1).double()
        values, vectors = torch.linalg.eigh(torch.cov(flat.T))
        for target, value in (
            (self.mean, flat.mean(0)),
            (self.axes, vectors),
            (self.variance, values.clamp_min(0) + floor),
        ):
            target.copy_(value)

    def forward(self, x: Tensor, level: Tensor) -> Tensor:
        """u of events `(B, *event)` at levels `(B,)`."""
        if not self.fitted:
            return self.turn(x, level)
        return self.turn((x.flatten(1) - self.mean).view_as(x), level)

    def turn(self, x: Tensor, level: Tensor) -> Tensor:
        """The linear part, which is its own transpose, `(B, *event)` at levels `(B,)`."""
        if not self.fitted:
            return x * torch.rsqrt(1 + spread_out(level, x) ** 2)
        share = torch.sqrt(self.variance / (self.variance + level.unsqueeze(1) ** 2))
        return (((x.flatten(1) @ self.axes) * share) @ self.axes.T).view_as(x)


class JointEnergy(nn.Module):
    """E(x, y, s) and E(x, s) of one network; as an energy it is given labels `(B,)`, -1 or None where there is none.

    `factored`: the ablation p(x) p(y | x), whose classes take no part in E(x).
    """

    base: UnitGaussian | MixtureBase

    def __init__(self, base: UnitGaussian | MixtureBase, frame: Frame, tilt: JointTilt, *, factored: bool = False) -> None:
        super().__init__()
        self.base, self.frame, self.tilt, self.factored = base, frame, tilt, factored

    def logits(self, x: Tensor, level: Tensor) -> Tensor:
        """-E(x, y, s) of all classes, `(B, K)`, of events `(B, *event)` at level `()` or `(B,)`."""
        level = level.expand(len(x))
        e, f = self.tilt(self.frame(x, level), level)
        return self._joined(self._base_logits(x, level), e, f, level)

    def forward(self, x: Tensor, label: Tensor | None, level: Tensor) -> Tensor:
        """E(x, y, s), or E(x, s) where there is no label, `(B,)`."""
        return -picked(self.logits(x, level), label)

    def gradient(self, x: Tensor, label: Tensor | None, level: Tensor) -> Tensor:
        """Gradient of the energy in x, `(B, *event)`."""
        return self.with_gradients(x, label, level)[1]

    def with_gradients(
        self, x: Tensor, label: Tensor | None, level: Tensor, also: Literal["none", "marginal"] = "none"
    ) -> tuple[Tensor, ...]:
        """Logits `(B, K)`, the gradient of E(x, y) and, with `also="marginal"`, that of E(x): one pass forward for all."""
        level = level.expand(len(x))
        pull = self.tilt.pull(self.frame(x, level), level)
        base, pull_base = self._base_pull(x, level)
        logits = self._joined(base, pull.e, pull.f, level)

        def gradient(label: Tensor | None) -> Tensor:
            share = shares(logits, label)
            scores = share - pull.f.softmax(1) if self.factored else share
            towards = pull.back(1 / level, -scores)
            return pull_base(share) + self.frame.turn(towards, level)

        return (logits, gradient(label)) + ((gradient(None),) if also == "marginal" else ())

    def start(
        self, count: int, shape: tuple[int, ...], label: Tensor | None, level: float, generator: torch.Generator
    ) -> Tensor:
        """Where chains set out at the top of a noise ladder: the base under that noise, `(count, *shape)`."""
        if isinstance(self.base, MixtureBase):
            own = label if self.base.classes else None
            return self.base.sample(count, own, level, generator).view(count, *shape)
        return (1 + level**2) ** 0.5 * torch.empty((count, *shape), device=generator.device).normal_(generator=generator)

    def _joined(self, base: Tensor, e: Tensor, f: Tensor, level: Tensor) -> Tensor:
        if self.factored:
            base, f = base.logsumexp(1, keepdim=True), f.log_softmax(1)
        return base + f - (e / level).unsqueeze(1)

    def _base_logits(self, x: Tensor, level: Tensor) -> Tensor:
        """log b(x, s | y), `(B, K)`, or `(B, 1)` where it knows no classes."""
        if isinstance(self.base, UnitGaussian):
            return -self.base(x, None, level).unsqueeze(1)
        return by_class(self.base._logs(x, None, level)[0], self.base).logsumexp(2)

    def _base_pull(self, x: Tensor, level: Tensor) -> tuple[Tensor, Callable[[Tensor], Tensor]]:
        """`_base_logits`, and the gradient of the base's energy given shares `(B, K)` of the classes."""
        base = self.base
        if isinstance(base, UnitGaussian):
            return -base(x, None, level).unsqueeze(1), lambda share: base.gradient(x, None, level)
        logs, white, variance = base._logs(x, None, level)
        each = by_class(logs, base)
        pulls = white / variance  # (C, B, D) along each component's axes

        def back(share: Tensor) -> Tensor:
            if self.factored or not base.classes:
                parts = logs.softmax(1)
            else:
                parts = (each.softmax(2) * share.unsqueeze(2)).flatten(1)
            return torch.einsum("kbe,kde->bd", parts.T.unsqueeze(-1) * pulls, base.axes).view_as(x)

        return each.logsumexp(2), back


def by_class(logs: Tensor, base: MixtureBase) -> Tensor:
    """Components' logarithms `(B, K * M)` as `(B, K, M)`; K is 1 where the base knows no classes."""
    return logs.view(len(logs), max(1, base.classes), base.components)


def shares(logits: Tensor, label: Tensor | None) -> Tensor:
    """Which class's energy counts, `(B, K)`: the label's or, where there is none, each by its probability."""
    soft = logits.softmax(1)
    if label is None:
        return soft
    hard = F.one_hot(label.clamp_min(0), logits.shape[1]).to(soft)
    return torch.where((label < 0).unsqueeze(1), soft, hard)


class Guided(nn.Module):
    """p(x) p(y | x)^g of a joint energy, which for g above 1 draws images that are surer of their class.

    Ho & Salimans 2022, equation 6, where both gradients are those of one network.
    """

    def __init__(self, energy: JointEnergy, guidance: float) -> None:
        super().__init__()
        self.energy, self.guidance = energy, guidance

    def forward(self, x: Tensor, label: Tensor | None, level: Tensor) -> Tensor:
        """Energies `(B,)`; without a label those of p(x)."""
        logits = self.energy.logits(x, level)
        whole = logits.logsumexp(1)
        return -(whole + self.guidance * (picked(logits, label) - whole))

    def gradient(self, x: Tensor, label: Tensor | None, level: Tensor) -> Tensor:
        """Their gradient in x, `(B, *event)`."""
        if label is None or self.guidance == 1:
            return self.energy.gradient(x, label, level)
        _, joint, whole = self.energy.with_gradients(x, label, level, also="marginal")
        return whole + self.guidance * (joint - whole)


class LogitEnergy(nn.Module):
    """Any classifier's logits as a joint energy, as paper 001 has it: no base and no noise levels.

    Levels are taken, so that it stands where a `JointEnergy` does, and not looked at.
    """

    def __init__(self, tilt: JointTilt, level: float) -> None:
        """`level` is what the network is told, always the same."""
        super().__init__()
        self.tilt, self.level = tilt, level

    def logits(self, x: Tensor, level: Tensor | None = None) -> Tensor:
        """-E(x, y) of all classes, `(B, K)`."""
        return self.tilt(x, self._told(x))[1]

    def forward(self, x: Tensor, label: Tensor | None, level: Tensor | None = None) -> Tensor:
        """E(x, y), or E(x) where there is no label, `(B,)`."""
        return -picked(self.logits(x), label)

    def gradient(self, x: Tensor, label: Tensor | None, level: Tensor | None = None) -> Tensor:
        """Gradient of the energy in x, `(B, *event)`."""
        pull = self.tilt.pull(x, self._told(x))
        return pull.back(torch.zeros_like(pull.e), -shares(pull.f, label))

    def _told(self, x: Tensor) -> Tensor:
        return torch.full((len(x),), self.level, device=x.device, dtype=x.dtype)
