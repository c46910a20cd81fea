"""The Langevin core against distributions that are known in closed form."""

from __future__ import annotations

import dataclasses
import itertools
import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from ebmtraj.energies.transition import PairEnergy, ResidualEnergy
from ebmtraj.errors import EbmtrajError
from ebmtraj.samplers.anneal import Ladder, predict
from ebmtraj.samplers.buffer import ReplayBuffer
from ebmtraj.samplers.langevin import LangevinConfig, frozen, langevin

torch.set_num_threads(1)
PRECISION = torch.tensor([[1.25, 0.6], [0.6, 1.25]], dtype=torch.float64)  # eigenvalues 0.65 and 1.85


def gaussian(x: Tensor, context: Any = None) -> Tensor:
    return 0.5 * torch.einsum("bi,ij,bj->b", x, PRECISION, x)


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def covariance(x: Tensor) -> Tensor:
    return x.T @ x / len(x)


@pytest.mark.parametrize("temperature", [1.0, 0.25])
@pytest.mark.parametrize("step", [0.05, 1.0])
def test_proper_langevin_has_the_covariance_of_its_step(step: float, temperature: float) -> None:
    """x <- x - h/2 P x + N(0, h T) settles at T P^-1 (I - h P / 4)^-1: at h = 1 up to 1.9 times the true variance."""
    start = torch.zeros(20_000, 2, dtype=torch.float64)
    config = LangevinConfig(steps=int(40 / step**0.6), step_size=step, temperature=temperature)
    x, _ = langevin(gaussian, start, config, generator=seeded())
    truth = temperature * torch.linalg.inv(PRECISION) @ torch.linalg.inv(torch.eye(2) - step * PRECISION / 4)
    torch.testing.assert_close(covariance(x), truth, rtol=0.04, atol=0.04 * temperature)
    assert x.mean(0).abs().max() < 0.05


def test_scale_preconditions_step_and_noise() -> None:
    scales = torch.tensor([0.1, 3.0], dtype=torch.float64)  # the spread of each dimension

    def energy(x: Tensor, context: Any) -> Tensor:
        return 0.5 * (x / scales).square().sum(-1)

    start = torch.zeros(20_000, 2, dtype=torch.float64)
    config = LangevinConfig(steps=40, step_size=0.4, scale=(0.1, 3.0))
    x, _ = langevin(energy, start, config, generator=seeded())
    torch.testing.assert_close(x.var(0), scales**2 / (1 - 0.4 / 4), rtol=0.04, atol=0)
    with pytest.raises(EbmtrajError, match="3 entries for an event of 2"):
        langevin(energy, start, LangevinConfig(steps=1, scale=(1.0, 1.0, 1.0)), generator=torch.Generator())


def test_one_step_of_each_kind_exactly() -> None:
    x = torch.randn(5, 2, dtype=torch.float64, generator=seeded(1))
    noise = torch.empty_like(x).normal_(generator=seeded(2))
    m = torch.tensor([0.5, 2.0], dtype=torch.float64)
    slope = x @ PRECISION
    relaxed = LangevinConfig(steps=1, step_size=0.3, noise=0.005, scale=(0.5, 2.0))
    proper = LangevinConfig(steps=1, step_size=0.3, temperature=0.7, scale=(0.5, 2.0))
    for config, expected in (
        (relaxed, x - 0.3 * m**2 * slope + 0.005 * m * noise),
        (proper, x - 0.15 * m**2 * slope + (0.3 * 0.7) ** 0.5 * m * noise),
        (dataclasses.replace(relaxed, noise=0.0, clip=0.1, scale=None), x - 0.3 * slope.clamp(-0.1, 0.1)),
        (dataclasses.replace(proper, temperature=0.0, scale=None), x - 0.15 * slope),
    ):
        torch.testing.assert_close(langevin(gaussian, x, config, generator=seeded(2))[0], expected)


