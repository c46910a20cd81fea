"""The policy that turns the cube: exact arithmetic, search and training against known optima, rules, faults, figures."""

import json
import re
import sys
from dataclasses import replace
from fractions import Fraction

import numpy as np
import pytest
from scipy.spatial.transform import Rotation
from typer.testing import CliRunner

from ebmtraj.cli import policy as cli_policy
from ebmtraj.collect import CollectConfig, simulate_block
from ebmtraj.config import from_recipe
from ebmtraj.envs import hand_cube, trained
from ebmtraj.envs.batch import HandCubeBatch
from ebmtraj.envs.policies import ACTION_RULES, make_policy
from ebmtraj.envs.registry import make_batch
from ebmtraj.envs.trained import AXES, AXIS_NAMES, Body, Memory, load_checkpoint, reduced_rotation, save_checkpoint
from ebmtraj.errors import EbmtrajError
from ebmtraj.policy.evaluate import EvaluateConfig, evaluate_policy
from ebmtraj.policy.gaits import GaitConfig, search_gait
from ebmtraj.policy.ppo import PPOConfig, train_residual
from ebmtraj.policy.simulator import TrainingSimulator, draw_starts, rotation_between
from ebmtraj.policy.train import PolicyConfig, train_policy

FIELDS = hand_cube.action_fields()


def generators(seeds):
    return [np.random.default_rng([3, seed]) for seed in seeds]


def wxyz(rotation):
    return rotation.as_quat()[..., [3, 0, 1, 2]]


@pytest.fixture(scope="module")
def rollout_states():
    """(steps, 64, 31): states of random play."""
    env = HandCubeBatch()
    policy = make_policy("random", FIELDS)
    states = [env.reset(generators(range(64)))]
    policy.reset(generators(range(64)))
    for _ in range(11):
        states.append(env.step(policy(states[-1]))[0])
    env.close()
    return np.stack(states)


def play(policy, states, rows):
    policy.reset(generators(rows))
    return np.stack([policy(step[list(rows)]) for step in states])


# --- the shipped policy -------------------------------------------------------------------------------------------------


def test_the_shipped_policy_says_how_it_was_made():
    shipped = load_checkpoint()
    recipe = shipped.header["recipe"]
    assert {"config", "versions", "machine", "seconds"} <= set(recipe)
    assert recipe["config"]["gaits"]["population"] >= 1
    path = next(iter((trained.resources.files("ebmtraj.envs") / "data").iterdir()))
    assert path.name == trained.SHIPPED
    assert len(path.read_bytes()) < 1_000_000


def test_the_shipped_policy_turns_the_cube_where_random_actions_do_not():
    result = evaluate_policy(EvaluateConfig(episodes=24, steps=50, action_rule="none", threads=2))
    assert set(result["per_axis"]) == set(AXIS_NAMES)
    assert result["progress_rad_per_100"] == pytest.approx(np.mean(list(result["per_axis"].values())))
    assert result["progress_rad_per_100"] > 2.0
    assert abs(result["random"]["progress_rad_per_100"]) < 0.6
    assert 0.0 <= result["drop_rate"] < 0.25


@pytest.mark.parametrize("rule", ACTION_RULES)
def test_an_episode_does_not_depend_on_the_batch(rollout_states, rule):
    def policy():
        return make_policy("trained", FIELDS, rule, switch_probability=0.3)

    whole = play(policy(), rollout_states, range(64))
    assert whole.dtype == np.float32
    assert np.abs(whole).max() <= 1.0
    assert np.unique(whole[:, :, 0]).size > 100
    for rows in ([0], [63], [5, 60, 2, 33, 8, 13, 21], range(7)):
        np.testing.assert_array_equal(play(policy(), rollout_states, rows), whole[:, list(rows)])


def test_collection_with_the_policy_does_not_depend_on_the_blocks():
    config = CollectConfig(policy="trained", policy_kwargs={"action_rule": "every-4th-random"}, episodes=6, steps=8)
    whole, part = simulate_block(config, (0, 6)), simulate_block(config, (4, 5))
    rows = slice(int(whole.length[:4].sum()), int(whole.length[:5].sum()))
    np.testing.assert_array_equal(part.action, whole.action[rows])


