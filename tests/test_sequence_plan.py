"""Plans by the trajectory energy: against a problem with a known answer, and on a particle's real data."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from ebmtraj.collect import CollectConfig, collect
from ebmtraj.energies.sequence import SequenceContext, SequenceEnergy, TransitionCoordinates
from ebmtraj.envs.registry import PARTICLE_ID, make_batch
from ebmtraj.errors import EbmtrajError
from ebmtraj.samplers.langevin import LangevinConfig, langevin
from ebmtraj.training.loop import TrainingConfig
from ebmtraj.trajectories.costs import parse_task
from ebmtraj.trajectories.fit import load_recipe, train_transition
from ebmtraj.trajectories.inverse import InverseConfig, InverseModel, load_inverse, train_inverse
from ebmtraj.trajectories.model import TransitionModel
from ebmtraj.trajectories.model_plan import METHODS, ModelPlanConfig, ModelPlanner
from ebmtraj.trajectories.registry import load_model
from ebmtraj.trajectories.sequence_plan import SequenceConfig, SequencePlanner

FAST = SequenceConfig(horizon=10)


class RandomWalk(TransitionCoordinates):
    """s' = s + 0.1 x with x a unit Gaussian: sums of Gaussians, whose posterior is known."""

    event = 2

    def states(self, start: Tensor, x: Tensor) -> Tensor:
        return start[:, None] + 0.1 * x.cumsum(1)

    def energy(self, state: Tensor, x: Tensor, level: Tensor | None) -> Tensor:
        return 0.5 * x.square().sum(-1)


def test_chain_over_all_states_samples_the_known_posterior() -> None:
    """With cost |s_T - g|^2 / (2 v), the end is Gaussian between start and goal, and the way there a bridge."""
    steps, spread, goal, weight = 8, 0.1, torch.tensor([1.0, -0.5]), 2.0
    energy = SequenceEnergy(RandomWalk(), weight=weight)
    start = torch.zeros(4000, 2)
    context = SequenceContext(start, lambda s, states, actions: (states[:, -1] - goal).square().sum(-1) / 0.2)
    generator = torch.Generator().manual_seed(0)
    x = torch.empty(4000, steps, 2).normal_(generator=generator)
    x, _ = langevin(energy, x, LangevinConfig(steps=400, step_size=0.1), context=context, generator=generator)
    states = RandomWalk().states(start, x)
    prior, cost = steps * spread**2, 0.2 / (2 * weight)  # variances of the end under the walk, and of the cost's Gaussian
    mean, variance = prior / (prior + cost) * goal, prior * cost / (prior + cost)
    torch.testing.assert_close(states[:, -1].mean(0), mean, atol=0.02, rtol=0)
    torch.testing.assert_close(states[:, -1].var(0), torch.full((2,), variance), atol=0.0, rtol=0.12)
    torch.testing.assert_close(states[:, 3].mean(0), mean / 2, atol=0.02, rtol=0)  # half-way


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, TransitionModel], InverseModel, Path]:
    """Briefly trained models of a particle."""
    folder = tmp_path_factory.mktemp("particle")
    collect(folder / "s.zarr", CollectConfig(env=PARTICLE_ID, episodes=150, steps=40, seed=3))
    models = {}
    for name, actions, network, steps in (
        ("dsm", False, ["network.width=64"], 600),
        ("dsm", True, ["network.width=64", "network.history=0", "network.previous_control=false"], 500),
        ("cd", False, ["network.width=64", "network.sampler.steps=10"], 300),
        ("fc", True, ["network.space=delta", "network.spectral=false", "network.width=64"], 500),
    ):
        given = {"model": name, "actions": actions, "data": str(folder / "s.zarr")}
        recipe = load_recipe(None, [*network, f"training.steps={steps}", "training.batch=256"], given)
        key = f"{name}-actions" if name == "dsm" and actions else name
        train_transition(recipe, folder / key, device="cpu")
        models[key], _ = load_model(folder / key / "checkpoints" / "best.safetensors")
    training = TrainingConfig(steps=600, batch=256, learning_rate=3e-3)
    train_inverse(folder / "s.zarr", folder / "inverse", config=InverseConfig(width=64), training=training)
    checkpoint = folder / "inverse" / "checkpoints" / "best.safetensors"
    return models, load_inverse(checkpoint), checkpoint


Made = tuple[dict[str, TransitionModel], InverseModel, Path]
START = torch.tensor([[0.2, 0.5, 0.6, 0.5], [0.5, 0.8, 0.5, 0.4]])


@pytest.mark.parametrize("name", ["dsm", "dsm-actions", "cd"])
def test_plans_keep_the_start_reach_the_goal_differ_and_stay_in_the_data(made: Made, name: str) -> None:
    models, _, _ = made
    task = parse_task("reach", models["dsm"].state_fields)
    plan = SequencePlanner(models[name], task, config=FAST).plan(START, torch.Generator().manual_seed(0))
    assert plan.states.shape == (2, 4, 11, 4)
    torch.testing.assert_close(plan.states[:, :, 0], START[:, None].expand(-1, 4, -1))
    torch.testing.assert_close(plan.states[..., 2:], START[:, None, None, 2:].expand(-1, 4, 11, -1), atol=0.02, rtol=0)
    ends = plan.followed()[:, -1]
    assert ((ends[:, :2] - ends[:, 2:]).norm(dim=-1) < 0.12).all()
    assert plan.states[:, :, 5, :2].std(1).max() > 0.003  # not one plan four times
    moves = plan.states[..., :2].diff(dim=2).norm(dim=-1)
    assert moves.max() < 0.08  # the particle can do 0.05, and the data's box of actions no more than 0.07
    assert (plan.actions is not None) is (name == "dsm-actions")
    total = plan.energy + FAST.weight * plan.cost
    assert torch.equal(plan.best, total.argmin(1))


