"""Write docs/cli.md, every command and option, from the commands' own help; with --check, only say if it is up to date.

usage: python docs/make_cli.py [--check]
"""

from __future__ import annotations

import argparse
import inspect
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import typer

from ebmtraj.cli.app import app

PAGE = Path(__file__).parent / "cli.md"
HEAD = """# All commands

As `--help` has them. Every command also takes `--debug`, which gives the traceback in place of the line.
"""


def commands(group: Any, path: tuple[str, ...] = ("ebmtraj",)) -> Iterator[tuple[str, Any]]:
    """Each command with its words, in the order of the help."""
    for name, command in group.commands.items():
        words = (*path, name)
        if hasattr(command, "commands"):
            yield from commands(command, words)
        else:
            yield " ".join(words), command


def option_rows(command: Any) -> Iterator[tuple[str, str, str]]:
    """What is written, what it means, and what it is unless given."""
    for parameter in command.params:
        if parameter.name in ("help", "debug") or getattr(parameter, "hidden", False):
            continue
        argument = parameter.param_type_name == "argument"
        switches = ", ".join(f"`{name}`" for name in (*parameter.opts, *parameter.secondary_opts))
        name = f"`{(parameter.metavar or parameter.name).upper().strip('<>')}`" if argument else switches
        said = " ".join(inspect.cleandoc(getattr(parameter, "help", None) or "").split()).replace("|", "\\|")
        default = parameter.default
        if parameter.required:
            shown = "required"
        elif callable(default) or default in (None, False, "", (), []):
            shown = ""
        else:
            shown = f"`{default}`"
        yield name, said, shown


def page() -> str:
    """The whole page."""
    parts = [HEAD]
    for words, command in commands(typer.main.get_command(app)):
        text = inspect.cleandoc(command.help or "").replace("\b", "").replace("\f", "")
        rows = [f"| {name} | {said} | {default} |" for name, said, default in option_rows(command)]
        table = "\n".join(["| | | default |", "| --- | --- | --- |", *rows])
        parts.append(f"## {words}\n\n{text}\n\n{table}\n")
    return "\n".join(parts)


def main() -> int:
    """Write, or check."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true")
    new = page()
    if not parser.parse_args().check:
        PAGE.write_text(new, encoding="utf-8")
    elif not PAGE.exists() or PAGE.read_text(encoding="utf-8") != new:
        print("docs/cli.md does not show what the commands' help says; run `make tables`", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
