"""Environments, batches and random policies: the numbers, the bits, and the faults that users can make."""

import warnings

import gymnasium
import mujoco
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env

from ebmtraj.envs import hand_cube
from ebmtraj.envs.batch import HandCubeBatch
from ebmtraj.envs.gym_batch import GymBatch
from ebmtraj.envs.hand_cube import HandCubeEnv
from ebmtraj.envs.policies import POLICIES, RandomPolicy, make_policy
from ebmtraj.envs.registry import HAND_CUBE_ID, make_batch, register
from ebmtraj.errors import EbmtrajError
from ebmtraj.fields import Field, slices, total_size


def generators(seeds, stream=0):
    return [np.random.default_rng([stream, seed]) for seed in seeds]


def random_actions(seeds, steps, stream=1):
    """(steps, B, 20): the actions of an episode depend on its seed alone."""
    draws = [g.uniform(-1, 1, (steps, 20)) for g in generators(seeds, stream)]
    return np.stack(draws, axis=1).astype(np.float32)


def rollout(batch, seeds, steps=12):
    """Full physics states (steps + 1, B, 62) under random actions."""
    actions = random_actions(seeds, steps)
    batch.reset(generators(seeds))
    history = [batch.physics_state]
    for step in range(steps):
        batch.step(actions[step])
        history.append(batch.physics_state)
    return np.stack(history)


@pytest.fixture
def batch():
    env = HandCubeBatch()
    yield env
    env.close()


# --- the model -------------------------------------------------------------------------------------------------------------


def test_model_sizes():
    model = hand_cube.build_model()
    assert (model.nq, model.nv, model.nu) == (31, 30, 20)
    assert model.opt.timestep == 0.002
    assert model.opt.cone == mujoco.mjtCone.mjCONE_PYRAMIDAL
    assert mujoco.mj_stateSize(model, hand_cube.PHYSICS_STATE) == 62
    names = [model.body(i).name for i in range(model.nbody)]
    assert "object" in names
    assert "target" not in names


def test_visual_geoms_take_no_part_in_the_physics():
    state = np.zeros(62)
    state[25:32] = [1.0, 0.87, 0.2, 1, 0, 0, 0]
    ends = []
    for visual in (False, True):
        model = hand_cube.build_model(visual=visual)
        data = mujoco.MjData(model)
        mujoco.mj_setState(model, data, state, hand_cube.PHYSICS_STATE)
        mujoco.mj_step(model, data, 200)
        ends.append(data.qpos.copy())
    np.testing.assert_allclose(ends[0], ends[1], atol=1e-9)


def test_model_hash_is_stable_and_sees_changes():
    first, again = hand_cube.build_model(), hand_cube.build_model()
    assert hand_cube.model_hash(first) == hand_cube.model_hash(again)
    assert hand_cube.model_hash(hand_cube.build_model(timestep=0.004)) != hand_cube.model_hash(first)
    again.geom_friction[0, 0] *= 1.01
    assert hand_cube.model_hash(again) != hand_cube.model_hash(first)


