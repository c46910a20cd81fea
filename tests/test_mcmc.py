"""MALA and HMC against closed forms, and all chains against distributions whose moments are known."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from ebmtraj.samplers import mcmc
from ebmtraj.samplers.kernel import State, hamiltonian_step, select
from ebmtraj.samplers.langevin import LangevinConfig, langevin
from ebmtraj.samplers.mcmc import HMCConfig, MALAConfig, hmc, mala

torch.set_num_threads(1)
SEEDS = range(5)


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def normal(*shape: int, seed: int) -> Tensor:
    return torch.empty(shape, dtype=torch.float64).normal_(generator=seeded(seed))


class Gaussian:
    """Correlated: the precision's eigenvalues lie between 1 / stiff and 1, evenly in the logarithm, in random directions."""

    def __init__(self, dimensions: int, stiff: float = 20.0) -> None:
        turn = torch.linalg.qr(normal(dimensions, dimensions, seed=99))[0]
        eigenvalues = torch.logspace(0, -math.log10(stiff), dimensions, dtype=torch.float64)
        self.precision = turn @ torch.diag(eigenvalues) @ turn.T
        self.covariance = turn @ torch.diag(1 / eigenvalues) @ turn.T
        self.root = turn @ torch.diag(eigenvalues**-0.5)

    def __call__(self, x: Tensor, context: Any = None) -> Tensor:
        return 0.5 * (x * (x @ self.precision)).sum(-1)

    def draw(self, size: int, seed: int) -> Tensor:
        return normal(size, len(self.root), seed=seed) @ self.root.T

    def statistics(self, x: Tensor) -> Tensor:
        """Of which the means are 0, the number of dimensions, and the largest and least variance times their precision."""
        u = x @ torch.linalg.inv(self.root).T
        return torch.stack((x.sum(-1), (u * u).sum(-1) - u.shape[-1], u[..., 0] ** 2 - 1, u[..., -1] ** 2 - 1), dim=-1)


class Mixture:
    """Two Gaussians that overlap, of different weight and spread, in 2-D."""

    def __call__(self, x: Tensor, context: Any = None) -> Tensor:
        near = math.log(0.4) - 0.5 * (x + 1).square().sum(-1)
        far = math.log(0.6) - 0.5 * (x - 1).square().sum(-1) / 0.36 - 2 * math.log(0.6)
        return -torch.logaddexp(near, far)

    def draw(self, size: int, seed: int) -> Tensor:
        which = torch.rand(size, 1, dtype=torch.float64, generator=seeded(seed + 1000)) < 0.4
        z = normal(size, 2, seed=seed)
        return torch.where(which, z - 1, 0.6 * z + 1)

    def statistics(self, x: Tensor) -> Tensor:
        second = 0.4 * 2.0 + 0.6 * 1.36
        third = 0.4 * -4.0 + 0.6 * (1 + 3 * 0.36)
        return torch.stack((x[..., 0] - 0.2, x[..., 1] ** 2 - second, x[..., 0] ** 3 - third), dim=-1)


class Funnel:
    """Neal's: v ~ N(0, 1.5^2), and 4 others ~ N(0, e^v)."""

    def __call__(self, x: Tensor, context: Any = None) -> Tensor:
        v, rest = x[..., 0], x[..., 1:]
        return 0.5 * (v / 1.5) ** 2 + 0.5 * rest.square().sum(-1) * torch.exp(-v) + 0.5 * rest.shape[-1] * v

    def draw(self, size: int, seed: int) -> Tensor:
        z = normal(size, 5, seed=seed)
        return torch.cat((1.5 * z[:, :1], torch.exp(0.75 * z[:, :1]) * z[:, 1:]), dim=-1)

    def statistics(self, x: Tensor) -> Tensor:
        v, u = x[..., 0], x[..., 1:] * torch.exp(-0.5 * x[..., :1])
        return torch.stack((v, v**2 - 2.25, u.square().mean(-1) - 1, v**3), dim=-1)


def errors(states: Tensor, statistics: Callable[[Tensor], Tensor]) -> Tensor:
    """How many standard errors each statistic's mean is off 0, `(S,)`: chains are independent, states of one are not."""
    each = statistics(states).mean(0)  # (chains, S)
    return each.mean(0) / (each.std(0) / len(each) ** 0.5)


