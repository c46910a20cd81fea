"""Transitions never cross an episode, splits never share one, and normalised means zero mean and unit spread."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from ebmtraj.datasets.blocks import EpisodeBlock, StoreRecipe
from ebmtraj.datasets.normaliser import Normaliser
from ebmtraj.datasets.store import Store
from ebmtraj.datasets.windows import SPLITS, Transitions, trajectories, usual_steps
from ebmtraj.datasets.writer import StoreWriter
from ebmtraj.errors import EbmtrajError
from ebmtraj.evaluation.scores import limit_violation
from ebmtraj.fields import Field

STATE = (Field("episode", 1), Field("t", 1), Field("joint", 2, "angle"), Field("turn", 4, "quaternion"), Field("still", 1))
ACTION = (Field("mark", 2),)


def plant(path: Path, lengths: list[int], terminated: bool = False) -> Store:
    """Episodes whose rows say which episode and time they are; the action says so, too."""
    recipe = StoreRecipe(
        env="planted", control_timestep=0.1, state_fields=STATE, action_fields=ACTION, policy={"name": "none"}
    )
    states, actions = [], []
    rng = np.random.default_rng(0)
    for episode, length in enumerate(lengths):
        t = np.arange(length + 1)
        q = rng.normal(size=(length + 1, 4))
        q /= np.linalg.norm(q, axis=1, keepdims=True)
        joints = np.cumsum(rng.normal(size=(length + 1, 2)) @ [[0.3, 0.2], [0.0, 0.05]], 0)
        states.append(np.column_stack((np.full(length + 1, episode), t, joints, q, np.full(length + 1, 0.5))))
        actions.append(np.column_stack((np.full(length, episode), t[:-1])))
    writer = StoreWriter.create(path, recipe)
    size = np.array(lengths)
    numbers = np.arange(len(lengths), dtype=np.uint64)
    writer.append_block(
        EpisodeBlock(np.concatenate(states), np.concatenate(actions), size, numbers, np.full(len(size), terminated))
    )
    return writer.finish()


LENGTHS = [1, 7, 3, 12, 1, 5, 9, 2, 2, 8, 4, 1, 6, 11, 3, 3, 1, 10, 2, 5]


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    return plant(tmp_path_factory.mktemp("planted") / "s.zarr", LENGTHS)


@pytest.mark.parametrize("split", SPLITS)
def test_no_transition_crosses_an_episode(store: Store, split: str) -> None:
    data = Transitions.load(store, split, actions=True)
    batch = data.at(torch.arange(len(data)))
    assert batch.action is not None
    assert batch.state[:, 0].equal(batch.next_state[:, 0])  # same episode
    assert (batch.state[:, 1] + 1).equal(batch.next_state[:, 1])  # next time
    assert batch.action.equal(batch.state[:, :2])  # the action taken there
    seen = {(int(e), int(t)) for e, t in batch.state[:, :2].tolist()}
    assert seen == {(int(e), t) for e in store.split(split) for t in range(LENGTHS[e])}
    assert len(seen) == len(data)


def test_sampling_covers_all_and_follows_its_generator(store: Store) -> None:
    data = Transitions.load(store, "train")
    drawn = data.sample(4000, torch.Generator().manual_seed(3))
    assert drawn.action is None
    seen = {tuple(row) for row in drawn.state[:, :2].tolist()}
    assert len(seen) == len(data)
    assert drawn.state.equal(data.sample(4000, torch.Generator().manual_seed(3)).state)
    assert not drawn.state.equal(data.sample(4000, torch.Generator().manual_seed(4)).state)


def test_splits_share_no_episode(store: Store) -> None:
    parts = [set(Transitions.load(store, split).state[:, 0].tolist()) for split in SPLITS]
    assert sum(len(part) for part in parts) == len(set.union(*parts)) == len(LENGTHS)
    assert [len(part) for part in parts] == [14, 2, 4]


def test_trajectories_are_whole_episodes(store: Store) -> None:
    found = trajectories(store, "train", 5)
    long = [int(e) for e in store.split("train") if LENGTHS[e] >= 5]
    assert found.episodes.tolist() == long
    assert found.shorter == 14 - len(long)
    assert found.states.shape == (len(long), 6, 9)
    assert found.actions.shape == (len(long), 5, 2)
    for place, episode in enumerate(long):
        assert found.states[place, :, 0].tolist() == [episode] * 6
        assert found.states[place, :, 1].tolist() == list(range(6))
        assert found.actions[place].equal(found.states[place, :-1, :2])
    assert trajectories(store, "train", 5, limit=2).episodes.tolist() == long[:2]
    with pytest.raises(EbmtrajError, match="fewer --steps"):
        trajectories(store, "train", 13)


def test_what_terminated_can_be_held(store: Store, tmp_path: Path) -> None:
    assert trajectories(store, "train", 5, hold=True).shorter > 0  # its short episodes are cut off, not terminated
    ended = plant(tmp_path / "ended.zarr", LENGTHS, terminated=True)
    found = trajectories(ended, "train", 5, hold=True)
    assert found.episodes.tolist() == list(ended.split("train"))
    assert (found.shorter, found.held) == (0, sum(LENGTHS[e] < 5 for e in ended.split("train")))
    for place, episode in enumerate(found.episodes):
        times = [min(t, LENGTHS[episode]) for t in range(6)]
        assert found.states[place, :, 0].tolist() == [episode] * 6
        assert found.states[place, :, 1].tolist() == times
        assert found.actions[place, :, 1].tolist() == [min(t, LENGTHS[episode] - 1) for t in range(5)]


def test_what_can_not_be_trained_on(tmp_path: Path) -> None:
    few = plant(tmp_path / "few.zarr", [3])
    empty = next(split for split in SPLITS if len(few.split(split)) == 0)
    with pytest.raises(EbmtrajError, match=f"{empty} split"):
        Transitions.load(few, empty)
    with pytest.raises(EbmtrajError, match="unknown split"):
        Transitions.load(few, "all")


def fitted(store: Store, *, whiten: bool = False) -> tuple[Normaliser, Transitions]:
    data = Transitions.load(store, "train", actions=True)
    return Normaliser(STATE, ACTION).fit(data, whiten=whiten), data


def deltas(normaliser: Normaliser, data: Transitions) -> Tensor:
    batch = data.at(torch.arange(len(data)))
    return normaliser.delta(batch.state, batch.next_state)


def test_moments(store: Store) -> None:
    normaliser, data = fitted(store)
    z = normaliser.normalise_state(data.state)
    moving = [0, 1, 2, 3, 4, 5, 6, 7]
    torch.testing.assert_close(z.mean(0), torch.zeros(9), rtol=0, atol=1e-5)
    torch.testing.assert_close(z.std(0, unbiased=False)[moving], torch.ones(8), rtol=0, atol=1e-4)
    assert z[:, 8].eq(0).all()  # a constant keeps scale 1
    assert normaliser.state_scale[8] == 1
    torch.testing.assert_close(normaliser.restore_state(z), data.state, rtol=0, atol=1e-5)
    d = deltas(normaliser, data)
    torch.testing.assert_close(d.mean(0), torch.zeros(8), rtol=0, atol=1e-4)
    torch.testing.assert_close(d.std(0, unbiased=False)[2:7], torch.ones(5), rtol=0, atol=1e-4)
    batch = data.at(torch.arange(len(data)))
    assert batch.action is not None
    context = normaliser.context(data.state, matrices=True)
    assert context.shape == (len(data.state), 2 + 2 * 2 + 9 + 1)
    torch.testing.assert_close(context.mean(0), torch.zeros(16), rtol=0, atol=1e-4)
    actions = normaliser.context(batch.state, batch.action, matrices=False)[:, 9:]
    torch.testing.assert_close(actions.std(0, unbiased=False), torch.ones(2), rtol=0, atol=1e-4)
    far = normaliser.context(batch.state + 1e4, batch.action)
    assert far.abs().max() == 6


@pytest.mark.parametrize("whiten", [False, True])
@pytest.mark.parametrize("chunk", [1, 7, 50])
def test_moments_do_not_depend_on_the_chunk(store: Store, whiten: bool, chunk: int) -> None:
    whole, data = fitted(store, whiten=whiten)
    assert len(data) > chunk
    parts = Normaliser(STATE, ACTION).fit(data, whiten=whiten, chunk=chunk)
    for name, value in whole.state_dict().items():
        torch.testing.assert_close(value, parts.state_dict()[name], rtol=1e-5, atol=1e-6)


def test_moments_of_one_chunk_are_the_plain_formulas(store: Store) -> None:
    """To the bit: what was trained before reproduces."""
    normaliser, data = fitted(store, whiten=True)
    wide = data.state.double()
    assert normaliser.state_mean.equal(wide.mean(0).float())
    moving = [0, 1, 2, 3, 4, 5, 6, 7]
    assert normaliser.state_scale[moving].equal(wide.std(0, unbiased=False).float()[moving])
    batch = data.at(torch.arange(len(data)))
    d = normaliser.increments.between(batch.state, batch.next_state)
    z = (d - normaliser.delta_mean).double()
    moves = d.amax(0) > d.amin(0)
    spread = torch.where(moves, 1e-6 * d.double().std(0, unbiased=False).float().double() ** 2, 1.0)
    root = torch.linalg.cholesky(z.T @ z / len(z) + torch.diag(spread))
    assert normaliser.delta_matrix.equal(torch.linalg.inv(root).T.float())


def test_moments_far_from_zero_keep_their_precision() -> None:
    rows = 1000 + torch.randn(500, 1, generator=torch.Generator().manual_seed(0))
    state = torch.cat((rows, rows.square().sqrt(), torch.full((500, 1), 7.0)), dim=1)
    data = Transitions(state, None, torch.arange(499), torch.arange(499))
    normaliser = Normaliser((Field("x", 3),), ()).fit(data, chunk=9)
    torch.testing.assert_close(
        normaliser.state_scale[:2].double(), state.double().std(0, unbiased=False)[:2], rtol=1e-6, atol=0
    )
    assert normaliser.state_scale[2] == 1


@pytest.mark.parametrize("whiten", [False, True])
def test_advance_is_the_inverse_of_delta(store: Store, whiten: bool) -> None:
    normaliser, data = fitted(store, whiten=whiten)
    batch = data.at(torch.arange(len(data)))
    ahead = normaliser.advance(batch.state, deltas(normaliser, data))
    features = normaliser.increments.features
    torch.testing.assert_close(features(ahead)[:, :2], features(batch.next_state)[:, :2], rtol=0, atol=1e-3)
    torch.testing.assert_close(features(ahead)[:, 4:], features(batch.next_state)[:, 4:], rtol=0, atol=1e-3)


def test_whitening_gives_the_identity(store: Store) -> None:
    normaliser, data = fitted(store, whiten=True)
    z = deltas(normaliser, data)[:, 2:7]
    torch.testing.assert_close(z.T @ z / len(z), torch.eye(5), rtol=0, atol=1e-3)
    plain, _ = fitted(store)
    correlated = deltas(plain, data)[:, 2:7]
    assert (correlated.T @ correlated / len(z) - torch.eye(5)).abs().max() > 0.2  # else this test says nothing


def test_clamp(store: Store) -> None:
    normaliser, data = fitted(store)
    inside = normaliser.clamp(data.state)
    torch.testing.assert_close(inside, data.state, rtol=0, atol=1e-6)
    wild = data.state[:8] * 100 - 50
    kept = normaliser.clamp(wild)
    low, high = data.state.amin(0), data.state.amax(0)
    slack = 0.1 * (high - low) + 1e-6
    held = [0, 1, 8]
    assert (kept[:, held] >= (low - slack)[held]).all()
    assert (kept[:, held] <= (high + slack)[held]).all()
    assert kept[:, 2:4].equal(wild[:, 2:4])  # angles without limits turn on and on
    torch.testing.assert_close(kept[:, 4:8].norm(dim=-1), torch.ones(8), rtol=0, atol=1e-6)
    direction = wild[:, 4:8] / wild[:, 4:8].norm(dim=-1, keepdim=True)
    torch.testing.assert_close(kept[:, 4:8], direction, rtol=0, atol=1e-6)  # not bent by bounds a number each
    fresh = Normaliser(STATE, ACTION)
    assert fresh.clamp(data.state[:3]).isfinite().all()  # unfitted: no bounds


def test_statistics_travel_with_the_weights(store: Store) -> None:
    normaliser, data = fitted(store, whiten=True)
    other = Normaliser(STATE, ACTION)
    other.load_state_dict(normaliser.state_dict())
    assert deltas(other, data).equal(deltas(normaliser, data))
    assert other.clamp(data.state).equal(normaliser.clamp(data.state))


LIMITED = (
    Field("joint", 4, "angle", low=(-1.0, -1.0, -0.1, -math.inf), high=(2.0, 2.0, math.inf, math.inf)),
    Field("slide", 1, "position", low=(0.0,), high=(1e-3,)),
)


def limited(generator: torch.Generator, soft: float = 0.0) -> tuple[Normaliser, Transitions]:
    """Fitted to states that keep their limits, but for a share of `soft` of those of joint 1."""
    low, high = torch.tensor([-1.0, -1.0, -0.1, -3.0, 0.0]), torch.tensor([2.0, 2.0, 3.0, 3.0, 1e-3])
    state = low + (high - low) * torch.rand((4000, 5), generator=generator)
    state[: int(4000 * soft), 1] = 2.25
    data = Transitions(state, None, torch.arange(3999), torch.arange(3999))
    return Normaliser(LIMITED, ()).fit(data), data


FITTED = [
    limited(torch.Generator().manual_seed(seed), soft=0.0005) for seed in range(4)
]  # too rare to be the simulator's own


@settings(max_examples=50, deadline=None)
@given(
    st.integers(0, 3),
    st.lists(st.lists(st.floats(-1e6, 1e6, width=32), min_size=5, max_size=5), min_size=1, max_size=8),
)
def test_whatever_a_model_says_no_limit_is_violated(seed: int, rows: list[list[float]]) -> None:
    normaliser, data = FITTED[seed]
    kept = normaliser.clamp(torch.tensor(rows))
    violation = limit_violation(kept[:, None, None].numpy(), LIMITED)
    assert violation is not None
    assert violation.max() == 0.0
    assert kept[:, 3].equal(torch.tensor(rows)[:, 3])
    inside = data.state[100:]  # the bounds cost nothing of what the simulator does
    assert normaliser.clamp(inside).equal(inside)


def test_a_limit_that_the_simulator_itself_does_not_hold_gives_way_as_far_as_the_data() -> None:
    normaliser, data = limited(torch.Generator().manual_seed(0), soft=0.01)
    assert normaliser.clamp(data.state).equal(data.state)
    kept = normaliser.clamp(torch.full((1, 5), 100.0))[0]
    assert kept[1] == 2.25
    assert 2.0 < kept[0] <= 2.03
    low = normaliser.clamp(torch.full((1, 5), -100.0))[0]  # the other limit of the same joint
    assert low[1] >= -1.03


def test_constant_fields_and_a_constant_quaternion_stay_as_they_are() -> None:
    fields = (Field("still", 2), Field("turn", 4, "quaternion"), Field("bearing", 1, "angle"), Field("clock", 1))
    state = torch.tensor([3.0, 0.0, 1.0, 0.0, 0.0, 0.0, 7.0, 0.0]).repeat(50, 1)
    state[:, -1] = torch.arange(50)
    normaliser = Normaliser(fields, ()).fit(Transitions(state, None, torch.arange(49), torch.arange(49)), whiten=True)
    moved = normaliser.clamp(normaliser.advance(state[:-1], torch.randn(49, normaliser.increments.size)))
    torch.testing.assert_close(moved, state[1:], rtol=0, atol=1e-5)
    assert normaliser.context(state).isfinite().all()


@pytest.mark.parametrize(
    ("field", "column", "message"),
    [
        (Field("turn", 4, "quaternion"), lambda t: torch.stack([t, t, t, t], -1), "'turn' .* quaternion.* norm of"),
        (Field("bend", 1, "angle"), lambda t: (90 * torch.sin(t)).unsqueeze(-1), "'bend' .* radians.* degrees"),
        (
            Field("bend", 1, "angle", low=(-1.0,), high=(1.0,), entries=("elbow",)),
            lambda t: (45 * torch.sin(0.01 * t)).unsqueeze(-1),
            "'bend': entry elbow lies far beyond its limits -1 to 1",
        ),
    ],
)
def test_kinds_that_the_numbers_belie(field: Field, column: Callable[[Tensor], Tensor], message: str) -> None:
    state = column(torch.arange(300.0))
    data = Transitions(state, None, torch.arange(299), torch.arange(299))
    with pytest.raises(EbmtrajError, match=message) as caught:
        Normaliser((field,), ()).fit(data)
    assert "\n" not in str(caught.value)
    plain = Field("as it is", field.size)
    assert Normaliser((plain,), ()).fit(data).state_scale.isfinite().all()


def test_as_many_steps_as_half_of_the_episodes_have(tmp_path: Path) -> None:
    short = plant(tmp_path / "short.zarr", [30] * 60)
    assert {usual_steps(short, split) for split in SPLITS} == {30}
    long = plant(tmp_path / "long.zarr", [140] * 60)
    assert usual_steps(long, "test") == 100