def test_missing_model_files(monkeypatch):
    monkeypatch.setattr(hand_cube.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(EbmtrajError, match="pip install gymnasium-robotics"):
        hand_cube.build_model()


def test_model_files_that_mujoco_does_not_read(monkeypatch, tmp_path):
    path = tmp_path / "manipulate_block.xml"
    monkeypatch.setattr(hand_cube, "model_path", lambda: path)
    for text in ("<mujoco><option nosuch='1'/></mujoco>", "<mujoco><worldbody>"):
        path.write_text(text)
        with pytest.raises(EbmtrajError, match=r"does not fit MuJoCo.*--upgrade") as caught:
            hand_cube.build_model()
        assert "\n" not in str(caught.value)


def test_fields_name_the_state_and_action():
    states, actions = hand_cube.state_fields(), hand_cube.action_fields()
    assert [(f.name, f.size, f.kind, f.unit) for f in states] == [
        ("joint_angles", 24, "angle", "rad"),
        ("cube_position", 3, "position", "m"),
        ("cube_quaternion", 4, "quaternion", ""),
    ]
    assert total_size(actions) == 20
    assert states[0].entries[:2] == ("WRJ1", "WRJ0")
    assert len(set(states[0].entries)) == 24
    assert np.all(np.array(states[0].low) < np.array(states[0].high))
    assert actions[0].entries[0] == "WRJ1"
    assert set(actions[0].low) == {-1.0}


# --- the single environment ------------------------------------------------------------------------------------------------


def test_check_env_without_warnings():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        check_env(gymnasium.make(HAND_CUBE_ID).unwrapped, skip_render_check=True)


def test_registration_is_idempotent():
    register()
    register()
    env = gymnasium.make(HAND_CUBE_ID)
    assert isinstance(env.unwrapped, HandCubeEnv)
    assert env.unwrapped.model.opt.timestep * hand_cube.SUBSTEPS == pytest.approx(0.04)
    env.close()


def test_actions_span_each_actuators_range():
    model = hand_cube.build_model()
    ends = hand_cube.controls(model, np.stack([-np.ones(20), np.ones(20)]).astype(np.float32))
    np.testing.assert_allclose(ends.T, model.actuator_ctrlrange, atol=1e-12)


def test_a_joint_follows_its_target(batch):
    place = slices(batch.state_fields)["joint_angles"].start + batch.state_fields[0].entries.index("LFJ3")
    actuator = batch.action_fields[0].entries.index("LFJ3")  # spreads the little finger; nothing is in its way
    batch.reset(generators(range(2)))
    action = np.zeros((2, 20), dtype=np.float32)
    action[:, actuator] = (-1.0, 1.0)
    for _ in range(15):
        states, _ = batch.step(action)
    assert states[0, place] < -0.15
    assert states[1, place] > 0.15


# --- bits ------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("threads", [2, 4])
def test_same_bits_for_any_number_of_threads(batch, threads):
    other = HandCubeBatch(threads=threads)
    np.testing.assert_array_equal(rollout(other, range(7)), rollout(batch, range(7)))
    other.close()


def test_same_bits_for_any_split_and_order(batch):
    whole = rollout(batch, range(7))
    np.testing.assert_array_equal(rollout(batch, range(3)), whole[:, :3])
    np.testing.assert_array_equal(rollout(batch, range(3, 7)), whole[:, 3:])
    np.testing.assert_array_equal(rollout(batch, [6, 0, 4]), whole[:, [6, 0, 4]])
    assert not np.array_equal(whole[:, 0], whole[:, 1])


def test_single_environment_has_the_bits_of_the_batch(batch):
    steps, seed = 12, 5
    actions = random_actions([seed], steps)
    env = HandCubeEnv()
    states = [batch.reset([np.random.default_rng(seed)])[0]]
    observations = [env.reset(seed=seed)[0]]
    np.testing.assert_array_equal(env.physics_state, batch.physics_state[0])
    for action in actions[:, 0]:
        states.append(batch.step(action[None])[0][0])
        observations.append(env.step(action)[0])
        np.testing.assert_array_equal(env.physics_state, batch.physics_state[0])
    np.testing.assert_array_equal(states, observations)


def test_a_start_whose_cube_falls_off_is_drawn_again_alike(batch, monkeypatch):
    # Planted: each generator's first start lies far from the hand. Rows redraw at different times than the single one.
    draw, seen = hand_cube.draw_start, []

    def draw_badly_once(model, generator):
        physics, control = draw(model, generator)
        if not any(generator is other for other in seen):
            seen.append(generator)
            physics[1 + 25] += 0.5  # y, behind the forearm
        return physics, control

    monkeypatch.setattr(hand_cube, "draw_start", draw_badly_once)
    good = np.random.default_rng(1)
    seen.append(good)
    states = batch.reset([np.random.default_rng(0), good, np.random.default_rng(2)])
    assert len(seen) == 3
    assert (states[:, 26] > hand_cube.DROP_HEIGHT).all()
    for seed, row in ((0, 0), (2, 2)):
        np.testing.assert_array_equal(HandCubeEnv().reset(seed=seed)[0], states[row])


def test_physics_state_continues_to_the_same_bits(batch):
    actions = random_actions(range(3), 6)
    batch.reset(generators(range(3)))
    for action in actions[:3]:
        batch.step(action)
    kept = batch.physics_state
    ahead = [batch.step(action)[0] for action in actions[3:]]
    batch.physics_state = kept
    np.testing.assert_array_equal([batch.step(action)[0] for action in actions[3:]], ahead)


def test_set_state_starts_at_rest_from_the_given_states(batch):
    states = batch.reset(generators(range(3)))
    scaled = states.copy()
    scaled[:, 27:] *= 1.5  # a model's quaternion may be off length
    batch.set_state(scaled)
    np.testing.assert_allclose(batch.states, states, atol=1e-6)
    assert not batch.physics_state[:, 32:].any()
    assert batch.batch_size == 3


# --- what the states are like ----------------------------------------------------------------------------------------------


def test_quaternion_is_unit_and_continuous(batch):
    seeds = range(6)
    states = hand_cube.states_of(rollout(batch, seeds, steps=150)).astype(np.float64)
    q = states[..., 27:]
    np.testing.assert_allclose(np.linalg.norm(q, axis=-1), 1.0, atol=1e-6)
    assert (q[1:] * q[:-1]).sum(-1).min() > 0.0  # a flip would give about -1
    joints = states[..., :24]
    assert np.abs(joints[-1] - joints[0]).max() > 0.3  # the hand did move


def test_starts_vary(batch):
    states = batch.reset(generators(range(64))).astype(np.float64)
    yaw = 2 * np.arctan2(states[:, 30], states[:, 27])
    assert abs(np.exp(1j * yaw).mean()) < 0.35  # uniform on the circle: 0.35 is 2.8 standard errors
    counts, _ = np.histogram(np.mod(yaw, 2 * np.pi), bins=4, range=(0, 2 * np.pi))
    assert counts.min() > 4
    assert 16 < (states[:, 27] > 0).sum() < 48  # the sign of q is random
    assert states[:, :24].std(axis=0).mean() > 0.05
    assert states[:, 24:26].std(axis=0).min() > 0.002
    assert (states[:, 26] > hand_cube.DROP_HEIGHT).all()


def test_planted_drop_terminates_and_stays_so(batch):
    states = batch.reset(generators(range(2)))
    states[1, 24:27] = (1.0, 0.6, 0.15)  # beyond the finger tips
    batch.set_state(states)
    flags = [batch.step(np.zeros((2, 20)))[1] for _ in range(12)]
    assert not flags[0].any()
    np.testing.assert_array_equal(flags[-1], [False, True])
    env = HandCubeEnv()
    env.reset(seed=0)
    mujoco.mj_setState(env.model, env.data, hand_cube.physics_of(states)[1], hand_cube.PHYSICS_STATE)
    for _ in range(12):
        _, reward, terminated, truncated, info = env.step(np.zeros(20))
    assert (reward, terminated, truncated, info["dropped"]) == (0.0, True, False, True)
    assert info["cube_height"] < hand_cube.DROP_HEIGHT


@pytest.mark.parametrize(
    ("actions", "message"),
    [
        (np.full((2, 20), 1.5), r"\[-1, 1\]; found 1.5"),
        (np.full((2, 20), np.nan), "NaN"),
        (np.zeros((3, 20)), r"shape \(3, 20\); give \(2, 20\)"),
        ("fist", "numbers"),
    ],
)
def test_bad_actions(batch, actions, message):
    batch.reset(generators(range(2)))
    with pytest.raises(EbmtrajError, match=message):
        batch.step(actions)


def test_bad_states_and_threads(batch):
    with pytest.raises(EbmtrajError, match="shape"):
        batch.set_state(np.zeros((2, 30)))
    with pytest.raises(EbmtrajError, match="quaternion of length zero"):
        batch.set_state(np.zeros((2, 31)))
    with pytest.raises(EbmtrajError, match="physics state"):
        batch.physics_state = np.zeros((2, 31))
    with pytest.raises(EbmtrajError, match="threads is 0"):
        HandCubeBatch(threads=0)


# --- any Gymnasium environment ---------------------------------------------------------------------------------------------


def test_gym_batch_is_gymnasium_itself():
    steps, seeds = 60, (3, 8)  # longer than Reacher's own limit of 50 steps
    batch = make_batch("Reacher-v5", state="observation")
    assert isinstance(batch, GymBatch)
    rng = np.random.default_rng(0)
    actions = rng.uniform(-1, 1, (steps, len(seeds), 2)).astype(np.float32)
    states = [batch.reset(generators(seeds))]
    for action in actions:
        state, terminated = batch.step(action)
        states.append(state)
        assert not terminated.any()
    for i, generator in enumerate(generators(seeds)):
        env = gymnasium.make("Reacher-v5").unwrapped
        truth = [env.reset(seed=int(generator.integers(2**31)))[0]]
        truth += [env.step(action[i])[0] for action in actions]
        np.testing.assert_array_equal(np.stack(states)[:, i], np.array(truth, dtype=np.float32))
        env.close()
    assert [(f.name, f.size, f.kind) for f in batch.state_fields] == [("observation", 10, "plain")]
    assert batch.action_fields[0].high == (1.0, 1.0)
    assert batch.state_fields[0].low is None
    assert batch.control_timestep == pytest.approx(0.02)
    assert len(batch.attributes()["model_hash"]) == 64
    again = batch.reset(generators(seeds[::-1]))
    np.testing.assert_array_equal(again[::-1], states[0])
    batch.close()


def test_gym_batch_keeps_a_terminated_row():
    class Counter(gymnasium.Env):
        observation_space = gymnasium.spaces.Box(0.0, 9.0, (1, 1))
        action_space = gymnasium.spaces.Box(-1.0, 1.0, (1,))

        def reset(self, *, seed=None, options=None):
            self.count, self.end = 0, 2 + seed % 2
            return np.zeros((1, 1), dtype=np.float32), {}

        def step(self, action):
            assert self.count < self.end, "stepped after its end"
            self.count += 1
            return np.full((1, 1), self.count, dtype=np.float32), 0.0, self.count == self.end, False, {}

    gymnasium.register("ebmtraj-test/Counter-v0", Counter)
    try:
        batch = make_batch("ebmtraj-test/Counter-v0")
        batch.reset(generators(range(8)))
        for _ in range(3):
            states, terminated = batch.step(np.zeros((8, 1)))
        assert terminated.all()
        assert set(states[:, 0]) == {2.0, 3.0}
        with pytest.raises(EbmtrajError, match="outside"):
            batch.step(np.full((8, 1), 2.0))
        with pytest.raises(EbmtrajError, match="shape"):
            batch.step(np.zeros((8, 2)))
    finally:
        del gymnasium.registry["ebmtraj-test/Counter-v0"]


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("hand-cub", "unknown environment 'hand-cub'; did you mean hand-cube"),
        ("Reachr-v5", "Reacher-v5"),
        ("zzz", "hand-cube or a Gymnasium id"),
        ("no_such_module:X-v0", "no_such_module"),
        ("CartPole-v1", "actions are Discrete"),
        ("Blackjack-v1", "observations are Tuple"),
    ],
)
def test_unknown_and_unfit_environments(name, message, capfd):
    with pytest.raises(EbmtrajError, match=message) as caught:
        make_batch(name)
    assert "\n" not in str(caught.value)
    assert capfd.readouterr() == ("", "")


