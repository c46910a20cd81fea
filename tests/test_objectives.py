"""Objectives for any energy: gradients against closed forms, and parameters that they must find."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from ebmtraj.errors import EbmtrajError
from ebmtraj.samplers.buffer import PersistentChains
from ebmtraj.samplers.langevin import LangevinConfig
from ebmtraj.samplers.mcmc import MALAConfig
from ebmtraj.training.losses import contrastive_divergence
from ebmtraj.training.objectives import (
    density_ratio,
    held_energy,
    improved_contrastive_divergence,
    last_step,
    nearest_neighbour_entropy,
    noise_contrastive,
    score_matching,
)

torch.set_num_threads(1)


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def normal(*shape: int, seed: int) -> Tensor:
    return torch.empty(shape, dtype=torch.float64).normal_(generator=seeded(seed))


class Gaussian(nn.Module):
    """A mean and a precision for each entry, and a constant."""

    def __init__(self, size: int = 2) -> None:
        super().__init__()
        self.mean = nn.Parameter(torch.zeros(size, dtype=torch.float64))
        self.log_precision = nn.Parameter(torch.zeros(size, dtype=torch.float64))
        self.constant = nn.Parameter(torch.zeros((), dtype=torch.float64))

    def forward(self, x: Tensor, context: Any = None) -> Tensor:
        return 0.5 * (torch.exp(self.log_precision) * (x - self.mean).square()).sum(-1) + self.constant


class Closed(Gaussian):
    """The same with its gradient in closed form."""

    def gradient(self, x: Tensor, context: Any = None) -> Tensor:
        return torch.exp(self.log_precision) * (x - self.mean)


MEAN, STD = torch.tensor([1.0, -0.5], dtype=torch.float64), torch.tensor([0.5, 2.0], dtype=torch.float64)


def data(size: int, seed: int) -> Tensor:
    return MEAN + STD * normal(size, 2, seed=seed)


def fit(energy: nn.Module, loss: Callable[[int], Tensor], steps: int, rate: float = 0.05) -> None:
    optimiser = torch.optim.Adam(energy.parameters(), lr=rate, betas=(0.5, 0.99))
    for step in range(steps):
        for group in optimiser.param_groups:
            group["lr"] = rate * min(1.0, 2 * (1 - step / steps))
        optimiser.zero_grad()
        loss(step).backward()
        optimiser.step()


def check(energy: Gaussian, within: float) -> None:
    torch.testing.assert_close(energy.mean.detach(), MEAN, atol=2 * within, rtol=0)
    torch.testing.assert_close(energy.log_precision.detach(), -2 * STD.log(), atol=2 * within, rtol=0)


def test_persistent_contrastive_divergence_finds_the_gaussian() -> None:
    energy, chains, noise = Gaussian(), PersistentChains(normal(256, 2, seed=1)), seeded(2)

    def loss(step: int) -> Tensor:
        negative = chains.advance(energy, MALAConfig(steps=3, step_size=0.5, scale=(0.5, 1.5)), generator=noise)
        return contrastive_divergence(energy, data(256, 100 + step), negative, 0.0)[0]

    fit(energy, loss, 120, rate=0.1)
    check(energy, 0.1)
    restarted = PersistentChains(torch.zeros(1000, 2, dtype=torch.float64))
    fresh = torch.full((1000, 2), 50.0, dtype=torch.float64)
    x = restarted.advance(energy, LangevinConfig(steps=0), fresh=fresh, restart=0.3, generator=seeded())
    assert (x[:, 0] == 50).double().mean() == pytest.approx(0.3, abs=0.05)
    other = PersistentChains(x[:1])
    other.load(*restarted.state())
    assert other.x.equal(x)
    with pytest.raises(EbmtrajError, match=r"restart = 0.1.*fresh states of shape \(1000, 2\)"):
        restarted.advance(energy, LangevinConfig(steps=1), restart=0.1, generator=seeded())


def test_improved_contrastive_divergence_finds_the_gaussian() -> None:
    energy, noise = Gaussian(), seeded(2)
    config = LangevinConfig(steps=8, step_size=0.5, scale=(0.5, 2.0))
    chains = normal(256, 2, seed=1)

    def loss(step: int) -> Tensor:
        nonlocal chains
        total, _, chains = improved_contrastive_divergence(
            energy, data(256, 100 + step), chains, config, weight=0.3, generator=noise
        )
        return total

    fit(energy, loss, 250)
    torch.testing.assert_close(energy.mean.detach(), MEAN, atol=0.2, rtol=0)
    torch.testing.assert_close(energy.log_precision.detach(), -2 * STD.log(), atol=0.3, rtol=0)  # with the step's bias


@pytest.mark.parametrize("kind", [Gaussian, Closed])
def test_the_gradient_of_the_last_step_and_of_a_held_energy_in_closed_form(kind: type[Gaussian]) -> None:
    """x' = x - h/2 p (x - m) + ..., so dx'/dp = -h/2 (x - m); and of E(x'; held) it is p (x' - m) dx'/dp."""
    energy = kind()
    with torch.no_grad():
        energy.mean.copy_(MEAN)
        energy.log_precision.copy_(-2 * STD.log())
    x, h = normal(7, 2, seed=1), 0.4
    moved = last_step(energy, x, LangevinConfig(steps=1, step_size=h), generator=seeded())
    precision, m = torch.exp(energy.log_precision.detach()), MEAN
    assert moved.requires_grad
    torch.testing.assert_close(
        moved.detach(), x - 0.5 * h * precision * (x - m) + h**0.5 * torch.empty_like(x).normal_(generator=seeded())
    )
    value = held_energy(energy, moved)
    torch.testing.assert_close(value.detach(), energy(moved).detach())
    value.sum().backward()
    force = precision * (moved.detach() - m)
    torch.testing.assert_close(energy.log_precision.grad, (force * -0.5 * h * (x - m) * precision).sum(0))
    torch.testing.assert_close(energy.mean.grad, (force * 0.5 * h * precision).sum(0))
    assert energy.constant.grad is None or energy.constant.grad == 0


