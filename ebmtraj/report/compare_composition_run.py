"""The work of a comparison of compositions: a seed's models are trained, drawn from and read."""

from __future__ import annotations

import dataclasses
import itertools
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from threadpoolctl import threadpool_limits
from torch import Tensor

from ebmtraj.datasets.images import open_images
from ebmtraj.datasets.sprites import PLACES, SCALES, SHAPES
from ebmtraj.device import generator, no_denormals, use_threads
from ebmtraj.energies.compose import And, Composed, Shifted
from ebmtraj.evaluation.sprite_judge import (
    REACH_PX,
    SIZE_PX,
    Reading,
    Validity,
    random_factors,
    reading_errors,
    sprite_judge,
    truth_of,
)
from ebmtraj.images.compose import COMPOSING, load_concepts
from ebmtraj.images.fit import train_image
from ebmtraj.images.registry import load_image_model
from ebmtraj.locks import only_writer
from ebmtraj.parallel import open_pool
from ebmtraj.report.compare_composition import (
    CONCEPTS,
    EXCLUDED,
    NOT_WEIGHT,
    PAIRS,
    PLANE,
    SIDE,
    TWO_PLACES,
    WARM,
    WARM_GUIDANCE,
    CompositionJob,
)
from ebmtraj.report.jobs import OUTCOME, finite
from ebmtraj.report.plane import ANNEALED, PlaneSamples, plane_composition, plane_facts, sample_plane, shorter
from ebmtraj.runs import cores, write_json
from ebmtraj.training.checkpoint import load_tensors, save_tensors

SHOWN = 24  # pictures kept of each row


def run_composition_jobs(
    jobs: Sequence[CompositionJob],
    *,
    workers: int = 0,
    on_done: Callable[[CompositionJob, dict[str, Any]], None] = lambda job, outcome: None,
) -> None:
    """Train and measure what is not done, `workers` seeds at once, one thread each."""
    use_threads(1)
    with no_denormals():
        sprite_judge(SIDE, jobs[0].comparison.runs, jobs[0].comparison.judge_steps)
    for data in ("sprites", "sprites-seen"):
        open_images(data)  # made once, before several want it
    waiting = [job for job in jobs if job.outcome() is None]
    if waiting:
        with only_writer(jobs[0].comparison.runs, "comparison"), open_pool(min(workers or cores(), len(waiting))) as pool:
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
        outcome["plane"] = plane_rows(job.seed, min(10_000, 100 * job.comparison.samples))
        bench.keep()
    write_json(job.path / OUTCOME, finite(outcome))
    return outcome


class Bench:
    """Draws and readings of one seed's models."""

    def __init__(self, job: CompositionJob) -> None:
        self.job, self.count = job, job.comparison.samples
        self.judge, _ = sprite_judge(SIDE, job.comparison.runs, job.comparison.judge_steps)
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

    def draw(self, name: str, energy: Any, times: int = 1) -> tuple[Tensor, float]:
        """Pictures of an energy, `times` as many as usual, and the seconds that they took; the row's name says how."""
        config = self.concept.chain()
        if name.endswith(WARM):
            config = dataclasses.replace(config, temperature=1.0)
        elif name.endswith("-uncorrected"):
            config = dataclasses.replace(config, steps=0)
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
        weighed = {name: COMPOSING.weight(name) * each for name, each in told.items()}
        posterior, prior = self.concept.posterior, self.concept.prior()
        (cold_two, cold_three), (two, three) = (
            (each["scale"] & each["x,y"], each["scale"] & each["x,y"] & each["shape"]) for each in (weighed, told)
        )
        for name, energy in (
            ("size-place", posterior(cold_two)),
            ("size-place-warm", posterior(WARM_GUIDANCE * two)),
            ("size-place-uncorrected", posterior(WARM_GUIDANCE * two)),
            ("three", posterior(cold_three)),
            ("three-warm", posterior(WARM_GUIDANCE * three)),
            ("three-uncorrected", posterior(WARM_GUIDANCE * three)),
            ("three-plain-warm", posterior(three)),
            ("three-literal-warm", And([prior, three], [3.0, 1.0])),
        ):
            pixels, seconds = self.draw(name, energy)
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
        either = COMPOSING.weight("x,y") * sides[0] | COMPOSING.weight("x,y") * sides[1]
        pixels, seconds = self.draw("or", self.concept.posterior(either), times=2)
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
            ("prior-warm", prior),
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
        for name, (kind, (s, column, row)), warm in itertools.product(PAIRS, at.items(), ("", WARM)):
            changes = {"sampler": {"temperature": 1.0}} if warm else None
            model, _ = load_image_model(self.job.path / f"pair-{name}", network=changes)
            began = time.thread_time()
            label = s * n * n + column * n + row
            pixels = model.sample(self.count, generator(2000 + self.job.seed, torch.device("cpu")), label)
            found = self.judge.read(pixels)
            places = torch.from_numpy(PLACES).float()
            place = (torch.stack((places[column], places[row]), dim=1) - 0.5) * REACH_PX * SIDE
            size = torch.from_numpy(SCALES).float()[s] * SIZE_PX * SIDE
            facts = reading_errors(found, Reading(torch.zeros_like(s), size, place))
            facts |= {**self.valid.facts(pixels), "seconds": round(time.thread_time() - began, 1)}
            rows[f"{name}-{kind}{warm}"] = facts
            self.shown[f"{name}-{kind}{warm}"] = pixels[:SHOWN]
        return rows

    def keep(self) -> None:
        """A few pictures of every row, for a figure."""
        save_tensors(self.job.path / "shown.safetensors", {k: v.contiguous() for k, v in self.shown.items()}, {})


def shown(job: CompositionJob) -> dict[str, np.ndarray]:
    """The pictures that a job kept, each (N, 1, S, S), by row."""
    return {name: value.numpy() for name, value in load_tensors(job.path / "shown.safetensors")[1].items()}


def plane_rows(seed: int, chains: int) -> dict[str, dict[str, Any]]:
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
