"""`ebmtraj doctor`: what works on this machine, and what is missing."""

from __future__ import annotations

from dataclasses import asdict

import typer

from ebmtraj.cli.common import Json, print_json, progress, say, stderr


def doctor_command(json_: Json = False) -> None:
    """Try what ebmtraj needs on this machine: device, memory, disk, a tiny collection and training, OpenGL, extras.

    Each is tried, not looked up; what is missing is named with the command that gets it. Exit code 0 where everything works
    that `ebmtraj collect`, `train` and `evaluate` need, 2 otherwise; pictures, a GPU and extras may be missing.

    Example: ebmtraj doctor
    """
    from rich.table import Table
    from rich.text import Text

    from ebmtraj.report.doctor import examine, healthy

    with progress() as bar:
        task = bar.add_task("looking", total=None, note="")
        found = examine(lambda name: bar.update(task, description=f"trying {name}"))
    well = healthy(found)
    if json_:
        print_json({"ok": well, "findings": [asdict(one) for one in found]})
    else:
        table = Table(show_header=False, box=None, pad_edge=False)
        for one in found:
            mark, style = ("ok", "green") if one.ok else ("fails", "bold red") if one.needed else ("-", "yellow")
            said = one.said if one.ok or not one.mend else f"{one.said} -> {one.mend}"
            table.add_row(Text(mark, style), Text(one.name), Text(said))
        stderr.print(table)
        say("all that is needed works" if well else "the default path does not work here: see what fails above")
        if well:
            say("next: ebmtraj demo, or ebmtraj collect hand.zarr --env hand-cube --episodes 200")
    if not well:
        raise typer.Exit(2)
