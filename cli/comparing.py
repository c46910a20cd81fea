"""What the commands that compare share: their options, and the steps from the jobs to the JSON file."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Protocol, TypeVar

import typer

from ebmtraj.cli.common import Json, Overwrite, Resume, print_json, progress, say, stderr
from ebmtraj.cli.dry import DryRun, refuse_resume, tell_estimate
from ebmtraj.cli.watching import WatchedJob, watched

if TYPE_CHECKING:
    from ebmtraj.report.estimate import Estimate, Piece

Models = Annotated[str, typer.Option(help="all, or names of rows with commas between.")]
Seeds = Annotated[int, typer.Option(help="Trainings of each row, from --seed on.", min=1)]
First = Annotated[int, typer.Option(help="The first seed.", min=0, max=2**31)]
Split = Annotated[str, typer.Option(help="test, or validation to choose settings.")]
Out = Annotated[Path, typer.Option(help="The JSON file to write.")]
Pictures = Annotated[Path | None, typer.Option(help="Folder for pictures.")]
DoneOnly = Annotated[bool, typer.Option("--done-only", help="Train nothing: report what a comparison has done so far.")]


class ComparedJob(WatchedJob, Protocol):
    """A training, sampler or execution of a comparison, in a folder of its own."""

    def outcome(self) -> dict[str, Any] | None:
        """What it came to, or None where it is not done."""


Job = TypeVar("Job", bound=ComparedJob)
OnDone = Callable[[Any, dict[str, Any]], None]


@dataclass(frozen=True)
class Course:
    """How a comparison is carried out and gone on with: options of every command that compares."""

    runs: Annotated[Path | None, typer.Option(help="Folder of all runs. [default: named as --out, without .json]")] = None
    workers: Annotated[int | None, typer.Option(help="Jobs at once, one core each. [default: cores]", min=1)] = None
    resume: Resume = False
    overwrite: Overwrite = False
    dry_run: DryRun = False
    json_: Json = False


@dataclass
class Comparing:
    """One comparison on the command line: its file, how it is carried out, and since when.

    Raises `EbmtrajError` where options contradict each other, or the file is there already.
    """

    out: Path
    course: Course
    done_only: bool = False
    began: float = field(default_factory=time.perf_counter)

    def __post_init__(self) -> None:
        from ebmtraj.errors import EbmtrajError

        resume, overwrite = self.course.resume, self.course.overwrite
        if resume and overwrite:
            raise EbmtrajError("choose one of --resume and --overwrite: the first goes on, the second replaces all runs")
        if self.done_only and overwrite:
            raise EbmtrajError(
                "choose one of --done-only and --overwrite: the first reports all runs, the second replaces them"
            )
        if self.course.dry_run:
            refuse_resume(self.opening["resume"])
        if self.out.suffix != ".json":
            raise EbmtrajError(f"--out {self.out}: give a path that ends in .json")
        if self.out.exists() and not (self.opening["resume"] or overwrite):
            raise EbmtrajError(
                f"{self.out} exists; give another --out, --resume to go on, or --overwrite to replace it and its runs"
            )

    @property
    def folder(self) -> Path:
        """Of all runs."""
        return self.course.runs or self.out.with_suffix("")

    @property
    def opening(self) -> dict[str, bool]:
        """How that folder is opened."""
        return {"resume": self.course.resume or self.done_only, "overwrite": self.course.overwrite}

    @property
    def seconds(self) -> float:
        """Since the jobs began."""
        return round(time.perf_counter() - self.began, 1)

    def estimate(self, timed: Callable[[int, Callable[[str], None]], Estimate]) -> None:
        """Tell what it would take, as `timed(workers, on_piece)` finds, and end the command."""
        with progress() as bar:
            task = bar.add_task("timing", total=None, note="")
            found = timed(self.course.workers or 0, lambda name: bar.update(task, note=name))
        tell_estimate(found, self.course.json_)

    def estimate_trainings(
        self, comparison: Any, pieces: Callable[[Any], list[Piece]], beside: str = "measuring the trained models"
    ) -> None:
        """Tell what the trainings take that `pieces` lists, and what comes `beside` them; the command ends here."""
        from ebmtraj.report.estimate import estimate_trainings, nowhere

        with nowhere(comparison) as tried:
            each = pieces(tried)
            self.estimate(
                lambda workers, on_piece: replace(estimate_trainings(str(self.out), each, workers, on_piece), beside=beside)
            )

    def carry_out(
        self,
        jobs: Sequence[Job],
        what: str,
        run: Callable[[int, OnDone], None],
        line: Callable[[Any, dict[str, Any]], str],
        done: Callable[[Any], bool] = lambda job: job.outcome() is not None,
    ) -> list[Job]:
        """Do the `jobs` that are not done, by `run(workers, on_done)`, with a `line` for each, and give all back.

        With `done_only`, those that are done. `what` says to a person how many of what they are.
        """
        from ebmtraj.errors import EbmtrajError

        finished = [job for job in jobs if done(job)]
        say(what + (f", {len(finished)} of them done" if finished else ""))
        self.began = time.perf_counter()
        if self.done_only:
            if not finished:
                raise EbmtrajError(f"{self.folder} holds nothing that is done; run the comparison without --done-only")
            return finished
        with watched(jobs) as count:
            run(self.course.workers or 0, lambda job, outcome: say(f"{count()} {line(job, outcome)}"))
        return list(jobs)

    def tell(
        self, results: Mapping[str, Any], beside: Mapping[str, Any], tables: Callable[[], Iterable[Any]], note: str
    ) -> None:
        """Print the `results` as the one object, with what is `beside` them, or as tables and a `note` for a person."""
        said = {"out": str(self.out), "runs": str(self.folder), "seconds": self.seconds, **beside}
        if self.course.json_:
            print_json({**said, **results})
            return
        for table in tables():
            stderr.print(table)
        for path in beside.get("pictures", []):
            say(f"wrote {path}")
        if note:
            say(note)
        say(f"wrote {self.out} ({self.seconds:.0f} s)")


def changes_by_row(pairs: list[str] | None, whose: str) -> dict[str, Any]:
    """What `--set ROW.key=value` asks for, by row.

    Raises `EbmtrajError` where one names no row; `whose` says what it should look like, with `{}` in the key's place.
    """
    from ebmtraj.config import parse_overrides
    from ebmtraj.errors import EbmtrajError

    changes = parse_overrides(pairs or [])
    for name, values in changes.items():
        if not isinstance(values, dict):
            raise EbmtrajError(f"--set {name}=...: say whose setting it is, such as {whose.format(name)}=...")
    return changes
