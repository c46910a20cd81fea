"""The tables of the demo, the data policy and the store."""

from __future__ import annotations

import json
from typing import Any

from results_files import ROOT, load

from ebmtraj.report.style import title
from ebmtraj.report.tables import markdown_table


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


TABLES = {  # name of the table: the file of docs/results that it starts from, and what draws it
    "demo": ("demo", demo_table),
    "cd": ("cd", cd_table),
    "policy": ("policy", policy_table),
    "data": ("scale", data_table),
}