def test_unknown_options():
    with pytest.raises(EbmtrajError, match="no option 'gravity'"):
        make_batch("hand-cube", gravity=1)
    with pytest.raises(EbmtrajError, match="gravity"):
        make_batch("Reacher-v5", gravity=1)
    with pytest.raises(EbmtrajError, match="JSON"):
        make_batch("Reacher-v5", reward_dist_weight=object())


def test_attributes_are_json(batch):
    import json

    attributes = json.loads(json.dumps(batch.attributes()))
    assert attributes["env_id"] == "hand-cube"
    assert attributes["control_timestep"] == pytest.approx(0.04)
    assert attributes["model_hash"] == hand_cube.model_hash(hand_cube.build_model())


# --- policies --------------------------------------------------------------------------------------------------------------


def policy_actions(policy, seeds, steps=150):
    policy.reset(generators(seeds))
    states = np.zeros((len(seeds), 31), dtype=np.float32)
    return np.stack([policy(states) for _ in range(steps)])


@pytest.mark.parametrize("mode", ["smooth", "uniform"])
def test_an_episodes_actions_depend_on_its_generator_alone(mode):
    low, high = np.array([-1.0, 0.0, -3.0]), np.array([1.0, 2.0, 5.0])
    policy = RandomPolicy(low, high, mode=mode)
    whole = policy_actions(policy, range(5))
    np.testing.assert_array_equal(policy_actions(policy, [4, 1]), whole[:, [4, 1]])
    assert whole.dtype == np.float32
    assert (whole >= low).all()
    assert (whole <= high).all()
    used = np.quantile(whole, 0.98, axis=(0, 1)) - np.quantile(whole, 0.02, axis=(0, 1))
    assert (used > 0.9 * (high - low)).all()
    assert len(np.unique(whole[..., 0])) > 500  # of 750: fresh noise in every block, some clipped


