"""Foreign images, AUROC and calibration against what is known of them."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from ebmtraj.errors import EbmtrajError
from ebmtraj.evaluation.calibration import (
    accuracy,
    calibration,
    calibration_error,
    cross_entropy,
    fit_temperature,
    reliability,
)
from ebmtraj.evaluation.ood import FOREIGN, auroc, foreign_sets, ood_table


@pytest.fixture
def pixels() -> np.ndarray:
    """Images whose pixels all differ."""
    return np.random.default_rng(0).random((40, 3, 8, 8), dtype=np.float32)


@pytest.mark.parametrize("shape", [(12, 1, 8, 8), (7, 3, 28, 20)])
@pytest.mark.parametrize("name", FOREIGN)
def test_foreign_sets_keep_shape_range_and_seed(name: str, shape: tuple[int, ...]) -> None:
    given = np.random.default_rng(1).random(shape, dtype=np.float32)
    kept = given.copy()
    made = FOREIGN[name](given, np.random.default_rng(2))
    assert made.shape == shape
    assert made.dtype == np.float32
    assert made.min() >= 0
    assert made.max() <= 1
    assert np.array_equal(given, kept), "the held-out images themselves are left as they are"
    assert not np.allclose(made, given, atol=1e-3)
    assert np.array_equal(made, FOREIGN[name](given, np.random.default_rng(2)))


def test_foreign_sets_are_what_they_are_called(pixels: np.ndarray) -> None:
    sets = foreign_sets(pixels, seed=3)
    assert list(sets) == list(FOREIGN)
    assert np.ptp(sets["constant"], axis=(2, 3)).max() == 0
    assert np.allclose(sets["inverted"] + pixels, 1)
    assert np.array_equal(sets["rotated"][:, :, 0, 0], pixels[:, :, 0, -1])
    for i in range(3):  # whole pixels move: the channels stay together
        of, to = (images[i].reshape(3, -1) for images in (pixels, sets["shuffled"]))
        assert np.array_equal(of[:, of[0].argsort()], to[:, to[0].argsort()])
    partner = 2 * sets["interpolated"] - pixels  # each another image of the set, each once
    nearest = ((partner[:, None] - pixels[None]) ** 2).sum((2, 3, 4))
    assert np.allclose(nearest.min(1), 0, atol=1e-6)
    assert sorted(nearest.argmin(1)) == list(range(40))
    assert (nearest.argmin(1) != np.arange(40)).all()
    assert (sets["letters"] > 0.5).mean(axis=(1, 2, 3)).min() > 0.02, "each letter has ink"
    labels = np.arange(40) % 4
    labelled = foreign_sets(pixels, seed=3, labels=labels)
    assert all(np.array_equal(labelled[name], sets[name]) for name in sets)
    partner = 2 * labelled["interpolated_classes"] - pixels
    nearest = ((partner[:, None] - pixels[None]) ** 2).sum((2, 3, 4))
    assert np.allclose(nearest.min(1), 0, atol=1e-6)
    assert (labels[nearest.argmin(1)] != labels).all()
    assert not np.array_equal(foreign_sets(pixels, seed=4)["noise"], sets["noise"])


def test_auroc_of_gaussians_is_known() -> None:
    rng = np.random.default_rng(0)
    from scipy.stats import norm

    inside, outside = rng.normal(1.0, 1.0, 20_000) + 1e8, rng.normal(0.0, 1.0, 20_000) + 1e8  # far beyond a sigmoid
    assert auroc(inside, outside) == pytest.approx(norm.cdf(1 / np.sqrt(2)), abs=0.006)
    assert auroc(np.arange(5.0) + 10, np.arange(5.0)) == 1
    assert auroc(np.zeros(7), np.zeros(9)) == 0.5
    assert auroc(np.array([1.0, 2.0]), np.array([2.0, 0.0])) == pytest.approx(0.625)  # two wins, a tie, a loss: by hand
    table = ood_table(lambda level: {"a": level * np.ones(3)}, 1.0, {"x": 0.0, "y": 2.0})
    assert table == {"a": {"x": 1.0, "y": 0.0}}
    with pytest.raises(EbmtrajError, match="not numbers"):
        auroc(np.array([np.nan]), np.zeros(3))


def drawn(count: int = 20_000, sharp: float = 1.0) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits whose softmax is right, times `sharp`, and labels drawn by it."""
    generator = torch.Generator().manual_seed(0)
    logits = 2 * torch.randn(count, 5, generator=generator)
    labels = torch.multinomial(logits.softmax(1), 1, generator=generator).squeeze(1)
    return sharp * logits, labels


def test_temperature_undoes_overconfidence() -> None:
    right, labels = drawn()
    assert calibration_error(right, labels) < 0.01
    assert fit_temperature(right, labels) == pytest.approx(1, abs=0.03)
    for sharp in (3.0, 0.4):
        logits, labels = drawn(sharp=sharp)
        assert fit_temperature(logits, labels) == pytest.approx(sharp, rel=0.03)
        found = calibration(logits, labels, logits, labels)
        assert found["ece"] > 0.1 > 10 * found["ece_scaled"]
        assert found["nll_scaled"] < found["nll"] == cross_entropy(logits, labels)
        assert found["accuracy"] == accuracy(right, labels)


def test_reliability_adds_up_to_the_calibration_error() -> None:
    logits, labels = drawn(3000, sharp=2.0)
    bins = reliability(logits, labels)
    assert bins.share.sum() == pytest.approx(1)
    gap = (bins.share * np.abs(bins.confidence - bins.accuracy)).sum()
    assert gap == pytest.approx(calibration_error(logits, labels), abs=1e-4)
    assert (bins.share * bins.accuracy).sum() == pytest.approx(accuracy(logits, labels))


def test_calibration_refuses_what_is_no_classification() -> None:
    logits, labels = drawn(10)
    with pytest.raises(EbmtrajError, match="one label an image"):
        accuracy(logits, labels[:5])
    with pytest.raises(EbmtrajError, match="labels from"):
        calibration_error(logits, labels + 5)
    with pytest.raises(EbmtrajError, match="not finite"):
        cross_entropy(logits * torch.nan, labels)
