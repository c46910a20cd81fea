"""Metrics against closed forms, against scipy, and against the contract of their registry."""

from __future__ import annotations

import inspect
import json
import math
import time

import numpy as np
import pytest
from scipy.linalg import sqrtm
from scipy.spatial.transform import Rotation
from scipy.stats import norm, wasserstein_distance
from sklearn.metrics import roc_auc_score
from threadpoolctl import threadpool_limits

from ebmtraj.errors import EbmtrajError
from ebmtraj.evaluation.arrays import changes, standardise
from ebmtraj.evaluation.c2st import auc, c2st, c2st_rollouts, has_structure, window_times, windows_at
from ebmtraj.evaluation.evaluate import OneStep, evaluate_rollouts, one_step_times
from ebmtraj.evaluation.frechet import (
    frechet_distance,
    frechet_floor,
    frechet_of_changes,
    frechet_over_time,
    halves,
)
from ebmtraj.evaluation.registry import METRICS, measure
from ebmtraj.evaluation.scores import (
    calibrated_error,
    coverage90,
    crps,
    diversity,
    energy_score,
    least_coverage,
    limit_violation,
    net_turning,
    quaternion_violation,
    rotation_error,
    turning,
)
from ebmtraj.evaluation.wasserstein import _directions, sliced_wasserstein
from ebmtraj.fields import Coupling, Field, total_size

JOINT = Field("joint", 2, low=(-1.0, -2.0), high=(1.0, 2.0))
FIELDS = (JOINT, Field("bearing", 1, "angle", "rad"), Field("cube", 4, "quaternion"))
S = total_size(FIELDS)
ONE, ZERO = np.ones(S), np.zeros(S)


def quaternions(rotation: Rotation, shape: tuple[int, ...]) -> np.ndarray:
    return rotation.as_quat(scalar_first=True).reshape(*shape, 4)


def rollouts(generator: np.random.Generator, *lead: int, steps: int = 6) -> np.ndarray:
    """Smooth random rollouts of FIELDS: (*lead, steps + 1, S)."""
    shape = (*lead, steps + 1)
    plain = np.cumsum(0.2 * generator.normal(size=(*shape, 3)), axis=-2)
    turn = np.cumsum(0.2 * generator.normal(size=(*shape, 3)), axis=-2)
    return np.concatenate([plain, quaternions(Rotation.from_rotvec(turn.reshape(-1, 3)), shape)], axis=-1)


# --- Frechet distance ---------------------------------------------------------------------------------------------


def reference(x: np.ndarray, y: np.ndarray) -> float:
    c1, c2 = np.cov(x.T), np.cov(y.T)
    root = sqrtm(c1)
    cross = np.trace(sqrtm(root @ c2 @ root)).real
    return float(np.sum((x.mean(0) - y.mean(0)) ** 2) + np.trace(c1) + np.trace(c2) - 2 * cross)


@pytest.mark.parametrize("size", [2, 5, 31])
def test_frechet_agrees_with_scipys_matrix_root(size: int) -> None:
    generator = np.random.default_rng(size)
    x = generator.normal(size=(200, size)) @ generator.normal(size=(size, size))
    y = generator.normal(size=(150, size)) @ generator.normal(size=(size, size)) + generator.normal(size=size)
    assert frechet_distance(x, y) == pytest.approx(reference(x, y), rel=1e-8)
    assert frechet_distance(y, x) == pytest.approx(frechet_distance(x, y), rel=1e-10)


def test_frechet_closed_forms() -> None:
    x = np.random.default_rng(0).normal(size=(300, 4))
    assert frechet_distance(x, x) == pytest.approx(0.0, abs=1e-12)
    shift = np.array([1.0, -2.0, 0.5, 0.0])
    assert frechet_distance(x, x + shift) == pytest.approx(5.25)  # |shift|^2
    centre = x.mean(0)
    assert frechet_distance(x, centre + 3 * (x - centre)) == pytest.approx(4 * np.trace(np.cov(x.T)))  # (3 - 1)^2 tr C
    one = x[:, :1]  # in one dimension (mu1 - mu2)^2 + (s1 - s2)^2
    other = 2.5 * one + 1
    expected = (one.mean() - other.mean()) ** 2 + (one.std(ddof=1) - other.std(ddof=1)) ** 2
    assert frechet_distance(one, other) == pytest.approx(expected)


def test_frechet_of_singular_covariances() -> None:
    generator = np.random.default_rng(1)
    flat = generator.normal(size=(100, 2)) @ generator.normal(size=(2, 6))  # rank 2 in 6 dimensions
    few = generator.normal(size=(4, 31))  # fewer points than dimensions
    assert frechet_distance(flat, flat) == pytest.approx(0.0, abs=1e-12)
    assert frechet_distance(few, few) == pytest.approx(0.0, abs=1e-12)
    assert frechet_distance(flat, flat + 1.0) == pytest.approx(6.0)
    point = np.zeros((5, 6))  # against a point mass: |mu|^2 + tr C
    assert frechet_distance(flat, point) == pytest.approx(np.sum(flat.mean(0) ** 2) + np.trace(np.cov(flat.T)))
    # Two orthogonal lines share no direction, so the cross term is zero.
    line = generator.normal(size=100)
    along_x, along_y = np.stack([line, 0 * line], 1), np.stack([0 * line, 2 * line], 1)
    expected = np.sum((along_x.mean(0) - along_y.mean(0)) ** 2) + 5 * line.var(ddof=1)
    assert frechet_distance(along_x, along_y) == pytest.approx(expected)


