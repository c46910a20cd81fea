"""What a generator's samples are worth before and after it is tilted, with the metrics of its kind of data."""

from __future__ import annotations

import io
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageDraw

from ebmtraj.datasets.toy import Toy
from ebmtraj.device import generator
from ebmtraj.evaluation.image_features import Judge, judge_of
from ebmtraj.evaluation.image_scores import distance_scores, label_scores, memory_scores
from ebmtraj.evaluation.wasserstein import sliced_wasserstein
from ebmtraj.generators.data import EventSource, open_source
from ebmtraj.generators.model import Generator
from ebmtraj.generators.tilt import Tilt
from ebmtraj.generators.tilt_fit import TiltRecipe, load_tilt, train_tilt
from ebmtraj.report.image_grid import image_grid, write_chain
from ebmtraj.report.measure_images import held_out_distances
from ebmtraj.report.style import GREY, INK, label_axis, new_figure, save
from ebmtraj.report.video import encode_gif
from ebmtraj.runs import write_atomic
from ebmtraj.training.loop import Progress, Result

Pair = tuple[np.ndarray, np.ndarray]  # samples before and after

LOST = 0.25  # a class with fewer than this share of what real images have of it counts as lost
PATHS = 64  # chains that the film shows
DOTS = 3000  # points that a picture shows


@dataclass(frozen=True)
class Against:
    """What samples are measured against."""

    source: EventSource
    split: str = "test"
    judge: Judge | None = None
    folder: Path | None = None  # where a judge of images is kept

    def known(self) -> np.ndarray:
        """Events that are not held out: of the training and, for the test, validation."""
        names = ["train"] if self.split == "validation" else ["train", "validation"]
        return np.concatenate([self.source.read(name).numpy() for name in names])

    def measure(self, x: np.ndarray, seed: int = 0) -> dict[str, Any]:
        """Metrics of samples `(N, *event)`."""
        return self._images(x, seed) if self.source.toy is None else self._points(x, self.source.toy)

    def _points(self, x: np.ndarray, toy: Toy) -> dict[str, Any]:
        """Share within so many sigma, modes, and sliced Wasserstein distance to held-out points, in the data's spread."""
        train, held_out = self.source.read("train").numpy(), self.source.read(self.split).numpy()
        count = min(len(x), len(held_out))
        found: dict[str, Any] = {"share": toy.share_within(x), "sigmas": toy.reach, "count": count}
        if toy.modes is not None:
            found["modes"] = toy.modes_hit(x)
        mean, std = train.mean(0), train.std(0)
        apart = sliced_wasserstein(x[:count, None], held_out[:count, None], mean, std)
        return found | {"sliced_wasserstein": float(apart[0])}

    def _images(self, x: np.ndarray, seed: int) -> dict[str, Any]:
        """Frechet and kernel distance on the project's feature net, class shares, and whether samples are copies."""
        store = self.source.store
        assert store is not None
        judge = self.judge or judge_of(store, folder=self.folder)
        known, held_out, train = self.known(), store.read(self.split), store.read("train")
        ours, judged = judge.judge(x)
        found: dict[str, Any] = distance_scores(ours, judge.judge(known)[0], seed=seed)
        apart = held_out_distances(ours, judge.judge(held_out.pixels)[0], seed)
        found |= {f"{name}_test": value for name, value in apart.items()}
        if held_out.labels is not None and train.labels is not None:
            labels = label_scores(x, judged, train.pixels, train.labels, store.classes)
            real = np.bincount(train.labels, minlength=len(store.classes)) / len(train.labels)
            shares = np.array(list(labels["shares"].values()))
            found |= {**labels, "classes": int((shares >= LOST * real).sum())}
        return found | memory_scores(x, train.pixels, held_out.pixels)


def draw(model: Generator | Tilt, count: int, seed: int) -> np.ndarray:
    """Samples `(count, *event)`."""
    device = model.base.shift.device if isinstance(model, Tilt) else model.shift.device
    noise = generator(seed, device)
    parts = [model.sample(min(512, count - start), noise) for start in range(0, count, 512)]
    return np.asarray(torch.cat(parts).cpu().numpy())


def sample_count(source: EventSource, samples: int, split: str = "test") -> int:
    """As many samples as there are real events that they are measured against, at most."""
    if source.toy is not None:
        return min(samples, len(source.read(split)))
    return min(samples, len(Against(source, split).known()))


@dataclass(frozen=True)
class Tilted:
    """What came of tilting a run."""

    tilt: Tilt
    before: dict[str, Any]
    after: dict[str, Any]
    samples: Pair
    result: Result
    train_seconds: float  # of one core; of the clock where it was resumed
    sample_seconds: tuple[float, float]  # of one core, before and after

    def facts(self) -> dict[str, Any]:
        """In plain numbers."""
        return {
            "before": self.before,
            "after": self.after,
            "train_seconds": round(self.train_seconds, 2),
            "steps": self.result.steps,
            "sample_seconds": {"before": round(self.sample_seconds[0], 2), "after": round(self.sample_seconds[1], 2)},
        }


def tilt_run(
    recipe: TiltRecipe,
    path: Path,
    *,
    samples: int,
    seed: int = 0,
    split: str = "test",
    judge_folder: Path | None = None,
    device: str = "auto",
    resume: bool = False,
    overwrite: bool = False,
    on_progress: Callable[[Progress], None] = lambda progress: None,
) -> Tilted:
    """Tilt a generator's run into a run directory of its own, and measure both with the same count and seed."""
    began = time.thread_time()
    result, recipe = train_tilt(recipe, path, device=device, resume=resume, overwrite=overwrite, on_progress=on_progress)
    trained = result.seconds if resume else time.thread_time() - began
    tilt, _ = load_tilt(path)
    against = Against(open_source(recipe.data), split, folder=judge_folder)
    count = sample_count(against.source, samples, split)
    made, took = [], []
    for model in (tilt.base, tilt):
        began = time.thread_time()
        made.append(draw(model, count, seed))
        took.append(time.thread_time() - began)
    before, after = (against.measure(x, seed) for x in made)
    return Tilted(tilt, before, after, (made[0], made[1]), result, trained, (took[0], took[1]))


