"""Tables of results: in colour for the terminal, in markdown for a page, from the same cells."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

from rich.table import Table
from rich.text import Text

from ebmtraj.evaluation.scores import LEVEL
from ebmtraj.report.style import ordered, title

Values: TypeAlias = Mapping[str, Mapping[str, float | None]]

FLOORS = {  # metrics of runs side by side, and what the truth scores
    "frechet": "floor",
    "frechet_changes": "floor_changes",
    "sliced_wasserstein": "floor_sliced",
    "c2st_rollout": "c2st_null",
    "c2st_one_step": "c2st_one_step_null",
}
PLAIN = ("energy_score", "limit_violation", "diversity", "coverage90", "rotation_ratio", "net_rotation_ratio")
AGAINST_TRUTH = {  # where the ratio to the truth is kept, and its name in the table
    ("penetration", "ratio_mean"): "penetration / truth",
    ("simulator", "diversity_ratio"): "diversity / simulator",
}

REFERENCES = ("truth", "floor")  # not models: never the best
HEADERS = {
    "ebm": "EBM",
    "energy": "EBM",
    "dsm": "EBM (DSM)",
    "ebm-corrected": "EBM, Langevin corrected",
    "cd": "EBM (CD)",
    "icd": "EBM (improved CD)",
    "field-corrected": "vector field, corrected",
    "field": "vector field, our base",
    "edm": "EDM diffusion",
    "flow": "flow matching",
    "gru": "GRU, mixture head",
    "mdn": "MDN",
    "ratio": "MDN, tilted",
    "ensemble": "5-net ensemble",
    "gaussian": "Gaussian",
    "fc-delta": "FC on deltas",
    "fc": "FC",
}


@dataclass(frozen=True)
class Cell:
    """A number as it is printed, and whether it is the best of its row."""

    text: str
    best: bool = False


def number(value: float | None) -> str:
    """A number with three significant digits, without an exponent where it can be: 0.584, 27.4, 1350; `-` for None."""
    if value is None or not math.isfinite(value):
        return "-"
    if value == 0:
        return "0"
    rounded = float(f"{value:.3g}")
    magnitude = math.floor(math.log10(abs(rounded)))
    return f"{rounded:.3g}" if magnitude < -4 else f"{rounded:.{max(0, 2 - magnitude)}f}"


def markdown_table(
    values: Values,
    corner: str = "",
    ratio: tuple[str, str] | None = ("fc", "ebm"),
    higher_is_better: Iterable[str] = (),
    columns: Sequence[str] | None = None,
) -> str:
    """A markdown table with one line a row of `values` and one column a model; the best value of each row is bold.

    values: {row: {model: number or None}}. `floor` and `truth` are shown, but never the best. `ratio` adds a column with
    the quotient of two models where both are there, None leaves it out. Ends with a newline.
    """
    header, lines = _cells(values, corner, ratio, set(higher_is_better), columns)
    out = ["| " + " | ".join(header) + " |", "| --- |" + " ---: |" * (len(header) - 1)]
    for name, cells in lines:
        texts = [f"**{cell.text}**" if cell.best else cell.text for cell in cells]
        out.append("| " + " | ".join([name, *texts]) + " |")
    return "\n".join(out) + "\n"


def rich_table(
    values: Values,
    caption: str = "",
    corner: str = "",
    ratio: tuple[str, str] | None = ("fc", "ebm"),
    higher_is_better: Iterable[str] = (),
    columns: Sequence[str] | None = None,
    not_ranked: Iterable[str] = (),
) -> Table:
    """The same table for the terminal: `console.print(rich_table(results["frechet"]))`; rows `not_ranked` have no best."""
    header, lines = _cells(values, corner, ratio, set(higher_is_better), columns, frozenset(not_ranked))
    table = Table(title=caption or None, title_justify="left", header_style="bold")
    table.add_column(header[0], no_wrap=True)
    for name in header[1:]:
        table.add_column(name, justify="right", no_wrap=True)
    for name, cells in lines:
        table.add_row(name, *(Text(cell.text, style="bold green" if cell.best else "") for cell in cells))
    return table


def metrics_by_model(results: Mapping[str, Mapping[str, Any]], names: Sequence[str]) -> dict[str, dict[str, Any]]:
    """Turn {model: result of `evaluate_rollouts`} into rows for a table: {metric: {model: number or None}}."""
    return {name: {model: result.get(name) for model, result in results.items()} for name in names}


def side_by_side(results: Mapping[str, Mapping[str, Any]]) -> tuple[dict[str, dict[str, Any]], tuple[str, ...]]:
    """Rows of a table of several runs' `results.json`, {metric: {run: number or None}}, and those that rank nothing."""
    wanted = [name for name in (*FLOORS, *PLAIN) if any(result.get(name) is not None for result in results.values())]
    rows = metrics_by_model(results, wanted)
    first = next(iter(results.values()))
    for name in set(FLOORS) & set(wanted):
        rows[name]["floor"] = first.get(FLOORS[name])
    for (name, key), label in AGAINST_TRUTH.items():
        if any(result.get(name) for result in results.values()):
            rows[label] = {model: (result.get(name) or {}).get(key) for model, result in results.items()}
    return rows, (*PLAIN[2:], *AGAINST_TRUTH.values())


