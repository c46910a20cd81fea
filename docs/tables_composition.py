"""The tables of docs/composition.md, made from docs/results/composition.json."""

from __future__ import annotations

from functools import partial
from typing import Any

from ebmtraj.report.compare_composition_table import SECTIONS, markdown_composition


def composition_table(results: dict[str, Any], section: str) -> str:
    """One table."""
    return markdown_composition(results, section)


def protocol_line(results: dict[str, Any]) -> str:
    """How it was made."""
    p, trained = results["protocol"], results["training"]
    seconds = ", ".join(f"{name} {said['seconds']['median']:.0f}" for name, said in trained.items())
    return (
        f"`{p['command']}`: seeds {', '.join(map(str, p['seeds']))}, {p['samples']} pictures a composition (twice as many "
        f"of `or`), {p['split']} draws; wall seconds of training on one busy core: {seconds}. {p['machine']['processor']}, "
        f"torch {p['versions']['torch']}. Every number with its least and greatest value is in "
        "[results/composition.json](results/composition.json).\n"
    )


TABLES = {
    **{f"composition-{name}": ("composition", partial(composition_table, section=name)) for name in SECTIONS},
    "composition-protocol": ("composition", protocol_line),
}
