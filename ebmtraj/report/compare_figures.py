"""Pictures of a comparison: how well each model is told from the truth, distances over time, and a film strip of all."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ebmtraj.datasets.store import Store
from ebmtraj.errors import EbmtrajError
from ebmtraj.report.compare import Job, film_of
from ebmtraj.report.figures import frechet_figure
from ebmtraj.report.style import GREY, INK, label_axis, look, new_figure, ordered, save, title
from ebmtraj.report.video import strip

STRIP_TILE = 200  # pixels a side


def draw_comparison(
    results: Mapping[str, Any], jobs: Sequence[Job], store: Store, folder: Path
) -> tuple[list[str], str | None]:
    """Write all pictures; returns their paths, and why there is no film strip, or None."""
    paths = [
        str(frechet_figure(median_curves(results), folder / "frechet.png", store.control_timestep)),
        str(c2st_figure(results, folder / "c2st.png")),
    ]
    try:
        for task in results["protocol"]["tasks"]:
            rows = film_rows([job for job in jobs if job.task == task and job.seed == jobs[0].seed])
            name = folder / f"strip_{task.replace('-', '_')}.png"
            if rows:
                env = store.info()["env"]
                paths.append(str(strip(rows, env, name, control_timestep=store.control_timestep, tile=STRIP_TILE)))
    except EbmtrajError as error:
        return paths, str(error)
    return paths, None


def median_curves(results: Mapping[str, Any]) -> dict[str, dict[str, list[float]]]:
    """Frechet distance over time, median over the seeds: {task: {model: (T+1,)}}, the floor with them."""
    curves: dict[str, dict[str, list[float]]] = {}
    for task, floor in results["floor"].items():
        rows = [row for row in results["rows"] if row["task"] == task and row["fd_over_time"] is not None]
        found = {
            model: [float(x) for x in np.median([row["fd_over_time"] for row in rows if row["model"] == model], axis=0)]
            for model in ordered({row["model"] for row in rows})
        }
        if found and floor is not None:
            curves[task] = {**found, "floor": floor["fd_over_time"]}
    return curves


def film_rows(jobs: Sequence[Job]) -> dict[str, np.ndarray]:
    """The truth and each job's first future, all from one start: {label: (T+1, S)}."""
    films = {job.row.name: film for job in jobs if (film := film_of(job)) is not None}
    if not films:
        return {}
    return {"truth": next(iter(films.values()))["truth"], **{name: films[name]["model"] for name in ordered(films)}}


def c2st_figure(results: Mapping[str, Any], path: Path) -> Path:
    """Draw how well a classifier tells rollouts from the truth: a dot a seed, a bar at the median, and write it as PNG.

    One panel a task, best model on top; the dashed line is truth against truth. Raises `EbmtrajError` where nothing was
    measured.
    """
    panels = {
        task: {
            model: [row["c2st_rollout"] for row in results["rows"] if (row["task"], row["model"]) == (task, model)]
            for model in results["summary"][task]
        }
        for task in results["protocol"]["tasks"]
    }
    panels = {
        task: {model: kept for model, values in models.items() if (kept := [v for v in values if v is not None])}
        for task, models in panels.items()
    }
    panels = {task: models for task, models in panels.items() if models}
    if not panels:
        raise EbmtrajError(f"no C2ST to draw in {path}: no model was measured")
    most = max(map(len, panels.values()))
    figure, axes = new_figure(len(panels), height=1.3 + 0.27 * most)
    for axis, (task, models) in zip(axes, panels.items(), strict=True):
        order = sorted(models, key=lambda model: statistics.median(models[model]), reverse=True)  # best on top
        for place, model in enumerate(order):
            style = look(model, order)
            middle = statistics.median(models[model])
            axis.plot([middle, middle], [place - 0.32, place + 0.32], color=style.color, linewidth=3.2, zorder=3)
            axis.plot(models[model], [place] * len(models[model]), "o", color=style.color, alpha=0.55, markersize=6, mew=0)
            right = middle > 0.75
            axis.annotate(
                f"{middle:.3f}",
                (min(models[model]) if right else max(models[model]), place),
                xytext=(-7 if right else 7, 0),
                textcoords="offset points",
                ha="right" if right else "left",
                va="center",
                fontsize=10,
                color=INK,
            )
        null = (results["floor"].get(task) or {}).get("c2st_rollout")
        if null is not None:
            axis.axvline(null, color=GREY, linestyle=(0, (4, 3)), linewidth=1.6)
        axis.set_yticks(range(len(order)), [look(model, order).label for model in order])
        axis.set_xlim(0.48, 1.02)
        axis.set_ylim(-0.6, len(order) - 0.4)
        axis.grid(False, axis="y")
        label_axis(axis, title(task), "AUC, rollout against truth", "")
    return save(figure, path)
