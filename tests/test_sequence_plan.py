"""Plans by the trajectory energy: against a problem with a known answer, and on a particle's real data."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from commands import call
from torch import Tensor

from ebmtraj.collect import CollectConfig, collect
from ebmtraj.datasets.store import Store
from ebmtraj.device import use_threads
from ebmtraj.energies.sequence import Sequence, SequenceContext, SequenceEnergy, TransitionCoordinates
from ebmtraj.envs.registry import PARTICLE_ID, make_batch
from ebmtraj.errors import EbmtrajError
from ebmtraj.fields import Field
from ebmtraj.samplers.langevin import LangevinConfig, langevin
from ebmtraj.training.checkpoint import load_tensors
from ebmtraj.trajectories.control import Controller
from ebmtraj.trajectories.controllers.gradient import GradientConfig, GradientPlanner
from ebmtraj.trajectories.costs import parse_task
from ebmtraj.trajectories.execute import ExecuteConfig, Execution, execute
from ebmtraj.trajectories.fit import load_recipe, train_transition
from ebmtraj.trajectories.measure_goals import goal_measures, held_out_poses, touched
from ebmtraj.trajectories.model import TransitionModel
from ebmtraj.trajectories.registry import load_model
from ebmtraj.trajectories.sequence_fit import load_sequence_model, load_sequence_recipe, train_sequence
from ebmtraj.trajectories.sequence_model import SequenceModel
from ebmtraj.trajectories.sequence_plan import SequenceConfig, SequencePlan, SequencePlanner, plan_sequences

FAST = SequenceConfig(horizon=10, levels=3, steps=5)


class RandomWalk(TransitionCoordinates):
    """s' = s + 0.1 x with x a unit Gaussian: sums of Gaussians, whose posterior is known."""

    event = 2

    def unroll(self, start: Tensor, x: Tensor) -> Sequence:
        return Sequence(start[:, None] + 0.1 * x.cumsum(1), None)

    def energy(self, start: Tensor, sequence: Sequence, x: Tensor, level: Tensor | None) -> Tensor:
        return 0.5 * x.square().sum(-1)


def test_chain_over_all_states_samples_the_known_posterior() -> None:
    """With cost |s_T - g|^2 / 0.2, the end is Gaussian between start and goal, and the way there a bridge."""
    steps, spread, goal, weight = 8, 0.1, torch.tensor([1.0, -0.5]), 2.0
    energy = SequenceEnergy(RandomWalk(), weight=weight)
    use_threads(1)
    start = torch.zeros(3000, 2)
    context = SequenceContext(start, lambda s, states, actions: (states[:, -1] - goal).square().sum(-1) / 0.2)
    generator = torch.Generator().manual_seed(0)
    x = torch.empty(3000, steps, 2).normal_(generator=generator)
    x, _ = langevin(energy, x, LangevinConfig(steps=300, step_size=0.1), context=context, generator=generator)
    states = RandomWalk().unroll(start, x).states
    prior, cost = steps * spread**2, 0.2 / (2 * weight)  # variances of the end under the walk, and of the cost's Gaussian
    mean, variance = prior / (prior + cost) * goal, prior * cost / (prior + cost)
    torch.testing.assert_close(states[:, -1].mean(0), mean, atol=0.02, rtol=0)
    torch.testing.assert_close(states[:, -1].var(0), torch.full((2,), variance), atol=0.0, rtol=0.13)
    torch.testing.assert_close(states[:, 3].mean(0), mean / 2, atol=0.02, rtol=0)  # half-way


