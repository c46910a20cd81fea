"""Models of images side by side: what is compared, each trained and measured in a folder of its own.

Two tables: `images` (what generates) and `jem` (what classifies). A row is a model with its settings, one line here.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from ebmtraj import config as recipes
from ebmtraj.datasets.blocks import SPLITS
from ebmtraj.datasets.images import ImageStore
from ebmtraj.errors import EbmtrajError
from ebmtraj.images.fit import ImageRecipe, load_image_recipe
from ebmtraj.report.compare_plans import leaves
from ebmtraj.report.jobs import OUTCOME, open_folder, same
from ebmtraj.runs import read_json

Kind = Literal["images", "jem"]


@dataclass(frozen=True)
class ImageRow:
    """A line of a table."""

    model: str  # of `images.registry.MODELS`
    title: str
    conditional: bool = False
    set: tuple[str, ...] = ()  # settings, as `--set` has them
    seeds: int | None = None  # at most so many, where a fit does not depend on the seed
    attacked: int | None = None  # at most so many of them are attacked: an attack through refinement takes minutes


FIELD = ("training.steps=4000", "training.learning_rate=0.004")  # by validation, with 2,000 steps and 2e-3

IMAGES: Mapping[str, ImageRow] = {
    "energy": ImageRow("dsm", "energy, score matching"),
    "energy-unit": ImageRow("dsm", "the same, tilting N(0, 1)", set=("network.base=unit",)),
    "pcd": ImageRow("pcd", "energy, contrastive divergence (paper 000)"),
    "field": ImageRow("field", "vector field of the same size", set=FIELD),
    "vae": ImageRow("vae", "variational autoencoder"),
    "gmm": ImageRow("gmm", "mixture of 40 Gaussians"),
    "class-gaussian": ImageRow("class-gaussian", "ten class Gaussians", seeds=1),
    "gaussian": ImageRow("gaussian", "one Gaussian", seeds=1),
    "energy-class": ImageRow("dsm", "energy, score matching", conditional=True),
    "pcd-class": ImageRow("pcd", "energy, contrastive divergence (paper 000)", conditional=True),
    "field-class": ImageRow("field", "vector field of the same size", conditional=True, set=FIELD),
    "vae-class": ImageRow("vae", "variational autoencoder", conditional=True),
    "gmm-class": ImageRow("gmm", "mixture of 4 Gaussians a class", conditional=True),
    "gaussian-class": ImageRow("class-gaussian", "ten class Gaussians", conditional=True, seeds=1),
}
JEM: Mapping[str, ImageRow] = {
    "jem": ImageRow("jem", "joint energy, score matching", conditional=True, attacked=1),
    "jem-factored": ImageRow(
        "jem", "joint energy, p(x) and p(y given x) apart", conditional=True, set=("network.factored=true",), attacked=0
    ),
    "jem-robust": ImageRow(
        "jem",
        "joint energy, told labels in the worst case within .2",
        conditional=True,
        set=(
            *("network.adversary=0.2", "network.adversary_weight=2.0", "training.steps=1500", "training.batch=256"),
            *("training.learning_rate=0.001", "training.check_every=250", "network.depth=2"),
            *("network.classification=0.1", "network.level=0.3"),
        ),
    ),
    "jem-cd": ImageRow("jem-cd", "joint energy, contrastive divergence (paper 001)", conditional=True),
    "classifier": ImageRow("classifier", "plain classifier", conditional=True),
    "jem-200": ImageRow("jem", "joint energy, 200 labels", conditional=True, set=("network.labelled=200",), attacked=1),
    "classifier-200": ImageRow(
        "classifier", "plain classifier, 200 labels", conditional=True, set=("network.labelled=200",)
    ),
    "svm": ImageRow("svm", "support vector machine", conditional=True, seeds=1),
    "class-gaussian": ImageRow("class-gaussian", "ten class Gaussians", conditional=True, seeds=1),
    "gaussian": ImageRow("gaussian", "one Gaussian", seeds=1),
    "gmm": ImageRow("gmm", "mixture of 40 Gaussians"),
}
ROWS: Mapping[Kind, Mapping[str, ImageRow]] = {"images": IMAGES, "jem": JEM}
STABLE: Mapping[Kind, str] = {"images": "energy", "jem": "jem"}  # whose further seeds `--stability` trains


@dataclass(frozen=True)
class ImageComparison:
    """What is compared, and how."""

    kind: Kind
    data: str
    rows: tuple[str, ...]
    seeds: tuple[int, ...]
    runs: Path  # where the jobs' folders lie
    split: str = "test"
    samples: int = 1500
    attacked: int | None = None  # seeds whose classifiers are attacked, which takes longest; None: all
    stability: int = 0  # seeds of the default recipe that are trained in all
    changes: Mapping[str, Mapping[str, Any]] = field(default_factory=dict, hash=False)  # settings by row; "all": of all rows

    def alike(self, content_hash: str | None) -> dict[str, Any]:
        """What all jobs have in common, and what a resumed comparison may not change."""
        return {"content_hash": content_hash, "compares": self.kind, "split": self.split, "samples": self.samples}


@dataclass(frozen=True)
class ImageJob:
    """One row and seed."""

    name: str
    seed: int
    comparison: ImageComparison
    measured: bool = True  # False: trained only, to see whether it stays stable

    @property
    def row(self) -> ImageRow:
        """What it trains."""
        return ROWS[self.comparison.kind][self.name]

    @property
    def path(self) -> Path:
        """Its run directory."""
        return self.comparison.runs / (self.name if self.measured else f"{self.name}-stability") / f"seed-{self.seed}"

    @property
    def label(self) -> str:
        """What a progress bar calls it."""
        return f"{self.name} {self.seed}"

    def recipe(self) -> ImageRecipe:
        """What it is trained with; raises `EbmtrajError` for a setting that its model does not have."""
        c = self.comparison
        changes = (*self.row.set, *leaves(c.changes.get("all", {})), *leaves(c.changes.get(self.name, {})))
        given = {"model": self.row.model, "data": c.data, "conditional": self.row.conditional}
        try:
            recipe = load_image_recipe(None, changes, given)
        except EbmtrajError as error:
            raise EbmtrajError(f"row {self.name}: {error}") from None
        return dataclasses.replace(recipe, training=dataclasses.replace(recipe.training, seed=self.seed))

    def asked(self) -> dict[str, Any]:
        """Settings that decide its outcome, in plain values; no row has a condition, as older comparisons did not say."""
        plain: dict[str, Any] = recipes.to_plain(dataclasses.asdict(self.recipe()))
        return {key: value for key, value in plain.items() if key not in ("data", "content_hash", "condition")}

    def outcome(self) -> dict[str, Any] | None:
        """What it came to, or None where it is not done."""
        path = self.path / OUTCOME
        found: dict[str, Any] | None = read_json(path) if path.exists() else None
        return found


def choose_image_rows(kind: Kind, models: str, store: ImageStore) -> tuple[str, ...]:
    """The rows named in `models`, or all that fit the store; raises `EbmtrajError` for an unknown name."""
    known = ROWS[kind]
    names = [name.strip() for name in models.split(",") if name.strip()]
    if names == ["all"]:
        return tuple(name for name, row in known.items() if store.classes or not (row.conditional or kind == "jem"))
    for name in names:
        if name not in known:
            raise EbmtrajError(f"--models: unknown row {name!r}; use all or of {', '.join(known)}")
    if not names:
        raise EbmtrajError(f"--models names no row; use all or of {', '.join(known)}")
    return tuple(dict.fromkeys(names))


def image_jobs(comparison: ImageComparison) -> list[ImageJob]:
    """All jobs, a seed at a time; then the further trainings of the default recipe."""
    c = comparison
    jobs = [
        ImageJob(name, seed, c)
        for number, seed in enumerate(c.seeds)
        for name in c.rows
        if number < (ROWS[c.kind][name].seeds or len(c.seeds))
    ]
    further = range(c.seeds[0] + len(c.seeds), c.seeds[0] + c.stability)
    return jobs + [ImageJob(STABLE[c.kind], seed, c, measured=False) for seed in further]


def prepare_images(
    comparison: ImageComparison, store: ImageStore, *, resume: bool = False, overwrite: bool = False
) -> list[ImageJob]:
    """Check all that can be checked before any work, make the folder of runs, and list the jobs.

    Raises `EbmtrajError` where a row's settings are wrong, the images have no labels, the folder holds something else, or a
    resumed comparison was begun under other settings.
    """
    c = comparison
    if c.split not in SPLITS[1:]:
        raise EbmtrajError(f"--split {c.split}: models are trained on train; use test, or validation to choose settings")
    for name in c.rows:
        if not store.classes and (ROWS[c.kind][name].conditional or c.kind == "jem"):
            raise EbmtrajError(f"row {name} needs labels, and image store {store.path} has none; leave it out")
    for name in c.changes:
        if name != "all" and name not in ROWS[c.kind]:
            raise EbmtrajError(f"--set {name}...: unknown row; use all or of {', '.join(ROWS[c.kind])}")
    jobs = image_jobs(c)
    asked = {job.path: job.asked() for job in jobs}  # says which setting of which row is wrong
    open_folder(c.runs, c.alike(store.content_hash), resume=resume, overwrite=overwrite)
    for job in jobs:
        done = job.outcome()
        if done is not None:
            same(done.get("asked"), asked[job.path], str(job.path))
    return jobs
