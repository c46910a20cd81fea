"""Joint energies against their own definition and a density that is known, and joint models through the command line."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from commands import call
from torch import Tensor

from ebmtraj.datasets.images import open_images
from ebmtraj.energies.image_base import MixtureBase, UnitGaussian
from ebmtraj.energies.joint import Frame, Guided, JointEnergy, LogitEnergy, MLPJointTilt, joint_tilt
from ebmtraj.errors import EbmtrajError
from ebmtraj.images.data import ImageData
from ebmtraj.images.labels import kept_labels
from ebmtraj.images.registry import JOINT, load_image_model, make_image_model

SHAPE, CLASSES = (1, 3, 4), 3
BASES = {"unit": (0, 0), "gaussian": (1, 0), "mixture": (4, 0), "classes": (2, CLASSES)}


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """As the package trains unless told otherwise."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def events(count: int = 200, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Events and labels, float64; the classes lie apart."""
    generator = torch.Generator().manual_seed(seed)
    label = torch.randint(CLASSES, (count,), generator=generator)
    x = torch.randn(count, *SHAPE, generator=generator, dtype=torch.float64)
    return x + 1.5 * label.view(-1, 1, 1, 1), label


def joint_energy(base: str, *, factored: bool = False, output: float = 0.3) -> JointEnergy:
    """An energy with weights that count."""
    torch.manual_seed(0)
    x, label = events()
    components, classes = BASES[base]
    own: UnitGaussian | MixtureBase = UnitGaussian() if base == "unit" else MixtureBase(SHAPE, components, classes)
    frame = Frame(SHAPE, base != "unit")
    energy = JointEnergy(own, frame, MLPJointTilt(SHAPE, CLASSES, width=16, depth=2), factored=factored).double()
    if isinstance(own, MixtureBase):
        own.fit(x, label if classes else None, 0.05)
        frame.fit(x, 0.05)
    torch.nn.init.normal_(energy.tilt.output.weight, std=output)  # type: ignore[union-attr, arg-type]
    return energy


@pytest.mark.parametrize("factored", [False, True])
@pytest.mark.parametrize("base", BASES)
def test_joint_energy_is_its_logits_and_its_gradient_theirs(base: str, factored: bool) -> None:
    energy = joint_energy(base, factored=factored)
    x, label = events(6, seed=1)
    label[1] = -1
    level = torch.tensor([0.05, 0.3, 0.5, 1.0, 3.0, 20.0], dtype=torch.float64)
    logits = energy.logits(x, level)
    assert logits.shape == (6, CLASSES)
    assert torch.allclose(energy(x, None, level), -logits.logsumexp(1))
    assert torch.allclose(energy(x, label, level)[2:], -logits[torch.arange(2, 6), label[2:]])
    assert torch.allclose(energy(x, label, level)[1], -logits[1].logsumexp(0))
    for given in (None, label):
        at = x.clone().requires_grad_()
        (true,) = torch.autograd.grad(energy(at, given, level).sum(), at)
        assert torch.allclose(energy.gradient(x, given, level), true, rtol=1e-9, atol=1e-10)
    _, of_joint, of_marginal = energy.with_gradients(x, label, level, also="marginal")
    assert torch.allclose(of_joint, energy.gradient(x, label, level))
    assert torch.allclose(of_marginal, energy.gradient(x, None, level))


