"""The work of a comparison of controllers: trainings, and tasks carried out in the simulator, one thread each."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ebmtraj.datasets.store import Store
from ebmtraj.device import no_denormals, use_threads
from ebmtraj.envs.batch import BatchEnv
from ebmtraj.errors import DivergedError
from ebmtraj.fields import slices
from ebmtraj.locks import only_writer
from ebmtraj.parallel import open_pool
from ebmtraj.report.compare_plans import GOALS, TASKS, Jobs, PlanComparison, PlanJob, TrainJob, environment
from ebmtraj.report.jobs import BUDGETS, OUTCOME, finite, set_budgets
from ebmtraj.runs import cores, read_json, write_json
from ebmtraj.training.checkpoint import load_tensors
from ebmtraj.trajectories.control import Controller, Decision
from ebmtraj.trajectories.controllers.registry import make_controller
from ebmtraj.trajectories.controllers.trainings import TRAININGS, with_steps
from ebmtraj.trajectories.costs import TaskCost, parse_task
from ebmtraj.trajectories.execute import ExecuteConfig, Execution, execute
from ebmtraj.trajectories.measure import REACHED, Goals, error, measures, reached, rotation_task, turned

ALONE_STEPS = 12  # of one episode, by which the time of a lone robot's step is taken


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
    with only_writer(jobs[1][0].comparison.runs, "comparison"), open_pool(min(workers or cores(), most)) as pool:
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
    env = environment(Store.open(c.data))
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
        body = next(field.name for field in env.state_fields if field.kind == "quaternion")
        values["progress"] = turned(found, axis, slices(env.state_fields)[body]) * 100.0 / config.steps
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


def _kept_goals(c: PlanComparison, episodes: int) -> Goals:
    kept = load_tensors(c.runs / GOALS)[1]
    return Goals(kept["start"][:episodes], kept["quaternion"][:episodes])