def test_frechet_over_time_is_the_distance_of_each_steps_z_scores() -> None:
    generator = np.random.default_rng(2)
    model, truth = generator.normal(size=(40, 8, 3)), 2 * generator.normal(size=(50, 8, 3)) + 1
    mean, std = np.array([1.0, 2.0, 3.0]), np.array([0.5, 2.0, 4.0])
    values = frechet_over_time(model, truth, mean, std)
    assert values.shape == (8,)
    for t in range(8):
        expected = frechet_distance((model[:, t] - mean) / std, (truth[:, t] - mean) / std)
        assert values[t] == pytest.approx(expected)


def test_constant_dimensions_keep_their_unit() -> None:
    x = np.array([[5.0, 3.0], [7.0, 3.0000002]])
    for std in (0.0, 2e-7):  # exact, and as single precision leaves it
        scaled = standardise(x, np.array([5.0, 3.0]), np.array([2.0, std]))
        np.testing.assert_allclose(scaled, [[0, 0], [1, 0]], atol=1e-6)
    moved = standardise(x + np.array([0, 0.5]), np.array([5.0, 3.0]), np.array([2.0, 0.0]))
    np.testing.assert_allclose(moved[:, 1], 0.5, atol=1e-6)


def test_frechet_of_changes_ignores_where_but_sees_how_it_moves() -> None:
    generator = np.random.default_rng(3)
    truth = rollouts(generator, 200)
    elsewhere = truth + np.array([10.0, -3.0, 0.0, 0, 0, 0, 0])
    assert frechet_of_changes(elsewhere, truth, FIELDS) == pytest.approx(np.zeros(6), abs=1e-9)
    frozen = np.repeat(truth[:, :1], 7, axis=1)
    moves = changes(truth, FIELDS)
    scaled = moves / moves.std(axis=(0, 1))
    expected = (scaled.mean(0) ** 2).sum(-1) + scaled.var(axis=0, ddof=1).sum(-1)
    np.testing.assert_allclose(frechet_of_changes(frozen, truth, FIELDS), expected)


def test_changes_by_the_kind_of_field() -> None:
    turn = Rotation.from_rotvec([0.1, -0.2, 0.3])
    start = Rotation.from_rotvec([1.0, 0.5, -2.0])
    q = quaternions(start, ()), quaternions(turn * start, ())
    states = np.array([[0.0, 0.0, 3.0, *q[0]], [0.5, -1.0, -3.0, *(-1e-5 * q[1])]])  # another sign and length
    np.testing.assert_allclose(changes(states, FIELDS), [[0.5, -1.0, 2 * math.pi - 6, 0.1, -0.2, 0.3]], atol=1e-12)


def test_floor_falls_with_the_number_of_episodes() -> None:
    generator = np.random.default_rng(4)
    floors = []
    for count in (30, 120, 480):
        one, two = generator.normal(size=(2, count, 11, 5))
        floors.append(frechet_floor(one, two, np.zeros(5), np.ones(5))[1:].mean())
    assert floors[0] > 2.5 * floors[1] > 6.25 * floors[2] > 0  # about as 1/n
    assert floors[0] < 1.5


def test_floor_compares_equally_many() -> None:
    one, two = np.random.default_rng(5).normal(size=(2, 60, 4, 2))
    np.testing.assert_array_equal(
        frechet_floor(one, two[:20], np.zeros(2), np.ones(2)),
        frechet_over_time(one[:20], two[:20], np.zeros(2), np.ones(2)),
    )
    left, right = halves(np.arange(7))
    assert len(left) == len(right) == 3
    assert not set(left) & set(right)


def test_hundred_steps_of_the_hand_take_less_than_a_second() -> None:
    model, truth = np.random.default_rng(6).normal(size=(2, 450, 101, 31))
    frechet_over_time(model[:9], truth[:9], np.zeros(31), np.ones(31))
    seconds = []
    with threadpool_limits(1):  # as `evaluate_rollouts` has it: on a busy machine more threads wait for each other
        for _ in range(3):
            begin = time.process_time()
            frechet_over_time(model, truth, np.zeros(31), np.ones(31))
            seconds.append(time.process_time() - begin)
    assert min(seconds) < 1.0


# --- Sliced Wasserstein distance ------------------------------------------------------------------------------------


def test_sliced_wasserstein_agrees_with_scipy_along_every_direction() -> None:
    generator = np.random.default_rng(20)
    model, truth = generator.normal(size=(40, 3, 5)), generator.gamma(1.0, size=(40, 3, 5))
    mean, std = np.arange(5.0), np.linspace(0.5, 2.0, 5)
    expected = [
        np.mean([wasserstein_distance((x - mean) / std @ v, (y - mean) / std @ v) for v in _directions(5)])
        for x, y in zip(np.moveaxis(model, 1, 0), np.moveaxis(truth, 1, 0), strict=True)
    ]
    np.testing.assert_allclose(sliced_wasserstein(model, truth, mean, std), expected, rtol=1e-10)
    np.testing.assert_allclose(np.linalg.norm(_directions(5), axis=1), 1.0)
    with pytest.raises(EbmtrajError, match="as many of each"):
        sliced_wasserstein(model[:9], truth, mean, std)


