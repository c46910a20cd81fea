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

from ebmtraj.errors import EbmtrajError
from ebmtraj.evaluation.arrays import changes, standardise
from ebmtraj.evaluation.evaluate import evaluate_rollouts
from ebmtraj.evaluation.frechet import (
    frechet_distance,
    frechet_floor,
    frechet_of_changes,
    frechet_over_time,
    halves,
)
from ebmtraj.evaluation.registry import METRICS, measure
from ebmtraj.evaluation.scores import (
    crps,
    diversity,
    energy_score,
    limit_violation,
    quaternion_violation,
    rotation_error,
    turning,
)
from ebmtraj.fields import Field, total_size

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
    for _ in range(3):
        begin = time.process_time()
        frechet_over_time(model, truth, np.zeros(31), np.ones(31))
        seconds.append(time.process_time() - begin)
    assert min(seconds) < 1.0


# --- Scores -------------------------------------------------------------------------------------------------------


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
    curve = frechet_over_time(samples[:, 0], truth, mean, std)
    assert result["frechet_over_time"] == curve.tolist()
    assert result["frechet"] == pytest.approx(curve[1:].mean())  # the start is no prediction
    assert result["frechet_changes"] == pytest.approx(frechet_of_changes(samples[:, 0], truth, FIELDS).mean())
    assert result["floor"] == pytest.approx(frechet_over_time(truth, other, mean, std)[1:].mean())
    assert result["floor_changes"] == pytest.approx(frechet_of_changes(truth, other, FIELDS).mean())
    scores = energy_score(samples, truth, mean, std)
    assert scores is not None
    assert result["energy_score"] == pytest.approx(scores[1:].mean())
    assert result["turning"]["model"] == pytest.approx(turning(samples, slice(3, 7)).sum(-1).mean())
    assert result["turning"]["truth"] == pytest.approx(turning(truth, slice(3, 7)).sum(-1).mean())
    assert len(result["floor_over_time"]) == len(result["energy_score_over_time"]) == 7


def test_without_other_truth_the_floor_is_between_halves(arrays: dict[str, np.ndarray]) -> None:
    arrays.pop("other_truth")
    result = evaluate_rollouts(other_truth=None, fields=FIELDS, **arrays)  # type: ignore[arg-type]
    one, two = halves(arrays["truth"])
    expected = frechet_over_time(one, two, arrays["mean"], arrays["std"])[1:].mean()
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