Made = tuple[SequenceModel, dict[str, TransitionModel], Path]
START = torch.tensor([[0.2, 0.5, 0.6, 0.5], [0.5, 0.8, 0.5, 0.4]])


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Made:
    """Briefly trained models of a particle: what plans sequences, and what else may."""
    use_threads(1)
    folder = tmp_path_factory.mktemp("particle")
    store = str(folder / "s.zarr")
    collect(store, CollectConfig(env=PARTICLE_ID, episodes=150, steps=40, seed=3))
    brief = ["training.steps=900", "training.batch=128", "network.transition.width=64", "network.inverse.width=64"]
    train_sequence(load_sequence_recipe(None, brief, {"data": store}), folder / "sequence", device="cpu")
    models = {}
    for name, actions, network, steps in (
        ("dsm", True, ["network.width=64", "network.history=0", "network.previous_control=false"], 400),
        ("cd", False, ["network.width=64", "network.sampler.steps=10"], 200),
        ("fc", True, ["network.space=delta", "network.spectral=false", "network.width=64"], 300),
    ):
        given = {"model": name, "actions": actions, "data": store}
        recipe = load_recipe(None, [*network, f"training.steps={steps}", "training.batch=128"], given)
        train_transition(recipe, folder / name, device="cpu")
        models[name], _ = load_model(folder / name / "checkpoints" / "best.safetensors")
    return load_sequence_model(folder / "sequence")[0], models, folder


def planned(model: TransitionModel, task: str, start: Tensor = START, config: SequenceConfig = FAST) -> SequencePlan:
    """Plans of a transition energy."""
    planner = SequencePlanner(model, lambda s, following: following, config)
    cost, generator = parse_task(task, model.state_fields), torch.Generator().manual_seed(0)
    return plan_sequences(planner.energy, start, cost, config, generator=generator)


@pytest.mark.parametrize("name", ["sequence", "dsm", "cd"])
def test_plans_reach_the_goal_differ_and_stay_in_the_data(made: Made, name: str) -> None:
    plan = planned(made[0].transition if name == "sequence" else made[1][name], "reach")
    assert plan.states.shape == (2, 4, 10, 4)
    torch.testing.assert_close(plan.states[..., 2:], START[:, None, None, 2:].expand(-1, 4, 10, -1), atol=0.02, rtol=0)
    ends = plan.of_best(plan.states)[:, -1]
    assert ((ends[:, :2] - ends[:, 2:]).norm(dim=-1) < 0.12).all()
    assert plan.states[:, :, 5, :2].std(1).max() > 0.003  # not one plan four times
    path = torch.cat((START[:, None, None].expand(-1, 4, 1, -1), plan.states), dim=2)
    fastest = path[..., :2].diff(dim=2).norm(dim=-1).max()
    assert fastest < (0.1 if name == "cd" else 0.08)  # it can do 0.05, and the data's box of actions up to 0.07
    assert (plan.actions is not None) is (name == "dsm")
    assert torch.equal(plan.best, (plan.energy + FAST.weight * plan.cost).argmin(1))


def test_energy_is_bounded_off_the_data(made: Made) -> None:
    energy = SequencePlanner(made[0].transition, made[0].act, FAST).energy
    far = torch.tensor([[40.0, 0.5, 0.6, 0.5]])  # a state where the data never was
    for x, start, low, high in (
        (torch.full((1, 10, 4), 0.5), START[:1], -20.0, 15.0),
        (torch.full((1, 10, 4), 20.0), START[:1], 1e3, math.inf),
        (torch.zeros(1, 10, 4), START[:1], -1e-3, 1e-3),  # the base's own mean
        (torch.zeros(1, 10, 4), far, 1e3, math.inf),
    ):
        found = energy(x, SequenceContext(start)).detach()
        assert low <= float(found) <= high, float(found)


def test_an_obstacle_in_the_cost_bends_plans(made: Made) -> None:
    start, config = START[:1].repeat(4, 1), replace(FAST, horizon=14)
    blocked = "reach + obstacle centre=0.4,0.53 radius=0.1 margin=0.03 weight=30"
    for task, inside in (("reach", True), (blocked, False)):
        plan = planned(made[0].transition, task, start, config)
        way = plan.of_best(plan.states)[..., :2]
        assert bool((way - torch.tensor([0.4, 0.53])).norm(dim=-1).min() < 0.09) is inside


def test_executed_in_the_environment(made: Made) -> None:
    sequence, models, _ = made
    task = parse_task("reach", sequence.state_fields)
    env = make_batch(PARTICLE_ID)
    controllers: dict[str, Controller] = {
        "energy": SequencePlanner(sequence.transition, sequence.act, replace(FAST, every=2)),
        "energy of actions": SequencePlanner(models["dsm"], config=replace(FAST, every=2)),
        "gradient": GradientPlanner(models["fc"], GradientConfig(10, samples=2, iterations=8, every=2)),
        "by a deadline": SequencePlanner(sequence.transition, sequence.act, replace(FAST, every=2, deadline=14)),
    }
    for name, controller in controllers.items():
        found = execute(env, controller, task, ExecuteConfig(2, 14, seed=1), start=START)
        assert found.actions.abs().max() <= 1, name
        assert goal_measures(found, task)["mean_distance_m"] < 0.06, name
    env.close()