def test_sliced_wasserstein_closed_forms() -> None:
    x = np.random.default_rng(21).normal(size=(200, 1, 31))
    zero, one = np.zeros(31), np.ones(31)
    shift = np.zeros(31)
    shift[4] = 3.0
    # A shift v costs the mean of |v . direction|: on the sphere in d dimensions about |v| sqrt(2 / (pi d)).
    assert sliced_wasserstein(x + shift, x, zero, one) == pytest.approx(3 * math.sqrt(2 / (math.pi * 31)), rel=0.1)
    one_dimension = sliced_wasserstein(x[..., :1] - 2.5, x[..., :1], zero[:1], one[:1])
    assert one_dimension == pytest.approx([2.5])
    # Two clouds of one mean and covariance, which the Frechet distance takes for the same.
    gaussian, signs = x[:, :, :1] / x[:, :, :1].std(), np.where(np.arange(200) < 100, 1.0, -1.0)[:, None, None]
    gaussian = gaussian - gaussian.mean()
    assert frechet_over_time(gaussian, signs, zero[:1], one[:1]) == pytest.approx([0.0], abs=1e-3)
    assert sliced_wasserstein(gaussian, signs, zero[:1], one[:1])[0] > 0.3


# --- Classifier two-sample test -------------------------------------------------------------------------------------

PLAIN = (Field("x", 3),)


def test_auc_agrees_with_scikit_learn() -> None:
    generator = np.random.default_rng(22)
    real = generator.random(300) < 0.4
    for scores in (generator.normal(size=300) + real, generator.integers(0, 4, 300).astype(float), np.zeros(300)):
        assert auc(scores, real) == pytest.approx(roc_auc_score(real, scores))


def test_c2st_finds_the_auc_of_the_best_classifier() -> None:
    generator = np.random.default_rng(23)

    def windows(shift: float) -> np.ndarray:
        start = generator.normal(size=(100, 20, 1, 3))
        return np.concatenate([start, start + generator.normal(size=start.shape) + [shift, 0, 0]], axis=2)

    truth = windows(0.0)
    assert c2st(windows(0.0), truth, PLAIN).mean() == pytest.approx(0.5, abs=0.03)
    # Changes N(0, 1) and N(d, 1) are best told apart with an AUC of Phi(d / sqrt 2); a learner comes close, not beyond.
    for shift in (0.7, 2.0):
        best = norm.cdf(shift / math.sqrt(2))
        assert best - 0.05 < c2st(windows(shift), truth, PLAIN).mean() < best + 0.02


def test_c2st_of_rollouts() -> None:
    generator = np.random.default_rng(24)
    truth, alike = rollouts(generator, 30, steps=20), rollouts(generator, 30, steps=20)
    frozen = np.repeat(truth[:, :1], 21, axis=1)
    null = c2st_rollouts(alike, truth, FIELDS)
    assert null.shape == (3,)
    assert null.mean() == pytest.approx(0.5, abs=0.06)
    assert c2st_rollouts(frozen, truth, FIELDS).mean() > 0.95  # a value between two others: trees need data to cut it out
    np.testing.assert_array_equal(null, c2st_rollouts(alike, truth, FIELDS))
    assert not np.array_equal(null, c2st_rollouts(alike, truth, FIELDS, seed=1))
    # What is no motion gives nothing away: the sign and length of a quaternion, and rounding.
    other = alike.copy()
    other[::2, :, 3:] *= -1
    other[..., 3:] *= 1 + 1e-6
    other += 1e-9
    np.testing.assert_allclose(c2st_rollouts(other, truth, FIELDS), null, atol=0.02)


def test_three_states_show_what_two_hide() -> None:
    generator = np.random.default_rng(25)
    moves = generator.normal(size=(60, 1, 3)).repeat(12, axis=1)  # the truth keeps its speed, the model draws it anew
    truth = np.cumsum(moves, axis=1) - moves * generator.integers(0, 40, (60, 1, 1))
    model = truth[:, :1] + np.cumsum(generator.normal(size=(60, 12, 3)), axis=1)
    model += 6 * generator.normal(size=(60, 1, 3))
    kept = c2st_rollouts(model, truth, PLAIN, states=3).mean()
    assert kept > c2st_rollouts(model, truth, PLAIN, states=2).mean() + 0.1
    assert kept > 0.85


def test_c2st_holds_out_whole_trajectories() -> None:
    generator = np.random.default_rng(26)
    # All windows of a trajectory lie close together: who has seen one of them knows the others.
    model, truth = (generator.normal(size=(30, 1, 1, 3)) + 1e-2 * generator.normal(size=(30, 20, 2, 3)) for _ in range(2))
    assert c2st(model, truth, PLAIN).mean() == pytest.approx(0.5, abs=0.15)


def test_c2st_given_the_action() -> None:
    generator = np.random.default_rng(27)
    start, action = generator.normal(size=(2, 60, 20, 3))
    truth = np.stack([start, start + action], axis=2)
    model = np.stack([start, start + generator.normal(size=start.shape)], axis=2)  # moves as much, but not as it is told
    assert c2st(model, truth, PLAIN).mean() == pytest.approx(0.5, abs=0.04)
    assert c2st(model, truth, PLAIN, model_given=action, truth_given=action).mean() > 0.75


