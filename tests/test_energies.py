"""What every energy promises, and what each of them is."""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

import ebmtraj.energies
from ebmtraj.energies.compose import And, Composed, Not, Or, Shifted, Term
from ebmtraj.energies.image import Guided as ImageGuided
from ebmtraj.energies.image import Tilt
from ebmtraj.energies.image_conv import PlainEnergy
from ebmtraj.energies.joint import Guided as JointGuided
from ebmtraj.energies.joint import JointTilt, LogitEnergy
from ebmtraj.energies.latent import LatentEnergy, ViewEnergy
from ebmtraj.energies.plane import PlaneMixture
from ebmtraj.energies.sequence import SequenceEnergy
from ebmtraj.energies.transition import PairEnergy, ResidualEnergy, TiltedPairEnergy, TiltedTransition
from ebmtraj.energies.value_place import Alone, ValuePlaceEnergy
from ebmtraj.images.model import ImageModel
from ebmtraj.images.registry import MODELS, make_image_model
from ebmtraj.nets.base import Base
from ebmtraj.samplers.anneal import Ladder
from ebmtraj.samplers.backends import gradient_of
from ebmtraj.samplers.langevin import LangevinConfig, langevin
from ebmtraj.training.losses import NoiseConfig, denoising_score_matching

torch.set_num_threads(1)
EVENT, CONTEXT = 4, 3
Call = Callable[[Tensor, Tensor, Tensor], Tensor]  # (x, raw context, level) -> (B,)


def lively(module: nn.Module) -> nn.Module:
    """Weights that are not near 0, in double precision and ready to sample."""
    for name, p in module.named_parameters():
        if name.endswith("output.weight"):
            nn.init.normal_(p, std=0.3)
    return module.double().eval()


def pair() -> tuple[nn.Module, Call]:
    energy = lively(PairEnergy(EVENT, width=16, scale=5.0))
    return energy, lambda x, c, s: energy(x)


def tilted_pair() -> tuple[nn.Module, Call]:
    energy = lively(TiltedPairEnergy(CONTEXT, EVENT, prior=0.7, width=16, depth=3, spectral=True, scale=5.0))
    assert isinstance(energy, TiltedPairEnergy)
    return energy, lambda x, c, s: energy(x, energy.prepare(c))


def residual() -> tuple[nn.Module, Call]:
    energy = lively(ResidualEnergy(EVENT, CONTEXT, width=16))
    assert isinstance(energy, ResidualEnergy)
    return energy, lambda x, c, s: energy(x, energy.prepare(c), s)


def tilted() -> tuple[nn.Module, Call]:
    energy = lively(TiltedTransition(EVENT, CONTEXT, width=16))
    return energy, lambda x, c, s: energy(x, c, s)


ENERGIES: dict[type[nn.Module], Callable[[], tuple[nn.Module, Call]]] = {
    PairEnergy: pair,
    TiltedPairEnergy: tilted_pair,
    ResidualEnergy: residual,
    TiltedTransition: tilted,
}


def draw(count: int = 6, seed: int = 1) -> tuple[Tensor, Tensor, Tensor]:
    noise = torch.Generator().manual_seed(seed)
    x = torch.randn(count, EVENT, dtype=torch.float64, generator=noise)
    context = torch.randn(count, CONTEXT, dtype=torch.float64, generator=noise)
    return x, context, torch.rand(count, dtype=torch.float64, generator=noise) + 0.2


def test_no_energy_is_left_out() -> None:
    found = set()
    for info in pkgutil.walk_packages(ebmtraj.energies.__path__, "ebmtraj.energies."):
        module = importlib.import_module(info.name)
        found |= {
            v
            for v in vars(module).values()
            if isinstance(v, type) and issubclass(v, nn.Module) and v.__module__ == info.name and "forward" in vars(v)
        }
    images = {type(part) for model in image_models() for part in model.modules()}
    views = {ImageGuided, JointGuided, PlainEnergy, LogitEnergy}  # of another energy, made when it is asked for
    views |= {Composed, Term, And, Or, Not, Shifted, Alone}  # their contracts stand in test_compose and test_concepts
    shared = {Tilt, JointTilt}  # what tilts inherit
    others = {PlaneMixture, ValuePlaceEnergy, ViewEnergy, LatentEnergy}  # as do those of these, or in test_generators
    assert found - images - views - shared - others == {
        *ENERGIES,
        SequenceEnergy,
    }  # that one is a sum, see test_sequence_plan


