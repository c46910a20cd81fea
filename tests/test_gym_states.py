"""Physical states of Gymnasium's MuJoCo robots: typed by their joints, simulated from, and collected."""

from __future__ import annotations

import json
import math
import warnings
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import gymnasium
import mujoco
import numpy as np
import pytest
from commands import call
from gymnasium.envs.mujoco import MujocoEnv

from ebmtraj.collect import CollectConfig, collect, resimulate
from ebmtraj.datasets.store import Store
from ebmtraj.datasets.verify import verify
from ebmtraj.envs.gym_batch import GymBatch
from ebmtraj.envs.joints import JointStates
from ebmtraj.envs.registry import make_batch
from ebmtraj.errors import EbmtrajError
from ebmtraj.fields import Field, fields_from_json, fields_to_json, total_size

REACHER = CollectConfig(env="Reacher-v5", episodes=12, steps=6, seed=3, block_episodes=4)

EVERY_JOINT = """
<mujoco>
  <worldbody>
    <body name="drone"><freejoint name="drone"/><geom size=".1"/></body>
    <body><joint name="rail" type="slide" range="-1 2" limited="true"/><geom size=".1" pos="3 0 0"/>
      <body><joint name="wheel" type="hinge" axis="0 1 0"/><geom size=".1" pos="3 0 1"/>
        <body><joint name="elbow" type="hinge" range="-90 45" limited="true"/><geom size=".1" pos="3 0 2"/>
          <body><joint name="wrist" type="ball"/><geom size=".1" pos="3 0 3"/>
            <body><joint type="hinge" axis="0 1 0"/><geom size=".1" pos="3 0 4"/></body>
          </body>
        </body>
      </body>
    </body>
  </worldbody>
  <actuator><general name="muscle" joint="elbow" dyntype="filter" dynprm="0.1"/></actuator>
</mujoco>
"""


def generators(count: int) -> list[np.random.Generator]:
    return [np.random.default_rng(seed) for seed in range(count)]


def test_every_kind_of_joint_has_its_kind_of_field() -> None:
    joints = JointStates(mujoco.MjModel.from_xml_string(EVERY_JOINT))
    inf, pi = math.inf, math.pi
    assert joints.fields == (
        Field("drone_position", 3, "position", "m", entries=("x", "y", "z")),
        Field("drone_quaternion", 4, "quaternion", entries=("w", "x", "y", "z")),
        Field("joint_positions", 1, "position", "m", (-1.0,), (2.0,), ("rail",)),
        Field("joint_angles", 2, "angle", "rad", (-inf, -pi / 2), (inf, pi / 4), ("wheel", "elbow")),
        Field("wrist_quaternion", 4, "quaternion", entries=("w", "x", "y", "z")),
        Field("joint_angles_2", 1, "angle", "rad", entries=("joint_5",)),
        Field("drone_linear_velocity", 3, "plain", "m/s", entries=("x", "y", "z")),
        Field("drone_angular_velocity", 3, "plain", "rad/s", entries=("x", "y", "z")),
        Field("joint_linear_velocities", 1, "plain", "m/s", entries=("rail",)),
        Field("joint_angular_velocities", 2, "plain", "rad/s", entries=("wheel", "elbow")),
        Field("wrist_angular_velocity", 3, "plain", "rad/s", entries=("x", "y", "z")),
        Field("joint_angular_velocities_2", 1, "plain", "rad/s", entries=("joint_5",)),
        Field("activations", 1, entries=("0",)),
    )
    assert total_size(joints.fields) == joints.size == 15 + 13 + 1
    data = mujoco.MjData(joints.model)
    data.qpos[:] = np.arange(15) + 1.0
    data.qvel[:], data.act[:] = np.arange(13) + 50.0, 99.0
    state = joints.read(data)
    for start in (3, 10):  # the quaternions, and nothing else, are scaled
        np.testing.assert_allclose(
            state[start : start + 4], data.qpos[start : start + 4] / np.linalg.norm(data.qpos[start : start + 4])
        )
        state[start : start + 4] = data.qpos[start : start + 4]
    np.testing.assert_array_equal(state, [*data.qpos, *data.qvel, *data.act])


def test_limits_of_some_entries_survive_json() -> None:
    hinges = JointStates(mujoco.MjModel.from_xml_string(EVERY_JOINT)).fields[3]
    text = json.dumps(fields_to_json([hinges]), allow_nan=False)
    assert json.loads(text)[0]["low"] == [None, pytest.approx(-math.pi / 2)]
    assert fields_from_json(json.loads(text)) == (hinges,)
    assert hinges.turning() == (True, False)
    assert Field("x", 2, "plain").turning() == (False, False)
    assert Field("x", 1, "angle").turning() == (True,)
    with pytest.raises(EbmtrajError, match="radians, not in 'deg'"):
        Field("x", 1, "angle", "deg")