def test_c2st_that_sees_the_structure() -> None:
    generator = np.random.default_rng(28)
    coupled = (Field("joint", 2, couplings=(Coupling("tendon", (0, 1), (1.0, -1.0)),)),)
    first = 3 * generator.normal(size=(60, 21, 1))
    truth, model = (
        np.concatenate([first, first + slack * generator.uniform(-1, 1, first.shape)], axis=2) for slack in (0.01, 0.05)
    )
    plain, seen = (c2st_rollouts(model, truth, coupled, structure=structure).mean() for structure in (False, True))
    assert seen > 0.85 > plain + 0.1
    assert has_structure(coupled)
    assert not has_structure(PLAIN)


def test_window_times() -> None:
    times = window_times(50, 8, 3, 4, seed=1)
    assert times.shape == (50, 4)
    assert set(times.ravel()) == set(range(6))
    assert all(len(set(row)) == 4 for row in times)
    assert window_times(2, 4, 3, 20).shape == (2, 2)
    states = np.arange(10).reshape(2, 5, 1)
    np.testing.assert_array_equal(windows_at(states, np.array([[0, 2], [3, 1]]), 2)[1, 0, :, 0], [8, 9])
    with pytest.raises(EbmtrajError, match="no window of 3"):
        window_times(2, 2, 3, 20)
    with pytest.raises(EbmtrajError, match="too few for 3 folds"):
        c2st(np.zeros((2, 4, 2, 3)), np.zeros((2, 4, 2, 3)), PLAIN)
    with pytest.raises(EbmtrajError, match="as many"):
        c2st(np.zeros((5, 4, 2, 3)), np.zeros((6, 4, 2, 3)), PLAIN)


# --- Scores -------------------------------------------------------------------------------------------------------


def drifts(generator: np.random.Generator, starts: int, count: int, spread: float = 1.0) -> tuple[np.ndarray, np.ndarray]:
    """Samples (N, m, 3, 3) and truths (N, 3, 3) that move from a common start by noise of another scale at each start."""
    scale = generator.gamma(2.0, size=(starts, 1, 1, 1)) * [0, 1, 5] * np.ones((3, 1))
    moves = np.moveaxis(scale, 3, 2) * generator.standard_t(3, size=(starts, count + 1, 3, 3))
    states = generator.normal(size=(starts, 1, 1, 3)) + moves * np.r_[1.0, [spread] * count][:, None, None]
    return states[:, 1:], states[:, 0]


@pytest.mark.parametrize("count", [2, 4, 8, 19, 27])
def test_coverage_of_a_calibrated_model_is_90_percent_for_any_number_of_samples(count: int) -> None:
    generator = np.random.default_rng(count)
    samples, truth = drifts(generator, 4000, count)
    values = coverage90(samples, truth, PLAIN)
    assert values is not None
    assert values.shape == (3, 3)
    np.testing.assert_allclose(values, 0.9, atol=0.025)
    assert values[1:].mean() == pytest.approx(0.9, abs=0.008)
    assert np.abs(values[1:] - 0.9).mean() < 3 * calibrated_error(count, 4000)
    # Too narrow and too wide lie on either side; without any spread nothing is lower.
    narrow, _ = drifts(generator, 4000, count, 0.5)
    narrow, wide = (truth[:, None, :1] + each - each[:, :, :1] for each in (0.5 * samples, 3 * samples))
    low, high = coverage90(narrow, truth, PLAIN), coverage90(wide, truth, PLAIN)
    point = coverage90(np.repeat(truth[:, None, :1] + [[0], [1e3], [1e3]], count, axis=1), truth, PLAIN)
    assert low is not None
    assert high is not None
    assert point is not None
    assert low[1:].mean() < 0.9 - 0.15 * (0.9 - least_coverage(count)) < 0.9 < high[1:].mean()
    np.testing.assert_allclose(point[1:], least_coverage(count), atol=1e-3)


def test_coverage_is_the_share_between_the_ends_of_19_samples() -> None:
    generator = np.random.default_rng(28)
    samples, truth = drifts(generator, 300, 19)
    inside = (truth >= samples.min(axis=1)) & (truth <= samples.max(axis=1))
    values = coverage90(samples, truth, PLAIN)
    assert values is not None
    np.testing.assert_allclose(values[1:], inside[:, 1:].mean(axis=0))
    assert values[0] == pytest.approx(0.9)  # at the start all are equal, and any order of them is as likely
    assert least_coverage(19) == pytest.approx(0.0, abs=1e-12)
    assert least_coverage(4) == pytest.approx(0.75)
    assert coverage90(samples[:, :1], truth, PLAIN) is None


def test_coverage_of_orientations_does_not_hang_on_signs() -> None:
    generator = np.random.default_rng(29)
    truth = rollouts(generator, 40)
    samples = np.stack([truth] * 5, axis=1)
    samples[:, :, 1:, 3:] *= -1
    samples[..., 2] += 2 * math.pi  # the bearing
    values = coverage90(samples, truth, FIELDS)
    assert values is not None
    assert values.shape == (7, 6)
    np.testing.assert_allclose(values, 0.9)


def test_net_turning_leaves_jitter_out() -> None:
    angles = 0.5 * np.arange(41)  # three turns and more
    spin = np.zeros((2, 41, S))
    spin[0, :, 3:] = quaternions(Rotation.from_rotvec(angles[:, None] * np.array([0.6, 0.0, 0.8])), (41,))
    spin[1, :, 3:] = quaternions(Rotation.from_rotvec(0.4 * (np.arange(41) % 2)[:, None] * np.array([1.0, 0, 0])), (41,))
    np.testing.assert_allclose(net_turning(spin, slice(3, 7)), [20.0, 0.0], atol=1e-9)
    np.testing.assert_allclose(turning(spin, slice(3, 7)).sum(-1), [20.0, 16.0])


