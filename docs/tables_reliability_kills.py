"""The tables of docs/reliability.md on kills, disks, signals and the long run."""

from __future__ import annotations

from typing import Any

KINDS = {
    "disks": "disk full or forbidden",
    "signals": "Ctrl-C, SIGTERM",
    "clocks": "clock back",
    "second process": "second process",
}
WATCHED = {
    "memory_kib": "memory",
    "open_files": "open files",
    "threads": "threads",
    "children": "child processes",
    "temporary_files": "temporary files",
    "files": "files of the results",
    "objects": "Python objects",
    "metrics_bytes": "bytes of the training's log",
}


def kills_table(found: dict[str, Any]) -> str:
    """Faults of each command, and how many of them lost something."""
    heads = ["command", "kills", "in a row, at most", *KINDS.values(), "lost or unclear"]
    rows = [[name, *_counts([faults])] for name, faults in found["commands"].items()]
    rows.append(["**all**", *(f"**{cell}**" for cell in _counts(list(found["commands"].values())))])
    return _table(heads, rows) + _note(found)


def _counts(commands: list[dict[str, Any]]) -> list[str]:
    kills = [row for faults in commands for row in faults["kills"]]
    others = [[row for faults in commands for row in _of(faults, kind)] for kind in KINDS]
    bad = sum(bool(row["wrong"]) for faults in commands for rows in faults.values() for row in rows)
    killed = sum(row["kills"] for row in kills), max((row["kills"] for row in kills), default=0)
    return [*map(str, killed), *(str(len(rows) or "") for rows in others), str(bad)]


def _of(faults: dict[str, Any], kind: str) -> list[Any]:
    """Rows of a kind; a small disk that fills up is a full one."""
    found: list[Any] = faults.get(kind, [])
    return found + (faults.get("full disk", []) if kind == "disks" else [])


def long_table(found: dict[str, Any]) -> str:
    """What a leak would make grow, after the warm-up and at the end."""
    rows = []
    for key, name in WATCHED.items():
        row = found[key]
        scale = 1024 if key == "memory_kib" else 1
        before, after = (f"{row[end] / scale:,.0f}{' MiB' if scale > 1 else ''}" for end in ("after_warm_up", "at_the_end"))
        growth = f"{100 * row['growth']:+.1f} %" if row["after_warm_up"] else "0" if not row["growth"] else after
        rows.append([name, before, after, growth])
    said = (
        f"\n{found['rounds']} rounds in {found['minutes']:.0f} minutes; medians over {found['window_rounds']} rounds, after "
    )
    said += f"{found['warm_up_rounds']} rounds of warm-up and at the end. "
    return _table(["", "after warm-up", "at the end", "growth"], rows) + said + _note(found).lstrip()


def _note(found: dict[str, Any]) -> str:
    machine = found["machine"]
    return f"\n`{found['command']}`, {machine['cores']} cores of {machine['processor']}.\n"


def _table(heads: list[str], rows: list[list[str]]) -> str:
    lines = [heads, ["---", *["--:"] * (len(heads) - 1)], *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines) + "\n"


TABLES = {"reliability-kills": ("faults", kills_table), "reliability-long": ("long_run", long_table)}