def test_dot_products_are_exact(rollout_states, monkeypatch):
    """The forward pass is that of rational arithmetic, so that no order of summation can change it."""
    layers = load_checkpoint().layers
    rng = np.random.default_rng(0)
    features = trained.quantise(4.0 * rng.standard_normal((3, trained.FEATURE_SIZE)), trained.FEATURE_BITS, 8.0)
    for weight, bias in layers:  # the largest sum that the limits allow, in units of the last place
        largest = (np.abs(weight).sum(axis=0) * trained.FEATURE_LIMIT + np.abs(bias)).max()
        assert largest * 2.0 ** (trained.FEATURE_BITS + trained.WEIGHT_BITS) < 2.0**53
    weight, bias = layers[0]
    outside = (features @ weight + bias)[:, :5]
    for i in range(3):
        for j in range(5):
            exact = sum(
                (Fraction(a) * Fraction(b) for a, b in zip(features[i], weight[:, j], strict=True)), Fraction(bias[j])
            )
            assert Fraction(outside[i, j]) == exact
    shuffled = rng.permutation(len(weight))
    np.testing.assert_array_equal((features[:, shuffled] @ weight[shuffled] + bias)[:, :5], outside)
    # the same through all layers: hidden units in another order, and features that come from states
    states = rollout_states[-1]
    memory = Memory.start(np.arange(64) % 6, np.linspace(0.0, 6.0, 64), rollout_states[-2])
    features, _ = load_checkpoint().body.observe(states, memory)
    np.testing.assert_array_equal(features * 2.0**trained.FEATURE_BITS % 1.0, 0.0)
    orders = [rng.permutation(len(bias)) for _, bias in layers[:-1]] + [np.arange(trained.OUTPUT_SIZE)]
    inputs = [np.arange(trained.FEATURE_SIZE), *orders]
    permuted = [(w[i][:, o], b[o]) for (w, b), i, o in zip(layers, inputs, orders, strict=False)]
    sums, plain = [], trained.quantise
    monkeypatch.setattr(trained, "quantise", lambda values, *how: sums.append(values) or plain(values, *how))
    np.testing.assert_array_equal(trained.forward(permuted, features), trained.forward(layers, features))
    np.testing.assert_array_equal(sums[len(layers) - 1], sums[-1])  # before the last rounding, which would hide a lot


def test_commands_start_and_switch_at_random():
    policy = make_policy("trained", FIELDS, switch_probability=0.1)
    policy.reset(generators(range(300)))
    states = np.zeros((300, 31), dtype=np.float32)
    commands = []
    for _ in range(100):
        policy(states)
        commands.append(policy.commands)
    commands = np.array(commands)
    assert np.bincount(commands[0], minlength=6).min() > 25
    assert (commands[1:] != commands[:-1]).mean() == pytest.approx(0.1, abs=0.01)
    fixed = make_policy("trained", FIELDS, axis="-y")
    fixed.reset(generators(range(3)))
    for _ in range(5):
        fixed(states[:3])
    assert [AXIS_NAMES[c] for c in fixed.commands] == ["-y"] * 3
    assert AXES[3].tolist() == [0.0, -1.0, 0.0]


# --- geometry -----------------------------------------------------------------------------------------------------------


def test_rotation_between_agrees_with_scipy():
    first, turn = Rotation.random(200, random_state=0), Rotation.random(200, random_state=1)
    before, after = wxyz(first), wxyz(turn * first)
    signs = np.random.default_rng(0).choice([-1.0, 1.0], (200, 1))
    np.testing.assert_allclose(rotation_between(before, after * signs), turn.as_rotvec(), atol=1e-12)
    np.testing.assert_allclose(rotation_between(before, -before), 0.0, atol=1e-15)
    small = Rotation.from_rotvec(1e-3 * turn.as_rotvec())
    near = trained._small_rotation(before, wxyz(small * first) * signs)
    np.testing.assert_allclose(near, small.as_rotvec(), atol=2e-9)


def test_reduced_rotation_is_the_same_for_all_symmetric_poses():
    group = Rotation.create_group("O")  # the 24 rotations of a cube
    poses = Rotation.random(50, random_state=2)
    plain = reduced_rotation(wxyz(poses))
    for symmetry in group:
        np.testing.assert_allclose(reduced_rotation(wxyz(poses * symmetry)), plain, atol=3e-4)  # rounded to 2^-14
    nearest = min((poses[0] * s for s in group), key=lambda r: r.magnitude())
    np.testing.assert_allclose(plain[0].reshape(3, 3), nearest.as_matrix(), atol=1e-4)


