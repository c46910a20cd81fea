"""`ebmtraj demo`: collect -> train -> rollout -> evaluate -> plan on hand-cube data, by the commands a user would type."""

from __future__ import annotations

import importlib.resources
import shutil
import time
import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer

from ebmtraj.cli.common import Device, Json, Overwrite, Seed, print_json, say, stderr
from ebmtraj.cli.shell import Shell
from ebmtraj.config import build, parse_overrides, read_toml
from ebmtraj.errors import EbmtrajError
from ebmtraj.runs import CLEARED, clear, cores, holds_anything, machine, versions, write_json


@dataclass(frozen=True)
class CollectPart:
    """What to collect, as options of `ebmtraj collect`."""

    env: str
    episodes: int
    steps: int
    options: tuple[str, ...] = ()


@dataclass(frozen=True)
class EvaluatePart:
    """How to measure, as options of `ebmtraj evaluate`."""

    steps: int
    samples: int


@dataclass(frozen=True)
class Training:
    """One model: options of `ebmtraj train transition`, and what follows its --set."""

    options: tuple[str, ...] = ()
    set: tuple[str, ...] = ()


@dataclass(frozen=True)
class Trainings:
    """The models side by side."""

    ebm: Training
    fc: Training
    gaussian: Training


@dataclass(frozen=True)
class PlanPart:
    """A model that plans, what follows its --set, and the task that it carries out on fresh starts."""

    task: str
    episodes: int
    steps: int
    set: tuple[str, ...] = ()


@dataclass(frozen=True)
class DemoRecipe:
    """All that a demo runs."""

    collect: CollectPart
    evaluate: EvaluatePart
    train: Trainings
    plan: PlanPart


PANELS: dict[str, list[str]] = {"unconditional": [], "action_conditional": ["--actions"]}
MARK = "demo.json"  # says that a folder is a demo's and may be replaced; `report.report_results` knows it by this


def demo(
    out: Annotated[Path, typer.Option(help="Folder for all that the demo makes.")] = Path("runs/demo"),
    seed: Seed = 0,
    workers: Annotated[int | None, typer.Option(help="Commands at once, one core each. [default: cores]", min=1)] = None,
    recipe: Annotated[Path | None, typer.Option(help="Another recipe than the built-in one, e.g. a smaller one.")] = None,
    device: Device = "auto",
    overwrite: Overwrite = False,
    json_: Json = False,
) -> None:
    """Collect, train, roll out, evaluate and plan on a simulated hand with a cube, in a few minutes.

    Every stage is an ebmtraj command that you could type; results.json lists them all. It ends with the table of Frechet
    distances, how far plans turn the cube, and a report: one HTML page with all of it.

    Example: ebmtraj demo --out runs/demo
    """
    parts = _read(recipe)
    workers = workers or cores()
    _make_folder(out, overwrite)
    shell = Shell(workers, device)
    began = time.perf_counter()
    results = _stages(parts, out, seed, shell)
    results["seconds"]["total"] = round(time.perf_counter() - began, 1)
    _finish(results, out)
    if json_:
        print_json(results)
        return
    _show(results)


