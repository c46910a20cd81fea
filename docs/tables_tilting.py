"""The tables of docs/tilting.md, from docs/results/tilting.json."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

TILTS = {
    "none": "",
    "ratio": " + energy, density ratio",
    "likelihood": " + energy, maximum likelihood (paper 004)",
    "both": " + energy, ratio then likelihood",
}
TOYS = ("25-gaussians", "swiss-roll", "checkerboard")
IMAGES = ("vae", "glf", "flow", "glow", "two-stage", "vae-flow", "energy")
Column = tuple[str, str, Callable[[float], str]]


def _share(value: float) -> str:
    return f"{100 * value:.1f} %"


def _decimals(count: int, times: float = 1) -> Callable[[float], str]:
    return lambda value: f"{times * value:.{count}f}"


TOY_COLUMNS: Sequence[Column] = (
    ("share", "share on the support", _share),
    ("modes", "modes", _decimals(0)),
    ("sliced_wasserstein", "sliced Wasserstein", _decimals(3)),
    ("train_seconds", "training, core s", _decimals(1)),
    ("sample_seconds", "5,000 samples, core s", _decimals(1)),
)
IMAGE_COLUMNS: Sequence[Column] = (
    ("frechet", "Fréchet", _decimals(3)),
    ("frechet_ratio", "after / before", _decimals(2)),
    ("frechet_test", "Fréchet, held-out", _decimals(3)),
    ("frechet_test_ratio", "after / before", _decimals(2)),
    ("kernel", "kernel x 1000", _decimals(2, 1000)),
    ("kernel_test", "kernel x 1000, held-out", _decimals(2, 1000)),
    ("classes", "classes", _decimals(0)),
    ("least_share", "rarest class", _share),
    ("copying", "copying", _decimals(3)),
    ("train_seconds", "training, core s", _decimals(1)),
)


def toys_table(results: dict[str, Any]) -> str:
    """Points of a plane: before, after, and the data itself."""
    return _table(results, TOYS, TOY_COLUMNS)


def images_table(results: dict[str, Any]) -> str:
    """Images: paper 004's Table 1."""
    return _table(results, IMAGES, IMAGE_COLUMNS)


def note(results: dict[str, Any]) -> str:
    """The command, and what it ran on."""
    p = results["protocol"]
    machine = p["machine"]
    return (
        f"`{p['command']}`: medians over {len(p['seeds'])} seeds with least and greatest below them, on {p['data']}, "
        f"{machine['processor']}, one thread a job.\n"
    )


def _table(results: dict[str, Any], models: Sequence[str], columns: Sequence[Column]) -> str:
    titles, summary, floor = results["protocol"]["titles"], results["summary"], results["floor"]
    seeds = len(results["protocol"]["seeds"])
    lines = [f"| {seeds} seed{'s' * (seeds > 1)} | " + " | ".join(title for _, title, _ in columns) + " |"]
    lines.append("| --- |" + " ---: |" * len(columns))
    for model in (name for name in models if name in summary):
        for tilt, said in summary[model].items():
            cells = " | ".join(_cell(said.get(key), shown) for key, _, shown in columns)
            lost = f" ({said['diverged']} of {seeds} diverged)" if said["diverged"] else ""
            lines.append(f"| {titles[model]}{TILTS[tilt]}{lost} | {cells} |")
        if model in floor:
            lines.append(f"| the data itself | {_floor(floor[model], columns)} |")
    if "images" in floor and models is IMAGES:
        lines.append(f"| the data itself | {_floor(floor['images'], columns)} |")
    return "\n".join(lines) + "\n"


def _floor(found: dict[str, Any], columns: Sequence[Column]) -> str:
    return " | ".join("-" if found.get(key) is None else shown(found[key]) for key, _, shown in columns)


def _cell(said: dict[str, float] | None, shown: Callable[[float], str]) -> str:
    if said is None:
        return "-"
    low, middle, high = (shown(said[name]) for name in ("min", "median", "max"))
    return middle if low == high else f"{middle} <sub>{low}–{high}</sub>"


TABLES = {
    "tilting-toys": ("tilting", toys_table),
    "tilting-images": ("tilting", images_table),
    "tilting-note": ("tilting", note),
}
