"""Scores of images against the truth, and the judge that gives their features."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from ebmtraj.datasets.images import ImageStore, open_images
from ebmtraj.errors import EbmtrajError
from ebmtraj.evaluation.image_features import VARIANCE, JudgeConfig, judge_of, train_judge
from ebmtraj.evaluation.image_scores import (
    class_shares,
    distance_scores,
    kernel_distance,
    label_scores,
    membership,
    memory_scores,
    nearest,
    same_count,
    share_below,
    within_class_spread,
)

QUICK = JudgeConfig(steps=150, batch=64)


@pytest.fixture(scope="module")
def digits(tmp_path_factory: pytest.TempPathFactory) -> ImageStore:
    return open_images("digits", tmp_path_factory.mktemp("images"))


def draw(count: int, seed: int, shift: float = 0.0) -> np.ndarray:
    return np.random.default_rng(seed).normal(shift, 1, (count, 6))


def test_kernel_distance_is_unbiased_and_the_literal_double_sum() -> None:
    x, y = draw(9, 0), draw(7, 1)

    def k(a: np.ndarray, b: np.ndarray) -> float:
        return float((a @ b / 6 + 1) ** 3)

    literal = sum(k(a, b) for i, a in enumerate(x) for j, b in enumerate(x) if i != j) / (9 * 8)
    literal += sum(k(a, b) for i, a in enumerate(y) for j, b in enumerate(y) if i != j) / (7 * 6)
    literal -= 2 * np.mean([k(a, b) for a in x for b in y])
    assert kernel_distance(x, y) == pytest.approx(literal, rel=1e-12)
    same = [kernel_distance(draw(50, 2 * i), draw(50, 2 * i + 1)) for i in range(200)]
    assert abs(np.mean(same)) < 3 * np.std(same) / np.sqrt(200)
    assert kernel_distance(draw(50, 0), draw(50, 1, shift=1.0)) > 10 * np.std(same)
    with pytest.raises(EbmtrajError, match="2 or more points"):
        kernel_distance(x[:1], y)


def test_distances_are_taken_at_equal_counts() -> None:
    a, b = same_count(draw(50, 0), draw(20, 1))
    assert len(a) == len(b) == 20
    found = distance_scores(draw(50, 0), draw(20, 1))
    assert found["count"] == 20
    assert distance_scores(draw(50, 0), draw(20, 1)) == found
    assert distance_scores(a, a)["frechet"] == pytest.approx(0, abs=1e-9)


def test_nearest_is_brute_force() -> None:
    a, b = (np.random.default_rng(s).random((n, 1, 4, 4)).astype(np.float32) for s, n in ((0, 11), (1, 7)))
    brute = np.sqrt(((a[:, None] - b[None]) ** 2).sum((2, 3, 4)))
    assert np.allclose(nearest(a, b, batch=4), brute.min(1), atol=1e-5)
    own = np.sqrt(((a[:, None] - a[None]) ** 2).sum((2, 3, 4))) + np.diag(np.full(11, np.inf))
    assert np.allclose(nearest(a, a, leave_out=True, batch=4), own.min(1), atol=1e-5)


def test_share_below_is_the_pairwise_count() -> None:
    a, b = np.array([0.0, 1.0, 1.0, 3.0]), np.array([1.0, 2.0, 2.0])
    literal = np.mean([(x < y) + 0.5 * (x == y) for x in a for y in b])
    assert share_below(a, b) == pytest.approx(literal)
    assert membership(np.array([3.0, 4.0]), np.array([1.0, 2.0])) == 1.0


def test_copies_are_told_from_fresh_images() -> None:
    generator = np.random.default_rng(0)
    train, held_out, fresh = (generator.random((n, 1, 3, 3)) for n in (300, 200, 200))
    assert memory_scores(fresh, train, held_out)["copying"] == pytest.approx(0.5, abs=0.08)
    assert memory_scores(train[:200] + 1e-3, train, held_out)["copying"] > 0.99


def test_classes_and_their_spread() -> None:
    generator = np.random.default_rng(0)
    labels = np.repeat(np.arange(3), 200)
    real = generator.normal(0, 1, (600, 1, 4, 4)) + labels[:, None, None, None]
    assert np.allclose(within_class_spread(real, labels, 3), 4.0, rtol=0.05)  # root of 16 variances of 1
    half = generator.normal(0, 0.5, (600, 1, 4, 4))
    wrong = np.where(np.arange(600) % 10 == 0, (labels + 1) % 3, labels)
    found = label_scores(half, wrong, real, labels, ("a", "b", "c"), asked=labels)
    assert found["agreement"] == pytest.approx(0.9)
    assert found["spread"] == pytest.approx(0.5, rel=0.05)
    assert class_shares(np.array([0, 0, 2]), 4).tolist() == [2 / 3, 0, 1 / 3, 0]
    assert label_scores(half, np.zeros(600, int), real, labels, ("a", "b", "c"))["least_share"] == 0


def test_a_judge_is_the_same_again_kept_and_scaled(digits: ImageStore, tmp_path: Path) -> None:
    judge = judge_of(digits, QUICK, folder=tmp_path)
    torch.set_num_threads(2)
    try:
        assert train_judge(digits, QUICK).digest == judge.digest
    finally:
        torch.set_num_threads(1)
    kept = judge_of(digits, QUICK, folder=tmp_path)
    assert kept.digest == judge.digest
    train, test = digits.read("train"), digits.read("test")
    features, labels = kept.judge(test.pixels)
    assert (labels == test.labels).mean() > 0.9
    assert kept.judge(train.pixels)[0].var(axis=0).sum() == pytest.approx(VARIANCE, rel=1e-3)
    noise = kept.judge(np.random.default_rng(0).random(test.pixels.shape, np.float32))[0]
    assert (
        distance_scores(noise, features)["frechet"] > 5 * distance_scores(kept.judge(train.pixels)[0], features)["frechet"]
    )
    with pytest.raises(EbmtrajError, match=r"trained on \(1, 8, 8\)"):
        kept.judge(np.zeros((2, 1, 9, 8), np.float32))
    file = next(tmp_path.glob("judge-*.safetensors"))
    data = bytearray(file.read_bytes())
    data[-1] ^= 64
    file.write_bytes(data)
    with pytest.raises(EbmtrajError, match="is damaged: its content is not what its sha256 says"):
        judge_of(digits, QUICK, folder=tmp_path)


def test_a_judge_of_images_without_labels_tells_turns(tmp_path: Path) -> None:
    import dataclasses

    from ebmtraj.datasets.image_sources import digits as load
    from ebmtraj.datasets.image_writer import write_images

    store = write_images(tmp_path / "bare.zarr", dataclasses.replace(load(), labels=None, classes=()))
    judge = judge_of(store, QUICK)
    assert judge.classes == 4
    pixels = store.read("test").pixels
    assert (judge.judge(pixels)[1] == 0).mean() > 0.7
    assert (judge.judge(np.rot90(pixels, 2, (2, 3)).copy())[1] == 2).mean() > 0.7
