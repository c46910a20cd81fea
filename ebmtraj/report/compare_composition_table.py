"""Tables and pictures of the comparison of compositions: a line a composition, medians over the seeds."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from rich.table import Table

from ebmtraj.report.compare_composition import PLANE, TITLES, WARM, CompositionJob
from ebmtraj.report.compare_composition_run import shown
from ebmtraj.report.compare_images_table import samples_picture
from ebmtraj.report.plane import plane_composition, plane_picture, sample_plane


class Measure(NamedTuple):
    """A column."""

    key: str
    header: str
    percent: bool = False


_SIZE, _PLACE, _AXIS = (
    Measure("size_px", "size, px"),
    Measure("place_px", "position, px"),
    Measure("place_axis_px", "a coordinate, px"),
)
_SHAPE = Measure("shape_accuracy", "shape right", True)
_VALID = Measure("valid", "as near a render as real ones", True), Measure("one_sprite", "explained by a render", True)
SECTIONS: Mapping[str, tuple[str, tuple[str, ...], tuple[Measure, ...]]] = {
    "and": ("and", ("size-place", "three"), (_SIZE, _PLACE, _AXIS, _SHAPE, *_VALID)),
    "or": (
        "or",
        ("or",),
        (Measure("first_share", "at the first", True), Measure("on_one", "at one of them", True), *_VALID),
    ),
    "not": ("not", ("not", "prior"), (Measure("outside", "not a heart", True), *_VALID)),
    "pairs": ("pairs", ("sum", "joint"), (_SIZE, _PLACE, _AXIS, *_VALID)),
    "plane": (
        "plane",
        ("plane",),
        (Measure("total_variation", "total variation"), Measure("exact_samples", "exact samples")),
    ),
}


def table_of(results: Mapping[str, Any], section: str) -> tuple[list[str], list[list[str]]]:
    """Header and cells of one table; least and greatest stand behind a median."""
    title, starts, measures = SECTIONS[section]
    titles = {**TITLES, **results["protocol"]["titles"]}
    seeds = len(results["protocol"]["seeds"])
    header = [f"{title}, {seeds} seed{'s' * (seeds > 1)}", *(each.header for each in measures)]
    lines = []
    for name, said in results["summary"].items():
        if name.startswith(starts):
            own = titles.get(name, name.removeprefix("plane, "))
            lines.append([own, *(_cell(said.get(each.key), each.percent) for each in measures)])
    if section in ("and", "pairs"):
        judge = results["protocol"]["judge"]
        lines.append(["the judge, on renders", *(_number(judge.get(each.key), each.percent) for each in measures)])
    return header, lines


def _number(value: float | None, percent: bool) -> str:
    if value is None:
        return ""
    return f"{100 * value:.0f} %" if percent else f"{value:.3f}"


def _cell(said: Mapping[str, float] | None, percent: bool) -> str:
    if not said:
        return ""
    median = _number(said["median"], percent)
    if said["min"] == said["max"]:
        return median
    least, most = _number(said["min"], percent).removesuffix(" %"), _number(said["max"], percent).removesuffix(" %")
    return f"{median} <sub>{least}..{most}</sub>"


def markdown_composition(results: Mapping[str, Any], section: str) -> str:
    """One table as markdown; ends with a newline."""
    header, lines = table_of(results, section)
    escaped = [[cell.replace("|", "\\|") for cell in cells] for cells in (header, *lines)]
    rows = ["| " + " | ".join(cells) + " |" for cells in escaped]
    return "\n".join([rows[0], "| --- |" + " ---: |" * (len(header) - 1), *rows[1:]]) + "\n"


def rich_composition(results: Mapping[str, Any]) -> list[Table]:
    """All tables for the terminal, without the spread."""
    tables = []
    for section in SECTIONS:
        header, lines = table_of(results, section)
        table = Table(title=header[0], title_justify="left", header_style="bold")
        table.add_column("")
        for name in header[1:]:
            table.add_column(name.replace(", ", ",\n"), justify="right")
        for title, *cells in lines:
            table.add_row(title, *(cell.partition(" <sub>")[0] for cell in cells))
        tables.append(table)
    return tables


def composition_pictures(job: CompositionJob, folder: Path) -> list[Path]:
    """Samples of every composition of sprites, and the densities of the plane with their samples."""
    again = [name for name in TITLES if name.removesuffix(WARM) in TITLES and name.endswith(WARM)]
    kept = [(name, pixels) for name, pixels in shown(job).items() if name in TITLES and name not in again]
    strips = [(_full(name), np.asarray(pixels)) for name, pixels in kept]
    order = [_full(name) for name in TITLES]
    strips.sort(key=lambda strip: order.index(strip[0]))
    panels = [(text, energy, sample_plane(energy, 10_000, job.seed).points) for text, energy in _plane().items()]
    return [
        samples_picture(strips, folder / "sprites.png", count=24),
        plane_picture(panels, folder / "plane.png"),
    ]


def _plane() -> dict[str, Any]:
    return {text: plane_composition(text) for text in PLANE.values()}


def _full(name: str) -> str:
    """A row's title that stands by itself."""
    parent = next((name.removesuffix(end) for end in _VARIANTS if name.endswith(end)), name)
    return TITLES[name].replace("the same", TITLES[parent], 1)


_VARIANTS = ("-uncorrected", "-plain-warm", "-literal-warm", "-warm", "-unbounded")