def test_crps_of_a_gaussian_is_its_closed_form() -> None:
    generator = np.random.default_rng(7)
    mean, std = 0.7, 1.6
    samples = mean + std * generator.normal(size=(1, 40_000, 1, 1))
    y = 1.9
    z = (y - mean) / std
    density, below = math.exp(-z * z / 2) / math.sqrt(2 * math.pi), 0.5 * (1 + math.erf(z / math.sqrt(2)))
    expected = std * (z * (2 * below - 1) + 2 * density - 1 / math.sqrt(math.pi))  # Gneiting & Raftery 2007
    values = crps(samples, np.full((1, 1, 1), y), np.zeros(1), np.ones(1))
    assert values is not None
    assert values[0, 0] == pytest.approx(expected, abs=0.02)
    # In units of the training spread it scales with it.
    scaled = crps(samples, np.full((1, 1, 1), y), np.full(1, 5.0), np.full(1, 4.0))
    assert scaled is not None
    assert scaled[0, 0] == pytest.approx(values[0, 0] / 4)


def test_energy_score_is_the_crps_in_one_dimension_and_unbiased() -> None:
    generator = np.random.default_rng(8)
    samples, truth = generator.normal(size=(4000, 2, 3, 1)), generator.normal(size=(4000, 3, 1))
    scores = energy_score(samples, truth, np.zeros(1), np.ones(1))
    one = crps(samples, truth, np.zeros(1), np.ones(1))
    assert scores is not None
    assert one is not None
    np.testing.assert_allclose(scores, one[:, 0])
    # E|X - y| - E|X - X'| / 2 with all of them N(0, 1) is 1 / sqrt(pi), for 2 samples as for any number.
    assert scores.mean() == pytest.approx(1 / math.sqrt(math.pi), abs=0.02)


def test_energy_score_of_three_points_by_hand() -> None:
    samples = np.array([[0.0, 0.0], [3.0, 4.0], [0.0, 4.0]]).reshape(1, 3, 1, 2)
    value = energy_score(samples, np.zeros((1, 1, 2)), np.zeros(2), np.ones(2))
    assert value == pytest.approx([(0 + 5 + 4) / 3 - (5 + 4 + 3) / 3 / 2])
    assert diversity(samples, np.zeros(2), np.ones(2)) == pytest.approx([4.0])


def test_energy_score_is_least_for_the_true_distribution() -> None:
    generator = np.random.default_rng(9)
    truth = generator.normal(size=(3000, 1, 4))
    noise = generator.normal(size=(3000, 6, 1, 4))

    def score(samples: np.ndarray) -> float:
        values = energy_score(samples, truth, np.zeros(4), np.ones(4))
        assert values is not None
        return float(values[0])

    true = score(noise)
    for wrong in (1.4 * noise, 0.6 * noise, 0.0 * noise, noise + 0.4, np.repeat(noise[:, :1], 6, axis=1)):
        assert score(wrong) > true + 0.01


def test_turning_counts_every_step_and_does_not_wrap() -> None:
    angles = 0.5 * np.arange(21)  # 10 rad about z in 20 steps
    rotation = Rotation.from_rotvec(angles[:, None] * np.array([0.0, 0.0, 1.0]))
    states = np.zeros((21, S))
    states[:, 3:] = quaternions(rotation, (21,))
    np.testing.assert_allclose(turning(states, slice(3, 7)), 0.5)
    states[::2, 3:] *= -1  # the same orientations
    assert turning(states, slice(3, 7)).sum() == pytest.approx(10.0)


def test_rotation_error_is_the_angle_between() -> None:
    generator = np.random.default_rng(10)
    truth = rollouts(generator, 5)
    samples = np.repeat(truth[:, None], 2, axis=1)
    offset = Rotation.from_rotvec([0.0, 0.3, 0.4])
    true = Rotation.from_quat(truth[..., 3:].reshape(-1, 4), scalar_first=True)
    samples[:, 1, :, 3:] = quaternions(offset * true, truth.shape[:2])
    np.testing.assert_allclose(rotation_error(samples, truth, FIELDS), 0.25)  # one of two samples is 0.5 rad off
    assert rotation_error(samples[..., :2], truth[..., :2], (JOINT,)) is None


def test_violations() -> None:
    samples = np.zeros((2, 2, 3, S))
    samples[..., 3] = 1.0
    assert quaternion_violation(samples, FIELDS) == pytest.approx(np.zeros(3))
    assert limit_violation(samples, FIELDS) == pytest.approx(np.zeros(3))
    samples[0, 0, 1, 3] = 1.4
    samples[0, 0, 2, :2] = 1.015, -2.05  # the first within the margin of 1 % of 2 rad, the second beyond 1 % of 4
    samples[1, 1, 2, 1] = 2.05
    assert quaternion_violation(samples, FIELDS) == pytest.approx([0, 0.1, 0])
    assert limit_violation(samples, FIELDS) == pytest.approx([0, 0, 2 / 8])
    assert limit_violation(samples, (Field("free", S),)) is None
    one_sided = (Field("height", S, low=(0.0,) * S),)
    # All but w lie below 0; at the last step one joint of two rollouts in four does not either.
    assert limit_violation(samples - 1.0, one_sided) == pytest.approx([6 / 7, 6 / 7, (2 * 6 + 2 * 5) / 28])


