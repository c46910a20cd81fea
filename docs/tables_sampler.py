"""The tables of docs/sampler.md."""

from __future__ import annotations

from typing import Any


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
    "sampler": ("sampler", sampler_table),
    "ess": ("ess", ess_table),
    "ais": ("ais", ais_table),
}
