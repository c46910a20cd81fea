"""The tables of docs/reliability.md on damaged and foreign files, random input and planted divergence."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

HOSTILE = {
    "pickle": "pickles, in every place where a file is read",
    "code": "code that a store, a run or a task names",
    "traversal": "names and paths that climb out of a folder",
    "link": "links out of a store, a run or a data set",
    "bomb": "bombs: few bytes that say that they are many",
    "header": "headers that lie, and JSON or TOML nested 100,000 deep",
}


def corruption_table(found: dict[str, Any]) -> str:
    """What readers made of single faults, by what was damaged."""
    rows = [
        (name, of["damages"], of["readings"], of["refused"], of["same"], of["silent"], of["traceback"])
        for name, of in found["targets"].items()
    ]
    total = tuple(sum(row[i] for row in rows) for i in range(1, 7))
    heads = ("damaged", "single faults", "readings", "refused in a line", "the right result", "a wrong result", "traceback")
    kinds = sorted({kind for of in found["targets"].values() for kind in of["kinds"]})
    noticed = sum(of["noticed"] for of in found["targets"].values())
    named = sum(of["file_named"] for of in found["targets"].values())
    note = (
        f"Kinds of faults: {', '.join(kinds)}. {noticed} of {found['mutations']} faults were noticed by a reader, and of "
        f"{named} of those a message names the file or the array; the others changed nothing that is read (spaces, free "
        "bytes, a log that goes on). "
    )
    return _table(heads, [*rows, ("**all**", *(f"**{n}**" for n in total))]) + "\n" + note + _made(found, "corruption")


def hostile_table(found: dict[str, Any]) -> str:
    """Crafted files by kind."""
    rows = []
    for kind, title in HOSTILE.items():
        of = [row for row in found["rows"].values() if row["kind"] == kind]
        memory, seconds = (max(row[key] for row in of) for key in ("extra_mb", "seconds"))
        rows.append((title, len(of), sum(row["good"] for row in of), f"{memory:.0f} MB", f"{seconds:.1f} s"))
    heads = ("crafted files", "tried", "refused in a line", "memory, at most", "time, at most")
    return (
        _table(heads, rows) + f"\nOf {found['files']} files, code ran from {found['code_ran']}. " + _made(found, "hostile")
    )


def fuzz_table(found: dict[str, Any]) -> str:
    """Inputs by surface and engine."""
    rows = [
        (
            name,
            f"{of['inputs']:,}",
            f"{of['worked']:,}",
            f"{of['refused']:,}",
            of["crashes"],
            of["hangs"],
            of["slowest_seconds"],
        )
        for name, of in found["rows"].items()
    ]
    total = (f"**{found[key]:,}**" for key in ("inputs", "worked", "refused", "crashes", "hangs"))
    rows.append(("**all**", *total, f"**{found['slowest_seconds']}**"))
    heads = ("surface and engine", "inputs", "worked", "refused in a line", "crashes", "over 10 s", "slowest, s")
    return _table(heads, rows) + "\n" + _made(found, "fuzz")


def divergence_table(found: dict[str, Any]) -> str:
    """Plantings one by one."""
    rows = []
    for name, row in found["rows"].items():
        after = "-" if row["detected_after"] is None else max(1, row["detected_after"])
        values = "-" if row["ended"] != "recovered" else f"{row['validation']:.3g} ({row['validation_without']:.3g})"
        rows.append((name, after, row["roll_backs"], row["ended"], values))
    heads = ("planted", "noticed after steps", "roll-backs", "ended", "validation loss (without the fault)")
    note = (
        f"{found['detected_within_50']} of {found['plantings']} detected within 50 steps, {found['recovered']} of the "
        f"{found['once']} that were planted once outlived without help; the others stopped in one line, with the last good "
        "state sound. "
    )
    return _table(heads, rows) + "\n" + note + _made(found, "divergence")


def _made(found: dict[str, Any], name: str) -> str:
    versions, machine = found["versions"], found["machine"]
    return (
        f"Made by `{found['command']}` ({machine['processor']}, torch {versions['torch']}), every number in "
        f"[docs/results/{name}.json](results/{name}.json).\n"
    )


def _table(heads: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    lines = [" | ".join(heads), " | ".join(["---", *["---:"] * (len(heads) - 1)])]
    lines += [" | ".join(map(str, row)) for row in rows]
    return "".join(f"| {line} |\n" for line in lines)


TABLES = {
    "reliability-corruption": ("corruption", corruption_table),
    "reliability-hostile": ("hostile", hostile_table),
    "reliability-fuzz": ("fuzz", fuzz_table),
    "reliability-divergence": ("divergence", divergence_table),
}
