"""Restoration against a Gaussian whose answer is known, and cross-class sampling and distal images of a density that is."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from commands import call
from PIL import Image
from torch import Tensor

from ebmtraj.datasets.images import ImageStore, open_images
from ebmtraj.device import no_denormals
from ebmtraj.errors import EbmtrajError
from ebmtraj.images.cross import CrossConfig, DistalConfig, cross_class, distal
from ebmtraj.images.data import ImageData
from ebmtraj.images.model import ImageModel
from ebmtraj.images.registry import make_image_model
from ebmtraj.images.restore import TASKS, Restoration, RestoreConfig, damage, denoised_once, restore, shown
from ebmtraj.images.restore_plain import enlarged, gaussian_given, mean_filled, median_filtered
from ebmtraj.report.cross import measure_cross_class, measure_distal
from ebmtraj.report.restore import measure_restoration
from ebmtraj.samplers.anneal import Ladder
from ebmtraj.samplers.langevin import LangevinConfig


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


@pytest.fixture(scope="module")
def gaussian(store: ImageStore) -> ImageModel:
    """A noise-conditional energy whose tilt is nothing, so that it is the Gaussian it is fitted to at every level."""
    network = {"base": "gaussian", "width": 8, "floor": 0.05}
    return fitted(make_image_model("dsm", store.shape, store.classes, network=network), store)


@pytest.fixture(scope="module")
def joint(store: ImageStore) -> ImageModel:
    """A joint energy of Gaussians of each class: a classifier whose p(x | y) is known."""
    network = {"base": "classes", "components": 1, "width": 8}
    return fitted(make_image_model("jem", store.shape, store.classes, network=network), store)


def fitted(model: ImageModel, store: ImageStore) -> ImageModel:
    model.prepare(ImageData.load(store, "train"))
    for name, weights in model.named_parameters():
        if name.endswith("output.weight"):
            torch.nn.init.zeros_(weights)
    return model.eval().requires_grad_(False)


def images(store: ImageStore, count: int = 24, split: str = "test") -> Tensor:
    return ImageData.load(store, split, limit=count).pixels


def noise(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("task", ["inpaint", "super-resolve"])
def test_a_gaussian_is_restored_to_what_it_expects_given_the_rest(
    task: str, store: ImageStore, gaussian: ImageModel
) -> None:
    truth, train = images(store, 16), images(store, 2000, "train")
    damaged = damage(truth, task, None, noise())
    found = restore(gaussian, damaged, noise(1), draws=6).mean(0)
    exact = gaussian_given(damaged, train)
    plain = mean_filled(damaged, train) if task == "inpaint" else enlarged(damaged)

    def apart(a: Tensor, b: Tensor) -> float:
        return float((a - b).square().mean())

    assert apart(found, exact) < 0.5 * apart(plain, exact)
    assert apart(found, truth) < 0.9 * apart(plain, truth)  # inpainted exactly, it is 0.79 of it


def test_salt_and_pepper_is_taken_off_better_than_by_a_median_filter(store: ImageStore, gaussian: ImageModel) -> None:
    truth = images(store)
    damaged = damage(truth, "salt-and-pepper", None, noise())
    found = restore(gaussian, damaged, noise(1), draws=4).mean(0)
    assert (found - truth).square().mean() < 0.5 * (median_filtered(damaged) - truth).square().mean()
    linear = gaussian_given(damaged, images(store, 2000, "train"))
    assert (linear - truth).square().mean() < 0.5 * (damaged.pixels - truth).square().mean()


def test_what_inpainting_shows_stays_as_it_is(store: ImageStore, gaussian: ImageModel) -> None:
    truth = images(store, 3)
    damaged = damage(truth, "inpaint", 0.25, noise())
    found = restore(gaussian, damaged, noise(1), draws=2)
    assert torch.equal(found[..., :6, :], truth.expand(2, -1, -1, -1, -1)[..., :6, :])
    assert not torch.equal(found[0, ..., 6:, :], found[1, ..., 6:, :])
    assert torch.equal(damaged.pixels[..., 6:, :], torch.zeros(3, 1, 2, 8))


def test_damage_is_what_it_says() -> None:
    grey = torch.full((200, 3, 8, 8), 0.5)
    salted = damage(grey, "salt-and-pepper", 0.3, noise()).pixels
    assert float((salted != 0.5).float().mean()) == pytest.approx(0.3, abs=0.02)
    assert float((salted == 1).float().mean()) == pytest.approx(0.15, abs=0.02)
    assert torch.equal(salted[:, 0], salted[:, 2])  # all channels together
    ramp = torch.arange(16.0).view(1, 1, 4, 4) / 16
    assert damage(ramp, "super-resolve", 2, noise()).pixels[0, 0, 0].tolist() == [2.5 / 16] * 2 + [4.5 / 16] * 2
    assert shown(ramp, 0.5)[0, 0, :, 0].tolist() == [1, 1, 0, 0]


@pytest.mark.parametrize("network", ["mlp", "conv"])
def test_the_gradient_of_a_restoration_is_that_of_its_energy(network: str, store: ImageStore) -> None:
    torch.manual_seed(0)
    model = make_image_model("dsm", store.shape, store.classes, network={"width": 8, "channels": 8, "network": network})
    model.prepare(ImageData.load(store, "train"))
    for weights in model.parameters():
        torch.nn.init.normal_(weights, std=0.2)
    model.eval().requires_grad_(False)
    for task in TASKS:
        energy = Restoration(model, damage(images(store, 4), task, None, noise()), RestoreConfig())
        x = torch.randn(4, 1, 8, 8, generator=noise(2)).requires_grad_(True)
        (slope,) = torch.autograd.grad(energy(x, None, torch.tensor(0.7)).sum(), x)
        assert torch.allclose(energy.gradient(x, None, torch.tensor(0.7)), slope, rtol=1e-3, atol=1e-3), task


def test_what_can_not_be_restored_is_said_in_one_line(store: ImageStore, gaussian: ImageModel) -> None:
    truth = images(store, 2)
    for task, amount, said in (
        ("sharpen", None, "unknown task 'sharpen'"),
        ("inpaint", 1.5, "between 0 and 1"),
        ("super-resolve", 3, "can't be so many times smaller"),
    ):
        with pytest.raises(EbmtrajError, match=said):
            damage(truth, task, amount, noise())
    plain = make_image_model("classifier", store.shape, store.classes)
    with pytest.raises(EbmtrajError, match="no energy at every noise level"):
        restore(plain, damage(truth, "inpaint", None, noise()), noise())
    with pytest.raises(EbmtrajError, match="no energy at every noise level"):
        denoised_once(plain, damage(truth, "inpaint", None, noise()), 0.5)
    with pytest.raises(EbmtrajError, match="tolerance = 0"):
        RestoreConfig(tolerance=0)


def test_the_table_of_a_restoration_has_its_baselines(store: ImageStore, gaussian: ImageModel) -> None:
    quick = RestoreConfig(sampler=LangevinConfig(steps=0, ladder=Ladder(levels=3)))
    for task, names in (
        ("salt-and-pepper", {"median filter", "one-step denoiser"}),
        ("inpaint", {"mean fill"}),
        ("super-resolve", {"bicubic"}),
    ):
        found = measure_restoration(gaussian, store, task, limit=5, draws=2, config=quick).results["mse"]
        assert {name.split(" (")[0] for name in found} >= names | {"damaged", "energy, mean of 2", "Gaussian given the rest"}
        assert all(np.isfinite(value) and value > 0 for value in found.values())
    again = measure_restoration(gaussian, store, "inpaint", limit=5, draws=2, config=quick).results["mse"]
    assert again == measure_restoration(gaussian, store, "inpaint", limit=5, draws=2, config=quick).results["mse"]


def test_images_sampled_toward_a_class_come_to_be_of_it_and_keep_some_of_the_start(
    store: ImageStore, joint: ImageModel
) -> None:
    found = measure_cross_class(joint, store, source="1", count=18, seed=0, judge=joint)
    assert found.results["agreement"] > 0.8
    near = measure_cross_class(joint, store, source="1", count=18, config=CrossConfig(level=0.2)).results
    assert near["mse_to_start"] < found.results["mse_to_start"]  # less noise, more of the image
    assert len(found.states) > 10
    with pytest.raises(EbmtrajError, match="unknown class '11'"):
        measure_cross_class(joint, store, source="11")


def test_cross_class_needs_an_energy_of_each_class(store: ImageStore, gaussian: ImageModel) -> None:
    with pytest.raises(EbmtrajError, match="no energy of each class"):
        cross_class(gaussian, images(store, 2), torch.tensor([1, 2]), noise())


def test_with_the_energy_what_is_raised_from_noise_comes_nearer_to_images(store: ImageStore, joint: ImageModel) -> None:
    results, pictures = measure_distal(joint, store, count=10, config=DistalConfig(steps=60))
    without, with_ = results["without_energy"], results["with_energy"]
    assert without["probability"] > 0.9  # sure of what is no image
    assert with_["log_density"] > without["log_density"]
    assert with_["nearest"] < without["nearest"]
    assert pictures.shape == (2, 10, 1, 8, 8)
    with pytest.raises(EbmtrajError, match="does not classify"):
        distal(make_image_model("dsm", store.shape, store.classes), torch.tensor([0]), noise(), energy=True)


def test_commands_restore_cross_class_and_distal(
    tmp_path: Path, store: ImageStore, capfd: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "jem"
    short = ("--set", "training.steps=3", "--set", "network.width=16", "--set", "network.base=gaussian")
    assert call(capfd, "train", "jem", "--data", "digits", "--run", run, *short)[0] == 0
    picture = tmp_path / "inpainted.png"
    code, out, err = call(capfd, "restore", run, "--task", "inpaint", "--draws", 2, "--limit", 4, "--json", "--out", picture)
    assert code == 0, err
    assert json.loads(out)["mse"]["mean fill"] == pytest.approx(0.08, abs=0.04)
    with Image.open(picture) as drawn:
        assert drawn.width > 4 * 64
    assert call(capfd, "restore", run, "--out", picture)[2].startswith(f"error: {picture} exists")
    for name in ("crossed.gif", "crossed.png"):
        code, out, err = call(capfd, "cross-class", run, "--from", 1, "-n", 4, "--out", tmp_path / name, "--json")
        assert code == 0, err
        assert json.loads(out)["from"] == "1"
        assert (tmp_path / name).stat().st_size > 100
    code, out, err = call(capfd, "distal", run, "-n", 4, "--steps", 3, "--json", "--out", tmp_path / "distal.png")
    assert code == 0, err
    assert set(json.loads(out)) >= {"real", "without_energy", "with_energy"}
    code, _, err = call(capfd, "restore", run, "--task", "sharpen")
    assert (code, "Traceback" in err) == (2, False)
    assert "unknown task" in err