CHAINS: dict[str, tuple[Callable[..., Any], Any]] = {
    "mala": (mala, MALAConfig(steps=150, step_size=0.1, keep=5)),
    "hmc": (hmc, HMCConfig(steps=40, step_size=0.3, leapfrog=5, jitter=0.3, keep=2)),
}
TARGETS: dict[str, tuple[Any, float]] = {  # and the step of MALA
    "2-D": (Gaussian(2), 1.0),
    "100-D": (Gaussian(100), 0.3),
    "mixture": (Mixture(), 0.7),
    "funnel": (Funnel(), 0.3),
}


def worst(chain: str, target: str, seed: int) -> float:
    """The statistic that is furthest off, in standard errors, of chains that start from the truth and must keep it."""
    sampler, config = CHAINS[chain]
    energy, step = TARGETS[target]
    size = step if chain == "mala" else step**0.5
    start = energy.draw(400, seed)
    _, info = sampler(energy, start, dataclasses.replace(config, step_size=size), generator=seeded(100 + seed))
    assert 0.3 < info.acceptance.mean() < 0.99  # some are rejected, or nothing is tested
    return float(errors(info.states, energy.statistics).abs().max())


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("chain", CHAINS)
def test_what_is_distributed_as_the_target_stays_so(chain: str, target: str) -> None:
    for seed in SEEDS:
        assert worst(chain, target, seed) < 3


@pytest.mark.parametrize("fault", ["all accepted", "no momentum in the balance", "half the energy"])
@pytest.mark.parametrize("chain", CHAINS)
def test_a_wrong_acceptance_is_seen(chain: str, fault: str, monkeypatch: pytest.MonkeyPatch) -> None:
    right = hamiltonian_step

    def wrong(target: Any, state: State, momentum: Tensor, log_uniform: Tensor, size: Any, **settings: Any) -> Any:
        new, proposal = right(target, state, momentum, torch.full_like(log_uniform, -math.inf), size, **settings)
        log = {
            "all accepted": 0 * proposal.error,
            "no momentum in the balance": proposal.energy - state.energy,
            "half the energy": 0.5 * proposal.error,
        }[fault]
        is_accepted = log_uniform < -log
        proposal = proposal._replace(is_accepted=is_accepted & (log_uniform < -0.05))
        return select(is_accepted, new, state), proposal

    monkeypatch.setattr(mcmc, "hamiltonian_step", wrong)
    assert max(worst(chain, "mixture", seed) for seed in SEEDS[:2]) > 5


