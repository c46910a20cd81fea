"""HTML pages on what is no run: the demo's folder, and the results of a comparison or of continual learning."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from ebmtraj.errors import EbmtrajError
from ebmtraj.report import page
from ebmtraj.report.compare_composition_table import rich_composition
from ebmtraj.report.compare_figures import median_curves
from ebmtraj.report.compare_images_table import SECTIONS, rich_images
from ebmtraj.report.compare_plans_table import rich_plans
from ebmtraj.report.compare_table import rich_comparison
from ebmtraj.report.continual_table import heat_maps, rich_continual, rich_robot
from ebmtraj.report.figures import frechet_chart
from ebmtraj.report.jobs import MARK
from ebmtraj.report.report import check_page, provenance, training
from ebmtraj.report.shown import plans_table
from ebmtraj.report.subject import Subject, plan_worth
from ebmtraj.report.tables import number, rich_table
from ebmtraj.runs import read_json, write_atomic

TILTS = {
    "none": "",
    "ratio": " + energy, density ratio",
    "likelihood": " + energy, likelihood",
    "both": " + energy, both in turn",
}
TILT_COLUMNS = {
    "share": "share on the support",
    "modes": "modes",
    "sliced_wasserstein": "sliced Wasserstein",
    "frechet": "Fréchet",
    "frechet_test": "Fréchet, held out",
    "copying": "copying",
    "train_seconds": "training, core s",
}
DEMO_MARK = "demo.json"  # says that a folder is a demo's
PANELS = ("unconditional", "action_conditional")


def find_results(path: Path) -> Path | None:
    """The results file that is meant by this path: itself, or that of a comparison's folder; None for a run or store.

    Raises `EbmtrajError` for the folder of a comparison that is not finished.
    """
    if path.suffix == ".json":
        return path
    if not (path / MARK).exists():
        return None
    beside = path.with_name(f"{path.name}.json")
    if not beside.exists():
        raise EbmtrajError(f"comparison {path} has no results yet ({beside}); go on with its command and --resume")
    return beside


def results_report(path: Path, out: Path, *, overwrite: bool = False) -> dict[str, Any]:
    """Write a report of the results of a comparison or of continual learning; returns its main figures.

    Raises `EbmtrajError` where the file holds something else, or `out` exists and may not be replaced.
    """
    check_page(out, overwrite)
    results = read_json(path)
    protocol = results.get("protocol") if isinstance(results, dict) else None
    if not isinstance(protocol, dict):
        raise EbmtrajError(f"{path} holds no results of ebmtraj compare or continual; give one of those, a run or a store")
    kind, parts = _tables(results, protocol, path)
    seeds = protocol.get("seeds", [])
    about = [f"{len(seeds)} seeds" if len(seeds) != 1 else "one seed", f"data {_data(protocol.get('data', '-'))}"]
    about += [f"{protocol['split']} split"] if "split" in protocol else []
    machine, versions = protocol.get("machine", {}), protocol.get("versions", {})
    body = [
        f"<h1>{page.text(path.stem)}</h1>",
        page.note(f"Report of {kind}: {', '.join(about)}."),
        *parts,
        "<h2>Where it comes from</h2>",
        page.note("The command that made it:"),
        page.pre(str(protocol.get("command", "-"))),
        page.note(f"{machine.get('processor', 'unknown')}, {machine.get('cores', '?')} cores"),
        page.details("all versions", page.pre(json.dumps(versions, indent=1))),
        page.details("protocol", page.pre(json.dumps(protocol, indent=1, ensure_ascii=False))),
    ]
    write_atomic(out, page.document(f"{path.stem}: report", body))
    return {"out": str(out), "bytes": out.stat().st_size, "kind": kind, "results": str(path)}


def _data(said: Any) -> str:
    """What a comparison says of its data, in a few words."""
    if not isinstance(said, Mapping):
        return str(said)
    return f"{said['episodes']:,} episodes of {said['env']}" if {"episodes", "env"} <= set(said) else json.dumps(said)[:80]


def _tables(results: Mapping[str, Any], protocol: Mapping[str, Any], path: Path) -> tuple[str, list[str]]:
    """What kind of results these are, and their tables and pictures."""
    makers: list[tuple[str, bool, Callable[[], list[str]]]] = [
        ("continual learning of images", "scenarios" in protocol, lambda: _continual(results)),
        ("continual learning of behaviours", "behaviours" in protocol, lambda: _plain(rich_robot(results))),
        ("a comparison of plans", "trainings" in results, lambda: _plain(rich_plans(results))),
        ("a comparison of compositions", "plane" in protocol, lambda: _plain(rich_composition(results))),
        ("a comparison of models of images", "conditional" in protocol, lambda: _image_tables(results, protocol)),
        ("a comparison of tilted generators", "judge" in protocol, lambda: _tilting(results, protocol)),
        ("a comparison of transition models", "starts" in protocol, lambda: _transitions(results, protocol)),
    ]
    for kind, is_it, make in makers:
        if is_it:
            try:
                return kind, make()
            except (KeyError, TypeError, AttributeError) as error:
                raise EbmtrajError(f"{path} is damaged: {type(error).__name__} {error}; make it again") from None
    raise EbmtrajError(f"{path} holds no results that have a report; give those of ebmtraj compare or continual")


def _plain(shown: Any) -> list[str]:
    return ["<h2>Results</h2>", page.terminal_tables(shown)]


def _continual(results: Mapping[str, Any]) -> list[str]:
    parts = _plain(rich_continual(results))
    if "rows" in results:
        with tempfile.TemporaryDirectory() as folder:
            parts += [page.media(each, each.stem) for each in heat_maps(results, Path(folder))]
    return parts


def _image_tables(results: Mapping[str, Any], protocol: Mapping[str, Any]) -> list[str]:
    kind = "jem" if "compare jem" in str(protocol.get("command")) else "images"
    return ["<h2>Results</h2>", *(page.terminal_tables(rich_images(results, each)) for each in SECTIONS[kind].values())]


def _transitions(results: Mapping[str, Any], protocol: Mapping[str, Any]) -> list[str]:
    parts = ["<h2>Results</h2>", *(page.terminal_tables(rich_comparison(results, task)) for task in protocol["tasks"])]
    parts.append(page.note("Medians over the seeds; lower is better, ratios and coverage best at 1 and 0.9."))
    curves = median_curves(results)
    if curves:
        parts.append(
            page.captioned(page.chart(frechet_chart(curves), "Fréchet distance over time"), "Median over the seeds.")
        )
    return parts


def _tilting(results: Mapping[str, Any], protocol: Mapping[str, Any]) -> list[str]:
    rows = []
    for model, tilts in results["summary"].items():
        for tilt, said in tilts.items():
            cells = [number((said.get(key) or {}).get("median")) for key in TILT_COLUMNS]
            rows.append((protocol["titles"].get(model, model) + TILTS.get(tilt, f" + {tilt}"), *cells))
    return ["<h2>Results</h2>", page.table(("", *TILT_COLUMNS.values()), rows), page.note("Medians over the seeds.")]


# the demo


def demo_report(out: Path, *, overwrite: bool = False, target: Path | None = None) -> Path:
    """Write the report of a finished demo's folder from what lies in it, as `report.html` there; returns its path.

    Raises `EbmtrajError` where the demo is not finished, or a report is there and may not be replaced.
    """
    target = target or out / "report.html"
    check_page(target, overwrite)
    results = read_json(out / "results.json")
    runs = {path.parent: Subject.read(path.parent) for path in sorted(out.glob("**/config.toml"))}
    subjects = {str(path.relative_to(out)): one for path, one in runs.items()}
    frechet, plan = results["frechet"], results["plan"]
    body = [
        "<h1>ebmtraj demo</h1>",
        page.note(
            f"{results['collected']['episodes']:,} episodes of a simulated hand with a cube, six transition models and a "
            f"planner, in {results['seconds']['total']:.0f} s on {results['machine']['processor']}."
        ),
        *(f"<p class=lead>{page.text(_sentence(panel, row))}</p>" for panel, row in frechet.items()),
        f"<p class=lead>{page.text(f'Plans: {plan_worth(plan)}.')}</p>",
        "<h2>How far from the truth</h2>",
        page.captioned(
            page.chart(frechet_chart(results["frechet_over_time"], 0.04), "Fréchet distance over time"),
            f"{results['starts']:,} held-out episodes x {results['steps']} steps; lower is better.",
        ),
    ]
    for key, label in (
        ("frechet", "Fréchet distance"),
        ("frechet_changes", "Fréchet distance of changes"),
        ("energy_score", "energy score"),
    ):
        body.append(page.terminal_tables(rich_table(results[key], label)))
    for panel in PANELS:
        drawn = [out / "figures" / panel / name for name in ("strip.png", "rollouts.gif")]
        if any(each.exists() for each in drawn):
            body.append(f"<h2>Rollouts, {page.text(panel.replace('_', '-'))}</h2>")
            body += [page.media(each, f"{panel} {each.stem}") for each in drawn if each.exists()]
    if results["pictures_missing"]:
        body.append(page.note(f"No pictures of the hand: {results['pictures_missing']}"))
    body += ["<h2>Plans</h2>", plans_table([plan])]
    film = out / "figures" / "plan.gif"
    if film.exists():
        body.append(page.media(film, "plans carried out", "A ghost shows where each plan is expected to lead."))
    named = [Subject(**{**vars(one), "name": name}) for name, one in subjects.items()]
    body += [*training(named), *provenance(named), "<h2>Every command</h2>", page.pre("\n".join(results["commands"]))]
    write_atomic(target, page.document("ebmtraj demo: report", body))
    return target


def _sentence(panel: str, row: Mapping[str, float]) -> str:
    """How the energy does beside the others, in one sentence."""
    others = ", ".join(f"{name} {number(value)}" for name, value in row.items() if name not in ("ebm", "floor"))
    return (
        f"{panel.replace('_', '-').capitalize()}: the energy's rollouts lie {number(row['ebm'])} from the truth in Fréchet "
        f"distance ({others}; truth against truth {number(row['floor'])})."
    )
