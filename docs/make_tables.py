"""Write the results tables of README.md and docs/ from docs/results/*.json; with --check, only say if they are up to date.

usage: python docs/make_tables.py [--check] [--from runs/demo]

`--from` first takes a demo's results.json and pictures into docs/results and docs/images.
"""

from __future__ import annotations

import argparse
import dataclasses
import inspect
import json
import math
import shlex
import shutil
import sys
from collections.abc import Sequence
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import tables_composition
import tables_continual
import tables_tilting

from ebmtraj.report.compare_figures import median_curves
from ebmtraj.report.compare_images_table import SECTIONS, markdown_images, markdown_note
from ebmtraj.report.compare_plans_table import markdown_plans
from ebmtraj.report.compare_table import COLUMNS, MAIN, markdown_comparison
from ebmtraj.report.style import ordered, title
from ebmtraj.report.tables import HEADERS, markdown_table, number
from ebmtraj.trajectories.costs import TERMS

ROOT = Path(__file__).parent.parent
PAGES = ("README.md", *sorted(f"docs/{page.name}" for page in Path(__file__).parent.glob("*.md")))
ROBOTS = ("reacher", "halfcheetah", "ant")
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


def demo_table(results: dict[str, Any]) -> str:
    """The demo's figures as markdown."""
    names = {"unconditional": "unconditional", "action_conditional": "action-conditional"}
    rows = {f"Fréchet distance, {names[panel]}": values for panel, values in results["frechet"].items()}
    rows |= {f"of one-step changes, {names[panel]}": values for panel, values in results["frechet_changes"].items()}
    rows |= {f"energy score, {names[panel]}": values for panel, values in results["energy_score"].items()}
    table = markdown_table(rows, corner=f"{results['starts']} held-out episodes x {results['steps']} steps")
    machine, versions = results["machine"], results["versions"]
    trained = "; ".join(
        f"{names[panel]}: " + ", ".join(f"{title(name)} {seconds:.0f} s" for name, seconds in values.items())
        for panel, values in results["training_seconds"].items()
    )
    plan = results.get("plan")
    planned = (
        f"Plans for `{plan['task']}`, {plan['episodes']} fresh starts in the simulator: turned "
        f"**{plan['progress_rad_per_100']:.2f}** ± {plan['progress_se']:.2f} rad per 100 steps, {plan['drop_rate']:.0%} "
        f"dropped, after {plan['training_seconds']:.0f} s of training on one core.\n\n"
        if plan
        else ""
    )
    return (
        f"{table}\n{planned}Lower is better. Training time on one core each, {trained}. One seed ({results['seed']}), "
        f"{results['seconds']['total']:.0f} s in all on "
        f"{machine['cores']} cores ({machine['processor']}), torch {versions['torch']}, MuJoCo {versions['mujoco']}; "
        "made by `make results`, every number in [docs/results/demo.json](docs/results/demo.json).\n"
    )


def policy_table(results: dict[str, Any]) -> str:
    """How far the shipped policy turns the cube, as markdown."""
    axes = list(next(iter(results["rules"].values()))["per_axis"])
    header = ["action rule", "turned, rad per 100 steps", "dropped", *axes, "random actions instead"]
    lines = ["| " + " | ".join(header) + " |", "| --- |" + " ---: |" * (len(header) - 1)]
    for rule, row in results["rules"].items():
        cells = [rule, f"**{row['progress_rad_per_100']:.2f}** ± {row['standard_error']:.2f}", f"{row['drop_rate']:.1%}"]
        cells += [f"{row['per_axis'][axis]:.2f}" for axis in axes]
        cells.append(f"{row['random']['progress_rad_per_100']:.2f}, {row['random']['drop_rate']:.1%} dropped")
        lines.append("| " + " | ".join(cells) + " |")
    return (
        "\n".join(lines) + "\n\nTurned along the commanded axis until a drop, mean over the six axes ± standard error; made "
        f"by `{results['command']}`, every number in [docs/results/policy.json](docs/results/policy.json).\n"
    )


def cd_table(results: dict[str, Any]) -> str:
    """The paper's objective beside the demo's models, as markdown."""
    demo = json.loads((ROOT / "docs" / "results" / "demo.json").read_text(encoding="utf-8"))
    panels = {"unconditional": "unconditional", "action_conditional": "action-conditional"}
    rows = {}
    for panel, label in panels.items():
        for key, name in (("frechet", "Fréchet distance"), ("energy_score", "energy score")):
            rows[f"{name}, {label}"] = {"cd": results[panel][key], **demo[key][panel]}
    seconds = " and ".join(f"{results[panel]['training_seconds']:.0f} s ({label})" for panel, label in panels.items())
    return (
        f"{markdown_table(rows, corner='as above', ratio=('fc', 'cd'))}\n`cd` trained for {seconds}, "
        "the others as above; commands and numbers in [docs/results/cd.json](docs/results/cd.json), all settings that were "
        "tried, the paper's own among them, in [docs/results/cd_search.json](docs/results/cd_search.json).\n"
    )


