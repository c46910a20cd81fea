"""One HTML page on runs, for a person: what they are, how they were trained, how good they are, how to make them again."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ebmtraj.config import to_plain
from ebmtraj.datasets.store import Store
from ebmtraj.errors import EbmtrajError
from ebmtraj.report import page
from ebmtraj.report.figures import progress_chart, training_chart
from ebmtraj.report.shown import Tell, Wanted, shown
from ebmtraj.report.subject import NAMES, Subject
from ebmtraj.report.tables import number
from ebmtraj.runs import write_atomic

LIBRARIES = ("python", "ebmtraj", "torch", "mujoco", "numpy")  # named where they differ or first


def run_names(paths: Sequence[Path]) -> dict[str, Path]:
    """A short name for each run: its folder's, or the whole path where two folders are named alike."""
    short = [path.resolve().name for path in paths]
    return {name if short.count(name) == 1 else str(path): path for name, path in zip(short, paths, strict=True)}


def read_runs(paths: Sequence[Path]) -> list[Subject]:
    """The runs in these folders; raises `EbmtrajError` where one is none, or of another kind than the first."""
    subjects = [Subject.read(path, name) for name, path in run_names(paths).items()]
    for one in subjects[1:]:
        if one.kind != subjects[0].kind:
            raise EbmtrajError(
                f"run {one.path} is a {NAMES[one.kind]}, run {subjects[0].path} a {NAMES[subjects[0].kind]}; "
                "give runs of one kind, or a report each"
            )
    return subjects


def run_report(
    paths: Sequence[Path], out: Path, wanted: Wanted = Wanted(), *, overwrite: bool = False, tell: Tell = lambda doing: None
) -> dict[str, Any]:
    """Write a report of one run, or of several of one kind side by side; returns its main figures.

    Only reads the runs. Raises `EbmtrajError` where one is none, they are of different kinds, or `out` exists and may not
    be replaced.
    """
    check_page(out, overwrite)
    subjects = read_runs(paths)
    title = ", ".join(one.name for one in subjects)
    body = [
        f"<h1>{page.text(title)}</h1>",
        page.note(f"Report of {'a ' * (len(subjects) == 1)}{NAMES[subjects[0].kind]}{'s' * (len(subjects) > 1)}."),
        *_summary(subjects),
        *shown(subjects, wanted, tell),
        *training(subjects),
        *_settings(subjects),
        *provenance(subjects),
    ]
    write_atomic(out, page.document(f"{title}: report", body))
    facts = [
        {
            "run": str(one.path),
            "kind": one.kind,
            "model": one.model,
            "finished": one.finished,
            "steps": (one.header or {}).get("steps"),
            "validation": (one.header or {}).get("validation"),
            "summary": one.story(),
        }
        for one in subjects
    ]
    return {"out": str(out), "bytes": out.stat().st_size, "runs": facts}


def check_page(out: Path, overwrite: bool) -> None:
    """Raise `EbmtrajError` where no page can be written here, or none may be replaced."""
    if out.suffix.lower() not in (".html", ".htm"):
        raise EbmtrajError(f"--out {out}: give a path that ends in .html")
    if out.exists() and not overwrite:
        raise EbmtrajError(f"{out} exists; give another --out or --overwrite")


def _summary(subjects: Sequence[Subject]) -> list[str]:
    parts = []
    for one in subjects:
        name = f"<b>{page.text(one.name)}</b>: " if len(subjects) > 1 else ""
        parts.append(f"<p class=lead>{name}{page.text(one.story())}</p>")
        if not one.finished:
            parts += [page.note("To finish it:"), page.pre(one.going_on())]
    if len(subjects) == 1:
        parts.append(page.tiles(_tiles(subjects[0])))
    else:
        parts.append(_side_by_side(subjects))
    return parts


def _tiles(one: Subject) -> list[tuple[str, str]]:
    header, found = one.header or {}, one.results
    tiles = []
    if "frechet" in found:
        tiles.append((number(found["frechet"]), f"Fréchet distance to the truth (floor {number(found.get('floor'))})"))
    if found.get("energy_score") is not None:
        tiles.append((number(found["energy_score"]), "energy score"))
    if "steps" in header:
        tiles.append((f"{header['steps']:,}", "optimiser steps"))
    if header.get("seconds") is not None:
        tiles.append((f"{number(header['seconds'])} s", f"of training on {one.versions.get('device_name', 'one device')}"))
    if header.get("validation") is not None:
        tiles.append((_signed(header["validation"]), "validation loss"))
    if header.get("steps"):
        tiles.append((str(len(one.events)), "interventions of the guard"))
    return tiles


