"""Baselines of images against the truth: exact densities, quadratic discriminants, an evidence bound, run directories."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from threadpoolctl import threadpool_limits

from ebmtraj.datasets.images import ImageStore, open_images
from ebmtraj.errors import EbmtrajError
from ebmtraj.images.data import ImageData
from ebmtraj.images.fit import load_image_recipe, train_image
from ebmtraj.images.registry import load_image_model, make_image_model

NAMES = ("gaussian", "class-gaussian", "gmm", "vae")


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    with threadpool_limits(1):
        yield


@pytest.fixture(scope="module")
def digits(tmp_path_factory: pytest.TempPathFactory) -> ImageStore:
    return open_images("digits", tmp_path_factory.mktemp("images"))


def fitted(store: ImageStore, name: str, conditional: bool = False, **network: object):
    model = make_image_model(name, store.shape, store.classes, conditional=conditional, network=network)
    model.prepare(ImageData.load(store, "train"))
    return model.eval()


def test_a_gaussian_is_the_datas_own(digits: ImageStore) -> None:
    from scipy.stats import multivariate_normal

    model = fitted(digits, "gaussian", floor=0.05)
    train, test = (
        model.unit(torch.from_numpy(digits.read(s).pixels)).flatten(1).double().numpy() for s in ("train", "test")
    )
    truth = multivariate_normal(train.mean(0), np.cov(train.T, bias=True) + 0.05 * np.eye(64)).logpdf(test)
    found = model.log_density(torch.from_numpy(digits.read("test").pixels), 0.0).double().numpy()
    assert np.allclose(found - 32 * np.log(2 * np.pi), truth, atol=0.05)
    drawn = model.sample(4000, torch.Generator().manual_seed(0))
    real = digits.read("train").pixels
    assert drawn.shape == (4000, 1, 8, 8)
    inner = (real.mean(0) > 0.2) & (real.mean(0) < 0.8)  # where clamping to [0, 1] changes little
    assert np.abs(drawn.numpy().mean(0) - real.mean(0))[inner].max() < 0.05


def test_class_gaussians_are_quadratic_discriminants(digits: ImageStore) -> None:
    model = fitted(digits, "class-gaussian", floor=0.2)
    train, test = digits.read("train"), digits.read("test")
    flat = model.unit(torch.from_numpy(train.pixels)).flatten(1).double().numpy()
    x = model.unit(torch.from_numpy(test.pixels)).flatten(1).double().numpy()
    literal = np.empty((len(x), 10))
    for k in range(10):
        rows = flat[train.labels == k]
        covariance = np.cov(rows.T, bias=True) + 0.2 * np.eye(64)
        off = x - rows.mean(0)
        literal[:, k] = np.log(len(rows) / len(flat)) - 0.5 * np.linalg.slogdet(covariance)[1]
        literal[:, k] -= 0.5 * np.einsum("nd,de,ne->n", off, np.linalg.inv(covariance), off)
    found = model.logits(torch.from_numpy(test.pixels)).double().numpy()
    assert np.allclose(found, literal, atol=0.05)
    assert (found.argmax(1) == test.labels).mean() > 0.95
    assert torch.allclose(
        model.log_density(torch.from_numpy(test.pixels), 0.0),
        torch.logsumexp(model.logits(torch.from_numpy(test.pixels)), 1),
        atol=1e-3,
    )
    with pytest.raises(EbmtrajError, match="without labels"):
        model.sample(2, torch.Generator(), torch.tensor([0, 1]))


def test_support_vector_machines_are_scikit_learns(digits: ImageStore, tmp_path: Path) -> None:
    from sklearn.metrics import log_loss
    from sklearn.svm import SVC

    recipe = load_image_recipe(None, ["network.penalty=2.0"], {"model": "svm", "data": digits.path})
    result, _ = train_image(recipe, tmp_path / "run")
    model, header = load_image_model(tmp_path / "run")
    train, test, held_out = (digits.read(split) for split in ("train", "test", "validation"))
    x, there = (model.unit(torch.from_numpy(split.pixels)).flatten(1).numpy() for split in (train, test))
    machine = SVC(C=2.0, gamma=2.0 / 64).fit(x, train.labels == 3)
    logits = model.logits(torch.from_numpy(test.pixels)).numpy()
    ratio = logits[:, 3] / machine.decision_function(there)
    assert np.ptp(ratio) < 1e-2 * ratio.mean()  # one temperature for all
    assert 0 < header["network"]["vectors"] == len(model.centre) < len(x)
    assert (logits.argmax(1) == test.labels).mean() > 0.98
    said = model.logits(torch.from_numpy(held_out.pixels)).softmax(1).numpy()
    assert result.validation == pytest.approx(log_loss(held_out.labels, said), rel=1e-3)
    assert 0.8 < np.mean(said.max(1)) / (said.argmax(1) == held_out.labels).mean() < 1.02  # believable, thanks to it
    few = load_image_recipe(None, ["training.episodes=30"], {"model": "svm", "data": digits.path})
    with pytest.raises(EbmtrajError, match="images of a class"):
        train_image(few, tmp_path / "few")


@pytest.mark.parametrize("conditional", [False, True])
def test_gradients_are_those_of_the_energy(digits: ImageStore, conditional: bool) -> None:
    model = fitted(digits, "gmm", conditional, components=2)
    x = model.unit(torch.from_numpy(digits.read("test").pixels[:5])).double().requires_grad_(True)
    model = model.double()
    label = torch.arange(5) if conditional else None
    slope = torch.autograd.grad(model.energy(x, label, torch.tensor(0.3, dtype=torch.float64)).sum(), x)[0]
    assert torch.allclose(model.gradient(x, label, torch.tensor(0.3, dtype=torch.float64)), slope, rtol=1e-6, atol=1e-8)


def test_a_conditional_mixture_draws_the_class_that_is_asked(digits: ImageStore) -> None:
    model = fitted(digits, "gmm", True, components=1)
    labels = torch.tensor([3] * 200)
    drawn = model.sample(200, torch.Generator().manual_seed(0), labels)
    train = digits.read("train")
    means = np.stack([train.pixels[train.labels == k].mean(0) for k in range(10)])
    away = ((drawn.numpy().mean(0) - means) ** 2).sum((1, 2, 3))
    assert away.argmin() == 3


def test_the_evidence_bound_is_below_the_exact_likelihood(digits: ImageStore) -> None:
    """With a linear decoder p(x) is a Gaussian that can be written down, and no encoder makes the bound exceed it."""
    from scipy.stats import multivariate_normal

    torch.manual_seed(0)
    model = make_image_model("vae", (1, 2, 2), ("a",), network={"latent": 2, "width": 4, "depth": 1, "beta": 1.0})
    weight = torch.randn(4, 2)
    model.decode = lambda z, label: (z @ weight.T).view(-1, 1, 2, 2)  # type: ignore[method-assign]
    x = torch.rand(3, 1, 2, 2)
    from ebmtraj.images.data import ImageBatch

    batch = ImageBatch(x.repeat(1000, 1, 1, 1), None, torch.arange(3000))

    @torch.no_grad()
    def bound_now() -> float:
        loss, _ = model._loss(batch, torch.Generator().manual_seed(0))
        return float(-4 * loss - 2 * np.log(2 * np.pi))  # the loss is a pixel's, and leaves the constant out

    bound = bound_now()
    noise = float(model._noise().detach().exp()) ** 2
    exact = multivariate_normal(np.zeros(4), (weight @ weight.T).numpy() + noise * np.eye(4)).logpdf(x.flatten(1).numpy())
    assert bound < exact.mean()

    def posterior(unit: torch.Tensor, label: object) -> tuple[torch.Tensor, torch.Tensor]:
        precision = torch.eye(2) + weight.T @ weight / noise
        mean = unit.flatten(1) @ weight @ torch.linalg.inv(precision) / noise
        return mean, torch.zeros_like(mean) + 0.5 * torch.log(1 / torch.diagonal(precision))

    model.encode = posterior  # type: ignore[method-assign]  # the best Gaussian whose dimensions are independent
    assert bound < bound_now() < exact.mean() + 0.05


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("conditional", [False, True])
def test_run_directories(name: str, conditional: bool, digits: ImageStore, tmp_path: Path) -> None:
    quick = {"training.steps": 20, "training.check_every": 10, "training.batch": 16} if name == "vae" else {}
    if name == "gmm":
        quick = {"network.components": 1}
    recipe = load_image_recipe(
        None, [f"{k}={v}" for k, v in quick.items()], {"model": name, "data": digits.path, "conditional": conditional}
    )
    result, _ = train_image(recipe, tmp_path / "run")
    assert np.isfinite(result.validation)
    model, header = load_image_model(tmp_path / "run")
    assert header["steps"] == quick.get("training.steps", 0)
    labels = torch.arange(10) if conditional else None
    drawn = model.sample(10, torch.Generator().manual_seed(0), labels)
    assert drawn.shape == (10, 1, 8, 8)
    assert 0 <= drawn.min() <= drawn.max() <= 1
    assert torch.equal(drawn, model.sample(10, torch.Generator().manual_seed(0), labels))
    again, _ = train_image(recipe, tmp_path / "run", resume=True)
    assert again.validation == pytest.approx(result.validation)
    with pytest.raises(EbmtrajError, match="exists"):
        train_image(recipe, tmp_path / "run")


@pytest.mark.parametrize("shape", [(1, 28, 28), (3, 32, 32), (3, 64, 64)])
def test_the_autoencoder_takes_every_size(shape: tuple[int, int, int]) -> None:
    model = make_image_model("vae", shape, ("a", "b"), conditional=True, network={"width": 32})
    from ebmtraj.images.data import ImageBatch

    batch = ImageBatch(torch.rand(4, *shape), torch.tensor([0, 1, 0, 1]), torch.arange(4))
    loss, _ = model._loss(batch, torch.Generator().manual_seed(0))
    loss.backward()
    assert all(p.grad is not None for p in model.net.parameters())
    assert model.eval().sample(2, torch.Generator(), torch.tensor([0, 1])).shape == (2, *shape)


def test_settings_out_of_range_are_refused(digits: ImageStore) -> None:
    wrong = (("vae", {"latent": 0}), ("gaussian", {"floor": 0.0}), ("gmm", {"components": 0}), ("svm", {"gamma": 0.0}))
    for name, setting in wrong:
        with pytest.raises(EbmtrajError, match="above 0"):
            make_image_model(name, digits.shape, digits.classes, network=setting)