def test_convolutional_tilts_give_the_energys_gradient_and_train() -> None:
    torch.manual_seed(0)
    shape = (1, 6, 6)
    tilt = joint_tilt("conv", shape, CLASSES, width=8, depth=1, channels=8)
    energy = JointEnergy(UnitGaussian(), Frame(shape, False), tilt).double()
    torch.nn.init.normal_(tilt.net.output.weight, std=0.5)  # type: ignore[union-attr, arg-type]
    x, level = torch.randn(4, *shape, dtype=torch.float64), torch.tensor([0.1, 0.5, 1.0, 4.0], dtype=torch.float64)
    label = torch.tensor([0, -1, 2, 1])
    for given in (None, label):
        at = x.clone().requires_grad_()
        (true,) = torch.autograd.grad(energy(at, given, level).sum(), at)
        assert torch.allclose(energy.gradient(x, given, level), true)
        with torch.no_grad():
            assert torch.allclose(energy.gradient(x, given, level), true)

    def error() -> Tensor:
        return energy.gradient(x, None, level).square().sum()

    weight: Any = tilt.net.output.weight  # type: ignore[union-attr]
    (slope,) = torch.autograd.grad(error(), weight)  # through the gradient, by finite differences
    with torch.no_grad():
        step = torch.zeros_like(weight)
        step[1, 3] = 1e-5
        weight += step
        up = error()
        weight -= 2 * step
        down = error()
    assert float(slope[1, 3]) == pytest.approx(float((up - down) / 2e-5), rel=1e-4)


def test_untilted_class_gaussians_are_discriminant_analysis() -> None:
    energy = joint_energy("classes", output=0.0)
    torch.nn.init.zeros_(energy.tilt.output.bias)  # type: ignore[union-attr, arg-type]
    x, label = events(50, seed=2)
    level = torch.tensor(0.7, dtype=torch.float64)
    base = energy.base
    assert isinstance(base, MixtureBase)
    want = torch.stack([-base(x, torch.full((50,), k), level) for k in range(CLASSES)], 1)
    assert torch.allclose(energy.logits(x, level), want)
    assert (energy.logits(x, level).argmax(1) == label).double().mean() > 0.9


def test_factored_energy_leaves_classes_out_of_the_density() -> None:
    energy = joint_energy("mixture", factored=True)
    x, _ = events(9, seed=3)
    level = torch.tensor(0.4, dtype=torch.float64)
    before = energy(x, None, level)
    with torch.no_grad():  # another classifier on the same body
        energy.tilt.output.weight[-CLASSES:] *= -2  # type: ignore[union-attr, index, operator]
    assert torch.allclose(energy(x, None, level), before)
    assert not torch.allclose(
        energy.logits(x, level).softmax(1), joint_energy("mixture", factored=True).logits(x, level).softmax(1)
    )


def test_the_network_sees_each_direction_by_its_share_of_signal() -> None:
    generator = torch.Generator().manual_seed(0)
    spread = torch.linspace(0, 2, 12, dtype=torch.float64).view(SHAPE)  # the first entry is always empty
    x = 3 + spread * torch.randn(20_000, *SHAPE, generator=generator, dtype=torch.float64)
    frame = Frame(SHAPE, True).double()
    frame.fit(x, 0.01)
    moved = torch.eye(12, dtype=torch.float64).view(12, *SHAPE)
    for level in (0.1, 1.0):
        at = torch.full((12,), level, dtype=torch.float64)
        share = (spread**2 + 0.01).sqrt() / (spread**2 + 0.01 + level**2).sqrt()
        seen = frame(3 + moved, at)
        assert torch.allclose(seen, moved * share, atol=0.03)
        assert torch.allclose(frame.turn(moved, at).flatten(1), frame.turn(moved, at).flatten(1).T, atol=1e-9)
    assert torch.allclose(Frame(SHAPE, False)(moved, at), moved / 2**0.5)


def test_guidance_sharpens_the_class() -> None:
    energy = joint_energy("mixture")
    x, label = events(6, seed=5)
    level = torch.tensor(0.5, dtype=torch.float64)
    guided = Guided(energy, 3.0)
    logits = energy.logits(x, level)
    want = -logits.logsumexp(1) - 3 * logits.log_softmax(1)[torch.arange(6), label]
    assert torch.allclose(guided(x, label, level), want)
    at = x.clone().requires_grad_()
    (true,) = torch.autograd.grad(guided(at, label, level).sum(), at)
    assert torch.allclose(guided.gradient(x, label, level), true)
    assert torch.allclose(guided.gradient(x, None, level), energy.gradient(x, None, level))
    assert torch.allclose(Guided(energy, 1.0)(x, label, level), energy(x, label, level))


