"""The command line: one thin file a command; every error a user can make is one line and exit code 2."""

from __future__ import annotations

import contextlib
import errno
import os
import shlex
import signal
import sys
import threading
import warnings
from collections.abc import Iterator
from types import FrameType
from typing import Annotated, Any

import typer

from ebmtraj import __version__
from ebmtraj.cli import (
    attack,
    collect,
    compare,
    compose,
    continual,
    curves,
    data,
    demo,
    diagnose,
    doctor,
    evaluate,
    joint,
    plan,
    policy,
    report,
    restore,
    rollout,
    sample,
    score,
    tilt,
    train,
    train_image,
)
from ebmtraj.errors import EbmtrajError

DISK = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES, errno.EPERM, errno.EIO)

app = typer.Typer(
    name="ebmtraj",
    help=(
        "Energy-based models of motion.\n\nLearn a transition energy from recorded rollouts, generate long futures from it, "
        "and see them as numbers and pictures. Start with: ebmtraj demo\n\nAdd --debug to any command for a traceback."
    ),
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _print_version(asked: bool) -> None:
    if asked:
        print(__version__)
        raise typer.Exit


@app.callback()
def root(
    version: Annotated[
        bool, typer.Option("--version", help="Print the version and exit.", is_eager=True, callback=_print_version)
    ] = False,
) -> None:
    """What stands before a command."""


app.command("demo")(demo.demo)
app.command("doctor")(doctor.doctor_command)
app.command("collect")(collect.collect_command)
app.add_typer(data.app, name="data")
app.add_typer(policy.app, name="policy")
app.add_typer(train.app, name="train")
train.app.command("image")(train_image.image)
train.app.command("generator")(tilt.generator_command)
app.command("rollout")(rollout.rollout_command)
app.command("sample")(sample.sample_command)
app.command("score")(score.score_command)
app.command("tilt")(tilt.tilt_command)
app.command("compose")(compose.compose_command)
app.command("plan")(plan.plan_command)
app.command("evaluate")(evaluate.evaluate_command)
app.command("report")(report.report_command)
app.command("curves")(curves.curves_command)
app.command("diagnose")(diagnose.diagnose_command)
app.command("ood")(joint.ood_command)
app.command("calibrate")(joint.calibrate_command)
app.command("restore")(restore.restore_command)
app.command("cross-class")(restore.cross_class_command)
app.command("distal")(restore.distal_command)
app.command("attack")(attack.attack_command)
app.add_typer(compare.app, name="compare")
app.command("continual")(continual.continual_command)
app.command("continual-robot")(continual.continual_robot_command)


def main() -> None:
    """Run a command; exit 0, or 2 with one line that names the bad thing and the mend (130 after Ctrl-C, 143 by SIGTERM)."""
    with interruptible() as came:
        _main(came)


def _main(came: list[int]) -> None:
    if "--debug" in sys.argv[1:]:  # a developer's switch: the traceback instead of the line
        sys.argv.remove("--debug")
        app(standalone_mode=False)
        return
    try:
        code = app(standalone_mode=False)
        if came or code == 130:  # what typer makes of Ctrl-C
            raise KeyboardInterrupt
    except (KeyboardInterrupt, typer.Abort):
        _fail(*_interrupted(came))
    except Exception as error:
        if came:  # in the middle of something that made another error of it
            _fail(*_interrupted(came))
        if isinstance(error, EbmtrajError):
            _fail(str(error), 2)
        if isinstance(error, OSError) and error.errno in DISK:
            where = f"{error.filename}: " if error.filename else ""
            _fail(f"{where}{error.strerror}; free the disk or mend the rights, then run the command again", 2)
        usage = getattr(error, "format_message", None)  # what typer raises for a wrong option or value
        if usage is not None:
            context = getattr(error, "ctx", None)
            command = context.command_path if context is not None else "ebmtraj"
            _fail(f"{usage()} (see {command} --help)", 2)
        if isinstance(error, MemoryError) or "alloc" in str(error):  # torch says so in a RuntimeError
            _fail("out of memory; use smaller numbers (--samples, --set training.batch=...)", 2)
        _fail(f"this should not happen: {type(error).__name__}: {error} (run again with --debug for the traceback)", 1)
    sys.exit(code if isinstance(code, int) else 0)


@contextlib.contextmanager
def interruptible() -> Iterator[list[int]]:
    """Let Ctrl-C and SIGTERM end the command in order; gives a list of those that came. The second ends it at once."""
    came: list[int] = []
    if threading.current_thread() is not threading.main_thread():
        yield came
        return

    main_thread = threading.get_ident()

    def interrupt(number: int, frame: FrameType | None) -> None:
        came.append(number)
        warnings.simplefilter("ignore")  # what is cut off, such as a coroutine of zarr, is no news
        for each in before:
            signal.signal(each, signal.SIG_DFL)
        raise KeyboardInterrupt

    def unraisable(lost: sys.UnraisableHookArgs) -> None:
        if not (came and lost.exc_type is KeyboardInterrupt):
            hook(lost)
            return
        for each in before:  # it came where Python drops what is raised: once more, a little later
            signal.signal(each, interrupt)
        threading.Timer(0.02, signal.pthread_kill, (main_thread, came.pop())).start()

    hook, sys.unraisablehook = sys.unraisablehook, unraisable
    together = os.environ.get("WORLD_SIZE", "1") != "1"  # torchrun ends processes that wait for others, by SIGTERM
    numbers = (signal.SIGINT,) if together else (signal.SIGINT, signal.SIGTERM)
    before = {number: signal.getsignal(number) for number in numbers}
    for number, handler in before.items():
        if handler is not signal.SIG_IGN:  # as under nohup, and in the background of a script
            signal.signal(number, interrupt)
    try:
        yield came
    finally:
        sys.unraisablehook = hook
        for number, handler in before.items():
            signal.signal(number, signal.SIG_DFL if came or handler is None else handler)


def _interrupted(came: list[int]) -> tuple[str, int]:
    """What to say of an interruption, and the exit code."""
    terminated = signal.SIGTERM in came
    following = going_on(sys.argv[1:])
    said = "ended by SIGTERM" if terminated else "interrupted"
    return said + (f"; to go on: {following}" if following else ""), 143 if terminated else 130


def going_on(words: list[str]) -> str | None:
    """The command line that goes on with an interrupted one, or begins it again; None where there is none."""
    command: Any = typer.main.get_command(app)
    for word in words:
        command = getattr(command, "commands", {}).get(word, command)
    options = {option for parameter in getattr(command, "params", []) for option in parameter.opts}
    if "--resume" in options:
        kept = [word for word in words if word not in ("--overwrite", "--resume")]
        return shlex.join(["ebmtraj", *kept, "--resume"])
    if command.name == "demo":
        return shlex.join(["ebmtraj", *(word for word in words if word != "--overwrite"), "--overwrite"])
    return None


def _fail(message: str, code: int) -> None:
    line = " ".join(message.split())
    print(f"error: {line}", file=sys.stderr)
    sys.exit(code)


if __name__ == "__main__":
    main()
