"""Concepts of images put together: from trained models and an expression to one energy, and samples of it.

Papers 000, section 7, and 003.
"""

from __future__ import annotations

import dataclasses
import difflib
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ebmtraj.config import read_toml
from ebmtraj.energies.compose import And, Composed, Term
from ebmtraj.energies.concept import ConceptEnergy
from ebmtraj.energies.expression import Leaf, Tree, build, fault, unknown
from ebmtraj.energies.image import ImageEnergy
from ebmtraj.errors import EbmtrajError
from ebmtraj.images.concept import annealed
from ebmtraj.images.model import ImageModel
from ebmtraj.images.registry import load_image_model
from ebmtraj.runs import Run
from ebmtraj.samplers.langevin import LangevinConfig

ALIASES = {"size": "scale", "place": "x,y", "position": "x,y"}  # names that people use for factors
Watch = Callable[[Tensor], None]


@dataclass(frozen=True)
class Composing:
    """How compositions of concepts are drawn: colder than a concept's own samples, so that they lie near the modes."""

    guidance: Mapping[str, float] = field(default_factory=lambda: {"scale": 1.0, "x,y": 8.0})  # of what factors say, by name
    usual: float = 3.0  # of the other factors
    temperature: float = 0.1  # of the corrector steps
    cooled: float | None = 2.0  # the noise level up to which it holds, 1 above, so that no mode is lost; None: at all
    steps: int = 6  # corrector steps at each level
    step_size: float = 0.3

    def weight(self, name: str) -> float:
        """How much what a factor says beyond E(x) counts."""
        return self.guidance.get(name, self.usual)

    def chain(self, own: LangevinConfig) -> LangevinConfig:
        """The settings of a chain, with the ladder of a model's `own`."""
        return dataclasses.replace(
            own, steps=self.steps, step_size=self.step_size, temperature=self.temperature, cooled=self.cooled
        )


COMPOSING = Composing()  # chosen on validation draws of sprites


class Concepts(nn.Module):
    """Models of images by the factors that each was trained on, all over images of one shape.

    The prior is the mean of their energies E(x): counted once, however many concepts are put together.
    """

    def __init__(self, models: Mapping[str, ImageModel]) -> None:
        """`models` by the factors of their condition, such as "scale" or "x,y", or "class".

        Raises `EbmtrajError` for models of images of different shapes or scaling, without an E(x, s | c), or not told any c.
        """
        super().__init__()
        if not models:
            raise EbmtrajError("compose: there is no model; give runs of: ebmtraj train image --condition ...")
        self.names = tuple(models)
        self.models = nn.ModuleList(models.values())
        self.first: Any = next(iter(models.values()))
        self.shape: tuple[int, int, int] = self.first.shape
        for name, model in models.items():
            if model.shape != self.shape:
                raise EbmtrajError(
                    f"energies over different shapes can't be composed: {self.names[0]} was trained on images of "
                    f"{self.shape}, {name} on {model.shape}"
                )
            if not model.conditional or not isinstance(getattr(model, "net", None), ConceptEnergy | ImageEnergy):
                raise EbmtrajError(
                    f"compose: model {model.name} of {name} has no energy given a factor at every noise level; "
                    "train one: ebmtraj train image --condition ..."
                )
            off = max(
                float((model.scale - self.first.scale).abs().max()), float((model.shift - self.first.shift).abs().max())
            )
            if off > 1e-4:
                raise EbmtrajError(
                    f"compose: {self.names[0]} and {name} scale pixels differently, as they were trained on other images; "
                    "train them on one store"
                )

    def prior(self) -> Composed:
        """E(x): the mean over the models, those with the same one counted once."""
        terms: list[Term] = []
        for i in range(len(self.names)):
            term = self._prior(i)
            if not any(_same(term, other) for other in terms):
                terms.append(term)
        return And(terms, [1 / len(terms)] * len(terms))

    def _prior(self, i: int) -> Term:
        model: Any = self.models[i]
        none = torch.tensor([-1], device=model.shift.device)
        return Term(model.net.prior if isinstance(model.net, ConceptEnergy) else model.net, context=none, event=self.shape)

    def evidence(self, name: str, label: int | Tensor) -> Composed:
        """E(x | c) - E(x) of one factor, or -log p(c | x) / p(c); labels for all chains, or one each `(B,)`."""
        i = self.names.index(name)
        model: Any = self.models[i]
        own = (label if isinstance(label, Tensor) else torch.tensor([label])).to(model.shift.device)
        if isinstance(model.net, ConceptEnergy):
            return Term(model.net.evidence, context=own, event=self.shape)
        return Term(model.net, context=own, event=self.shape) - self._prior(i)

    def posterior(self, evidence: Composed) -> Composed:
        """The prior times what is asked for: p(x) p(what | x)."""
        return self.prior() & evidence

    def leaf(self, leaf: Leaf) -> Composed:
        """The evidence that a leaf such as `scale:0.7` names; raises `EbmtrajError` for an unknown factor or value."""
        name = ALIASES.get(leaf.name, leaf.name)
        name = name if name in self.names else leaf.name
        if name not in self.names:
            raise unknown(leaf, [*self.names, *(alias for alias, own in ALIASES.items() if own in self.names)], "factor")
        model: Any = self.models[self.names.index(name)]
        told = self.evidence(name, value_number(leaf, model.classes))
        return COMPOSING.weight(name) * told if isinstance(model.net, ConceptEnergy) else told

    def energy(self, tree: Tree) -> Composed:
        """The energy of a whole expression."""
        return self.posterior(build(tree, self.leaf))

    def chain(self) -> LangevinConfig:
        """The settings of a composition's chains: `COMPOSING` for models of concepts, else the first model's own."""
        own: LangevinConfig = self.first.config.sampler
        return COMPOSING.chain(own) if isinstance(self.first.net, ConceptEnergy) else own

    @torch.no_grad()
    def sample(
        self,
        energy: Composed,
        count: int,
        generator: torch.Generator,
        config: LangevinConfig | None = None,
        *,
        watch: Watch | None = None,
    ) -> Tensor:
        """Draw images of a composed energy down the noise ladder, corrected by Langevin steps at each level.

        Returns `(count, C, H, W)` pixels. `config` is by default what `chain` says.
        """
        return annealed(self.first, energy, count, generator, config=config or self.chain(), watch=watch)


