"""The command line: one thin file a command; every error a user can make is one line and exit code 2."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from ebmtraj import __version__
from ebmtraj.cli import (
    attack,
    collect,
    compare,
    compose,
    continual,
    data,
    demo,
    diagnose,
    evaluate,
    joint,
    plan,
    policy,
    restore,
    rollout,
    sample,
    tilt,
    train,
    train_image,
)
from ebmtraj.errors import EbmtrajError

RESUMABLE = {"collect", "train", "tilt", "policy", "data", "compare", "continual", "continual-robot"}

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
app.command("collect")(collect.collect_command)
app.add_typer(data.app, name="data")
app.add_typer(policy.app, name="policy")
app.add_typer(train.app, name="train")
train.app.command("image")(train_image.image)
train.app.command("generator")(tilt.generator_command)
app.command("rollout")(rollout.rollout_command)
app.command("sample")(sample.sample_command)
app.command("tilt")(tilt.tilt_command)
app.command("compose")(compose.compose_command)
app.command("plan")(plan.plan_command)
app.command("evaluate")(evaluate.evaluate_command)
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
    """Run a command; exit 0, or 2 with one line that names the bad thing and the mend (130 after Ctrl-C)."""
    if "--debug" in sys.argv[1:]:  # a developer's switch: the traceback instead of the line
        sys.argv.remove("--debug")
        app(standalone_mode=False)
        return
    try:
        code = app(standalone_mode=False)
        if code == 130:  # what typer makes of Ctrl-C
            raise KeyboardInterrupt
    except EbmtrajError as error:
        _fail(str(error), 2)
    except (KeyboardInterrupt, typer.Abort):
        resumable = not RESUMABLE.isdisjoint(sys.argv[1:2])
        _fail("interrupted" + ("; run the same command with --resume to go on" if resumable else ""), 130)
    except Exception as error:
        usage = getattr(error, "format_message", None)  # what typer raises for a wrong option or value
        if usage is not None:
            context = getattr(error, "ctx", None)
            command = context.command_path if context is not None else "ebmtraj"
            _fail(f"{usage()} (see {command} --help)", 2)
        if isinstance(error, MemoryError) or "alloc" in str(error):  # torch says so in a RuntimeError
            _fail("out of memory; use smaller numbers (--samples, --set training.batch=...)", 2)
        _fail(f"this should not happen: {type(error).__name__}: {error} (run again with --debug for the traceback)", 1)
    sys.exit(code if isinstance(code, int) else 0)


def _fail(message: str, code: int) -> None:
    line = " ".join(message.split())
    print(f"error: {line}", file=sys.stderr)
    sys.exit(code)


if __name__ == "__main__":
    main()
