"""Tables and heat maps of continual learners."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from rich.table import Table

from ebmtraj.runs import write_atomic

NAMES = {"class": "class-incremental", "task": "task-incremental", "domain": "domain-incremental"}
WIDE = 3  # columns of a table that fits into 80 characters
HEADER = ("accuracy, %", "forgetting, %", "forward, %", "ECE", "offset of energies", "kept, numbers", "core s")


def lines_of(results: Mapping[str, Any], scenario: str) -> list[list[str]]:
    """Cells of one scenario's table, the best accuracy of those that see no image again in bold."""
    rows = [row for row in results["rows"] if row["scenario"] == scenario]
    fair = [row["accuracy_mean"] for row in rows if not row["replay"] and row["accuracy_mean"] is not None]
    best = max(fair, default=None)
    lines = []
    for row in rows:
        title = row["title"] + (" (sees images again)" if row["replay"] else "")
        if row["accuracy_mean"] is None:
            lines.append([title, f"diverged on all {row['diverged']} seeds", *["-"] * (len(HEADER) - 1)])
            continue
        mean = f"{row['accuracy_mean']:.1f}"
        mean = f"**{mean}**" if row["accuracy_mean"] == best and not row["replay"] else mean
        mean += f" ± {row['accuracy_std']:.1f}" if row["seeds"] > 1 else ""
        mean += f" ({row['diverged']} diverged)" if row["diverged"] else ""
        cells = [
            mean,
            f"{row['forgetting']:.1f}",
            _or_dash(row["forward_transfer"], ".1f"),
            _or_dash(row["ece"], ".3f"),
            _or_dash(row["energy_offset"], ".2f"),
            f"{row['memory']:,}",
            f"{row['seconds']:.1f}",
        ]
        lines.append([title, *cells])
    return lines


def _or_dash(value: float | None, form: str) -> str:
    return "-" if value is None else format(value, form)


def _filled(lines: Sequence[Sequence[str]]) -> list[int]:
    """Columns in which some row has something to say."""
    return [k for k in range(len(HEADER)) if any(line[k + 1] != "-" for line in lines)]


def markdown_continual(results: Mapping[str, Any], scenario: str) -> str:
    """One scenario's table as markdown; ends with a newline."""
    lines = lines_of(results, scenario)
    columns = _filled(lines)
    seeds = len(results["protocol"]["seeds"])
    header = [f"{NAMES[scenario]}, {seeds} seed{'s' * (seeds > 1)}", *(HEADER[k] for k in columns)]
    out = ["| " + " | ".join(header) + " |", "| --- |" + " ---: |" * (len(header) - 1)]
    return "\n".join(out + ["| " + " | ".join([line[0], *(line[k + 1] for k in columns)]) + " |" for line in lines]) + "\n"


def markdown_grid(search: Mapping[str, Any], scenario: str = "class") -> str:
    """What was tried for each learner and what was kept, as markdown; ends with a newline."""
    out = ["| learner | tried | kept | validation accuracy, % |", "| --- | --- | --- | ---: |"]
    for name, kept in search["kept"].items():
        if scenario not in kept or not kept[scenario]:
            continue
        tried = "; ".join(f"{key} {', '.join(map(str, values))}" for key, values in search["grids"][name].items())
        points = [p for p in search["points"] if p["learner"] == name and p["scenario"] == scenario]
        values = [p["accuracy_mean"] for p in points if p["accuracy_mean"] is not None]
        chosen = ", ".join(f"{key} {value}" for key, value in kept[scenario].items())
        out.append(f"| {name} | {tried} | {chosen} | {max(values):.1f} (least {min(values):.1f}) |")
    return "\n".join(out) + "\n"


def rich_continual(results: Mapping[str, Any]) -> list[Table]:
    """The same for the terminal: a table a scenario, or what a search kept."""
    if "kept" in results:
        table = Table(title="kept", title_justify="left", header_style="bold")
        for name in ("learner", "scenario", "settings", "validation, %"):
            table.add_column(name)
        for name, found in results["kept"].items():
            for scenario, settings in found.items():
                point = max(
                    (
                        p
                        for p in results["points"]
                        if (p["learner"], p["scenario"], p["settings"]) == (name, scenario, settings)
                    ),
                    key=lambda p: p["accuracy_mean"],
                )
                said = ", ".join(f"{key} {value}" for key, value in settings.items())
                table.add_row(name, scenario, said, f"{point['accuracy_mean']:.1f}")
        return [table]
    tables = []
    for scenario, says in results["protocol"]["scenarios"].items():
        lines = lines_of(results, scenario)
        filled = _filled(lines)
        for first in range(0, len(filled), WIDE):
            table = Table(title=says if first == 0 else None, title_justify="left", header_style="bold")
            table.add_column("", min_width=28)
            for k in filled[first : first + WIDE]:
                table.add_column(HEADER[k].replace(", ", ",\n"), justify="right", no_wrap=True)
            for line in lines:
                table.add_row(line[0], *(line[k + 1].replace("**", "") for k in filled[first : first + WIDE]))
            tables.append(table)
    return tables


