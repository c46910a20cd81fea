"""`ebmtraj diagnose`: whether a run's draws are samples of its energy."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer
from rich.table import Table

from ebmtraj.cli.common import Device, Json, Overwrite, Seed, print_json, say, stderr

ROWS = {  # what the table shows, in this order
    "acceptance": "acceptance of exact (MALA) steps",
    "step_size": "their step size",
    "energy_error": "mean energy error of a step, nats",
    "gradient_norm": "gradient norm, mean",
    "gradient_norm_max": "gradient norm, greatest",
    "energy_of_draws": "energy of the run's draws above the chains', nats",
    "energy_of_draws_sd": "the same in standard deviations",
    "energy_of_data": "energy of the data above the chains', nats",
    "energy_of_data_sd": "the same in standard deviations",
    "ess_per_step_median": "effective samples a step, median entry",
    "ess_per_step_min": "effective samples a step, slowest entry",
    "rhat_median": "split R-hat, median",
    "rhat_max": "split R-hat, greatest",
    "rhat_above_1.1": "share of entries with R-hat above 1.1",
}


def diagnose_command(
    run: Annotated[Path, typer.Argument(help="A trained run of an energy (dsm or cd).")],
    data: Annotated[str | None, typer.Option("--data", help="The store of rollouts. [default: the run's]")] = None,
    contexts: Annotated[int, typer.Option(help="Held-out transitions to draw at.", min=1)] = 32,
    chains: Annotated[int, typer.Option(help="Chains of each.", min=2)] = 4,
    steps: Annotated[int, typer.Option(help="Exact steps of each.", min=16)] = 400,
    level: Annotated[float | None, typer.Option(help="Noise level. [default: the sampler's lowest]")] = None,
    split: Annotated[str, typer.Option(help="train, validation or test.")] = "test",
    plot: Annotated[Path | None, typer.Option(help="Also draw energy and autocorrelation as PNG.")] = None,
    seed: Seed = 0,
    device: Device = "auto",
    overwrite: Overwrite = False,
    json_: Json = False,
) -> None:
    """Say whether a run's draws are samples of its energy: exact chains from them, acceptance, R-hat, effective samples.

    Chains set out from what the run's own sampler draws at held-out transitions and follow its energy by MALA, whose steps
    are accepted or rejected so that nothing but the energy decides. If the mean energy moves, the draws were not samples.

    Example: ebmtraj diagnose runs/hand --plot diagnose.png
    """
    from ebmtraj.config import read_toml
    from ebmtraj.datasets.store import Store
    from ebmtraj.device import choose_device, no_denormals
    from ebmtraj.errors import EbmtrajError
    from ebmtraj.report.diagnose import DiagnoseConfig, diagnose, diagnosis_figure, notes
    from ebmtraj.runs import Run

    where = choose_device(device)
    config = DiagnoseConfig(contexts=contexts, chains=chains, steps=steps, level=level)
    if plot is not None and plot.suffix.lower() != ".png":
        raise EbmtrajError(f"--plot {plot}: give a path that ends in .png")
    if plot is not None and plot.exists() and not overwrite:
        raise EbmtrajError(f"{plot} exists; give another path or --overwrite")
    source = data if data is not None else read_toml(Run.open(run).config).get("data")
    if not isinstance(source, str):
        raise EbmtrajError(f"run {run}: its config.toml names no data; give --data")
    with no_denormals():
        found = diagnose(run, Store.open(source), config, split=split, seed=seed, device=where)
    results: dict[str, Any] = {**found.results, "notes": notes(found.results)}
    if plot is not None:
        results["plot"] = str(diagnosis_figure(found, plot))
    if json_:
        print_json(results)
        return
    _show(run, results)


def _show(run: Path, results: dict[str, Any]) -> None:
    title = f"{run}: {results['contexts']} held-out transitions x {results['chains']} chains x {results['steps']} steps"
    at = "" if results["level"] is None else f", noise level {results['level']:g}"
    table = Table(title=title + at, title_justify="left", show_header=False)
    for key, label in ROWS.items():
        table.add_row(label, "-" if results[key] is None else f"{results[key]:.3g}")
    if results["own_step"] is not None:
        table.add_row("acceptance of the run's own Langevin steps", f"{results['own_step']['acceptance']:.3g}")
    stderr.print(table)
    for line in results["notes"]:
        say(line)
    if "plot" in results:
        say(f"wrote {results['plot']}")
