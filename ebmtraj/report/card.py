"""The data card of a store: one HTML page that needs nothing else."""

from __future__ import annotations

import json
import math
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from numpy.typing import NDArray

from ebmtraj.datasets.blocks import SPLITS
from ebmtraj.datasets.store import Store
from ebmtraj.envs.render import can_render
from ebmtraj.errors import EbmtrajError
from ebmtraj.fields import Field, slices
from ebmtraj.report import page
from ebmtraj.report.style import GREY, INK, LOOKS
from ebmtraj.report.survey import BINS, Columns, Progress, Survey, survey
from ebmtraj.report.tables import number
from ebmtraj.report.video import strip
from ebmtraj.runs import write_atomic

COLUMNS = 6  # histograms a row
STRIP_MOMENTS = 6


def data_card(
    path: str, out: Path, *, overwrite: bool = False, on_progress: Progress = lambda stage, done, total: None
) -> dict[str, Any]:
    """Write the data card of a store as one HTML page, with every picture inside, and return its main figures.

    Raises `EbmtrajError` where the store is damaged or empty, or `out` exists and may not be replaced.
    """
    if out.exists() and not overwrite:
        raise EbmtrajError(f"{out} exists; give another path or --overwrite")
    store = Store.open(path)
    if not store.episodes:
        raise EbmtrajError(f"store {store.path} holds no episodes yet; go on with the command that made it and --resume")
    found = survey(store, on_progress)
    facts = card_facts(store, found)
    write_atomic(out, _page(store, found, facts))
    return {**facts, "out": str(out)}


def card_facts(store: Store, found: Survey) -> dict[str, Any]:
    """The main figures of a store: size, lengths, drops and, per quaternion, how far it turned in 100 steps, rad."""
    lengths = store.lengths
    facts: dict[str, Any] = {
        "episodes": store.episodes,
        "transitions": store.transitions,
        "hours": store.transitions * store.control_timestep / 3600,
        "length": {"min": int(lengths.min()), "median": float(np.median(lengths)), "max": int(lengths.max())},
        "terminated": int(store.terminated.sum()),
        "terminated_share": float(store.terminated.mean()),
        "content_hash": store.content_hash,
        "turning_per_100_steps": {},
    }
    for name, net in found.net.items():
        angle = np.linalg.norm(net, axis=-1) * 100 / lengths
        low, median, high = np.percentile(angle, [10, 50, 90])
        facts["turning_per_100_steps"][name] = {
            "net_mean": float(angle.mean()),
            "net_median": float(median),
            "net_10_percent": float(low),
            "net_90_percent": float(high),
            "path_mean": float((found.path[name] * 100 / lengths).mean()),
            "along_axes": {
                axis: {"mean": float(one.mean()), "std": float(one.std())}
                for axis, one in zip("xyz", (net * 100 / lengths[:, None]).T, strict=True)
            },
        }
    return facts


def _page(store: Store, found: Survey, facts: Mapping[str, Any]) -> str:
    env = str(store.attributes["env"])
    ended = "dropped the cube" if can_render(env) else "ended by themselves"
    tiles = [
        (f"{store.episodes:,}", "episodes"),
        (f"{store.transitions:,}", "transitions"),
        (_duration(facts["hours"]), f"of motion, {store.control_timestep * 1e3:g} ms a step"),
        (" to ".join(str(one) for one in sorted({facts["length"]["min"], facts["length"]["max"]})), "steps an episode"),
        (f"{100 * facts['terminated_share']:.2g} %", f"{ended} ({facts['terminated']:,})"),
    ]
    for name, turn in facts["turning_per_100_steps"].items():
        tiles.append((f"{number(turn['net_mean'])} rad", f"{name} turns in 100 steps, net (mean)"))
    body = [
        f"<h1>{page.text(Path(store.path).name)}</h1>",
        f"<p class=note>Data card of a store of rollouts of <b>{page.text(env)}</b>"
        + ("" if store.complete else " (not finished yet)")
        + ".</p>",
        page.tiles(tiles),
        "<h2>Frames</h2>",
        _frames(store, found),
        "<h2>Fields</h2>",
        _field_table(found),
    ]
    if found.net:
        body += ["<h2>Rotation</h2>", _rotation_table(facts)]
        body += [page.plot(_rotation_figure(store, name, found.net[name]), f"turning of {name}") for name in found.net]
    body += ["<h2>Episodes and how they end</h2>", _ends(store, ended), "<h2>Histograms</h2>"]
    body.append("<p class=note>Every row of the store; dashed lines are hard limits; heights are not comparable.</p>")
    for label, columns in (("state", found.state), ("action", found.action)):
        start = 0
        for field in columns.fields:
            figure = _histograms(field, columns, start)
            start += field.size
            unit = f", {field.unit}" if field.unit else ""
            body += [f"<h3>{label}: {page.text(field.name + unit)}</h3>", page.plot(figure, f"histograms of {field.name}")]
    body += ["<h2>Every number</h2>", _number_table(found), "<h2>Provenance</h2>", _provenance(store)]
    return page.document(f"{Path(store.path).name}: data card", body)