@pytest.mark.parametrize("name", ["Reacher-v5", "Ant-v5"])
def test_physical_states_are_mujocos_own(name: str) -> None:
    batch = make_batch(name)
    assert isinstance(batch, GymBatch)
    rng = np.random.default_rng(0)
    actions = rng.uniform(batch.action_fields[0].low, batch.action_fields[0].high, (4, 2, batch.action_fields[0].size))
    states = [batch.reset(generators(2))]
    seen = [batch.observations]
    for action in actions.astype(np.float32):
        states.append(batch.step(action)[0])
        seen.append(batch.observations)
    for i, generator in enumerate(generators(2)):
        env: Any = gymnasium.make(name).unwrapped
        observation = env.reset(seed=int(generator.integers(2**31)))[0]
        for t in range(5):
            np.testing.assert_array_equal(seen[t][i], observation.astype(np.float32))
            at = states[t][i]
            qpos, nq = env.data.qpos.copy(), len(env.data.qpos)
            if name == "Ant-v5":
                assert batch.state_fields[1].kind == "quaternion"
                qpos[3:7] /= np.linalg.norm(qpos[3:7])  # Ant starts from one that is not unit
            np.testing.assert_array_equal(at[:nq], qpos.astype(np.float32))
            np.testing.assert_array_equal(at[nq:], env.data.qvel.astype(np.float32))
            if t < 4:
                observation = env.step(actions[t, i].astype(np.float32))[0]
        env.close()
    batch.close()


@pytest.mark.parametrize("name", ["Reacher-v5", "Ant-v5"])
def test_simulation_goes_on_from_any_state(name: str) -> None:
    batch = make_batch(name)
    assert isinstance(batch, GymBatch)
    rng = np.random.default_rng(1)
    bounds = batch.action_fields[0]
    actions = rng.uniform(bounds.low, bounds.high, (8, 3, bounds.size)).astype(np.float32)
    batch.reset(generators(3))
    for action in actions[:4]:
        batch.step(action)
    physics, states = batch.physics_state, batch.states
    expected = [batch.step(action)[0] for action in actions[4:]]

    fresh = make_batch(name)
    assert isinstance(fresh, GymBatch)
    fresh.physics_state = physics
    np.testing.assert_array_equal(fresh.states, states)
    np.testing.assert_array_equal([fresh.step(action)[0] for action in actions[4:]], expected)
    fresh.set_state(states[[1, 1]])  # all that a store keeps
    np.testing.assert_array_equal(fresh.states, states[[1, 1]])
    assert fresh.observations.shape == (2, batch.observations.shape[1])
    for t, action in enumerate(actions[4:]):
        found, _ = fresh.step(action[[1, 1]])
        np.testing.assert_array_equal(found[0], found[1])
        np.testing.assert_allclose(found[0], expected[t][1], atol=2e-3)
    for bad, message in ((states[0], "shape"), (states * np.nan, "finite"), (0 * states, "quaternion of zeros")):
        if name == "Reacher-v5" and "quaternion" in message:
            continue
        with pytest.raises(EbmtrajError, match=message):
            fresh.set_state(bad)
    with pytest.raises(EbmtrajError, match="physics state"):
        fresh.physics_state = physics[:, 1:]
    with pytest.raises(EbmtrajError, match="state physics"):
        make_batch(name, state="observation").set_state(states)  # type: ignore[attr-defined]


def test_what_has_no_physics() -> None:
    pendulum = make_batch("Pendulum-v1")
    assert [field.name for field in pendulum.state_fields] == ["observation"]
    np.testing.assert_array_equal(pendulum.reset(generators(2)), pendulum.observations)
    with pytest.raises(EbmtrajError, match=r"Pendulum-v1 is no MuJoCo robot.*--state observation"):
        make_batch("Pendulum-v1", state="physics")
    with pytest.raises(EbmtrajError, match="unknown state 'joints'; use one of auto, physics, observation"):
        make_batch("Reacher-v5", state="joints")  # type: ignore[arg-type]
    hand = make_batch("hand-cube", state="observation")
    np.testing.assert_array_equal(hand.reset(generators(1)), hand.observations)


