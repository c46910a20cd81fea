"""Composition measured: concepts of sprites trained apart and put together, pairs never seen, and densities of the plane.

A job is a seed: it trains the concepts and the models of pairs in a folder of its own, draws of every composition and
reads the draws with one judge (`evaluation.sprite_judge`).
"""

from __future__ import annotations

import dataclasses
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from threadpoolctl import threadpool_limits
from torch import Tensor

from ebmtraj.datasets.images import open_images
from ebmtraj.datasets.sprites import PLACES, SCALES, SHAPES
from ebmtraj.device import generator, no_denormals, use_threads
from ebmtraj.energies.compose import And, Composed, Shifted
from ebmtraj.errors import EbmtrajError
from ebmtraj.evaluation.sprite_judge import (
    REACH_PX,
    Reading,
    Validity,
    random_factors,
    reading_errors,
    sprite_judge,
    truth_of,
)
from ebmtraj.images.compose import load_concepts
from ebmtraj.images.fit import load_image_recipe, train_image
from ebmtraj.images.registry import load_image_model
from ebmtraj.parallel import open_pool
from ebmtraj.report.jobs import OUTCOME, finite, open_folder, same
from ebmtraj.report.plane import ANNEALED, PlaneSamples, plane_composition, plane_facts, sample_plane, shorter
from ebmtraj.runs import cores, machine, read_json, versions, write_json
from ebmtraj.training.checkpoint import load_tensors, save_tensors

SIDE, SHOWN = 16, 24  # pixels of a sprite; pictures kept of each row
CONCEPTS: Mapping[str, str] = {"scale": "scale", "shape": "shape", "place": "x,y"}  # run: condition
PAIRS: Mapping[str, str] = {"sum": "sum", "joint": "joint", "joint-relative": "joint-relative"}
EXCLUDED = SHAPES.index("heart")
TWO_PLACES = ((6, 16), (25, 16))  # columns and rows of `PLACES`
PLANE: Mapping[str, str] = {
    "and": "ring:1.4,0.25 & bar:0,0,30,4,0.4",
    "or": "gaussian:-1.2,-0.6,0.35 | ring:1.6,0.2",
    "not": "grid:3,0.45 & ~gaussian:0,0,0.8",
    "nested": "(ring:1.8,0.25 | gaussian:0,0,0.4) & ~bar:1.2,0,90,4,0.4",
}
TITLES: Mapping[str, str] = {
    "size-place": "size & position",
    "size-place-uncorrected": "the same, without corrector steps",
    "three": "shape & size & position",
    "three-plain": "the same, weights of 1",
    "three-uncorrected": "the same, without corrector steps",
    "three-literal": "the same, weights of 1 and E(x) counted three times (papers 000, 003)",
    "or": "position or position",
    "not": "not heart",
    "not-unbounded": "the same, by -E (paper 003)",
    "prior": "nothing asked for: p(x)",
    "sum-seen": "sum of two energies, seen pairs",
    "sum-novel": "sum of two energies, novel pairs",
    "joint-seen": "joint conditional model, seen pairs",
    "joint-novel": "joint conditional model, novel pairs",
    "joint-relative-seen": "joint model that sees relative places, seen pairs",
    "joint-relative-novel": "joint model that sees relative places, novel pairs",
}


@dataclass(frozen=True)
class CompositionComparison:
    """What is measured, and how."""

    seeds: tuple[int, ...]
    runs: Path
    split: str = "test"  # which draws of factors are asked for; validation to choose settings
    samples: int = 160
    steps: int | None = None  # of each training; None: the recipes' own

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
            changes = [] if name == "scale" else [f"network.prior={prior}", "training.steps=650"]
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


def run_composition_jobs(
    jobs: Sequence[CompositionJob],
    *,
    workers: int = 0,
    on_done: Callable[[CompositionJob, dict[str, Any]], None] = lambda job, outcome: None,
) -> None:
    """Train and measure what is not done, `workers` seeds at once, one thread each."""
    use_threads(1)
    with no_denormals():
        sprite_judge(SIDE, jobs[0].comparison.runs)
    for data in ("sprites", "sprites-seen"):
        open_images(data)  # made once, before several want it
    waiting = [job for job in jobs if job.outcome() is None]
    if waiting:
        with open_pool(min(workers or cores(), len(waiting))) as pool:
            for job, outcome in zip(waiting, pool.map(work, waiting, lambda job: str(job.path)), strict=True):
                on_done(job, outcome)