def test_energy_tells_true_transitions_from_impossible_ones(made: Made) -> None:
    models, _, _ = made
    task = parse_task("smooth", models["dsm"].state_fields)
    planner = SequencePlanner(models["dsm"], task, config=FAST)
    for scale, low, high in ((0.5, -20.0, 15.0), (20.0, 1e3, math.inf)):
        x = scale * torch.ones(1, 10, 4)
        energy, _, _ = planner.energy.parts(x, SequenceContext(START[:1], None))
        assert low < float(energy) < high


def test_an_obstacle_in_the_cost_bends_plans(made: Made) -> None:
    models, inverse, _ = made
    fields = models["dsm"].state_fields
    blocked = parse_task("reach + obstacle centre=0.4,0.53 radius=0.1 margin=0.03 weight=30", fields)
    generator = torch.Generator().manual_seed(0)
    start = START[:1].repeat(4, 1)
    config = replace(FAST, horizon=14)
    for task, inside in ((parse_task("reach", fields), True), (blocked, False)):
        way = SequencePlanner(models["dsm"], task, inverse, config).plan(start, generator).followed()[..., :2]
        assert bool((way - torch.tensor([0.4, 0.53])).norm(dim=-1).min() < 0.09) is inside


def test_executed_in_the_environment(made: Made) -> None:
    models, inverse, _ = made
    task = parse_task("reach", models["dsm"].state_fields)
    batch = make_batch(PARTICLE_ID)
    fc = models["fc"]
    planners = {
        "energy": SequencePlanner(models["dsm"], task, inverse, replace(FAST, follow=2)),
        "energy of actions": SequencePlanner(models["dsm-actions"], task, config=replace(FAST, follow=2)),
        "gradient": ModelPlanner(fc, task, ModelPlanConfig("gradient", 10, samples=2, iterations=8)),  # type: ignore[arg-type]
        "shooting": ModelPlanner(fc, task, ModelPlanConfig("shooting", 10, samples=64)),  # type: ignore[arg-type]
    }
    assert set(planners) == {"energy", "energy of actions", *METHODS}
    for name, planner in planners.items():
        batch.set_state(START.numpy())  # type: ignore[attr-defined]
        state, generator = START.numpy(), torch.Generator().manual_seed(1)
        planner.reset()
        for _ in range(14):
            action = planner.act(torch.from_numpy(state), generator)
            assert action.abs().max() <= 1, name
            state, _ = batch.step(action.numpy())
        assert np.linalg.norm(state[:, :2] - state[:, 2:], axis=1).max() < 0.12, name
    batch.close()


def test_inverse_model_finds_the_action_and_comes_back_from_its_checkpoint(made: Made, tmp_path: Path) -> None:
    _, inverse, checkpoint = made
    batch = make_batch(PARTICLE_ID)
    batch.set_state(START.numpy())  # type: ignore[attr-defined]
    action = np.array([[0.5, 0.3], [-0.4, 0.6]], dtype=np.float32)
    after, _ = batch.step(action)
    found = inverse(START, torch.from_numpy(after))
    torch.testing.assert_close(found, torch.from_numpy(action), atol=0.12, rtol=0)
    assert inverse(START, START + 0.5).abs().max() <= 1
    torch.testing.assert_close(load_inverse(checkpoint)(START, torch.from_numpy(after)), found, atol=0, rtol=0)
    with pytest.raises(EbmtrajError, match="not a transition model"):
        load_model(checkpoint)
    with pytest.raises(EbmtrajError, match="not an inverse model"):
        load_inverse(checkpoint.parents[2] / "dsm" / "checkpoints" / "best.safetensors")
    with pytest.raises(EbmtrajError, match="does not exist"):
        load_inverse(tmp_path / "none.safetensors")


def test_faults_are_one_line(made: Made) -> None:
    models, _, _ = made
    fields = models["dsm"].state_fields
    task = parse_task("reach", fields)
    with pytest.raises(EbmtrajError, match=r"needs a transition energy \(dsm or cd\), not model 'fc'"):
        SequencePlanner(models["fc"], task)
    with pytest.raises(EbmtrajError, match="the task is of other state fields"):
        SequencePlanner(models["dsm"], parse_task("reach goal=0,0", fields[:1]))
    with pytest.raises(EbmtrajError, match="an inverse model is needed"):
        SequencePlanner(models["dsm"], task).act(START, torch.Generator())
    with pytest.raises(EbmtrajError, match="needs an fc model with actions"):
        ModelPlanner(models["dsm"], task)  # type: ignore[arg-type]
    with pytest.raises(EbmtrajError, match="levels >= 2"):
        SequenceConfig(levels=1)
    with pytest.raises(EbmtrajError, match="level < again <= first"):
        SequenceConfig(level=0.5)
    with pytest.raises(EbmtrajError, match="unknown method"):
        ModelPlanConfig(method="guess")  # type: ignore[arg-type]
    with pytest.raises(EbmtrajError, match="rate = 0"):
        ModelPlanConfig(rate=0)