def test_collecting_takes_physics_unless_told_and_says_so(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    words = ["--env", "Reacher-v5", "--episodes", 4, "--steps", 3, "--workers", 1, "--json"]
    for name, extra, kinds in (
        ("auto", [], ["angle", "position", "plain", "plain"]),
        ("physics", ["--state", "physics"], ["angle", "position", "plain", "plain"]),
        ("observation", ["--state", "observation"], ["plain"]),
    ):
        assert call(capfd, "collect", tmp_path / name, *words, *extra)[0] == 0
        store = Store.open(tmp_path / name)
        assert [field.kind for field in store.state_fields] == kinds
        assert store.attributes["env_attributes"].get("state", "observation") == ("physics" if name == "auto" else name)
        again = resimulate(store, [2], 2, recorded=True)
        np.testing.assert_array_equal(again[0, 0], store.episode(2).state)
    hashes = {name: Store.open(tmp_path / name).content_hash for name in ("auto", "physics", "observation")}
    assert hashes["auto"] == hashes["physics"] != hashes["observation"]
    seen, typed = Store.open(tmp_path / "observation"), Store.open(tmp_path / "auto")
    np.testing.assert_array_equal(seen.read_actions(slice(None)), typed.read_actions(slice(None)))
    code, out, err = call(capfd, "collect", tmp_path / "new", *words, "--state", "joints")
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert "unknown state 'joints'" in err


def test_resuming_keeps_the_stores_choice_and_refuses_another(tmp_path: Path) -> None:
    for choice, other in (("physics", "observation"), ("observation", "physics")):
        chosen = replace(REACHER, state=choice)
        whole = collect(tmp_path / f"{choice} whole", replace(chosen, episodes=20)).content_hash
        path = tmp_path / choice
        collect(path, chosen)
        with pytest.raises(EbmtrajError, match=f"go on with --state {choice}") as caught:
            collect(path, replace(REACHER, state=other), resume=True)
        assert "\n" not in str(caught.value)
        assert verify(path)["ok"]
        assert collect(path, replace(REACHER, episodes=20, workers=2), resume=True).content_hash == whole


def policy_of_observations(states: np.ndarray) -> np.ndarray:
    """Of Reacher's ten observations; its physical state has eight numbers."""
    assert states.shape[1] == 10
    return 0.1 * states[:, :2]


def test_policies_see_observations_whatever_is_stored(tmp_path: Path) -> None:
    own = f"{__name__}:policy_of_observations"
    collect(tmp_path / "a", replace(REACHER, policy=own))
    store = Store.open(tmp_path / "a")
    state, action = store.episode(0)[:2]
    np.testing.assert_allclose(action, 0.1 * np.cos(state[:-1, :2]), atol=1e-6)  # what Reacher shows first


@pytest.fixture
def shaky() -> Iterator[str]:
    """A Gymnasium robot whose model its owner made: with a ball joint."""

    class Shaky(MujocoEnv):
        metadata = {"render_modes": ["human", "rgb_array", "depth_array", "rgbd_tuple"]}  # noqa: RUF012

        def __init__(self, model_path: str) -> None:
            space = gymnasium.spaces.Box(-np.inf, np.inf, (4,), np.float64)
            super().__init__(model_path, 5, space)

        def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
            self.do_simulation(action, self.frame_skip)
            return self._get_obs(), 0.0, False, False, {}

        def _get_obs(self) -> np.ndarray:
            return self.data.qpos[:4].copy()

        def reset_model(self) -> np.ndarray:
            self.set_state(self.init_qpos + self.np_random.uniform(-0.2, 0.2, self.model.nq), self.init_qvel)
            return self._get_obs()

    gymnasium.register("ebmtraj-test/Shaky-v0", Shaky)
    yield "ebmtraj-test/Shaky-v0"
    gymnasium.registry.pop("ebmtraj-test/Shaky-v0")


def test_any_robot_of_gymnasiums_kind(tmp_path: Path, shaky: str) -> None:
    (tmp_path / "robot.xml").write_text(
        EVERY_JOINT.replace('joint="elbow"', 'joint="elbow" ctrlrange="-1 1" ctrllimited="true"')
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        collect(tmp_path / "s", CollectConfig(shaky, {"model_path": str(tmp_path / "robot.xml")}, episodes=10, steps=5))
    store = Store.open(tmp_path / "s")
    states = store.read_states(slice(None))
    for start in (3, 10):
        np.testing.assert_allclose(np.linalg.norm(states[:, start : start + 4], axis=1), 1, atol=1e-6)
    assert [field.kind for field in store.state_fields][:6] == [
        *("position", "quaternion", "position", "angle", "quaternion", "angle")
    ]
    assert np.abs(np.diff(states[:6, -1])).max() > 0  # the activation moves