def test_logit_energy_is_any_classifiers() -> None:
    torch.manual_seed(0)
    energy = LogitEnergy(MLPJointTilt(SHAPE, CLASSES, width=8), 0.3).double()
    x, label = events(5)
    at = x.clone().requires_grad_()
    (true,) = torch.autograd.grad(-energy.logits(at).logsumexp(1).sum(), at)
    assert torch.allclose(energy.gradient(x, None), true)
    assert torch.allclose(energy(x, label), -energy.logits(x).gather(1, label[:, None]).squeeze(1))


def test_kept_labels_are_even_and_seeded() -> None:
    labels = torch.arange(1000) % 10
    kept = kept_labels(labels, 205, 10, seed=3)
    assert int(kept.sum()) == 205
    counts = torch.bincount(labels[kept])
    assert counts.min() >= 20
    assert counts.max() <= 21
    assert torch.equal(kept, kept_labels(labels, 205, 10, seed=3))
    assert not torch.equal(kept, kept_labels(labels, 205, 10, seed=4))
    assert kept_labels(labels, 0, 10, seed=0).all()
    for count in (5, 1001):
        with pytest.raises(EbmtrajError, match=r"network\.labelled"):
            kept_labels(labels, count, 10, seed=0)


@pytest.fixture(scope="module")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder that holds the digits' store."""
    root = tmp_path_factory.mktemp("images")
    open_images("digits", root)
    return root


@pytest.mark.parametrize("name", JOINT)
def test_joint_models_keep_their_contract(name: str, digits: Path) -> None:
    store = open_images("digits", digits)
    model = make_image_model(name, store.shape, store.classes, network={"width": 16}, seed=0)
    data = ImageData.load(store, "train", limit=300)
    model.prepare(data)
    generator = torch.Generator().manual_seed(0)
    loss, logs = model.stages()[0].loss(data.sample(32, generator), generator)
    loss.backward()
    assert loss.isfinite()
    assert "cross_entropy" in logs
    assert model.classifies
    pixels = data.at(torch.arange(7)).x
    logits = model.logits(pixels)
    assert logits.shape == (7, 10)
    assert torch.allclose(model.log_density(pixels), logits.logsumexp(1), rtol=1e-4, atol=1e-3)
    labels = torch.arange(7)
    assert torch.allclose(model.log_density(pixels, label=labels), logits[labels, labels], rtol=1e-4, atol=1e-3)
    if name == "classifier":
        with pytest.raises(EbmtrajError, match="does not generate"):
            model.sample(4, generator)
        return
    drawn = model.sample(4, generator, torch.tensor([1, 1, 5, 9]))
    assert drawn.shape == (4, *store.shape)
    assert float(drawn.min()) >= 0
    assert float(drawn.max()) <= 1
    with pytest.raises(EbmtrajError, match="no labels"):
        make_image_model(name, store.shape, ())


def test_hidden_labels_are_never_looked_at(digits: Path) -> None:
    """Two stores that differ in the labels of images whose labels are hidden give the same losses."""
    store = open_images("digits", digits)
    network = {"width": 16, "labelled": 40, "components": 2}
    data = ImageData.load(store, "train", limit=400)
    assert data.label is not None
    losses = []
    for other in (False, True):
        model = make_image_model("jem", store.shape, store.classes, network=network, seed=0)
        model.prepare(data)
        known: Any = model.known
        label = data.label if not other else torch.where(known[data.index], data.label, (data.label + 1) % 10)
        asked = ImageData(data.raw, label, data.index, data.levels, data.classes)
        generator = torch.Generator().manual_seed(0)
        losses.append([float(model.stages()[0].loss(asked.sample(64, generator), generator)[0].detach()) for _ in range(3)])
        if other:
            wrong = model.stages()[0].loss(
                ImageData(data.raw, (data.label + 1) % 10, data.index, 16, data.classes).sample(
                    64, torch.Generator().manual_seed(0)
                ),
                torch.Generator().manual_seed(0),
            )[0]
            assert abs(float(wrong.detach()) - losses[0][0]) > 1e-6, "labels that are kept do count"
    assert losses[0] == losses[1]


