"""What a comparison measures of one model of images: samples, memory, foreign images, classes, restoration, attacks.

Each measure takes a `Subject` and returns plain numbers, nested by name; what a model can't do is left out.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch

from ebmtraj.datasets.images import Images, ImageStore
from ebmtraj.device import generator
from ebmtraj.energies.compose import Composed, Or
from ebmtraj.evaluation.arrays import Array, FloatArray
from ebmtraj.evaluation.image_features import Judge
from ebmtraj.evaluation.image_scores import (
    distance_scores,
    kernel_distance,
    label_scores,
    membership,
    memory_scores,
    same_count,
)
from ebmtraj.images.model import ImageModel
from ebmtraj.images.noise_conditional import NoiseConditionalModel
from ebmtraj.images.restore import noise_conditional
from ebmtraj.images.robustness import AttackConfig
from ebmtraj.report.calibrate import measure_calibration
from ebmtraj.report.ood import OODConfig, measure_ood, reading_level
from ebmtraj.report.restore import measure_restoration
from ebmtraj.report.robustness import RobustnessConfig, measure_robustness
from ebmtraj.samplers.langevin import langevin

BATCH = 512
SAMPLES = 1500  # drawn of each model; fewer count where there are fewer real images
RESTORED = 120  # images that are restored, 16 times each
ATTACKED = 100  # images that are attacked
QUERIES = 300  # of the attacks without a gradient, an image
COMPOSED, CORRECTORS, STEP = 500, 4, 0.05  # images of composed energies; Langevin steps at each level, of that size
FLOORS = 4  # draws of training images against held-out ones


@dataclass(frozen=True)
class Subject:
    """A model, and the images that it is measured against: what it was fitted to, and what it has not seen."""

    model: ImageModel
    store: ImageStore
    judge: Judge
    split: str = "test"
    seed: int = 0
    samples: int = SAMPLES

    @cached_property
    def train(self) -> Images:
        """The training images."""
        return self.store.read("train")

    @cached_property
    def validation(self) -> Images:
        """The validation images."""
        return self.store.read("validation")

    @cached_property
    def held_out(self) -> Images:
        """The images of the split that is measured on."""
        return self.store.read(self.split)

    @cached_property
    def known(self) -> tuple[Array, Array | None]:
        """Pixels and labels of all images that are not held out: those of the training and, for the test, validation."""
        parts = [self.train] if self.split == "validation" else [self.train, self.validation]
        labels = None if parts[0].labels is None else np.concatenate([np.asarray(part.labels) for part in parts])
        return np.concatenate([part.pixels for part in parts]), labels


def draw(subject: Subject, *, told: bool = True) -> tuple[Array, Array | None]:
    """Samples (N, C, H, W), and the labels they were asked for, evenly over the classes.

    Without `told`, a model that could be asked for classes is asked for none.
    """
    model = subject.model
    told = told and model.conditional and bool(model.classes)
    count = min(subject.samples, len(subject.known[0]))
    asked = np.random.default_rng(subject.seed).permutation(np.arange(count) % len(model.classes)) if told else None
    noise = generator(subject.seed)
    labels = None if asked is None else torch.from_numpy(asked)
    split = torch.arange(count).split(BATCH)  # which bounds memory
    parts = [model.sample(len(index), noise, None if labels is None else labels[index]) for index in split]
    return torch.cat(parts).cpu().numpy(), asked


def samples_images(model: ImageModel) -> bool:
    """Whether it generates images."""
    return type(model).sample is not ImageModel.sample


def generation(subject: Subject, pixels: Array, asked: Array | None) -> dict[str, Any]:
    """Distances of samples to the images that were known and to held-out ones, classes and spread."""
    judge, (known, known_labels) = subject.judge, subject.known
    ours, judged = judge.judge(pixels)
    held_out, _ = judge.judge(subject.held_out.pixels)
    found = {**distance_scores(ours, judge.judge(known)[0], seed=subject.seed)}
    found |= {f"{name}_test": value for name, value in held_out_distances(ours, held_out, subject.seed).items()}
    if known_labels is not None:
        found |= label_scores(pixels, judged, known, known_labels, subject.store.classes, asked)
    return found


def held_out_distances(features: FloatArray, held_out: FloatArray, seed: int) -> dict[str, float]:
    """Means over draws of as many features as there are held-out ones."""
    pairs = [same_count(features, held_out, seed=1000 * seed + i) for i in range(FLOORS)]
    return {
        "frechet": float(np.mean([distance_scores(a, b)["frechet"] for a, b in pairs])),
        "kernel": float(np.mean([kernel_distance(a, b) for a, b in pairs])),
        "count": len(pairs[0][0]),
    }


def memory(subject: Subject, pixels: Array) -> dict[str, float]:
    """Whether samples are copies of training images."""
    return memory_scores(pixels, subject.train.pixels, subject.held_out.pixels)


def density(subject: Subject) -> dict[str, float]:
    """Whether the density tells training images from held-out ones."""
    if not has_density(subject.model):
        return {}
    own, others = (log_p(subject.model, images.pixels) for images in (subject.train, subject.held_out))
    return {"membership": membership(own, others)}


@torch.no_grad()
def abilities(subject: Subject) -> dict[str, float]:
    """What an energy is beside a sampler: a density that tells foreign images, and a classifier that none was trained to be.

    `least_auroc` is that of log p(x) over foreign sets that lie far off; `accuracy` that of the class of least E(x | y).
    """
    model = subject.model
    if not has_density(model):
        return {}
    found = {"least_auroc": min(v for k, v in foreign(subject)["log_p"].items() if not k.startswith("interpolated"))}
    if model.conditional and model.classes and not model.classifies:
        images = torch.from_numpy(subject.held_out.pixels)
        levels = torch.full((len(images),), reading_level(model))
        each = [model.energy(model.unit(images), torch.full((len(images),), k), levels) for k in range(len(model.classes))]
        right = torch.stack(each, dim=1).argmin(1).numpy() == subject.held_out.labels
        found["accuracy"] = float(right.mean())
    return found


@torch.no_grad()
def composition(subject: Subject) -> dict[str, float]:
    """What composed class energies sample: the first class or the last, and p(x) without the first; by the judge.

    `either_first` is the share of the first class, `either` that of both; `without_first` that of the class which is to be
    absent, `without_rarest` of the rarest of the others. Both compositions weigh densities, which a vector field has not.
    """
    model = subject.model
    if not isinstance(model, NoiseConditionalModel) or not has_density(model) or not model.conditional:
        return {}
    classes = range(len(model.classes))
    each = [model.net.given(torch.tensor([k])) for k in classes]
    rest = Or(each[1:])
    odds = each[0] - rest  # log p(not first | x) / p(first | x), as classes are equally frequent
    composed = {"either": Or([each[0], each[-1]]), "without": Or(each) & ~odds}
    found: dict[str, float] = {}
    for name, energy in composed.items():
        drawn = _draw_composed(model, energy, COMPOSED, subject.seed)
        shares = np.bincount(subject.judge.judge(drawn)[1], minlength=len(each)) / COMPOSED
        found[f"{name}_first"] = float(shares[0])
        found |= (
            {"either": float(shares[0] + shares[-1])} if name == "either" else {f"{name}_rarest": float(min(shares[1:]))}
        )
    return found


def _draw_composed(model: NoiseConditionalModel, energy: Composed, count: int, seed: int) -> Array:
    """Images `(count, C, H, W)` down the model's ladder, with corrector steps, as composed densities need them."""
    noise, sampler = generator(seed), dataclasses.replace(model.config.sampler, steps=CORRECTORS, step_size=STEP)
    assert sampler.ladder is not None
    start = model.net.start(count, model.shape, None, sampler.ladder.sigma_max, noise)
    x, _ = langevin(energy, start, sampler, generator=noise)
    return np.asarray(model.pixels(x).cpu().numpy())