def _side_by_side(subjects: Sequence[Subject]) -> str:
    rows = []
    for one in subjects:
        header = one.header or {}
        rows.append(
            (
                one.name,
                one.model,
                f"{header['steps']:,}" if "steps" in header else "not finished",
                number(header.get("seconds")),
                _signed(header.get("validation")),
                "-" if one.seed is None else str(one.seed),
            )
        )
    head = ("run", "model", "steps", "seconds of training", "validation loss", "seed")
    return page.table(head, rows, words=2) + page.note("Losses compare between runs of one model only.")


def _signed(value: float | None) -> str:
    return number(value) if value is None or value >= 0 else f"−{number(-value)}"


def training(subjects: Sequence[Subject]) -> list[str]:
    """The course of each training, and what the guard did."""
    parts = ["<h2>Training</h2>"]
    for one in subjects:
        try:
            figure = training_chart(one.rows)
        except EbmtrajError:
            why = "It was fitted in closed form: there were no steps." if one.finished else "There is no loss to show yet."
            parts += [f"<h3>{page.text(one.name)}</h3>"] if len(subjects) > 1 else []
            parts.append(_progress(one) if one.kind == "policy" and one.rows else page.note(why))
            continue
        caption = one.name if len(subjects) > 1 else "Loss on training batches and on held-out data."
        drawn = page.captioned(page.chart(figure, f"training of {one.name}"), caption)
        parts.append(drawn if len(subjects) <= 3 else page.details(f"{one.name}: {len(one.events)} interventions", drawn))
        for event in one.events:
            rate = f", rate {number(event['rate'])}" if "rate" in event else ""
            parts.append(
                page.note(f"Step {event['step']:,}, {event.get('stage', '')}: {event['event']} ({event['why']}){rate}.")
            )
    return parts


def _progress(one: Subject) -> str:
    """How a policy came on: what it turned and how often it dropped."""
    return page.captioned(
        page.chart(progress_chart(one.rows), f"progress of {one.name}"),
        "Of the episodes that it learnt from in each iteration.",
    )


def _settings(subjects: Sequence[Subject]) -> list[str]:
    """In what runs differ, and each recipe whole."""
    parts = ["<h2>Settings</h2>"]
    flat = {one.name: flatten(one.config) for one in subjects}
    if len(subjects) > 1:
        keys = list(dict.fromkeys(key for values in flat.values() for key in values))
        differing = [key for key in keys if len({json.dumps(values.get(key)) for values in flat.values()}) > 1]
        rows = [(key, *(_short(flat[one.name].get(key)) for one in subjects)) for key in differing]
        if rows:
            names = [one.name for one in subjects]
            parts += [page.table(("where they differ", *names), rows, words=1 + len(names))]
    for one in subjects:
        parts.append(page.details(f"config.toml of {one.name}", page.pre((one.path / "config.toml").read_text("utf-8"))))
    return parts


def flatten(values: Mapping[str, Any], before: str = "") -> dict[str, Any]:
    """Nested settings as {"training.steps": ...}."""
    flat: dict[str, Any] = {}
    for key, value in values.items():
        flat |= flatten(value, f"{before}{key}.") if isinstance(value, Mapping) else {before + key: to_plain(value)}
    return flat


def _short(value: Any) -> str:
    said = "-" if value is None else str(value)
    return said if len(said) <= 40 else f"{said[:37]}..."


def provenance(subjects: Sequence[Subject]) -> list[str]:
    """Data, seed, machine and versions of each run, and the command that makes it again."""
    parts = ["<h2>Where it comes from</h2>"]
    rows = []
    for one in subjects:
        found = one.versions
        versions = ", ".join(f"{name} {found[name]}" for name in LIBRARIES if name in found)
        machine = f"{found.get('processor', 'unknown')}, {found.get('cores', '?')} cores"
        if found.get("device_name") not in (None, "cpu"):
            machine += f", {found['device_name']}"
        seed = "-" if one.seed is None else str(one.seed)
        rows.append((one.name, one.data or "-", str(one.config.get("content_hash", "-"))[:16], seed, machine, versions))
    parts.append(page.table(("run", "data", "content hash", "seed", "machine", "versions"), rows, words=6))
    parts += [page.note("To make it again:"), page.pre("\n".join(one.again() for one in subjects))]
    everything = {one.name: one.versions for one in subjects}
    parts.append(page.details("all versions", page.pre(json.dumps(everything, indent=1))))
    measured = {one.name: one.results for one in subjects if one.results}
    if measured:
        parts.append(page.details("all results", page.pre(json.dumps(_shortened(measured), indent=1, ensure_ascii=False))))
    return parts


def _shortened(value: Any) -> Any:
    """Results with long lists as their length: the numbers stand in results.json."""
    if isinstance(value, Mapping):
        return {key: _shortened(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple) and len(value) > 12:
        return f"{len(value)} values"
    return value


def is_store(path: str) -> bool:
    """Whether rollouts lie here, rather than a run."""
    if (Path(path) / "config.toml").exists():
        return False
    try:
        Store.open(path)
    except EbmtrajError:
        return False
    return True
