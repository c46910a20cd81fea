"""Controllers side by side: the same tasks, starts, goals and stop rule for all, carried out in the simulator.

Every training and every execution is a job with a folder of its own, so that a comparison that is killed goes on where it
was. A training is shared by all controllers that need it.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeAlias

import torch
from torch import Tensor

from ebmtraj import config as recipes
from ebmtraj.datasets.store import Store
from ebmtraj.datasets.windows import SPLITS
from ebmtraj.device import no_denormals, use_threads
from ebmtraj.envs.batch import BatchEnv
from ebmtraj.envs.registry import make_batch
from ebmtraj.errors import DivergedError, EbmtrajError
from ebmtraj.parallel import open_pool
from ebmtraj.report.jobs import BUDGETS, OUTCOME, finite, open_folder, same, set_budgets
from ebmtraj.runs import cores, read_json, write_json
from ebmtraj.training.checkpoint import load_tensors, save_tensors
from ebmtraj.trajectories.control import Controller, Decision
from ebmtraj.trajectories.controllers.registry import CONTROLLERS, find_controller, make_controller
from ebmtraj.trajectories.controllers.trainings import TRAININGS, with_steps
from ebmtraj.trajectories.costs import TaskCost, parse_task
from ebmtraj.trajectories.execute import ExecuteConfig, Execution, execute
from ebmtraj.trajectories.measure import REACHED, Goals, error, held_out_goals, measures, reached, rotation_task, turned
from ebmtraj.trajectories.plan_fit import environment_of
from ebmtraj.trajectories.training_run import check_complete, check_episodes

GOALS = "goals.safetensors"
ALONE_STEPS = 12  # of one episode, by which the time of a lone robot's step is taken


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
    _environment(store).close()
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
            same(done.get("asked"), wants, str(job.path))
    return trainings, plans


def run_plan_jobs(
    jobs: Jobs,
    *,
    workers: int = 0,
    on_done: Callable[[TrainJob | PlanJob, dict[str, Any]], None] = lambda job, outcome: None,
) -> None:
    """Train what is not trained, then carry out what is not done, `workers` jobs at once, one thread each.

    A training that diverges is noted in the outcomes of all that need it; any other fault raises `EbmtrajError`, and what
    is done stays done.
    """
    trainings = [job for job in jobs[0] if job.outcome() is None]
    plans = [job for job in jobs[1] if job.outcome() is None]
    most = max(len(trainings), len(plans))
    if most == 0:
        return
    with open_pool(min(workers or cores(), most)) as pool:
        timed = {job.name: (job, job.recipe().training.seconds) for job in trainings}
        budgets = {name: (job, seconds) for name, (job, seconds) in timed.items() if seconds is not None}
        if budgets:
            set_budgets(trainings[0].comparison.runs / BUDGETS, budgets, _step_cost, pool, lambda job: str(job.path))
        for training, outcome in zip(trainings, pool.map(_train, trainings, lambda job: str(job.path)), strict=True):
            on_done(training, outcome)
        for plan, outcome in zip(plans, pool.map(_carry_out, plans, lambda job: str(job.path)), strict=True):
            on_done(plan, outcome)


def _step_cost(job: TrainJob) -> float:
    return TRAININGS[job.name].step_seconds(job.recipe())


def _train(job: TrainJob) -> dict[str, Any]:
    """Train a model, going on where it was killed, and write down what it came to."""
    use_threads(1)
    recipe = job.recipe()
    if recipe.training.seconds is not None:
        recipe = with_steps(recipe, read_json(job.comparison.runs / BUDGETS)[job.name])
    whole = not (job.path / "checkpoints" / "resume.safetensors").exists()
    began = time.thread_time()
    outcome: dict[str, Any] = {"asked": job.asked(), "diverged": None, "facts": {}}
    try:
        result = TRAININGS[job.name].train(recipe, job.path)
    except DivergedError as fault:
        outcome["diverged"] = str(fault)
    else:
        core = round(time.thread_time() - began, 1) if whole else None  # nobody knows what a killed one took
        parameters = sum(each.numel() for each in TRAININGS[job.name].load(job.path).parameters())
        outcome["facts"] = {
            "train_core_seconds": core,
            "train_steps": result.steps,
            "validation": result.validation,
            "parameters": parameters,
        }
    write_json(job.path / OUTCOME, finite(outcome))
    return outcome


def _carry_out(job: PlanJob) -> dict[str, Any]:
    """Carry out a task, measure it, and write down what it came to."""
    use_threads(1)
    outcome: dict[str, Any] = {"asked": job.asked(), "diverged": None, "facts": {}}
    faults = [(name, (each.outcome() or {}).get("diverged")) for name, each in job.trainings().items()]
    said = [f"{name}: {fault}" for name, fault in faults if fault]
    if said:
        outcome["diverged"] = said[0]
    else:
        with no_denormals():
            outcome |= _measured(job)
    write_json(job.path / OUTCOME, finite(outcome))
    return outcome


def _measured(job: PlanJob) -> dict[str, Any]:
    c, task = job.comparison, TASKS[job.task]
    trained = {name: TRAININGS[name].load(each.path) for name, each in job.trainings().items()}
    env = _environment(Store.open(c.data))
    try:
        config = ExecuteConfig(job.episodes, c.steps, c.start_seed)
        cost, axis, names = rotation_task(parse_task(task.text, env.state_fields), config.episodes)
        goals = None
        if task.kind == "reorient":
            goals = _kept_goals(c, config.episodes)
            cost = cost.given("reorient", goal=goals.quaternion)
        holds = None
        if goals is not None and task.stop:
            goal = goals.quaternion

            def holds(state: Tensor) -> Tensor:
                return error(state, goal, env.state_fields) < c.hold

        controller = Timed(make_controller(job.model, trained, task.kind, job.changes))
        began = time.thread_time()
        found = execute(env, controller, cost, config, start=None if goals is None else goals.start, holds=holds)
        seconds = time.thread_time() - began
        facts = measures(found, config, env.state_fields, axis, names)
        facts["ms_per_step"] = 1e3 * controller.seconds / found.actions.shape[1] / config.episodes
        if goals is not None:
            facts |= reached(found, config, goals.quaternion, env.state_fields, c.hold if task.stop else 0.0)
        alone = Timed(controller.controller)
        one = ExecuteConfig(1, min(ALONE_STEPS, c.steps), c.start_seed)
        lone = execute(env, alone, cost.rows(torch.tensor([0])), one)
        facts |= {
            "ms_alone": 1e3 * alone.seconds / lone.actions.shape[1],
            "core_seconds": round(seconds, 1),
        }
        return {"facts": facts, "starts": _each_start(found, config, env, axis, goals), "strata": names}
    finally:
        env.close()


def _each_start(
    found: Execution, config: ExecuteConfig, env: BatchEnv, axis: Tensor | None, goals: Goals | None
) -> dict[str, list[float]]:
    """What each start came to, so that controllers are compared start by start."""
    dropped = found.dropped.cpu()
    values = {"dropped": dropped.double()}
    if axis is not None:
        place = next(f for f in env.state_fields if f.kind == "quaternion").name
        first = sum(f.size for f in env.state_fields[: [f.name for f in env.state_fields].index(place)])
        values["progress"] = turned(found, axis, slice(first, first + 4)) * 100.0 / config.steps
    if goals is not None:
        left = error(found.states[:, -1], goals.quaternion, env.state_fields)
        values["success"] = ((left < REACHED) & ~dropped).double()
    return {name: [round(float(x), 5) for x in value] for name, value in values.items()}


class Timed:
    """A controller, and the seconds of a core that it takes."""

    def __init__(self, controller: Controller) -> None:
        self.controller, self.seconds = controller, 0.0

    def begin(self, env: BatchEnv, state: Tensor, task: TaskCost, generator: torch.Generator) -> None:
        """See `Controller.begin`."""
        began = time.thread_time()
        self.controller.begin(env, state, task, generator)
        self.seconds += time.thread_time() - began

    def __call__(self, state: Tensor, previous: Tensor | None) -> Decision:
        """The controller's decision."""
        began = time.thread_time()
        decision = self.controller(state, previous)
        self.seconds += time.thread_time() - began
        return decision


def _environment(store: Store) -> BatchEnv:
    """The simulator of a store; raises `EbmtrajError` where its states or actions are others now."""
    made = environment_of(store)
    env = make_batch(made["env"], 1, made["state"], **made["env_kwargs"])
    if env.state_fields != store.state_fields or env.action_fields != store.action_fields:
        env.close()
        raise EbmtrajError(f"store {store.path} holds other states or actions than {made['env']} has; collect it again")
    return env


def _draw_goals(c: PlanComparison, store: Store) -> Goals | None:
    if not any(TASKS[task].kind == "reorient" for task in c.tasks):
        return None
    return held_out_goals(store, c.episodes, c.start_seed, split=c.split)


def _kept_goals(c: PlanComparison, episodes: int) -> Goals:
    kept = load_tensors(c.runs / GOALS)[1]
    return Goals(kept["start"][:episodes], kept["quaternion"][:episodes])


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