def image_models() -> list[ImageModel]:
    """Every model of images, whose contracts stand in test_image_energies and test_joint, by each kind of network."""
    asked: list[tuple[str, dict[str, str]]] = [(name, {}) for name in MODELS]
    asked += [("dsm", {"base": "unit"}), *((name, {"network": "conv"}) for name in ("dsm", "pcd", "jem"))]
    return [
        make_image_model(name, (1, 8, 8), ("a", "b"), conditional=conditional, network=network)
        for name, network in asked
        for conditional in (False, True)
    ]


@pytest.mark.parametrize("kind", ENERGIES)
def test_contract(kind: type[nn.Module]) -> None:
    torch.manual_seed(0)
    _, call = ENERGIES[kind]()
    x, context, level = draw()
    energies = call(x, context, level)
    assert energies.shape == (6,)
    assert energies.isfinite().all()
    assert energies.std() > 1e-3
    # each element's energy is its own: alone, reordered, and its gradient reaches no other element
    for i in range(6):
        torch.testing.assert_close(call(x[i : i + 1], context[i : i + 1], level[i : i + 1]), energies[i : i + 1])
    order = torch.tensor([3, 1, 5, 0, 2, 4])
    torch.testing.assert_close(call(x[order], context[order], level[order]), energies[order])
    x = x.requires_grad_()
    (slope,) = torch.autograd.grad(call(x, context, level)[2], x)
    assert slope[2].abs().min() > 0
    assert slope[[0, 1, 3, 4, 5]].eq(0).all()
    assert torch.autograd.gradcheck(lambda x: call(x, context, level), x)
    assert torch.autograd.gradgradcheck(lambda x: call(x, context, level), x)  # losses on the gradient can be trained


@pytest.mark.parametrize("kind", ENERGIES)
def test_trains(kind: type[nn.Module]) -> None:
    torch.manual_seed(0)
    module, call = ENERGIES[kind]()
    call(*draw()).sum().backward()
    missing = [name for name, p in module.named_parameters() if p.grad is None or not p.grad.isfinite().all()]
    assert not missing


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.float64, 1e-11)])
@pytest.mark.parametrize("depth", [1, 2, 3])
def test_closed_form_gradient_is_autograd_s(dtype: torch.dtype, tolerance: float, depth: int) -> None:
    torch.manual_seed(depth)
    energy = lively(ResidualEnergy(EVENT, CONTEXT, width=32, depth=depth)).to(dtype)
    assert isinstance(energy, ResidualEnergy)
    x, context, level = (t.to(dtype) for t in draw(64))
    prepared = energy.prepare(context)
    for s in (level, torch.tensor(0.02, dtype=dtype), torch.tensor(5.0, dtype=dtype)):
        truth = gradient_of(energy, "autograd")(x, prepared, s)
        assert (energy.gradient(x, prepared, s) - truth).norm() <= tolerance * truth.norm()


def test_spectral_norm_bounds_the_slope() -> None:
    torch.manual_seed(0)
    x = 3 * torch.randn(500, 6)
    for spectral, bounded in ((True, True), (False, False)):
        energy = PairEnergy(6, width=64, spectral=spectral, scale=2.0)
        with torch.no_grad():
            for p in energy.parameters():
                p.mul_(30)
            for _ in range(30):
                energy(x)  # power iterations
        slope = gradient_of(energy.eval())(x, None).norm(dim=-1).max().item()
        assert (slope <= 2.0 * 1.1**3 * 1.05) is bounded  # the slope of swish is at most 1.1


def test_an_untilted_transition_is_its_gaussian_base() -> None:
    torch.manual_seed(0)
    energy = TiltedTransition(EVENT, CONTEXT, width=16)
    nn.init.zeros_(energy.energy.output.weight)
    z, context, _ = (t.float() for t in draw(200))
    base = energy.base(context)
    with torch.no_grad():
        ours = energy(0.3 * z, context, torch.tensor(1e-4))
        normal = torch.distributions.Normal(base.mean, base.log_std.exp())
        theirs = -normal.log_prob(0.3 * z).sum(-1)
    difference = (ours - theirs)[energy.residual(0.3 * z, base).abs().amax(-1) < 7.9]
    assert len(difference) > 100
    torch.testing.assert_close(difference, difference[:1].expand_as(difference), rtol=0, atol=1e-3)