def test_smooth_actions_are_smooth_and_stationary():
    smooth = policy_actions(make_policy("random", hand_cube.action_fields(), correlation_steps=8.0), range(40), 100)
    uniform = policy_actions(make_policy("random", hand_cube.action_fields(), mode="uniform"), range(40), 100)

    def correlation(actions):  # between successive steps
        return np.corrcoef(actions[:-1].ravel(), actions[1:].ravel())[0, 1]

    assert correlation(smooth) == pytest.approx(np.exp(-1 / 8), abs=0.03)
    assert abs(correlation(uniform)) < 0.03
    assert smooth[0].std() == pytest.approx(smooth[-1].std(), rel=0.1)


def test_policy_faults():
    with pytest.raises(EbmtrajError, match="unknown mode"):
        RandomPolicy([-1.0], [1.0], mode="wild")
    with pytest.raises(EbmtrajError, match="finite action bounds"):
        RandomPolicy([-np.inf], [1.0])
    with pytest.raises(EbmtrajError, match="positive"):
        RandomPolicy([-1.0], [1.0], scale=0.0)
    with pytest.raises(EbmtrajError, match="unknown policy 'rnd'"):
        make_policy("rnd", hand_cube.action_fields())
    with pytest.raises(EbmtrajError, match="unexpected keyword"):
        make_policy("random", hand_cube.action_fields(), speed=1)
    with pytest.raises(EbmtrajError, match="no finite bounds"):
        make_policy("random", make_batch("Reacher-v5").state_fields)
    policy = RandomPolicy([-1.0], [1.0])
    policy.reset(generators(range(2)))
    with pytest.raises(EbmtrajError, match="3 states for 2 episodes"):
        policy(np.zeros((3, 31)))


