"""Generators and their tilt: the contract over every entry, densities against grids, and the tilt against the truth."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from ebmtraj.datasets.toy import sample as toy_sample
from ebmtraj.datasets.toy import toy
from ebmtraj.energies.latent import LatentEnergy, ViewEnergy
from ebmtraj.errors import EbmtrajError
from ebmtraj.generators.data import Events, open_source
from ebmtraj.generators.fit import load_generator_recipe, train_generator
from ebmtraj.generators.flow import FlowGenerator
from ebmtraj.generators.model import Generator
from ebmtraj.generators.own import OwnGenerator
from ebmtraj.generators.registry import GENERATORS, load_generator, make_generator
from ebmtraj.generators.tilt import TiltConfig, make_tilt
from ebmtraj.generators.tilt_fit import load_tilt, tilt_in_memory, tilt_recipe, train_tilt
from ebmtraj.samplers.langevin import LangevinConfig
from ebmtraj.samplers.mcmc import MALAConfig
from ebmtraj.samplers.start import resample_tilt
from ebmtraj.training.settings import TrainingConfig

SMALL = {
    "vae": {"latent": 3, "width": 16},
    "two-stage": {"latent": 3, "width": 16},
    "glf": {"latent": 3, "width": 16, "transforms": 2, "flow_width": 16},
    "vae-flow": {"latent": 3, "width": 16, "transforms": 2, "flow_width": 16},
    "flow": {"transforms": 2, "width": 16},
    "glow": {"blocks": 2, "channels": 8},
}


def noise(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def made(name: str, shape: tuple[int, ...], levels: int) -> tuple[Generator, torch.Tensor]:
    """A small generator that has seen some events, and these."""
    x = torch.rand(40, *shape, generator=noise(1))
    x = (x * levels).round() / levels if levels else 3 * x
    generator = make_generator(name, shape, levels, network=SMALL[name])
    generator.prepare(Events(x))
    return generator.eval().requires_grad_(False), x


CASES = [
    (name, shape, levels)
    for name in GENERATORS
    for shape, levels in (((1, 8, 8), 16), ((2,), 0))
    if not (GENERATORS[name].images_only and len(shape) == 1)
]


@pytest.mark.parametrize(("name", "shape", "levels"), CASES)
def test_every_generator_keeps_the_contract(name: str, shape: tuple[int, ...], levels: int) -> None:
    generator, x = made(name, shape, levels)
    z = generator.encode(x, noise())
    assert z.shape == (40, generator.latent)
    assert generator.decode(z).shape == x.shape
    normal = torch.distributions.Normal(0.0, 1.0)
    torch.testing.assert_close(generator.log_prior(z), normal.log_prob(z).sum(1))
    drawn = generator.sample(5, noise())
    assert drawn.shape == (5, *shape)
    assert not levels or 0 <= float(drawn.min()) <= float(drawn.max()) <= 1
    assert torch.equal(drawn, generator.sample(5, noise()))
    assert generator.view_of(x, noise()).shape == (40, *generator.view_shape) == generator.view(z).shape
    z.requires_grad_(True)
    assert float(torch.autograd.grad(generator.view(z).square().sum(), z)[0].abs().sum()) > 0
    with pytest.raises(EbmtrajError, match="events of shape"):
        generator.encode(x[..., :-1], noise())


@pytest.mark.parametrize("name", ["flow", "glow", "two-stage"])
def test_what_is_encoded_comes_back(name: str) -> None:
    generator, x = made(name, (1, 8, 8), 16)
    back = generator.decode(generator.encode(x, noise()))
    if name == "two-stage":  # up to its first autoencoder: the second one loses nothing, as its noise is part of the latent
        code = generator.coder.draw(generator.unit(x), noise())  # type: ignore[operator, union-attr]
        back, x = back, generator.event(generator.coder.decoder(code))  # type: ignore[operator, union-attr]
    torch.testing.assert_close(back, x, atol=0.5001 / 16 if name != "two-stage" else 1e-4, rtol=0)


def test_large_images_are_split_between_the_levels_of_glow() -> None:
    generator = make_generator("glow", (3, 16, 16), 255, network=SMALL["glow"])
    x = torch.rand(6, 3, 16, 16, generator=noise())
    generator.prepare(Events(x))
    assert [tuple(part) for part in generator.parts] == [(6, 8, 8), (24, 4, 4)]  # type: ignore[union-attr]
    z = generator.encode(x, noise())
    assert z.shape == (6, 768)
    torch.testing.assert_close(generator.decode(z), x, atol=0.51 / 255, rtol=0)


def test_the_likelihood_of_a_flow_is_a_density() -> None:
    generator, _ = made("flow", (2,), 0)
    assert isinstance(generator, FlowGenerator)
    side = torch.linspace(-9, 9, 400)
    grid = torch.stack(torch.meshgrid(side, side, indexing="ij"), -1).view(-1, 2)
    density = torch.exp(-2 * (generator.flow.loss(grid[:1])[0] * 0)) * generator.flow.flow().log_prob(grid).exp()
    assert float(density.sum() * (side[1] - side[0]) ** 2) == pytest.approx(1, abs=0.02)


def test_glow_counts_its_volume() -> None:
    generator, x = made("glow", (1, 4, 4), 0)
    unit = generator.unit(x[:1])
    _, log_det = generator._to_noise(unit)  # type: ignore[operator]
    jacobian = torch.autograd.functional.jacobian(lambda u: generator._to_noise(u)[0][0], unit).view(16, 16)  # type: ignore[operator]
    torch.testing.assert_close(torch.linalg.slogdet(jacobian)[1], log_det[0], atol=1e-3, rtol=1e-3)


# --- a decoder of one's own ---


def test_a_decoder_of_ones_own_in_three_lines() -> None:
    base = OwnGenerator(nn.Linear(3, 5), latent=3)
    z = torch.randn(4, 3, generator=noise())
    assert base.shape == (5,)
    assert base.decode(z).shape == base.view(z).shape == (4, 5)
    with pytest.raises(EbmtrajError, match="no encoder"):
        base.encode(torch.zeros(4, 5), noise())


@pytest.mark.parametrize(
    ("decoder", "latent", "said"),
    [
        (nn.Linear(3, 5), 4, "does not take latents of size 4"),
        (nn.Linear(3, 5), 0, "above 0"),
        (nn.Flatten(0), 3, "must give"),
    ],
)
def test_a_decoder_that_does_not_fit_is_one_line(decoder: nn.Module, latent: int, said: str) -> None:
    with pytest.raises(EbmtrajError, match=said) as caught:
        OwnGenerator(decoder, latent)
    assert "\n" not in str(caught.value)


def test_an_encoder_that_does_not_fit_is_one_line() -> None:
    base = OwnGenerator(nn.Linear(3, 5), 3, nn.Linear(5, 4))
    with pytest.raises(EbmtrajError, match="the encoder gave"):
        base.encode(torch.zeros(2, 5), noise())
    with pytest.raises(EbmtrajError, match=r"events of shape \(4,\)"):
        tilt_in_memory(base, torch.zeros(10, 4), torch.zeros(10, 4))


# --- the tilt ---


def gaussian_tilt(objective: str, **settings: object) -> tuple[np.ndarray, torch.Tensor]:
    """Samples and tilts of N(0, 1) in one dimension towards N(1, 0.5^2), and E at -1, 0, 1, 2."""
    base = OwnGenerator(nn.Identity(), latent=1)
    real = 1 + 0.5 * torch.randn(4000, 1, generator=noise(5))
    config = TiltConfig(objective=objective, width=32, pool=4000, **settings)  # type: ignore[arg-type]
    training = TrainingConfig(steps=400, batch=256, check_every=50, warmup=20, learning_rate=3e-3, ema=0.98)
    tilt = tilt_in_memory(base, real[:3000], real[3000:], config, training)
    with torch.no_grad():
        energies = tilt.energy(torch.tensor([[-1.0], [0.0], [1.0], [2.0]]))
    return tilt.sample(4000, noise(2)).numpy(), energies


@pytest.mark.parametrize("objective", ["ratio", "likelihood", pytest.param("both", marks=pytest.mark.slow)])
def test_every_objective_finds_the_tilt_of_a_gaussian(objective: str) -> None:
    chain = LangevinConfig(steps=30, step_size=0.1)
    sampler = LangevinConfig(steps=80, step_size=0.03)
    drawn, energies = gaussian_tilt(objective, chain=chain, sampler=sampler, slower=0.3)
    x = torch.tensor([-1.0, 0.0, 1.0, 2.0])
    truth = 2 * (x - 1) ** 2 - 0.5 * x**2  # -log p / base, up to a constant
    gap = (energies - energies[2]) - (truth - truth[2])
    assert float(gap[1:].abs().max()) < 0.7
    assert drawn.mean() == pytest.approx(1, abs=0.1)
    assert drawn.std() == pytest.approx(0.5, abs=0.1)


def test_mala_samples_the_tilt_exactly() -> None:
    base = OwnGenerator(nn.Identity(), latent=1)
    tilt = make_tilt(base, TiltConfig(method="mala", start=1, pool=100, mala=MALAConfig(steps=200, step_size=0.5)))

    class Shift(nn.Module):
        def forward(self, view: torch.Tensor, context: object = None) -> torch.Tensor:
            return -2 * view.squeeze(1)  # N(0, 1) exp(2 z) is N(2, 1)

    tilt.energy = Shift()  # type: ignore[assignment]
    drawn = tilt.eval().sample_latent(3000, noise())
    assert float(drawn.mean()) == pytest.approx(2, abs=0.06)
    assert float(drawn.std()) == pytest.approx(1, abs=0.05)


def test_resampling_from_the_base_weighs_by_the_tilt_alone() -> None:
    base = lambda: torch.randn(10_000, 1, generator=noise_of)  # noqa: E731
    noise_of = noise(3)
    start, kept = resample_tilt(lambda z, c: -z.squeeze(1), base, 256, generator=noise(4))
    assert float(start.mean()) == pytest.approx(1, abs=0.03)
    assert 60 < float(kept.mean()) < 160  # 256 / e
    start, kept = resample_tilt(lambda z, c: -z.squeeze(1), base, 64, shared=True, generator=noise(4))
    assert float(start.mean()) == pytest.approx(1, abs=0.03)
    assert float(start.std()) == pytest.approx(1, abs=0.03)
    assert float(kept[0]) == pytest.approx(640_000 / np.e, rel=0.1)
    alone, _ = resample_tilt(lambda z, c: -z.squeeze(1), base, 1, generator=noise(4))
    assert abs(float(alone.mean())) < 0.03
    with pytest.raises(EbmtrajError, match="candidates"):
        resample_tilt(lambda z, c: z, base, 0, generator=noise())


def test_the_latent_energy_is_prior_and_tilt() -> None:
    base = OwnGenerator(nn.Linear(2, 3), latent=2)
    view = ViewEnergy((3,), width=8, fourier=(1.0,))
    energy = LatentEnergy(view, base.view, base.log_prior)
    z = torch.randn(6, 2, generator=noise())
    torch.testing.assert_close(energy(z, None), view(base.decode(z)) - base.log_prior(z))


def test_the_generator_goes_where_its_tilt_goes() -> None:
    base, _ = made("vae", (2,), 0)
    tilt = make_tilt(base, TiltConfig(width=8, pool=100)).double()
    assert tilt.base is base
    assert base.shift.dtype == torch.float64
    assert all(not name.startswith("_held") and "coder" not in name for name in tilt.state_dict())


def test_large_images_are_tilted_by_what_convolutions_see() -> None:
    base = make_generator("vae", (1, 34, 34), 255, network={"latent": 3, "width": 16}).eval()
    tilt = make_tilt(base, TiltConfig(on="event", channels=8, pool=100, start=2, sampler=LangevinConfig(steps=2)))
    x = torch.rand(100, 1, 34, 34, generator=noise())
    tilt.prepare(Events(x))
    loss, _ = tilt.stages()[0].loss(Events(x[:8]).at(torch.arange(8)), noise())
    loss.backward()
    assert all(p.grad is not None for p in tilt.energy.parameters())
    assert tilt.eval().sample(3, noise()).shape == (3, 1, 34, 34)


def test_images_beyond_dense_layers_get_a_residual_network() -> None:
    view = ViewEnergy((3, 32, 32), channels=8)
    view.prepare(torch.rand(4, 3, 32, 32, generator=noise()))
    assert not view.dense
    assert view(torch.rand(2, 3, 32, 32, generator=noise())).shape == (2,)


# --- runs ---


@pytest.fixture(scope="module")
def roll(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A VAE of the Swiss roll after 300 steps."""
    path = tmp_path_factory.mktemp("generators") / "roll"
    recipe = load_generator_recipe(None, ["training.steps=300", "training.check_every=100"], {"data": "swiss-roll"})
    train_generator(recipe, path, device="cpu")
    return path