def _same(one: Term, other: Term) -> bool:
    """Whether two energies have the same weights."""
    ours, theirs = one.energy.state_dict(), other.energy.state_dict()  # type: ignore[attr-defined]
    return ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)


def load_concepts(runs: Sequence[Path], device: torch.device | str = "cpu") -> Concepts:
    """The models of these runs by what each was conditioned on.

    Raises `EbmtrajError` where a run is missing, not finished, or conditioned on what another one is, and as `Concepts`.
    """
    models: dict[str, ImageModel] = {}
    for run in runs:
        name = str(read_toml(Run.open(run, "train image").config).get("condition") or "class")
        if name in models:
            raise EbmtrajError(f"compose: {run} is a second run told {name}; give one for each factor")
        models[name], _ = load_image_model(run, device)
    return Concepts(models).eval()


def value_number(leaf: Leaf, classes: Sequence[str]) -> int:
    """The class that a leaf's value names: by its name or, of numbers, the nearest one.

    Raises `EbmtrajError`, naming the column, for a value that is none of them, or out of their range.
    """
    if leaf.value in classes:
        return classes.index(leaf.value)
    rows = [_numbers(name) for name in classes]
    own = _numbers(leaf.value)
    if any(row is None for row in rows):
        close = difflib.get_close_matches(leaf.value, classes, n=1)
        hint = f"did you mean {close[0]}?" if close else f"use {', '.join(classes[:12])}"
        raise fault(leaf.value_column, f"{leaf.name} has no value {leaf.value!r}; {hint}")
    table = [row for row in rows if row is not None]
    size = len(table[0])
    lows, highs = [min(row[i] for row in table) for i in range(size)], [max(row[i] for row in table) for i in range(size)]
    ranges = ",".join(f"{low:g}..{high:g}" for low, high in zip(lows, highs, strict=True))
    if own is None or len(own) != size:
        raise fault(leaf.value_column, f"{leaf.name} takes {'one number' if size == 1 else f'{size} numbers'} in {ranges}")
    if any(not low <= value <= high for value, low, high in zip(own, lows, highs, strict=True)):
        raise fault(leaf.value_column, f"{leaf.name}:{leaf.value} is out of range; use {ranges}")
    return min(range(len(table)), key=lambda k: math.dist(table[k], own))


def _numbers(text: str) -> list[float] | None:
    try:
        return [float(part) for part in text.split(",")]
    except ValueError:
        return None
