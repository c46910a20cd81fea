"""A task as a sum of named terms: read from text, bound to a state's fields, called on planned paths."""

from __future__ import annotations

import dataclasses
import difflib
import importlib
import inspect
import math
import os
import re
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from ebmtraj.energies.compose import Composed
from ebmtraj.energies.compose import Term as ComposedTerm
from ebmtraj.errors import EbmtrajError
from ebmtraj.fields import Field
from ebmtraj.trajectories.terms.joints import JointPose, KeepRange, KeepStraight
from ebmtraj.trajectories.terms.position import KeepHeight, Obstacle, Reach
from ebmtraj.trajectories.terms.rotation import Reorient, Rotate
from ebmtraj.trajectories.terms.smooth import Smooth
from ebmtraj.trajectories.terms.term import Path, Term, check_state

TERMS: dict[str, type[Term]] = {
    term.name: term for term in (Rotate, Reorient, JointPose, KeepHeight, KeepRange, KeepStraight, Smooth, Obstacle, Reach)
}


__all__ = ["TERMS", "Path", "TaskCost", "Term", "parse_task"]


@dataclass(frozen=True, eq=False)
class OwnTerm(Term):
    """A user's function `(path, state_fields, **options) -> (B,)`, named by `module:function`."""

    name: ClassVar[str] = "own"
    function: Callable[..., Tensor] = torch.zeros  # the user's
    target: str = ""
    options: tuple[tuple[str, Any], ...] = ()

    def label(self) -> str:
        """`module:function`."""
        return self.target

    def _bind(self) -> None:
        """A user's function is asked only when it is called."""

    def _value(self, path: Path) -> Tensor:
        try:
            cost = self.function(path, self.state_fields, **dict(self.options))
        except EbmtrajError:
            raise
        except (Exception, SystemExit) as error:
            raise EbmtrajError(f"task term {self.target} failed: {type(error).__name__}: {error}") from error
        return cost if isinstance(cost, Tensor) else self.refuse(f"gives a {type(cost).__name__}, not a tensor (B,)")


@dataclass(frozen=True, eq=False)
class TaskCost:
    """A weighted sum of terms over the same state fields."""

    text: str
    parts: tuple[Term, ...]
    state_fields: tuple[Field, ...]

    def terms(self, path: Path) -> dict[str, Tensor]:
        """Each term's weighted cost of each path, `(B,)`, by name; a name that comes again is numbered.

        Raises `EbmtrajError` for a path of other dimensions and, naming the term, for a value that is not finite.
        """
        check_state(self.state_fields, path)
        return {label: part.weight * part(path) for label, part in zip(self.labels(), self.parts, strict=True)}

    def cost(self, path: Path) -> Tensor:
        """The sum of all terms for each path, `(B,)`, differentiable in its states and actions."""
        return sum(self.terms(path).values(), start=path.start.new_zeros(len(path.start)))

    __call__ = cost

    def energy(self) -> Composed:
        """The cost as an energy of paths, states `(B, T+1, S)` with the start first: what `&`, `|` and `~` take."""

        def of_path(states: Tensor) -> Tensor:
            return self.cost(Path.sequence(states[:, 0], states[:, 1:]))

        return ComposedTerm(of_path, title=self.text)

    def labels(self) -> list[str]:
        """One name a term: `obstacle`, `obstacle-2`, ..."""
        names = [part.label() for part in self.parts]
        counts = [names[:i].count(name) + 1 for i, name in enumerate(names)]
        return [name if count == 1 else f"{name}-{count}" for name, count in zip(names, counts, strict=True)]

    def given(self, name: str, **options: Any) -> TaskCost:
        """This task with options of one term replaced, such as goals `(B, 4)`, one a row; raises `EbmtrajError`."""
        if name not in self.labels():
            raise EbmtrajError(f"the task {self.text!r} has no term {name!r}; it has {', '.join(self.labels())}")
        parts = list(self.parts)
        index = self.labels().index(name)
        parts[index] = dataclasses.replace(parts[index], **options)
        return dataclasses.replace(self, parts=tuple(parts))

    def rows(self, index: Tensor) -> TaskCost:
        """This task for these rows alone, in this order: options given for each row are picked, `(B, ...)[index]`.

        For N candidates an episode that stand together, `index = torch.arange(B).repeat_interleave(N)`.
        """
        picked = []
        for part in self.parts:
            each: dict[str, Any] = {o.name: getattr(part, o.name) for o in dataclasses.fields(part)}
            change: dict[str, Any] = {
                name: value[index] for name, value in each.items() if isinstance(value, Tensor) and value.ndim > 1
            }
            picked.append(dataclasses.replace(part, **change) if change else part)
        return dataclasses.replace(self, parts=tuple(picked))


