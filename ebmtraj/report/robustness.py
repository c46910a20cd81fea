"""Accuracy under attack, through so many refinement steps, by every attack that is asked for."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from ebmtraj.datasets.images import ImageStore
from ebmtraj.device import generator
from ebmtraj.errors import EbmtrajError
from ebmtraj.images.attacks import auto_attack, boundary_attack, library, square_attack
from ebmtraj.images.data import ImageData
from ebmtraj.images.model import ImageModel
from ebmtraj.images.robustness import (
    LOSSES,
    AttackConfig,
    Classify,
    Defence,
    check_defence,
    classify,
    differentiable,
    pgd,
)

ATTACKS = ("pgd", "autoattack", "square", "boundary", "transfer")
LIBRARIES = {"autoattack": "pyautoattack", "square": "pyautoattack", "boundary": "foolbox"}
EPS = {"linf": (0.05, 0.1, 0.2), "l2": (0.5, 1.0, 1.5)}
EVALUATION_DRAWS = 32  # of noise, new to the attack, when its images are judged

Watch = Callable[[str], None]


@dataclass(frozen=True)
class RobustnessConfig:
    """What is attacked, how, and how far; distances are those of pixels in [0, 1]."""

    attack: AttackConfig = field(default_factory=AttackConfig)
    eps: tuple[float, ...] = ()  # of PGD; the other attacks take the largest; empty: `EPS`
    refine: tuple[int, ...] = (0, 1, 10)  # refinement steps
    attacks: tuple[str, ...] = ATTACKS
    defence: Defence = field(default_factory=Defence)
    queries: int = 500  # of the attacks without a gradient, an image
    split: str = "test"
    limit: int = 200  # images
    seed: int = 0

    def __post_init__(self) -> None:
        for name in self.attacks:
            if name not in ATTACKS:
                raise EbmtrajError(f"--attacks: unknown attack {name!r}; use {', '.join(ATTACKS)}")
        if not self.attacks or not self.refine or min(self.refine) < 0:
            raise EbmtrajError(
                f"--attacks {self.attacks}, --refine {self.refine}: give at least one of each, steps from 0 up"
            )
        if any(not e > 0 for e in self.eps):
            raise EbmtrajError(f"--eps {self.eps}: each must be above 0")
        if self.queries < 1 or self.limit < 0:
            raise EbmtrajError(f"--queries {self.queries}, --limit {self.limit}: it needs queries >= 1 and limit >= 0")

    @property
    def radii(self) -> tuple[float, ...]:
        """How far PGD goes, from near to far."""
        return tuple(sorted(self.eps or EPS[self.attack.norm]))

    def defences(self) -> list[Defence]:
        """One for each number of refinement steps."""
        d = self.defence
        return [dataclasses.replace(d, steps=steps) for steps in dict.fromkeys(self.refine)]


def measure_robustness(
    model: ImageModel,
    store: ImageStore,
    config: RobustnessConfig,
    others: Sequence[ImageModel] = (),
    *,
    watch: Watch = lambda what: None,
) -> dict[str, Any]:
    """Accuracy of a classifier under attack, by refinement steps and attack; `others` give images to transfer.

    An image counts as right at some distance where no image that PGD found within it is taken for another class.
    Raises `EbmtrajError` for a model that does not classify, a refinement that it can't do, or a missing library.
    """
    for name in {LIBRARIES[each] for each in config.attacks if each in LIBRARIES}:
        library(name)
    for defence in config.defences():
        check_defence(model, defence)
    for other in others:
        check_defence(other, Defence(steps=0))
    data = ImageData.load(store, config.split, model.shift.device, limit=config.limit or None)
    if data.label is None:
        raise EbmtrajError(f"image store {store.path} has no labels, so no image can be taken for another class")
    frozen = [p for each in (model, *others) for p in each.parameters() if p.requires_grad]
    for p in frozen:
        p.requires_grad_(False)
    try:
        by_steps = {
            str(d.steps): _under(model, d, data.pixels, data.label, others, config, watch) for d in config.defences()
        }
    finally:
        for p in frozen:
            p.requires_grad_(True)
    a = config.attack
    protocol = {"images": len(data), "split": config.split, "norm": a.norm, "seed": config.seed}
    protocol |= {"pgd": {"steps": a.steps, "draws": a.draws, "restarts": a.restarts, "losses": list(LOSSES)}}
    protocol |= {"refinement": {"level": config.defence.level, "low": config.defence.low, "draws": config.defence.draws}}
    protocol |= {"judged_with_draws": EVALUATION_DRAWS, "queries": config.queries, "surrogates": [m.name for m in others]}
    return {"refine": by_steps, "protocol": protocol}


def _under(
    model: ImageModel,
    defence: Defence,
    x: Tensor,
    y: Tensor,
    others: Sequence[ImageModel],
    config: RobustnessConfig,
    watch: Watch,
) -> dict[str, Any]:
    """All attacks on one number of refinement steps."""
    judged = dataclasses.replace(defence, draws=max(defence.draws, EVALUATION_DRAWS))
    asked = dataclasses.replace(defence, draws=config.attack.draws)
    device, far = x.device, config.radii[-1]

    def is_right(images: Tensor) -> Tensor:
        return classify(model, images, judged, generator(config.seed + 77, device)).argmax(1) == y

    def same_noise(images: Tensor) -> Tensor:  # for attacks that compare answers: the same noise for every question
        return classify(model, images, asked, generator(config.seed + 55, device))

    clean = is_right(x)
    found: dict[str, Any] = {"clean": _share(clean)}
    lowest = clean.clone()
    noise = generator(config.seed, device)
    if "pgd" in config.attacks:
        seen = differentiable(model, defence, noise, config.attack.draws)
        alive, found["pgd"] = clean.clone(), {}
        for eps in config.radii:
            watch(f"{defence.steps} steps: pgd {eps:g}")
            for images in _pgd(seen, x, y, eps, config.attack, noise):
                alive &= is_right(images)
            found["pgd"][f"{eps:g}"] = _share(alive)
        lowest &= alive
    for name in config.attacks:
        if name == "pgd":
            continue
        watch(f"{defence.steps} steps: {name} {far:g}")
        alive = clean.clone()
        for images in _others(name, model, defence, x, y, far, others, config, same_noise, noise):
            alive &= is_right(images)
        found[name] = _share(alive)
        lowest &= alive
    found["lowest"] = _share(lowest)
    return found


def _others(
    name: str,
    model: ImageModel,
    defence: Defence,
    x: Tensor,
    y: Tensor,
    eps: float,
    others: Sequence[ImageModel],
    config: RobustnessConfig,
    same_noise: Callable[[Tensor], Tensor],
    noise: torch.Generator,
) -> list[Tensor]:
    """The images that an attack other than PGD through the refinement finds within `eps`."""
    norm, seed = config.attack.norm, config.seed
    if name == "autoattack":
        seen = differentiable(model, defence, noise, config.attack.draws)
        return [auto_attack(seen, x, y, eps, norm, seed, steps=config.attack.steps, random=defence.steps > 0)]
    if name == "square":
        return [square_attack(same_noise, x, y, eps, norm, seed, config.queries)]
    if name == "boundary":
        images = boundary_attack(same_noise, x, y, seed, config.queries)
        change = (images - x).flatten(1)
        size = change.norm(dim=1) if norm == "l2" else change.abs().amax(1)
        return [torch.where((size <= eps).view(-1, 1, 1, 1), images, x)]  # what lies further off doesn't count
    sources = [differentiable(other, Defence(steps=0), noise) for other in others]
    sources += [_at_level(model, level) for level in (None, 1.0, 1.5)]
    return [images for seen in sources for images in _pgd(seen, x, y, eps, config.attack, noise)]


def _pgd(seen: Classify, x: Tensor, y: Tensor, eps: float, config: AttackConfig, noise: torch.Generator) -> list[Tensor]:
    """What PGD finds by each loss and restart."""
    return [pgd(seen, x, y, eps, config, loss, noise) for loss in LOSSES for _ in range(config.restarts)]


def _at_level(model: ImageModel, level: float | None) -> Classify:
    """The model without refinement, its classes read at some noise level."""
    return lambda pixels: model.logits(pixels, level).log_softmax(-1).unsqueeze(0)


def _share(right: Tensor) -> float:
    return float(right.float().mean())