def test_a_whole_turn_is_no_error() -> None:
    generator = np.random.default_rng(3)
    truth = rollouts(generator, 40)
    truth[..., 2] = generator.normal(0, 3, truth.shape[:2])  # the bearing, all round
    mean, std = truth.mean(axis=(0, 1)), truth.std(axis=(0, 1))
    turned = truth.copy()
    turned[..., 2] += 2 * np.pi * generator.integers(-2, 3, truth.shape[:2])
    samples = np.stack([turned, truth, turned], axis=1)
    for name in ("frechet", "frechet_changes", "sliced_wasserstein", "energy_score", "crps", "diversity", "coverage90"):
        near = measure(name, samples, truth, FIELDS, mean, std)
        exact = measure(name, np.stack([truth] * 3, axis=1), truth, FIELDS, mean, std)
        np.testing.assert_allclose(near, exact, rtol=0, atol=1e-6, err_msg=name)
    assert frechet_over_time(turned, truth, mean, std).max() > 0.3  # as plain numbers they are far apart


@pytest.mark.parametrize("spread", [1e-3, 0.1, 30.0])
def test_an_angle_of_little_spread_is_its_z_score(spread: float) -> None:
    angle = np.random.default_rng(0).normal(4.0, spread, (5000, 1))
    z = standardise(angle, np.full(1, 4.0), np.full(1, spread), (Field("bearing", 1, "angle"),))
    assert z.shape == (5000, 2)
    if spread < 1:
        np.testing.assert_allclose(z[:, :1], (angle - 4) / spread, atol=20 * spread**2)
        assert np.abs(z[:, 1]).mean() < spread
    else:
        np.testing.assert_allclose(z.std(axis=0), 1.0, atol=0.03)  # all round
    limited = Field("joint", 1, "angle", low=(-9.0,), high=(9.0,))
    np.testing.assert_array_equal(standardise(angle, np.full(1, 4.0), np.full(1, spread), (limited,)), (angle - 4) / spread)


# --- The registry and the whole ------------------------------------------------------------------------------------


@pytest.fixture
def arrays() -> dict[str, np.ndarray]:
    generator = np.random.default_rng(11)
    truth, other = rollouts(generator, 20), rollouts(generator, 20)
    samples = rollouts(generator, 20, 3)
    return {
        "samples": samples,
        "truth": truth,
        "other_truth": other,
        "mean": truth.mean(axis=(0, 1)),
        "std": truth.std(axis=(0, 1)),
    }


@pytest.mark.parametrize("name", METRICS)
def test_metric_contract(name: str, arrays: dict[str, np.ndarray]) -> None:
    metric = METRICS[name]
    document = metric.__doc__ or ""
    assert "(T" in document, "states the shapes"
    assert any(str(year) in document for year in range(1950, 2030)) or "Paper" in document or "documentation" in document
    assert set(inspect.signature(metric).parameters) <= {"samples", "model", "truth", "fields", "mean", "std"}

    samples, truth, mean, std = (arrays[key] for key in ("samples", "truth", "mean", "std"))
    for array in arrays.values():
        array.setflags(write=False)  # pure: nothing given is changed
    values = measure(name, samples, truth, FIELDS, mean, std)
    assert values is not None
    assert values.dtype == np.float64
    assert values.shape in {(7,), (6,)}
    assert np.isfinite(values).all()
    np.testing.assert_array_equal(values, measure(name, samples, truth, FIELDS, mean, std))  # deterministic
    order = np.random.default_rng(0).permutation(20)  # no metric hangs on the order of episodes
    np.testing.assert_allclose(values, measure(name, samples[order], truth[order], FIELDS, mean, std), atol=1e-9)
    single = measure(name, samples.astype(np.float32), truth.astype(np.float32), FIELDS, mean, std)
    np.testing.assert_allclose(values, single, atol=1e-4)
    # A sound model scores no worse than one that throws the state about; `diversity` has no better or worse.
    wild = samples + np.random.default_rng(1).normal(size=samples.shape) * 3
    worse = measure(name, wild, truth, FIELDS, mean, std)
    assert worse is not None
    assert worse.mean() > values.mean()


def test_evaluate_rollouts_is_strict_json_of_plain_numbers(arrays: dict[str, np.ndarray]) -> None:
    result = evaluate_rollouts(fields=FIELDS, **arrays)  # type: ignore[arg-type]
    assert json.loads(json.dumps(result, allow_nan=False)) == result
    assert (result["starts"], result["samples"], result["steps"], result["floor_starts"]) == (20, 3, 6, 20)
    samples, truth, other, mean, std = (arrays[k] for k in ("samples", "truth", "other_truth", "mean", "std"))
    curve = frechet_over_time(samples[:, 0], truth, mean, std, FIELDS)
    assert result["frechet_over_time"] == curve.tolist()
    assert result["frechet"] == pytest.approx(curve[1:].mean())  # the start is no prediction
    assert result["frechet_changes"] == pytest.approx(frechet_of_changes(samples[:, 0], truth, FIELDS).mean())
    assert result["floor"] == pytest.approx(frechet_over_time(truth, other, mean, std, FIELDS)[1:].mean())
    assert result["floor_changes"] == pytest.approx(frechet_of_changes(truth, other, FIELDS).mean())
    scores = energy_score(samples, truth, mean, std, FIELDS)
    assert scores is not None
    assert result["energy_score"] == pytest.approx(scores[1:].mean())
    assert result["turning"]["model"] == pytest.approx(turning(samples, slice(3, 7)).sum(-1).mean())
    assert result["turning"]["truth"] == pytest.approx(turning(truth, slice(3, 7)).sum(-1).mean())
    assert len(result["floor_over_time"]) == len(result["energy_score_over_time"]) == 7


