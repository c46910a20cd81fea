"""Figures: Frechet distance over time, and the course of a training."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator
from numpy.typing import ArrayLike

from ebmtraj.errors import EbmtrajError
from ebmtraj.report.style import GREY, label_axis, look, new_figure, ordered, save, title

ROUNDING = 1e-6  # a distance below this is zero but for rounding


def frechet_figure(curves: Mapping[str, Mapping[str, ArrayLike]], path: Path, control_timestep: float | None = None) -> Path:
    """Write `frechet_chart` as PNG; raises `EbmtrajError` where there is nothing to draw."""
    return save(frechet_chart(curves, control_timestep), path)


def frechet_chart(curves: Mapping[str, Mapping[str, ArrayLike]], control_timestep: float | None = None) -> Figure:
    """Draw Frechet distance over time, one panel a kind of model, one line a model.

    curves: {panel: {model: (T+1,) values}}; `floor` is the dashed grey line. `control_timestep` in seconds is named beside
    the steps. Zeros, as at the start, where every model stands on the truth, are left out of the logarithmic axis.
    Paper: "Implicit Generation and Modeling with EBMs", figure 13. Raises `EbmtrajError` where there is nothing to draw.
    """
    panels = {name: dict(lines) for name, lines in curves.items() if lines}
    if not panels:
        raise EbmtrajError("no curves to draw; evaluate a model first: ebmtraj evaluate RUN --data STORE")
    everyone = ordered({name for lines in panels.values() for name in lines})
    columns = min(4, len(everyone)) if len(everyone) <= 6 else 3
    figure, axes = new_figure(len(panels), height=3.7 if len(everyone) <= 6 else 4.0 + 0.15 * len(everyone))
    handles: dict[str, Any] = {}
    for axis, (panel, lines) in zip(axes, panels.items(), strict=True):
        longest = 1
        for name in ordered(lines):
            values = np.asarray(lines[name], dtype=float)
            shown = np.where(np.isfinite(values) & (values > ROUNDING), values, np.nan)
            style = look(name, everyone)
            floor = name == "floor"
            (handles[name],) = axis.plot(
                np.arange(len(values)),
                shown,
                color=style.color,
                linestyle=style.dash,
                linewidth=1.8 if floor or len(everyone) > 6 else 2.4,
                label=style.label,
                zorder=2 if floor else 3,
            )
            longest = max(longest, len(values) - 1)
        axis.set_yscale("log")
        axis.set_xlim(0, longest)
        axis.xaxis.set_major_locator(MaxNLocator(5, integer=True))
        axis.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        unit = f" ({control_timestep * 1e3:g} ms each)" if control_timestep else ""
        label_axis(axis, title(panel), f"control steps{unit}", "Fréchet distance (z-scored)" if axis is axes[0] else "")
    lowest = min(axis.get_ylim()[0] for axis in axes)
    highest = max(axis.get_ylim()[1] for axis in axes)
    for axis in axes:  # one scale, so that the panels compare
        axis.set_ylim(lowest, highest)
        if highest < 15 * lowest:  # within a decade only these have labels, in powers of ten
            axis.yaxis.set_minor_formatter(FuncFormatter(lambda value, _: f"{value:g}" if f"{value:e}"[0] in "1235" else ""))
    figure.legend(
        handles=[handles[name] for name in ordered(handles)],
        loc="outside lower center",
        ncols=columns,
        frameon=False,
        fontsize=12,
        handlelength=2.6,
    )
    return figure


def training_figure(rows: Sequence[Mapping[str, Any]], path: Path) -> Path:
    """Write `training_chart` as PNG; raises `EbmtrajError` where no row holds a loss."""
    return save(training_chart(rows), path)


def training_chart(rows: Sequence[Mapping[str, Any]]) -> Figure:
    """Draw training and validation loss over steps, one panel a stage.

    rows: the rows of `metrics.jsonl`; those with a `step` and a `loss` or a `validation` are drawn, under their `stage`.
    The faint line is the loss as logged, the full one its running mean, dots are validation; the circled dot is the best,
    and a dotted upright line is where the guard rolled a divergence back (rows that it undid are left out).
    Raises `EbmtrajError` where no row holds a loss.
    """
    stages: dict[str, list[Mapping[str, Any]]] = {}
    rollbacks: dict[str, list[int]] = {}
    for row in kept_rows(rows):
        if "event" in row:
            rollbacks.setdefault(str(row.get("stage", "training")), []).append(row["step"])
        elif "step" in row and any(_finite(row.get(key)) for key in ("loss", "validation")):
            stages.setdefault(str(row.get("stage", "training")), []).append(row)
    if not stages:
        raise EbmtrajError("no losses to draw: metrics.jsonl has no row with a step and a loss")
    figure, axes = new_figure(len(stages))
    handles: dict[str, Any] = {}
    for axis, (stage, logged) in zip(axes, stages.items(), strict=True):
        steps, loss = _series(logged, "loss")
        color = look("ebm").color
        if len(loss):
            axis.plot(steps, loss, color=color, alpha=0.25, linewidth=1.0)
            (handles["training"],) = axis.plot(steps, _running_mean(loss), color=color, linewidth=2.2, label="training")
        steps, validation = _series(logged, "validation")
        if len(validation):
            color = look("fc").color
            (handles["validation"],) = axis.plot(
                steps, validation, "o--", color=color, markersize=4, linewidth=1.4, label="validation"
            )
            best = int(np.argmin(validation))
            (handles["best"],) = axis.plot(
                steps[best],
                validation[best],
                "o",
                markersize=11,
                markerfacecolor="none",
                color=color,
                linestyle="none",
                label="best validation",
            )
        for step in rollbacks.get(stage, []):
            handles["rolled back"] = axis.axvline(step, color=GREY, linestyle=":", linewidth=1.6, label="rolled back")
        axis.xaxis.set_major_locator(MaxNLocator(4, integer=True))
        axis.xaxis.set_major_formatter(
            FuncFormatter(lambda value, _: f"{value / 1000:g}k" if value >= 1000 else f"{value:g}")
        )
        label_axis(axis, title(stage), "optimiser steps", "loss (no unit)" if axis is axes[0] else "")
        # The first few losses would press the rest into a line.
        everything = np.concatenate([loss[len(loss) // 20 :], validation])
        low, high = np.percentile(everything, [0, 99.5])
        margin = 0.06 * (high - low) or 0.5
        axis.set_ylim(low - margin, high + margin)
    figure.legend(
        handles=list(handles.values()), loc="outside lower center", ncols=4, frameon=False, fontsize=12, handlelength=2.6
    )
    return figure


def progress_chart(rows: Sequence[Mapping[str, Any]]) -> Figure:
    """Draw how a data policy came on over its iterations: how far it turned the cube and how often it dropped it.

    rows: those of its `metrics.jsonl`, with `iteration`, `turned` and `drops`, both per 100 steps.
    """
    figure, axes = new_figure(2)
    for axis, key, name, unit in zip(
        axes, ("turned", "drops"), ("turned about the command", "drops"), ("rad per 100 steps", "per 100 steps"), strict=True
    ):
        pairs = [(row["iteration"], row[key]) for row in rows if _finite(row.get(key)) and "iteration" in row]
        axis.plot(*np.array(pairs, dtype=float).reshape(-1, 2).T, color=look("ebm").color, linewidth=2.0)
        label_axis(axis, name, "iterations", unit)
    return figure


def kept_rows(rows: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """Rows without those that a later roll-back to an earlier step undid."""
    kept: list[Mapping[str, Any]] = []
    for row in rows:
        if "event" in row:
            kept = [one for one in kept if "event" in one or one.get("step", 0) <= row["step"]]
        kept.append(row)
    return kept


def _finite(value: float | None) -> bool:
    return value is not None and math.isfinite(value)


def _series(rows: Sequence[Mapping[str, Any]], key: str) -> tuple[np.ndarray, np.ndarray]:
    pairs = [(row["step"], row[key]) for row in rows if _finite(row.get(key))]
    steps, values = np.array(pairs, dtype=float).reshape(-1, 2).T
    return steps, values


def _running_mean(values: np.ndarray) -> np.ndarray:
    """Centred mean over a twentieth of the curve, over fewer values toward its ends."""
    reach = max(1, len(values) // 40)
    sums = np.concatenate([[0.0], np.cumsum(values)])
    places = np.arange(len(values))
    start, end = np.maximum(places - reach, 0), np.minimum(places + reach + 1, len(values))
    return (sums[end] - sums[start]) / (end - start)
