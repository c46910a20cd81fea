"""The particle: its physics, its obstacles, its policies and its stores."""

from __future__ import annotations

import json
import math
import warnings
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest
from commands import call
from gymnasium.utils.env_checker import check_env

from ebmtraj.collect import CollectConfig, collect, resimulate
from ebmtraj.datasets.store import Store
from ebmtraj.envs.particle import DISCS, SPEED, TIMESTEP, inside
from ebmtraj.envs.registry import PARTICLE_ID, make_batch
from ebmtraj.errors import EbmtrajError


def generators(count: int) -> list[np.random.Generator]:
    return [np.random.default_rng(seed) for seed in range(count)]


def started(state: list[float], **options: Any) -> Any:
    env = gymnasium.make(PARTICLE_ID, **options).unwrapped
    env.reset(seed=0)
    env.set_state(state)  # type: ignore[attr-defined]
    return env


@pytest.mark.parametrize("options", [{}, {"control": "force", "obstacles": True}])
def test_gymnasium_accepts_it(options: dict[str, Any]) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        check_env(gymnasium.make(PARTICLE_ID, **options).unwrapped, skip_render_check=True)


def test_velocity_is_limited_and_walls_stop() -> None:
    env = started([0.5, 0.5, 0.1, 0.1])
    state, *_ = env.step([0.4, -0.2])
    np.testing.assert_allclose(state, [0.52, 0.49, 0.1, 0.1], atol=1e-6)
    state, *_, info = env.step([1.0, 1.0])  # a corner of the box of actions is no faster
    step = SPEED * TIMESTEP / math.sqrt(2)
    np.testing.assert_allclose(state[:2], [0.52 + step, 0.49 + step], atol=1e-6)
    assert info["distance"] == pytest.approx(np.hypot(0.42 + step, 0.39 + step))
    for _ in range(30):
        state, *_ = env.step([1.0, 0.0])
    assert state[0] == 1.0


def test_force_accelerates_to_the_speed_limit() -> None:
    env = started([0.1, 0.5, 0.0, 0.0, 0.9, 0.5], control="force")
    speeds = [float(env.step([1.0, 0.0])[0][2]) for _ in range(8)]
    assert speeds[0] == pytest.approx(0.25)
    assert np.all(np.diff(speeds) >= 0)
    assert speeds[-1] == pytest.approx(SPEED)
    slowed = float(env.step([0.0, 0.0])[0][2])
    assert slowed == pytest.approx(0.95)


def test_an_obstacle_stops_what_would_enter_it() -> None:
    x, y, radius = DISCS[0]
    env = started([x - radius - 0.03, y, 0.9, 0.5], obstacles=True)
    state, *_, info = env.step([1.0, 0.0])
    assert info["blocked"]
    np.testing.assert_allclose(state[:2], [x - radius - 0.03, y], atol=1e-6)
    free = started([x - radius - 0.03, y, 0.9, 0.5])
    assert not free.step([1.0, 0.0])[-1]["blocked"]
    with pytest.raises(EbmtrajError, match="lies in an obstacle"):
        env.set_state([x, y, 0.9, 0.5])
    moved = started([0.2, 0.5, 0.9, 0.5], obstacles=[[0.3, 0.5, 0.08]])
    assert moved.step([1.0, 0.0])[-1]["blocked"]


@pytest.mark.parametrize("control", ["velocity", "force"])
def test_batch_is_typed_starts_anywhere_and_has_the_single_ones_bits(control: str) -> None:
    batch = make_batch(PARTICLE_ID, control=control, obstacles=True)
    names = ["position", "velocity", "goal"] if control == "force" else ["position", "goal"]
    assert [field.name for field in batch.state_fields] == names
    assert batch.control_timestep == TIMESTEP
    starts = batch.reset(generators(20))
    assert not inside(starts[:, :2].astype(np.float64), np.array(DISCS)).any()
    batch.set_state(starts[:3])  # type: ignore[attr-defined]
    actions = np.random.default_rng(1).uniform(-1, 1, (10, 3, 2)).astype(np.float32)
    together = [batch.step(action)[0] for action in actions]
    env = started(starts[1].tolist(), control=control, obstacles=True)
    for t, action in enumerate(actions):
        np.testing.assert_array_equal(env.step(action[1])[0], together[t][1])
    with pytest.raises(EbmtrajError, match="shape"):
        batch.set_state(starts[:, :3])  # type: ignore[attr-defined]
    with pytest.raises(EbmtrajError, match="within the box"):
        batch.set_state(starts[:1] + 2)  # type: ignore[attr-defined]
    batch.close()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"control": "thought"}, "unknown control 'thought'"),
        ({"obstacles": [[0.5, 0.5]]}, "give true, false or a list"),
        ({"obstacles": [[0.5, 0.5, -1]]}, "give true, false or a list"),
        ({"obstacles": "many"}, "give true, false or a list"),
        ({"gravity": 1}, "gravity"),
    ],
)
def test_bad_options(options: dict[str, Any], message: str) -> None:
    with pytest.raises(EbmtrajError, match=message) as error:
        make_batch(PARTICLE_ID, **options)
    assert "\n" not in str(error.value)


def test_bad_actions_and_no_room() -> None:
    env = started([0.5, 0.5, 0.1, 0.1])
    for action in ([2.0, 0.0], [math.nan, 0.0], [0.0]):
        with pytest.raises(EbmtrajError, match=r"2 numbers in \[-1, 1\]"):
            env.step(action)
    with pytest.raises(EbmtrajError, match="no room"):
        gymnasium.make(PARTICLE_ID, obstacles=[[0.5, 0.5, 2.0]]).reset(seed=0)


def test_goal_policy_gets_there(tmp_path: Path) -> None:
    config = CollectConfig(env=PARTICLE_ID, episodes=30, steps=40, policy="to-goal", policy_kwargs={"noise": 0.2})
    collect(tmp_path / "s.zarr", config)
    store = Store.open(tmp_path / "s.zarr")
    last = np.stack([store.episode(i).state[-1] for i in range(30)])
    assert np.median(np.linalg.norm(last[:, :2] - last[:, 2:], axis=1)) < 0.05
    futures = resimulate(store, [3], 2, recorded=True)
    np.testing.assert_allclose(futures[0, 0], store.episode(3).state, atol=1e-6)
    assert np.abs(futures[0, 1] - futures[0, 0]).max() > 0.01
    with pytest.raises(EbmtrajError, match="noise from 0 to 1"):
        collect(tmp_path / "t.zarr", CollectConfig(env=PARTICLE_ID, policy="to-goal", policy_kwargs={"noise": 2}))


def test_collect_by_command_with_obstacles_and_resume(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """Workers and a resume change nothing, and the store says which fields and obstacles it has."""
    common = ["--env", PARTICLE_ID, "--steps", "5", "--set", "env_kwargs.obstacles=true", "--json", "--workers", "1"]
    code, whole, error = call(capfd, "collect", tmp_path / "a.zarr", "--episodes", "12", *common)
    assert code == 0, error
    assert call(capfd, "collect", tmp_path / "b.zarr", "--episodes", "6", *common)[0] == 0
    code, rest, error = call(capfd, "collect", tmp_path / "b.zarr", "--episodes", "12", "--resume", *common)
    assert code == 0, error
    assert json.loads(rest)["content_hash"] == json.loads(whole)["content_hash"]
    store = Store.open(tmp_path / "b.zarr")
    assert store.attributes["env_kwargs"] == {"obstacles": True}
    assert [field.kind for field in store.state_fields] == ["position", "position"]
