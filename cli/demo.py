"""`ebmtraj demo`: collect -> train -> rollout -> evaluate on real hand-cube data, by the commands a user would type."""

from __future__ import annotations

import contextlib
import importlib.resources
import json
import shlex
import shutil
import signal
import subprocess
import sys
import threading
import time
import tomllib
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.progress import Progress, TaskID

from ebmtraj.cli.common import Device, Json, Overwrite, Seed, print_json, progress, say, stderr
from ebmtraj.config import build, parse_overrides, read_toml
from ebmtraj.errors import EbmtrajError
from ebmtraj.runs import cores, machine, versions, write_json


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
class DemoRecipe:
    """All that a demo runs."""

    collect: CollectPart
    evaluate: EvaluatePart
    train: Trainings


PANELS: dict[str, list[str]] = {"unconditional": [], "action_conditional": ["--actions"]}
MARK = "demo.json"  # says that a folder is a demo's and may be replaced


def demo(
    out: Annotated[Path, typer.Option(help="Folder for all that the demo makes.")] = Path("runs/demo"),
    seed: Seed = 0,
    workers: Annotated[int | None, typer.Option(help="Commands at once, one core each. [default: cores]", min=1)] = None,
    recipe: Annotated[Path | None, typer.Option(help="Another recipe than the built-in one, e.g. a smaller one.")] = None,
    device: Device = "auto",
    overwrite: Overwrite = False,
    json_: Json = False,
) -> None:
    """Collect, train, roll out and evaluate on a simulated hand with a cube, in a few minutes.

    Every stage is an ebmtraj command that you could type; results.json lists them all. It ends with the table of Frechet
    distances and the paths of figure, strip, GIF and results.

    Example: ebmtraj demo --out runs/demo
    """
    plan = _read(recipe)
    workers = workers or cores()
    _make_folder(out, overwrite)
    shell = _Shell(out, workers, device)
    began = time.perf_counter()
    results = _stages(plan, out, seed, shell)
    results["seconds"]["total"] = round(time.perf_counter() - began, 1)
    _finish(results, out)
    if json_:
        print_json(results)
        return
    _show(results)