def test_the_phase_turns_as_cosine_and_sine_do():
    angle = np.linspace(-np.pi, np.pi, 101)
    cosine, sine = trained._turned(np.full(101, np.cos(0.3)), np.full(101, np.sin(0.3)), angle)
    np.testing.assert_allclose(cosine, np.cos(angle + 0.3), atol=1e-14)
    np.testing.assert_allclose(sine, np.sin(angle + 0.3), atol=1e-14)


# --- search and training, on a cube whose best actions are known --------------------------------------------------------


class Turntable:
    """A stand-in simulator: the cube turns by 0.1 rad times the first three actions, and drops above 0.9 of the fourth."""

    def step(self, physics, actions):
        after = physics.copy()
        turn = Rotation.from_rotvec(0.1 * actions[:, :3].astype(float))
        after[:, 28:32] = wxyz(turn * Rotation.from_quat(physics[:, [29, 30, 31, 28]]))
        return after, actions[:, 3] > 0.9


@pytest.fixture
def table_starts():
    starts = np.zeros((8, 62))
    starts[:, 28] = 1.0
    return starts


def test_the_search_finds_the_best_gait(table_starts):
    config = GaitConfig(seeds=1, population=24, elites=6, starts=1, steps=20, generations=25, refine_generations=2)
    rng = np.random.default_rng(0)
    gait, fitness = search_gait(3, config, Turntable(), table_starts, rng)  # axis -y: the second action down
    assert gait[1] < -0.7
    quarter_random = 0.1 * 20 * 0.75  # a quarter of the actions turn it nowhere on average
    assert fitness > 0.75 * quarter_random
    assert fitness < 1.2 * quarter_random


def test_training_learns_to_follow_the_command(table_starts):
    config = PPOConfig(iterations=12, batch=96, horizon=16, minibatch=384, hidden=(32,), random_share=0.25, max_steps=50)
    config = replace(config, log_std=-0.7, target_kl=0.05)
    seen = []
    layers = train_residual(
        np.zeros((6, 61)), config, Turntable(), table_starts, 0, lambda now, _: seen.append(now.turned_quiet)
    )
    best = 100 * 0.1 * config.residual
    assert abs(seen[0]) < 0.1 * best
    assert seen[-1] > 0.2 * best
    assert all((weight * 2.0**trained.WEIGHT_BITS % 1.0 == 0.0).all() for weight, _ in layers)
    again, other = (
        train_residual(np.zeros((6, 61)), replace(config, iterations=2), Turntable(), table_starts, 0) for _ in range(2)
    )
    for (a, _), (b, _) in zip(again, other, strict=True):
        np.testing.assert_array_equal(a, b)


TINY_GAITS = GaitConfig(
    seeds=1, population=3, elites=2, starts=1, steps=2, generations=1, refine_starts=1, refine_generations=1
)
TINY = PolicyConfig(
    seed=1,
    starts=3,
    gaits=TINY_GAITS,
    ppo=PPOConfig(iterations=1, batch=4, horizon=2, minibatch=8, hidden=(8,)),
)


def test_a_killed_training_resumes_to_the_same_policy(tmp_path):
    def stop_at_minus_y(now):
        if now.stage == "gait -y":
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train_policy(tmp_path / "a", TINY, on_progress=stop_at_minus_y)
    kept = json.loads((tmp_path / "a" / "stages.json").read_text())["gaits"]
    assert list(kept) == ["+x", "-x", "+y"]
    stages = []
    resumed = train_policy(tmp_path / "a", TINY, resume=True, on_progress=lambda now: stages.append(now.stage))
    assert stages[0] == "gait -y"
    whole = train_policy(tmp_path / "b", TINY)
    a, b = load_checkpoint(resumed.checkpoint), load_checkpoint(whole.checkpoint)
    np.testing.assert_array_equal(a.body.gaits, b.body.gaits)
    for (wa, ba), (wb, bb) in zip(a.layers, b.layers, strict=True):
        np.testing.assert_array_equal(wa, wb)
        np.testing.assert_array_equal(ba, bb)
    with pytest.raises(EbmtrajError, match="exists"):
        train_policy(tmp_path / "a", TINY)
    with pytest.raises(EbmtrajError, match="seed = 1, not 2"):
        train_policy(tmp_path / "a", replace(TINY, seed=2), resume=True)


