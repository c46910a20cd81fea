"""Generators before and after their tilt, side by side with what else improves them: the rows of paper 004's Table 1.

A row is a generator on one kind of data with the objectives that it is tilted by, one line here; toys always have the same
data, the other rows take the images that the comparison is given.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ebmtraj import config as recipes
from ebmtraj.datasets.blocks import SPLITS
from ebmtraj.datasets.images import ImageStore
from ebmtraj.errors import EbmtrajError
from ebmtraj.generators.fit import GeneratorRecipe, load_generator_recipe
from ebmtraj.generators.tilt import TiltConfig
from ebmtraj.generators.tilt_fit import DEFAULTS, POINT_TRAINING, POINTS
from ebmtraj.images.fit import ImageRecipe, load_image_recipe
from ebmtraj.report.compare_plans import leaves
from ebmtraj.report.jobs import OUTCOME, open_folder, same
from ebmtraj.runs import read_json

NONE = "none"  # the name of no tilt in rows of results


@dataclass(frozen=True)
class TiltRow:
    """A line of the table."""

    model: str  # of `generators.registry.GENERATORS`, or of `images.registry.MODELS` where it is an energy of images
    title: str
    toy: str | None = None  # its data; None: the images of the comparison
    objectives: tuple[str, ...] = ()  # tilts of it
    image: bool = False  # an energy on pixels, which is tilted by nothing
    set: tuple[str, ...] = ()  # settings, as `--set` has them


ROWS: Mapping[str, TiltRow] = {
    "25-gaussians": TiltRow("vae", "VAE, 25 Gaussians", toy="25-gaussians", objectives=("both", "ratio")),
    "swiss-roll": TiltRow("vae", "VAE, Swiss roll", toy="swiss-roll", objectives=("both",)),
    "checkerboard": TiltRow("vae", "VAE, checkerboard", toy="checkerboard", objectives=("both",)),
    "vae": TiltRow("vae", "VAE", objectives=("ratio", "likelihood")),
    "glf": TiltRow("glf", "GLF", objectives=("ratio",)),
    "flow": TiltRow("flow", "RealNVP", objectives=("ratio",)),
    "glow": TiltRow("glow", "Glow", objectives=("ratio",)),
    "two-stage": TiltRow("two-stage", "two-stage VAE"),
    "vae-flow": TiltRow("vae-flow", "VAE + flow"),
    "energy": TiltRow("dsm", "energy on pixels", image=True),
}


@dataclass(frozen=True)
class TiltComparison:
    """What is compared, and how."""

    data: str
    rows: tuple[str, ...]
    seeds: tuple[int, ...]
    runs: Path  # where the jobs' folders lie
    split: str = "test"
    samples: int = 5000  # drawn before and after, at most as many as there are real events to measure against
    changes: Mapping[str, Mapping[str, Any]] = field(default_factory=dict, hash=False)  # settings by row

    def alike(self, content_hash: str | None) -> dict[str, Any]:
        """What all jobs have in common, and what a resumed comparison may not change."""
        return {"content_hash": content_hash, "compares": "tilting", "split": self.split, "samples": self.samples}


@dataclass(frozen=True)
class TiltJob:
    """One row and seed: a generator, and its tilts."""

    name: str
    seed: int
    comparison: TiltComparison

    @property
    def row(self) -> TiltRow:
        """What it trains."""
        return ROWS[self.name]

    @property
    def path(self) -> Path:
        """Its folder: `generator` is a run, and `tilt-OBJECTIVE` one of each tilt."""
        return self.comparison.runs / self.name / f"seed-{self.seed}"

    @property
    def label(self) -> str:
        """What a progress bar calls it."""
        return f"{self.name} {self.seed}"

    @property
    def data(self) -> str:
        """A toy, or the images of the comparison."""
        return self.row.toy or self.comparison.data

    def recipe(self) -> GeneratorRecipe | ImageRecipe:
        """What the generator is trained with; raises `EbmtrajError` for a setting that it does not have."""
        changes = {key: value for key, value in self.comparison.changes.get(self.name, {}).items() if key != "tilt"}
        given = {"model": self.row.model, "data": self.data}
        recipe: GeneratorRecipe | ImageRecipe
        try:
            load = load_image_recipe if self.row.image else load_generator_recipe
            recipe = load(None, (*self.row.set, *leaves(changes)), given)
        except EbmtrajError as error:
            raise EbmtrajError(f"row {self.name}: {error}") from None
        return dataclasses.replace(recipe, training=dataclasses.replace(recipe.training, seed=self.seed))

    def tilt_changes(self) -> tuple[str, ...]:
        """Settings of its tilts, as `--set` has them."""
        return leaves(self.comparison.changes.get(self.name, {}).get("tilt", {}))

    def asked(self) -> dict[str, Any]:
        """Settings that decide its outcome, in plain values."""
        plain: dict[str, Any] = recipes.to_plain(dataclasses.asdict(self.recipe()))
        settings = {"usual": dataclasses.asdict(TiltConfig()), **{name: DEFAULTS[name] for name in self.row.objectives}}
        if self.row.toy:
            settings |= {"points": {"network": POINTS, "training": POINT_TRAINING}}
        tilts = {"changes": self.tilt_changes(), **(settings if self.row.objectives else {})}
        found = {key: value for key, value in plain.items() if key not in ("data", "content_hash")}
        return {**found, "tilts": recipes.to_plain(tilts)}

    def outcome(self) -> dict[str, Any] | None:
        """What it came to, or None where it is not done."""
        path = self.path / OUTCOME
        found: dict[str, Any] | None = read_json(path) if path.exists() else None
        return found


def choose_tilt_rows(models: str) -> tuple[str, ...]:
    """The rows named in `models`, or all; raises `EbmtrajError` for an unknown name."""
    names = [name.strip() for name in models.split(",") if name.strip()]
    if names == ["all"]:
        return tuple(ROWS)
    for name in names or [""]:
        if name not in ROWS:
            raise EbmtrajError(f"--models: unknown row {name!r}; use all or of {', '.join(ROWS)}")
    return tuple(dict.fromkeys(names))


def prepare_tilting(
    comparison: TiltComparison, store: ImageStore, *, resume: bool = False, overwrite: bool = False
) -> list[TiltJob]:
    """Check all that can be checked before any work, make the folder of runs, and list the jobs, a seed at a time.

    Raises `EbmtrajError` where a row's settings are wrong, the folder holds something else, or a resumed comparison was
    begun under other settings.
    """
    c = comparison
    if c.split not in SPLITS[1:]:
        raise EbmtrajError(f"--split {c.split}: models are trained on train; use test, or validation to choose settings")
    for name in c.changes:
        if name not in ROWS:
            raise EbmtrajError(f"--set {name}...: unknown row; use one of {', '.join(ROWS)}")
    jobs = [TiltJob(name, seed, c) for seed in c.seeds for name in c.rows]
    asked = {job.path: job.asked() for job in jobs}  # says which setting of which row is wrong
    open_folder(c.runs, c.alike(store.content_hash), resume=resume, overwrite=overwrite)
    for job in jobs:
        done = job.outcome()
        if done is not None:
            same(done.get("asked"), asked[job.path], str(job.path))
    return jobs
