"""The settings that are tried for each learner, on validation images and seeds of their own; the best mean is kept."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from typing import Any

_SLOPES = (3e-4, 1e-3)
_SOFTMAX: Mapping[str, Sequence[Any]] = {"learning_rate": _SLOPES, "heads": ("seen", "own")}
GRIDS: Mapping[str, Mapping[str, Sequence[Any]]] = {
    "ebm": {"keep": (0.1, 0.2), "noise": (0.3, 0.6, 1.0, 1.5)},
    "ebm-shift": {"noise": (0.3, 0.6, 1.0, 1.5)},
    "ebm-free": {"keep": (0.05, 0.1), "noise": (0.6, 1.0), "learning_rate": _SLOPES},
    "ebm-cd": {"keep": (0.1, 0.2), "learning_rate": _SLOPES},
    "paper-ebm": {"gated": (1, 2), "gate_spread": (0.5, 1.0, 2.0), "steps": (50, 100), "learning_rate": _SLOPES},
    "label-contrast": {"gated": (1, 2), "gate_spread": (0.5, 1.0, 2.0), "steps": (50, 200), "learning_rate": _SLOPES},
    "vae": {"latent": (5, 20), "learning_rate": _SLOPES},
    "fine-tune": {"steps": (50, 200), **_SOFTMAX},
    "ewc": {"steps": (50, 200), "weight": (1e1, 1e3, 1e5), **_SOFTMAX},
    "online-ewc": {"steps": (50, 200), "weight": (1e1, 1e3, 1e5), **_SOFTMAX},
    "si": {"steps": (50, 200), "weight": (1.0, 10.0, 100.0), **_SOFTMAX},
    "lwf": {"steps": (50, 200), "weight": (0.3, 1.0, 3.0, 10.0), **_SOFTMAX},
    "separate": {"noise": (0.3, 0.6, 1.0, 1.5)},
    "nearest-mean": {},
    "class-gaussian": {"ridge": (0.003, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0)},
    "tilt": {"ridge": (0.01, 0.03, 0.1, 0.3, 1.0), "learning_rate": (1e-3, 3e-3)},
    "replay": {"learning_rate": _SLOPES},
    "joint": {"learning_rate": _SLOPES},
}


def choices(grid: Mapping[str, Sequence[Any]]) -> list[dict[str, Any]]:
    """All combinations of a grid."""
    return [dict(zip(grid, values, strict=True)) for values in itertools.product(*grid.values())]
