"""The opponents of the transition energy, against closed forms and a known conditional."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.distributions import Categorical, Independent, MixtureSameFamily, Normal
from torch.nn import functional as F

from ebmtraj.datasets.store import Store
from ebmtraj.datasets.windows import Batch, Transitions
from ebmtraj.energies.transition import ResidualEnergy
from ebmtraj.errors import EbmtrajError
from ebmtraj.fields import Field
from ebmtraj.nets.base import Base
from ebmtraj.nets.ensemble import EnsembleGaussianMLP
from ebmtraj.nets.mixture import MixtureMLP, choose
from ebmtraj.nets.mlp import GaussianMLP
from ebmtraj.nets.vector_field import Denoiser
from ebmtraj.runs import Run
from ebmtraj.training.loop import train
from ebmtraj.training.losses import (
    NoiseConfig,
    TimeConfig,
    denoising_score_matching,
    flow_matching,
    gaussian_nll,
    mixture_nll,
)
from ebmtraj.training.settings import TrainingConfig
from ebmtraj.trajectories.baselines.flow import integrate
from ebmtraj.trajectories.fit import load_recipe, train_transition
from ebmtraj.trajectories.model import TransitionModel
from ebmtraj.trajectories.registry import MODELS, load_model, make_model

torch.set_num_threads(1)
STATE, ACTION = (Field("x", 2),), (Field("u", 1),)
CONSTANT = 0.5 * math.log(2 * math.pi)  # what the likelihoods here leave out, a dimension


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def plane(name: str, **network: Any) -> TransitionModel:
    """A small model of a state (2) and an action (1), whose normaliser changes nothing."""
    return make_model(name, STATE, ACTION, actions=True, network={"width": 16, **network}, seed=3).eval()


def draws(model: TransitionModel, count: int, action: float = 0.0, seed: int = 0) -> Tensor:
    """Normalised increments from one state `(count, 2)`."""
    state = torch.zeros(count, 2)
    return model.normaliser.delta(state, model.sample_next(state, torch.full((count, 1), action), seeded(seed)))


# likelihoods


def test_mixture_likelihood_is_torch_s() -> None:
    torch.manual_seed(0)
    z, logits, mean, log_std = torch.randn(20, 3), torch.randn(20, 4), torch.randn(20, 4, 3), torch.randn(20, 4, 3)
    truth = MixtureSameFamily(Categorical(logits=logits), Independent(Normal(mean, log_std.exp()), 1))
    expected = -truth.log_prob(z) / 3 - CONSTANT
    torch.testing.assert_close(mixture_nll(z, logits.log_softmax(-1), mean, log_std), expected)
    alone = mixture_nll(z, torch.zeros(20, 1), mean[:, :1], log_std[:, :1])
    torch.testing.assert_close(alone, gaussian_nll(z, mean[:, 0], log_std[:, 0]))


def test_mixture_likelihood_survives_far_points() -> None:
    mean = torch.zeros(2, 3, 30, requires_grad=True)
    log_std = torch.full((2, 3, 30), -5.0, requires_grad=True)
    loss = mixture_nll(torch.full((2, 30), 50.0), torch.full((2, 3), -math.log(3)), mean, log_std).mean()
    loss.backward()
    assert loss.isfinite()
    assert mean.grad is not None
    assert log_std.grad is not None
    assert mean.grad.isfinite().all()
    assert log_std.grad.isfinite().all()


@torch.no_grad()
def test_a_mixture_begins_with_every_component_alive_and_stays_bounded() -> None:
    torch.manual_seed(0)
    net = MixtureMLP(3, 30, components=8, low=-5.0, high=2.0)
    mixture = net(torch.randn(50, 3).clamp(-6, 6))
    assert mixture.log_weight.shape == (50, 8)
    assert mixture.mean.shape == mixture.log_std.shape == (50, 8, 30)
    torch.testing.assert_close(mixture.log_weight.exp(), torch.full((50, 8), 1 / 8), rtol=0, atol=0.01)
    assert mixture.log_std.abs().max() < 0.2
    assert torch.cdist(mixture.mean[0], mixture.mean[0]).add(torch.eye(8) * 9).min() > 1
    nn.init.normal_(net.net[-1].weight, std=100.0)  # type: ignore[arg-type]
    bounded = net(torch.randn(50, 3)).log_std
    assert bounded.min().item() == pytest.approx(-5.0, abs=2e-3)
    assert bounded.max().item() == pytest.approx(2.0, abs=2e-3)
    torch.testing.assert_close(net(torch.randn(50, 3)).log_weight.exp().sum(-1), torch.ones(50))


def test_choice_follows_the_weights() -> None:
    weight = torch.tensor([[0.5, 0.3, 0.2, 0.0], [0.1, 0.0, 0.0, 0.9]])
    index = choose(weight.log().repeat(20_000, 1), seeded(0)).view(-1, 2)
    shares = F.one_hot(index, 4).float().mean(0)
    torch.testing.assert_close(shares, weight, rtol=0, atol=0.015)
    assert shares[weight == 0].eq(0).all()


# the ensemble


def test_members_are_networks_of_their_own() -> None:
    torch.manual_seed(0)
    net = EnsembleGaussianMLP(4, 3, 2, width=8, depth=2, low=-5.0, high=2.0)
    x = torch.randn(6, 3)
    mean, log_std = net(x)
    assert mean.shape == log_std.shape == (4, 6, 2)
    for i in range(4):
        single = GaussianMLP(3, 2, width=8, depth=2, low=-5.0, high=2.0)
        linears = [layer for layer in single.net if isinstance(layer, nn.Linear)]
        with torch.no_grad():
            for own, layer in zip(linears, net.layers, strict=True):
                own.weight.copy_(layer.weight[i].T)  # type: ignore[index, union-attr]
                own.bias.copy_(layer.bias[i, 0])  # type: ignore[index, union-attr]
        torch.testing.assert_close(single(x)[0], mean[i])
        torch.testing.assert_close(single(x)[1], log_std[i])
    (mean[2].sum() + log_std[2].sum()).backward()
    for p in net.parameters():
        assert p.grad is not None
        assert p.grad[2].abs().max() > 0
        assert p.grad[[0, 1, 3]].eq(0).all()


def test_each_member_has_a_resample_of_its_own() -> None:
    model: Any = plane("ensemble")
    batch = Batch(torch.randn(20_000, 2), torch.randn(20_000, 1), torch.randn(20_000, 2))
    counts = model.resample(batch)
    assert counts.shape == (5, 20_000)
    for k in range(4):
        expected = torch.full((5,), math.exp(-1) / math.factorial(k))
        torch.testing.assert_close((counts == k).float().mean(1), expected, rtol=0, atol=0.015)
    torch.testing.assert_close(torch.corrcoef(counts), torch.eye(5), rtol=0, atol=0.03)
    order = torch.randperm(20_000, generator=seeded(0))[:50]  # whenever it is drawn, a transition keeps its counts
    again = Batch(batch.state[order], None, batch.next_state[order])
    assert model.resample(again).equal(counts[:, order])
    near = Batch(torch.nextafter(batch.state, batch.state + 1), None, batch.next_state)
    assert model.resample(near).eq(counts).float().mean() < 0.5


def test_the_ensemble_trains_on_resamples_and_is_judged_as_a_mixture() -> None:
    model: Any = plane("ensemble", beta=0.0)
    batch = Batch(torch.randn(64, 2), torch.randn(64, 1), torch.randn(64, 2))
    mean, log_std = model.net(model.context(batch.state, batch.action))
    z = model.normaliser.delta(batch.state, batch.next_state)
    each = gaussian_nll(z, mean, log_std)  # (5, 64)
    loss, logs = model.train()._loss(batch, seeded(0))
    torch.testing.assert_close(loss, (each * model.resample(batch)).mean())
    assert "validation" not in logs
    _, logs = model.eval()._loss(batch, seeded(0))
    mixed = MixtureSameFamily(
        Categorical(logits=torch.zeros(64, 5)),
        Independent(Normal(mean.transpose(0, 1), log_std.exp().transpose(0, 1)), 1),
    )
    torch.testing.assert_close(logs["validation"], (-mixed.log_prob(z) / 2 - CONSTANT).mean())


def test_every_step_draws_its_member_anew() -> None:
    model: Any = plane("ensemble")
    with torch.no_grad():
        last = model.net.layers[-1]
        last.weight.zero_()
        last.bias.zero_()
        last.bias[:, 0, 0] = torch.arange(5.0)  # member i moves the first entry by i
        last.bias[:, 0, 2:] = -100.0
    member = torch.stack([draws(model, 2000, seed=seed)[:, 0].round().long() for seed in (0, 1)])
    shares = F.one_hot(member, 5).float().mean((0, 1))
    torch.testing.assert_close(shares, torch.full((5,), 0.2), rtol=0, atol=0.03)
    assert (member[0] == member[1]).float().mean().item() == pytest.approx(0.2, abs=0.03)


# diffusion, with and without the base


def lively(module: nn.Module) -> nn.Module:
    """Weights of the last layer that are not near 0, in double precision."""
    nn.init.normal_(module.output.weight, std=0.3)  # type: ignore[arg-type]
    return module.double()


def test_the_denoiser_is_karras_s() -> None:
    """Preconditioning of table 1 with sigma_data = 1, and the loss weighted by (1 + s^2) / s^2."""
    torch.manual_seed(0)
    net = lively(Denoiser(4, 3, width=16))
    assert isinstance(net, Denoiser)
    r, context = torch.randn(50, 4).double(), net.prepare(torch.randn(50, 3).double())
    loss = denoising_score_matching(net, r, context, NoiseConfig(), seeded(1))
    generator = seeded(1)
    level = NoiseConfig().draw(50, generator)
    s = level.unsqueeze(-1).double()
    x = r + s * torch.empty_like(r).normal_(generator=generator)
    skip, out, into = 1 / (1 + s**2), s / (1 + s**2).sqrt(), 1 / (1 + s**2).sqrt()
    denoised = skip * x - out * net(into * x, context, level)  # the sign of a free network's output is its own
    torch.testing.assert_close(loss, ((1 + s**2) / s**2 * (denoised - r).square()).mean(-1), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(net.gradient(x, context, level), (x - denoised) / s**2, rtol=1e-4, atol=1e-5)
    one = net.gradient(x[:1], context[:1], level[:1])
    torch.testing.assert_close(net.gradient(x[:1], context[:1], level[0]), one)  # one level for the whole batch


def test_an_energy_s_gradient_in_the_field_s_place_is_that_energy() -> None:
    torch.manual_seed(0)
    energy, net = lively(ResidualEnergy(4, 3, width=16)), lively(Denoiser(4, 3, width=16))
    assert isinstance(energy, ResidualEnergy)
    assert isinstance(net, Denoiser)
    prepared, x, level = energy.prepare(torch.randn(9, 3).double()), torch.randn(9, 4).double(), torch.rand(9).double() + 0.1
    net.forward = energy.tilt_gradient  # type: ignore[method-assign, assignment]
    torch.testing.assert_close(net.gradient(x, prepared, level), energy.gradient(x, prepared, level))  # type: ignore[arg-type]


def test_diffusion_samples_a_known_mixture() -> None:
    """The exact score of two Gaussians at (1, 0.5) and its negative, weights 0.7 and 0.3, spread 0.2."""
    model: Any = plane("edm", ladder={"levels": 25, "sigma_max": 10.0, "sigma_min": 0.01})
    centre = torch.tensor([[1.0, 0.5], [-1.0, -0.5]])

    def gradient(x: Tensor, context: Tensor, level: Tensor) -> Tensor:
        variance = 0.2**2 + level**2
        each = torch.tensor([0.7, 0.3]).log() - (x.unsqueeze(1) - centre).square().sum(-1) / (2 * variance)
        return (x - each.softmax(-1) @ centre) / variance

    model.net.gradient = gradient
    z = draws(model, 4000)
    right = (z @ centre[0]) > 0
    assert right.float().mean().item() == pytest.approx(0.7, abs=0.03)
    for side, at in ((right, centre[0]), (~right, centre[1])):
        torch.testing.assert_close(z[side].mean(0), at, rtol=0, atol=0.03)
        torch.testing.assert_close(z[side].std(0), torch.full((2,), 0.2), rtol=0, atol=0.02)


def test_diffusion_ends_at_level_0() -> None:
    """From the score of one point all noise is gone, however high the last level."""
    model: Any = plane("edm", ladder={"levels": 5, "sigma_max": 10.0, "sigma_min": 1.0})
    point = torch.tensor([1.0, -2.0])
    model.net.gradient = lambda x, context, level: (x - point) / level**2
    torch.testing.assert_close(draws(model, 50), point.expand(50, 2))


@pytest.mark.parametrize("name", ["dsm", "field"])
def test_the_tilt_sees_context_and_base(name: str) -> None:
    tilted: Any = plane(name).tilted  # type: ignore[attr-defined]
    given = [torch.randn(4, 3), torch.randn(4, 2), torch.randn(4, 2)]

    def seen(context: Tensor, mean: Tensor, log_std: Tensor) -> Tensor:
        prepared = tilted.prepare(context, Base(mean, log_std))
        return prepared if isinstance(prepared, Tensor) else prepared.hidden

    for i in range(3):
        changed = [value + (i == j) for j, value in enumerate(given)]
        assert (seen(*changed) - seen(*given)).abs().max() > 0.01


@pytest.mark.parametrize("name", ["dsm", "field"])
def test_a_tilt_that_sees_the_context_alone(name: str) -> None:
    whole: Any = plane(name)
    for settings in ({"base_context": False}, {"base": False}, {"base": False, "base_context": False}):
        model: Any = plane(name, **settings)
        tilted = model.tilted
        assert whole.tilted.tilt_context - tilted.tilt_context == 2 * model.delta_size
        sizes = [sum(p.numel() for p in each.tilted.tilt.parameters()) for each in (whole, model)]
        assert sizes[0] - sizes[1] == 2 * model.delta_size * model.config.width  # columns of the first layer
        context, zero = torch.randn(4, 3), torch.zeros(4, 2)
        seen = [tilted.prepare(context, Base(zero + i, zero - i)) for i in (0, 1)]
        seen = [each if isinstance(each, Tensor) else each.hidden for each in seen]
        assert seen[0].equal(seen[1])
        assert (len([*tilted.base_net.parameters()]) > 0) == model.config.base


@pytest.mark.parametrize("name", ["dsm", "field"])
def test_without_a_base_all_steps_go_to_one_stage(name: str, hand_store: Path, tmp_path: Path) -> None:
    recipe = small(hand_store, name, "network.base=false")
    steps = recipe.training.steps
    result, _ = train_transition(recipe, tmp_path / "run", device="cpu")
    rows = Run(tmp_path / "run").read_metrics()
    assert result.steps == steps
    assert {row["stage"] for row in rows} == {{"dsm": "energy"}.get(name, name)}
    assert max(row["step"] for row in rows) == steps
    model: Any = load_model(tmp_path / "run" / "checkpoints" / "best.safetensors")[0]
    data = Transitions.load(Store.open(hand_store), "train", actions=model.actions, history=model.history)
    batch = data.at(torch.arange(len(data)))
    z, context = model._coordinates(batch)
    base = model.tilted.base(context)
    assert base.mean.eq(0).all()
    assert base.log_std.eq(base.log_std[0]).all()  # a constant of each dimension
    spread = z.clamp(-model.tilted.bound, model.tilted.bound).square().mean(0).sqrt()
    torch.testing.assert_close(base.log_std[0], spread.clamp_min(1e-3).log(), rtol=0, atol=1e-6)
    assert spread.log().abs().max() > 1e-4  # so that this says something
    assert [stage.share for stage in model.stages()] == [1.0]
    following = model.sample_next(batch.state, batch.action, seeded(0))
    assert following.isfinite().all()
    assert not following.equal(batch.state)


@pytest.mark.parametrize("name", ["dsm", "field"])
def test_an_empty_tilt_samples_the_base(name: str) -> None:
    # fine steps: the default's ten leave the base 2.7 % too wide
    model: Any = plane(name, sampler={"steps": 0, "ladder": {"levels": 61}})
    with torch.no_grad():
        model.tilted.tilt.output.weight.zero_()
        model.tilted.spread_mean.fill_(-1.0)
        model.tilted.spread_shift.copy_(torch.tensor([0.3, -0.2]))
    base = model.tilted.base(model.context(torch.zeros(1, 2), torch.full((1, 1), 0.4)))
    z = draws(model, 5_000, action=0.4)
    r = (z - base.mean) * torch.exp(-base.log_std)
    torch.testing.assert_close(r.mean(0), torch.zeros(2), rtol=0, atol=0.05)
    torch.testing.assert_close(torch.cov(r.T), torch.eye(2), rtol=0, atol=0.06)
    noise = torch.empty(5_000, 2).normal_(generator=seeded(0))  # of the start; the flow only scales it
    torch.testing.assert_close(r, noise, rtol=2e-3, atol=1e-4)


def test_field_and_energy_share_their_base(hand_store: Path, tmp_path: Path) -> None:
    for name in ("dsm", "field"):
        train_transition(small(hand_store, name), tmp_path / name, device="cpu")
    energy, field = (load_file(tmp_path / name / "checkpoints" / "best.safetensors") for name in ("dsm", "field"))
    base = [key for key in energy if "base_net" in key or "spread" in key]
    assert len(base) == 8
    assert all(energy[key].equal(field[key]) for key in base)
    assert energy["tilted.spread_shift"].abs().max() > 0


# flow matching


def test_flow_matching_learns_the_velocity_of_straight_paths() -> None:
    z, context = torch.randn(100, 3), torch.zeros(100, 0)
    seen: list[Tensor] = []

    def velocity(x: Tensor, context: Tensor, t: Tensor) -> Tensor:
        seen.extend((x, t.unsqueeze(-1)))
        return torch.zeros_like(x)

    loss = flow_matching(velocity, z, context, TimeConfig(law="uniform"), seeded(0))
    x, t = seen
    start = (x - t * z) / (1 - t)
    torch.testing.assert_close(loss, (z - start).square().mean(-1), rtol=1e-2, atol=1e-3)
    assert start.mean().item() == pytest.approx(0, abs=0.2)
    assert start.std().item() == pytest.approx(1, abs=0.15)


def test_times() -> None:
    even = TimeConfig(law="uniform").draw(20_000, seeded(0))
    assert even.min() >= 0
    assert even.max() <= 1
    torch.testing.assert_close(even.sort().values, torch.linspace(0, 1, 20_000), rtol=0, atol=0.02)
    logits = TimeConfig(mean=0.5, std=1.5).draw(20_000, seeded(0)).double().logit()
    assert logits.mean().item() == pytest.approx(0.5, abs=0.05)
    assert logits.std().item() == pytest.approx(1.5, abs=0.05)


@pytest.mark.parametrize(("solver", "order"), [("euler", 1), ("midpoint", 3), ("heun", 2)])
def test_solvers_follow_the_flow_of_a_gaussian(solver: str, order: int) -> None:
    """Toward N(m, v^2) the flow is linear in x and carries x to m + v x; midpoint gains an order on it."""
    mean, spread, x = torch.tensor([1.0, -2.0]).double(), torch.tensor([0.3, 0.5]).double(), torch.randn(50, 2).double()

    def velocity(x: Tensor, t: Tensor) -> Tensor:
        slope = (t * spread**2 - (1 - t)) / ((1 - t) ** 2 + t**2 * spread**2)
        return mean + slope * (x - t * mean)

    errors = [(integrate(velocity, x, n, solver) - (mean + spread * x)).abs().max().item() for n in (20, 40)]
    assert errors[1] < 0.2
    assert math.log2(errors[0] / errors[1]) == pytest.approx(order, abs=0.4)


# all of them

LEARN = ["gaussian", "ensemble", "mdn", "flow", "field", "dsm"]
LONGER = [pytest.param(name, marks=pytest.mark.slow) for name in ("edm", "gru", "ratio")]


def known(count: int, seed: int) -> Transitions:
    """x' = x + d: given the action u, d is (1, u) or its negative with odds exp(u), plus noise of spread 0.2 and 0.3."""
    noise = seeded(seed)
    x = torch.randn(count, 2, generator=noise)
    u = 2 * torch.rand(count, 1, generator=noise) - 1
    sign = torch.where(torch.rand(count, 1, generator=noise) < torch.sigmoid(u), 1.0, -1.0)
    d = sign * torch.cat((torch.ones_like(u), u), dim=-1)
    d = d + torch.tensor([0.2, 0.3]) * torch.randn(count, 2, generator=noise)
    states = torch.stack((x, x + d), dim=1).view(-1, 2)
    return Transitions(states, u, 2 * torch.arange(count), torch.arange(count))


