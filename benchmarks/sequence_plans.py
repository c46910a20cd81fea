"""Plans of whole state sequences, carried out: a particle among obstacles not in its data, Reacher, joint poses of the hand.

Rows beside them: the same trajectory optimisation through a feed-forward model, and what needs no plan. Settings were chosen
on the starts of --start-seed 500. Runs that are there and finished are only measured, figures that --out holds under the
same settings are kept, and stores are collected where missing.

    python benchmarks/sequence_plans.py --hand hand.zarr --out docs/results/sequence_plans.json
"""

from __future__ import annotations

import argparse
import dataclasses
import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ebmtraj.collect import CollectConfig, collect
from ebmtraj.config import build, parse_overrides
from ebmtraj.datasets.store import Store
from ebmtraj.device import no_denormals, use_threads
from ebmtraj.envs.batch import BatchEnv
from ebmtraj.envs.particle import DISCS, inside
from ebmtraj.envs.registry import PARTICLE_ID, make_batch
from ebmtraj.runs import machine, versions
from ebmtraj.trajectories.control import Controller, Decision
from ebmtraj.trajectories.controllers.gradient import GradientConfig, GradientPlanner
from ebmtraj.trajectories.controllers.trainings import Training
from ebmtraj.trajectories.costs import TaskCost, parse_task
from ebmtraj.trajectories.execute import ExecuteConfig, execute
from ebmtraj.trajectories.measure_goals import goal_measures, held_out_poses
from ebmtraj.trajectories.sequence_model import SequenceModel
from ebmtraj.trajectories.sequence_plan import SequenceConfig, SequencePlanner
from ebmtraj.trajectories.terms.joints import JointPose

COMMAND = "python benchmarks/sequence_plans.py --hand hand.zarr --out docs/results/sequence_plans.json"
FC = ("model=fc", "actions=true", "network.space=delta", "network.spectral=false", "training.learning_rate=2e-3")
OBSTACLES = " + ".join(f"obstacle centre={x},{y} radius={r} margin=0.04 weight=100" for x, y, r in DISCS)


@dataclass(frozen=True)
class Problem:
    """A task in a simulator, what its models are trained on, and the settings of each row."""

    task: str
    steps: int
    store: CollectConfig | None  # how its store is made; None: it is given
    training: dict[str, Training]
    rows: dict[str, tuple[str, tuple[str, ...]]]  # what is trained, and --set of the controller
    env: str
    env_kwargs: dict[str, Any] = field(default_factory=dict)
    split: dict[int, str] = field(default_factory=dict)  # of the store, from which starts are taken, by start seed


PROBLEMS = {
    "particle": Problem(
        task=f"reach + {OBSTACLES}",
        steps=50,
        store=CollectConfig(env=PARTICLE_ID, episodes=1000, steps=50, seed=1),
        training={
            "sequence": Training("sequence", ("training.steps=8000",)),
            "fc": Training("transition", (*FC, "training.steps=4000")),
        },
        rows={
            "energy": ("sequence", ("every=2",)),
            "feed-forward": ("fc", ("every=2",)),
        },
        env=PARTICLE_ID,
        env_kwargs={"obstacles": True},
    ),
    "reacher": Problem(
        task="reach",
        steps=50,
        store=CollectConfig(env="Reacher-v5", episodes=2000, steps=50, seed=1, policy_kwargs={"scale": 0.2}),
        training={
            "sequence": Training("sequence", ("training.steps=10000",)),
            "fc": Training("transition", (*FC, "training.steps=5000")),
        },
        rows={
            "energy": ("sequence", ("horizon=10", "weight=1000", "every=2")),
            "feed-forward": ("fc", ("horizon=10", "every=2")),
        },
        env="Reacher-v5",
    ),
    "hand": Problem(
        task="joint-pose when=end",
        steps=25,
        store=None,
        training={"sequence": Training("sequence", ("training.steps=18000", "network.transition.gaussianise=false"))},
        rows={
            "energy": ("sequence", ("horizon=10", "weight=3000", "every=3", "deadline=25")),
            "inverse model alone": ("sequence", ()),
        },
        env="hand-cube",
    ),
}


class InverseAlone:
    """The inverse model asked for the goal at once, without a plan."""

    def __init__(self, model: SequenceModel) -> None:
        self.model = model

    def begin(self, env: BatchEnv, state: Tensor, task: TaskCost, generator: torch.Generator) -> None:
        """Take the goal."""
        (term,) = task.parts
        assert isinstance(term, JointPose)
        self.places, self.goal = list(term.find_joints().places), torch.as_tensor(term.goal)

    def __call__(self, state: Tensor, previous: Tensor | None) -> Decision:
        """The action for a state that differs in the joints alone."""
        wanted = state.clone()
        wanted[:, self.places] = self.goal
        return Decision(self.model.act(state, wanted))


def blocked_starts(count: int, seed: int) -> Tensor:
    """Starts and goals of a particle at least 0.4 m apart, an obstacle on the straight way between them, `(B, 4)`."""
    noise, discs = np.random.default_rng(seed), np.array(DISCS)
    found: list[np.ndarray] = []
    while len(found) < count:
        start, goal = noise.uniform(0, 1, (2, 2))
        way = start + np.linspace(0, 1, 50)[:, None] * (goal - start)
        if not inside(way[[0, -1]], discs).any() and np.hypot(*(goal - start)) > 0.4 and inside(way, discs).any():
            found.append(np.concatenate((start, goal)))
    return torch.from_numpy(np.array(found, dtype=np.float32))


