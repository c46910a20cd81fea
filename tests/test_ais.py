"""Annealed importance sampling against grid integration in 2-D and known normalisers in 10-D and 50-D."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import pytest
import torch
from torch import Tensor

from ebmtraj.errors import DivergedError, EbmtrajError
from ebmtraj.samplers import ais as module
from ebmtraj.samplers.ais import AISConfig, GaussianBase, ais, log_normaliser, pilot

torch.set_num_threads(1)
RADIUS, WIDTH = 3.0, 0.25


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def base(dimensions: int, std: float) -> GaussianBase:
    return GaussianBase(torch.zeros(dimensions, dtype=torch.float64), torch.full((dimensions,), std, dtype=torch.float64))


def ring(x: Tensor, context: Any = None) -> Tensor:
    return 0.5 * ((x.norm(dim=-1) - RADIUS) / WIDTH) ** 2 + 0.3 * x[:, 0]


def ring_on_a_grid() -> tuple[float, Tensor]:
    """log Z, and 1,024 samples of the ring by its grid's cells."""
    axis = torch.arange(-6, 6, 0.01, dtype=torch.float64)
    cells = torch.cartesian_prod(axis, axis)
    energies = ring(cells)
    p = torch.softmax(-energies, dim=0)
    chosen = torch.multinomial(p, 1024, replacement=True, generator=seeded(9))
    inside = 0.01 * (torch.rand(1024, 2, dtype=torch.float64, generator=seeded(8)) - 0.5)
    return float(torch.logsumexp(-energies, dim=0) + 2 * math.log(0.01)), cells[chosen] + inside


class Correlated:
    """A Gaussian whose precision's eigenvalues lie between 1 and 20, in random directions, off the origin."""

    def __init__(self, dimensions: int) -> None:
        turn = torch.linalg.qr(torch.empty(dimensions, dimensions, dtype=torch.float64).normal_(generator=seeded(5)))[0]
        eigenvalues = torch.logspace(0, math.log10(20), dimensions, dtype=torch.float64)
        self.precision, self.centre = turn @ torch.diag(eigenvalues) @ turn.T, 0.5
        self.root = turn @ torch.diag(eigenvalues**-0.5)
        self.log_z = float(0.5 * dimensions * math.log(2 * math.pi) - 0.5 * eigenvalues.log().sum())

    def __call__(self, x: Tensor, context: Any = None) -> Tensor:
        u = x - self.centre
        return 0.5 * (u * (u @ self.precision)).sum(-1)

    def draw(self, size: int) -> Tensor:
        z = torch.empty(size, len(self.root), dtype=torch.float64).normal_(generator=seeded(6))
        return z @ self.root.T + self.centre


SMALL = AISConfig(temperatures=300, particles=256)


def test_the_ring_s_normaliser_from_both_sides() -> None:
    truth, samples = ring_on_a_grid()
    for exact in (samples[:256], None):
        found = log_normaliser(ring, base(2, 3.0), SMALL, exact=exact, generator=seeded())
        assert abs(found.lower - truth) < 0.12
        assert abs(found.upper - truth) < 0.12
        assert abs(found.lower - truth) < 4 * found.error
        assert 100 < found.effective < 256
        assert 0.4 < found.forward.acceptance[1:].mean() < 0.8
        assert found.forward.x.norm(dim=-1).mean() == pytest.approx(3.0, abs=0.1)


@pytest.mark.slow
def test_the_ring_at_full_size() -> None:
    """1,000 temperatures, 1,024 particles: within 0.02 nats, and 0.05 between forward and reverse, on five seeds."""
    truth, samples = ring_on_a_grid()
    for seed in range(5):
        found = log_normaliser(ring, base(2, 3.0), AISConfig(), exact=samples, generator=seeded(seed))
        assert abs(found.lower - truth) <= 0.02
        assert abs(found.upper - found.lower) <= 0.05


@pytest.mark.parametrize(("dimensions", "leapfrog", "within"), [(10, 1, 0.2), (50, 4, 0.35)])
def test_known_normalisers(dimensions: int, leapfrog: int, within: float) -> None:
    energy = Correlated(dimensions)
    config = dataclasses.replace(SMALL, leapfrog=leapfrog, target=0.6 if leapfrog == 1 else 0.8)
    found = log_normaliser(energy, base(dimensions, 1.3), config, exact=energy.draw(256), generator=seeded())
    assert abs(found.lower - energy.log_z) < within
    assert abs(found.upper - energy.log_z) < within


