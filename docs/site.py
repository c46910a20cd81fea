"""What mkdocs does before it builds: a copy of the package without links, with what is said beside fields as docstrings."""

from __future__ import annotations

import ast
import re
import shutil
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
COPY = ROOT / "build" / "api" / "ebmtraj"
BESIDE = re.compile(r"(?:^\s*|\s{2})# ?(.*)$")
TOOL = re.compile(r"(?:noqa|type|fmt|pragma)\b:?")
DIM = r"(?:\*?\w+'?(?:\([^()]*\))?(?: ?[-+*/]{1,2} ?\w+)*|\.\.\.)"
SHAPE = re.compile(rf"(?<![\w`])\((?:(?:{DIM}, ?)+{DIM}?)?\)")  # (B, T + 1, S), which is code on a page


def on_startup(**_: Any) -> None:
    """Make the copy anew; envs, datasets and cli, which are namespaces, get the file that makes them packages."""
    shutil.rmtree(COPY.parent, ignore_errors=True)
    shutil.copytree(ROOT / "ebmtraj", COPY, ignore=shutil.ignore_patterns("__pycache__", "*.safetensors"))
    for folder in [COPY, *(path for path in COPY.rglob("*") if path.is_dir())]:
        (folder / "__init__.py").touch()
    for path in COPY.rglob("*.py"):
        path.write_text(with_said(path.read_text(encoding="utf-8")), encoding="utf-8")


def said_beside(text: str, body: list[ast.stmt]) -> dict[str, str]:
    """The comment at the end of each field or constant of a body or, where there is none, on the lines above it."""
    lines, found = text.splitlines(), {}
    for item in body:
        if (name := named(item)) is None:
            continue
        ending = BESIDE.search(lines[(item.end_lineno or item.lineno) - 1])
        above: list[str] = []
        while not ending and (before := re.match(r"\s*# ?(.*)", lines[item.lineno - 2 - len(above)])):
            above.insert(0, before[1])
        if (said := ending[1] if ending else " ".join(above)) and not TOOL.match(said):
            found[name] = said
    return found


def named(item: ast.stmt) -> str | None:
    """The public name that a statement of a module, a class or a constructor gives a value or a type."""
    target = item.targets[0] if isinstance(item, ast.Assign) else item.target if isinstance(item, ast.AnnAssign) else None
    name = ast.unparse(target).removeprefix("self.") if isinstance(target, ast.Name | ast.Attribute) else "_"
    return name if re.fullmatch(r"[^\W_]\w*", name) else None


def with_said(text: str) -> str:
    """A module's text in which comments beside public fields and constants are their docstrings, which pages show."""
    tree, lines = ast.parse(text), text.splitlines()
    places = []
    classes = [node for node in tree.body if isinstance(node, ast.ClassDef)]
    makers = [
        item for node in classes for item in node.body if isinstance(item, ast.FunctionDef) and item.name == "__init__"
    ]
    for body in [tree.body, *(node.body for node in (*classes, *makers))]:
        beside = said_beside(text, body)
        places += [(item, beside[name]) for item in body if (name := named(item)) in beside]
    for item, said in sorted(places, key=lambda place: -place[0].lineno):
        plain = SHAPE.sub(lambda shape: f"`{shape[0]}`", said)
        lines.insert(item.end_lineno or item.lineno, f"{' ' * item.col_offset}{plain!r}")
    return "\n".join(lines) + "\n"
