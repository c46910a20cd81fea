"""What a caller can get wrong is one line that names it; every sampler keeps the same contract."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from ebmtraj.errors import DivergedError, EbmtrajError
from ebmtraj.samplers.anneal import Ladder
from ebmtraj.samplers.langevin import LangevinConfig
from ebmtraj.samplers.mcmc import HMCConfig, MALAConfig
from ebmtraj.samplers.registry import SAMPLERS, sample
from ebmtraj.samplers.tempering import TemperingConfig

torch.set_num_threads(1)
CONFIGS: dict[str, Callable[..., Any]] = {
    "langevin": LangevinConfig,
    "mala": MALAConfig,
    "hmc": HMCConfig,
    "tempering": TemperingConfig,
}


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def bowl(x: Tensor, context: Any = None, level: Tensor | None = None) -> Tensor:
    return 0.5 * x.square().flatten(1).sum(-1)


def config(name: str, **settings: Any) -> Any:
    if name == "hmc":
        settings = {"leapfrog": 3, "jitter": 0.2, **settings}
    return CONFIGS[name](**{"steps": 6, "step_size": 0.3, **settings})


def run(name: str, energy: Any, x: Tensor, mask: Tensor | None = None, generator: Any = None, **settings: Any) -> Any:
    return sample(energy, x, config(name, **settings), mask=mask, generator=generator or seeded())


def test_every_sampler_is_registered() -> None:
    assert set(SAMPLERS) == set(CONFIGS.values())
    with pytest.raises(EbmtrajError, match=r"unknown sampler settings dict; give one of LangevinConfig, MALAConfig"):
        sample(bowl, torch.zeros(1, 2), {}, generator=seeded())  # type: ignore[arg-type]


@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.parametrize("event", [(3,), (2, 4, 4), ()])
def test_the_contract(name: str, event: tuple[int, ...]) -> None:
    """Shape, generator, mask, support, record and keep are the same for all."""

    def energy(x: Tensor, context: Any) -> Tensor:
        return 0.5 * (x - context.view(-1, *[1] * len(event))).square().view(len(x), -1).sum(-1)

    start = torch.empty(5, *event).uniform_(-0.5, 0.5, generator=seeded(1))
    before, context = start.clone(), torch.linspace(-1, 1, 5)
    state = torch.get_rng_state()
    runs = [
        sample(energy, start, config(name, record=True, keep=2), context=context, generator=seeded(seed))
        for seed in (1, 1, 2)
    ]
    x, info = runs[0]
    assert torch.get_rng_state().equal(state)
    assert start.equal(before)
    assert x.shape == start.shape
    assert x.equal(runs[1][0])
    assert not x.equal(runs[2][0])
    assert not x.requires_grad
    assert info.states.shape == (3, *start.shape)
    assert info.states[-1].equal(x)
    assert info.energies.shape == info.gradient_norm.shape == (6, 5)
    torch.testing.assert_close(info.energies[0], energy(start, context))
    torch.testing.assert_close(info.energy, energy(x, context))
    bare, quiet = sample(energy, start, config(name), context=context, generator=seeded(1))
    assert bare.equal(x)  # what is recorded changes nothing
    assert all(value is None for value in (quiet.energy, quiet.energies, quiet.gradient_norm, quiet.states))
    if event:
        mask = torch.zeros(event, dtype=torch.bool)
        mask[0] = True
        held, _ = sample(energy, start, config(name), context=context, mask=mask, generator=seeded(1))
        assert held[:, ~mask].equal(start[:, ~mask])
        assert (held[:, mask] != start[:, mask]).any()
        assert sample(bowl, start[:0], config(name), generator=seeded())[0].shape == (0, *event)
    size = 1.0 if name == "langevin" else 0.02
    bounded, _ = sample(
        energy,
        start,
        config(name, step_size=size),
        context=context,
        project=lambda x: x.clamp(-0.6, 0.6),
        generator=seeded(1),
    )
    assert bounded.abs().max() <= 0.6
    assert (bounded != start).any()


@pytest.mark.parametrize("name", ["mala", "hmc", "tempering"])
def test_bounds_are_a_support(name: str) -> None:
    """A Gaussian cut off at -0.5 and 1.5: its mean by integration."""
    start = torch.zeros(4000, 1, dtype=torch.float64)
    settings = {"temperatures": (1.0, 3.0)} if name == "tempering" else {}
    x, _ = sample(
        bowl,
        start,
        config(name, steps=40, step_size=0.5, **settings),
        project=lambda x: x.clamp(-0.5, 1.5),
        generator=seeded(),
    )
    grid = torch.linspace(-0.5, 1.5, 20_001, dtype=torch.float64)
    p = torch.softmax(-0.5 * grid**2, dim=0)
    spread = float((p * grid**2).sum() - (p * grid).sum() ** 2) ** 0.5
    assert abs(x.mean() - (p * grid).sum()) < 3 * spread / 4000**0.5


@pytest.mark.parametrize("name", CONFIGS)
def test_wrong_input_is_one_line_that_names_it(name: str) -> None:
    x = torch.zeros(4, 3)
    for energy, shape in (
        (lambda x, _: bowl(x).unsqueeze(-1), r"\(4, 1\)"),
        (lambda x, _: bowl(x).sum(), r"\(\)"),
        (lambda x, _: x, r"\(4, 3\)"),
        (lambda x, _: 1.0, "float"),
    ):
        with pytest.raises(
            EbmtrajError, match=rf"energy <lambda> returned {shape} for x of shape \(4, 3\).*one number a chain"
        ):
            run(name, energy, x)
    with pytest.raises(EbmtrajError, match="has no gradient in x"):
        run(name, lambda x, _: bowl(x).detach(), x)
    for mask in (torch.ones(4), torch.ones(2, 3), torch.ones(1, 1, 3), torch.ones(4, 3, 1)):
        with pytest.raises(EbmtrajError, match=rf"mask has shape \({mask.shape[0]},.*does not broadcast"):
            run(name, bowl, x, mask=mask)
    with pytest.raises(EbmtrajError, match="mask is on meta"):
        run(name, bowl, x, mask=torch.ones(3, device="meta"))
    for size in (0.0, -1.0, math.nan):
        with pytest.raises(EbmtrajError, match="step_size"):
            config(name, step_size=size)
    with pytest.raises(EbmtrajError, match="steps"):
        config(name, steps=-1)
    with pytest.raises(EbmtrajError, match="keep"):
        config(name, keep=-1)
    with pytest.raises(EbmtrajError, match="scale has 2 entries for an event of 3"):
        run(name, bowl, x, scale=(1.0, 1.0))
    with pytest.raises(EbmtrajError, match=r"torch.int64 of shape \(4, 3\)"):
        run(name, bowl, x.long())
    with pytest.raises(EbmtrajError, match="no closed-form gradient"):
        run(name, bowl, x, backend="analytic")

    class Lying(nn.Module):
        def forward(self, x: Tensor, context: Any) -> Tensor:
            return bowl(x)

        def gradient(self, x: Tensor, context: Any) -> Tensor:
            return x.sum(-1)

    with pytest.raises(EbmtrajError, match=r"energy Lying: its gradient has shape \(4,\) for x of shape \(4, 3\)"):
        run(name, Lying(), x)

    class Elsewhere:
        device = torch.device("cuda:1")

    with pytest.raises(
        EbmtrajError, match=r"generator is on cuda:1 and the start on cpu; make it with torch.Generator\('cpu'\)"
    ):
        run(name, bowl, x, generator=Elsewhere())


class Cliff(nn.Module):
    """Slopes down; the third chain's gradient is not a number beyond 0.25."""

    def forward(self, x: Tensor, context: Any) -> Tensor:
        return -x.sum(-1)

    def gradient(self, x: Tensor, context: Any) -> Tensor:
        beyond = (torch.arange(len(x)) == 2) & (x[:, 0] > 0.25)
        return torch.where(beyond.unsqueeze(1), torch.nan, -torch.ones_like(x))


