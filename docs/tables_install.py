"""What an installation takes."""

from __future__ import annotations

from typing import Any


def install_table(results: dict[str, Any]) -> str:
    """Default dependencies, largest first, as markdown."""
    lines = ["| default dependency | MB | with what only it brings, MB | what for |", "| --- | ---: | ---: | --- |"]
    for row in results["rows"]:
        both = row["mb"] + row["brings_mb"]
        lines.append(f"| {row['dependency']} {row['version']} | {row['mb']:.1f} | {both:.1f} | {row['reason']} |")
    shared = results["shared"]
    lines.append(f"| what several of them bring: {len(shared['names'])} packages | {shared['mb']:.1f} | | |")
    return (
        "\n".join(lines)
        + f"\n\n{results['packages']} packages, {results['total_mb']:.0f} MB on disk without bytecode, with "
        f"torch {results['versions']['torch']}; made by `{results['command']}`, every number in "
        "[docs/results/install.json](docs/results/install.json).\n"
    )


TABLES = {"install": ("install", install_table)}