def test_a_corrector_s_step_grows_with_the_square_of_its_level() -> None:
    def energy(x: Tensor, context: Any, level: Tensor) -> Tensor:
        return 0.5 * level * x.square().sum(-1)

    x = torch.randn(5, 2, dtype=torch.float64, generator=seeded(1))
    ladder = Ladder(levels=2, sigma_max=3.0, sigma_min=0.5, predictor="none")
    config = LangevinConfig(steps=1, step_size=0.1, temperature=2.0, ladder=ladder)
    noise = seeded(2)
    expected = x
    for level in (3.0, 0.5):
        size, epsilon = 0.1 * level**2, torch.empty_like(x).normal_(generator=noise)
        expected = expected - 0.5 * size * level * expected + (2 * size) ** 0.5 * epsilon
    torch.testing.assert_close(langevin(energy, x, config, generator=seeded(2))[0], expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize(("cooled", "variance"), [(None, 0.25), (0.6, 0.25), (0.4, 1.25)])
def test_a_cooled_ladder_is_cold_at_small_levels_only(cooled: float | None, variance: float) -> None:
    ladder = Ladder(levels=2, sigma_max=3.0, sigma_min=0.5, predictor="none")
    config = LangevinConfig(steps=300, step_size=0.2, temperature=0.2, cooled=cooled, ladder=ladder)
    energy = lambda x, _, s: (x**2 / (2 * (1 + s**2))).sum(-1)  # noqa: E731  # N(0, 1) under noise of level s
    x, _ = langevin(energy, torch.zeros(20_000, 1), config, generator=seeded())
    assert x.var().item() == pytest.approx(variance, rel=0.05)
    with pytest.raises(EbmtrajError, match=r"cooled = 0\.5; it is a level above 0 of a ladder"):
        LangevinConfig(cooled=0.5)


LADDER = LangevinConfig(steps=2, step_size=0.3, ladder=Ladder(levels=6))


def coupled(x: Tensor, context: Any = None, level: Tensor | None = None) -> Tensor:
    """Pulls all entries of x together, whatever the level."""
    return (x - x.mean(-1, keepdim=True)).square().sum(-1) + 0.1 * x.square().sum(-1)


@pytest.mark.parametrize("config", [LangevinConfig(steps=20, step_size=0.3), LADDER], ids=["plain", "ladder"])
def test_what_is_masked_keeps_its_bits_wherever_the_energy_looks(config: LangevinConfig) -> None:
    start = torch.randn(7, 4, generator=seeded(1))
    mask = torch.tensor([True, False, True, False])
    looked: list[Tensor] = []

    def energy(x: Tensor, context: Any, level: Tensor | None = None) -> Tensor:
        looked.append(x.detach().clone())
        return coupled(x)

    x, _ = langevin(energy, start, config, mask=mask, project=lambda x: x.clamp(-0.5, 0.5), generator=seeded(2))
    assert all(seen[:, ~mask].equal(start[:, ~mask]) for seen in [*looked, x])
    assert (x[:, mask] != start[:, mask]).all()
    assert x[:, mask].abs().max() <= 0.5
    assert start[:, ~mask].abs().max() > 0.5  # held values are not projected


@pytest.mark.parametrize("config", [LangevinConfig(steps=9, step_size=0.3), LADDER], ids=["plain", "ladder"])
def test_every_step_is_projected(config: LangevinConfig) -> None:
    calls = 0

    def sphere(x: Tensor) -> Tensor:
        nonlocal calls
        calls += 1
        return x / x.norm(dim=-1, keepdim=True)

    start = torch.randn(6, 3, generator=seeded(1))
    x, _ = langevin(coupled, start, config, project=sphere, generator=seeded(2))
    torch.testing.assert_close(x.norm(dim=-1), torch.ones(6))
    assert calls == (1 + 9 if config.ladder is None else 1 + 6 * 2 + 5)
    still, _ = langevin(coupled, start, LangevinConfig(steps=0), project=sphere, generator=torch.Generator())
    torch.testing.assert_close(still, start / start.norm(dim=-1, keepdim=True))


MODES, WEIGHTS, SPREAD = torch.tensor([-2.0, 1.0]), torch.tensor([0.3, 0.7]), 0.25


def mixture(x: Tensor, context: Any, level: Tensor) -> Tensor:
    """The mixture of two Gaussians under noise of this level, in closed form."""
    variance = SPREAD**2 + level**2
    return -torch.logsumexp(WEIGHTS.log() - 0.5 * (x - MODES) ** 2 / variance - 0.5 * variance.log(), dim=-1)


@pytest.mark.parametrize(
    ("ladder", "steps"),
    [
        (Ladder(levels=30, sigma_max=10.0, sigma_min=0.02), 0),
        (Ladder(levels=30, sigma_max=10.0, sigma_min=0.02), 2),
        (Ladder(levels=20, sigma_max=20.0, sigma_min=0.02, spacing="angle", predictor="midpoint"), 0),
        (Ladder(levels=40, sigma_max=10.0, sigma_min=0.02, predictor="none"), 16),
    ],
    ids=["heun", "heun and corrector", "midpoint", "corrector alone"],
)
def test_the_annealed_ladder_finds_modes_weights_and_spread(ladder: Ladder, steps: int) -> None:
    start = ladder.sigma_max * torch.randn(20_000, 1, generator=seeded(1))
    config = LangevinConfig(steps=steps, step_size=0.4, ladder=ladder, record=True)
    x, info = langevin(mixture, start, config, generator=seeded(2))
    high = x[:, 0] > -0.5
    assert high.float().mean().item() == pytest.approx(0.7, abs=0.02)
    for side, mode in ((~high, -2.0), (high, 1.0)):
        assert x[side, 0].mean().item() == pytest.approx(mode, abs=0.02)
        assert x[side, 0].std().item() == pytest.approx(SPREAD, rel=0.08)
    assert info.energy is not None
    torch.testing.assert_close(info.energy, mixture(x, None, torch.tensor(0.02)))


def test_heun_is_of_second_order_and_euler_of_first() -> None:
    """Unit Gaussian data: the flow from level a to b is x sqrt((1 + b^2) / (1 + a^2))."""

    def gradient(x: Tensor, level: Tensor) -> Tensor:
        return x / (1 + level**2)

    def error(predictor: str, levels: int) -> float:
        sigmas = torch.linspace(3.0, 0.1, levels, dtype=torch.float64)
        x = torch.ones(1, 1, dtype=torch.float64)
        for a, b in itertools.pairwise(sigmas):
            x = predict(gradient, x, a, b, predictor)
        return abs(x.item() - (1.01 / 10.0) ** 0.5)

    for predictor, ratio in (("euler", 2), ("heun", 4)):
        assert error(predictor, 81) / error(predictor, 161) == pytest.approx(ratio, rel=0.1)
    assert error("heun", 21) < 0.1 * error("euler", 21)


def test_levels_even_in_the_angle() -> None:
    ladder = Ladder(levels=9, sigma_max=20.0, sigma_min=0.02, spacing="angle")
    sigmas = ladder.sigmas()
    assert sigmas.dtype == torch.float32
    assert (sigmas[0].item(), sigmas[-1].item()) == (pytest.approx(20.0, rel=1e-5), pytest.approx(0.02, rel=1e-5))
    step = torch.atan(sigmas.double()).diff()
    torch.testing.assert_close(step, step[:1].expand(8), rtol=1e-4, atol=0)
    assert (step < 0).all()
    assert not torch.allclose(Ladder(levels=9, sigma_max=20.0, sigma_min=0.02).sigmas()[1:-1], sigmas[1:-1], rtol=0.05)


@pytest.mark.parametrize("levels", [2, 3, 5])
def test_midpoint_steps_in_the_angle_are_exact_for_data_of_unit_spread(levels: int) -> None:
    """u = x cos a stays: x = x_0 sqrt((1 + b^2) / (1 + a^2)) from level a to b, in however few steps."""
    ladder = Ladder(levels=levels, sigma_max=20.0, sigma_min=0.02, spacing="angle", predictor="midpoint")
    start = torch.randn(50, 3, generator=seeded(1), dtype=torch.float64)

    def energy(x: Tensor, context: Any, level: Tensor) -> Tensor:
        return 0.5 * x.square().sum(-1) / (1 + level.double() ** 2)

    x, _ = langevin(energy, start, LangevinConfig(steps=0, ladder=ladder), generator=seeded())
    torch.testing.assert_close(x, start * ((1 + 0.02**2) / (1 + 20.0**2)) ** 0.5, rtol=2e-5, atol=0)


def test_midpoint_is_of_second_order_in_the_angle() -> None:
    """On a mixture of two Gaussians, against a fine Heun solution: half the step, a quarter of the error."""

    def gradient(x: Tensor, level: Tensor) -> Tensor:
        modes, weights = torch.tensor([-0.9, 0.8], dtype=torch.float64), torch.tensor([0.4, 0.6], dtype=torch.float64)
        variance = 0.3 + level**2
        share = torch.softmax(weights.log() - 0.5 * (x - modes) ** 2 / variance, dim=-1)
        return (x - (share * modes).sum(-1, keepdim=True)) / variance

    def end(predictor: str, levels: int) -> Tensor:
        x = torch.linspace(-30, 30, 61, dtype=torch.float64).unsqueeze(-1)
        angles = torch.linspace(math.atan(20.0), math.atan(0.02), levels, dtype=torch.float64)
        for a, b in itertools.pairwise(torch.tan(angles)):
            x = predict(gradient, x, a, b, predictor)
        return x

    truth = end("heun", 2001)
    error = {levels: (end("midpoint", levels + 1) - truth).abs().mean().item() for levels in (3, 20, 40, 80)}
    assert error[20] / error[40] == pytest.approx(4, rel=0.15)
    assert error[40] / error[80] == pytest.approx(4, rel=0.15)
    assert error[3] < 0.25 * (end("heun", 4) - truth).abs().mean()


def test_levels_are_those_of_karras() -> None:
    ladder = Ladder(levels=7, sigma_max=80.0, sigma_min=0.002, rho=7.0)
    expected = [(80 ** (1 / 7) + i / 6 * (0.002 ** (1 / 7) - 80 ** (1 / 7))) ** 7 for i in range(7)]
    sigmas = ladder.sigmas()
    assert sigmas.dtype == torch.float32
    torch.testing.assert_close(sigmas, torch.tensor(expected), rtol=1e-5, atol=0)
    for bad in ({"levels": 1}, {"sigma_min": 0.0}, {"sigma_min": 6.0}, {"rho": 0.0}, {"sigma_max": float("nan")}):
        with pytest.raises(EbmtrajError, match="noise ladder"):
            Ladder(**bad)  # type: ignore[arg-type]


def residual_energy(event: int = 5, context: int = 3) -> ResidualEnergy:
    torch.manual_seed(0)
    energy = ResidualEnergy(event, context, width=32, depth=3)
    nn.init.normal_(energy.output.weight, std=0.3)
    return energy.double()


@pytest.mark.parametrize("config", [LADDER, dataclasses.replace(LADDER, steps=0)], ids=["corrected", "flow"])
def test_every_backend_gives_the_same_chain(config: LangevinConfig) -> None:
    energy = residual_energy()
    context = energy.prepare(torch.randn(6, 3, dtype=torch.float64))
    start = torch.randn(6, 5, dtype=torch.float64)
    chains = [
        langevin(energy, start, dataclasses.replace(config, backend=b), context=context, generator=seeded(3))[0]
        for b in ("autograd", "analytic", "auto")
    ]
    torch.testing.assert_close(chains[0], chains[1], rtol=1e-6, atol=1e-6)
    assert chains[1].equal(chains[2])
    assert not chains[0].isnan().any()


def test_backends_that_are_not_there() -> None:
    with pytest.raises(EbmtrajError, match="no closed-form gradient"):
        langevin(gaussian, torch.zeros(1, 2), LangevinConfig(backend="analytic"), generator=torch.Generator())
    with pytest.raises(EbmtrajError, match="unknown sampler backend 'numpy'"):
        langevin(gaussian, torch.zeros(1, 2), LangevinConfig(backend="numpy"), generator=torch.Generator())  # type: ignore[arg-type]


class Watched(nn.Module):
    """A spectrally normalised energy that notes what it is like while it is called."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.inner = PairEnergy(4, width=16)
        self.held = nn.Parameter(torch.zeros(()), requires_grad=False)
        self.asleep = nn.Dropout(0.5).eval()
        self.seen: list[tuple[bool, bool]] = []
        self.computed = 0
        for module in self.modules():
            if type(module).__name__ == "_SpectralNorm":
                module.register_forward_hook(self.count)

    def count(self, *_: Any) -> None:
        self.computed += 1

    def forward(self, x: Tensor, context: None = None) -> Tensor:
        self.seen.append((self.inner.training, any(p.requires_grad for p in self.parameters())))
        if len(self.seen) == 40:
            raise RuntimeError("broken")
        return self.inner(x)


def test_while_sampling_parameters_are_frozen_and_spectral_weights_computed_once() -> None:
    energy = Watched().train()
    energy.asleep.eval()
    before = {k: v.clone() for k, v in energy.state_dict().items()}
    start = torch.randn(3, 4, requires_grad=True)

    def check() -> None:
        assert energy.training
        assert energy.inner.training
        assert not energy.asleep.training
        assert [p.requires_grad for p in energy.parameters()].count(False) == 1
        assert not energy.held.requires_grad
        assert all(v.equal(energy.state_dict()[k]) for k, v in before.items())  # no power iteration
        assert all(p.grad is None for p in energy.parameters())

    x, _ = langevin(energy, start, LangevinConfig(steps=10, backend="autograd"), generator=seeded())
    assert set(energy.seen) == {(False, False)}
    assert len(energy.seen) == 10
    assert energy.computed == 4  # four layers, once each
    assert not x.requires_grad
    assert start.grad is None
    check()
    with pytest.raises(RuntimeError, match="broken"):
        langevin(energy, start, LangevinConfig(steps=100, backend="autograd"), generator=seeded())
    check()
    with frozen(energy), torch.no_grad():
        inside = energy.inner(x)
    energy.eval()
    torch.testing.assert_close(energy.inner(x), inside)  # nothing stale is left in the cache


def test_noise_comes_from_the_generator_alone() -> None:
    start = torch.zeros(4, 2, dtype=torch.float64)
    for config, energy in ((LangevinConfig(steps=5), gaussian), (LADDER, coupled)):
        torch.manual_seed(0)
        state = torch.get_rng_state()
        a, b, c = (langevin(energy, start, config, generator=seeded(s))[0] for s in (1, 1, 2))
        assert torch.get_rng_state().equal(state)
        assert a.equal(b)
        assert not a.equal(c)
        assert start.eq(0).all()  # the caller's tensor is left alone


def test_info_tells_the_chain() -> None:
    start = torch.randn(5, 2, dtype=torch.float64, generator=seeded(1))
    x, info = langevin(gaussian, start, LangevinConfig(steps=7, step_size=0.1, record=True), generator=seeded())
    assert info.energies is not None
    assert info.gradient_norm is not None
    assert info.energy is not None
    assert info.energies.shape == info.gradient_norm.shape == (7, 5)
    torch.testing.assert_close(info.energies[0], gaussian(start))
    torch.testing.assert_close(info.gradient_norm[0], (start @ PRECISION).norm(dim=1))
    torch.testing.assert_close(info.energy, gaussian(x))
    bare = langevin(gaussian, start, LangevinConfig(steps=7, step_size=0.1), generator=seeded())
    assert bare[0].equal(x)  # recording changes nothing
    assert all(value is None for value in bare[1])


def test_events_of_any_shape_and_none_at_all() -> None:
    def energy(x: Tensor, context: Any) -> Tensor:
        return 0.5 * x.square().flatten(1).sum(-1)

    x, info = langevin(
        energy,
        torch.zeros(4, 3, 8, 8),
        LangevinConfig(steps=2, scale=(1.0,) * 192, record=True),
        generator=torch.Generator(),
    )
    assert x.shape == (4, 3, 8, 8)
    assert info.gradient_norm is not None
    assert info.gradient_norm.shape == (2, 4)
    assert langevin(energy, torch.zeros(0, 3), LangevinConfig(steps=2, scale=(1.0,) * 3), generator=torch.Generator())[
        0
    ].shape == (0, 3)


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 7), st.lists(st.integers(1, 10), max_size=8))
def test_the_buffer_is_a_ring(capacity: int, sizes: list[int]) -> None:
    buffer, kept, number = ReplayBuffer(capacity, (2,)), [], 0
    for size in sizes:
        batch = torch.arange(number, number + size, dtype=torch.float32)
        number += size
        buffer.push(torch.stack((batch, -batch), dim=1).requires_grad_())
        kept = [*kept, *batch.tolist()][-capacity:]
        assert buffer.count == len(kept)
        assert sorted(buffer.items[: buffer.count, 0].tolist()) == kept
    assert not buffer.items.requires_grad
    fresh = torch.full((50, 2), torch.inf)
    started = buffer.start(fresh, seeded(), keep=1.0)
    if kept:
        assert set(started[:, 0].tolist()) <= set(kept)
    else:
        assert started.equal(fresh)
    assert buffer.start(fresh, seeded(), keep=0.0).equal(fresh)
    other = ReplayBuffer(capacity, (2,))
    other.load(*buffer.state())
    other.push(torch.ones(1, 2))
    if kept:
        assert not other.items.equal(buffer.items)  # its own memory
    buffer.push(torch.ones(1, 2))
    assert other.items.equal(buffer.items)
    assert (other.count, other.place) == (buffer.count, buffer.place)


def test_95_of_100_chains_start_from_the_buffer_and_from_all_of_it() -> None:
    buffer = ReplayBuffer(500, (1, 3))
    buffer.push(torch.arange(200.0).view(-1, 1, 1).expand(-1, 1, 3))
    fresh = torch.full((40_000, 1, 3), -1.0)
    start = buffer.start(fresh, seeded())
    new = start[:, 0, 0] == -1
    assert new.float().mean().item() == pytest.approx(0.05, abs=0.005)
    assert (start[:, 0, 0] == start[:, 0, 2]).all()  # events are whole
    counts = torch.bincount(start[~new][:, 0, 0].long(), minlength=200)
    assert len(counts) == 200
    assert counts.min() > 100
    assert start.equal(buffer.start(fresh, seeded()))
    assert not start.equal(buffer.start(fresh, seeded(1)))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_the_buffer_follows_its_samples_to_the_device() -> None:
    noise = torch.Generator(device="cuda").manual_seed(0)
    buffer = ReplayBuffer(5, (2,))
    fresh = torch.zeros(3, 2, device="cuda")
    assert buffer.start(fresh, noise).equal(fresh)
    buffer.push(torch.ones(3, 2, device="cuda"))
    assert buffer.start(fresh, noise, keep=1.0).equal(torch.ones_like(fresh))
    other = ReplayBuffer(5, (2,))
    other.load(*buffer.state())
    assert other.start(fresh, noise, keep=1.0).equal(torch.ones_like(fresh))