def evaluation_table(result: Mapping[str, Any], caption: str = "") -> Table:
    """One model's `evaluate_rollouts` for the terminal: each number beside what the truth itself scores."""
    table = Table(title=caption or None, title_justify="left", header_style="bold")
    table.add_column("metric", no_wrap=True)
    table.add_column("model", justify="right", no_wrap=True)
    table.add_column("truth", justify="right", no_wrap=True)
    table.add_column("unit")
    simulator, penetration = result.get("simulator") or {}, result.get("penetration") or {}
    deep, true = penetration.get("model") or {}, penetration.get("truth") or {}
    turning, net = result.get("turning") or {}, result.get("net_turning") or {}
    ended = result.get("terminated") or {}
    calibrated = LEVEL if result.get("coverage90") is not None else None
    for label, value, truth, unit in (
        ("Fréchet distance", result.get("frechet"), result.get("floor"), "z-scored state"),
        ("Fréchet distance of changes", result.get("frechet_changes"), result.get("floor_changes"), "z-scored changes"),
        ("sliced Wasserstein", result.get("sliced_wasserstein"), result.get("floor_sliced"), "z-scored state"),
        ("told from the truth, rollouts", result.get("c2st_rollout"), result.get("c2st_null"), "AUC, C2ST"),
        ("told from the truth, structure seen", result.get("c2st_structure"), None, "AUC, C2ST"),
        ("told from the truth, one step", result.get("c2st_one_step"), result.get("c2st_one_step_null"), "AUC, C2ST"),
        ("energy score", result.get("energy_score"), None, "z-scored state"),
        (
            "energy score, simulated starts",
            simulator.get("energy_score_model"),
            simulator.get("energy_score"),
            "z-scored state",
        ),
        ("diversity", result.get("diversity"), None, "z-scored state"),
        ("diversity, simulated starts", simulator.get("diversity_model"), simulator.get("diversity"), "z-scored state"),
        ("coverage of 90 % intervals", result.get("coverage90"), calibrated, "share"),
        ("the same, one step", result.get("coverage90_one_step"), calibrated, "share"),
        ("turning", turning.get("model"), turning.get("truth"), "rad a rollout"),
        ("net turning", net.get("model"), net.get("truth"), "rad a rollout"),
        ("rotation error", result.get("rotation_error"), None, "rad"),
        ("terminated", ended.get("model"), ended.get("truth"), "share, by the end"),
        ("limit violation", result.get("limit_violation"), result.get("limit_violation_truth"), "share of entries"),
        ("penetration", _millimetres(deep.get("mean")), _millimetres(true.get("mean")), "mm"),
        ("penetration, 95th percentile", _millimetres(deep.get("p95")), _millimetres(true.get("p95")), "mm"),
    ):
        if value is not None:
            table.add_row(label, number(value), number(truth), unit)
    return table


def _millimetres(metres: float | None) -> float | None:
    return None if metres is None else 1e3 * metres


def _cells(
    values: Values,
    corner: str,
    ratio: tuple[str, str] | None,
    higher_is_better: set[str],
    columns: Sequence[str] | None,
    not_ranked: frozenset[str] = frozenset(),
) -> tuple[list[str], list[tuple[str, list[Cell]]]]:
    """Header and lines of the table: names of the columns, and for each row its name and cells."""
    present = list(dict.fromkeys(model for row in values.values() for model in row))
    models = list(columns) if columns is not None else ordered(present)
    quotient = ratio is not None and set(ratio) <= set(models)
    header = [corner, *(HEADERS.get(model, title(model)) for model in models)]
    if quotient and ratio is not None:
        header.append(" / ".join(HEADERS.get(model, title(model)) for model in ratio))
    lines = []
    for name, row in values.items():
        numbers = {m: value for m in models if (value := row.get(m)) is not None and math.isfinite(value)}
        rivals = [value for m, value in numbers.items() if m not in REFERENCES]
        best = None if len(rivals) < 2 or name in not_ranked else max(rivals) if name in higher_is_better else min(rivals)
        cells = [Cell(number(row.get(m)), m not in REFERENCES and m in numbers and numbers[m] == best) for m in models]
        if quotient and ratio is not None:
            above, below = (numbers.get(model) for model in ratio)
            cells.append(Cell("-" if above is None or not below or name in not_ranked else f"{above / below:.1f}x"))
        lines.append((title(name), cells))
    return header, lines
