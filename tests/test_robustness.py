"""Attacks against linear classifiers, whose answer is known, and through refinement against the sampler's own chain."""

from __future__ import annotations

import dataclasses
import importlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from commands import call
from torch import Tensor

from ebmtraj.datasets.images import ImageStore, open_images
from ebmtraj.device import no_denormals
from ebmtraj.errors import EbmtrajError
from ebmtraj.images.adversary import adversarial
from ebmtraj.images.attacks import auto_attack, boundary_attack, square_attack
from ebmtraj.images.data import ImageData
from ebmtraj.images.model import ImageModel
from ebmtraj.images.registry import make_image_model
from ebmtraj.images.robustness import (
    LOSSES,
    AttackConfig,
    Defence,
    classify,
    differentiable,
    mean_log_p,
    objective,
    pgd,
    project,
)
from ebmtraj.report.robustness import RobustnessConfig, measure_robustness

WEIGHT = torch.randn(16, generator=torch.Generator().manual_seed(3))


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    """As the package trains unless told otherwise."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    with no_denormals():
        yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def store() -> ImageStore:
    return open_images("digits")


def joint(store: ImageStore, network: str = "mlp") -> ImageModel:
    """A joint energy with weights that count, of class Gaussians: it classifies well."""
    torch.manual_seed(0)
    settings: dict[str, Any] = {"base": "classes", "components": 1, "width": 16, "channels": 8, "network": network}
    model = make_image_model("jem", store.shape, store.classes, network=settings)
    model.prepare(ImageData.load(store, "train"))
    for name, weights in model.named_parameters():
        if "output" in name:
            torch.nn.init.normal_(weights, std=0.1)
    return model.eval().requires_grad_(False)


def noise(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def linear(x: Tensor) -> Tensor:
    """Log p(y | x) of three classes, of which the first two differ by 10 w . (x - 1/2) and the third never wins."""
    lead = 10 * (x.flatten(1) - 0.5) @ WEIGHT
    return torch.stack((lead, -lead, torch.full_like(lead, -1e3)), 1).log_softmax(-1)


def linear_images(count: int = 40) -> tuple[Tensor, Tensor]:
    """Images near 1/2, so that no pixel reaches 0 or 1, and what they are."""
    x = 0.5 + 0.1 * torch.randn(count, 1, 4, 4, generator=noise(1)).clamp(-2, 2)
    return x, linear(x).argmax(1)


def exact(x: Tensor, norm: str) -> Tensor:
    """How far each image is from the other class, `(B,)`."""
    size = WEIGHT.abs().sum() if norm == "linf" else WEIGHT.norm()
    return ((x.flatten(1) - 0.5) @ WEIGHT).abs() / size


@pytest.mark.parametrize("norm", ["linf", "l2"])
@pytest.mark.parametrize("loss", LOSSES)
def test_pgd_finds_the_exact_boundary_of_a_linear_classifier(norm: Any, loss: str) -> None:
    x, y = linear_images()
    eps = float(exact(x, norm).median())
    found = pgd(lambda p: linear(p)[None], x, y, eps, AttackConfig(norm=norm), loss, noise())
    change = (found - x).flatten(1)
    size = change.abs().amax(1) if norm == "linf" else change.norm(dim=1)
    assert float(size.max()) <= eps * 1.0001
    fooled, distance = linear(found).argmax(1) != y, exact(x, norm)
    assert bool(fooled[distance < 0.98 * eps].all())
    assert not bool(fooled[distance > 1.001 * eps].any())


def test_library_attacks_find_the_same_boundary() -> None:
    x, y = linear_images(12)
    for norm in ("linf", "l2"):
        distance = exact(x, norm)
        eps = float(distance.median())
        found = auto_attack(lambda p: linear(p)[None], x, y, eps, norm, 0, steps=20, random=True)
        assert bool((linear(found).argmax(1) != y)[distance < 0.95 * eps].all())
        assert not bool((linear(found).argmax(1) != y)[distance > 1.01 * eps].any())
    far = float(exact(x, "linf").max()) * 2.5
    found = square_attack(linear, x, y, far, "linf", 0, 500)
    assert float((linear(found).argmax(1) != y).float().mean()) > 0.7
    assert float((found - x).abs().max()) <= far * 1.0001
    near = boundary_attack(linear, x, y, 0, 300)
    assert bool((linear(near).argmax(1) != y).all())
    ratio = (near - x).flatten(1).norm(dim=1) / exact(x, "l2")
    assert float(ratio.median()) < 3
    assert float(ratio.min()) > 0.99  # none is nearer than the boundary


def test_the_boundary_attack_starts_where_noise_is_by_place() -> None:
    """A start that fools in its own place need not fool in that of the image which it is for."""
    x, y = linear_images(40)

    def predict(images: Tensor) -> Tensor:
        return linear(images + 0.03 * torch.randn(images.shape, generator=noise(2)))

    right = predict(x).argmax(1) == y
    assert 0 < int((~right).sum()) < 10
    near = boundary_attack(predict, x, y, 0, 50)
    moved = (near != x).flatten(1).any(1)
    assert float(moved[right].float().mean()) > 0.7
    assert float((predict(near[moved]).argmax(1) != y[moved]).float().mean()) == 1  # asked as the attack asked
    assert torch.equal(near[~right], x[~right])
    same = torch.zeros_like(y)
    alike = predict(x).argmax(1) == 0
    assert torch.equal(boundary_attack(predict, x[alike], same[alike], 0, 5)[:0], x[:0])  # nothing to start from: no fault


@pytest.mark.parametrize("network", ["mlp", "conv"])
@pytest.mark.parametrize("steps", [0, 1, 10])
def test_the_attacker_sees_the_chain_that_the_defender_runs(steps: int, network: str, store: ImageStore) -> None:
    model, defence = joint(store, network), Defence(steps=steps, level=0.8, draws=3)
    x = ImageData.load(store, "test", limit=4).pixels
    own = classify(model, x, defence, noise(5))
    theirs = mean_log_p(differentiable(model, defence, noise(5))(x.requires_grad_(True)))
    assert torch.allclose(own, theirs, rtol=1e-4, atol=1e-4)
    assert own.exp().sum(1) == pytest.approx(torch.ones(4), abs=1e-4)
    if steps:
        assert not torch.allclose(own, classify(model, x, Defence(steps=0), noise(5)), atol=1e-3)


@pytest.mark.parametrize("network", ["mlp", "conv"])
def test_gradients_through_the_chain_are_its_true_ones(network: str, store: ImageStore) -> None:
    model, defence = joint(store, network).double(), Defence(steps=4, level=0.8, draws=2)
    x = ImageData.load(store, "test", limit=3)
    pixels, label = x.pixels.double(), x.label
    assert label is not None
    way = torch.randn(pixels.shape, generator=noise(2)).double()

    def value(p: Tensor) -> Tensor:
        return objective(differentiable(model, defence, noise(5))(p), label, "margin").sum()

    p = pixels.requires_grad_(True)
    (slope,) = torch.autograd.grad(value(p), p)
    with torch.no_grad():
        step = 1e-5
        numeric = (value(p + step * way) - value(p - step * way)) / (2 * step)
    assert float((slope * way).sum()) == pytest.approx(float(numeric), rel=1e-3)


def test_what_is_projected_is_the_nearest_within_reach() -> None:
    x, around = torch.full((2, 1, 2, 2), 0.9), torch.full((2, 1, 2, 2), 0.5)
    assert project(x, around, 0.1, "linf").flatten().tolist() == pytest.approx([0.6] * 8)
    assert project(x, around, 0.2, "l2").flatten().tolist() == pytest.approx([0.6] * 8)
    assert float(project(x + 3, around, 10.0, "linf").max()) == 1


def test_accuracy_falls_with_distance_and_no_attack_is_left_out(store: ImageStore) -> None:
    config = RobustnessConfig(
        attack=AttackConfig(steps=6, draws=2),
        eps=(0.3, 0.02),
        refine=(0, 2),
        attacks=("pgd", "transfer", "square"),
        defence=Defence(draws=2),
        queries=15,
        limit=24,
    )
    found = measure_robustness(joint(store), store, config)
    for row in found["refine"].values():
        assert list(row["pgd"]) == ["0.02", "0.3"]
        assert row["clean"] > 0.6
        assert row["clean"] >= row["pgd"]["0.02"] >= row["pgd"]["0.3"]
        assert row["pgd"]["0.3"] < row["clean"] - 0.3
        assert row["lowest"] <= min(row["pgd"]["0.3"], row["transfer"], row["square"])
    assert found["protocol"]["images"] == 24


def test_adversarial_images_of_training_stay_near_and_are_harder() -> None:
    x, y = linear_images()
    found = adversarial(linear, x, y, 0.05, noise())
    assert float((found - x).abs().max()) <= 0.05 + 1e-6
    before, after = (linear(p)[torch.arange(len(y)), y] for p in (x, found))
    assert bool((after < before).all())


def test_an_adversary_in_training_makes_a_joint_model_withstand_more(store: ImageStore) -> None:
    data = ImageData.load(store, "train")
    left = {}
    for eps in (0.0, 0.2):
        network = {"base": "unit", "width": 64, "adversary": eps, "adversary_weight": 2.0, "classification": 1.0}
        model = make_image_model("jem", store.shape, store.classes, network=network)
        model.prepare(data)
        model.train()
        optimiser, generator = torch.optim.Adam(model.net.parameters(), 3e-3), noise()
        for _ in range(60):
            loss, _ = model.stages()[0].loss(data.sample(64, generator), generator)
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
        config = RobustnessConfig(AttackConfig(steps=8, draws=1), (0.2,), (0,), ("pgd",), limit=100)
        left[eps] = measure_robustness(model.eval(), store, config)["refine"]["0"]["pgd"]["0.2"]
    assert left[0.2] > left[0.0] + 0.1


def test_what_can_not_be_attacked_is_said_in_one_line(
    store: ImageStore, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    model = make_image_model("dsm", store.shape, store.classes)
    with pytest.raises(EbmtrajError, match="does not classify"):
        measure_robustness(model, store, RobustnessConfig(attacks=("pgd",)))
    plain = make_image_model("classifier", store.shape, store.classes)
    with pytest.raises(EbmtrajError, match="--refine 0"):
        measure_robustness(plain, store, RobustnessConfig(attacks=("pgd",)))
    for wrong, said in (
        ({"attacks": ("fgsm",)}, "unknown attack"),
        ({"eps": (-1.0,)}, "above 0"),
        ({"refine": ()}, "at least"),
    ):
        with pytest.raises(EbmtrajError, match=said):
            dataclasses.replace(RobustnessConfig(), **wrong)
    with pytest.raises(EbmtrajError, match="0 < low < level"):
        Defence(level=0.01)

    def missing(name: str) -> None:
        raise ImportError(name)

    monkeypatch.setattr(importlib, "import_module", missing)
    with pytest.raises(EbmtrajError, match=r"pip install 'ebmtraj\[attacks\]'"):
        measure_robustness(plain, store, RobustnessConfig(attacks=("boundary",), refine=(0,)))


def test_command_attack(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    short = ("--set", "training.steps=3", "--set", "network.width=16")
    jem, dsm = tmp_path / "jem", tmp_path / "dsm"
    assert call(capfd, "train", "jem", "--data", "digits", "--run", jem, *short, "--set", "network.base=gaussian")[0] == 0
    assert call(capfd, "train", "image", "--data", "digits", "--run", dsm, *short)[0] == 0
    words = ("--eps", "0.1", "--refine", "0,2", "--attacks", "pgd,boundary", "--limit", 6, "--steps", 2, "--queries", 5)
    code, out, err = call(capfd, "attack", jem, *words, "--surrogate", jem, "--json")
    assert code == 0, err
    found = json.loads(out)
    assert set(found["refine"]) == {"0", "2"}
    assert found["refine"]["2"]["pgd"]["0.1"] <= found["refine"]["2"]["clean"]
    for words, said in (
        ((dsm,), "does not classify"),
        ((jem, "--norm", "l1"), "use linf or l2"),
        ((jem, "--eps", "near"), "give numbers with commas"),
        ((jem, "--attacks", "fgsm"), "unknown attack 'fgsm'"),
    ):
        code, _, err = call(capfd, "attack", *words)
        assert code == 2
        assert said in err
        assert err.startswith("error: ")
        assert err.count("\n") == 1