def test_train_ood_and_calibrate_through_the_command_line(
    tmp_path: Path, digits: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("EBMTRAJ_DATA", str(digits))
    run = tmp_path / "jem"
    quick = ["--set", "training.steps=250", "--set", "network.width=64", "--set", "training.batch=64"]
    code, out, _ = call(capfd, "train", "jem", "--data", "digits", "--run", run, *quick, "--json")
    assert code == 0
    assert json.loads(out)["model"] == "jem"

    code, out, _ = call(capfd, "ood", run, "--json", "--figure", tmp_path / "ood.png")
    assert code == 0
    found = json.loads(out)
    assert set(found) == {"log_p", "max_p", "grad_norm", "log_ratio", "protocol"}
    assert (tmp_path / "ood.png").stat().st_size > 10_000
    for kind in ("noise", "constant", "inverted", "rotated", "shuffled"):
        assert found["log_p"][kind] > 0.95, kind
    assert 0.3 < found["protocol"]["log_p_train"] < 0.8

    code, out, _ = call(capfd, "calibrate", run, "--json", "--figure", tmp_path / "reliability.png")
    assert code == 0
    found = json.loads(out)
    assert found["accuracy"] > 0.8
    assert found["ece_scaled"] < 0.1
    assert found["images"] == 360
    model, header = load_image_model(run)
    assert header["model"] == "jem"
    assert model.conditional

    code, out, err = call(capfd, "calibrate", run, "--figure", tmp_path / "reliability.png")
    assert code == 2
    assert "--overwrite" in err
    code, out, err = call(capfd, "ood", run, "--against", "digits")
    assert code == 2
    assert "very images" in err
    code, out, err = call(capfd, "train", "jem", "--run", tmp_path / "b", "--model", "gmm")
    assert code == 2
    assert "jem-cd" in err
    code, out, err = call(capfd, "train", "jem", "--run", tmp_path / "b", "--set", "network.labelled=3")
    assert code == 2
    assert "network.labelled = 3" in err
    assert not np.any([(tmp_path / "b" / "checkpoints").exists()])


def test_gaussians_of_each_class_draw_more_images_for_the_adversary(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ebmtraj.images.joint.SHARE", 1.0)
    store = open_images("digits")
    data = ImageData.load(store, "train")
    settings: dict[str, Any] = {"adversary": 0.1, "width": 8, "components": 1}
    model = make_image_model("jem", store.shape, store.classes, network=settings)
    model.prepare(data)
    plain = make_image_model("class-gaussian", store.shape, store.classes)
    plain.prepare(data)
    images = model.pixels(model.drawn)  # type: ignore[operator, arg-type]
    assert images.shape == (20_000, *store.shape)
    own = torch.arange(20_000) // 2000
    assert float((plain.logits(images).argmax(1) == own).float().mean()) > 0.97
    assert float(torch.cdist(images[:200].flatten(1), data.pixels.flatten(1)).amin()) > 0.1  # none is a training image
    batch = data.at(torch.arange(64))
    told = [batch, dataclasses.replace(batch, label=torch.zeros_like(own[:64]))]  # whose labels do not count
    losses = [model._worst_entropy(each, torch.Generator().manual_seed(3)).detach() for each in told]  # type: ignore[operator]
    assert losses[0] == losses[1]
    few = make_image_model("jem", store.shape, store.classes, network={**settings, "labelled": 40})
    few.prepare(data)
    assert len(few.drawn) == 0  # type: ignore[arg-type]
    assert float(few._worst_entropy(batch, torch.Generator()).detach()) > 0  # type: ignore[operator]