def test_calibration_gives_unit_residuals_and_a_mild_spread() -> None:
    torch.manual_seed(0)
    energy = TiltedTransition(EVENT, CONTEXT, width=16, mildness=0.5)
    nn.init.normal_(energy.base_net.net[-1].weight, std=0.3)
    z, context, _ = (t.float() for t in draw(4000))
    z = z * torch.tensor([0.3, 1.0, 0.5, 2.0]) + 0.1
    energy.calibrate(z, context)
    with torch.no_grad():
        base = energy.base(context)
        r = energy.residual(z, base)
        raw = energy.base_net(context)[1]
    torch.testing.assert_close(r.square().mean(0).sqrt(), torch.ones(4), rtol=0, atol=0.02)
    torch.testing.assert_close(base.log_std.std(0), 0.5 * raw.std(0), rtol=1e-4, atol=0)
    assert not any(p.requires_grad for p in energy.base_net.parameters())
    inside = r.abs() < energy.bound
    torch.testing.assert_close(energy.increment(r, base)[inside], z[inside], rtol=1e-4, atol=1e-4)
    far = Base(torch.zeros(1, 4), torch.zeros(1, 4))
    assert energy.residual(torch.full((1, 4), 1e6), far).eq(8).all()


def test_score_matching_finds_the_score_of_a_mixture_and_its_samples() -> None:
    """Four unequal modes; the score at every level is known. The untilted energy, a unit Gaussian, is the thing to beat."""
    modes = 1.2 * torch.tensor([[1.0, 0.0], [-1.0, 0.0], [0.0, 1.0], [0.0, -1.0]])
    weights, spread = torch.tensor([0.4, 0.1, 0.25, 0.25]), 0.3
    noise = torch.Generator().manual_seed(0)

    def sample(count: int) -> Tensor:
        which = torch.multinomial(weights, count, replacement=True, generator=noise)
        return modes[which] + spread * torch.randn(count, 2, generator=noise)

    def truth(x: Tensor, level: Tensor) -> Tensor:
        variance = (spread**2 + level**2).view(-1, 1)
        away = x.unsqueeze(1) - modes  # (B, modes, 2)
        share = torch.softmax(weights.log() - 0.5 * away.square().sum(-1) / variance, dim=-1)
        return (share.unsqueeze(-1) * away).sum(1) / variance  # gradient of the energy

    torch.manual_seed(0)
    energy = ResidualEnergy(2, 1, width=64)
    optimiser = torch.optim.Adam(energy.parameters(), lr=3e-3)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, 1200)
    context = torch.zeros(512, 1)
    for _ in range(1200):
        loss = denoising_score_matching(energy, sample(512), energy.prepare(context), NoiseConfig(-0.8, 1.2), noise).mean()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        schedule.step()
    level = torch.exp(torch.linspace(-2.5, 1.0, 4000))
    x = sample(4000) + level.unsqueeze(-1) * torch.randn(4000, 2, generator=noise)
    with torch.no_grad():
        prepared = energy.prepare(torch.zeros(4000, 1))
        right = level.unsqueeze(-1) * truth(x, level)
        learned = level.unsqueeze(-1) * energy.gradient(x, prepared, level)
        plain = level.unsqueeze(-1) * x / (1 + level.unsqueeze(-1) ** 2)
    share = ((learned - right).square().sum() / right.square().sum()).item()
    assert share < 0.03, share
    assert ((plain - right).square().sum() / right.square().sum()).item() > 5 * share
    config = LangevinConfig(steps=0, ladder=Ladder(levels=16))
    start = 26**0.5 * torch.randn(4000, 2, generator=noise)
    drawn, _ = langevin(energy, start, config, context=prepared, generator=noise)
    nearest = torch.cdist(drawn, modes).argmin(-1)
    torch.testing.assert_close(torch.bincount(nearest, minlength=4) / 4000, weights, rtol=0, atol=0.05)
    assert (drawn - modes[nearest]).std().item() == pytest.approx(spread, rel=0.15)
