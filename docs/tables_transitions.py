"""The tables of docs/transitions.md."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

from results_files import load

from ebmtraj.report.compare_figures import median_curves
from ebmtraj.report.compare_table import COLUMNS, MAIN, markdown_comparison
from ebmtraj.report.style import ordered
from ebmtraj.report.tables import HEADERS, number

SHORT = ("fd100", "energy_score", "c2st_rollout", "ms_per_step")  # in the README
ROBOTS = ("reacher", "halfcheetah", "ant")


def transitions_table(results: dict[str, Any], columns: Sequence[str] = MAIN) -> str:
    """Transition models side by side, a table a task, as markdown."""
    protocol, machine = results["protocol"], results["protocol"]["machine"]
    tables = "\n".join(markdown_comparison(results, task, columns) for task in protocol["tasks"])
    trained, seeds = protocol["data"]["splits"]["train"], len(protocol["seeds"])
    how = (
        f"{protocol['seconds']:g} s of one core for each training on {trained:,} episodes, {protocol['steps']}-step "
        f"rollouts from {protocol['starts']} {protocol['split']} episodes, {protocol['samples']} of each start"
    )
    spread = f"Medians over {seeds} seeds, least and greatest beside them" if seeds > 1 else f"Seed {protocol['seeds'][0]}"
    return (
        f"{tables}\n{spread}; {how}. Lower is better; ratios are best at 1, coverage at 0.9. {machine['processor']}, "
        f"{machine['cores']} cores; made by `{protocol['command']}`, every number in {link(protocol['command'])}.\n"
    )


def link(command: str) -> str:
    """A link to the file that a comparison's command wrote, for a page of the repository's root or of docs/."""
    path = command.partition("--out ")[2].split()[0]
    return f"[{path}](/{path})"


def robots_table(_: dict[str, Any]) -> str:
    """Transition models of other robots, Fréchet distance and C2ST, a table a task, as markdown."""
    found = {name: load(f"robots_{name}") for name in ROBOTS}
    parts = []
    for task in next(iter(found.values()))["protocol"]["tasks"]:
        models = ordered(next(iter(found.values()))["summary"][task])
        header = [task]
        for results in found.values():
            robot = results["protocol"]["data"]["env"]
            header += [f"{robot} FD", "of changes", "energy score", "C2ST"]
        lines = ["| " + " | ".join(header) + " |", "| --- |" + " ---: |" * (len(header) - 1)]
        keys = ("fd100", "fd_delta", "energy_score", "c2st_rollout")
        rows = {
            model: [results["summary"][task][model][key] for results in found.values() for key in keys] for model in models
        }
        columns = list(zip(*rows.values(), strict=True))
        best = [min((cell["median"] for cell in column if cell), default=None) for column in columns]
        for model, cells in rows.items():
            shown = []
            for cell, least in zip(cells, best, strict=True):
                text = "-" if cell is None else number(cell["median"])
                shown.append(f"**{text}**" if cell and cell["median"] == least else text)
            lines.append("| " + " | ".join([HEADERS.get(model, model), *shown]) + " |")
        floor = [results["floor"][task].get(key) for results in found.values() for key in keys]
        lines.append("| " + " | ".join(["floor", *(number(value) for value in floor)]) + " |")
        parts.append("\n".join(lines) + "\n")
    how = []
    for results in found.values():
        protocol = results["protocol"]
        how.append(
            f"{protocol['data']['env']}: {protocol['data']['splits']['train']:,} training episodes, {protocol['starts']} "
            f"{protocol['split']} episodes x {protocol['steps']} steps, {protocol['seconds']:g} s of one core a training, "
            f"{len(protocol['seeds'])} seed{'s' * (len(protocol['seeds']) != 1)}, {link(protocol['command'])}"
        )
    return "\n".join(parts) + "\n" + "; ".join(how) + f". Made by `{protocol['command']}` and its like for the others.\n"


def curves_table(results: dict[str, Any]) -> str:
    """Fréchet distance of models by their seconds of training, as markdown."""
    protocol = results["protocol"]
    told = protocol["rows"]
    seconds = sorted({protocol["seconds"] * told[row].get("time", 1.0) for row in told})
    parts = []
    for task in protocol["tasks"]:
        header = [f"{task}, FD after", *(f"{each:.0f} s" for each in seconds)]
        lines = ["| " + " | ".join(header) + " |", "| --- |" + " ---: |" * len(seconds)]
        for model in dict.fromkeys(told[row]["model"] for row in told):
            found = {
                protocol["seconds"] * told[row].get("time", 1.0): results["summary"][task][row]["fd100"]
                for row in told
                if told[row]["model"] == model
            }
            cells = [number(found[each]["median"]) if found.get(each) else "-" for each in seconds]
            lines.append(f"| {HEADERS.get(model, model)} | " + " | ".join(cells) + " |")
        parts.append("\n".join(lines) + "\n")
    return (
        "\n".join(parts) + f"\nSeeds {', '.join(map(str, protocol['seeds']))}, {protocol['starts']} {protocol['split']} "
        f"episodes; made by `{protocol['command']}`, every number in {link(protocol['command'])}.\n"
    )


def long_table(results: dict[str, Any]) -> str:
    """Rollouts ten times as long as those that settings were chosen by, as markdown."""
    protocol, summary = results["protocol"], results["summary"]["unconditional"]
    steps = protocol["steps"]
    header = [f"{protocol['starts']} starts x {protocol['samples']}", "FD at 100", f"FD at {steps}", "ratio", "C2ST rollout"]
    header.append(f"terminated by {steps}")
    lines = ["| " + " | ".join(header) + " |", "| --- |" + " ---: |" * (len(header) - 1)]
    curves = median_curves(results)["unconditional"]
    for model in [*ordered(summary), "floor"]:
        early, late = curves[model][100], curves[model][steps]
        said = summary.get(model) or {}
        c2st = said["c2st_rollout"]["median"] if said else results["floor"]["unconditional"]["c2st_rollout"]
        ended = said["terminated"]["median"] if said else results["floor"]["unconditional"]["terminated"]
        cells = [number(early), number(late), f"{late / early:.2f}", number(c2st), f"{ended:.1%}"]
        lines.append(f"| {HEADERS.get(model, model)} | " + " | ".join(cells) + " |")
    return (
        "\n".join(lines) + f"\n\nTrained on other episodes of 100 steps, {protocol['seconds']:g} s of one core each, "
        f"seeds {', '.join(map(str, protocol['seeds']))}; made by `{protocol['command']}`, every number in "
        f"{link(protocol['command'])}.\n"
    )


TABLES = {  # name of the table: the file of docs/results that it starts from, and what draws it
    "transitions": ("transitions", transitions_table),
    "transitions-all": ("transitions", partial(transitions_table, columns=tuple(COLUMNS))),
    "transitions-short": ("transitions", partial(transitions_table, columns=SHORT)),
    "ablations": ("ablations", transitions_table),
    "robots": ("robots_reacher", robots_table),
    "long": ("long", long_table),
    "curves": ("learning_curves", curves_table),
}
