"""A comparison of controllers as a table and a picture: privileged ones apart, standard errors beside every mean."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeAlias

from rich.console import Group
from rich.table import Table
from rich.text import Text

from ebmtraj.errors import EbmtrajError
from ebmtraj.report.compare_plans_results import OURS
from ebmtraj.report.style import GREY, LOOKS, label_axis, new_figure, save
from ebmtraj.report.tables import number

COLUMNS = (  # task, measure, header, factor, decimals
    ("rotate", "progress", "rotate, rad", 1.0, 2),
    ("rotate", "dropped", "drops, %", 100.0, 1),
    ("reorient", "success", "reorient, %", 100.0, 1),
    ("reorient", "dropped", "drops, %", 100.0, 1),
    ("reorient-free", "success", "without stop rule, %", 100.0, 1),
    ("reorient-free", "dropped", "drops, %", 100.0, 1),
)
_BLUE = LOOKS["energy"].color
_ORANGE = LOOKS["edm"].color


def markdown_plans(results: Mapping[str, Any]) -> str:
    """All tasks of `plan_results` as one markdown table, a line a controller; ends with a newline."""
    header, groups = _cells(results)
    out = ["| " + " | ".join(header) + " |", "| --- |" + " ---: |" * (len(header) - 1)]
    for group in groups:
        for _, about, cells in group:
            shown = []
            for middle, spread, best in cells:
                text = f"**{middle}**" if best else middle
                shown.append(f"{text} <sub>{spread}</sub>" if spread else text)
            out.append("| " + " | ".join([about, *shown]) + " |")
    return "\n".join(out) + "\n"


def rich_plans(results: Mapping[str, Any]) -> Group:
    """The same for the terminal, by the controllers' names, a table a task, which fit into 80 characters."""
    tables = []
    for task in results["summary"]:
        header, groups = _cells(results, task)
        table = Table(title=task, title_justify="left", header_style="bold")
        table.add_column(header[0], no_wrap=True)
        for name in header[1:]:
            table.add_column(name, justify="right", no_wrap=True)
        for group in groups:
            for name, _, cells in group:
                shown = []
                for middle, spread, best in cells:
                    text = Text(middle, style="bold green" if best else "")
                    shown.append(text.append(f" {spread}", style="dim not bold") if spread else text)
                table.add_row(name, *shown)
            table.add_section()
        tables.append(table)
    return Group(*tables)


Line: TypeAlias = tuple[str, str, list[tuple[str, str, bool]]]  # name, what it is, (mean, ± se, whether best) a column


def _cells(results: Mapping[str, Any], only: str | None = None) -> tuple[list[str], list[list[Line]]]:
    """Header and lines of all tasks, or of one; in two groups, privileged controllers last."""
    summary, told = results["summary"], results["protocol"]["rows"]
    tasks = list(summary) if only is None else [only]
    columns = [column for column in COLUMNS if column[0] in tasks]
    header = [f"{results['protocol']['episodes']} starts", *(column[2] for column in columns), "ms a step", "alone"]
    groups: list[list[Line]] = []
    for privileged in (False, True):
        names = [name for name in told if told[name]["privileged"] == privileged]
        best = {
            column: max((said["mean"] for name in names if (said := summary[column[0]][name][column[1]])), default=None)
            for column in columns
        }
        group = []
        for name in names:
            cells = []
            for column in columns:
                task, measure, _, factor, places = column
                said = summary[task][name][measure]
                if said is None:
                    cells.append(("-", "", False))
                    continue
                wins = measure != "dropped" and not privileged and said["mean"] == best[column]
                spread = "" if measure == "dropped" else f"± {factor * said['se']:.{places}f}"
                if measure != "dropped" and said["min"] != said["max"]:
                    spread += f" ({factor * said['min']:.{places}f}–{factor * said['max']:.{places}f})"
                cells.append((f"{factor * said['mean']:.{places}f}", spread, wins))
            for key in ("ms_per_step", "ms_alone"):
                found = [summary[task][name][key] for task in tasks if summary[task][name][key] is not None]
                cells.append((number(max(found)) if found else "-", "", False))
            gone = max(summary[task][name]["diverged"] for task in tasks)
            starts = {summary[task][name]["episodes"] for task in tasks} - {None, results["protocol"]["episodes"]}
            note = f" ({gone} diverged)" if gone else f" ({int(max(starts))} starts)" if starts else ""
            about = told[name]["about"] + (", privileged" if privileged else "") + note
            group.append((name + note, f"**{about}**" if name == OURS else about, cells))
        if group:
            groups.append(group)
    return header, groups


def plans_figure(results: Mapping[str, Any], path: Path) -> Path:
    """Draw turning and reorienting, a dot a controller with two standard errors, best on top, and write it as PNG.

    Ours is blue, privileged ones grey; a hollow dot is without the stop rule. Raises `EbmtrajError` for results of no task.
    """
    summary, told = results["summary"], results["protocol"]["rows"]
    panels = [
        (task, measure, label)
        for task, measure, label in (("rotate", "progress", "rad per 100 steps"), ("reorient", "success", "share reached"))
        if task in summary and any(said[measure] for said in summary[task].values())
    ]
    if not panels:
        raise EbmtrajError(f"nothing to draw in {path}: no controller was measured")
    figure, axes = new_figure(len(panels), height=1.3 + 0.27 * len(told))
    for axis, (task, measure, label) in zip(axes, panels, strict=True):
        shown = {name: said[measure] for name, said in summary[task].items() if said[measure]}
        order = sorted(shown, key=lambda name: shown[name]["mean"])  # best on top
        for place, name in enumerate(order):
            color = _BLUE if name == OURS else GREY if told[name]["privileged"] else _ORANGE
            axis.errorbar(
                shown[name]["mean"], place, xerr=2 * shown[name]["se"], fmt="o", color=color, markersize=6, elinewidth=1.6
            )
            free = (summary.get(f"{task}-free") or {}).get(name)
            if free and free[measure]:
                axis.plot(free[measure]["mean"], place, "o", mfc="white", mec=color, markersize=6, zorder=3)
        axis.set_yticks(range(len(order)), order)
        axis.set_ylim(-0.6, len(order) - 0.4)
        axis.grid(False, axis="y")
        label_axis(axis, task, label, "")
    return save(figure, path)
