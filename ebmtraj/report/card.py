"""What is in a store, for a person: one episode as a table, and a data card, one HTML page that needs nothing else."""

from __future__ import annotations

import json
import math
import tempfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from numpy.typing import NDArray

from ebmtraj.datasets.blocks import SPLITS, EpisodeBlock
from ebmtraj.datasets.store import Store
from ebmtraj.envs.render import can_render
from ebmtraj.errors import EbmtrajError
from ebmtraj.evaluation.arrays import quaternion_slices, rotation_between, unit_quaternions
from ebmtraj.fields import Field, slices, total_size
from ebmtraj.report import page
from ebmtraj.report.style import GREY, INK, LOOKS
from ebmtraj.report.tables import number
from ebmtraj.report.video import strip
from ebmtraj.runs import write_atomic

BINS = 40
COLUMNS = 6  # histograms a row
STRIP_MOMENTS = 6
SURVEY_ROWS = 32_768  # state rows held at a time
Progress = Callable[[str, int, int], None]  # what is being done, episodes done, episodes in all


# one episode


def episode_facts(store: Store, index: int) -> dict[str, Any]:
    """One episode in plain JSON values: its length, end and split, ranges of each field, and how far its object turned.

    Turning, rad, is the sum of per-step rotation vectors in the world frame, which doesn't wrap; `path` sums their norms.
    Raises `EbmtrajError` where there is no such episode, or its data is damaged.
    """
    if not 0 <= index < store.episodes:
        held = f"0 to {store.episodes - 1}" if store.episodes else "none yet"
        raise EbmtrajError(f"store {store.path} has no episode {index}; it holds {held}")
    episode = store.episode(index)
    length = len(episode.action)
    fields = []
    for label, values, described in (
        ("state", episode.state, store.state_fields),
        ("action", episode.action, store.action_fields),
    ):
        for field, place in zip(described, slices(described).values(), strict=True):
            part = values[:, place]
            fields.append(
                {
                    "of": label,
                    "field": field.name,
                    "size": field.size,
                    "unit": field.unit,
                    "low": float(part.min()),
                    "high": float(part.max()),
                    "start": [float(x) for x in part[0]],
                    "end": [float(x) for x in part[-1]],
                }
            )
    turning = {}
    for field, place in zip(_quaternions(store), quaternion_slices(store.state_fields), strict=True):
        steps = _rotations(episode.state, place)
        net = steps.sum(axis=0)
        turning[field.name] = {
            "net": [float(x) for x in net],
            "net_angle": float(np.linalg.norm(net)),
            "path": float(np.linalg.norm(steps, axis=-1).sum()),
        }
    return {
        "episode": index,
        "split": SPLITS[int(store.splits[index])],
        "steps": length,
        "seconds": length * store.control_timestep,
        "seed": episode.seed,
        "terminated": episode.terminated,
        "fields": fields,
        "turning": turning,
    }


def _quaternions(store: Store) -> list[Field]:
    return [field for field in store.state_fields if field.kind == "quaternion"]


def _rotations(state: NDArray[np.float32], place: slice) -> NDArray[np.float64]:
    """World-frame rotation vector of each step (T, 3), rad, of states (T+1, S)."""
    q = unit_quaternions(state, place)
    return rotation_between(q[:-1], q[1:])


# the whole store


@dataclass
class Columns:
    """Running count, mean, spread, range of each number of a vector, and then their histograms."""

    fields: tuple[Field, ...]

    def __post_init__(self) -> None:
        size = total_size(self.fields)
        self.count = 0
        self.mean, self.square = np.zeros(size), np.zeros(size)
        self.low, self.high = np.full(size, np.inf), np.full(size, -np.inf)
        self.bins = np.zeros((size, BINS), np.int64)

    def add(self, rows: NDArray[np.float32]) -> None:
        """Take in rows (N, size); merged as Chan et al. 1979."""
        values = rows.astype(np.float64)
        mean, total = values.mean(axis=0), self.count + len(values)
        shift = mean - self.mean
        self.square += ((values - mean) ** 2).sum(axis=0) + shift**2 * (self.count * len(values) / total)
        self.mean += shift * (len(values) / total)
        self.count = total
        self.low, self.high = np.minimum(self.low, values.min(axis=0)), np.maximum(self.high, values.max(axis=0))

    def add_to_bins(self, rows: NDArray[np.float32]) -> None:
        """Count rows (N, size) in `BINS` bins between the lowest and the highest value of each number."""
        width = np.where(self.high > self.low, self.high - self.low, 1.0)
        places = np.clip(((rows - self.low) / width * BINS).astype(np.int64), 0, BINS - 1)
        for i in range(places.shape[1]):
            self.bins[i] += np.bincount(places[:, i], minlength=BINS)

    @property
    def std(self) -> NDArray[np.float64]:
        """Standard deviation of each number."""
        return np.sqrt(self.square / max(self.count, 1))


@dataclass
class Survey:
    """What two walks over a store found; both read every row, a bounded number at a time."""

    state: Columns
    action: Columns
    net: dict[str, NDArray[np.float64]]  # quaternion field: (E, 3) sum of rotation vectors of each episode, rad
    path: dict[str, NDArray[np.float64]]  # quaternion field: (E,) sum of their norms, rad


def survey(store: Store, on_progress: Progress = lambda stage, done, total: None) -> Survey:
    """Walk over a store; raises `EbmtrajError` where it is damaged."""
    places = dict(zip([f.name for f in _quaternions(store)], quaternion_slices(store.state_fields), strict=True))
    found = Survey(
        Columns(store.state_fields),
        Columns(store.action_fields),
        {name: np.empty((store.episodes, 3)) for name in places},
        {name: np.empty(store.episodes) for name in places},
    )
    for first, last in store.spans(SURVEY_ROWS):
        block = store.read_block(first, last)
        found.state.add(block.state)
        found.action.add(block.action)
        for name, place in places.items():
            net, path = _turning(block, place)
            found.net[name][first:last], found.path[name][first:last] = net, path
        on_progress("measuring", last, store.episodes)
    for first, last in store.spans(SURVEY_ROWS):
        block = store.read_block(first, last)
        found.state.add_to_bins(block.state)
        found.action.add_to_bins(block.action)
        on_progress("counting", last, store.episodes)
    return found


def _turning(block: EpisodeBlock, place: slice) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Net rotation vector (E, 3) and path (E,) of the episodes of a block, rad."""
    steps = _rotations(block.state, place)
    ends = np.cumsum(block.length + 1)
    inner = np.ones(len(steps), np.bool_)
    inner[ends[:-1] - 1] = False  # from the end of one episode to the start of the next
    steps = steps[inner]
    starts = np.cumsum(block.length) - block.length
    return np.add.reduceat(steps, starts), np.add.reduceat(np.linalg.norm(steps, axis=-1), starts)


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


# the page


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