def test_evaluate_rollouts_tells_model_from_truth(arrays: dict[str, np.ndarray]) -> None:
    arrays["samples"] = arrays["truth"][:, None] + [[[[0]], [[0.1]], [[-0.1]]]] * np.ones(S)
    arrays["samples"][..., 3:] = arrays["truth"][:, None, :, 3:]
    result = evaluate_rollouts(fields=FIELDS, **arrays)  # type: ignore[arg-type]
    truth, other = arrays["truth"], arrays["other_truth"]
    assert result["c2st_rollout_folds"] == c2st_rollouts(arrays["samples"][:, 0], truth, FIELDS).tolist()
    assert result["c2st_null"] == pytest.approx(c2st_rollouts(other, truth, FIELDS).mean())
    expected = sliced_wasserstein(truth, other, arrays["mean"], arrays["std"], FIELDS)[1:].mean()
    assert result["floor_sliced"] == pytest.approx(expected)
    assert result["sliced_wasserstein"] == 0.0
    assert (result["rotation_ratio"], result["net_rotation_ratio"]) == (pytest.approx(1.0), pytest.approx(1.0))
    assert len(result["coverage90_by_dimension"]) == 6
    covered = coverage90(arrays["samples"], truth, FIELDS)
    assert covered is not None
    assert result["coverage90_error"] == pytest.approx(np.abs(covered[1:] - 0.9).mean())
    assert result["coverage90_least"] == pytest.approx(0.8)
    assert result["simulator"] is result["penetration"] is None
    arrays["samples"] = rollouts(np.random.default_rng(32), 20, 5)
    covered = coverage90(arrays["samples"], truth, FIELDS)
    assert covered is not None
    error = evaluate_rollouts(fields=FIELDS, **arrays)["coverage90_error"]  # type: ignore[arg-type]
    assert error == pytest.approx(np.abs(covered[1:] - 0.9).mean())
    assert (
        error > abs(covered[1:].mean() - 0.9) + 0.01
    )  # what is too wide here does not make up for what is too narrow there
    frozen = np.repeat(truth[:, None, :1], 7, axis=2)
    result = evaluate_rollouts(fields=FIELDS, **(arrays | {"samples": frozen}))  # type: ignore[arg-type]
    assert (result["rotation_ratio"], result["net_rotation_ratio"]) == pytest.approx((0, 0), abs=1e-9)
    assert result["c2st_rollout"] > 0.95


def test_evaluate_rollouts_judges_single_steps(arrays: dict[str, np.ndarray]) -> None:
    generator = np.random.default_rng(30)
    truth, times = arrays["truth"], one_step_times(20, 6)
    assert times.shape == (20, 6)
    row = np.arange(20)[:, None]

    def judge(following: np.ndarray, futures: np.ndarray | None = None, **given: np.ndarray) -> dict:
        one = OneStep(times, following, futures, **given)
        result = evaluate_rollouts(fields=FIELDS, one_step=one, **arrays)  # type: ignore[arg-type]
        json.dumps(result, allow_nan=False)
        return result

    # The same law as the fixture's: noise of 0.2 on what is plain; turned by none, as it is not looked at here.
    futures = np.repeat(truth[row, times + 1][:, None], 19, axis=1)[:, :, :3]
    state = truth[row, times][:, None, :3]
    futures[..., :3] = state[..., :3] + 0.2 * generator.normal(size=(20, 19, 3, 3))
    sound = judge(truth[row, times + 1], futures)
    assert sound["c2st_one_step"] == pytest.approx(0.5, abs=0.05)
    assert sound["c2st_one_step_null"] == pytest.approx(sound["c2st_null"])  # pairs of states, at the same times
    assert np.mean(sound["coverage90_one_step_by_dimension"][:3]) == pytest.approx(0.9, abs=0.06)
    stays = judge(truth[row, times])
    assert stays["c2st_one_step"] > 0.95
    assert stays["coverage90_one_step"] is stays["coverage90_one_step_error"] is None
    told = judge(truth[row, times + 1], given=np.zeros((20, 6, 2)))
    assert told["c2st_one_step_null"] is None  # without the other truth's actions it would be another test
    told = judge(truth[row, times + 1], given=np.zeros((20, 6, 2)), other_given=np.ones((20, 6, 2)))
    assert told["c2st_one_step_null"] > 0.99
    with pytest.raises(EbmtrajError, match="one_step_times"):
        judge(truth[row, times + 1][:, :3])
    with pytest.raises(EbmtrajError, match="diverged"):
        judge(np.full((20, 6, S), np.nan))