def test_a_gradient_that_is_not_finite_is_named_by_chain_and_step() -> None:
    with pytest.raises(DivergedError, match="energy Cliff: gradient of chain 2 is not finite at step 3;"):
        run("langevin", Cliff(), torch.zeros(4, 3), step_size=0.2, temperature=0.0)  # 0, 0.1, 0.2, 0.3
    clamp = LangevinConfig(steps=5, step_size=0.2, temperature=0.0, clip=1.0)  # a bound on the gradient hides nothing
    with pytest.raises(DivergedError, match="at step 3"):
        sample(Cliff(), torch.zeros(4, 3), clamp, generator=seeded())
    unseen, _ = run("langevin", Cliff(), torch.zeros(4, 3), step_size=0.2, temperature=0.0, steps=3)
    assert unseen.isfinite().all()


@pytest.mark.parametrize("name", ["mala", "hmc", "tempering"])
def test_an_energy_that_is_not_a_number_is_named_by_chain_and_step(name: str) -> None:
    """Down a slope by 0.1 a step, with little noise: the proposal to 0.3 is that of step 2, counted from 0."""

    def broken(x: Tensor, context: Any) -> Tensor:
        return torch.where((torch.arange(len(x)) % 4 == 2) & (x[:, 0] > 0.25), torch.nan, -x.sum(-1))

    cold = 1e-4
    settings: dict[str, Any] = {
        "mala": {"temperature": cold, "step_size": 0.2},
        "hmc": {"temperature": cold, "step_size": (0.2 * cold) ** 0.5, "leapfrog": 1, "jitter": 0.0},
        "tempering": {"temperatures": (cold, 2 * cold), "step_size": 0.2**0.5},
    }[name]
    start = torch.zeros(4, 3, dtype=torch.float64)
    with pytest.raises(DivergedError, match="energy broken: energy of chain 2 is not a number at step 2;"):
        run(name, broken, start, **settings)
    run(name, broken, start, **settings, steps=2)
    with pytest.raises(DivergedError, match=r"energy of chain 2 is not a number at step \d of the warm-up"):
        run(name, broken, start, **settings, warmup=30)


