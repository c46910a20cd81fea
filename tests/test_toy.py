"""Toys of the plane: their densities against grid integrals, their distances against brute force, their splits."""

import numpy as np
import pytest

from ebmtraj.datasets.toy import TOYS, sample, toy, toy_hash
from ebmtraj.errors import EbmtrajError


@pytest.mark.parametrize("name", TOYS)
def test_densities_integrate_to_one(name: str) -> None:
    one = toy(name)
    count = 160 if name == "swiss-roll" else 900  # each point of the roll's costs a sum along it
    side = np.linspace(-1.1 * one.bound, 1.1 * one.bound, count, endpoint=False)
    side += 0.5 * (side[1] - side[0])
    grid = np.stack(np.meshgrid(side, side), -1).reshape(-1, 2)
    total = np.exp(one.log_density(grid)).sum() * (side[1] - side[0]) ** 2
    assert total == pytest.approx(1, abs=5e-3)


@pytest.mark.parametrize("name", TOYS)
def test_draws_have_the_density(name: str) -> None:
    one, points = toy(name), sample(name, 3000, 3)
    assert np.abs(points).max() < 1.2 * one.bound
    # Cells of a grid are drawn as often as the density says: Pearson's statistic over its degrees of freedom is about 1.
    side = np.linspace(-one.bound, one.bound, 121)
    middle = 0.5 * (side[1:] + side[:-1])
    density = np.exp(one.log_density(np.stack(np.meshgrid(middle, middle, indexing="ij"), -1).reshape(-1, 2)))
    share = (density.reshape(12, 10, 12, 10) * (side[1] - side[0]) ** 2).sum((1, 3))
    drawn = np.histogram2d(*points.T, bins=side[::10])[0]
    likely = share * len(points) > 5
    statistic = ((drawn - share * len(points)) ** 2 / (share * len(points)).clip(1e-9))[likely].sum() / likely.sum()
    assert 0.5 < statistic < 2


def test_shares_within_sigma_are_those_of_the_noise() -> None:
    assert toy("25-gaussians").share_within(sample("25-gaussians", 20_000), 1.0) == pytest.approx(1 - np.exp(-0.5), abs=0.01)
    assert toy("swiss-roll").share_within(sample("swiss-roll", 20_000)) == pytest.approx(0.9545, abs=0.01)
    assert toy("checkerboard").share_within(sample("checkerboard", 2000)) == 1.0


def test_distance_to_the_roll_is_the_least_one() -> None:
    roll = TOYS["swiss-roll"]
    points = np.random.default_rng(0).uniform(-2, 2, (300, 2))
    t = np.pi * np.linspace(1.5, 4.5, 60_001)
    curve = np.stack([t * np.cos(t), t * np.sin(t)], -1) / 7.5
    brute = np.sqrt(((points[:, None] - curve) ** 2).sum(-1).min(1))
    np.testing.assert_allclose(roll.distance(points), brute, atol=2e-4)


def test_modes_are_counted() -> None:
    gaussians = toy("25-gaussians")
    assert gaussians.modes is not None
    assert gaussians.modes_hit(sample("25-gaussians", 5000)) == 25
    assert gaussians.modes_hit(gaussians.modes[:7] + 0.5 * gaussians.sigma) == 7
    assert gaussians.modes_hit(gaussians.modes[:7] + 9 * gaussians.sigma) == 0
    with pytest.raises(EbmtrajError, match="no modes"):
        toy("swiss-roll").modes_hit([[0.0, 0.0]])


def test_splits_are_disjoint_and_repeat() -> None:
    parts = [sample("swiss-roll", 500, 0, split) for split in ("train", "validation", "test")]
    assert len(np.unique(np.concatenate(parts), axis=0)) == 1500
    np.testing.assert_array_equal(parts[0], sample("swiss-roll", 500, 0))
    assert toy_hash("swiss-roll", 500, 0) != toy_hash("swiss-roll", 500, 1)


def test_bad_input_is_one_line() -> None:
    for call, said in (
        (lambda: toy("25-gausians"), "did you mean 25-gaussians"),
        (lambda: sample("swiss-roll", 5, 0, "tset"), "unknown split"),
        (lambda: sample("swiss-roll", 0), "count"),
        (lambda: toy("swiss-roll").share_within(np.zeros((3, 3))), r"\(N, 2\)"),
    ):
        with pytest.raises(EbmtrajError, match=said):
            call()