def test_the_training_simulator_starts_where_the_environment_does():
    starts = draw_starts(generators(range(3)), 1)
    env = HandCubeBatch()
    env.reset(generators(range(3)))
    simulator = TrainingSimulator(1, hand_cube.TIMESTEP)  # at the real time step it is the real environment
    actions = np.random.default_rng(0).uniform(-1, 1, (3, 20)).astype(np.float32)
    after, dropped = simulator.step(starts, actions)
    env.step(actions)
    np.testing.assert_array_equal(after, env.physics_state)
    assert not dropped.any()
    simulator.close()
    env.close()


# --- action rules -------------------------------------------------------------------------------------------------------


def test_every_4th_action_is_random_at_an_offset_of_its_own():
    states = np.zeros((64, 80, 31), dtype=np.float32).swapaxes(0, 1)
    ruled = make_policy("random", FIELDS, "every-4th-random", scale=1e-9)  # the inner actions are all near zero
    actions = play(ruled, states, range(64))
    random = np.abs(actions).max(axis=2) > 0.1  # (steps, B)
    np.testing.assert_array_equal(random[:-4], random[4:])
    assert (random[:4].sum(axis=0) == 1).all()
    assert random[:4].sum(axis=1).min() > 4  # all four offsets occur
    drawn = actions[random]
    assert drawn.shape == (64 * 20, 20)
    assert len(np.unique(drawn)) > 0.99 * drawn.size
    assert drawn.std() == pytest.approx(1 / np.sqrt(3), rel=0.02)
    assert ruled.describe() == {**make_policy("random", FIELDS, scale=1e-9).describe(), "action_rule": "every-4th-random"}


def test_twice_holds_an_action_and_disturbs_its_first_half():
    states = np.zeros((40, 6, 31), dtype=np.float32)
    actions = play(make_policy("random", FIELDS, "twice", mode="uniform"), states, range(6))
    noise = actions[::2] - actions[1::2]
    assert 0.0 < np.abs(noise).max() <= 0.1 + 1e-6
    inside = np.abs(actions[1::2]) < 0.9
    assert noise[inside].std() == pytest.approx(0.1 / np.sqrt(3), rel=0.05)
    assert (np.abs(actions[3::2] - actions[1:-2:2]).max(axis=-1) > 0.1).all()  # a new action every second step


# --- a user's own policy ------------------------------------------------------------------------------------------------


OWN = """
import numpy as np
def hold(states): return np.zeros((len(states), 20))
def short(states): return np.zeros((len(states), 19))
def nan(states): return np.full((len(states), 20), np.nan)
def far(states): return np.full((len(states), 20), -1.5)
def words(states): return "left"
def broken(states): return states[:, 99]
number = 3
class Counting:
    def reset(self, generators): self.seen = len(generators)
    def __call__(self, states): return np.full((len(states), 20), 0.1 * self.seen)
counting = Counting()
"""


@pytest.fixture
def own_module(tmp_path, monkeypatch):
    (tmp_path / "own_policies.py").write_text(OWN)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    yield "own_policies"
    sys.modules.pop("own_policies", None)


def test_a_users_callable_acts(own_module):
    policy = make_policy(f"{own_module}:counting", FIELDS)
    np.testing.assert_array_equal(play(policy, np.zeros((1, 4, 31), np.float32), range(4)), np.float32(0.4))
    options = policy.describe()
    assert options.pop("name") == f"{own_module}:counting"
    make_policy(f"{own_module}:counting", FIELDS, **options)
    with pytest.raises(EbmtrajError, match="source has changed"):
        make_policy(f"{own_module}:counting", FIELDS, sha256="0" * 64)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("short", r"returned actions of shape \(2, 19\).* return \(2, 20\)"),
        ("nan", "returned NaN"),
        ("far", "returned -1.5, outside the action bounds"),
        ("words", "returned str"),
        ("broken", "failed: IndexError"),
        ("number", "no callable 'number'"),
        ("missing", "no callable 'missing'"),
    ],
)
def test_a_callables_faults_are_named(own_module, name, message):
    with pytest.raises(EbmtrajError, match=message):
        play(make_policy(f"{own_module}:{name}", FIELDS), np.zeros((1, 2, 31), np.float32), range(2))


