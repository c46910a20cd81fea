"""Controllers: one contract for all that choose actions in a comparison."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from ebmtraj.datasets.store import Store
from ebmtraj.envs.registry import make_batch
from ebmtraj.errors import EbmtrajError
from ebmtraj.trajectories.control import Controller
from ebmtraj.trajectories.controllers.registry import CONTROLLERS, find_controller, make_controller
from ebmtraj.trajectories.controllers.shooting import ShootingConfig
from ebmtraj.trajectories.controllers.trainings import TRAININGS, Training, with_steps
from ebmtraj.trajectories.costs import parse_task
from ebmtraj.trajectories.execute import ExecuteConfig, execute
from ebmtraj.trajectories.measure import rotation_task

NETWORK = {
    "plan": ("network.width=16", "network.horizons=[2,8,12]"),
    "sequence": ("network.transition.width=16", "network.inverse.width=16"),
    "clone": ("network.width=16", "network.horizons=[2,8,12]"),
    "transition": ("network.width=16", "network.depth=1"),
}


QUICK: dict[str, dict[str, Any]] = {  # settings of slow controllers
    "sequence": {"horizon": 3, "plans": 2, "levels": 2, "steps": 1},
    "simulator": {"samples": 2, "horizon": 3, "every": 2},
    **{
        name: {"candidates": 4, "elites": 2, "keep": 1, "rounds": 2, "horizon": 10}
        for name, entry in CONTROLLERS.items()
        if entry.Config is ShootingConfig
    },
    "simulator-prior": {"samples": 2, "horizon": 3, "every": 2, "redraw": 2},
}


def tiny(training: Training) -> tuple[str, ...]:
    """Settings that make a training last a moment."""
    steps = ("training.steps=12", "training.check_every=6", "training.log_every=6", "training.batch=16")
    return (*steps, *NETWORK[training.kind])


@pytest.fixture(scope="module")
def trained(hand_store: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Every model that any controller needs, hardly trained."""
    folder, found = tmp_path_factory.mktemp("trained"), {}
    for name in sorted({need for entry in CONTROLLERS.values() for need in entry.needs}):
        training = TRAININGS[name]
        training.train(training.recipe(str(hand_store), 0, changes=tiny(training)), folder / name)
        found[name] = training.load(folder / name)
    return found


@pytest.mark.parametrize("name", CONTROLLERS)
@pytest.mark.parametrize("kind", ["rotate", "reorient"])
def test_every_controller_acts_within_bounds_and_repeats_itself(name: str, kind: str, trained: dict[str, Any]) -> None:
    entry = CONTROLLERS[name]
    assert entry.about
    assert set(entry.settings) <= {"", "rotate", "reorient"}
    env = make_batch("hand-cube")
    config = ExecuteConfig(episodes=6, steps=3, seed=5)
    task = parse_task({"rotate": "rotate axis=all", "reorient": "reorient"}[kind], env.state_fields)
    if kind == "rotate":
        task = rotation_task(task, 6)[0]
    else:
        goals = torch.nn.functional.normalize(torch.randn(6, 4, generator=torch.Generator().manual_seed(1)), dim=1)
        task = task.given("reorient", goal=goals)

    def run(controller: Controller) -> torch.Tensor:
        found = execute(env, controller, task, config)
        assert found.actions.shape == (6, 3, 20)
        assert found.actions.isfinite().all()
        assert found.actions.abs().max() <= 1
        assert found.control_seconds > 0
        return found.actions

    controller = make_controller(name, trained, kind, QUICK.get(name))
    first = run(controller)
    torch.testing.assert_close(run(controller), first, rtol=0, atol=0)  # begun again, it forgets all that was
    torch.testing.assert_close(run(make_controller(name, trained, kind, QUICK.get(name))), first, rtol=0, atol=0)
    env.close()


def test_hold_aims_at_the_joints_of_the_start(trained: dict[str, Any]) -> None:
    env = make_batch("hand-cube")
    task, _, _ = rotation_task(parse_task("rotate axis=z", env.state_fields), 4)
    found = execute(env, make_controller("hold", {}, "rotate"), task, ExecuteConfig(episodes=4, steps=12, seed=2))
    fingers = found.states[:, :, [0, 1, 2, 3, 4, 6, 7, 8]]
    assert (fingers[:, -1] - fingers[:, 0]).abs().max() < 0.2  # rad
    moved = execute(env, make_controller("random", {}, "rotate"), task, ExecuteConfig(episodes=4, steps=12, seed=2))
    assert (moved.states[:, -1] - moved.states[:, 0])[:, :8].abs().max() > 0.4
    env.close()


def test_what_is_missing_or_unknown_is_named(trained: dict[str, Any]) -> None:
    with pytest.raises(EbmtrajError, match="unknown model 'ourz'; did you mean ours"):
        find_controller("ourz")
    with pytest.raises(EbmtrajError, match="a model 'window' is needed; train it: ebmtraj train plan --data STORE"):
        make_controller("ours", {})
    with pytest.raises(EbmtrajError, match="unknown key candidate; did you mean candidates"):
        make_controller("ours", trained, "rotate", {"candidate": 3})


def test_seconds_become_steps(hand_store: Path) -> None:
    for name in ("window",):
        training = TRAININGS[name]
        recipe = training.recipe(str(hand_store), 3, 7.0, tiny(training)[1:])
        assert (recipe.training.seconds, recipe.training.seed, recipe.training.threads) == (7.0, 3, 1)
        assert 0 < training.step_seconds(recipe) < 1
        assert (with_steps(recipe, 9).training.steps, with_steps(recipe, 9).training.seconds) == (9, None)
    assert Store.open(hand_store).complete