@pytest.mark.parametrize("name", CONFIGS)
def test_a_start_that_is_not_finite_is_named(name: str) -> None:
    with pytest.raises(DivergedError, match="state of chain 1 is not finite at the start, nor that of 1 more"):
        run(name, bowl, torch.tensor([[0.0], [torch.inf], [torch.nan]]))


@pytest.mark.parametrize("name", ["mala", "hmc", "tempering"])
def test_infinite_energy_is_a_wall_but_not_to_start_in(name: str) -> None:
    def walled(x: Tensor, context: Any) -> Tensor:
        return torch.where(x[:, 0] > 0, bowl(x), torch.inf)

    x, info = run(name, walled, torch.full((500, 2), 0.3), steps=30)
    assert (x[:, 0] > 0).all()
    assert info.acceptance.min() < 1
    with pytest.raises(
        DivergedError, match="energy walled: energy of chain 0 is not finite at the start, nor that of 499 more"
    ):
        run(name, walled, torch.full((500, 2), -0.3))
    blown, info = run(name, lambda x, _: x.pow(4).sum(-1), torch.ones(50, 2), step_size=1e6)  # every leap overflows
    assert blown.equal(torch.ones(50, 2))
    assert (info.acceptance == 0).all()


def test_a_ladder_names_the_gradient_evaluation() -> None:
    def energy(x: Tensor, context: Any, level: Tensor) -> Tensor:
        return bowl(x) * torch.where(level < 0.1, torch.nan, 1.0)

    with pytest.raises(DivergedError, match="gradient of chain 0 is not finite at gradient evaluation"):
        sample(energy, torch.ones(2, 2), LangevinConfig(steps=1, ladder=Ladder(levels=5)), generator=seeded())


def test_step_sizes_adapt_to_their_target() -> None:
    scales = torch.logspace(-1, 1, 12, dtype=torch.float64)

    def energy(x: Tensor, context: Any) -> Tensor:
        return 0.5 * (x / scales).square().sum(-1)

    start = scales * torch.empty(256, 12, dtype=torch.float64).normal_(generator=seeded())
    for first in (1e-4, 10.0):
        for name, target in (("mala", 0.574), ("hmc", 0.8), ("mala", 0.9)):
            _, info = sample(
                energy, start, config(name, steps=60, warmup=150, step_size=first, target=target), generator=seeded(1)
            )
            assert float(info.acceptance.mean()) == pytest.approx(target, abs=0.05)
            assert info.step_size.shape == ()
            assert info.step_size == pytest.approx(float(info.step_size), rel=1e-6)
    _, info = sample(energy, start, config("mala", steps=5), generator=seeded(1))
    assert info.step_size is None
