"""One house style for every picture: which colour, dash and label each model has, and fonts that read at README width."""

from __future__ import annotations

import io
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine

from ebmtraj.runs import write_atomic

INK = "#222222"
GREY = "#8a8a8a"
WIDTH = 9.0  # inches; at 200 dots an inch twice the width of a README's column, so that it is sharp on any screen
DPI = 200


@dataclass(frozen=True)
class Look:
    """How a model is drawn, the same in every picture."""

    label: str
    color: str
    dash: str | tuple[float, tuple[float, ...]] = "-"


# Okabe & Ito's colours, told apart by colour-blind readers, and three darker ones; dashes tell them apart in print.
_BLUE, _GREEN, _VERMILLION, _PURPLE, _ORANGE, _SKY = (
    "#0072b2",
    "#009e73",
    "#d55e00",
    "#cc79a7",
    "#e69f00",
    "#56b4e9",
)
_BROWN, _VIOLET, _OLIVE = "#7f3b08", "#6a3d9a", "#8c8c00"
_DASHED, _DOTTED, _DASH_DOT = (0, (5, 1.2)), (0, (1.2, 1.2)), (0, (7, 1.2, 1.5, 1.2))
LOOKS: dict[str, Look] = {
    "ebm": Look("energy (EBM)", _BLUE),
    "energy": Look("energy (EBM)", _BLUE),
    "dsm": Look("energy (DSM)", _BLUE),
    "ebm-corrected": Look("energy, Langevin corrected", _BLUE, _DASHED),
    "cd": Look("energy (CD)", _PURPLE),
    "icd": Look("energy (improved CD)", _PURPLE, _DASHED),
    "field": Look("vector field, our base", _SKY),
    "field-corrected": Look("vector field, corrected", _SKY, _DASHED),
    "edm": Look("diffusion (EDM)", _ORANGE),
    "flow": Look("flow matching", _OLIVE, _DASHED),
    "gru": Look("GRU, mixture head", _VIOLET, _DASH_DOT),
    "mdn": Look("mixture density (MDN)", _BROWN, _DASHED),
    "ratio": Look("MDN, tilted by a density ratio", _BROWN, _DOTTED),
    "ensemble": Look("ensemble of Gaussians", _GREEN, _DOTTED),
    "gaussian": Look("Gaussian", _GREEN, _DASHED),
    "fc-delta": Look("FC on deltas", _VERMILLION, _DOTTED),
    "fc": Look("feed-forward (FC)", _VERMILLION, _DASH_DOT),
    "floor": Look("floor (truth against truth)", GREY, (0, (4, 3))),
    "truth": Look("truth", INK),
}
_SPARE = ("#a6761d", "#1b7837", "#c51b7d")
ORDER = (
    *("truth", "ebm", "ebm-corrected", "energy", "dsm", "cd", "icd", "field", "field-corrected"),
    *("edm", "flow", "gru", "mdn", "ratio", "ensemble"),
    *("gaussian", "fc-delta", "fc"),
)


def look(name: str, others: Iterable[str] = ()) -> Look:
    """The look of a model; one that isn't known takes the spare colour of its place among `others`."""
    if name in LOOKS:
        return LOOKS[name]
    unknown = sorted({other for other in others if other not in LOOKS} | {name})
    return Look(name.replace("_", " "), _SPARE[unknown.index(name) % len(_SPARE)])


def ordered(names: Iterable[str]) -> list[str]:
    """Model names in the order of every legend and table: the known ones, the others as they come, last the floor."""

    def place(name: str) -> int:
        return len(ORDER) + (name == "floor") if name not in ORDER else ORDER.index(name)

    return sorted(names, key=place)


def title(name: str) -> str:
    """A key such as `action_conditional` as a person writes it."""
    return name.replace("action_conditional", "action-conditional").replace("_", " ")


def new_figure(panels: int, height: float = 3.7) -> tuple[Figure, list[Any]]:
    """A figure with this many panels side by side, in the house style, and its axes."""
    figure = Figure(
        figsize=(WIDTH, height), layout=ConstrainedLayoutEngine(w_pad=0.08, h_pad=0.06, wspace=0.04), facecolor="white"
    )
    FigureCanvasAgg(figure)
    axes = list(figure.subplots(1, panels, squeeze=False)[0])
    for axis in axes:
        axis.tick_params(labelsize=11, colors=INK, width=0.8)
        axis.grid(True, which="major", color="#e4e4e4", linewidth=0.8)
        axis.set_axisbelow(True)
        for side, spine in axis.spines.items():
            spine.set_visible(side in ("left", "bottom"))
            spine.set_color("#b0b0b0")
    return figure, axes


def label_axis(axis: Any, title: str, x: str, y: str) -> None:
    """Title and axis labels of a panel, with the unit in each label."""
    axis.set_title(title, fontsize=13, color=INK, pad=8)
    axis.set_xlabel(x, fontsize=12, color=INK)
    axis.set_ylabel(y, fontsize=12, color=INK)


def save(figure: Figure, path: Path) -> Path:
    """Write the figure as PNG, atomically and with the same bytes each time; raises `EbmtrajError` where it can't."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=DPI, metadata={"Software": None})
    write_atomic(path, buffer.getvalue())
    return path
