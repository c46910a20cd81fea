"""Continual learners side by side: what is compared, one job a learner and seed, each in a folder of its own."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from threadpoolctl import threadpool_limits

from ebmtraj import config as recipes
from ebmtraj.continual.grids import GRIDS, choices
from ebmtraj.continual.measures import average_accuracy, energy_offsets, forgetting, forward_transfer
from ebmtraj.continual.registry import LEARNERS, entry_of, settings_of
from ebmtraj.continual.run import Course, take_course
from ebmtraj.continual.tasks import SCENARIOS, Scenario, Stream, make_stream
from ebmtraj.datasets.images import ImageStore, open_images
from ebmtraj.device import no_denormals, use_threads
from ebmtraj.errors import DivergedError, EbmtrajError
from ebmtraj.evaluation.calibration import calibration_error, fit_temperature
from ebmtraj.locks import only_writer
from ebmtraj.parallel import open_pool
from ebmtraj.report.jobs import OUTCOME, finite, open_folder, same
from ebmtraj.runs import cores, read_json, write_json

Changes = Mapping[str, Mapping[str, Any]]  # settings by learner, or by learner and scenario


@dataclass(frozen=True)
class Trial:
    """What is compared, and how."""

    data: str
    plan: tuple[tuple[int, ...], ...]
    learners: tuple[str, ...]
    scenarios: tuple[Scenario, ...]
    seeds: tuple[int, ...]
    runs: Path  # where the jobs' folders lie
    split: str = "test"
    tune: bool = False  # try every setting of a learner's grid
    kept: Changes = field(default_factory=dict, hash=False)  # {learner: {scenario: settings}} that an earlier search kept
    changes: Changes = field(default_factory=dict, hash=False)  # {learner or "all": settings}

    def alike(self, content_hash: str | None) -> dict[str, Any]:
        """What all jobs have in common, and what a resumed one may not change."""
        plan = [list(task) for task in self.plan]
        return {"compares": "continual", "content_hash": content_hash, "plan": plan, "split": self.split, "tune": self.tune}


@dataclass(frozen=True)
class Job:
    """One learner and seed, with the settings of each scenario."""

    name: str
    seed: int
    trial: Trial
    scenarios: tuple[Scenario, ...]
    settings: Mapping[str, Any] = field(hash=False)  # all of them
    tag: str = ""  # of a search: which point of the grid

    @property
    def path(self) -> Path:
        """Its folder."""
        return self.trial.runs / "-".join((self.name, *self.scenarios)) / self.tag / f"seed-{self.seed}"

    @property
    def label(self) -> str:
        """What a progress bar calls it."""
        return f"{self.name} {self.seed}"

    def asked(self) -> dict[str, Any]:
        """What decides its outcome, in plain values."""
        plain: dict[str, Any] = recipes.to_plain(dict(self.settings))
        return {"settings": plain, "scenarios": list(self.scenarios)}

    def outcome(self) -> dict[str, Any] | None:
        """What it came to, or None where it is not done."""
        path = self.path / OUTCOME
        found: dict[str, Any] | None = read_json(path) if path.exists() else None
        return found


def choose_learners(names: str) -> tuple[str, ...]:
    """The learners named, or all; raises `EbmtrajError` for an unknown one."""
    given = tuple(dict.fromkeys(name.strip() for name in names.split(",") if name.strip()))
    if not given:
        raise EbmtrajError(f"--learners names none; use all or of {', '.join(LEARNERS)}")
    if given == ("all",):
        return tuple(LEARNERS)
    for name in given:
        entry_of(name)
    return given


def choose_scenarios(names: str) -> tuple[Scenario, ...]:
    """The scenarios named, or all three; raises `EbmtrajError` for an unknown one."""
    given = tuple(dict.fromkeys(name.strip() for name in names.split(",") if name.strip()))
    if given == ("all",):
        return SCENARIOS
    for name in given:
        if name not in SCENARIOS:
            raise EbmtrajError(f"--scenario: unknown scenario {name!r}; use all or of {', '.join(SCENARIOS)}")
    if not given:
        raise EbmtrajError(f"--scenario names none; use all or of {', '.join(SCENARIOS)}")
    return tuple(each for each in SCENARIOS if each in given)


def read_kept(path: Path) -> Changes:
    """The settings that a search kept; raises `EbmtrajError` where the file is not one of a search."""
    found = read_json(path)
    kept = found.get("kept") if isinstance(found, dict) else None
    if not isinstance(kept, dict) or not all(isinstance(each, dict) for each in kept.values()):
        raise EbmtrajError(f"--settings {path}: holds no kept settings; make them: ebmtraj continual --tune --out {path}")
    for name in kept:
        entry_of(name)
    return kept


def jobs_of(trial: Trial) -> list[Job]:
    """All jobs, a seed at a time; raises `EbmtrajError` for settings that a learner does not know."""
    for name, values in trial.changes.items():
        if name != "all":
            settings_of(name, values)
    jobs = []
    for seed in trial.seeds:
        for name in trial.learners:
            learner = entry_of(name).learner
            if not learner.neural and seed != trial.seeds[0]:
                continue  # the same for any seed
            groups = [trial.scenarios] if learner.one_for_all else [(each,) for each in trial.scenarios]
            if trial.tune and learner.one_for_all:
                groups = [trial.scenarios[:1]]
            for group in groups:
                kept = trial.kept.get(name, {})
                own = {**kept.get(group[0], kept.get("class", {})), **_known(name, trial.changes.get("all", {}))}
                own |= trial.changes.get(name, {})
                points: Sequence[Mapping[str, Any]] = [{}]
                if trial.tune:
                    # heads make a difference in the class-incremental scenario alone
                    grid = {k: v for k, v in GRIDS[name].items() if k != "heads" or group[0] == "class"}
                    points = choices({k: v for k, v in grid.items() if k not in own})
                for number, point in enumerate(points):
                    settings = recipes.to_plain(dataclasses.asdict(settings_of(name, {**own, **point})))
                    jobs.append(Job(name, seed, trial, group, settings, f"point-{number}" if trial.tune else ""))
    return jobs


def _known(name: str, changes: Mapping[str, Any]) -> dict[str, Any]:
    """Of settings that are meant for all learners, those that this one has."""
    has = vars(settings_of(name))
    return {key: value for key, value in changes.items() if key in has}


def prepare(trial: Trial, store: ImageStore, *, resume: bool = False, overwrite: bool = False) -> list[Job]:
    """Check all that can be checked before any work, make the folder of runs, and list the jobs.

    Raises `EbmtrajError` where the store and the plan do not fit, settings are wrong, the folder holds something else, or a
    resumed trial was begun under other settings.
    """
    if trial.split not in ("validation", "test"):
        raise EbmtrajError(
            f"--split {trial.split}: learners are trained on train; use test, or validation to choose settings"
        )
    jobs = jobs_of(trial)
    make_stream(store, trial.plan, trial.split)
    open_folder(trial.runs, trial.alike(store.content_hash), resume=resume, overwrite=overwrite)
    for job in jobs:
        done = job.outcome()
        if done is not None:
            same(done.get("asked"), job.asked(), str(job.path))
    return jobs


def run_jobs(
    jobs: Sequence[Job], *, workers: int = 0, on_done: Callable[[Job, dict[str, Any]], None] = lambda job, outcome: None
) -> None:
    """Do what is not done, `workers` jobs at once, one thread each; what is done stays done."""
    waiting = [job for job in jobs if job.outcome() is None]
    if waiting:
        with only_writer(jobs[0].trial.runs, "trial"), open_pool(min(workers or cores(), len(waiting))) as pool:
            for job, outcome in zip(waiting, pool.map(work, waiting, lambda job: str(job.path)), strict=True):
                on_done(job, outcome)


def work(job: Job) -> dict[str, Any]:
    """Take one learner through the stream and write down what became of it; a learner that diverges says so."""
    use_threads(1)
    outcome: dict[str, Any] = {"asked": job.asked(), "diverged": None, "courses": {}}
    with threadpool_limits(1), no_denormals():
        stream = stream_of(job.trial)
        try:
            for course in take_course(stream, job.name, job.scenarios, job.seed, job.settings):
                outcome["courses"][course.scenario] = facts(course, stream)
        except DivergedError as error:
            outcome["diverged"] = str(error)
    outcome = finite(outcome)
    write_json(job.path / OUTCOME, outcome)
    return outcome


_STREAMS: dict[tuple[Any, ...], Stream] = {}  # of this process: jobs of one trial share it


def stream_of(trial: Trial) -> Stream:
    """The tasks of a trial; read once in a process."""
    key = (trial.data, trial.plan, trial.split)
    if key not in _STREAMS:
        _STREAMS.clear()
        _STREAMS[key] = make_stream(open_images(trial.data), trial.plan, trial.split)
    return _STREAMS[key]


def facts(course: Course, stream: Stream) -> dict[str, Any]:
    """Measures of one course in plain values."""
    said: dict[str, Any] = {
        "accuracy": average_accuracy(course.matrix, course.images),
        "forgetting": forgetting(course.matrix),
        "forward_transfer": forward_transfer(course.matrix, course.chance),
        "matrix": [[round(float(value), 6) for value in row] for row in course.matrix],
        "seconds": round(course.seconds, 3),
        "test_seconds": round(course.test_seconds, 3),
        "memory": course.memory,
    }
    if course.spare is not None:
        temperature = fit_temperature(*course.spare)
        said |= {"temperature": temperature, "ece": calibration_error(course.scores / temperature, course.right)}
    if course.energies is not None and course.scenario == "class":
        said["energies"] = energy_offsets(course.energies.numpy(), course.y.numpy())
    return said