QUICK = ["training.steps=300", "network.pool=5000", "network.start=8", "network.candidates=4", "network.sampler.steps=20"]


def test_a_tilt_betters_a_poor_generator_and_comes_back(roll: Path, tmp_path: Path) -> None:
    train_tilt(tilt_recipe(roll, QUICK), tmp_path / "tilt", device="cpu")
    tilt, header = load_tilt(tmp_path / "tilt")
    assert header["kind"] == "tilt"
    before, after = tilt.base.sample(1000, noise()), tilt.sample(1000, noise())
    roll_toy = toy("swiss-roll")
    assert roll_toy.share_within(after.numpy()) > roll_toy.share_within(before.numpy()) + 0.1
    again, _ = load_tilt(tmp_path / "tilt", load_generator(roll)[0])
    assert torch.equal(again.sample(50, noise()), tilt.sample(50, noise()))


def test_a_tilt_goes_on_to_the_same_bits(roll: Path, tmp_path: Path) -> None:
    recipe = tilt_recipe(roll, ["training.steps=60", "training.check_every=20", "network.pool=2000"])
    whole, _ = train_tilt(recipe, tmp_path / "whole", device="cpu")
    calls = 0

    def stop(progress: object) -> None:
        nonlocal calls
        calls += 1
        if calls == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train_tilt(recipe, tmp_path / "cut", device="cpu", on_progress=stop)
    resumed, _ = train_tilt(recipe, tmp_path / "cut", device="cpu", resume=True)
    assert resumed.validation == whole.validation
    first, second = (load_tilt(tmp_path / name)[0].state_dict() for name in ("whole", "cut"))
    assert all(torch.equal(value, second[key]) for key, value in first.items())