def data_table(scale: dict[str, Any]) -> str:
    """What collecting and reading cost, as markdown; each row from a file of its own."""
    collection, kills, reading, seeds = (load(name) for name in ("collection", "kills", "reading", "policy_seeds"))
    whole = f"{scale['episodes']:,} episodes" + (
        "" if scale["complete"] else f" (all would take {scale['minutes_for_all']:.0f} min)"
    )
    limit, runs, peers = collection["of_open_loop_limit"], collection["steps_per_second"], collection["peers"]
    best = max(peers, key=lambda name: peers[name]["steps_per_second"])
    ray = load("kills_ray")
    equal, on_ray = (
        sum(row["hash_equal"] and row["verified"] and not row["faults"] for row in each["rows"]) for each in (kills, ray)
    )
    windows, training = reading["random_windows"], reading["training_one_core"]["streamed"]
    others = [row for row in seeds["rows"] if not row["shipped"]]
    rows = [
        (
            f"collecting {whole} x 100 steps, {scale['machine']['cores']} cores",
            f"{scale['minutes']:.0f} min ({scale['steps_per_second']:,.0f} steps/s); {scale['store_bytes'] / 1e9:.2f} GB in "
            f"{scale['files']} files; {scale['peak_resident_bytes'] / 1e9:.2f} GB of memory at most",
            "scale",
        ),
        (
            "collecting against MuJoCo's open-loop limit on as many threads",
            f"{limit['median']:.2f} of it ({limit['min']:.2f} to {limit['max']:.2f} in {len(runs)} runs of "
            f"{collection['episodes']:,} episodes), policy, worker start and store included; "
            f"{scale['collect']['of_open_loop_limit']:.2f} in the run above, beside other work",
            "collection",
        ),
        (
            f"against collecting the same with Gymnasium's vector environments ({best}, the faster kind)",
            f"{collection['over_best_peer']:.2f}x; against their bare stepping, without starts and policy, "
            f"{collection['over_best_bare_stepping']:.2f}x",
            "collection",
        ),
        (
            f"{len(kills['rows'])} collections, `kill -9` of parent, worker or all at a random moment, then `--resume`",
            f"{equal} of {len(kills['rows'])} with the content hash of an undisturbed one; on Ray {on_ray} of "
            f"{len(ray['rows'])} ([kills_ray.json](docs/results/kills_ray.json))",
            "kills",
        ),
        (
            "reading random windows on one core",
            "; ".join(
                f"of length {length}: {found['delivered']['mb_per_s']:,.0f} MB/s handed out, "
                f"{found['decoded']['mb_per_s']:,.0f} decoded"
                for length, found in windows.items()
            )
            + f"; all of it in order: {reading['whole']['store_read_all']['mb_per_s']:,.0f} MB/s",
            "reading",
        ),
        (
            "training that reads meanwhile, one core",
            f"{training['share']:.1%} of the time in drawing batches, {training['waited_seconds']['after_it']:.2f} of "
            f"{training['loop_seconds']:.0f} s waiting for data",
            "reading",
        ),
        (
            "the policy's recipe on other seeds, every 4th action random",
            "; ".join(
                f"seed {row['seed']}: {row['progress_rad_per_100']:.2f} rad, {row['drop_rate']:.1%} dropped, "
                f"{row['training_minutes']:.0f} min on {row['threads']} cores"
                for row in others
            ),
            "policy_seeds",
        ),
    ]
    lines = ["| what | measured | from |", "| --- | --- | --- |"]
    lines += [f"| {what} | {found} | [{name}.json](docs/results/{name}.json) |" for what, found, name in rows]
    return "\n".join(lines) + "\n\nEach file names the command that made it.\n"


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


def images_table(results: dict[str, Any], kind: str, section: str) -> str:
    """One table of a comparison of image models, as markdown; the first of a comparison says how it was made."""
    table = markdown_images(results, SECTIONS[kind][section])
    return f"{table}\n{markdown_note(results, kind)}" if section == next(iter(SECTIONS[kind])) else table


def sampler_table(results: dict[str, Any]) -> str:
    """What a Langevin step costs by each backend and peer, a table a workload, as markdown."""
    parts = []
    for found in results["results"]:
        if isinstance(found["rows"], str):
            parts.append(f"{found['workload']} on a {found['device']}: {found['rows']}.\n")
            continue
        peers = "bound_ms" in found
        header = [f"{found['workload']} ({found['device']})", "ms a step"]
        header += ["of the bound", "over TorchEBM", "over its fastest", "over blackjax"] if peers else ["least", "most"]
        lines = ["| " + " | ".join(header) + " |", "| --- |" + " ---: |" * (len(header) - 1)]
        for row in found["rows"]:
            cells = [f"{row['ms_a_step']:.3g}"]
            if peers:
                ratios = (row["over_torchebm_eager"], row["over_torchebm"], row["over_blackjax"])
                cells += [f"{row['of_bound']:.2f}", *("-" if ratio is None else f"{ratio:.2f}x" for ratio in ratios)]
            else:
                cells += [f"{row['least']:.3g}", f"{row['most']:.3g}"]
            lines.append("| " + " | ".join([f"`{row['variant'].removeprefix('ebmtraj ')}`", *cells]) + " |")
        if peers:
            best, bound = found["best_torchebm_fp32"], found["bound_ms"]
            lines.append(
                f"\nBound {bound:.3g} ms. Ratios are of speed, to TorchEBM as it comes and to its fastest in fp32 ({best}); "
                f"medians of {found['rounds']} rounds, at a load of {found['load']:.0f}."
            )
        parts.append("\n".join(lines) + "\n")
    versions = results["versions"]
    named = ", ".join(f"{name} {versions[name]}" for name in ("torch", "torchebm", "blackjax", "jax") if name in versions)
    return (
        "\n".join(parts)
        + f"\n{results['steps']} steps a chain, one thread of one core that other work shared, all variants in "
        f"turn in one process; {named}; made by `{results['command']}`, every number in "
        "[sampler.json](/docs/results/sampler.json).\n"
    )