@pytest.mark.parametrize("name", LEARN + LONGER)
def test_learns_a_known_conditional(name: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    network: dict[str, Any] = {"width": 32, "depth": 2} | ({"members": 2} if name == "ensemble" else {})
    if name == "ratio":  # one bump across both modes, so that the tilt must part them
        network |= {"of": "gaussian", "base": {"width": 32, "depth": 2}, "candidates": 32, "share": 0.5}
    model = make_model(name, STATE, ACTION, actions=True, network=network)
    data = known(4000, 0)
    model.prepare(data)
    config = TrainingConfig(steps=800, batch=256, learning_rate=5e-3, warmup=20, ema=0.98, check_every=400, log_every=400)
    train(model, data, known(500, 1), config, Run.create(tmp_path / "run"))
    u, count = 0.6, 4000
    state = torch.zeros(count, 2)
    d = model.sample_next(state, torch.full((count, 1), u), seeded(0))
    p, centre = 1 / (1 + math.exp(-u)), torch.tensor([1.0, u])
    torch.testing.assert_close(d.mean(0), (2 * p - 1) * centre, rtol=0, atol=0.12)
    covariance = 4 * p * (1 - p) * centre.outer(centre) + torch.diag(torch.tensor([0.2, 0.3]) ** 2)
    seen = torch.cov(d.T)
    if name in ("gaussian", "ensemble"):  # their entries are drawn apart, and one bump must cover both modes
        torch.testing.assert_close(seen.diag(), covariance.diag(), rtol=0.2, atol=0.02)
        return
    torch.testing.assert_close(seen, covariance, rtol=0.2, atol=0.08)
    right = d[:, 0] > 0
    assert right.float().mean().item() == pytest.approx(p, abs=0.08)
    assert (d[:, 0].abs() < 0.4).float().mean() < 0.06  # 0.1 % of the truth; 30 % of a Gaussian
    torch.testing.assert_close(d[right].mean(0), centre, rtol=0, atol=0.12)


OPPONENTS = ["ensemble", "mdn", "edm", "flow", "field", "gru", "ratio"]
SMALL = ["training.steps=20", "training.batch=32", "training.check_every=5", "training.warmup=5", "network.width=16"]


def small(store: Path, name: str, *changes: str) -> Any:
    return load_recipe(None, [*SMALL, *changes], {"model": name, "data": str(store), "actions": True})


@pytest.mark.parametrize("name", OPPONENTS)
def test_an_interrupted_run_ends_in_the_same_bits(
    name: str, hand_store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = small(hand_store, name)
    train_transition(recipe, tmp_path / "whole", device="cpu")
    honest, left = Transitions.sample, [13]  # the state was written after the tenth step; three are lost

    def sample(self: Transitions, size: int, generator: torch.Generator) -> Batch:
        left[0] -= 1
        if left[0] < 0:
            raise KeyboardInterrupt
        return honest(self, size, generator)

    with monkeypatch.context() as patch:
        patch.setattr(Transitions, "sample", sample)
        with pytest.raises(KeyboardInterrupt):
            train_transition(recipe, tmp_path / "cut", device="cpu")
    train_transition(recipe, tmp_path / "cut", device="cpu", resume=True)
    for file in ("best", "resume"):
        whole, cut = (load_file(tmp_path / run / "checkpoints" / f"{file}.safetensors") for run in ("whole", "cut"))
        assert whole.keys() == cut.keys()
        assert all(whole[key].equal(cut[key]) for key in whole)


@pytest.mark.parametrize("name", MODELS)
def test_what_is_reported(name: str, hand_store: Path) -> None:
    """A finite held-out figure that repeats, and gradients to every weight of the stage's module and no other's."""
    store = Store.open(hand_store)
    data = Transitions.load(store, "train")
    cd = ["network.sampler.steps=3", "network.rollout_steps=3", "network.buffer=100"] if name in ("cd", "icd") else []
    recipe = load_recipe(None, [*SMALL, *cd], {"model": name, "data": str(hand_store)})
    network = {k: v for k, v in recipe.network.items() if v is not None}
    model = make_model(name, store.state_fields, store.action_fields, actions=False, network=network)
    model.prepare(data)
    batch = data.at(torch.arange(64))
    for stage in model.stages():
        model.eval()
        told = [stage.loss(batch, seeded(1)) for _ in range(2)]
        figures = [float(logs.get("validation", loss).detach()) for loss, logs in told]
        assert math.isfinite(figures[0])
        assert figures[0] == figures[1]
        model.train().zero_grad(set_to_none=True)
        stage.loss(batch, seeded(1))[0].backward()
        own = {id(p) for p in stage.module.parameters()}
        assert all(p.grad is not None and p.grad.isfinite().all() for p in stage.module.parameters())
        assert all(p.grad is None for p in model.parameters() if id(p) not in own)
        if stage.finish is not None:
            stage.finish(data)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("name", OPPONENTS)
def test_a_gpu_gives_what_the_cpu_gives(name: str, hand_store: Path, tmp_path: Path) -> None:
    train_transition(small(hand_store, name), tmp_path / "run", device="cuda")
    model, _ = load_model(tmp_path / "run" / "checkpoints" / "best.safetensors", "cuda")
    data = Transitions.load(Store.open(hand_store), "test", actions=True, device="cuda")
    batch = data.at(torch.arange(20, device="cuda"))
    following = model.sample_next(batch.state, batch.action, torch.Generator("cuda").manual_seed(0))
    assert following.isfinite().all()
    if name in ("ensemble", "mdn"):  # their figure draws no noise, so the two agree
        _, logs = model.stages()[-1].loss(batch, torch.Generator("cuda").manual_seed(0))
        cpu = Batch(batch.state.cpu(), batch.action.cpu(), batch.next_state.cpu())  # type: ignore[union-attr]
        _, told = model.cpu().stages()[-1].loss(cpu, seeded(0))
        torch.testing.assert_close(logs["validation"].cpu(), told["validation"], rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize(
    ("name", "change", "word"),
    [
        ("ensemble", "network.members=0", "members"),
        ("ensemble", "network.low=3.0", "low"),
        ("ensemble", "network.beta=-1.0", "beta"),
        ("ensemble", "network.width=0", "width"),
        ("mdn", "network.components=0", "components"),
        ("mdn", "network.high=-6.0", "high"),
        ("mdn", "network.spread=-1.0", "spread"),
        ("edm", "network.bound=0", "bound"),
        ("edm", "network.noise.std=-1.0", "std"),
        ("edm", "network.ladder.levels=1", "levels"),
        ("edm", "network.ladder.predictor=none", "predictor"),
        ("flow", "network.steps=0", "steps"),
        ("flow", "network.bound=-1.0", "bound"),
        ("flow", "network.solver=rk4", "solver"),
        ("flow", "network.time.law=beta", "law"),
        ("flow", "network.time.std=-1.0", "std"),
        ("gru", "network.history=0", "history"),
        ("gru", "network.components=0", "components"),
        ("gru", "network.low=3.0", "low"),
        ("gru", "network.learn=first", "learn"),
        ("gru", "network.width=0", "width"),
        ("field", "network.base_share=0.0", "base_share"),
        ("field", "network.history=-1", "history"),
        ("dsm", "network.history_noise=-0.1", "history_noise"),
        ("gru", "network.forget=1.5", "forget"),
        ("dsm", "network.previous_control=true", "network.history = 1"),
        ("field", "network.sampler.backend=autograd", "no energy"),
        ("field", "network.sampler.record=true", "no energy"),
    ],
)
def test_what_makes_no_model_is_refused(name: str, change: str, word: str) -> None:
    with pytest.raises(EbmtrajError) as caught:
        load_recipe(None, [change], {"model": name})
    assert word in str(caught.value)
    assert "\n" not in str(caught.value)
