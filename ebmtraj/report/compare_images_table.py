"""Tables and pictures of a comparison of image models: a line a model, medians over the seeds, the best in bold."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image, ImageDraw
from rich.console import Group
from rich.table import Table

from ebmtraj.report.tables import number
from ebmtraj.runs import write_atomic

AT_ONCE = 5  # measures side by side in the terminal


class Column(NamedTuple):
    """A measure as a table shows it."""

    key: str
    header: str
    better: int = -1  # -1: less, 1: more, 0: neither
    scale: float = 1.0
    percent: bool = False


class Section(NamedTuple):
    """A table: which rows, and what of them."""

    title: str
    columns: tuple[Column, ...]
    conditional: bool | None = None  # only rows of that kind
    rows: tuple[str, ...] = ()  # only these; empty: all
    beside: tuple[tuple[str, Mapping[str, str]], ...] = ()  # lines whose values any row's measures hold: {column: key}


def _auroc(score: str) -> tuple[Column, ...]:
    kinds = ("noise", "inverted", "rotated", "shuffled", "constant", "letters", "interpolated", "interpolated_classes")
    titles = {"interpolated_classes": "of two classes"}
    return tuple(Column(f"foreign.{score}.{kind}", titles.get(kind, kind), 1) for kind in kinds)


_ATTACKS = {
    "clean": "clean",
    "pgd.0.05": "PGD .05",
    "pgd.0.1": "PGD .1",
    "pgd.0.2": "PGD .2",
    "autoattack": "AutoAttack .2",
    "square": "square .2",
    "transfer": "transfer .2",
    "lowest": "lowest .2",
    "l2.pgd.0.5": "L2: PGD .5",
    "l2.pgd.1": "PGD 1",
    "l2.boundary": "boundary 1",
}


def _attacks(steps: int, title: str) -> Section:
    return Section(
        title, tuple(Column(f"robustness.refine_{steps}.{key}", says, 1, percent=True) for key, says in _ATTACKS.items())
    )


_QUALITY = (
    Column("generation.frechet", "Fréchet"),
    Column("generation.frechet_test", "Fréchet, held-out"),
    Column("generation.kernel_test", "kernel x 1000, held-out", scale=1e3),
)
_COST = (Column("training.core_seconds", "core s", 0), Column("training.steps", "steps", 0))
_MEMORY = (
    Column("memory.nearest_samples", "nearest", 0),
    Column("memory.copying", "copying", 0),
    Column("density.membership", "membership", 0),
)
SECTIONS: Mapping[str, Mapping[str, Section]] = {
    "images": {
        "samples": Section(
            "unconditional",
            (
                *_QUALITY,
                Column("generation.least_share", "rarest class", 1, percent=True),
                Column("generation.spread", "spread", 0, percent=True),
                *_MEMORY,
                *_COST,
            ),
            conditional=False,
        ),
        "class-samples": Section(
            "class-conditional",
            (
                *_QUALITY,
                Column("generation.agreement", "agreement", 1, percent=True),
                Column("generation.spread", "spread", 0, percent=True),
                *_MEMORY,
                *_COST,
            ),
            conditional=True,
        ),
        "foreign": Section("AUROC of log p(x)", _auroc("log_p")),
        "ratio": Section("AUROC of the ratio", _auroc("log_ratio")),
        "abilities": Section(
            "an energy and a field of the same size",
            (
                Column("generation.frechet", "Fréchet"),
                Column("abilities.least_auroc", "log p(x), AUROC: least of far ones", 1),
                Column("foreign.log_ratio.interpolated", "ratio of densities: interpolated", 1),
                Column("abilities.accuracy", "class of least E(x|y)", 1, percent=True),
                Column("composition.either", "first class or last: one of them", 1, percent=True),
                Column("composition.either_first", "the first", 0, percent=True),
                Column("composition.without_first", "all but the first class: the first", -1, percent=True),
                Column("composition.without_rarest", "rarest other", 1, percent=True),
            ),
            rows=("energy", "field", "energy-class", "field-class"),
        ),
        "restoration": Section(
            "mean squared error",
            (
                Column("restoration.salt_and_pepper_one", "salt and pepper, one"),
                Column("restoration.salt_and_pepper_mean", "mean of 16"),
                Column("restoration.one_step", "in one step"),
                Column("restoration.inpainting_one", "lower half, one"),
                Column("restoration.inpainting_mean", "mean of 16"),
            ),
            beside=(
                ("median filter", {"restoration.salt_and_pepper_mean": "restoration.median_filter"}),
                ("mean fill", {"restoration.inpainting_mean": "restoration.mean_fill"}),
                (
                    "Gaussian given the rest",
                    {
                        "restoration.salt_and_pepper_mean": "restoration.salt_and_pepper_gaussian",
                        "restoration.inpainting_mean": "restoration.inpainting_gaussian",
                    },
                ),
            ),
        ),
    },
    "jem": {
        "classes": Section(
            "classifier",
            (
                Column("classes.accuracy", "accuracy", 1, percent=True),
                Column("classes.ece", "ECE"),
                Column("classes.ece_scaled", "ECE, scaled"),
                Column("classes.nll", "NLL"),
                *_COST,
            ),
        ),
        "samples": Section(
            "samples",
            (
                Column("marginal.frechet", "Fréchet of p(x)"),
                Column("marginal.least_share", "rarest class", 1, percent=True),
                Column("generation.frechet", "of p(x|y)"),
                Column("generation.agreement", "agreement", 1, percent=True),
                Column("generation.spread", "spread", 0, percent=True),
                *_MEMORY[1:],
            ),
        ),
        "robustness": _attacks(0, "accuracy under attack, classifiers as they are"),
        "refined": _attacks(10, "accuracy under attack through 10 refinement steps"),
        **{
            name: Section(f"AUROC of {says}", _auroc(name))
            for name, says in {
                "log_p": "log p(x)",
                "log_ratio": "log p(x) at a noise level less twice that at twice the level",
                "max_p": "max p(y|x)",
                "grad_norm": "-|grad log p(x)|",
            }.items()
        },
    },
}


def table_of(results: Mapping[str, Any], section: Section) -> tuple[list[str], list[list[str]]]:
    """Header and cells of one table; best values are in **bold**, least and greatest stand behind a median."""
    summary, protocol, floor = results["summary"], results["protocol"], results["floor"]
    rows = [
        name
        for name in summary
        if section.conditional in (None, protocol["conditional"][name])
        and (not section.rows or name in section.rows)
        and any(summary[name].get(column.key) for column in section.columns)
    ]
    columns = [column for column in section.columns if any(summary[name].get(column.key) for name in rows)]
    lines = []
    for name in rows:
        said = summary[name]
        title = protocol["titles"][name] + (f" ({said['diverged']} of {said['seeds']} diverged)" if said["diverged"] else "")
        if section.conditional is None and protocol["conditional"][name] and not protocol["conditional"][rows[0]]:
            title += ", by class"
        if said["seeds"] < len(protocol["seeds"]) and said.get("training.steps", {}).get("median"):  # others need one seed
            title += f" ({said['seeds']} seed{'s' * (said['seeds'] > 1)})"
        lines.append([title, *(_cell(said.get(column.key), column, _best(summary, rows, column)) for column in columns)])
    for title, sources in section.beside if rows else ():
        found = [next((said for name in rows if (said := summary[name].get(sources.get(c.key, "")))), None) for c in columns]
        lines.append([title, *("" if one is None else _cell(one, c, None) for one, c in zip(found, columns, strict=True))])
    if any(column.key in floor for column in columns):
        real = [_shown(floor[column.key], column) if column.key in floor else "" for column in columns]
        lines.append(["floor (real images)", *real])
    seeds = len(protocol["seeds"])
    return [f"{section.title}, {seeds} seed{'s' * (seeds > 1)}", *(column.header for column in columns)], lines


def markdown_images(results: Mapping[str, Any], section: Section) -> str:
    """One table as markdown; ends with a newline."""
    header, lines = table_of(results, section)
    header = [name.replace("|", "\\|") for name in header]
    out = ["| " + " | ".join(header) + " |", "| --- |" + " ---: |" * (len(header) - 1)]
    return "\n".join(out + ["| " + " | ".join(cells) + " |" for cells in lines]) + "\n"


def rich_images(results: Mapping[str, Any], section: Section) -> Group | None:
    """The same for the terminal, without the spread, a few columns at once; None where no row has anything of it."""
    header, lines = table_of(results, section)
    if not lines:
        return None
    tables = []
    for first in range(1, len(header), AT_ONCE):
        table = Table(title=header[0] if first == 1 else None, title_justify="left", header_style="bold")
        table.add_column("")
        for name in header[first : first + AT_ONCE]:
            table.add_column(name.replace(", ", ",\n"), justify="right", no_wrap=True)
        for title, *cells in lines:
            table.add_row(title, *(cell.partition(" <sub>")[0].replace("**", "") for cell in cells[first - 1 :][:AT_ONCE]))
        tables.append(table)
    return Group(*tables)


def samples_picture(strips: Sequence[tuple[str, np.ndarray]], path: Path, scale: int = 4, count: int = 40) -> Path:
    """Samples of each model (N, C, H, W) in [0, 1], a title and two rows each, as one PNG."""
    blocks = []
    for title, pixels in strips:
        chosen = pixels[np.linspace(0, len(pixels) - 1, min(count, len(pixels))).astype(int)]
        framed = np.pad(chosen, ((0, 0), (0, 0), (1, 1), (1, 1)))
        rows = [np.concatenate(list(part), axis=2) for part in np.array_split(framed[: len(framed) // 2 * 2], 2)]
        block = np.concatenate(rows, axis=1).transpose(1, 2, 0)
        block = np.repeat(block, 3, axis=2) if block.shape[2] == 1 else block
        picture = Image.fromarray(np.round(255 * block).astype(np.uint8))
        picture = picture.resize((picture.width * scale, picture.height * scale), Image.Resampling.NEAREST)
        canvas = Image.new("RGB", (picture.width, picture.height + 22), "white")
        canvas.paste(picture, (0, 22))
        ImageDraw.Draw(canvas).text((2, 4), title, fill=(34, 34, 34), font_size=14)
        blocks.append(canvas)
    whole = Image.new("RGB", (max(b.width for b in blocks), sum(b.height for b in blocks)), "white")
    top = 0
    for block_picture in blocks:
        whole.paste(block_picture, (0, top))
        top += block_picture.height
    buffer = io.BytesIO()
    whole.save(buffer, "PNG", optimize=True)
    write_atomic(path, buffer.getvalue())
    return path


def _best(summary: Mapping[str, Any], rows: Sequence[str], column: Column) -> float | None:
    values = [summary[name][column.key]["median"] for name in rows if summary[name].get(column.key)]
    if not column.better or len(values) < 2:
        return None
    return float(max(values) if column.better > 0 else min(values))


def _cell(said: Mapping[str, float] | None, column: Column, best: float | None) -> str:
    if said is None:
        return "-"
    text = _shown(said["median"], column)
    text = f"**{text}**" if said["median"] == best else text
    low, high = _shown(said["min"], column), _shown(said["max"], column)
    return text if low == high else f"{text} <sub>{low}–{high}</sub>"


def _shown(value: float | None, column: Column) -> str:
    if value is None:
        return "-"
    return f"{100 * value:.1f} %" if column.percent else number(value * column.scale)


def markdown_note(results: Mapping[str, Any], name: str) -> str:
    """What a reader of the tables must know: images, judge, machine, command and the file of all numbers."""
    protocol, stable, floor = results["protocol"], results["stability"], results["floor"]
    images, judge, machine = protocol["images"], protocol["judge"], protocol["machine"]
    said = (
        f"Medians over {len(protocol['seeds'])} seeds, <sub>least–greatest</sub>, best in bold. {protocol['data']}: "
        f"{images['train']:,} training, {images['validation']:,} validation and {images['test']:,} test images; distances "
        f"at equal counts, held-out ones at {floor['generation.count_test']:,}. Features: the project's own "
        f"{judge['network']} (hash {judge['digest']}"
    )
    said += f", {judge['test_accuracy']:.1%} right on test), " if "test_accuracy" in judge else "), "
    return said + (
        f"scaled to a total variance of {judge['total_variance']:g}. {stable['seeds']} seeds of `{stable['model']}`: "
        f"{stable['diverged']} diverged, {stable['rolled_back']} brought back by the guard. {machine['processor']}, "
        f"{machine['cores']} cores; made by `{protocol['command']}`, every number in "
        f"[docs/results/{name}.json](/docs/results/{name}.json).\n"
    )
