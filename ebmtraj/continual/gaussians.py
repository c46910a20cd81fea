"""What tables of continual learning leave out: means and Gaussians of classes forget nothing; and Gaussians, tilted."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from ebmtraj.continual.learner import ClassScores, count
from ebmtraj.continual.masked import MaskedNet
from ebmtraj.continual.steps import StepsConfig, take_steps
from ebmtraj.continual.tasks import Problem
from ebmtraj.errors import EbmtrajError
from ebmtraj.nets.mlp import LevelFeatures

GAIN = 3.0  # of the tilt's weights at the start


@dataclass(frozen=True)
class MeanConfig:
    """Nothing to set."""


class NearestMean(ClassScores):
    """The class whose mean image is nearest: one image kept a class."""

    name = "nearest-mean"
    title = "nearest class mean"
    Config = MeanConfig
    neural = False

    def __init__(
        self, problem: Problem, config: MeanConfig | None = None, seed: int = 0, device: torch.device | str = "cpu"
    ) -> None:
        super().__init__(problem, config, seed, device)
        self.means = torch.zeros(problem.classes, problem.size, device=self.device)

    def _learn(self, x: Tensor, y: Tensor, classes: tuple[int, ...]) -> None:
        for label in classes:
            self.means[label] = x[y == label].mean(0)

    def energies(self, x: Tensor) -> Tensor:
        """Half the squared distance to each mean, in the pixels' spread."""
        return 0.5 * (torch.cdist(x, self.means) / self.scale).square()

    def memory(self) -> int:
        """The means."""
        return count([self.means])


@dataclass(frozen=True)
class GaussianConfig:
    """A Gaussian a class. Raises `EbmtrajError` for a setting out of its range."""

    ridge: float = 0.03  # added to each pixel's variance, in squares of the pixels' spread

    def __post_init__(self) -> None:
        if not self.ridge > 0:
            raise EbmtrajError(f"settings: ridge = {self.ridge}; it needs ridge > 0")