@pytest.mark.parametrize("name", list(POLICIES))
def test_policies_describe_themselves(name):
    fields = (Field("velocity", 2, low=(-1.0, -1.0), high=(1.0, 1.0)),) if name == "to-goal" else hand_cube.action_fields()
    policy = make_policy(name, fields)
    options = policy.describe()
    assert options.pop("name") == name
    again = make_policy(name, fields, **options)
    np.testing.assert_array_equal(policy_actions(policy, [0], 5), policy_actions(again, [0], 5))


# --- penetration -----------------------------------------------------------------------------------------------------------


def test_penetration_is_that_of_mujocos_deepest_contact(batch):
    states = batch.reset(generators(range(3)))
    depth = batch.penetration(states)
    data = mujoco.MjData(batch.model)
    for state, found in zip(states, depth, strict=True):
        data.qpos[:] = state
        mujoco.mj_forward(batch.model, data)
        deepest = min(contact.dist for contact in data.contact)
        assert found == pytest.approx(-deepest, abs=1e-9)
    assert (depth > 0).all()  # the cube lies on the palm,
    assert (depth < 0.004).all()  # and soft contacts give way by a little
    other = HandCubeBatch(threads=2)
    np.testing.assert_array_equal(other.penetration(states), depth)
    other.close()
    np.testing.assert_array_equal(batch.states, states)  # nothing has moved


def test_penetration_grows_with_the_overlap(batch):
    state = batch.reset(generators([0]))[0]
    z = 26
    states = np.stack([state] * 4)
    states[1, z] += 1.0  # far above the hand
    states[2, z] -= 0.010
    states[3, z] -= 0.015
    rests, free, deep, deeper = batch.penetration(states)
    assert free <= rests
    assert deep == pytest.approx(rests + 0.010, abs=0.004)  # the palm is not quite level
    assert deeper > deep + 0.003
    with pytest.raises(EbmtrajError, match="NaN"):
        batch.penetration(np.full((1, 31), np.nan))