def parse_task(text: str, state_fields: Sequence[Field], *, own_code: bool = False) -> TaskCost:
    """The task cost that a text such as "rotate axis=z + keep-straight finger=ring weight=2" describes.

    Terms are joined by " + ", options are `key=value` with lists joined by commas. `own_code` allows terms named
    `module:function`, which run code of the user's. Raises `EbmtrajError` for an unknown term or option, a value out of
    range, and a term that does not fit these fields.
    """
    chunks = [chunk.strip() for chunk in re.split(r"(?:^|\s)\+(?:\s|$)", text)]
    if not text.strip() or not all(chunks):
        raise EbmtrajError(f"task {text!r}: a term is missing; join terms by ' + ', such as \"rotate axis=z + smooth\"")
    fields = tuple(state_fields)
    return TaskCost(text.strip(), tuple(_parse_term(chunk, fields, own_code) for chunk in chunks), fields)


def _parse_term(chunk: str, fields: tuple[Field, ...], own_code: bool) -> Term:
    name, *words = chunk.split()
    given: dict[str, str] = {}
    for word in words:
        key, equals, value = word.partition("=")
        if not equals or not key or not value:
            raise EbmtrajError(f"task term {name}: {word!r} is not of the form key=value, such as weight=2")
        if key in given:
            raise EbmtrajError(f"task term {name}: {key} is given twice")
        given[key] = value
    if ":" in name:
        return _own_term(name, given, fields, own_code)
    if name not in TERMS:
        close = difflib.get_close_matches(name, TERMS, n=1)
        hint = f"did you mean {close[0]}?" if close else f"use {', '.join(TERMS)}"
        raise EbmtrajError(f"unknown task term {name!r}; {hint}")
    cls = TERMS[name]
    kinds = {option.name: str(option.type) for option in dataclasses.fields(cls) if option.name != "state_fields"}
    for key in given:
        if key not in kinds:
            close = difflib.get_close_matches(key, kinds, n=1)
            hint = f"did you mean {close[0]}?" if close else f"it has {', '.join(kinds)}"
            raise EbmtrajError(f"task term {name}: unknown option {key!r}; {hint}")
    return cls(fields, **{key: _value(name, key, value, kinds[key]) for key, value in given.items()})


def _value(term: str, key: str, text: str, kind: str) -> Any:
    """The option's value by its annotation: a number, numbers, names, or text that may also be numbers."""
    if kind.startswith("tuple[str"):
        return tuple(text.split(","))
    if kind.startswith("float"):
        return _number(term, key, text)
    if "tuple[float" in kind and not (kind.startswith("str") and "," not in text):
        return tuple(_number(term, key, part) for part in text.split(","))
    return text


def _number(term: str, key: str, text: str) -> float:
    try:
        number = float(text)
    except ValueError:
        raise EbmtrajError(f"task term {term}: {key} = {text!r} is not a number") from None
    if not math.isfinite(number):
        raise EbmtrajError(f"task term {term}: {key} = {text}; give a finite number")
    return number


def _own_term(target: str, given: dict[str, str], fields: tuple[Field, ...], own_code: bool) -> OwnTerm:
    if not own_code:
        raise EbmtrajError(f"task term {target!r} runs code of your own; allow it with --own-code")
    module_name, _, name = target.partition(":")
    if (here := os.getcwd()) not in sys.path:
        sys.path.append(here)
    try:
        function = getattr(importlib.import_module(module_name), name, None)
    except (Exception, SystemExit) as error:
        reason = f"{type(error).__name__}: {error}"
        raise EbmtrajError(f"task term {target!r}: module {module_name!r} can't be imported ({reason})") from error
    if not inspect.isfunction(function):
        raise EbmtrajError(f"task term {target!r}: module {module_name!r} has no function {name!r}")
    weight = _number(target, "weight", given.pop("weight", "1"))
    options: list[tuple[str, Any]] = []
    for key, text in given.items():
        try:
            numbers = tuple(float(part) for part in text.split(","))
            options.append((key, numbers if len(numbers) > 1 else numbers[0]))
        except ValueError:
            options.append((key, text))
    return OwnTerm(fields, weight=weight, function=function, target=target, options=tuple(options))
