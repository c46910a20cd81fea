"""From a generator's run to a tilt of it, in a run directory below it; or from a generator in memory. Paper 004."""

from __future__ import annotations

import dataclasses
import hashlib
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ebmtraj import config as recipes
from ebmtraj.errors import EbmtrajError
from ebmtraj.generators.data import Events, EventSource, open_source
from ebmtraj.generators.fit import events_of
from ebmtraj.generators.model import Generator
from ebmtraj.generators.registry import load_generator
from ebmtraj.generators.tilt import Tilt, TiltConfig, check_events, make_tilt
from ebmtraj.runs import Run
from ebmtraj.training.checkpoint import bounded, load_tensors, load_weights
from ebmtraj.training.loop import Progress, Result, train
from ebmtraj.training.run import CHECKPOINT, Kind, read_run, train_run
from ebmtraj.training.settings import TrainingConfig

# What each objective is trained with unless told otherwise: `likelihood` as the paper has it, 60 steps of size 0.01 from the
# prior, squared energies weighted 0.1, 200 batches.
DEFAULTS: Mapping[str, Mapping[str, Any]] = {
    "ratio": {"training": {"steps": 1000, "batch": 256, "check_every": 50, "warmup": 50, "ema": 0.99}},
    "likelihood": {
        "network": {"alpha": 0.1},
        "training": {"steps": 200, "batch": 128, "check_every": 20, "warmup": 0, "ema": 0.9},
    },
    "both": {
        "network": {"share": 0.9, "candidates": 16, "slower": 0.1},
        "training": {"steps": 1000, "batch": 256, "check_every": 50, "warmup": 50, "ema": 0.99},
    },
}
POINTS: Mapping[str, Any] = {  # for a plane, where the energy needs high frequencies and chains small steps
    "objective": "both",
    "fourier": [1.0, 4.0, 10.0],
    "width": 128,
    "pool": 200_000,
    "share": 0.85,
    "candidates": 32,
    "shared": True,
    "slower": 0.1,
    "on": "event",
    "chain": {"steps": 0},
    "start": 64,
    "sampler": {"steps": 100, "step_size": 1e-4},
    "mala": {"step_size": 1e-4},
}
POINT_TRAINING: Mapping[str, Any] = {"steps": 3000, "batch": 256, "check_every": 100, "warmup": 50, "ema": 0.99}


@dataclass(frozen=True)
class TiltRecipe:
    """All that decides a tilt; `config.toml` in its run directory holds exactly this."""

    base: str  # the generator's run
    digest: str | None = None  # of the generator's checkpoint
    data: str = ""  # what the generator was trained on
    content_hash: str | None = None  # of the data
    network: dict[str, Any] = field(default_factory=dict)  # see `TiltConfig`
    training: TrainingConfig = field(default_factory=TrainingConfig)  # how long and how to train


def tilt_recipe(
    base: Path,
    overrides: Sequence[str] = (),
    *,
    objective: str | None = None,
    method: str | None = None,
    defaults: Mapping[str, Any] | None = None,
) -> TiltRecipe:
    """The recipe of a tilt of this run: defaults of the objective and the data, then `--set`, all checked.

    Raises `EbmtrajError` where the run is no generator's, or a setting is not known.
    """
    run = Run.open(base, "train generator")
    load_generator(base)
    own = recipes.read_toml(run.config)
    points = len(open_source(str(own["data"])).shape) == 1
    asked = recipes.parse_overrides(overrides)
    network = asked.get("network", {}) if isinstance(asked.get("network"), dict) else {}
    usual: dict[str, Any] = recipes.to_plain(dataclasses.asdict(TiltConfig()))
    chosen = objective or network.get("objective") or (POINTS["objective"] if points else usual["objective"])
    if chosen not in DEFAULTS:
        raise EbmtrajError(f"unknown objective {chosen!r}; use one of {', '.join(DEFAULTS)}")
    if method not in (None, "langevin", "mala"):
        raise EbmtrajError(f"unknown sampler {method!r}; use langevin or mala")
    values: dict[str, Any] = recipes.merge({"network": usual}, DEFAULTS[chosen])
    if points and chosen == "likelihood":  # as the paper, on what is looked at here
        values = recipes.merge(values, {"network": {key: POINTS[key] for key in ("fourier", "width", "pool", "on")}})
    elif points:
        values = recipes.merge(values, {"network": POINTS, "training": POINT_TRAINING})
    fixed = {"objective": chosen} | ({"method": method} if method else {})
    values = recipes.merge(values, {"network": fixed, "base": str(base), "data": str(own["data"])})
    values = recipes.merge(values, defaults or {})
    recipe = recipes.from_recipe(TiltRecipe, None, overrides, values)
    settings: TiltConfig = recipes.build(TiltConfig, recipe.network, "recipe: network")
    network = recipes.to_plain(dataclasses.asdict(settings))
    return dataclasses.replace(recipe, base=str(base), network=network, digest=_digest(base))


