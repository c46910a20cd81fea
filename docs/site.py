"""What mkdocs does before it builds: a copy of the package without links, as the reader of docstrings follows none."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
COPY = ROOT / "build" / "api" / "ebmtraj"


def on_startup(**_: Any) -> None:
    """Make the copy anew; envs, datasets and cli, which are namespaces, get the file that makes them packages."""
    shutil.rmtree(COPY.parent, ignore_errors=True)
    shutil.copytree(ROOT / "ebmtraj", COPY, ignore=shutil.ignore_patterns("__pycache__", "*.safetensors"))
    for folder in [COPY, *(path for path in COPY.rglob("*") if path.is_dir())]:
        (folder / "__init__.py").touch()