def test_the_whole_loss_is_the_sum_of_its_terms() -> None:
    energy = Gaussian()
    positive, start = data(32, 1), normal(32, 2, seed=2)
    config = LangevinConfig(steps=4, step_size=0.3)
    total, logs, negative = improved_contrastive_divergence(
        energy, positive, start, config, alpha=0.1, weight=0.7, entropy_weight=0.2, generator=seeded()
    )
    up, down = energy(positive), energy(negative)
    expected = (up - down).mean() + 0.7 * (down.mean() - 0.2 * nearest_neighbour_entropy(negative))
    torch.testing.assert_close(total, expected + 0.1 * (up.square() + down.square()).mean())
    assert not negative.requires_grad
    torch.testing.assert_close(logs["gap"], (up - down).mean().detach())
    plain, _, _ = improved_contrastive_divergence(energy, positive, start, config, weight=0.0, generator=seeded())
    expected_gradient = torch.autograd.grad((up - down).mean(), energy.log_precision)[0]
    torch.testing.assert_close(torch.autograd.grad(plain, energy.log_precision)[0], expected_gradient)
    with pytest.raises(EbmtrajError, match="steps >= 1"):
        improved_contrastive_divergence(energy, positive, start, LangevinConfig(steps=0), generator=seeded())


@pytest.mark.parametrize("size", [1, 2, 6])
@pytest.mark.parametrize("banked", [False, True])
def test_nearest_neighbour_entropy_of_a_gaussian(size: int, banked: bool) -> None:
    spread = torch.linspace(0.5, 2, size, dtype=torch.float64)
    x = spread * normal(2000, size, seed=1)
    bank = spread * normal(2000, size, seed=2) if banked else None
    truth = 0.5 * size * math.log(2 * math.pi * math.e) + float(spread.log().sum())
    assert nearest_neighbour_entropy(x, bank) == pytest.approx(truth, abs=0.05 + 0.05 * size)


def test_the_gradient_of_the_entropy_pushes_neighbours_apart() -> None:
    x = torch.tensor([[0.0, 0.0], [1.0, 0.0], [0.0, 3.0]], dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(nearest_neighbour_entropy, x)
    nearest_neighbour_entropy(x).backward()
    assert x.grad is not None
    assert x.grad[1, 0] > 0 > x.grad[0, 0]
    same = torch.zeros(4, 2, dtype=torch.float64, requires_grad=True)  # all in one place: no infinite gradient
    nearest_neighbour_entropy(same).backward()
    assert same.grad is not None
    assert same.grad.isfinite().all()
    with pytest.raises(EbmtrajError, match="1 rows and 0 others"):
        nearest_neighbour_entropy(torch.zeros(1, 2))


@pytest.mark.parametrize("noises", [1, 4])
def test_noise_contrast_finds_the_gaussian_and_its_normaliser(noises: int) -> None:
    energy = Gaussian()

    def log_density(x: Tensor) -> Tensor:
        return -0.5 * (x / 3).square().sum(-1) - 2 * math.log(3) - math.log(2 * math.pi)

    def loss(step: int) -> Tensor:
        positive, noise = data(512, 100 + step), 3 * normal(512 * noises, 2, seed=5000 + step)
        return noise_contrastive(energy, positive, noise, log_density(positive), log_density(noise))[0]

    fit(energy, loss, 300)
    check(energy, 0.08)
    assert energy.constant.item() == pytest.approx(float(STD.log().sum()) + math.log(2 * math.pi), abs=0.1)
    with pytest.raises(EbmtrajError, match=r"log_density_noise has shape \(2,\); it needs \(3,\)"):
        noise_contrastive(energy, data(3, 1), data(3, 2), torch.zeros(3), torch.zeros(2))


def test_a_density_ratio_is_found_with_its_constant() -> None:
    """N(1, 1) over N(0, 1) is exp(x - 1/2)."""

    class Linear(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.zeros(2, dtype=torch.float64))

        def forward(self, x: Tensor, context: Any = None) -> Tensor:
            return -(self.weight[0] * x[:, 0] + self.weight[1])

    energy = Linear()
    fit(energy, lambda k: density_ratio(energy, 1 + normal(1000, 1, seed=k), normal(2000, 1, seed=9000 + k))[0], 200)
    torch.testing.assert_close(energy.weight.detach(), torch.tensor([1.0, -0.5]).double(), atol=0.06, rtol=0)


@pytest.mark.parametrize("kind", [Gaussian, Closed])
def test_score_matching_finds_the_noised_gaussian(kind: type[Gaussian]) -> None:
    energy, noise = kind(), seeded(1)
    fit(energy, lambda k: score_matching(energy, data(512, 100 + k), 0.5, generator=noise).mean(), 300)
    torch.testing.assert_close(energy.mean.detach(), MEAN, atol=0.15, rtol=0)
    torch.testing.assert_close(energy.log_precision.detach(), -(STD**2 + 0.25).log(), atol=0.15, rtol=0)
    with pytest.raises(EbmtrajError, match="level = 0"):
        score_matching(energy, data(2, 1), 0, generator=noise)
