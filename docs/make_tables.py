"""Write the results tables of README.md and docs/ from docs/results/*.json; with --check, only say if they are up to date.

usage: python docs/make_tables.py [--check] [--from runs/demo]

`--from` first takes a demo's results.json and pictures into docs/results and docs/images.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import re
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from results_files import ROOT, load

PAGES = ("README.md", *sorted(str(page.relative_to(ROOT)) for page in (ROOT / "docs").rglob("*.md")))
LINK = re.compile(r"\]\(/?(?:docs/)?results/")  # to a file of results, from wherever
PICTURES = {"frechet.png": "frechet.png", "strip.png": "figures/unconditional/strip.png"}
PICTURES["rollouts.gif"] = "figures/unconditional/rollouts.gif"
PICTURES["plan.gif"] = "figures/plan.gif"


def take(demo: Path) -> None:
    """Copy what a demo made."""
    results = json.loads((demo / "results.json").read_text(encoding="utf-8"))
    for key in ("pictures", "pictures_missing", "figure"):
        results.pop(key, None)
    target = ROOT / "docs" / "results" / "demo.json"
    target.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    for name, source in PICTURES.items():
        shutil.copyfile(demo / source, ROOT / "docs" / "images" / name)


def tables() -> dict[str, tuple[str, Callable[[dict[str, Any]], str]]]:
    """Every table of the modules beside this one: the file of docs/results that it starts from, and what draws it."""
    found: dict[str, tuple[str, Callable[[dict[str, Any]], str]]] = {}
    for module in sorted(Path(__file__).parent.glob("tables_*.py")):
        found |= importlib.import_module(module.stem).TABLES
    return found


def fill(text: str, folder: str) -> str:
    """A page with its tables made anew, whose links find docs/ at `folder`."""
    known = tables()
    for name in re.findall(r"^<!-- results:(.+) -->$", text, re.M):
        if name not in known:
            raise SystemExit(f"no table {name!r}; there are {', '.join(known)}")
        start, end = f"<!-- results:{name} -->", f"<!-- /results:{name} -->"
        file, table = known[name]
        results = load(file)
        before, _, rest = text.partition(start)
        _, _, after = rest.partition(end)
        text = f"{before}{start}\n{LINK.sub(f']({folder}results/', table(results))}{end}{after}"
    return text


def main() -> int:
    """Write, or check."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true")
    parser.add_argument("--from", dest="demo", type=Path)
    arguments = parser.parse_args()
    if arguments.demo is not None:
        take(arguments.demo)
    stale = 0
    for name in PAGES:
        page = ROOT / name
        old = page.read_text(encoding="utf-8")
        new = fill(old, os.path.relpath(ROOT / "docs", page.parent) + "/" if page.parent != ROOT / "docs" else "")
        if not arguments.check:
            page.write_text(new, encoding="utf-8")
        elif old != new:
            print(f"{name} does not show what docs/results holds; run `make tables`", file=sys.stderr)
            stale = 1
    return stale


if __name__ == "__main__":
    sys.exit(main())