def test_what_can_be_wrong_is_one_line(roll: Path, tmp_path: Path) -> None:
    with pytest.raises(EbmtrajError, match="did you mean glow"):
        load_generator_recipe(None, [], {"model": "glwo"})
    with pytest.raises(EbmtrajError, match="toys are"):
        load_generator_recipe(None, [], {"data": "swiss-rol"})
    with pytest.raises(EbmtrajError, match="for images"):
        make_generator("glow", (2,), 0)
    with pytest.raises(EbmtrajError, match="unknown objective"):
        tilt_recipe(roll, objective="ratoi")
    with pytest.raises(EbmtrajError, match="unknown sampler"):
        tilt_recipe(roll, method="nuts")
    with pytest.raises(EbmtrajError, match="unknown key"):
        tilt_recipe(roll, ["network.widht=3"])
    with pytest.raises(EbmtrajError, match="does not exist"):
        load_generator(tmp_path / "nothing")
    train_tilt(tilt_recipe(roll, ["training.steps=5", "network.pool=200"]), tmp_path / "tilt", device="cpu")
    with pytest.raises(EbmtrajError, match="no generator"):
        load_generator(tmp_path / "tilt")
    with pytest.raises(EbmtrajError, match="no tilt"):
        load_tilt(roll)


def test_sources_say_what_they_hold() -> None:
    source = open_source("25-gaussians")
    assert source.shape == (2,)
    assert source.levels == 0
    np.testing.assert_allclose(source.read("test").numpy(), toy_sample("25-gaussians", 5000, 0, "test"), atol=1e-6)
    with pytest.raises(EbmtrajError, match="unknown split"):
        source.read("tset")
