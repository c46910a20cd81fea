"""The tables of docs/continual.md, from docs/results/continual*.json."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from ebmtraj.report.continual_table import markdown_continual, markdown_grid, markdown_robot

PAGE = "docs/continual.md"


def _machine(protocol: Mapping[str, Any]) -> str:
    return f"{protocol['machine']['processor']}, {protocol['machine']['cores']} cores"


def scenario_table(results: dict[str, Any], name: str, scenario: str) -> str:
    """One scenario's table, with how it was made below the first one."""
    table = markdown_continual(results, scenario)
    protocol = results["protocol"]
    if scenario != next(iter(protocol["scenarios"])):
        return table
    images, seeds = protocol["images"], protocol["seeds"]
    minutes = protocol["core_seconds"] / 60
    over = f"Means over {len(seeds)} seeds ({seeds[0]} to {seeds[-1]}) ± standard deviation"
    over = over if len(seeds) > 1 else f"Seed {seeds[0]}"
    return (
        f"{table}\n{over}; the best of those that see no image again in bold. "
        f"{protocol['data']}: {images['train']:,} training and {images[protocol['split']]:,} "
        f"{protocol['split']} images, {len(protocol['plan'])} tasks of {len(protocol['plan'][0])} classes. {minutes:.0f} "
        f"core-minutes in all, {minutes / 4:.1f} minutes on four free cores ({_machine(protocol)}); made by "
        f"`{protocol['command']}`, every number in [docs/results/{name}.json](/docs/results/{name}.json).\n"
    )


def main_table(results: dict[str, Any]) -> str:
    """The rows that a README has room for."""
    rows = {row["learner"]: row for row in results["rows"] if row["scenario"] == "class"}
    ours, theirs = ("ebm", "ebm-shift"), ("paper-ebm", "vae", "lwf", "ewc", "fine-tune")
    chosen = (*ours, *theirs, "nearest-mean", "class-gaussian", "tilt", "joint")
    lines = ["| class-incremental | accuracy, % | forgetting, % |", "| --- | ---: | ---: |"]
    for name in chosen:
        row = rows[name]
        title = row["title"] + (" (sees images again)" if row["replay"] else "")
        spread = f" ± {row['accuracy_std']:.1f}" if row["seeds"] > 1 else ""
        lines.append(f"| {title} | {row['accuracy_mean']:.1f}{spread} | {row['forgetting']:.1f} |")
    protocol = results["protocol"]
    return "\n".join(lines) + (
        f"\n\n{protocol['data']}, five tasks of two classes, {len(protocol['seeds'])} seeds; made by "
        f"`{protocol['command']}`, every number in "
        "[docs/results/continual.json](docs/results/continual.json).\n"
    )


def grid_table(search: dict[str, Any], name: str) -> str:
    """What was tried and what was kept."""
    protocol = search["protocol"]
    return (
        f"{markdown_grid(search)}\nValidation images, seeds {protocol['seeds'][0]} to {protocol['seeds'][-1]}; made by "
        f"`{protocol['command']}`, every point in [docs/results/{name}.json](/docs/results/{name}.json).\n"
    )


def heads_table(search: dict[str, Any]) -> str:
    """The best of each classifier with a softmax over all classes so far, and over the task's own."""
    lines = ["| class-incremental, validation, % | softmax over all classes so far | over the task's own |"]
    lines.append("| --- | ---: | ---: |")
    for name in ("fine-tune", "ewc", "online-ewc", "si", "lwf"):
        points = [p for p in search["points"] if p["learner"] == name and p["scenario"] == "class"]
        best = {
            heads: max(p["accuracy_mean"] or 0.0 for p in points if p["settings"]["heads"] == heads)
            for heads in ("seen", "own")
        }
        lines.append(f"| {name} | {best['seen']:.1f} | {best['own']:.1f} |")
    return "\n".join(lines) + "\n"


def robot_table(results: dict[str, Any]) -> str:
    """Behaviours one after the other."""
    protocol = results["protocol"]
    said = protocol["collected"]
    return (
        f"{markdown_robot(results)}\nEnergy score of {protocol['samples']} futures of {protocol['horizon']} steps from each "
        f"held-out start, a mean over steps and behaviours (less is better); {said['episodes']} episodes of each behaviour, "
        f"{protocol['steps']:,} training steps on each. {_machine(protocol)}; made by `{protocol['command']}`, every "
        "number in [docs/results/continual_robot.json](/docs/results/continual_robot.json).\n"
    )


TABLES: dict[str, tuple[str, Callable[[dict[str, Any]], str]]] = {
    "continual-main": ("continual", main_table),
    "continual-class": ("continual", partial(scenario_table, name="continual", scenario="class")),
    **{
        f"continual-{each}": ("continual_told", partial(scenario_table, name="continual_told", scenario=each))
        for each in ("task", "domain")
    },
    "continual-sprites": ("continual_sprites", partial(scenario_table, name="continual_sprites", scenario="class")),
    "continual-grid": ("continual_search", partial(grid_table, name="continual_search")),
    "continual-grid-gates": ("continual_search_gates", partial(grid_table, name="continual_search_gates")),
    "continual-grid-steps": ("continual_search_steps", partial(grid_table, name="continual_search_steps")),
    "continual-grid-sprites": ("continual_sprites_search", partial(grid_table, name="continual_sprites_search")),
    "continual-heads": ("continual_search", heads_table),
    "continual-robot": ("continual_robot", robot_table),
}
