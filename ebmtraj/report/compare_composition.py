"""Composition measured: concepts of sprites trained apart and put together, pairs never seen, and densities of the plane.

A job is a seed: it trains the concepts and the models of pairs in a folder of its own, draws of every composition and
reads the draws with one judge (`evaluation.sprite_judge`).
"""

from __future__ import annotations

import dataclasses
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ebmtraj.datasets.images import open_images
from ebmtraj.datasets.sprites import SHAPES
from ebmtraj.errors import EbmtrajError
from ebmtraj.evaluation.sprite_judge import (
    sprite_judge,
)
from ebmtraj.images.compose import COMPOSING
from ebmtraj.images.fit import load_image_recipe
from ebmtraj.report.jobs import OUTCOME, finite, open_folder, same
from ebmtraj.runs import machine, read_json, versions

SIDE = 16  # pixels of a sprite
CONCEPTS: Mapping[str, str] = {"scale": "scale", "shape": "shape", "place": "x,y"}  # run: condition
PAIRS: Mapping[str, str] = {"sum": "sum", "joint": "joint", "joint-relative": "joint-relative"}
LONGER = ["training.steps=5200", "network.prior_share=0.577"]  # 3,000 steps for E(x), as all compositions rest on it
EXCLUDED = SHAPES.index("heart")
TWO_PLACES = ((6, 16), (25, 16))  # columns and rows of `PLACES`
PLANE: Mapping[str, str] = {
    "and": "ring:1.4,0.25 & bar:0,0,30,4,0.4",
    "or": "gaussian:-1.2,-0.6,0.35 | ring:1.6,0.2",
    "not": "grid:3,0.45 & ~gaussian:0,0,0.8",
    "nested": "(ring:1.8,0.25 | gaussian:0,0,0.4) & ~bar:1.2,0,90,4,0.4",
}
NOT_WEIGHT = 20.0  # of ~heart, chosen on validation draws
WARM, WARM_GUIDANCE = "-warm", 8.0  # rows at temperature 1, and what a factor counts there
TITLES: Mapping[str, str] = {
    "size-place": "size & position",
    "size-place-warm": "the same, at temperature 1, weights of 8",
    "size-place-uncorrected": "the same, without corrector steps, weights of 8",
    "three": "shape & size & position",
    "three-warm": "the same, at temperature 1, weights of 8",
    "three-uncorrected": "the same, without corrector steps, weights of 8",
    "three-plain-warm": "the same, at temperature 1, weights of 1",
    "three-literal-warm": "the same, at temperature 1, weights of 1 and E(x) counted three times (papers 000, 003)",
    "or": "position or position",
    "not": "not heart",
    "not-unbounded": "the same, by -E (paper 003)",
    "prior": "nothing asked for: p(x)",
    "prior-warm": "the same, at temperature 1",
    "sum-seen": "sum of two energies, seen pairs",
    "sum-seen-warm": "the same, at temperature 1",
    "sum-novel": "sum of two energies, novel pairs",
    "sum-novel-warm": "the same, at temperature 1",
    "joint-seen": "joint conditional model, seen pairs",
    "joint-seen-warm": "the same, at temperature 1",
    "joint-novel": "joint conditional model, novel pairs",
    "joint-novel-warm": "the same, at temperature 1",
    "joint-relative-seen": "joint model that sees relative places, seen pairs",
    "joint-relative-seen-warm": "the same, at temperature 1",
    "joint-relative-novel": "joint model that sees relative places, novel pairs",
    "joint-relative-novel-warm": "the same, at temperature 1",
}


@dataclass(frozen=True)
class CompositionComparison:
    """What is measured, and how."""

    seeds: tuple[int, ...]
    runs: Path
    split: str = "test"  # which draws of factors are asked for; validation to choose settings
    samples: int = 160
    steps: int | None = None  # of each training; None: the recipes' own

    @property
    def judge_steps(self) -> int:
        """For which the judge is trained."""
        return self.steps or 2500

    def alike(self) -> dict[str, Any]:
        """What a resumed comparison may not change."""
        return {"compares": "composition", "split": self.split, "samples": self.samples, "steps": self.steps}


