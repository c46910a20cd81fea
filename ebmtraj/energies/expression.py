"""Compositions as text: `size:0.7 & (position:0.2,0.4 | position:0.8,0.4) & ~shape:heart`.

`~` binds tightest, then a weight (`2 * shape:heart`) and a temperature (`shape:heart / 2`), then `&`, then `|`; brackets as
usual. A name and what follows its colon are the caller's to make an energy of.
"""

from __future__ import annotations

import difflib
import math
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from ebmtraj.errors import EbmtrajError

_TOKEN = re.compile(
    r"\s*(?:(?P<number>\d+\.?\d*(?:[eE][+-]?\d+)?|\.\d+)(?=\s*\*)|(?P<name>[A-Za-z][\w-]*)|(?P<mark>[&|~()*/:]))"
)
_VALUE = re.compile(r"[^\s&|~()*/:]+")
_NUMBER = re.compile(r"\s*(\d+\.?\d*|\.\d+)")
EXAMPLE = '"scale:0.7 & position:0.2,0.4 & ~shape:heart"'


@dataclass(frozen=True)
class Leaf:
    """A name, its value (empty where there is none) and where they stand, columns counted from 1."""

    name: str
    value: str
    column: int
    value_column: int


@dataclass(frozen=True)
class Node:
    """An operator (`&`, `|`, `~`, `*`) over parts; `weight` is that of `*`."""

    operator: str
    parts: tuple[Tree, ...]
    weight: float = 1.0


Tree = Leaf | Node


def parse(text: str) -> Tree:
    """The tree of an expression; raises `EbmtrajError` that names the column where it can't be read."""
    try:
        return _Parser(text).whole()
    except RecursionError:
        raise EbmtrajError("the expression is nested too deeply; use fewer brackets") from None


def leaves(tree: Tree) -> list[Leaf]:
    """Its leaves from left to right."""
    return [tree] if isinstance(tree, Leaf) else [leaf for part in tree.parts for leaf in leaves(part)]


def build(tree: Tree, energy: Callable[[Leaf], Any]) -> Any:
    """The composed energy, given the energy of each leaf: a `Composable`."""
    if isinstance(tree, Leaf):
        return energy(tree)
    parts = [build(part, energy) for part in tree.parts]
    if tree.operator == "~":
        return ~parts[0]
    if tree.operator == "*":
        return tree.weight * parts[0]
    total = parts[0]
    for part in parts[1:]:
        total = total & part if tree.operator == "&" else total | part
    return total


def fault(column: int, what: str) -> EbmtrajError:
    """An error at a column of the expression, counted from 1."""
    return EbmtrajError(f"expression, column {column}: {what}")


def unknown(leaf: Leaf, known: Iterable[str], kind: str = "name") -> EbmtrajError:
    """An error for a name that stands for nothing, with the nearest one that does."""
    names = list(known)
    close = difflib.get_close_matches(leaf.name, names, n=1)
    return fault(
        leaf.column,
        f"unknown {kind} {leaf.name!r}; " + (f"did you mean {close[0]}?" if close else f"use {', '.join(names)}"),
    )


class _Parser:
    """Recursive descent, one method a rule."""

    def __init__(self, text: str) -> None:
        self.text, self.at = text, 0

    def whole(self) -> Tree:
        if not self.text.strip():
            raise EbmtrajError(f"the expression is empty; give one such as {EXAMPLE}")
        tree = self.any_of()
        self._skip()
        if self.at < len(self.text):
            found = self.text[self.at]
            hint = "there is no bracket to close" if found == ")" else "join energies by & or |"
            raise fault(self.at + 1, f"{found!r} is not expected here; {hint}")
        return tree

    def any_of(self) -> Tree:
        return self._joined("|", self.all_of)

    def all_of(self) -> Tree:
        return self._joined("&", self.weighted)

    def _joined(self, mark: str, part: Callable[[], Tree]) -> Tree:
        parts = [part()]
        while self._take(mark):
            parts.append(part())
        return parts[0] if len(parts) == 1 else Node(mark, tuple(parts))

    def weighted(self) -> Tree:
        self._skip()
        token = _TOKEN.match(self.text, self.at)
        if token and token["number"]:
            self.at = token.end()
            self._take("*")
            return Node("*", (self.weighted(),), float(token["number"]))
        tree = self.negated()
        while self._take("/"):
            column = self.at + 1
            number = _NUMBER.match(self.text, self.at)
            if number is None or not float(number[1]) > 0:
                raise fault(column, "a temperature above 0 must follow '/'")
            self.at = number.end()
            tree = Node("*", (tree,), 1 / float(number[1]))
        return tree

    def negated(self) -> Tree:
        return Node("~", (self.negated(),)) if self._take("~") else self.atom()

    def atom(self) -> Tree:
        self._skip()
        start = self.at
        if self._take("("):
            tree = self.any_of()
            if not self._take(")"):
                raise fault(len(self.text) + 1, f"the bracket opened in column {start + 1} is not closed; add ')'")
            return tree
        token = _TOKEN.match(self.text, self.at)
        if token is None or not token["name"]:
            if start >= len(self.text):
                raise fault(start + 1, "something is missing at the end, such as scale:0.7")
            raise fault(start + 1, f"{self.text[start]!r} is not expected here; an energy is name:value, such as scale:0.7")
        self.at = token.end()
        if self.text[self.at : self.at + 1] != ":":
            return Leaf(token["name"], "", start + 1, self.at + 1)
        self.at += 1
        value = _VALUE.match(self.text, self.at)
        if value is None:
            raise fault(self.at + 1, f"a value is missing after {token['name']}:")
        column, self.at = self.at + 1, value.end()
        return Leaf(token["name"], value[0], start + 1, column)

    def _skip(self) -> None:
        while self.at < len(self.text) and self.text[self.at].isspace():
            self.at += 1

    def _take(self, mark: str) -> bool:
        self._skip()
        if self.text[self.at : self.at + 1] != mark:
            return False
        self.at += 1
        return True


def numbers_of(leaf: Leaf, names: tuple[str, ...]) -> list[float]:
    """The numbers in a leaf's value, one for each of `names`; raises `EbmtrajError` that names its column."""
    parts = leaf.value.split(",") if leaf.value else []
    try:
        found = [float(part) for part in parts]
    except ValueError:
        found = []
    if len(found) != len(names) or not all(math.isfinite(number) for number in found):
        raise fault(leaf.value_column, f"{leaf.name} takes {len(names)} numbers: {leaf.name}:{','.join(names)}")
    return found