def work(job: CompositionJob) -> dict[str, Any]:
    """Train a seed's models, draw, measure, and write down what it came to; goes on where it was killed."""
    use_threads(1)
    outcome: dict[str, Any] = {"samples": job.comparison.samples, "training": {}}
    with threadpool_limits(1), no_denormals():
        for name, (path, recipe) in job.recipes().items():
            result, _ = train_image(recipe, path, device="cpu", resume=True)
            outcome["training"][name] = {"steps": result.steps, "seconds": round(result.seconds, 1)}
        bench = Bench(job)
        outcome["rows"] = {**bench.concepts(), **bench.pairs()}
        outcome["plane"] = plane_rows(job.seed)
        bench.keep()
    write_json(job.path / OUTCOME, finite(outcome))
    return outcome


class Bench:
    """Draws and readings of one seed's models."""

    def __init__(self, job: CompositionJob) -> None:
        self.job, self.count = job, job.comparison.samples
        self.judge, _ = sprite_judge(SIDE, job.comparison.runs)
        self.valid = Validity(self.judge)
        self.concept = load_concepts([job.path / name for name in CONCEPTS])
        first = 100_000 if job.comparison.split == "test" else 200_000
        self.factors = torch.from_numpy(random_factors(self.count, first + job.seed)).float()
        self.shown: dict[str, Tensor] = {}

    def labels(self, factors: Tensor) -> dict[str, Tensor]:
        """The classes of sprites by factor."""
        scale = ((factors[:, 1] - SCALES[0]) / (SCALES[1] - SCALES[0])).round().long()
        x, y = ((factors[:, k] * (len(PLACES) - 1)).round().long() for k in (3, 4))
        return {"scale": scale, "shape": factors[:, 0].long(), "x,y": x * len(PLACES) + y}

    def draw(self, name: str, energy: Any, steps: int | None = None, times: int = 1) -> tuple[Tensor, float]:
        """Pictures of an energy, `times` as many as usual, and the seconds that they took."""
        config = self.concept.first.config.sampler
        config = config if steps is None else dataclasses.replace(config, steps=steps)
        began = time.thread_time()
        pixels = self.concept.sample(
            energy, times * self.count, generator(1000 + self.job.seed, torch.device("cpu")), config
        )
        self.shown[name] = pixels[:SHOWN]
        return pixels, round(time.thread_time() - began, 1)

    def concepts(self) -> dict[str, dict[str, Any]]:
        """Every composition of concepts that were trained apart."""
        own, rows = self.labels(self.factors), {}
        wanted = truth_of(self.factors, SIDE)
        told = {name: self.concept.evidence(name, label) for name, label in own.items()}
        two, three = told["scale"] & told["x,y"], told["scale"] & told["x,y"] & told["shape"]
        posterior, prior, w = self.concept.posterior, self.concept.prior(), self.concept.first.config.guidance
        for name, energy, steps in (
            ("size-place", posterior(w * two), None),
            ("size-place-uncorrected", posterior(w * two), 0),
            ("three", posterior(w * three), None),
            ("three-uncorrected", posterior(w * three), 0),
            ("three-plain", posterior(three), None),
            ("three-literal", And([prior, three], [3.0, 1.0]), None),
        ):
            pixels, seconds = self.draw(name, energy, steps)
            facts = reading_errors(self.judge.read(pixels), wanted)
            if not name.startswith("three"):
                del facts["shape_accuracy"]
            rows[name] = {**facts, **self.valid.facts(pixels), "seconds": seconds}
        rows["or"] = self._either()
        rows |= self._without(told)
        return rows

    def _either(self) -> dict[str, Any]:
        """One of two places, as often one as the other."""
        n = len(PLACES)
        sides = [self.concept.evidence("x,y", x * n + y) for x, y in TWO_PLACES]
        w = self.concept.first.config.guidance
        pixels, seconds = self.draw("or", self.concept.posterior(w * sides[0] | w * sides[1]), times=2)
        centres = torch.tensor([[PLACES[x], PLACES[y]] for x, y in TWO_PLACES]).float()
        centres = (centres - 0.5) * REACH_PX * SIDE
        away = torch.cdist(self.judge.read(pixels).place, centres)
        on = away.min(1).values < 0.75  # pixels; the two are 4.9 apart
        first = (away.argmin(1) == 0)[on].double().mean() if bool(on.any()) else torch.tensor(0.0)
        return {
            "first_share": float(first),
            "on_one": float(on.double().mean()),
            **self.valid.facts(pixels),
            "seconds": seconds,
        }

    def _without(self, told: Mapping[str, Composed]) -> dict[str, dict[str, Any]]:
        """Any sprite but the excluded shape, bounded and not; and any sprite."""
        heart = self.concept.evidence("shape", EXCLUDED)
        prior = self.concept.prior()
        odds = Shifted(heart, float(np.log(len(SHAPES) - 1)))  # against the other shapes rather than against all
        rows = {}
        for name, energy in (
            ("not", prior & NOT_WEIGHT * ~odds),
            ("not-unbounded", And([prior, heart], [1.0, -NOT_WEIGHT])),
            ("prior", prior),
        ):
            pixels, seconds = self.draw(name, energy)
            shape = self.judge.read(pixels).shape
            outside = float((shape != EXCLUDED).double().mean())
            rows[name] = {"outside": outside, **self.valid.facts(pixels), "seconds": seconds}
        return rows

    def pairs(self) -> dict[str, dict[str, Any]]:
        """Sizes and places together, as seen in training and as never seen."""
        rows = {}
        seen = torch.arange(self.count) % 2 == 0
        random = np.random.default_rng(self.job.seed + (300_000 if self.job.comparison.split == "test" else 400_000))
        middle, n = len(PLACES) // 2, len(PLACES)
        scale, x, y = (torch.from_numpy(random.integers(k, size=self.count)) for k in (len(SCALES), n, n))
        at = {
            "seen": (torch.where(seen, scale, 0), torch.where(seen, middle, x), torch.where(seen, middle, y)),
            "novel": (scale.clamp_min(1), torch.where(x == middle, middle + 1, x), y),
        }
        for name in PAIRS:
            model, _ = load_image_model(self.job.path / f"pair-{name}")
            for kind, (s, column, row) in at.items():
                began = time.thread_time()
                label = s * n * n + column * n + row
                pixels = model.sample(self.count, generator(2000 + self.job.seed, torch.device("cpu")), label)
                found = self.judge.read(pixels)
                places = torch.from_numpy(PLACES).float()
                place = (torch.stack((places[column], places[row]), dim=1) - 0.5) * REACH_PX * SIDE
                size = torch.from_numpy(SCALES).float()[s] * 0.32 * SIDE
                facts = reading_errors(found, Reading(torch.zeros_like(s), size, place))
                facts |= {**self.valid.facts(pixels), "seconds": round(time.thread_time() - began, 1)}
                rows[f"{name}-{kind}"] = facts
                self.shown[f"{name}-{kind}"] = pixels[:SHOWN]
        return rows

    def keep(self) -> None:
        """A few pictures of every row, for a figure."""
        save_tensors(self.job.path / "shown.safetensors", {k: v.contiguous() for k, v in self.shown.items()}, {})