def _stages(plan: DemoRecipe, out: Path, seed: int, shell: _Shell) -> dict[str, Any]:
    store = str(out / "data.zarr")
    seconds: dict[str, float] = {}
    c, e = plan.collect, plan.evaluate
    trainings = {"ebm": plan.train.ebm, "fc": plan.train.fc, "gaussian": plan.train.gaussian}

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
    jobs = {
        f"{panel}/{name}": [
            *("train", "transition", "--data", store, "--run", str(out / panel / name), *given.options, *options),
            *("--seed", str(seed), "--device", shell.device, *(word for pair in given.set for word in ("--set", pair))),
        ]
        for name, given in trainings.items()
        for panel, options in PANELS.items()
    }
    say(f"training {len(jobs)} models, {min(shell.workers, len(jobs))} at a time, a core each ...")
    trained = shell.run_all(jobs, {key: out / key for key in jobs})
    seconds["train"] = time.perf_counter() - start

    start = time.perf_counter()
    say("rolling out and evaluating on held-out episodes ...")
    wide = max(1, shell.workers // 2)
    measured = shell.run_all(
        {
            panel: [
                *("evaluate", *(str(out / panel / name) for name in trainings), "--data", store),
                *("--steps", str(e.steps), "--samples", str(e.samples), "--seed", str(seed), "--device", shell.device),
                *("--threads", str(wide), "--quick", "--pictures", str(out / "figures" / panel)),
            ]
            for panel in PANELS
        }
    )
    seconds["evaluate"] = time.perf_counter() - start
    return {
        "frechet": {panel: _by_model(measured[panel], "frechet", "floor") for panel in PANELS},
        "frechet_changes": {panel: _by_model(measured[panel], "frechet_changes", "floor_changes") for panel in PANELS},
        "energy_score": {panel: _by_model(measured[panel], "energy_score", None) for panel in PANELS},
        "frechet_over_time": {panel: _by_model(measured[panel], "frechet_over_time", "floor_over_time") for panel in PANELS},
        "training_seconds": {panel: {name: trained[f"{panel}/{name}"]["seconds"] for name in trainings} for panel in PANELS},
        "starts": _first(measured["unconditional"])["starts"],
        "steps": e.steps,
        "collected": collected,
        "pictures_missing": measured["unconditional"]["pictures_missing"],
        "seconds": {name: round(value, 1) for name, value in seconds.items()},
        "seed": seed,
        "commands": shell.commands,
        "pictures": measured["unconditional"]["pictures"] + measured["action_conditional"]["pictures"],
    }


def _finish(results: dict[str, Any], out: Path) -> None:
    """Draw both panels in one figure and write results.json."""
    from ebmtraj.report.figures import frechet_figure

    figure = frechet_figure(results["frechet_over_time"], out / "frechet.png", 0.04)
    results["figure"] = str(figure)
    results["versions"] = versions()
    results["machine"] = machine()
    write_json(out / "results.json", results)
    results["results"] = str(out / "results.json")


def _show(results: dict[str, Any]) -> None:
    from ebmtraj.report.tables import rich_table

    caption = (
        f"Fréchet distance to {results['starts']} held-out episodes, mean over {results['steps']} steps (lower is better)"
    )
    say(f"\n{caption}")
    stderr.print(rich_table(results["frechet"]))
    if results["pictures_missing"]:
        say(f"no pictures of the hand: {results['pictures_missing']}")
    for label, path in (("figure", results["figure"]), *(("picture", p) for p in results["pictures"])):
        say(f"{label:<8} {path}")
    say(f"results  {results['results']} ({results['seconds']['total']:.0f} s in all)")


def _by_model(measured: dict[str, Any], key: str, floor: str | None) -> dict[str, Any]:
    row = {name: result[key] for name, result in measured["runs"].items()}
    return row if floor is None else {**row, "floor": _first(measured)[floor]}


def _first(measured: dict[str, Any]) -> dict[str, Any]:
    return next(iter(measured["runs"].values()))


def _read(recipe: Path | None) -> DemoRecipe:
    """The built-in recipe or another one, checked before anything is replaced."""
    if recipe is not None:
        plan, source = read_toml(recipe), f"demo recipe {recipe}"
    else:
        text = importlib.resources.files("ebmtraj.cli.recipes").joinpath("demo.toml").read_text(encoding="utf-8")
        plan, source = tomllib.loads(text), "demo recipe"
    checked = build(DemoRecipe, plan, source)
    for given in (checked.train.ebm, checked.train.fc, checked.train.gaussian):
        parse_overrides(given.set)
    return checked


def _make_folder(out: Path, overwrite: bool) -> None:
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        if not (out / MARK).exists():
            raise EbmtrajError(f"{out} exists and is not a demo's folder; choose another --out")
        if not overwrite:
            raise EbmtrajError(f"{out} holds an earlier demo; give --overwrite to replace it, or another --out")
        shutil.rmtree(out)
    try:
        out.mkdir(parents=True, exist_ok=True)
        (out / MARK).write_text("{}\n", encoding="utf-8")
    except OSError as error:
        raise EbmtrajError(f"can't make {out}: {error.strerror}") from None


class _Shell:
    """Runs ebmtraj commands as processes, several at a time, and shows how far each is."""

    def __init__(self, out: Path, workers: int, device: str) -> None:
        self.out, self.workers, self.device = out, workers, device
        self.commands: list[str] = []
        self._running: set[subprocess.Popen[str]] = set()
        self._lock = threading.Lock()

    def run(self, words: list[str]) -> dict[str, Any]:
        """One command, its bar drawn by itself; its JSON object."""
        try:
            return self._json(words, show=True)
        except KeyboardInterrupt:
            self._stop()
            raise

    def run_all(self, jobs: dict[str, list[str]], runs: dict[str, Path] | None = None) -> dict[str, dict[str, Any]]:
        """Several commands, `workers` at a time; with `runs`, a bar follows each training's metrics."""
        with progress() as bar, ThreadPoolExecutor(self.workers) as pool:
            stop = threading.Event()
            watcher = threading.Thread(target=_watch, args=(bar, jobs, runs or {}, stop), daemon=True)
            watcher.start()
            try:
                futures = {key: pool.submit(self._json, words) for key, words in jobs.items()}
                return {key: future.result() for key, future in futures.items()}
            except BaseException:
                pool.shutdown(wait=False, cancel_futures=True)
                self._stop()
                raise
            finally:
                stop.set()
                watcher.join()

    def _json(self, words: list[str], show: bool = False) -> dict[str, Any]:
        with self._lock:
            self.commands.append(shlex.join(["ebmtraj", *words]))
        process = subprocess.Popen(
            [sys.executable, "-m", "ebmtraj", *words, "--json"],
            stdout=subprocess.PIPE,
            stderr=None if show and sys.stderr.isatty() else subprocess.PIPE,
            text=True,
        )
        with self._lock:
            self._running.add(process)
        stdout, errors = process.communicate()
        with self._lock:
            self._running.discard(process)
        if process.returncode != 0:
            lines = [line for line in (errors or "").splitlines() if line.strip()]
            line = lines[-1].removeprefix("error: ") if lines else f"exit code {process.returncode}"
            raise EbmtrajError(f"demo: `ebmtraj {' '.join(words)}` failed: {line}")
        return json.loads(stdout)

    def _stop(self) -> None:
        with self._lock:
            for process in self._running:
                with contextlib.suppress(ProcessLookupError):
                    process.send_signal(signal.SIGTERM)


def _watch(bar: Progress, jobs: dict[str, list[str]], runs: dict[str, Path], stop: threading.Event) -> None:
    """Follow each training by the last row of its metrics."""
    tasks: dict[str, TaskID] = {}
    for key, words in jobs.items():
        steps = next((word.split("=")[1] for word in words if word.startswith("training.steps=")), None)
        tasks[key] = bar.add_task(key, total=int(steps) if steps else None, note="", start=key not in runs)
    while not stop.wait(0.5):
        for key, run in runs.items():
            path = run / "metrics.jsonl"
            if not path.exists():
                continue
            with contextlib.suppress(ValueError, OSError, IndexError):
                row = json.loads(path.read_text(encoding="utf-8").splitlines()[-1])
                bar.start_task(tasks[key])
                bar.update(tasks[key], completed=row["step"], note=row.get("stage", ""))
