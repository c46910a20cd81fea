"""The tables of docs/images.md."""

from __future__ import annotations

from functools import partial
from typing import Any

from ebmtraj.report.compare_images_table import SECTIONS, markdown_images, markdown_note


def images_table(results: dict[str, Any], kind: str, section: str) -> str:
    """One table of a comparison of image models, as markdown; the first of a comparison says how it was made."""
    table = markdown_images(results, SECTIONS[kind][section])
    return f"{table}\n{markdown_note(results, kind)}" if section == next(iter(SECTIONS[kind])) else table


TABLES = {  # name of the table: the file of docs/results that it starts from, and what draws it
    f"{kind}-{section}": (kind, partial(images_table, kind=kind, section=section))
    for kind in SECTIONS
    for section in SECTIONS[kind]
}