def test_few_temperatures_bound_from_their_sides() -> None:
    """A log weight is below log Z in the mean, forward, and above it in reverse, by as much as the path is short."""
    energy, gaps = Correlated(10), []
    for temperatures in (10, 100):
        config = AISConfig(temperatures=temperatures, particles=512)
        found = log_normaliser(energy, base(10, 1.3), config, exact=energy.draw(512), generator=seeded())
        lower, upper = found.forward.log_weight.mean(), -found.reverse.log_weight.mean()
        assert lower < energy.log_z < upper
        gaps.append(upper - lower)
    assert gaps[0] > 4 * gaps[1]


def test_forward_and_reverse_passes_know_a_constant_exactly() -> None:
    """An energy that is the base's own but for a constant: every weight is that constant, whatever the chain."""
    start = base(3, 2.0)
    config = AISConfig(temperatures=5, particles=7, pilot=4)

    def energy(x: Tensor, context: Any) -> Tensor:
        return start.energy(x)[0] - 1.7

    schedule = pilot(energy, start, config, generator=seeded())
    assert schedule.betas.shape == schedule.sizes.shape == (6,)
    assert (schedule.betas.diff() > 0).all()
    forward = ais(energy, start, config, schedule, generator=seeded())
    reverse = ais(energy, start, config, schedule, start=forward.x, generator=seeded())
    torch.testing.assert_close(forward.log_weight, torch.full((7,), 1.7).double())
    torch.testing.assert_close(reverse.log_weight, torch.full((7,), -1.7).double())


def test_weights_are_unbiased_in_however_few_steps() -> None:
    """Their mean is Z forward and 1 / Z in reverse, whatever the path: 3 temperatures, from N(0, 1) to N(0.5, 0.6^2)."""
    start = base(1, 1.0)

    def energy(x: Tensor, context: Any) -> Tensor:
        return 0.5 * ((x[:, 0] - 0.5) / 0.6) ** 2

    log_z = math.log(0.6) + 0.5 * math.log(2 * math.pi)
    exact = 0.5 + 0.6 * torch.empty(100_000, 1, dtype=torch.float64).normal_(generator=seeded(3))
    config = AISConfig(temperatures=3, particles=100_000, transitions=2, spacing="linear")
    found = log_normaliser(energy, start, config, exact=exact, generator=seeded())
    assert abs(found.lower - log_z) < 3.5 * found.error
    weight = torch.exp(found.reverse.log_weight + log_z)
    assert abs(weight.mean() - 1) < 3.5 * weight.std() / 100_000**0.5


def test_a_wrong_chain_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    truth, samples = ring_on_a_grid()
    right = module.hamiltonian_step

    def careless(target: Any, state: Any, momentum: Tensor, log_uniform: Tensor, size: Any, **settings: Any) -> Any:
        return right(target, state, momentum, torch.full_like(log_uniform, -math.inf), 1.5 * size, **settings)

    monkeypatch.setattr(module, "hamiltonian_step", careless)
    found = log_normaliser(ring, base(2, 3.0), SMALL, exact=samples[:256], generator=seeded())
    assert abs(found.lower - truth) > 0.12 or abs(found.upper - truth) > 0.12


@pytest.mark.parametrize("spacing", ["sigmoid", "linear"])
def test_inverse_temperatures_rise_from_0_to_1(spacing: Any) -> None:
    betas = AISConfig(temperatures=40, spacing=spacing).betas(torch.zeros((), dtype=torch.float64))
    assert betas.shape == (41,)
    assert (betas[0], betas[-1]) == (0, 1)
    assert (betas.diff() > 0).all()


def test_what_ais_is_given_must_fit() -> None:
    with pytest.raises(EbmtrajError, match="counts >= 1"):
        AISConfig(temperatures=0)
    with pytest.raises(EbmtrajError, match="std above 0"):
        GaussianBase(torch.zeros(2), torch.zeros(2))
    with pytest.raises(EbmtrajError, match=r"exact samples have shape \(3, 5\)"):
        log_normaliser(ring, base(2, 1.0), SMALL, exact=torch.zeros(3, 5), generator=seeded())

    def broken(x: Tensor, context: Any) -> Tensor:
        return torch.where(x[:, 0] > 8, torch.nan, ring(x))

    with pytest.raises(DivergedError, match=r"energy broken: energy of chain \d+ is not"):
        log_normaliser(broken, base(2, 5.0), AISConfig(temperatures=20, particles=256), generator=seeded())
