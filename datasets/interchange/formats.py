"""The formats by name: one line makes a new one known."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from ebmtraj.datasets.interchange.described import Given
from ebmtraj.datasets.interchange.diffusion_policy import DiffusionPolicySource
from ebmtraj.datasets.interchange.lerobot import export_lerobot
from ebmtraj.datasets.interchange.minari import MinariSource, export_minari
from ebmtraj.datasets.interchange.npz import NpzSource, export_npz
from ebmtraj.datasets.interchange.source import Progress, Source, Transferred, import_source, refuse_target
from ebmtraj.datasets.interchange.target import Exported, local_path
from ebmtraj.errors import EbmtrajError

EXPORTS: dict[str, Callable[..., Exported]] = {"minari": export_minari, "lerobot": export_lerobot, "npz": export_npz}
IMPORTS: dict[str, Callable[[str, Given], Source]] = {
    "minari": MinariSource,
    "diffusion-policy": DiffusionPolicySource,
    "npz": NpzSource,
}


def export_store(
    path: str,
    out: str | Path,
    form: str,
    *,
    overwrite: bool = False,
    on_progress: Progress = lambda stage, done, total: None,
) -> Exported:
    """Write a store in another format.

    Raises `EbmtrajError` for an unknown one, where `out` is no local path, and as the format's own function.
    """
    if form not in EXPORTS:
        raise EbmtrajError(f"unknown format {form!r} to export to; use one of {', '.join(EXPORTS)}")
    return EXPORTS[form](path, local_path(out), overwrite=overwrite, on_progress=on_progress)


def import_store(
    source: str,
    path: str,
    form: str,
    given: Given | None = None,
    *,
    overwrite: bool = False,
    resume: bool = False,
    on_progress: Progress = lambda stage, done, total: None,
) -> Transferred:
    """Make a store from data in another format; raises `EbmtrajError` for an unknown one, and as `import_source`."""
    if form not in IMPORTS:
        raise EbmtrajError(f"unknown format {form!r} to import from; use one of {', '.join(IMPORTS)}")
    refuse_target(path, overwrite=overwrite, resume=resume)
    made = IMPORTS[form](source, given or Given())
    return import_source(made, path, overwrite=overwrite, resume=resume, on_progress=on_progress)