def test_plans_end_by_the_deadline(made: Made) -> None:
    sequence, models, _ = made
    task, env = parse_task("reach when=end", sequence.state_fields), make_batch(PARTICLE_ID)
    for controller in (
        SequencePlanner(sequence.transition, sequence.act, replace(FAST, horizon=3, deadline=4)),
        GradientPlanner(models["fc"], GradientConfig(3, samples=2, iterations=1, deadline=4)),
    ):
        controller.begin(env, START, task, torch.Generator().manual_seed(0))
        lengths = []
        for _ in range(6):
            path = controller(START, None).path
            assert path is not None
            lengths.append(path.states.shape[1])
        assert lengths == [3, 3, 2, 1, 1, 1]


def test_inverse_model_finds_the_action(made: Made) -> None:
    env = make_batch(PARTICLE_ID)
    env.set_state(START.numpy())
    action = np.array([[0.5, 0.3], [-0.4, 0.6]], dtype=np.float32)
    after, _ = env.step(action)
    found = made[0].act(START, torch.from_numpy(after))
    torch.testing.assert_close(found, torch.from_numpy(action), atol=0.2, rtol=0)
    assert made[0].act(START, START + 0.5).abs().max() <= 1
    env.close()


def test_measures_of_getting_somewhere() -> None:
    fields = (Field("position", 2, "position", "m"), Field("goal", 2, "position", "m"))
    task = parse_task("reach + obstacle centre=0.5,0.5 radius=0.1", fields)
    x = torch.tensor([[0.1, 0.2, 0.31], [0.1, 0.45, 0.8], [0.3, 0.37, 0.37], [0.9, 0.9, 0.9]])
    states = torch.stack((x, torch.full_like(x, 0.5), torch.full_like(x, 0.3), torch.full_like(x, 0.5)), -1)
    obstacles: Any = [task.parts[1]]
    assert touched(states, obstacles).tolist() == [False, True, True, False]  # clear, through, held up, far away and still
    over = torch.zeros(4, 3, dtype=torch.bool)
    found = goal_measures(Execution(states, torch.zeros(4, 2, 1), over, [], 0.0, []), task)
    assert (found["success_rate"], found["clear_rate"]) == (0.25, 0.5)
    assert found["median_distance_m"] == pytest.approx(0.07, abs=1e-6)  # the lower one of .01, .07, .5 and .6
    joints = (Field("hinge", 2, "angle", "rad", low=(-2.0, -2.0), high=(2.0, 2.0)),)
    pose = parse_task("joint-pose when=end", joints).given("joint-pose", goal=torch.tensor([[0.5, 0.0]]))
    states = torch.tensor([[[0.0, 0.0], [1.0, 1.0], [0.8, 0.4]]])
    found = goal_measures(Execution(states, torch.zeros(1, 2, 1), over[:1], [], 0.0, []), pose)
    assert found["rmse_rad"] == pytest.approx(math.sqrt(0.25 / 2), rel=1e-5)
    assert found["start_rmse_rad"] == pytest.approx(math.sqrt(0.25 / 2), rel=1e-5)


def test_poses_are_those_of_held_out_episodes_later_on(hand_store: Path) -> None:
    store = Store.open(hand_store)
    term = parse_task("joint-pose", store.state_fields).parts[0]
    poses = held_out_poses(store, term, 1, 0, ahead=5, split="train")
    states = store.read_states(store.split("train")).reshape(-1, 21, 31)
    episode, t = np.argwhere((states == poses.start[0].numpy()).all(-1))[0]
    joints = term.find_joints()
    later = states[episode, t + 5, :24].clip(np.float32(joints.low), np.float32(joints.high))
    np.testing.assert_array_equal(later, poses.joints[0].numpy())
    with pytest.raises(EbmtrajError, match="not 5000"):
        held_out_poses(store, term, 5000, 0, ahead=5)