def train_tilt(
    recipe: TiltRecipe,
    path: Path,
    *,
    device: str = "auto",
    resume: bool = False,
    overwrite: bool = False,
    on_progress: Callable[[Progress], None] = lambda progress: None,
) -> tuple[Result, TiltRecipe]:
    """Train a tilt into a run directory; resume, budget and errors as `training.run.train_run`."""
    return train_run(TILT, recipe, path, device=device, resume=resume, overwrite=overwrite, on_progress=on_progress)


def load_tilt(path: Path, base: Generator | None = None, device: torch.device | str = "cpu") -> tuple[Tilt, dict[str, Any]]:
    """The tilt of a run directory, ready to sample, and its checkpoint's header.

    `base`: its generator, where it is at hand; else it is read from the run that the tilt's recipe names. Raises
    `EbmtrajError` where either is missing, damaged, or the generator was trained anew since.
    """
    checkpoint, header, tensors = read_run(path, "generator")
    if header.get("kind") != "tilt":
        raise EbmtrajError(f"checkpoint {checkpoint} holds {header.get('kind')!r}, no tilt: ebmtraj tilt RUN")
    if base is None:
        recipe = recipes.build(TiltRecipe, recipes.read_toml(Run.open(path).config), f"recipe {path}")
        below = Path(path).parent  # where a run that was moved, or named from another folder, still is
        found = below if (below / CHECKPOINT).exists() else Path(recipe.base)
        if recipe.digest != _digest(found):
            raise EbmtrajError(f"generator {found} was trained anew since tilt {path}; make it again with --overwrite")
        base, _ = load_generator(found, device)
    config: TiltConfig = recipes.build(TiltConfig, recipes.to_plain(header["network"]), f"checkpoint {checkpoint}: network")
    with bounded(tensors, checkpoint):
        tilt = make_tilt(base, config)
    load_weights(tilt, tensors, checkpoint)
    return tilt.to(device).eval().requires_grad_(False), header


def tilt_in_memory(
    base: Generator,
    real: Tensor,
    validation: Tensor,
    config: TiltConfig = TiltConfig(),
    training: TrainingConfig | None = None,
) -> Tilt:
    """Tilt a generator towards real events `(N, *event)`, with early stop on others `(M, *event)`; nothing is written.

    Raises `EbmtrajError` where events do not fit the generator.
    """
    check_events(real, base)
    check_events(validation, base)
    values = recipes.to_plain(dict(DEFAULTS[config.objective]["training"]))
    settings = training or recipes.build(TrainingConfig, values)
    tilt = make_tilt(base, config, settings.seed)
    data = Events(real)
    tilt.prepare(data)
    with tempfile.TemporaryDirectory() as folder:
        train(tilt, data, Events(validation), settings, Run.create(Path(folder) / "tilt"))
    return tilt.eval().requires_grad_(False)


def _digest(run: Path) -> str:
    """sha256 of a generator's weights, 16 characters."""
    _, tensors = load_tensors(run / CHECKPOINT)
    digest = hashlib.sha256()
    for name, value in sorted(tensors.items()):
        digest.update(name.encode() + value.contiguous().numpy().tobytes())
    return digest.hexdigest()[:16]


def _open(recipe: TiltRecipe) -> EventSource:
    return open_source(recipe.data)


def _fresh(recipe: TiltRecipe, source: EventSource) -> Tilt:
    base, _ = load_generator(Path(recipe.base))
    config: TiltConfig = recipes.build(TiltConfig, recipe.network, "recipe: network")
    return make_tilt(base, config, recipe.training.seed)


TILT = Kind(_open, _fresh, events_of)
