"""Other futures of recorded starts: the same start bit for bit, the same law, from the stored seeds alone."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from ebmtraj import collect as collect_module
from ebmtraj.collect import CollectConfig, collect, resimulate
from ebmtraj.datasets.store import Store
from ebmtraj.errors import EbmtrajError

HAND = CollectConfig(
    env="hand-cube", episodes=6, steps=12, seed=5, policy="trained", policy_kwargs={"action_rule": "every-4th-random"}
)


def stored(path: Path, config: CollectConfig) -> Store:
    collect(path, config)
    return Store.open(path)


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    return stored(tmp_path_factory.mktemp("again") / "a", HAND)


def test_sample_0_can_be_the_recorded_episode_itself(store: Store) -> None:
    chosen = [4, 1]
    states = resimulate(store, chosen, 3, recorded=True)
    assert states.shape == (2, 3, 13, 31)
    assert states.dtype == np.float32
    for row, index in zip(states, chosen, strict=True):
        recorded = store.episode(index).state
        np.testing.assert_array_equal(row[0], recorded)
        np.testing.assert_array_equal(row[1:, 0], recorded[[0, 0]])
        assert np.abs(row[1] - recorded)[1:].max(axis=1).min() > 1e-3  # other noise from the first step on
        assert np.abs(row[2] - row[1])[1:].max(axis=1).min() > 1e-3
    # Without it the same others, for any number asked for and any split over workers or steps.
    np.testing.assert_array_equal(resimulate(store, chosen, 2), states[:, 1:])
    np.testing.assert_array_equal(resimulate(store, [1], 1)[0, 0], states[1, 1])
    np.testing.assert_array_equal(resimulate(store, [1], 1, steps=5)[0, 0], states[1, 1, :6])


def test_blocks_do_not_matter(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = resimulate(store, [0, 1, 2], 2, steps=3)
    monkeypatch.setattr(collect_module, "FUTURES_AT_ONCE", 2)
    np.testing.assert_array_equal(resimulate(store, [0, 1, 2], 2, steps=3), whole)


def test_the_recorded_future_is_one_of_many(tmp_path: Path) -> None:
    # The rank of the recorded goal distance among re-simulated ones is uniform: here its mean, over 60 starts.
    walks = stored(tmp_path / "r", CollectConfig(env="Reacher-v5", episodes=60, steps=8, seed=2))
    states = resimulate(walks, range(60), 7, recorded=True)[:, :, -1, 4]  # an angular velocity
    rank = (states[:, 1:] < states[:, :1]).mean(axis=1)
    assert rank.mean() == pytest.approx(0.5, abs=4 * np.sqrt(1 / 12 / 60 * 9 / 7))
    assert len(np.unique(states)) == states.size


def test_futures_that_end_too_early_are_drawn_again(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    simulate, seen = collect_module._simulate, []

    def often_short(*given):  # every second future of the first try ends before its time
        states, actions, length, terminated = simulate(*given)
        if len(seen) == 1:  # the first call is the replay
            length[::2] -= 1
        seen.append(len(length))
        return states, actions, length, terminated

    expected = resimulate(store, [0, 3], 4, steps=2)
    monkeypatch.setattr(collect_module, "_simulate", often_short)
    found = resimulate(store, [0, 3], 2, steps=2)
    assert seen == [1, 4, 2]
    np.testing.assert_array_equal(found, expected[:, [1, 2]])  # numbers 1 and 3 of each were left out
    monkeypatch.setattr(collect_module, "_simulate", lambda *given: (*(r := simulate(*given))[:2], r[2] - 1, r[3]))
    with pytest.raises(EbmtrajError, match=r"^resimulate: .*hardly a future lasts 2 steps"):
        resimulate(store, [0, 3], 2, steps=2)


def test_futures_that_terminate_can_be_held(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    whole, simulate = resimulate(store, [0, 3], 2, steps=4), collect_module._simulate

    def ends(*given):  # every second future terminates after its second step
        states, actions, length, terminated = simulate(*given)
        if len(length) > 1:
            length[::2], terminated[::2] = 2, True
        return states, actions, length, terminated

    monkeypatch.setattr(collect_module, "_simulate", ends)
    found = resimulate(store, [0, 3], 2, steps=4, hold=True)
    np.testing.assert_array_equal(found[:, 1], whole[:, 1])
    np.testing.assert_array_equal(found[:, 0], whole[:, 0][:, [0, 1, 2, 2, 2]])


def test_what_cannot_be_simulated_again_is_refused(store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def said(**attributes: object) -> Store:
        other = Store.open(store.path)
        other.attributes = {**store.attributes, **attributes}
        return other

    for changed, message in (
        ({"policy": {"name": "merged", "parts": []}}, "only a collected store"),
        ({"policy": {"name": "unknown"}}, "only a collected store"),
        ({"policy": {"name": "os:getcwd"}}, "own_code=True"),
        ({"env": "antigravity:X-v0"}, "own_code=True"),
        ({"policy": {"name": "random", "mode": "smooth"}}, "don't come out again"),
    ):
        with pytest.raises(EbmtrajError, match=message) as error:
            resimulate(said(**changed), [0], 1)
        assert "\n" not in str(error.value)
    with pytest.raises(EbmtrajError, match="one or more"):
        resimulate(store, [], 2)
    with pytest.raises(EbmtrajError, match="steps is 0"):
        resimulate(store, [0], 2, steps=0)
    with pytest.raises(EbmtrajError, match="holds 6 episodes"):
        resimulate(store, [17], 2)
    assert replace(HAND).steps == 12  # the recipe itself is left alone
