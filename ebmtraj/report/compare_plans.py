"""Controllers side by side: the same tasks, starts, goals and stop rule for all, carried out in the simulator.

Every training and every execution is a job with a folder of its own, so that a comparison that is killed goes on where it
was. A training is shared by all controllers that need it.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeAlias

from ebmtraj import config as recipes
from ebmtraj.datasets.store import Store
from ebmtraj.datasets.windows import SPLITS
from ebmtraj.envs.batch import BatchEnv
from ebmtraj.envs.registry import make_batch, refuse_code
from ebmtraj.errors import EbmtrajError
from ebmtraj.report.jobs import OUTCOME, open_folder, same
from ebmtraj.runs import read_json
from ebmtraj.training.checkpoint import save_tensors
from ebmtraj.trajectories.controllers.registry import CONTROLLERS, find_controller
from ebmtraj.trajectories.controllers.trainings import TRAININGS
from ebmtraj.trajectories.costs import parse_task
from ebmtraj.trajectories.measure import Goals, held_out_goals
from ebmtraj.trajectories.stored import check_complete, check_episodes, environment_of

GOALS = "goals.safetensors"


@dataclass(frozen=True)
class Task:
    """What is to be done: a task cost's text, the kind whose settings controllers use, and whether the stop rule holds."""

    text: str
    kind: str
    stop: bool = False


TASKS: dict[str, Task] = {
    "rotate": Task("rotate axis=all", "rotate"),
    "reorient": Task("reorient", "reorient", stop=True),
    "reorient-free": Task("reorient", "reorient"),
}


@dataclass(frozen=True)
class PlanComparison:
    """What is compared, and how."""

    data: str
    models: tuple[str, ...]
    tasks: tuple[str, ...]
    seeds: tuple[int, ...]
    runs: Path  # where the jobs' folders lie
    seconds: float = 240.0  # of a core for each training
    episodes: int = 192
    steps: int = 100
    start_seed: int = 9000  # of starts, goals and noise: settings are chosen on other ones
    split: str = "test"  # whose episodes goals come from
    hold: float = 0.35  # rad from a goal within which the last action is repeated
    changes: Mapping[str, Mapping[str, Any]] = field(
        default_factory=dict, hash=False
    )  # settings of controllers and trainings by name

    def alike(self, content_hash: str | None) -> dict[str, Any]:
        """What all jobs have in common, and what a resumed comparison may not change."""
        names = ("seconds", "episodes", "steps", "start_seed", "split", "hold")
        return {"content_hash": content_hash, "compares": "plans", **{name: getattr(self, name) for name in names}}


@dataclass(frozen=True)
class TrainJob:
    """A model that controllers need, trained from one seed."""

    name: str  # of `TRAININGS`
    seed: int
    comparison: PlanComparison

    @property
    def path(self) -> Path:
        """Its run directory."""
        return self.comparison.runs / "trained" / self.name / f"seed-{self.seed}"

    @property
    def label(self) -> str:
        """What a progress bar calls it."""
        return f"train {self.name} {self.seed}"

    def recipe(self) -> Any:
        """What it is trained with; a budget in seconds is still in seconds."""
        c = self.comparison
        changes = leaves(c.changes.get(self.name, {}))
        own = any(change.startswith(("training.steps=", "training.seconds=")) for change in changes)
        return TRAININGS[self.name].recipe(c.data, self.seed, None if own else c.seconds, changes)

    def asked(self) -> dict[str, Any]:
        """Settings that decide its outcome, in plain values."""
        plain: dict[str, Any] = recipes.to_plain(dataclasses.asdict(self.recipe()))
        return {key: value for key, value in plain.items() if key not in ("data", "content_hash", "stream")}

    def outcome(self) -> dict[str, Any] | None:
        """What it came to, or None where it is not done."""
        return _outcome(self.path)


@dataclass(frozen=True)
class PlanJob:
    """A controller carrying out a task, with models of one training seed."""

    model: str  # of `CONTROLLERS`
    task: str  # of `TASKS`
    seed: int
    comparison: PlanComparison

    @property
    def path(self) -> Path:
        """Its folder."""
        return self.comparison.runs / self.task / self.model / f"seed-{self.seed}"

    @property
    def label(self) -> str:
        """What a progress bar calls it."""
        return f"{self.model} {self.task} {self.seed}"

    @property
    def episodes(self) -> int:
        """How many starts it has."""
        return min(self.comparison.episodes, CONTROLLERS[self.model].episodes or self.comparison.episodes)

    @property
    def changes(self) -> Mapping[str, Any]:
        """Settings of the controller that this comparison changes."""
        return self.comparison.changes.get(self.model, {})

    def trainings(self) -> dict[str, TrainJob]:
        """What must be trained first, by name."""
        return {name: TrainJob(name, self.seed, self.comparison) for name in CONTROLLERS[self.model].needs}

    def asked(self) -> dict[str, Any]:
        """Settings that decide its outcome, in plain values."""
        config = CONTROLLERS[self.model].config(TASKS[self.task].kind, self.changes)
        trained = {name: job.asked() for name, job in self.trainings().items()}
        plain: dict[str, Any] = recipes.to_plain({"settings": dataclasses.asdict(config), "trained": trained})
        return plain

    def outcome(self) -> dict[str, Any] | None:
        """What it came to, or None where it is not done."""
        return _outcome(self.path)


Jobs: TypeAlias = tuple[list[TrainJob], list[PlanJob]]