@dataclass(frozen=True)
class CompositionJob:
    """One seed."""

    seed: int
    comparison: CompositionComparison

    @property
    def path(self) -> Path:
        """Its folder."""
        return self.comparison.runs / f"seed-{self.seed}"

    @property
    def label(self) -> str:
        """What a progress bar calls it."""
        return f"seed {self.seed}"

    def recipes(self) -> dict[str, tuple[Path, Any]]:
        """Every training's folder and recipe, in order; a concept after the first takes the first one's E(x)."""
        found: dict[str, tuple[Path, Any]] = {}
        prior = self.path / "scale"
        for name, condition in CONCEPTS.items():
            changes = LONGER if name == "scale" else [f"network.prior={prior}", "training.steps=2200"]
            given = {"model": "concept", "conditional": True, "condition": condition, "data": "sprites"}
            found[name] = self.path / name, self._recipe(changes, given)
        for name, parts in PAIRS.items():
            given = {"model": "pair", "conditional": True, "condition": "scale,x,y", "data": "sprites-seen"}
            found[f"pair-{name}"] = self.path / f"pair-{name}", self._recipe([f"network.parts={parts}"], given)
        return found

    def _recipe(self, changes: list[str], given: dict[str, Any]) -> Any:
        if self.comparison.steps is not None:
            changes = [*changes, f"training.steps={self.comparison.steps}"]
        recipe = load_image_recipe(None, changes, given)
        return dataclasses.replace(recipe, training=dataclasses.replace(recipe.training, seed=self.seed))

    def outcome(self) -> dict[str, Any] | None:
        """What it came to, or None where it is not done."""
        path = self.path / OUTCOME
        found: dict[str, Any] | None = read_json(path) if path.exists() else None
        return found


def prepare_composition(
    comparison: CompositionComparison, *, resume: bool = False, overwrite: bool = False
) -> list[CompositionJob]:
    """Make the folder of runs, or go on with it, and list the jobs; raises `EbmtrajError` as `open_folder`."""
    if comparison.split not in ("validation", "test"):
        raise EbmtrajError(f"--split {comparison.split}: use test, or validation to choose settings")
    open_folder(comparison.runs, comparison.alike(), resume=resume, overwrite=overwrite)
    jobs = [CompositionJob(seed, comparison) for seed in comparison.seeds]
    for job in jobs:
        done = job.outcome()
        if done is not None:
            same(done.get("samples"), comparison.samples, str(job.path))
    return jobs


def composition_results(jobs: Sequence[CompositionJob], *, command: str = "") -> dict[str, Any]:
    """The object of a comparison whose jobs are all done; raises `EbmtrajError` where one is not."""
    c = jobs[0].comparison
    _, judged = sprite_judge(SIDE, c.runs, c.judge_steps)
    rows: list[dict[str, Any]] = []
    trained: list[dict[str, Any]] = []
    for job in jobs:
        outcome = job.outcome()
        if outcome is None:
            raise EbmtrajError(f"{job.path} is not done; run the comparison again with --resume")
        rows += [{"row": name, "seed": job.seed, **facts} for name, facts in outcome["rows"].items()]
        rows += [{"row": f"plane, {name}", "seed": job.seed, **facts} for name, facts in outcome["plane"].items()]
        trained += [{"training": name, "seed": job.seed, **facts} for name, facts in outcome["training"].items()]
    recipes = {name: dataclasses.asdict(recipe) for name, (_, recipe) in jobs[0].recipes().items()}
    return {
        "protocol": {
            "command": command,
            "split": c.split,
            "samples": c.samples,
            "seeds": [job.seed for job in jobs],
            "data": {name: open_images(name).content_hash for name in ("sprites", "sprites-seen")},
            "judge": judged,
            "composing": dataclasses.asdict(COMPOSING),
            "weights": {"factors_warm": WARM_GUIDANCE, "not": NOT_WEIGHT},
            "plane": dict(PLANE),
            "titles": dict(TITLES),
            "machine": machine(),
            "versions": versions(),
            "recipes": finite({name: {**r, "network": {**r["network"], "prior": ""}} for name, r in recipes.items()}),
        },
        "summary": {name: spread([r for r in rows if r["row"] == name]) for name in dict.fromkeys(r["row"] for r in rows)},
        "training": {
            name: spread([r for r in trained if r["training"] == name])
            for name in dict.fromkeys(r["training"] for r in trained)
        },
        "rows": rows,
    }


def spread(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Median, least and greatest of each number over the seeds."""
    said: dict[str, Any] = {}
    for name in dict.fromkeys(key for row in rows for key in row if key != "seed"):
        values = [row[name] for row in rows if isinstance(row.get(name), int | float)]
        if values:
            said[name] = {"median": round(statistics.median(values), 5), "min": min(values), "max": max(values)}
    return said