def _frames(store: Store, found: Survey) -> str:
    env = str(store.attributes["env"])
    images = []
    try:
        with tempfile.TemporaryDirectory() as folder:
            for label, index in _shown(store, found).items():
                state = store.episode(index).state
                moments = np.unique(np.linspace(0, len(state) - 1, STRIP_MOMENTS).round().astype(int)).tolist()
                file = Path(folder) / "strip.png"
                strip({f"episode {index}": state}, env, file, moments, store.control_timestep, tile=200)
                images.append(f"<p class=note>{page.text(label)}</p>{page.image(file.read_bytes(), label)}")
    except EbmtrajError as error:
        return f"<p class=note>No frames: {page.text(str(error))}</p>"
    return "\n".join(images)


def _shown(store: Store, found: Survey) -> dict[str, int]:
    """Episodes worth a look: an ordinary one, the one that turns furthest, one that was dropped."""
    shown: dict[str, int] = {}
    if found.net:
        angle = np.linalg.norm(next(iter(found.net.values())), axis=-1)
        order = np.argsort(angle, kind="stable")
        shown[f"the median of turning ({angle[order[len(order) // 2]]:.2f} rad)"] = int(order[len(order) // 2])
        shown[f"the furthest turning ({angle[order[-1]]:.2f} rad)"] = int(order[-1])
    else:
        shown["the first"] = 0
    dropped = np.flatnonzero(store.terminated)
    if len(dropped):
        shown["one that ended by itself"] = int(dropped[0])
    return shown


def _field_table(found: Survey) -> str:
    rows = []
    for label, columns in (("state", found.state), ("action", found.action)):
        for field, place in zip(columns.fields, slices(columns.fields).values(), strict=True):
            ends = [value for side in field.limits() for value in side if math.isfinite(value)]
            limits = _span(min(ends), max(ends)) if ends else "-"
            seen = _span(columns.low[place].min(), columns.high[place].max())
            kind = f"{field.kind} of a {field.symmetry}" if field.symmetry else field.kind
            rows.append((label, field.name, kind, field.unit or "-", str(field.size), seen, limits))
    notes = [page.note(note) for columns in (found.state, found.action) for note in _couplings(columns)]
    return page.table(("of", "field", "kind", "unit", "numbers", "seen", "limits"), rows, words=4) + "".join(notes)


def _couplings(columns: Columns) -> Iterator[str]:
    """One line a field with couplings: each as the sum that it is."""
    for field in columns.fields:
        names = field.entries or tuple(str(i) for i in range(field.size))
        sums = []
        for coupling in field.couplings or ():
            parts = zip(coupling.weights, coupling.entries, strict=True)
            sums.append(f"{coupling.name} = " + " ".join(f"{weight:+.4g} {names[entry]}" for weight, entry in parts))
        if sums:
            yield f"Coupled in {field.name}: {'; '.join(sums)}."


def _number_table(found: Survey) -> str:
    rows: list[tuple[str, ...]] = []
    for columns in (found.state, found.action):
        names = [
            f"{field.name}.{field.entries[j]}" if field.entries else f"{field.name}[{j}]"
            for field in columns.fields
            for j in range(field.size)
        ]
        values = zip(columns.low, columns.high, columns.mean, columns.std, strict=True)
        rows += [(name, *map(_number, row)) for name, row in zip(names, values, strict=True)]
    table = page.table(("name", "min", "max", "mean", "std"), rows)
    return f"<details><summary>Ranges, means and spreads</summary>{table}</details>"


def _rotation_table(facts: Mapping[str, Any]) -> str:
    rows = []
    for name, turn in facts["turning_per_100_steps"].items():
        cells = [turn[key] for key in ("net_mean", "net_10_percent", "net_median", "net_90_percent", "path_mean")]
        axes = [f"{_number(axis['mean'])} ± {_number(axis['std'])}" for axis in turn["along_axes"].values()]
        rows.append((name, *map(_number, cells), *axes))
    head = ("rad in 100 steps", "net, mean", "10 %", "median", "90 %", "path, mean", "about x", "about y", "about z")
    note = "Net: norm of the sum of per-step rotation vectors in the world frame; path: sum of their norms."
    return f"{page.table(head, rows)}<p class=note>{note}</p>"


def _ends(store: Store, ended: str) -> str:
    lengths, terminated = store.lengths, store.terminated
    counts = ", ".join(f"{name} {int((store.splits == i).sum()):,}" for i, name in enumerate(SPLITS))
    text = (
        f"<p>{int(terminated.sum()):,} of {store.episodes:,} episodes {ended}; none is filtered out. Splits: {counts} "
        f"episodes. Median length {np.median(lengths):g} steps.</p>"
    )
    if not terminated.any() and lengths.min() == lengths.max():
        return text
    figure, (axis,) = _figure(1, 1, 2.4)
    edges = np.linspace(0, int(lengths.max()) + 1, min(BINS, int(lengths.max()) + 1) + 1)
    groups = [lengths[terminated], lengths[~terminated]]
    axis.hist(groups, edges, stacked=True, color=[LOOKS["fc"].color, "#c8c8c8"], label=[ended, "reached the step limit"])
    axis.set_yscale("symlog", linthresh=1)
    axis.set_xlabel("steps an episode", fontsize=10, color=INK)
    axis.set_ylabel("episodes", fontsize=10, color=INK)
    axis.legend(frameon=False, fontsize=9)
    return text + page.plot(figure, "lengths of episodes")


def _rotation_figure(store: Store, name: str, net: NDArray[np.float64]) -> Figure:
    figure, axes = _figure(1, 2, 2.8)
    angle = np.linalg.norm(net, axis=-1)
    axes[0].hist(angle, BINS, color=LOOKS["ebm"].color)
    axes[0].set_title(f"{name}: net turning an episode", fontsize=10, color=INK)
    axes[0].set_xlabel("rad", fontsize=10, color=INK)
    axes[0].set_ylabel("episodes", fontsize=10, color=INK)
    reach = max(float(np.abs(net).max()), 1e-3)
    for axis, values, look in zip("xyz", net.T, ("ebm", "gaussian", "fc"), strict=True):
        axes[1].hist(
            values, BINS, range=(-reach, reach), histtype="step", linewidth=1.8, color=LOOKS[look].color, label=axis
        )
    axes[1].set_title("about each world axis", fontsize=10, color=INK)
    axes[1].set_xlabel("rad", fontsize=10, color=INK)
    axes[1].legend(frameon=False, fontsize=9)
    return figure


def _histograms(field: Field, columns: Columns, start: int) -> Figure:
    """A histogram of each number of a field."""
    width = min(COLUMNS, field.size)
    height = math.ceil(field.size / width)
    figure, axes = _figure(height, width, 1.35 * height + 0.2, inches=9.0 * max(width, 3) / COLUMNS)
    for j, axis in enumerate(axes):
        if j >= field.size:
            axis.set_visible(False)
            continue
        i = start + j
        low, high = columns.low[i], columns.high[i]
        edges = np.linspace(low, high if high > low else low + 1, BINS + 1)
        axis.stairs(columns.bins[i], edges, fill=True, color=LOOKS["ebm"].color)
        for limits in (field.low, field.high):
            if limits is not None and np.isfinite(limits[j]):
                axis.axvline(limits[j], color=GREY, linestyle="--", linewidth=1)
        axis.set_title(field.entries[j] if field.entries else str(j), fontsize=8, color=INK, pad=2)
        axis.set_yticks([])
        axis.locator_params(axis="x", nbins=3)
        axis.tick_params(labelsize=7)
    return figure


def _provenance(store: Store) -> str:
    keys = ("env", "env_kwargs", "env_attributes", "policy", "action_noise", "seed", "steps", "control_timestep", "versions")
    rows = {key.replace("_", " "): store.attributes.get(key) for key in keys}
    rows |= {
        "content hash": store.content_hash,
        "digest": store.attributes.get("digest"),
        "split": store.attributes.get("split"),
        "layout": store.attributes.get("layout"),
        "quaternions": store.attributes.get("quaternion_convention"),
        "schema": store.attributes.get("schema"),
        "complete": store.complete,
    }
    cells = []
    for key, value in rows.items():
        text = value if isinstance(value, str) else json.dumps(value, indent=1 if isinstance(value, dict) else None)
        inner = f"<code>{page.text(text)}</code>"
        if len(text) > 600:
            inner = f"<details><summary>{len(text):,} characters</summary>{inner}</details>"
        cells.append(f"<tr><td>{page.text(key)}</td><td>{inner}</td></tr>")
    return f"<table>{''.join(cells)}</table>"


def _figure(rows: int, columns: int, height: float, inches: float = 9.0) -> tuple[Figure, list[Any]]:
    figure = Figure(figsize=(inches, height), layout="constrained", facecolor="white")
    FigureCanvasAgg(figure)
    axes = list(figure.subplots(rows, columns, squeeze=False).flat)
    for axis in axes:
        axis.tick_params(labelsize=9, colors=INK, width=0.8)
        axis.set_axisbelow(True)
        for side, spine in axis.spines.items():
            spine.set_visible(side in ("left", "bottom"))
            spine.set_color("#b0b0b0")
    return figure, axes


def _number(value: float) -> str:
    return number(float(value)) if value >= 0 else f"−{number(-float(value))}"


def _duration(hours: float) -> str:
    if hours >= 1:
        return f"{number(hours)} h"
    return f"{number(hours * 60)} min" if hours * 60 >= 1 else f"{number(hours * 3600)} s"


def _span(low: float, high: float) -> str:
    return _number(low) if low == high else f"{_number(low)} to {_number(high)}"


def turning_lines(facts: Mapping[str, Any]) -> list[str]:
    """One line a quaternion: how far it turned in the episode of `episode_facts`."""
    lines = []
    for name, turn in facts["turning"].items():
        axes = ", ".join(f"{axis} {value:+.3f}" for axis, value in zip("xyz", turn["net"], strict=True))
        lines.append(f"{name} turned {turn['net_angle']:.3f} rad net ({axes}), {turn['path']:.3f} rad of path")
    return lines