@pytest.mark.parametrize("name", ["langevin", "mala", "hmc"])
def test_chains_come_to_a_correlated_gaussian_from_afar(name: str) -> None:
    """ULA to the covariance of its step, see `test_samplers`; the others to the true one. 50-D, within 3 standard errors."""
    target = Gaussian(50, stiff=10.0)
    runs: dict[str, tuple[Callable[..., Any], Any]] = {
        "langevin": (langevin, LangevinConfig(steps=400, step_size=0.5, keep=4)),
        "mala": (mala, MALAConfig(steps=400, warmup=100, step_size=0.01, keep=4)),
        "hmc": (hmc, HMCConfig(steps=120, warmup=60, step_size=0.01, leapfrog=6, jitter=0.2, keep=2)),
    }
    sampler, config = runs[name]
    if name == "langevin":
        eigenvalues, turn = torch.linalg.eigh(target.precision)
        target.root = turn @ torch.diag((eigenvalues * (1 - 0.5 * eigenvalues / 4)) ** -0.5)
    for seed in SEEDS:
        _, info = sampler(target, 8 * normal(150, 50, seed=seed), config, generator=seeded(100 + seed))
        assert errors(info.states[len(info.states) // 2 :], target.statistics).abs().max() < 3


def test_the_bias_of_ula_grows_with_its_step_as_theory_has_it() -> None:
    """Variance 1 / (1 - h / 4) for a unit Gaussian, so the bias is h / 4 and a little; MALA at the same step has none."""
    for step in (0.1, 0.4, 1.0, 2.0):
        start = (1 - step / 4) ** -0.5 * normal(4000, 20, seed=1)

        def energy(x: Tensor, context: Any) -> Tensor:
            return 0.5 * x.square().sum(-1)

        x, _ = langevin(energy, start, LangevinConfig(steps=50, step_size=step), generator=seeded(2))
        error = (2 / x.numel()) ** 0.5 / (1 - step / 4)
        assert abs(x.square().mean() - 1 / (1 - step / 4)) < 3 * error
        _, info = mala(energy, normal(4000, 20, seed=3), MALAConfig(steps=30, step_size=step, keep=1), generator=seeded(4))
        assert errors(info.states, lambda x: x.square().mean(-1, keepdim=True) - 1).abs().max() < 3


def test_mala_proposes_the_langevin_step_and_accepts_as_metropolis_and_hastings_do() -> None:
    """Against the two Gaussian densities written out, with preconditioner and temperature."""
    energy, step, temperature = Mixture(), 0.8, 0.7
    scale = torch.tensor([0.5, 2.0], dtype=torch.float64)
    settings: dict[str, Any] = {"steps": 1, "step_size": step, "temperature": temperature, "scale": (0.5, 2.0)}
    x = energy.draw(500, 1)
    proposed, _ = langevin(energy, x, LangevinConfig(**settings), generator=seeded(2))
    y, info = mala(energy, x, MALAConfig(**settings, record=True), generator=seeded(2))

    def log_density(to: Tensor, of: Tensor) -> Tensor:
        of = of.requires_grad_(True)
        mean = of - 0.5 * step * scale**2 * torch.autograd.grad(energy(of).sum(), of)[0]
        return -0.5 * ((to - mean.detach()) / scale).square().sum(-1) / (step * temperature)

    log = (energy(x) - energy(proposed)) / temperature + log_density(x, proposed) - log_density(proposed, x)
    torch.testing.assert_close(info.energy_error[0], -log.detach(), rtol=1e-9, atol=1e-9)
    moved = info.acceptance.bool()
    torch.testing.assert_close(y[moved], proposed[moved].detach())
    assert y[~moved].equal(x[~moved])
    noise = seeded(2)
    torch.empty_like(x).normal_(generator=noise)
    draws = torch.exp(-torch.empty(500, dtype=torch.float64).exponential_(generator=noise))
    assert moved.equal(draws < torch.exp(log))


def test_hmc_is_leapfrog_and_goes_back_with_its_momentum_turned_round() -> None:
    """Leapfrog keeps volume, so with this the balance is detailed: pi(x, p) a(x, p) = pi(y, -q) a(y, -q)."""

    def target(x: Tensor) -> State:
        x = x.requires_grad_(True)
        value = Mixture()(x)
        return State(x.detach(), value.detach(), torch.autograd.grad(value.sum(), x, create_graph=False)[0])

    size, steps, beta = 0.3, 7, 1.3

    def leap(x: Tensor, p: Tensor) -> tuple[Tensor, Tensor]:
        always = torch.full((len(x),), -math.inf, dtype=x.dtype)
        new, proposal = hamiltonian_step(
            target, target(x), p, always, torch.tensor(size, dtype=x.dtype), leapfrog=steps, beta=beta
        )
        return new.x, proposal.error

    x, p = Mixture().draw(40, 1), normal(40, 2, seed=2)
    places, momenta, q = [x], [], p
    for _ in range(steps):  # leapfrog, written out
        q = q - 0.5 * size * beta * target(places[-1]).gradient
        places.append(places[-1] + size * q)
        q = q - 0.5 * size * beta * target(places[-1]).gradient
        momenta.append(q)
    y, error = leap(x, p)
    torch.testing.assert_close(y, places[-1])
    rise = beta * (Mixture()(y) - Mixture()(x)) + 0.5 * (momenta[-1].square() - p.square()).sum(-1)
    torch.testing.assert_close(error, rise.detach())
    back, undone = leap(y, -momenta[-1])
    torch.testing.assert_close(back, x.detach())
    torch.testing.assert_close(undone, -error)