def has_density(model: ImageModel) -> bool:
    """Whether it gives log p(x)."""
    return type(model).energy is not ImageModel.energy and model.name != "field"


@torch.no_grad()
def log_p(model: ImageModel, pixels: Array) -> FloatArray:
    """log p(x) up to a constant, (N,)."""
    parts = torch.from_numpy(np.ascontiguousarray(pixels)).split(BATCH)
    return np.asarray(torch.cat([model.log_density(part, reading_level(model)).double().cpu() for part in parts]).numpy())


def foreign(subject: Subject) -> dict[str, dict[str, float]]:
    """AUROC of log p(x), max p(y|x) and -|grad log p(x)|, those that the model has, on each foreign set."""
    if not has_density(subject.model):
        return {}
    return measure_ood(subject.model, subject.store, OODConfig(split=subject.split)).table


def classes(subject: Subject) -> dict[str, Any]:
    """Accuracy and calibration of a classifier."""
    if not subject.model.classifies:
        return {}
    return measure_calibration(subject.model, subject.store, split=subject.split).results


def marginal(subject: Subject) -> dict[str, Any]:
    """Samples of p(x) of a joint model, which has p(x | y) beside it."""
    if not subject.model.classifies or not samples_images(subject.model):
        return {}
    pixels, _ = draw(subject, told=False)
    return generation(subject, pixels, None)