def _stages(parts: DemoRecipe, out: Path, seed: int, shell: Shell) -> dict[str, Any]:
    store = str(out / "data.zarr")
    seconds: dict[str, float] = {}
    c, e, p = parts.collect, parts.evaluate, parts.plan
    trainings = {"ebm": parts.train.ebm, "fc": parts.train.fc, "gaussian": parts.train.gaussian}

    start = time.perf_counter()
    say(f"collecting {c.episodes} episodes of {c.env} with {shell.workers} workers ...")
    collected = shell.run(
        [
            *("collect", store, "--env", c.env, "--episodes", str(c.episodes), "--steps", str(c.steps)),
            *(*c.options, "--seed", str(seed), "--workers", str(shell.workers)),
        ]
    )
    seconds["collect"] = time.perf_counter() - start

    start = time.perf_counter()
    common = ("--seed", str(seed), "--device", shell.device)
    planner = out / "plan"
    jobs = {"plan": ["train", "plan", "--data", store, "--run", str(planner), *common, *_sets(p.set)]}
    jobs |= {  # those that take longest first, so that no core waits for one at the end
        f"{panel}/{name}": [
            *("train", "transition", "--data", store, "--run", str(out / panel / name), *trainings[name].options, *options),
            *(*common, *_sets(trainings[name].set)),
        ]
        for name in ("gaussian", "fc", "ebm")
        for panel, options in PANELS.items()
    }
    say(f"training {len(jobs)} models, {min(shell.workers, len(jobs))} at a time, a core each ...")
    trained = shell.run_all(jobs, {key: out / key for key in jobs})
    seconds["train"] = time.perf_counter() - start

    start = time.perf_counter()
    say("rolling out and evaluating on held-out episodes, planning and executing on fresh starts ...")
    wide = max(1, shell.workers // 2)
    jobs = {
        panel: [
            *("evaluate", *(str(out / panel / name) for name in trainings), "--data", store),
            *("--steps", str(e.steps), "--samples", str(e.samples), *common),
            *("--threads", str(wide), "--quick", "--pictures", str(out / "figures" / panel)),
        ]
        for panel in PANELS
    }
    film, missing = out / "figures" / "plan.gif", _undrawable(c.env)
    jobs["plan"] = [
        *("plan", str(planner), "--task", p.task, "--episodes", str(p.episodes), "--steps", str(p.steps), *common),
        *([] if missing else ["--video", str(film)]),
    ]
    measured = shell.run_all(jobs)
    seconds["evaluate and plan"] = time.perf_counter() - start
    return {
        "frechet": {panel: _by_model(measured[panel], "frechet", "floor") for panel in PANELS},
        "frechet_changes": {panel: _by_model(measured[panel], "frechet_changes", "floor_changes") for panel in PANELS},
        "energy_score": {panel: _by_model(measured[panel], "energy_score", None) for panel in PANELS},
        "frechet_over_time": {panel: _by_model(measured[panel], "frechet_over_time", "floor_over_time") for panel in PANELS},
        "training_seconds": {panel: {name: trained[f"{panel}/{name}"]["seconds"] for name in trainings} for panel in PANELS},
        "starts": _first(measured["unconditional"])["starts"],
        "steps": e.steps,
        "collected": collected,
        "plan": {**measured["plan"], "training_seconds": trained["plan"]["seconds"]},
        "pictures_missing": measured["unconditional"]["pictures_missing"],
        "seconds": {name: round(value, 1) for name, value in seconds.items()},
        "seed": seed,
        "commands": shell.commands,
        "pictures": [
            *(picture for panel in PANELS for picture in measured[panel]["pictures"]),
            *([] if missing else [str(film)]),
        ],
    }


def _finish(results: dict[str, Any], out: Path) -> None:
    """Draw both panels in one figure, write results.json, and all of it as a page."""
    from ebmtraj.report.figures import frechet_figure
    from ebmtraj.report.report_results import demo_report

    figure = frechet_figure(results["frechet_over_time"], out / "frechet.png", 0.04)
    results["figure"] = str(figure)
    results["versions"] = versions()
    results["machine"] = machine()
    write_json(out / "results.json", results)
    results["results"] = str(out / "results.json")
    results["report"] = str(demo_report(out))


def _show(results: dict[str, Any]) -> None:
    from ebmtraj.report.tables import rich_table

    caption = (
        f"Fréchet distance to {results['starts']} held-out episodes, mean over {results['steps']} steps (lower is better)"
    )
    say(f"\n{caption}")
    stderr.print(rich_table(results["frechet"]))
    plan = results["plan"]
    if "progress_rad_per_100" in plan:
        say(
            f"plans for {plan['task']!r} turned the cube {plan['progress_rad_per_100']:.2f} ± {plan['progress_se']:.2f} rad "
            f"in {plan['steps']} steps of {plan['episodes']} fresh starts, {plan['drop_rate']:.0%} dropped"
        )
    if results["pictures_missing"]:
        say(f"no pictures of the hand: {results['pictures_missing']}")
    for label, path in (("figure", results["figure"]), *(("picture", p) for p in results["pictures"])):
        say(f"{label:<8} {path}")
    say(f"report   {results['report']}; open it in any browser")
    say(f"results  {results['results']} ({results['seconds']['total']:.0f} s in all)")


def _sets(pairs: tuple[str, ...]) -> list[str]:
    return [word for pair in pairs for word in ("--set", pair)]


def _undrawable(env: str) -> str | None:
    """Why states can't be drawn here, if they can't."""
    from ebmtraj.envs.pictures import make_picturer

    try:
        make_picturer(env, {}, (16, 16)).close()
    except EbmtrajError as error:
        return str(error)
    return None


def _by_model(measured: dict[str, Any], key: str, floor: str | None) -> dict[str, Any]:
    row = {name: result[key] for name, result in measured["runs"].items()}
    return row if floor is None else {**row, "floor": _first(measured)[floor]}


def _first(measured: dict[str, Any]) -> dict[str, Any]:
    return next(iter(measured["runs"].values()))


def _read(recipe: Path | None) -> DemoRecipe:
    """The built-in recipe or another one, checked before anything is replaced."""
    if recipe is not None:
        found, source = read_toml(recipe), f"demo recipe {recipe}"
    else:
        text = importlib.resources.files("ebmtraj.cli.recipes").joinpath("demo.toml").read_text(encoding="utf-8")
        found, source = tomllib.loads(text), "demo recipe"
    checked = build(DemoRecipe, found, source)
    for given in (checked.train.ebm, checked.train.fc, checked.train.gaussian, checked.plan):
        parse_overrides(given.set)
    return checked


def _make_folder(out: Path, overwrite: bool) -> None:
    if out.exists() and (not out.is_dir() or holds_anything(out)):
        if not (out / MARK).exists():
            raise EbmtrajError(f"{out} exists and is not a demo's folder; choose another --out")
        if not overwrite:
            raise EbmtrajError(f"{out} holds an earlier demo; give --overwrite to replace it, or another --out")
        clear(out, last=MARK)
    try:
        out.mkdir(parents=True, exist_ok=True)
        shutil.rmtree(out / CLEARED, ignore_errors=True)
        (out / MARK).write_text("{}\n", encoding="utf-8")
    except OSError as error:
        raise EbmtrajError(f"can't make {out}: {error.strerror}") from None