NOT_WEIGHT = 25.0  # of ~heart, chosen on draws of the validation split


def shown(job: CompositionJob) -> dict[str, np.ndarray]:
    """The pictures that a job kept, each (N, 1, S, S), by row."""
    return {name: value.numpy() for name, value in load_tensors(job.path / "shown.safetensors")[1].items()}


def plane_rows(seed: int, chains: int = 10_000) -> dict[str, dict[str, Any]]:
    """Total variation of every composition of the plane to the integral, by how it was sampled."""
    ways: dict[str, Callable[[Composed], PlaneSamples]] = {
        "ladder, corrected, then MALA": lambda e: sample_plane(e, chains, seed),
        "ladder, uncorrected": lambda e: sample_plane(e, 5 * chains, seed, shorter(ANNEALED, 0), None),
    }
    found: dict[str, dict[str, Any]] = {}
    for name, text in PLANE.items():
        energy = plane_composition(text)
        for way, draw in ways.items():
            found[f"{name}: {way}"] = {"composition": name, "sampler": way, **plane_facts(energy, draw(energy), seed)}
    return found


def composition_results(jobs: Sequence[CompositionJob], *, command: str = "") -> dict[str, Any]:
    """The object of a comparison whose jobs are all done; raises `EbmtrajError` where one is not."""
    c = jobs[0].comparison
    _, judged = sprite_judge(SIDE, c.runs)
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
            "seeds": list(c.seeds),
            "data": {name: open_images(name).content_hash for name in ("sprites", "sprites-seen")},
            "judge": judged,
            "weights": {"factors": jobs[0].recipes()["scale"][1].network["guidance"], "not": NOT_WEIGHT},
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
