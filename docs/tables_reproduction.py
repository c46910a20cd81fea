"""The tables of docs/reproduction.md: what the papers print (docs/papers.json) beside docs/results."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

PAPERS: dict[str, Any] = json.loads((Path(__file__).parent / "papers.json").read_text(encoding="utf-8"))


def _table(header: Sequence[str], rows: Sequence[Sequence[str]], below: str) -> str:
    lines = ["| " + " | ".join(header) + " |", "| --- |" + " ---: |" * (len(header) - 1)]
    return "\n".join([*lines, *("| " + " | ".join(row) + " |" for row in rows)]) + f"\n\n{below}\n"


def _ours(name: str, results: dict[str, Any]) -> str:
    return f"ours: `{results['protocol']['command']}`, [{name}.json](results/{name}.json)."


def trajectories(results: dict[str, Any]) -> str:
    """Fréchet distances of rollouts, and how many times the feed-forward network's is the energy's."""
    rows = []
    for task in ("unconditional", "action-conditional"):
        paper = PAPERS["trajectories"][task]
        found = {name: results["summary"][task][name]["fd100"]["median"] for name in ("cd", "ebm", "fc")}
        rows.append(
            [task, "paper", f"{paper['EBM']:.2f}", "-", f"{paper['FC']:.2f}", f"{paper['FC'] / paper['EBM']:.1f}x", "-"]
        )
        ratios = [f"{found['fc'] / found[name]:.1f}x" for name in ("cd", "ebm")]
        rows.append([task, "ours", *(f"{found[name]:.3g}" for name in ("cd", "ebm", "fc")), *ratios])
    header = ["rollouts of a hand with a cube", "", "energy, contrastive divergence", "energy, score matching", "FC"]
    header += ["FC / contrastive divergence", "FC / score matching"]
    return _table(header, rows, f"{PAPERS['trajectories']['source']}; {_ours('transitions', results)}")


def continual(results: dict[str, Any]) -> str:
    """Class-incremental accuracy."""
    found = {row["learner"]: row for row in results["rows"] if row["scenario"] == "class"}
    names = {"EWC": "ewc", "SI": "si", "NAS": "online-ewc", "LwF": "lwf", "VAE": "vae", "EBM": "paper-ebm"}
    rows = []
    for title, name in names.items():
        mean, deviation = PAPERS["continual"][title]
        own = found[name]
        label = {"NAS": "online EWC (NAS)", "EBM": "conditional EBM of the paper"}.get(title, title)
        rows.append([label, f"{mean:.1f} ± {deviation:.1f}", f"{own['accuracy_mean']:.1f} ± {own['accuracy_std']:.1f}"])
    own = found["ebm"]
    rows.append(["masked EBM", "-", f"{own['accuracy_mean']:.1f} ± {own['accuracy_std']:.1f}"])
    header = ["class-incremental accuracy, %", "paper, split MNIST", "ours, split digits"]
    return _table(header, rows, f"{PAPERS['continual']['source']}; {_ours('continual', results)}")


def foreign(results: dict[str, Any]) -> str:
    """Interpolated images by three scores."""
    rows = []
    ours = {"classifier": "classifier", "IGEBM": "jem-cd", "JEM": "jem"}
    labels = {"classifier": "plain classifier", "IGEBM": "joint energy, contrastive divergence", "JEM": "joint energy"}
    for score, title in (("log_p", "log p(x)"), ("max_p", "max p(y given x)"), ("grad_norm", "-norm of grad log p(x)")):
        for model, name in ours.items():
            said = PAPERS["foreign"][score].get(model)
            own = results["summary"][name].get(f"foreign.{score}.interpolated")
            paper = "-" if said is None else f"{said:.2f} ({model})"
            rows.append([f"{title}, {labels[model]}", paper, "-" if own is None else f"{own['median']:.3f}"])
    header = ["AUROC, interpolated images", "paper, CIFAR-10", "ours, digits"]
    return _table(header, rows, f"{PAPERS['foreign']['source']}; {_ours('jem', results)}")


def tilting(results: dict[str, Any]) -> str:
    """Fréchet distances before and after a tilt."""
    names = {"GLOW": "glow", "VAE": "vae", "GLF": "glf"}
    rows = []
    for title, name in names.items():
        before, after = PAPERS["tilting"][title], PAPERS["tilting"][f"{title} + EBM"]
        found = results["summary"][name]
        own = {tilt: measured["frechet"]["median"] for tilt, measured in found.items()}
        ratios = [f"{b / a:.2f}" for a, b in zip(before, after, strict=True)]
        cells = [f"{own[tilt] / own['none']:.2f}" if tilt in own else "-" for tilt in ("likelihood", "ratio")]
        rows.append([f"{title} + EBM", *ratios, *cells])
    header = ["Fréchet distance after / before", "paper: MNIST", "Fashion", "CIFAR-10"]
    header += ["ours, digits: maximum likelihood", "by density ratio"]
    return _table(header, rows, f"{PAPERS['tilting']['source']}; {_ours('tilting', results)}")


TABLES = {
    "reproduction-trajectories": ("transitions", trajectories),
    "reproduction-continual": ("continual", continual),
    "reproduction-foreign": ("jem", foreign),
    "reproduction-tilting": ("tilting", tilting),
}