def restoration(subject: Subject) -> dict[str, float]:
    """Mean squared errors of restoring 30 % salt and pepper and a hidden lower half, beside what needs no energy."""
    if not noise_conditional(subject.model) or not has_density(subject.model) or subject.model.conditional:
        return {}
    found: dict[str, float] = {}
    for task, name in (("salt-and-pepper", "salt_and_pepper"), ("inpaint", "inpainting")):
        restored = measure_restoration(
            subject.model, subject.store, task, split=subject.split, limit=RESTORED, seed=subject.seed
        )
        errors = restored.results["mse"]
        found |= {f"{name}_{suffix}": errors[key] for key, suffix in _ERRORS.items() if key in errors}
        found |= {plain: errors[key] for key, plain in _PLAIN.items() if key in errors}
        for key, value in errors.items():
            if key.startswith("one-step denoiser"):
                found["one_step"] = value
    return found


_ERRORS = {"energy, one sample": "one", "energy, mean of 16": "mean", "Gaussian given the rest": "gaussian"}
_PLAIN = {"median filter": "median_filter", "mean fill": "mean_fill"}


ATTACKS: Mapping[str, tuple[str, ...]] = {"linf": ("pgd", "autoattack", "square", "transfer"), "l2": ("pgd", "boundary")}

DISTANCES: Mapping[str, tuple[float, ...]] = {"linf": (0.05, 0.1, 0.2), "l2": (0.5, 1.0)}


def robustness(subject: Subject) -> dict[str, Any]:
    """Accuracy under attacks within L-inf and L2 distances, through 0 and 10 refinement steps where the model can refine.

    By gradients through all steps over draws of noise, by queries alone, and by images that fool the model without its
    refinement; `lowest` counts an image as lost where any attack of that distance found one that is misread.
    """
    if not subject.model.classifies:
        return {}
    found: dict[str, dict[str, Any]] = {}
    for norm, attacks in ATTACKS.items():
        config = RobustnessConfig(
            attack=AttackConfig(norm="l2" if norm == "l2" else "linf", steps=20, draws=4),
            eps=DISTANCES[norm],
            refine=(0, 10) if noise_conditional(subject.model) else (0,),
            attacks=attacks,
            queries=QUERIES,
            split=subject.split,
            limit=ATTACKED,
            seed=subject.seed,
        )
        for steps, result in measure_robustness(subject.model, subject.store, config)["refine"].items():
            own = found.setdefault(f"refine_{steps}", {})
            own |= result if norm == "linf" else {norm: result}
    return found


def floor(store: ImageStore, judge: Judge, split: str, seed: int = 0) -> dict[str, Any]:
    """What real images score: training images in the place of samples, as many as there are held-out ones."""
    train, held_out = store.read("train"), store.read(split)
    ours, theirs = judge.judge(train.pixels)[0], judge.judge(held_out.pixels)
    found: dict[str, Any] = {f"{name}_test": value for name, value in held_out_distances(ours, theirs[0], seed).items()}
    if held_out.labels is not None:
        found |= label_scores(
            held_out.pixels, theirs[1], train.pixels, np.asarray(train.labels), store.classes, held_out.labels
        )
    return {"generation": found}


MEASURES: Mapping[str, Mapping[str, Callable[[Subject], Mapping[str, Any]]]] = {  # by table, beside samples and memory
    "images": {
        "density": density,
        "foreign": foreign,
        "restoration": restoration,
        "abilities": abilities,
        "composition": composition,
    },
    "jem": {"classes": classes, "density": density, "foreign": foreign, "marginal": marginal, "robustness": robustness},
}