# --- faults -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("gaits.elites=99", "gaits.elites is 99, more than"),
        ("gaits.steps=0", "gaits.steps is 0"),
        ("ppo.batch=0", "ppo.batch is 0"),
        ("ppo.hidden=[]", "ppo.hidden is"),
        ("ppo.gamma=1.5", "ppo.gamma is 1.5"),
        ("timestep=0.008", "timestep is 0.008"),
        ("ppo.rate=1", "unknown key ppo.rate"),
    ],
)
def test_a_recipe_out_of_range_is_named(setting, message):
    with pytest.raises(EbmtrajError, match=re.escape(message)):
        from_recipe(PolicyConfig, None, [setting])


def test_faults_are_named(tmp_path):
    with pytest.raises(EbmtrajError, match="'no_such_module' can't be imported"):
        make_policy("no_such_module:policy", FIELDS)
    with pytest.raises(EbmtrajError, match="unknown action rule 'thrice'"):
        make_policy("random", FIELDS, "thrice")
    with pytest.raises(EbmtrajError, match="unknown axis 'w'"):
        make_policy("trained", FIELDS, axis="w")
    with pytest.raises(EbmtrajError, match="not on an environment with 2 actions"):
        make_policy("trained", make_batch("Reacher-v5").action_fields)
    with pytest.raises(EbmtrajError, match="does not exist"):
        make_policy("trained", FIELDS, checkpoint=str(tmp_path / "none.safetensors"))
    with pytest.raises(EbmtrajError, match="trained again"):
        make_policy("trained", FIELDS, sha256="0" * 64)
    policy = make_policy("trained", FIELDS)
    policy.reset(generators(range(2)))
    with pytest.raises(EbmtrajError, match="2 episodes"):
        policy(np.zeros((3, 31), np.float32))
    damaged = tmp_path / "damaged.safetensors"
    damaged.write_bytes(b"not a policy")
    with pytest.raises(EbmtrajError, match="damaged"):
        load_checkpoint(damaged)
    shipped = load_checkpoint()
    layers = [*shipped.layers[:-1], (shipped.layers[-1][0] * np.nan, shipped.layers[-1][1])]
    save_checkpoint(tmp_path / "nan.safetensors", shipped.body, layers, {})
    with pytest.raises(EbmtrajError, match="NaN"):
        load_checkpoint(tmp_path / "nan.safetensors")
    save_checkpoint(tmp_path / "wide.safetensors", Body(shipped.body.gaits[:5]), shipped.layers, {})
    with pytest.raises(EbmtrajError, match="other shapes"):
        load_checkpoint(tmp_path / "wide.safetensors")


# --- the command line ---------------------------------------------------------------------------------------------------


def test_evaluate_prints_one_object_and_writes_the_rules(tmp_path):
    out = tmp_path / "policy.json"
    command = ["evaluate", "--episodes", "6", "--steps", "3", "--seed", "5", "--json"]
    first = CliRunner().invoke(cli_policy.app, [*command, "--out", str(out)], catch_exceptions=False)
    result = json.loads(first.stdout)
    assert {"progress_rad_per_100", "per_axis", "drop_rate", "random"} <= set(result)
    assert {"progress_rad_per_100", "per_axis", "drop_rate"} <= set(result["random"])
    again = CliRunner().invoke(cli_policy.app, [*command, "--threads", "1"], catch_exceptions=False)
    assert json.loads(again.stdout) == result  # for any number of threads
    written = json.loads(out.read_text())
    assert set(written["rules"]) == set(ACTION_RULES)
    assert written["rules"]["every-4th-random"] == result
    with pytest.raises(EbmtrajError, match="overwrite"):
        CliRunner().invoke(cli_policy.app, [*command, "--out", str(out)], catch_exceptions=False)


def test_train_makes_a_policy_that_evaluate_takes(tmp_path):
    settings = ["starts=2", "gaits.seeds=1", "gaits.population=2", "gaits.elites=1", "gaits.steps=1", "gaits.generations=1"]
    settings += ["gaits.refine_generations=1", "ppo.iterations=1", "ppo.batch=2", "ppo.horizon=2"]
    sets = [word for setting in settings for word in ("--set", setting)]
    run = tmp_path / "run"
    made = CliRunner().invoke(cli_policy.app, ["train", "--run", str(run), "--json", *sets], catch_exceptions=False)
    checkpoint = json.loads(made.stdout)["checkpoint"]
    command = ["evaluate", "--checkpoint", checkpoint, "--episodes", "1", "--steps", "2", "--json"]
    shown = CliRunner().invoke(cli_policy.app, command, catch_exceptions=False)
    assert json.loads(shown.stdout)["policy"]["checkpoint"] == checkpoint