class ClassGaussian(ClassScores):
    """A Gaussian with full covariance for each class (quadratic discriminant analysis)."""

    name = "class-gaussian"
    title = "class Gaussian"
    Config = GaussianConfig
    config: GaussianConfig
    neural = False

    def __init__(
        self, problem: Problem, config: GaussianConfig | None = None, seed: int = 0, device: torch.device | str = "cpu"
    ) -> None:
        super().__init__(problem, config, seed, device)
        self.bases = Bases(problem, self.device)

    def _learn(self, x: Tensor, y: Tensor, classes: tuple[int, ...]) -> None:
        for label in classes:
            self.bases.fit(label, self.unit(x[y == label]), self.config.ridge)

    def energies(self, x: Tensor) -> Tensor:
        """-log N(x; mu_y, Sigma_y)."""
        found = torch.zeros((len(x), self.problem.classes), device=self.device)
        for label in self.seen:
            found[:, label] = self.bases.energy(self.unit(x), label)
        return found

    def memory(self) -> int:
        """Means and covariances."""
        size = self.problem.size
        return self.problem.classes * (size + size * (size + 1) // 2)


class Bases:
    """Class Gaussians by their principal axes."""

    def __init__(self, problem: Problem, device: torch.device) -> None:
        """Nothing is known of any class yet."""
        self.mean = torch.zeros(problem.classes, problem.size, device=device)
        self.variance = torch.ones(problem.classes, problem.size, device=device)
        self.axes: list[Tensor | None] = [None] * problem.classes  # (D, D), an axis a column

    def fit(self, label: int, x: Tensor, ridge: float) -> None:
        """Mean and covariance of images `(N, D)`."""
        self.mean[label] = x.mean(0)
        centred = (x - self.mean[label]).double()
        variance, axes = torch.linalg.eigh(centred.T @ centred / len(x))
        self.variance[label], self.axes[label] = variance.clamp_min(0).float() + ridge, axes.float()

    def along(self, x: Tensor, label: int) -> Tensor:
        """Coordinates along a class's principal axes, `(B, D) -> (B, D)`."""
        axes = self.axes[label]
        assert axes is not None
        return (x - self.mean[label]) @ axes

    def energy(self, x: Tensor, label: int) -> Tensor:
        """-log N(x; mu, Sigma), `(B,)`."""
        variance = self.variance[label]
        quadratic = (self.along(x, label).square() / variance).sum(1)
        return 0.5 * (quadratic + variance.log().sum() + len(variance) * math.log(2 * math.pi))


@dataclass(frozen=True)
class TiltConfig(StepsConfig):
    """A masked network that tilts class Gaussians. Raises `EbmtrajError` for a setting out of its range."""

    steps: int = 300
    learning_rate: float = 3e-3
    ridge: float = 0.03  # added to each variance of the Gaussians
    keep: float = 0.2  # share of each layer that a class uses
    low: float = 0.2  # least and greatest noise level, in units of the pixels' spread
    high: float = 3.0  # the greatest
    levels: int = 8  # of the sum that stands for the integral
    draws: int = 4  # of noise at each, each with its negative

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.ridge > 0 or not 0 < self.keep <= 1 or not 0 < self.low < self.high or self.levels < 1 or self.draws < 1:
            raise EbmtrajError(
                f"settings: ridge = {self.ridge}, keep = {self.keep}, low = {self.low}, high = {self.high}, levels = "
                f"{self.levels}, draws = {self.draws}; it needs ridge > 0, 0 < keep <= 1, 0 < low < high and "
                "levels and draws >= 1"
            )


class TiltedGaussian(ClassScores):
    """Class Gaussians, tilted by an energy that one masked network holds: log p(x | y) = log N_y(x) + t_y(x).

    Along principal axes, a Gaussian's expected clean image under noise s errs by sqrt(v s^2 / (v + s^2)) e with e ~ N(0, 1)
    where the class is a Gaussian. The network predicts e from the whitened noisy image; by how much it does is the tilt:
    t(x) = integral over ln s of E sum_i v_i / (v_i + s^2) (e_i^2 - (e_i - f_i)^2), the difference of two denoisers'
    pointwise losses (I-MMSE; Kong et al. 2023, equation 9). f is scaled by a number in [0, 1] that fits best on a tenth of
    the class's images, which the network is not trained on. Weights that an earlier class uses are held.
    """

    name = "tilt"
    title = "class Gaussian tilted by our energy"
    Config = TiltConfig
    config: TiltConfig

    def __init__(
        self, problem: Problem, config: TiltConfig | None = None, seed: int = 0, device: torch.device | str = "cpu"
    ) -> None:
        super().__init__(problem, config, seed, device)
        self.bases, self.features = Bases(problem, self.device), LevelFeatures(4).to(self.device)
        inputs = problem.size + self.features.size
        # whitened images that are no Gaussian's differ from one in odd powers, which a small swish network hardly has
        net = MaskedNet(inputs, problem.size, problem.classes, self.config.keep, self.generator, gain=GAIN)
        self.net = net.to(self.device)
        torch.nn.init.zeros_(self.net.exit.weight)  # no tilt at first
        self.trust = torch.zeros(problem.classes, device=self.device)

    def _learn(self, x: Tensor, y: Tensor, classes: tuple[int, ...]) -> None:
        c, part = self.config, self.net.part(classes, self.seen)
        unit, clean = self.unit(x), torch.zeros_like(x)
        for label in classes:
            self.bases.fit(label, unit[y == label], c.ridge)
            clean[y == label] = self.bases.along(unit[y == label], label)

        def loss(index: Tensor) -> Tensor:
            drawn = torch.rand((len(index), 1), generator=self.generator, device=self.device)
            level = c.low * (c.high / c.low) ** drawn
            noise = torch.empty_like(clean[index]).normal_(generator=self.generator)
            variance = self.bases.variance[y[index]]
            z, error, weight = _standing(clean[index], noise, level, variance)
            f = part(torch.cat((z, self.features(level[:, 0])), dim=1), y[index])
            return (weight * (error - f).square()).sum(1).mean()

        spare = torch.arange(len(x), device=self.device) % 10 == 0  # images that the network never sees
        clean_spare, y_spare = clean[spare], y[spare]
        clean, y = clean[~spare], y[~spare]
        take_steps(self.name, list(part.parameters()), loss, len(clean), c, self.generator, before=part.hold)
        part.put_back(self.net)
        for label in classes:
            if bool((y_spare == label).any()):
                agrees, squares = self._moments(clean_spare[y_spare == label], label, alike=False)
                self.trust[label] = (agrees.sum() / squares.sum().clamp_min(1e-12)).clamp(0, 1)

    @torch.no_grad()
    def energies(self, x: Tensor) -> Tensor:
        """-log N(x; mu_y, Sigma_y) - t_y(x)."""
        unit = self.unit(x)
        found = torch.zeros((len(x), self.problem.classes), device=self.device)
        for label in self.seen:
            found[:, label] = self.bases.energy(unit, label) - self._tilt(self.bases.along(unit, label), label)
        return found

    def _tilt(self, clean: Tensor, label: int) -> Tensor:
        """t(x) of coordinates along principal axes, of the network's answer times the class's trust a, `(B,)`."""
        agrees, squares = self._moments(clean, label)
        a = self.trust[label]
        return 2 * a * agrees - a**2 * squares

    @torch.no_grad()
    def _moments(self, clean: Tensor, label: int, *, alike: bool = True) -> tuple[Tensor, Tensor]:
        """The integrals of sum_i w_i e_i f_i and of sum_i w_i f_i^2, `(B,)` each; `alike`: the same noise for all images."""
        c = self.config
        axes = self.bases.axes[label]
        assert axes is not None
        generator = torch.Generator(device=self.device).manual_seed(0)  # and for all classes
        width = math.log(c.high / c.low) / c.levels
        agrees, squares = torch.zeros(len(clean), device=clean.device), torch.zeros(len(clean), device=clean.device)
        for number in range(c.levels):
            level = torch.full((len(clean), 1), c.low * math.exp((number + 0.5) * width), device=clean.device)
            for _ in range(c.draws):
                drawn = torch.empty_like(clean[:1] if alike else clean).normal_(generator=generator) @ axes
                for noise in (drawn, -drawn):
                    z, error, weight = _standing(clean, noise, level, self.bases.variance[label])
                    f = self.net.of_class(torch.cat((z, self.features(level[:, 0])), dim=1), label)
                    agrees += (weight * error * f).sum(1) * width / (2 * c.draws)
                    squares += (weight * f.square()).sum(1) * width / (2 * c.draws)
        return agrees, squares

    def memory(self) -> int:
        """Gaussians and weights."""
        size = self.problem.size
        return self.problem.classes * (size + size * (size + 1) // 2 + 1) + count(self.net)


def _standing(clean: Tensor, noise: Tensor, level: Tensor, variance: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The whitened noisy coordinates, the Gaussian denoiser's error in its spread, and the error's weight, `(B, D)` each."""
    noisy = clean + level * noise
    share = variance / (variance + level**2)
    return noisy * (variance + level**2).rsqrt(), (clean - share * noisy) / (level * share.sqrt()), share