def test_evaluate_rollouts_beside_the_simulator(arrays: dict[str, np.ndarray]) -> None:
    truth, samples = arrays["truth"], arrays["samples"]
    generator = np.random.default_rng(31)
    futures = truth[:8, None].repeat(4, axis=1)
    futures[:, :, 1:, :3] += generator.normal(size=(8, 4, 6, 3))
    arrays["samples"] = futures[:, :2].repeat(3, axis=0)[:20]  # of no matter which start; as many as there are truths
    result = evaluate_rollouts(fields=FIELDS, simulator=futures, **arrays)["simulator"]  # type: ignore[arg-type]
    scores = energy_score(futures, truth[:8], arrays["mean"], arrays["std"], FIELDS)
    assert scores is not None
    assert (result["starts"], result["samples"]) == (8, 4)
    assert result["energy_score"] == pytest.approx(scores[1:].mean())
    assert result["diversity_ratio"] == pytest.approx(result["diversity_model"] / result["diversity"])
    model = diversity(arrays["samples"][:8], arrays["mean"], arrays["std"], FIELDS)
    assert model is not None
    assert result["diversity_model"] == pytest.approx(model[1:].mean())
    for wrong, message in (
        (futures[:, :, 1:], "match the truth's"),
        (futures[::-1], "start where"),
        (samples, "start where"),
    ):
        with pytest.raises(EbmtrajError, match=message):
            evaluate_rollouts(fields=FIELDS, simulator=wrong, **arrays)  # type: ignore[arg-type]


def test_evaluate_rollouts_measures_penetration_behind_the_start(arrays: dict[str, np.ndarray]) -> None:
    arrays["samples"] = 2 * arrays["truth"][:, None]
    depth = lambda states: np.abs(states[:, 0])  # noqa: E731
    result = evaluate_rollouts(fields=FIELDS, penetration=depth, **arrays)["penetration"]  # type: ignore[arg-type]
    assert result["truth"]["mean"] == pytest.approx(np.abs(arrays["truth"][:, 1:, 0]).mean())
    assert result["truth"]["p95"] == pytest.approx(np.quantile(np.abs(arrays["truth"][:, 1:, 0]), 0.95))
    assert (result["ratio_mean"], result["ratio_p95"]) == (pytest.approx(2.0), pytest.approx(2.0))


def test_without_other_truth_the_floor_is_between_halves(arrays: dict[str, np.ndarray]) -> None:
    arrays.pop("other_truth")
    result = evaluate_rollouts(other_truth=None, fields=FIELDS, **arrays)  # type: ignore[arg-type]
    one, two = halves(arrays["truth"])
    expected = frechet_over_time(one, two, arrays["mean"], arrays["std"], FIELDS)[1:].mean()
    assert result["floor"] == pytest.approx(expected)
    assert result["floor_starts"] == 10


def test_what_is_undefined_is_null(arrays: dict[str, np.ndarray]) -> None:
    plain = {key: value[..., :3] for key, value in arrays.items()}
    plain["samples"] = plain["samples"][:, :1]
    result = evaluate_rollouts(fields=(Field("x", 3),), **plain)  # type: ignore[arg-type]
    for name in ("turning", "energy_score", "energy_score_over_time", "rotation_error", "limit_violation"):
        assert result[name] is None
    json.dumps(result, allow_nan=False)


def test_perfect_rollouts_score_zero(arrays: dict[str, np.ndarray]) -> None:
    arrays["samples"] = np.repeat(arrays["truth"][:, None], 2, axis=1)
    result = evaluate_rollouts(fields=FIELDS, **arrays)  # type: ignore[arg-type]
    for name in ("frechet", "frechet_changes", "energy_score", "crps", "rotation_error"):
        assert result[name] == pytest.approx(0.0, abs=1e-6), name


@pytest.mark.parametrize("value", [np.nan, np.inf, -1e35])
def test_a_diverged_model_is_said_to_have_diverged(arrays: dict[str, np.ndarray], value: float) -> None:
    arrays["samples"][2, 1, 4:, 0] = value
    arrays["samples"][7, 0, 5:, 1] = value
    with pytest.raises(EbmtrajError, match=r"^the model diverged: 2 of 60 rollouts .* from step 4 on; .*$"):
        evaluate_rollouts(fields=FIELDS, **arrays)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"truth": np.zeros((20, 9, S))}, "don't match the truth's"),
        ({"samples": np.zeros((20, 7, S))}, "expected"),
        ({"mean": np.zeros(3)}, "state fields make up 7"),
        ({"other_truth": np.zeros((20, 9, S))}, "other truth"),
        ({"other_truth": np.full((20, 7, S), np.nan)}, "other truth holds NaN"),
        ({"truth": np.full((20, 7, S), np.nan)}, "truth holds NaN"),
        ({"std": np.full(S, np.nan)}, "statistics"),
        ({"other_truth": None, "truth": np.zeros((3, 7, S)), "samples": np.zeros((3, 2, 7, S))}, "too few"),
        ({"samples": np.zeros((20, 0, 7, S))}, "nothing to score"),
    ],
)
def test_what_cannot_be_scored_is_refused(arrays: dict[str, np.ndarray], changed: dict, message: str) -> None:
    with pytest.raises(EbmtrajError, match=message) as error:
        evaluate_rollouts(fields=FIELDS, **(arrays | changed))
    assert "\n" not in str(error.value)


def test_a_single_point_has_no_gaussian() -> None:
    with pytest.raises(EbmtrajError, match="2 or more points"):
        frechet_distance(np.zeros((1, 3)), np.zeros((5, 3)))