ROBOT_HEADER = ("energy score", "forgetting", "behaviour found", "kept, numbers", "core s")


def robot_lines(results: Mapping[str, Any]) -> list[list[str]]:
    """Cells of the table of behaviours, the best score of those that see no data again and are told nothing in bold."""
    fair = [row["energy_score_mean"] for row in results["rows"] if not row["replay"] and row["scenario"] == "domain"]
    lines = []
    for row in results["rows"]:
        score = f"{row['energy_score_mean']:.2f}"
        is_best = row["energy_score_mean"] == min(fair, default=None) and not row["replay"] and row["scenario"] == "domain"
        score = f"**{score}**" if is_best else score
        score += f" ± {row['energy_score_std']:.2f}" if row["seeds"] > 1 else ""
        lost = _or_dash(row["forgetting"], ".3f")
        lost += f" ± {row['forgetting_std']:.3f}" if row["forgetting_std"] is not None else ""
        found = "-" if row["identified"] is None or row["scenario"] == "task" else f"{row['identified']:.1%}"
        title = row["title"] + (" (sees data again)" if row["replay"] else "")
        lines.append([title, score, lost, found, f"{row['memory']:,}", f"{row['seconds']:.0f}"])
    return lines


def markdown_robot(results: Mapping[str, Any]) -> str:
    """The table of behaviours as markdown; ends with a newline."""
    protocol = results["protocol"]
    seeds, behaviours = len(protocol["seeds"]), len(protocol["behaviours"])
    header = [f"{behaviours} behaviours, {seeds} seed{'s' * (seeds > 1)}", *ROBOT_HEADER]
    out = ["| " + " | ".join(header) + " |", "| --- |" + " ---: |" * (len(header) - 1)]
    return "\n".join(out + ["| " + " | ".join(line) + " |" for line in robot_lines(results)]) + "\n"


def rich_robot(results: Mapping[str, Any]) -> Table:
    """The same for the terminal."""
    table = Table(title="energy score of futures over all behaviours, less is better", title_justify="left")
    for name in ("", *ROBOT_HEADER):
        table.add_column(name, justify="right" if name else "left", no_wrap=bool(name))
    for line in robot_lines(results):
        table.add_row(*(cell.replace("**", "") for cell in line))
    return table


def heat_maps(results: Mapping[str, Any], folder: Path) -> list[Path]:
    """Accuracy on each task after each task, a square a learner, one PNG a scenario."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    paths = []
    for scenario in results["protocol"]["scenarios"]:
        rows = [row for row in results["rows"] if row["scenario"] == scenario and row["accuracy_mean"] is not None]
        if not rows:
            continue
        across = min(6, len(rows))
        down = -(-len(rows) // across)
        figure = Figure(figsize=(1.95 * across, 2.25 * down), layout="constrained")
        FigureCanvasAgg(figure)
        axes = figure.subplots(down, across, squeeze=False)
        for axis in axes.flat:
            axis.set_visible(False)
        for axis, row in zip(axes.flat, rows, strict=False):
            axis.set_visible(True)
            _heat_map(axis, row)
        figure.suptitle(f"{NAMES[scenario]}: accuracy (%) on each task (across) after each task (down)", fontsize=10)
        buffer = io.BytesIO()
        figure.savefig(buffer, dpi=110, metadata={"Software": None})
        paths.append(folder / f"continual-{scenario}.png")
        write_atomic(paths[-1], buffer.getvalue())
    return paths


def _heat_map(axis: Any, row: Mapping[str, Any]) -> None:
    matrix = np.array(row["matrix"])
    tasks = len(matrix)
    shown = np.ma.array(matrix, mask=np.triu(np.ones_like(matrix), 1) > 0) if row["scenario"] == "class" else matrix
    axis.imshow(shown, vmin=0, vmax=100, cmap="viridis")
    for i in range(tasks):
        for j in range(i + 1 if row["scenario"] == "class" else tasks):
            colour = "white" if matrix[i, j] < 60 else "black"
            axis.text(j, i, f"{matrix[i, j]:.0f}", ha="center", va="center", fontsize=6, color=colour)
    axis.set_title(f"{row['learner']}\n{row['accuracy_mean']:.1f} %", fontsize=8)
    axis.set_xticks(range(tasks), [str(k + 1) for k in range(tasks)], fontsize=6)
    axis.set_yticks(range(tasks), [str(k + 1) for k in range(tasks)], fontsize=6)
    axis.tick_params(length=0)
