"""The tables of docs/plans.md."""

from __future__ import annotations

import dataclasses
import inspect
import math
import shlex
from functools import partial
from itertools import pairwise
from typing import Any

from ebmtraj.report.compare_plans_table import markdown_plans
from ebmtraj.trajectories.costs import TERMS


def sequence_plans_table(results: dict[str, Any]) -> str:
    """Plans of whole state sequences and what they are compared with, as markdown."""
    asked = {
        "particle": ("point at its goal, no obstacle touched; none was in the data", "success_rate", "{:.0%}"),
        "reacher": ("Reacher's fingertip within 2 cm", "success_rate", "{:.0%}"),
        "hand": ("joints of the hand after 25 steps, rad off", "rmse_rad", "{:.3f}"),
    }
    names = list(dict.fromkeys(row for problem in results["problems"].values() for row in problem["rows"]))
    lines = [f"| | {' | '.join(names)} | holding still |", "| --- |" + " ---: |" * (len(names) + 1)]
    for name in (name for name in asked if name in results["problems"]):
        title_, measure, form = asked[name]
        rows, cells = results["problems"][name]["rows"], [title_]
        for row in names:
            said = "-"
            if row in rows:
                said = form.format(rows[row][measure])
                seeds = [found[measure] for found in rows[row]["seeds"].values()]
                ends = f"{form.format(min(seeds))}–{form.format(max(seeds))}, " if len(seeds) > 1 else ""
                said += f" <sub>{ends}{len(seeds)} seed{'s' * (len(seeds) > 1)}</sub>"
            cells.append(said)
        still = rows[names[0]].get("start_rmse_rad")
        lines.append("| " + " | ".join([*cells, "-" if still is None else form.format(still)]) + " |")
    each = next(iter(results["problems"].values()))["episodes"]
    return (
        "\n".join(lines)
        + f"\n\nMeans over training seeds, least and greatest beside them, {each} starts each; settings were chosen "
        "on other starts. Command, settings, data and all figures are in "
        "[sequence_plans.json](docs/results/sequence_plans.json).\n"
    )


def plans_table(results: dict[str, Any], name: str = "plans") -> str:
    """Controllers side by side, as markdown; `name` is that of the file."""
    protocol, machine = results["protocol"], results["protocol"]["machine"]
    seeds, trained = protocol["seeds"], protocol["data"]["splits"]["train"]
    budgets = [row["train_core_seconds"] for row in results["trainings"] if row.get("train_core_seconds")]
    spent = f", {min(budgets):.0f} to {max(budgets):.0f} s of one core each" if budgets else ""
    spread = f"Means over {len(seeds)} training seeds (least and greatest)" if len(seeds) > 1 else f"Seed {seeds[0]}"
    rule = protocol["data"]["action_noise"]
    return (
        f"{markdown_plans(results)}\n{spread}, ± the standard error over the starts. Rotate: rad along a commanded axis per "
        f"100 steps until a drop, mean of six axes. Reorient: goals 0.5 to 1.5 rad away, within 0.4 rad at the end and not "
        f"dropped; the stop rule repeats the last action within {protocol['hold_rad']:g} rad of the goal, for every method. "
        f"The same {protocol['episodes']} starts and goals for all (seed {protocol['start_seed']}, {protocol['split']} "
        f"episodes), {protocol['steps']} steps, or the first so many where a row says so; models "
        f"trained on {trained:,} episodes (random: {rule}){spent}. ms: of "
        "one core, for a control step of one episode in the batch, and of a lone one. Privileged: sees what no state holds, "
        f"the simulator or the memory of the data's policy. {machine['processor']}, {machine['cores']} cores; made by "
        f"`{protocol['command']}`, every number in [docs/results/{name}.json](/docs/results/{name}.json).\n"
    )


def composed_table(results: dict[str, Any]) -> str:
    """A constraint added at plan time, as markdown."""
    rows = [("the data", results["data"]["share"], None)]
    rows += [(f"`{results[name]['task']}`", None, results[name]) for name in ("alone", "together")]
    lines = ["| ring finger | straight | turned, rad per 100 steps | dropped |", "| --- | ---: | ---: | ---: |"]
    for label, share, found in rows:
        if found is None:
            lines.append(f"| {label} | {share:.0%} of states | - | - |")
        else:
            lines.append(
                f"| {label} | {found['kept']['keep-straight']:.1%} of steps | {found['progress_rad_per_100']:.2f} ± "
                f"{found['progress_se']:.2f} | {found['drop_rate']:.0%} |"
            )
    bent, plan = results["data"]["most_bent_joint_rad"], results["together"]
    return (
        "\n".join(lines) + f"\n\nStraight: {results['data']['means']}. In the data the joint that is bent most is bent by "
        f"{bent['0.5']:.2f} rad in the median, and hardly ever by less than {bent['0.01']:.2f}; the constraint costs "
        f"{results['turning_lost']:.0%} of the turning. {plan['episodes']} fresh starts, settings chosen on others; made by "
        f"`{plan['command']}` and its like with weight=0, every number in "
        "[docs/results/composed.json](docs/results/composed.json).\n"
    )


def terms_table(results: dict[str, Any]) -> str:
    """Every term of a task cost with its options and their defaults, as markdown."""
    rows = []
    for name, term in TERMS.items():
        about = inspect.cleandoc(term.__doc__ or "").split("\n\n")[0].replace("\n", " ").replace("|", "\\|")
        own = [f for f in dataclasses.fields(term) if f.name not in ("state_fields", "weight", "field")]
        options = ", ".join(f"`{f.name}`" + (f" ({f.default:g})" if _plain(f.default) else "") for f in own)
        rows.append(f"| `{name}` | {about} | {options or '-'} |")
    return "\n".join(["| term | cost of a path | options (default) |", "| --- | --- | --- |", *rows]) + "\n"


def _plain(default: Any) -> bool:
    return isinstance(default, float) and math.isfinite(default)


def methods_table(results: dict[str, Any]) -> str:
    """What each controller of the comparison is, as markdown."""
    told, trained = results["protocol"]["rows"], results["protocol"]["trainings"]
    lines = ["| name | what it does | trained for it | privileged |", "| --- | --- | --- | --- |"]
    for name, row in told.items():
        needs = ", ".join(f"{need} ({_settings(trained[need]['command'])})" for need in row["needs"])
        lines.append(f"| `{name}` | {row['about']} | {needs or '-'} | {'yes' if row['privileged'] else ''} |")
    return "\n".join(lines) + "\n"


def _settings(command: str) -> str:
    """`train KIND` and the settings of a training's command, without data and run."""
    words = shlex.split(command)
    options = [word for before, word in pairwise(words) if before == "--set"]
    return " ".join(["`train", words[2], *options]) + "`"


TABLES = {  # name of the table: the file of docs/results that it starts from, and what draws it
    "plans": ("plans", plans_table),
    "plans-seeds": ("plans_seeds", partial(plans_table, name="plans_seeds")),
    "plans-mixed": ("plans_mixed", partial(plans_table, name="plans_mixed")),
    "composed": ("composed", composed_table),
    "plans-methods": ("plans", methods_table),
    "plans-terms": ("plans", terms_table),
    "sequences": ("sequence_plans", sequence_plans_table),
}
