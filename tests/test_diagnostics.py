"""Effective sample size, R-hat, tempering and resampled starts against what is known in closed form."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from ebmtraj.errors import EbmtrajError
from ebmtraj.samplers.diagnostics import _rank_normal, effective_sample_size, energy_drift, split_rhat, summary
from ebmtraj.samplers.langevin import Info, LangevinConfig, langevin
from ebmtraj.samplers.mcmc import MALAConfig, mala
from ebmtraj.samplers.start import resample
from ebmtraj.samplers.tempering import TemperingConfig, swap, tempering

torch.set_num_threads(1)


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def autoregressive(rho: float, steps: int, chains: int, seed: int = 0) -> Tensor:
    """x <- rho x + sqrt(1 - rho^2) z, in equilibrium: K states are worth K (1 - rho) / (1 + rho)."""
    z = torch.empty(steps, chains, 3, dtype=torch.float64).normal_(generator=seeded(seed))
    x = [z[0]]
    for k in range(1, steps):
        x.append(rho * x[-1] + (1 - rho**2) ** 0.5 * z[k])
    return torch.stack(x)


@pytest.mark.parametrize("rho", [0.9, 0.5, 0.0, -0.5])
def test_effective_sample_size_of_an_autoregressive_process(rho: float) -> None:
    states = autoregressive(rho, 4000, 8)
    torch.testing.assert_close(
        effective_sample_size(states), torch.full((3,), 32_000 * (1 - rho) / (1 + rho)).double(), rtol=0.12, atol=0
    )
    assert split_rhat(states).max() < 1.01
    assert split_rhat(states, rank=False).max() < 1.01


def test_rhat_and_ess_see_what_has_not_mixed() -> None:
    mixed = autoregressive(0.5, 1000, 4)
    apart = mixed + torch.tensor([0.0, 0.0, 3.0, 3.0]).view(1, 4, 1)
    drifting = mixed + torch.linspace(0, 4, 1000).view(-1, 1, 1)  # all chains alike: only splitting shows it
    spread = mixed * torch.tensor([1.0, 1.0, 1.0, 6.0]).view(1, 4, 1)  # same means: only the fold shows it
    for bad in (apart, drifting, spread):
        assert split_rhat(bad).min() > 1.1
    assert split_rhat(spread, rank=False).max() < 1.02
    assert effective_sample_size(apart).max() < 10
    heavy = torch.tan(torch.pi * (torch.rand(500, 4, dtype=torch.float64, generator=seeded(1)) - 0.5))
    assert split_rhat(heavy) < 1.02  # Cauchy, which has no variance
    within, between = mixed.var(0), mixed.mean(0).var(0)  # the classical formula, unsplit halves put together by hand
    halves = torch.cat((mixed[:500], mixed[500:]), dim=1)
    within, between = halves.var(0).mean(0), halves.mean(0).var(0)
    torch.testing.assert_close(split_rhat(mixed, rank=False), (499 / 500 + between / within).sqrt())


def test_ranks_are_shared_and_the_order_of_numbers_is_all_that_counts() -> None:
    states = autoregressive(0.5, 200, 4)
    torch.testing.assert_close(_rank_normal(states), _rank_normal(states.exp()))
    few = torch.tensor([3.0, 1.0, 3.0, 7.0]).double().view(4, 1)
    quantiles = torch.special.ndtri((torch.tensor([2.5, 1.0, 2.5, 4.0]).double() - 0.375) / 4.25)
    torch.testing.assert_close(_rank_normal(few).flatten(), quantiles)
    assert split_rhat(torch.ones(20, 2, 1)).isnan().all()
    assert effective_sample_size(torch.ones(20, 2, 1)).isnan().all()
    for bad in (torch.zeros(7, 2), torch.zeros(20)):
        with pytest.raises(EbmtrajError, match="K >= 8"):
            effective_sample_size(bad)


def test_the_effective_sample_size_of_ula_is_that_of_its_autoregression() -> None:
    """On a Gaussian, ULA is autoregressive with 1 - h p / 2."""
    precision = torch.tensor([0.2, 1.0, 3.0], dtype=torch.float64)

    def energy(x: Tensor, context: Any) -> Tensor:
        return 0.5 * (precision * x.square()).sum(-1)

    _, info = langevin(
        energy,
        torch.zeros(16, 3, dtype=torch.float64),
        LangevinConfig(steps=3000, step_size=0.4, keep=1),
        generator=seeded(),
    )
    assert info.states is not None
    rho = 1 - 0.2 * precision
    expected = 16 * 3000 * (1 - rho) / (1 + rho)
    torch.testing.assert_close(effective_sample_size(info.states), expected, rtol=0.15, atol=0)


def test_summary_and_drift() -> None:
    def energy(x: Tensor, context: Any) -> Tensor:
        return 0.5 * x.square().sum(-1)

    _, info = mala(
        energy, torch.full((32, 4), 5.0), MALAConfig(steps=200, step_size=0.5, record=True, keep=1), generator=seeded()
    )
    found = summary(info)
    assert found["acceptance"] is not None
    assert 0.5 < found["acceptance"] < 1
    assert found["energy"] == pytest.approx(2.0, abs=0.2)
    assert found["energy_drift"] is not None
    assert found["energy_drift"] < -1  # they came from far off
    assert found["step_size"] is None
    assert summary(Info(None, None, None, None)) == dict.fromkeys(found)
    equilibrium = torch.empty(400, 8).normal_(generator=seeded(1))
    assert abs(energy_drift(equilibrium)) < 0.1
    assert energy_drift(equilibrium + torch.linspace(0, 4, 400).unsqueeze(1)) > 1


def double_well(x: Tensor, context: Any = None) -> Tensor:
    """Two Gaussians 12 standard deviations apart, the right one of weight 0.8."""
    return -torch.logaddexp(math.log(0.2) - 0.5 * (x[:, 0] + 6) ** 2, math.log(0.8) - 0.5 * (x[:, 0] - 6) ** 2)


def test_tempering_crosses_what_a_chain_does_not() -> None:
    start = torch.full((400, 1), -6.0, dtype=torch.float64)
    config = TemperingConfig(steps=600, temperatures=(1.0, 2.5, 6.0, 15.0, 40.0), step_size=0.7, warmup=100, keep=20)
    _, info = tempering(double_well, start, config, generator=seeded())
    assert info.swaps is not None
    assert info.step_size is not None
    assert info.states is not None
    assert info.swaps.shape == (4,)
    assert ((info.swaps > 0.15) & (info.swaps < 0.95)).all()
    assert info.step_size.shape == (5,)
    late = info.states[15:, :, 0]
    share = (late > 0).double().mean(0)
    assert abs(share.mean() - 0.8) < 3 * share.std() / 20
    for side, mean in ((late > 0, 6.0), (late < 0, -6.0)):
        assert late[side].mean() == pytest.approx(mean, abs=0.15)
        assert late[side].std() == pytest.approx(1.0, abs=0.1)
    alone, _ = mala(double_well, start, MALAConfig(steps=600, step_size=0.5), generator=seeded())
    assert (alone < 0).all()


def test_swaps_move_whole_replicas_by_the_rule() -> None:
    from ebmtraj.samplers.kernel import State

    energies = torch.tensor([[5.0, 1.0], [1.0, 5.0], [0.0, 7.0]])
    x = torch.arange(6.0).view(6, 1)
    state = State(x, energies.flatten(), -x)
    temperatures = torch.tensor([1.0, 2.0, 4.0])
    for odd, expected in ((0, [2, 1, 0, 3, 4, 5]), (1, [0, 1, 4, 3, 2, 5])):
        # certain where the hotter one has less energy; else with probability exp(-gap of 1/T times gap of E)
        new, share = swap(state, temperatures, torch.full((6,), -1e-6), odd)
        assert new.x.flatten().tolist() == expected
        assert new.energy.equal(energies.flatten()[torch.tensor(expected)])
        assert new.gradient.equal(-new.x)
        assert share.tolist() == ([0.5, 0.0] if odd == 0 else [0.0, 0.5])
    rare, _ = swap(state, temperatures, torch.full((6,), -2.001), 0)  # (1 - 1/2) (1 - 5) = -2
    assert rare.x.flatten().tolist() == [2, 3, 0, 1, 4, 5]
    common, _ = swap(state, temperatures, torch.full((6,), -1.999), 0)
    assert common.x.flatten().tolist() == [2, 1, 0, 3, 4, 5]


def test_tempering_gives_each_replica_its_chain_s_context() -> None:
    centre = torch.tensor([[-20.0], [0.0], [30.0]], dtype=torch.float64).repeat(100, 1)

    def energy(x: Tensor, context: dict[str, Tensor]) -> Tensor:
        return 0.5 * (x - context["centre"]).square().sum(-1)

    config = TemperingConfig(steps=60, temperatures=(1.0, 2.0, 4.0), step_size=1.0)
    x, _ = tempering(energy, centre.clone(), config, context={"centre": centre}, generator=seeded())
    assert (x - centre).abs().max() < 6
    assert (x - centre).std() == pytest.approx(1, abs=0.15)


def test_resampled_starts_are_drawn_as_the_energy_weighs_them() -> None:
    """From N(0, 2^2) to N(1, 1): mean, spread and effective number as integrals have them."""
    many, chains = 400, 3000
    candidates = 2 * torch.empty(many, chains, 1, dtype=torch.float64).normal_(generator=seeded())

    def energy(x: Tensor, context: Any) -> Tensor:
        return 0.5 * (x[:, 0] - 1) ** 2

    log_density = -0.5 * (candidates[..., 0] / 2) ** 2
    x, effective = resample(energy, candidates, log_density, generator=seeded(1))
    assert x.mean() == pytest.approx(1, abs=3 / chains**0.5)
    assert x.std() == pytest.approx(1, abs=0.05)
    grid = torch.linspace(-30, 30, 60_001, dtype=torch.float64)
    p, q = torch.exp(-0.5 * (grid - 1) ** 2), torch.exp(-0.5 * (grid / 2) ** 2)
    p, q = p / p.sum(), q / q.sum()
    assert effective.mean() / many == pytest.approx(float(1 / (p * p / q).sum()), rel=0.05)
    with pytest.raises(EbmtrajError, match=r"\(N, B\)"):
        resample(energy, candidates, log_density[:3], generator=seeded())
    walls = torch.zeros(4, 5, 1)
    with pytest.raises(EbmtrajError, match="all candidates of chain 2 have infinite energy"):
        resample(lambda x, _: torch.tensor([0, 0, torch.inf, 0, 0]), walls, torch.zeros(4, 5), generator=seeded())