def choose_models(models: str, env: str) -> tuple[str, ...]:
    """The controllers named in `models`, or all that act on this environment; raises `EbmtrajError` for an unknown name."""
    names = [name.strip() for name in models.split(",") if name.strip()]
    if names == ["all"]:
        return tuple(name for name, entry in CONTROLLERS.items() if entry.env in (None, env))
    for name in names:
        entry = find_controller(name)
        if entry.env not in (None, env):
            raise EbmtrajError(f"--models: {name} acts on {entry.env}, and the store was collected on {env}; leave it out")
    if not names:
        raise EbmtrajError("--models names no model; give e.g. --models ours,base,hold")
    return tuple(dict.fromkeys(names))


def choose_plan_tasks(tasks: str) -> tuple[str, ...]:
    """The tasks named; reorient is also measured without the stop rule. Raises `EbmtrajError` for an unknown one."""
    chosen: list[str] = []
    for name in (task.strip() for task in tasks.split(",") if task.strip()):
        if name not in TASKS:
            raise EbmtrajError(f"--tasks: unknown task {name!r}; use rotate, reorient or both with a comma")
        chosen += [name, "reorient-free"] if name == "reorient" else [name]
    if not chosen:
        raise EbmtrajError("--tasks names no task; use rotate,reorient")
    return tuple(dict.fromkeys(chosen))


def jobs_of(comparison: PlanComparison) -> Jobs:
    """All jobs: trainings a seed at a time, then executions, the slow ones first; without training one seed is enough."""
    c = comparison
    plans = [
        PlanJob(model, task, seed, c)
        for seed in c.seeds
        for model in sorted(c.models, key=lambda model: CONTROLLERS[model].episodes is None)
        for task in c.tasks
        if CONTROLLERS[model].needs or seed == c.seeds[0]
    ]
    return list(dict.fromkeys(job for plan in plans for job in plan.trainings().values())), plans


def prepare_plans(comparison: PlanComparison, store: Store, *, resume: bool = False, overwrite: bool = False) -> Jobs:
    """Check all that can be checked before any work, make the folder of runs, and list the jobs.

    Raises `EbmtrajError` where the store does not fit the tasks, has too few goals or is not what the environment gives now,
    where a setting is wrong, the folder holds something else, or a resumed comparison was begun under other settings.
    """
    c = comparison
    check_complete(store)
    if c.split not in SPLITS[1:]:
        raise EbmtrajError(f"--split {c.split}: models are trained on train; use test, or validation to choose settings")
    if any(TASKS[task].kind == "rotate" for task in c.tasks) and c.episodes % 6:
        raise EbmtrajError(f"--episodes {c.episodes}: rotate shares starts out among six axes; give a multiple of 6")
    for name in c.changes:
        if name not in TRAININGS:
            find_controller(name)
    for task in c.tasks:
        parse_task(TASKS[task].text, store.state_fields)
    environment(store).close()
    trainings, plans = jobs_of(c)
    for train in trainings:
        check_episodes(train.recipe().training, store)
    everything: list[TrainJob | PlanJob] = [*trainings, *plans]
    asked = [(job, job.asked()) for job in everything]  # says which setting of which row is wrong
    goals = _draw_goals(c, store)
    open_folder(c.runs, c.alike(store.content_hash), resume=resume, overwrite=overwrite)
    if goals is not None:
        save_tensors(c.runs / GOALS, {"start": goals.start, "quaternion": goals.quaternion}, {})
    for job, wants in asked:
        done = job.outcome()
        if done is not None:
            usual = dataclasses.replace(job, comparison=dataclasses.replace(c, changes={})).asked()
            same(_completed(done.get("asked"), wants, usual), wants, str(job.path))
    return trainings, plans


def environment(store: Store) -> BatchEnv:
    """The simulator of a store; raises `EbmtrajError` where its states or actions are others now."""
    made = environment_of(store)
    refuse_code(made["env"], made["env_kwargs"], "the compared run")
    env = make_batch(made["env"], 1, made["state"], **made["env_kwargs"])
    if env.state_fields != store.state_fields or env.action_fields != store.action_fields:
        env.close()
        raise EbmtrajError(f"store {store.path} holds other states or actions than {made['env']} has; collect it again")
    return env


def _draw_goals(c: PlanComparison, store: Store) -> Goals | None:
    if not any(TASKS[task].kind == "reorient" for task in c.tasks):
        return None
    return held_out_goals(store, c.episodes, c.start_seed, split=c.split)


def _completed(had: Any, wants: Mapping[str, Any], usual: Mapping[str, Any]) -> Any:
    """What a finished job was asked for, with settings that an older version did not have yet at their usual values."""
    if not isinstance(had, Mapping):
        return had
    whole = dict(had)
    for key, value in wants.items():
        if key not in had and key in usual:
            whole[key] = usual[key]
        elif isinstance(value, Mapping) and isinstance(usual.get(key), Mapping):
            whole[key] = _completed(had[key], value, usual[key]) if key in had else value
    return whole


def _outcome(path: Path) -> dict[str, Any] | None:
    file = path / OUTCOME
    found: dict[str, Any] | None = read_json(file) if file.exists() else None
    return found


def leaves(tree: Mapping[str, Any], path: str = "") -> tuple[str, ...]:
    """Nested settings as `--set` has them: ("network.width=16", ...)."""
    found: list[str] = []
    for key, value in tree.items():
        name = f"{path}.{key}" if path else key
        found += leaves(value, name) if isinstance(value, Mapping) else [f"{name}={_toml(value)}"]
    return tuple(found)


def _toml(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, Sequence) and not isinstance(value, str):
        return "[" + ", ".join(map(_toml, value)) + "]"
    return f'"{value}"' if isinstance(value, str) else repr(value)
