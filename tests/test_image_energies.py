"""Image energies against the truth, and what every model of images must do."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from threadpoolctl import threadpool_limits
from torch import Tensor

from ebmtraj.datasets.images import ImageStore, open_images
from ebmtraj.energies.image import ImageEnergy, MLPTilt
from ebmtraj.energies.image_base import MixtureBase, UnitGaussian
from ebmtraj.energies.image_conv import NetworkTilt, PlainEnergy
from ebmtraj.errors import DivergedError, EbmtrajError
from ebmtraj.images.data import ImageBatch, ImageData
from ebmtraj.images.draw import draw
from ebmtraj.images.fit import load_image_recipe, train_image
from ebmtraj.images.model import ImageModel
from ebmtraj.images.pcd import PCDModel, Snapshots
from ebmtraj.images.registry import ENERGIES, MODELS, load_image_model, make_image_model
from ebmtraj.nets.conv import ConvNet
from ebmtraj.nets.resnet import ResNet
from ebmtraj.runs import Run
from ebmtraj.training.guard import Guard, GuardConfig
from ebmtraj.training.losses import NoiseConfig, denoising_score_matching

SIZES = [(1, 8, 8), (1, 28, 28), (3, 32, 32), (3, 64, 64), (3, 128, 128)]
TINY = {  # settings under which a model of any kind takes moments
    "dsm": {"width": 16},
    "field": {"width": 16},
    "concept": {"width": 8, "evidence_width": 8, "sampler": {"steps": 1, "ladder": {"levels": 4}}},
    "pcd": {"channels": 4, "buffer": 32, "sampler": {"steps": 3, "step_size": 0.2, "noise": 0.01}, "sample_steps": 3},
}


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    with threadpool_limits(1):
        yield


@pytest.fixture(scope="module")
def digits(tmp_path_factory: pytest.TempPathFactory) -> ImageStore:
    return open_images("digits", tmp_path_factory.mktemp("images"))


def noise(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.empty(shape).normal_(generator=noise(seed))


def stir(module: torch.nn.Module) -> torch.nn.Module:
    """Weights away from where they start, so that nothing hides behind a 0."""
    for i, p in enumerate(module.parameters()):
        p.data.add_(0.2 * normal(*p.shape, seed=i) / max(1, p.shape[-1] if p.dim() else 1) ** 0.5)
    return module


def energies() -> list[tuple[str, ImageEnergy, int]]:
    shape = (1, 8, 8)
    mixture = MixtureBase(shape, 2, 3)
    mixture.fit(normal(120, *shape), torch.arange(120) % 3, 0.1)
    return [
        ("mlp", ImageEnergy(UnitGaussian(), MLPTilt(shape, 0, width=24, depth=3)), 0),
        ("mlp, classes", ImageEnergy(UnitGaussian(), MLPTilt(shape, 3, width=24, depth=2)), 3),
        ("mlp, classes, mixture", ImageEnergy(mixture, MLPTilt(shape, 3, width=24, depth=1)), 3),
        ("conv", ImageEnergy(UnitGaussian(), NetworkTilt(ConvNet(shape, 1, classes=3, levels=True, width=8))), 3),
        ("resnet", ImageEnergy(mixture, NetworkTilt(ResNet(shape, 1, classes=3, levels=True, width=8, normalise=True))), 3),
    ]


@pytest.mark.parametrize("case", range(5))
def test_the_closed_form_is_the_gradient(case: int) -> None:
    name, energy, classes = energies()[case]
    stir(energy.tilt)
    x, level = 2 * normal(6, 1, 8, 8, seed=1), torch.tensor([0.02, 0.1, 0.5, 1.0, 5.0, 20.0])
    for label in [None] + [torch.tensor([0, 1, 2, -1, 0, 1])] * bool(classes):
        asked = x.clone().requires_grad_(True)
        truth = torch.autograd.grad(energy(asked, label, level).sum(), asked)[0]
        with torch.no_grad():
            found = energy.gradient(x, label, level)
        scale = truth.flatten(1).norm(dim=1).clamp_min(1).view(-1, 1, 1, 1)
        assert ((found - truth) / scale).abs().max() < 1e-4, name
        assert torch.isfinite(energy(x, label, level)).all()
    if classes:  # the class must matter, and a hidden one is as none
        labels = [torch.full((6,), k) for k in (0, 1, -1)]
        values = [energy(x, label, level) for label in labels]
        assert (values[0] - values[1]).abs().max() > 1e-3
        assert torch.allclose(values[2], energy(x, None, level), atol=1e-4)


def test_a_mixture_under_noise_is_the_convolved_density() -> None:
    data, label = 1.5 * normal(300, 1, 2, 2) + 1, torch.arange(300) % 2
    data[label == 1] -= 3
    base = MixtureBase((1, 2, 2), 2, 2)
    base.fit(data, label, 0.05)
    x, level = 2 * normal(50, 1, 2, 2, seed=3), 0.7
    covariance = base.axes @ torch.diag_embed(base.variance + level**2) @ base.axes.mT
    each = torch.distributions.MultivariateNormal(base.mean, covariance).log_prob(x.flatten(1)[:, None]) + base.weight
    constant = 0.5 * 4 * math.log(2 * math.pi)
    truth = torch.logsumexp(each, 1) + constant
    assert torch.allclose(-base(x, None, torch.tensor(level)), truth, atol=1e-4)
    assert base.weight.exp().sum() == pytest.approx(1, abs=1e-5)
    own = torch.logsumexp(each[:, base.owner == 1], 1) + constant
    assert torch.allclose(-base(x, torch.ones(50, dtype=torch.int64), torch.tensor(level)), own, atol=1e-4)
    drawn = base.sample(20_000, torch.zeros(20_000, dtype=torch.int64), 0.0, noise())
    real = data[label == 0].flatten(1)
    assert torch.allclose(drawn.mean(0), real.mean(0), atol=0.06)
    assert torch.allclose(drawn.T.cov(), real.T.cov(), atol=0.2)


def test_score_matching_is_least_at_the_truth() -> None:
    """Of a Gaussian that the base knows, no tilt is the best tilt, and its loss is the error of the best denoiser."""
    spread = torch.tensor([2.0, 0.5, 1.0, 0.1]).view(1, 2, 2)
    data = spread * normal(20_000, 1, 2, 2)
    base = MixtureBase((1, 2, 2), 1, 0)
    base.fit(data, None, 1e-6)
    energy = ImageEnergy(base, MLPTilt((1, 2, 2), 0, width=8, depth=1))
    level = 0.5
    config = NoiseConfig(mean=math.log(level), std=0.0)
    found = denoising_score_matching(energy, data, None, config, noise(), base.gradient).mean().detach()
    posterior = (spread**2 * level**2 / (spread**2 + level**2)).mean()
    assert float(found) == pytest.approx(float(posterior) * (1 + level**2) / level**2, rel=0.03)
    stir(energy.tilt)
    assert denoising_score_matching(energy, data, None, config, noise(), base.gradient).mean() > 1.01 * found


@pytest.mark.parametrize("shape", SIZES, ids=str)
@pytest.mark.parametrize("name", ENERGIES)
def test_a_step_and_a_chain_at_every_size(name: str, shape: tuple[int, int, int]) -> None:
    small = {"channels": 4, "network": "resnet"}
    own = {"sampler": {"ladder": {"levels": 3}}} if name == "dsm" else {**TINY["pcd"], "spectral": True}
    model = make_image_model(name, shape, ("a", "b"), conditional=True, network={**own, **small})
    batch = ImageBatch(torch.rand((2, *shape), generator=noise()), torch.tensor([0, 1]), torch.arange(2))
    model.train()
    stage = model.stages()[0]
    optimiser = torch.optim.Adam(stage.module.parameters(), 1e-3)
    before = [p.clone() for p in stage.module.parameters()]
    loss, _ = stage.loss(batch, noise())
    loss.backward()
    optimiser.step()
    changed = [bool((p != old).any()) for p, old in zip(stage.module.parameters(), before, strict=True)]
    assert all(changed)
    pixels = model.eval().sample(2, noise(), torch.tensor([1, 0]))
    assert pixels.shape == (2, *shape)
    assert 0 <= float(pixels.min()) <= float(pixels.max()) <= 1


@pytest.mark.parametrize("conditional", [False, True])
@pytest.mark.parametrize("name", MODELS)
def test_every_model(name: str, conditional: bool, digits: ImageStore, tmp_path: Path) -> None:
    """Trains in a run directory, comes back from there, and keeps the contract of `ImageModel`."""
    given = {"model": name, "conditional": conditional, "data": digits.path}
    settings = [
        "training.steps=2", "training.batch=16", "training.check_every=1", "training.validation=16", "training.log_every=1"
    ]  # fmt: skip
    recipe = load_image_recipe(None, settings, given, {"network": TINY.get(name, {})})
    train_image(recipe, tmp_path / "run")
    model, header = load_image_model(tmp_path / "run")
    assert header["kind"] == "image"
    assert header["model"] == name
    assert not model.training
    assert model.shape == (1, 8, 8)
    assert model.classes == tuple("0123456789")
    assert model.conditional is conditional or model.labelled
    conditional = model.conditional
    x, label = ImageData.load(digits, "test", limit=12).pixels, torch.arange(12) % 10
    assert torch.allclose(model.pixels(model.unit(x)), x, atol=1e-5)
    with pytest.raises(EbmtrajError, match="trained on"):
        model.unit(torch.zeros(2, 1, 9, 9))
    if type(model).sample is not ImageModel.sample:
        _samples(model, conditional)
    if type(model).gradient is not ImageModel.gradient:
        unit, level = model.unit(x), torch.tensor(0.5)
        slope = model.gradient(unit, label if conditional else None, level)
        assert slope.shape == x.shape
        assert bool(slope.isfinite().all())
        if name != "field":
            asked = unit.clone().requires_grad_(True)
            values = model.energy(asked, label if conditional else None, level)
            assert values.shape == (12,)
            truth = torch.autograd.grad(values.sum(), asked)[0]
            assert torch.allclose(slope, truth, rtol=1e-3, atol=1e-3 * float(truth.abs().max()))
            assert torch.allclose(model.log_density(x, 0.5), -model.energy(unit, None, level), atol=1e-4)
    if model.classifies:
        assert model.logits(x).shape == (12, 10)
    else:
        with pytest.raises(EbmtrajError, match="does not classify"):
            model.logits(x)


def _samples(model: ImageModel, conditional: bool) -> None:
    asked = torch.tensor([3, 3, 7, 0]) if conditional else None
    first, again, other = (model.sample(4, noise(seed), asked) for seed in (1, 1, 2))
    assert first.shape == (4, 1, 8, 8)
    assert 0 <= float(first.min()) <= float(first.max()) <= 1
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    if conditional:
        with pytest.raises(EbmtrajError, match="from 0 to 9"):
            model.sample(1, noise(), torch.tensor([10]))
        with pytest.raises(EbmtrajError, match="4 for 3 images"):
            model.sample(3, noise(), asked)
        drawn = draw(model, 20, seed=0, batch=7)
        if drawn.labels is None:
            assert model.labelled  # which has a p(x), too
            return
        assert (torch.bincount(torch.from_numpy(drawn.labels)) == 2).all()
    else:
        with pytest.raises(EbmtrajError, match="without labels"):
            model.sample(1, noise(), torch.tensor([0]))


def test_labels_are_needed_for_a_conditional_model() -> None:
    with pytest.raises(EbmtrajError, match="no labels; drop --conditional"):
        make_image_model("dsm", (1, 8, 8), (), conditional=True)
    with pytest.raises(EbmtrajError, match="did you mean field"):
        make_image_model("fielt", (1, 8, 8), ())
    with pytest.raises(EbmtrajError, match="at most 1024"):
        make_image_model("dsm", (3, 64, 64), (), network={"base": "mixture"})


def test_training_learns_and_keeps_the_best_validation(digits: ImageStore, tmp_path: Path) -> None:
    """On 60 images the energy soon knows them by heart: the weights that are kept are from before."""
    settings = [
        "training.episodes=60", "training.steps=360", "training.batch=32", "training.check_every=30", "training.ema=0.9",
        "training.warmup=10", "training.learning_rate=0.003", "training.constant=1.0", "network.width=128",
        "network.base=unit",
    ]  # fmt: skip
    recipe = load_image_recipe(None, settings, {"model": "dsm", "data": digits.path})
    result, _ = train_image(recipe, tmp_path / "run")
    losses = [row["validation"] for row in Run(tmp_path / "run").read_metrics() if "validation" in row]
    assert result.validation == pytest.approx(min(losses))
    assert losses[0] > 1.1 * min(losses)
    assert losses[-1] > 1.05 * min(losses)
    model, header = load_image_model(tmp_path / "run")
    held_out = ImageData.load(digits, "validation")
    found, _ = model.stages()[0].loss(held_out.at(torch.arange(len(held_out))), noise(1234))
    assert float(found.detach()) == pytest.approx(min(losses), rel=0.1)
    assert header["validation"] == pytest.approx(min(losses))


@pytest.mark.parametrize("name", ["dsm", "pcd"])
def test_a_resumed_run_ends_in_the_same_bits(name: str, digits: ImageStore, tmp_path: Path) -> None:
    network = TINY[name] | ({"snapshots": 3, "snapshot_every": 1} if name == "pcd" else {})
    settings = ["training.steps=6", "training.batch=16", "training.check_every=2", "training.validation=16"]
    recipe = load_image_recipe(
        None, settings, {"model": name, "data": digits.path, "conditional": True}, {"network": network}
    )

    class Stop(Exception):
        pass

    def interrupt(progress: object) -> None:
        if getattr(progress, "step", 0) == 4:
            raise Stop

    train_image(recipe, tmp_path / "whole")
    with pytest.raises(Stop):
        train_image(recipe, tmp_path / "cut", on_progress=interrupt)
    train_image(recipe, tmp_path / "cut", resume=True)
    whole, cut = (load_image_model(tmp_path / each)[0].state_dict() for each in ("whole", "cut"))
    assert all(torch.equal(whole[key], cut[key]) for key in whole)


def test_the_replay_buffer_keeps_images_with_their_labels(digits: ImageStore) -> None:
    """Negatives are of the class whose chain they go on from, and samples from the buffer of the class asked for."""
    model = make_image_model("pcd", (1, 8, 8), digits.classes, conditional=True, network={**TINY["pcd"], "keep": 1.0})
    assert isinstance(model, PCDModel)
    data = ImageData.load(digits, "train")
    model.train()
    for k in (3, 8):
        rows = data.at(torch.nonzero(data.label == k).squeeze(1)[:8])
        model._loss(rows, noise(k))
    assert set(model.buffer.items[: model.buffer.count, -1].long().tolist()) == {
        3
    }  # the second batch went on from the first
    model._keep(data)
    assert model.sample(5, noise(), torch.full((5,), 3), buffer=True).shape == (5, 1, 8, 8)
    with pytest.raises(EbmtrajError, match="use --fresh"):
        model.sample(5, noise(), torch.full((5,), 4), buffer=True)


@pytest.mark.parametrize("name", ["pcd", "jem-cd"])
def test_chains_that_set_out_from_far_away_are_noticed(name: str, digits: ImageStore) -> None:
    """Though the projection to pixels hides them from the loss."""
    tiny = TINY["pcd"] if name == "pcd" else {"width": 8, "buffer": 32, "sampler": {"steps": 1}}
    model = make_image_model(name, (1, 8, 8), digits.classes, conditional=False, network=tiny)
    rows, guard = ImageData.load(digits, "train").at(torch.arange(16)), Guard(GuardConfig())
    model.train()
    for faulty in (False, True):
        if faulty:
            tensors, numbers = model.extra_state()
            model.load_extra_state({key: torch.full_like(tensor, 1e30) for key, tensor in tensors.items()}, numbers)
        loss, logs = model.stages()[0].loss(rows, noise())
        assert loss.isfinite()
        guard.watch(outermost=logs["outermost"])
        assert (guard.look() is not None) is faulty


def test_snapshots_average_past_energies() -> None:
    plain = PlainEnergy((1, 8, 8), 0, network="conv", channels=4, spectral=True)
    group, x, values = Snapshots(plain, 2), normal(5, 1, 8, 8), []
    plain.eval()
    for step in range(3):
        values.append(plain(x).detach())
        if step < 2:
            group.take()
        stir(plain)
        plain.net.output.parametrizations.weight.original.data.mul_(-1.5 + step)  # type: ignore[union-attr]
    values.append(plain(x).detach())
    truth = (values[0] + values[1] + values[3]) / 3  # two past ones, and the present one, which is not a snapshot
    assert torch.allclose(group(x), truth, atol=1e-4)
    assert (group(x) - values[3]).abs().max() > 1e-3


@pytest.mark.parametrize("name", ENERGIES)
def test_the_guard_stops_what_diverges(name: str, digits: ImageStore, tmp_path: Path) -> None:
    """Rates far too high: rolled back, tried again with less, then given up in one line; never a NaN in the weights."""
    settings = ["training.steps=40", "training.batch=16", "training.log_every=5", "training.check_every=20",
                "training.learning_rate=1e6", "training.warmup=1", "training.validation=16"]  # fmt: skip
    recipe = load_image_recipe(None, settings, {"model": name, "data": digits.path}, {"network": TINY[name]})
    with pytest.raises(DivergedError, match="again after 3 roll-backs; begin anew with a lower rate"):
        train_image(recipe, tmp_path / "run")
    rows = Run(tmp_path / "run").read_metrics()
    assert sum(row.get("event") == "rolled back" for row in rows) == 3
    assert not (tmp_path / "run" / "checkpoints" / "best.safetensors").exists()


def test_given_labels_one_gaussian_of_all_classes_is_tilted(digits: ImageStore) -> None:
    data = ImageData.load(digits, "train")
    told = make_image_model("dsm", digits.shape, digits.classes, conditional=True)
    plain = make_image_model("gaussian", digits.shape, digits.classes, network={"floor": told.config.floor})
    for model in (told, plain):
        model.prepare(data)
    x, level = told.unit(data.pixels[:9]), torch.tensor(0.4)
    label, other = torch.arange(9), torch.arange(9).flip(0)
    assert torch.allclose(told.net.base(x, label, level), plain.energy(x, None, level), rtol=1e-4)  # type: ignore[operator, union-attr]
    assert torch.equal(told.net.base(x, label, level), told.net.base(x, other, level))  # type: ignore[operator, union-attr]
    inverted = plain.log_density(1 - data.pixels, 0.3)
    assert float(inverted.max()) < float(plain.log_density(data.pixels, 0.3).min())
    large = make_image_model("dsm", (3, 32, 32), digits.classes, conditional=True)
    assert type(large.net.base).__name__ == "UnitGaussian"  # type: ignore[union-attr]