def controller_of(row: str, model: Any, settings: tuple[str, ...]) -> tuple[Controller, dict[str, Any]]:
    """A row's controller and all its settings."""
    if row == "inverse model alone":
        return InverseAlone(model), {}
    config = build(SequenceConfig if row == "energy" else GradientConfig, parse_overrides(settings), "settings")
    made = SequencePlanner(model.transition, model.act, config) if row == "energy" else GradientPlanner(model, config)
    return made, dataclasses.asdict(config)


def measured(problem: Problem, row: str, model: Any, settings: tuple[str, ...], start_seed: int, options: Any) -> Any:
    """What a row comes to with one trained model."""
    env = make_batch(problem.env, **problem.env_kwargs)
    task, start = parse_task(problem.task, env.state_fields), None
    if problem.env == PARTICLE_ID:
        start = blocked_starts(options.episodes, start_seed)
    if problem.store is None:
        split = "validation" if start_seed == 500 else "test"
        poses = held_out_poses(
            Store.open(options.hand), task.parts[0], options.episodes, start_seed, ahead=problem.steps, split=split
        )
        task, start = task.given("joint-pose", goal=poses.joints), poses.start
    controller, used = controller_of(row, model.requires_grad_(False), settings)
    config = ExecuteConfig(options.episodes, problem.steps, start_seed)
    with no_denormals():
        found = execute(env, controller, task, config, start=start)
    env.close()
    each = 1000 * found.control_seconds / config.steps / config.episodes
    return {**goal_measures(found, task), "drop_rate": float(found.dropped.double().mean()), "ms_per_step": each}, used


def summary(seeds: dict[str, dict[str, float]]) -> dict[str, Any]:
    """Means over training seeds, the standard error of that mean, and each seed's figures."""
    names = next(iter(seeds.values()))
    values = {name: np.array([found[name] for found in seeds.values()]) for name in names}
    mean = {name: float(value.mean()) for name, value in values.items()}
    se = {f"{name}_over_seeds_se": float(v.std(ddof=1) / len(v) ** 0.5) for name, v in values.items() if len(v) > 1}
    return {**mean, **se, "seeds": seeds}


def run(name: str, problem: Problem, options: Any, kept: dict[str, Any], keep: Callable[[], None]) -> None:
    """Measure all rows of one problem into `kept`, which may hold some of it already, calling `keep` after each."""
    data = str(options.hand if problem.store is None else options.runs / f"{name}.zarr")
    if problem.store is not None:
        collect(data, problem.store, resume=True)
    facts = {"start_seed": options.start_seed, "episodes": options.episodes, "task": problem.task, "steps": problem.steps}
    if {key: kept.get(key) for key in facts} != facts:
        kept.clear()
    made = None if problem.store is None else dataclasses.asdict(problem.store)
    kept.update(facts, env_kwargs=problem.env_kwargs, data=made)
    rows = kept.setdefault("rows", {})
    for row, (need, settings) in problem.rows.items():
        if options.rows and row not in options.rows:
            continue
        training, settings = problem.training[need], (*settings, *options.set)
        seeds = rows[row]["seeds"] if rows.get(row, {}).get("chosen") == list(settings) else {}
        for seed in (seed for seed in options.seeds if str(seed) not in seeds):
            path = options.runs / f"{name}-{need}-{seed}"
            if not (path / "checkpoints" / "best.safetensors").exists():
                result = training.train(training.recipe(data, seed), path)
                print(f"{path}: trained in {result.seconds:.0f} s", flush=True)
            found, used = measured(problem, row, training.load(path), settings, options.start_seed, options)
            seeds[str(seed)] = found
            shown = ", ".join(f"{key} {value:.4g}" for key, value in found.items())
            print(f"{name}, {row}, seed {seed}: {shown}", flush=True)
            command = training.command("STORE", "RUN")
            rows[row] = {**summary(seeds), "chosen": list(settings), "settings": used, "training": command}
            keep()


def main() -> None:
    """Run, print, and write with --out."""
    parser = argparse.ArgumentParser(description="Plans of whole state sequences, carried out")
    parser.add_argument("--problems", nargs="+", choices=PROBLEMS, default=list(PROBLEMS))
    parser.add_argument("--rows", nargs="+", default=[], help="only these rows")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2], help="of training")
    parser.add_argument("--start-seed", type=int, default=9000)
    parser.add_argument("--episodes", type=int, default=100)
    parser.add_argument("--set", action="append", default=[], help="a setting of every row's controller, to choose by")
    parser.add_argument("--hand", default="hand.zarr", help="store of the hand")
    parser.add_argument("--runs", type=Path, default=Path("runs/sequence_plans"))
    parser.add_argument("--out", type=Path, help="write the figures as JSON; what is in it under the same settings is kept")
    options = parser.parse_args()
    use_threads(1)
    options.runs.mkdir(parents=True, exist_ok=True)
    before = json.loads(options.out.read_text()) if options.out and options.out.exists() else {}
    problems: dict[str, Any] = before.get("problems", {})

    def keep() -> None:
        if options.out:
            result = {"command": COMMAND, "machine": machine(), "versions": versions(), "problems": problems}
            options.out.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")

    for name in options.problems:
        run(name, PROBLEMS[name], options, problems.setdefault(name, {}), keep)


if __name__ == "__main__":
    main()