def pictures(
    tilt: Tilt, samples: tuple[np.ndarray, np.ndarray], source: EventSource, folder: Path, seed: int = 0
) -> list[Path]:
    """Before and after side by side, and the path of chains from the prior on; of a plane its densities, too."""
    still, film = folder / "before-after.png", folder / "path.gif"
    if source.toy is None:
        real = source.read("train").numpy()
        titled = (("before", samples[0]), ("after", samples[1]), ("real", real))
        return [side_by_side(titled, still), write_chain(chain_states(tilt, seed), film)]
    real = source.read("test").numpy()
    return [plane_picture(tilt, samples, source.toy, real, still), plane_film(tilt, source.toy, film, seed)]


def chain_states(tilt: Tilt, seed: int = 0, count: int = PATHS) -> list[np.ndarray]:
    """Events along the chains of some samples, from the prior to the tilt."""
    states = tilt.path(count, generator(seed, tilt.base.shift.device))
    with torch.no_grad():
        return [tilt.base.shown(tilt.base.decode(z)).cpu().numpy() for z in states]


def side_by_side(titled: tuple[tuple[str, np.ndarray], ...], path: Path, count: int = 64) -> Path:
    """Images (N, C, H, W) in [0, 1] of each title as a square grid, as one PNG."""
    grids = []
    for title, pixels in titled:
        grid = image_grid(pixels[np.linspace(0, len(pixels) - 1, min(count, len(pixels))).astype(int)])
        grid = grid.resize((420, round(420 * grid.height / grid.width)), Image.Resampling.LANCZOS)
        page = Image.new("RGB", (grid.width, grid.height + 30), "white")
        page.paste(grid, (0, 30))
        ImageDraw.Draw(page).text((2, 4), title, fill=INK, font_size=20)
        grids.append(page)
    whole = Image.new("RGB", (sum(g.width + 14 for g in grids) - 14, max(g.height for g in grids)), "white")
    left = 0
    for grid in grids:
        whole.paste(grid, (left, 0))
        left += grid.width + 14
    buffer = io.BytesIO()
    whole.save(buffer, "PNG", optimize=True)
    write_atomic(path, buffer.getvalue())
    return path


def plane_picture(tilt: Tilt, samples: tuple[np.ndarray, np.ndarray], toy: Toy, real: np.ndarray, path: Path) -> Path:
    """Points before, after and of the data over the true density, and the density of the tilted latents."""
    figure, axes = new_figure(4 if tilt.base.latent == 2 else 3, height=2.6)
    for axis, title, points in zip(axes, ("before", "after", "data"), (*samples, real), strict=False):
        draw_density(axis, toy)
        axis.scatter(*points[:DOTS].T, s=1.5, color="#0072b2", linewidths=0, alpha=0.7)
        label_axis(axis, title, "", "")
    if len(axes) == 4:
        side = np.linspace(-3.5, 3.5, 300, dtype=np.float32)
        grid = torch.from_numpy(np.stack(np.meshgrid(side, side), -1).reshape(-1, 2))
        with torch.no_grad():
            energy = torch.cat([tilt.latent_energy()(part) for part in grid.split(4096)]).view(300, 300)
        density = torch.exp(-(energy - energy.min()) / 4).numpy()
        axes[3].imshow(density, extent=(-3.5, 3.5, -3.5, 3.5), origin="lower", cmap="Blues", aspect="equal")
        axes[3].grid(False)
        axes[3].tick_params(labelsize=8, colors=GREY)
        label_axis(axes[3], "density of z, 4th root", "", "")
    return save(figure, path)


def plane_film(tilt: Tilt, toy: Toy, path: Path, seed: int = 0) -> Path:
    """Draws of the prior, those that are chosen, and their chains, as points over the true density, as a GIF."""
    states = chain_states(tilt, seed, 1000)
    pages = []
    for state in [states[0]] * 4 + states[1:]:  # the prior long enough to be seen
        figure, axes = new_figure(1, height=4.0)
        figure.set_size_inches(4.0, 4.0)
        draw_density(axes[0], toy)
        axes[0].scatter(*state.T, s=3, color="#0072b2", linewidths=0)
        buffer = io.BytesIO()
        figure.savefig(buffer, format="png", dpi=80)
        pages.append(Image.open(buffer).convert("RGB"))
    write_atomic(path, encode_gif(pages, 120))
    return path


@cache
def _root_density(toy: Toy, count: int = 150) -> np.ndarray:
    side = np.linspace(-toy.bound, toy.bound, count)
    grid = np.stack(np.meshgrid(side, side), -1).reshape(-1, 2)
    return np.asarray(np.exp(0.5 * toy.log_density(grid)).reshape(count, count))


def draw_density(axis: Any, toy: Toy) -> None:
    """The density of a toy, grey, as the ground of a picture of points."""
    density = _root_density(toy)
    extent = (-toy.bound, toy.bound, -toy.bound, toy.bound)
    axis.imshow(density, extent=extent, origin="lower", cmap="Greys", aspect="equal", vmax=1.6 * density.max())
    axis.set_xlim(-toy.bound, toy.bound)
    axis.set_ylim(-toy.bound, toy.bound)
    axis.grid(False)
    axis.tick_params(labelsize=8, colors=GREY)
