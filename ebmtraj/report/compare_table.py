"""A comparison as a table: a line a model, medians over the seeds with least and greatest, the best in bold."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from rich.console import Group
from rich.table import Table
from rich.text import Text

from ebmtraj.report.style import ordered
from ebmtraj.report.tables import HEADERS, number

Goal = Callable[[float], float]  # how far a value is from the best one
_LESS: Goal = lambda value: value  # noqa: E731
_TO_ONE: Goal = lambda value: abs(value - 1.0)  # noqa: E731

AT_ONCE = 5  # metrics side by side in the terminal

COLUMNS: dict[str, tuple[str, Goal | None]] = {  # metric: header, and what is better
    "fd100": ("FD", _LESS),
    "fd_delta": ("FD of changes", _LESS),
    "energy_score": ("energy score", _LESS),
    "c2st_rollout": ("C2ST rollout", _LESS),
    "c2st_structure": ("C2ST, structure seen", _LESS),
    "c2st_one_step": ("C2ST one step", _LESS),
    "sliced_wasserstein": ("sliced W", _LESS),
    "coverage90": ("coverage", lambda value: abs(value - 0.9)),
    "rotation_ratio": ("turning / truth", _TO_ONE),
    "penetration_ratio": ("penetration / truth", _TO_ONE),
    "diversity_ratio": ("diversity / simulator", _TO_ONE),
    "limit_violation": ("limits", _LESS),
    "terminated": ("terminated", None),
    "ms_per_step": ("ms a step", None),
}


MAIN = (
    *("fd100", "fd_delta", "energy_score", "c2st_rollout", "c2st_structure", "c2st_one_step"),
    *("coverage90", "rotation_ratio", "penetration_ratio", "ms_per_step"),
)


def markdown_comparison(results: Mapping[str, Any], task: str, names: Sequence[str] = tuple(COLUMNS)) -> str:
    """One task of `comparison_results` as a markdown table of these metrics of `COLUMNS`; ends with a newline."""
    header, lines = _cells(results, task, names)
    out = ["| " + " | ".join(header) + " |", "| --- |" + " ---: |" * (len(header) - 1)]
    for name, cells in lines:
        shown = []
        for middle, spread, best in cells:
            text = f"**{middle}**" if best else middle
            shown.append(f"{text} <sub>{spread}</sub>" if spread else text)
        out.append("| " + " | ".join([name, *shown]) + " |")
    return "\n".join(out) + "\n"


def rich_comparison(results: Mapping[str, Any], task: str) -> Group:
    """The same for the terminal, as tables of a few columns each, which fit into 80 characters."""
    header, lines = _cells(results, task)
    tables = []
    for first in range(0, len(header) - 1, AT_ONCE):
        table = Table(title=task if first == 0 else None, title_justify="left", header_style="bold")
        table.add_column(header[0].partition(", ")[2], no_wrap=True)
        for name in header[1:][first : first + AT_ONCE]:
            table.add_column(name.replace(" / ", " /\n").replace(" ", "\n", 1), justify="right", no_wrap=True)
        for name, cells in lines:
            shown = []
            for middle, spread, best in cells[first : first + AT_ONCE]:
                text = Text(middle, style="bold green" if best else "")
                shown.append(text.append(f"\n{spread}", style="dim not bold") if spread else text)
            table.add_row(name, *shown)
        tables.append(table)
    return Group(*tables)


def _cells(
    results: Mapping[str, Any], task: str, names: Sequence[str] = tuple(COLUMNS)
) -> tuple[list[str], list[tuple[str, list[tuple[str, str, bool]]]]]:
    """Header, and for each model its name and (median, spread, whether best) of each column that any model has."""
    summary, floor = results["summary"][task], results["floor"].get(task) or {}
    models = ordered(summary)
    columns = [name for name in names if any(summary[model].get(name) for model in models)]
    header = [f"{task}, {results['protocol']['starts']} starts", *(COLUMNS[name][0] for name in columns)]
    best = {}
    for name in columns:
        goal = COLUMNS[name][1]
        rivals = [goal(said["median"]) for model in models if (said := summary[model][name])] if goal else []
        best[name] = min(rivals) if len(rivals) > 1 else None
    lines = []
    for model in models:
        cells = []
        for name in columns:
            said, goal = summary[model][name], COLUMNS[name][1]
            if said is None:
                cells.append(("-", "", False))
                continue
            low, high = number(said["min"]), number(said["max"])
            wins = goal is not None and best[name] is not None and goal(said["median"]) == best[name]
            cells.append((number(said["median"]), "" if low == high else f"{low}–{high}", wins))
        gone = summary[model]["diverged"]
        label = HEADERS.get(model, model) + (f" ({gone} of {summary[model]['seeds']} diverged)" if gone else "")
        lines.append((label, cells))
    lines.append(("floor", [(number(floor.get(name)), "", False) for name in columns]))
    return header, lines
