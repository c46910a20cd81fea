"""The files of docs/results, as the tables read them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent


def load(name: str) -> dict[str, Any]:
    """A file of docs/results; raises `SystemExit` where it is missing."""
    path = ROOT / "docs" / "results" / f"{name}.json"
    if not path.exists():
        raise SystemExit(f"docs/results/{name}.json is missing: the page that shows it names the command that makes it")
    found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return found