def ess_table(results: dict[str, Any]) -> str:
    """Effective samples a second of MALA beside blackjax's, as markdown."""
    samplers = list(dict.fromkeys(row["sampler"] for row in results["rows"]))
    lines = ["| chains | " + " | ".join(samplers) + " | best / blackjax |", "| ---: |" + " ---: |" * (len(samplers) + 1)]
    for chains in dict.fromkeys(row["chains"] for row in results["rows"]):
        rates = {row["sampler"]: row["ess_a_second"] for row in results["rows"] if row["chains"] == chains}
        own = max(rate for name, rate in rates.items() if name != "blackjax")
        ratio = f"{own / rates['blackjax']:.2f}" if "blackjax" in rates else "-"
        cells = [f"{rates[name]:,.0f}" for name in samplers]
        lines.append(f"| {chains:,} | " + " | ".join([*cells, ratio]) + " |")
    return (
        "\n".join(lines) + f"\n\nOf the worst of {results['dimensions']} dimensions, whose precisions span a factor of "
        f"{results['stiff']:g}; one core, medians of {results['rounds']} rounds; made by `{results['command']}`, every "
        "number in [ess.json](/docs/results/ess.json).\n"
    )


def ais_table(results: dict[str, Any]) -> str:
    """Errors of annealed importance sampling, as markdown."""
    seeds = len({row["seed"] for row in results["rows"]})
    lines = ["| energy | greatest error, nats | greatest gap of the bounds | seconds |", "| --- | ---: | ---: | ---: |"]
    for name, found in results["summary"].items():
        lines.append(f"| {name} | {found['worst_error']:.3f} | {found['worst_gap']:.3f} | {found['seconds']:.1f} |")
    return (
        "\n".join(lines)
        + f"\n\n{results['temperatures']:,} temperatures, {results['particles']:,} particles, {seeds} seeds, one "
        f"core; made by `{results['command']}`, every number in [ais.json](/docs/results/ais.json).\n"
    )


TABLES = {  # name of the table: the file of docs/results that it starts from, and what draws it
    "demo": ("demo", demo_table),
    "cd": ("cd", cd_table),
    "policy": ("policy", policy_table),
    "data": ("scale", data_table),
    "transitions": ("transitions", transitions_table),
    "transitions-all": ("transitions", partial(transitions_table, columns=tuple(COLUMNS))),
    "ablations": ("ablations", transitions_table),
    "robots": ("robots_reacher", robots_table),
    "long": ("long", long_table),
    "plans": ("plans", plans_table),
    "plans-seeds": ("plans_seeds", partial(plans_table, name="plans_seeds")),
    "plans-mixed": ("plans_mixed", partial(plans_table, name="plans_mixed")),
    "composed": ("composed", composed_table),
    "plans-methods": ("plans", methods_table),
    "plans-terms": ("plans", terms_table),
    "curves": ("learning_curves", curves_table),
    "sequences": ("sequence_plans", sequence_plans_table),
    **{
        f"{kind}-{section}": (kind, partial(images_table, kind=kind, section=section))
        for kind in SECTIONS
        for section in SECTIONS[kind]
    },
    **tables_composition.TABLES,
    **tables_continual.TABLES,
    "sampler": ("sampler", sampler_table),
    "ess": ("ess", ess_table),
    "ais": ("ais", ais_table),
    **tables_tilting.TABLES,
}


def load(name: str) -> dict[str, Any]:
    """A file of docs/results."""
    found: dict[str, Any] = json.loads((ROOT / "docs" / "results" / f"{name}.json").read_text(encoding="utf-8"))
    return found


def fill(text: str) -> str:
    """A page with its tables made anew."""
    for name, (file, table) in TABLES.items():
        start, end = f"<!-- results:{name} -->", f"<!-- /results:{name} -->"
        if start not in text:
            continue
        results = load(file)
        before, _, rest = text.partition(start)
        _, _, after = rest.partition(end)
        text = f"{before}{start}\n{table(results)}{end}{after}"
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
        new = fill(old)
        if not arguments.check:
            page.write_text(new, encoding="utf-8")
        elif old != new:
            print(f"{name} does not show what docs/results holds; run `make tables`", file=sys.stderr)
            stale = 1
    return stale


if __name__ == "__main__":
    sys.exit(main())
