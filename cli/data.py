"""`ebmtraj data`: look at a store and check it."""

from __future__ import annotations

from typing import Annotated

import typer
from rich.table import Table

from ebmtraj.cli.common import Json, print_json, say, stderr

app = typer.Typer(help="Look at a store of rollouts, and check it.", no_args_is_help=True)
StorePath = Annotated[str, typer.Argument(help="The store: a folder, or any fsspec URL.")]


@app.command("info")
def info(store: StorePath, json_: Json = False) -> None:
    """Say what a store holds.

    Example: ebmtraj data info hand.zarr
    """
    from ebmtraj.datasets.store import Store

    facts = Store.open(store).info()
    if json_:
        print_json(facts)
        return
    table = Table(title=str(store), title_justify="left", show_header=False)
    for key, value in facts.items():
        if key in ("state_fields", "action_fields"):
            value = ", ".join(f"{f['name']} ({f['size']}{', ' + f['unit'] if f.get('unit') else ''})" for f in value)
        elif isinstance(value, dict):
            value = "\n".join(f"{name}: {inner}" for name, inner in value.items())
        table.add_row(key.replace("_", " "), str(value))
    stderr.print(table)


@app.command("verify")
def verify_command(store: StorePath, json_: Json = False) -> None:
    """Recompute every hash of a store and name the blocks that are damaged; exit code 2 if there are any.

    Example: ebmtraj data verify hand.zarr
    """
    from ebmtraj.datasets.store import verify

    result = verify(store)
    if json_:
        print_json(result)
    elif result["ok"]:
        state = (
            "all blocks are sound" if result.get("complete", True) else "sound so far, but not complete: collect --resume"
        )
        say(f"{store}: {state}; content hash {str(result['content_hash'])[:16]}")
    else:
        for bad in result["bad_blocks"]:
            say(f"{store}: block {bad['block']}, episodes {bad['episodes']}: {bad['array']}: {bad['reason']}")
    if not result["ok"]:
        raise typer.Exit(2)