def test_commands(made: Made, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    _, _, folder = made
    words = ["train", "sequence", "--data", folder / "s.zarr", "--run", tmp_path / "run", "--device", "cpu", "--json"]
    words += ["--set", "training.steps=12", "--set", "training.check_every=4", "--set", "network.transition.width=8"]
    code, out, err = call(capfd, *words)
    assert code == 0, err
    assert json.loads(out)["steps"] == 12
    best = load_tensors(tmp_path / "run" / "checkpoints" / "best.safetensors")[1]
    assert call(capfd, *words, "--resume")[0] == 0  # finished already: the same bits
    again = load_tensors(tmp_path / "run" / "checkpoints" / "best.safetensors")[1]
    assert all(torch.equal(again[name], value) for name, value in best.items())
    assert "network.inverse_share" in call(capfd, *words, "--resume", "--set", "network.inverse_share=0.5")[2]

    task = ["--task", "reach + obstacle centre=0.5,0.5 radius=0.1", "--env-set", "obstacles=[[0.5,0.5,0.1]]"]
    for run, settings in (("sequence", ["plans=2", "levels=2"]), ("dsm", ["plans=1", "steps=1"]), ("fc", ["iterations=2"])):
        set_ = [word for each in (*settings, "horizon=3") for word in ("--set", each)]
        code, out, err = call(capfd, "plan", folder / run, *task, *set_, "--episodes", 3, "--steps", 4, "--json")
        assert code == 0, err
        assert set(json.loads(out)) >= {"success_rate", "success_se", "clear_rate", "median_distance_m", "ms_per_step"}
    kept = json.loads((folder / "sequence" / "results.json").read_text())["plans"][0]
    assert kept["planner"]["horizon"] == 3
    for words, said in (
        (["plan", folder / "cd", "--task", "reach"], "does not plan"),
        (["plan", folder / "sequence", "--task", "reach", "--set", "horizons=3"], "horizon"),
        (["plan", folder / "sequence", "--task", "reach", "--env-set", "obstacle=true"], "obstacle"),
        (["plan", tmp_path / "none", "--task", "reach"], "does not exist"),
        (["train", "sequence", "--data", folder / "s.zarr", "--run", tmp_path / "x", "--set", "network.objective=fc"], "fc"),
    ):
        code, out, err = call(capfd, *words)
        assert (code, out, err.count("\n")) == (2, "", 1), err
        assert said in err


def test_faults_are_one_line(made: Made) -> None:
    sequence, models, folder = made
    with pytest.raises(EbmtrajError, match=r"needs a transition energy \(dsm or cd\), not model 'fc'"):
        SequencePlanner(models["fc"])
    with pytest.raises(EbmtrajError, match="an inverse model is needed"):
        SequencePlanner(sequence.transition)
    with pytest.raises(EbmtrajError, match="needs an fc model with actions"):
        GradientPlanner(models["dsm"])
    with pytest.raises(EbmtrajError, match="other states or actions"):
        SequencePlanner(sequence.transition, sequence.act).begin(
            make_batch("Reacher-v5"), START, parse_task("reach", sequence.state_fields), torch.Generator()
        )
    with pytest.raises(EbmtrajError, match="not a transition model"):
        load_model(folder / "sequence" / "checkpoints" / "best.safetensors")
    with pytest.raises(EbmtrajError, match="holds a transition model"):
        load_sequence_model(folder / "dsm")
    with pytest.raises(EbmtrajError, match=r"network.transition.history"):
        load_sequence_recipe(None, ["network.transition.history=1"], {})
    for config, settings, said in (
        (SequenceConfig, {"levels": 1}, "levels >= 2"),
        (SequenceConfig, {"fresh": 4}, "fresh < plans"),
        (SequenceConfig, {"level": 0.9}, "level < again <= first"),
        (SequenceConfig, {"temperature": -1.0}, "temperature"),
        (GradientConfig, {"rate": 0.0}, "rate = 0"),
        (GradientConfig, {"correlation": 1.0}, "correlation"),
    ):
        with pytest.raises(EbmtrajError, match=said):
            config(**settings)
