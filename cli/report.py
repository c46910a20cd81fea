"""`ebmtraj report`: runs, or results, as one HTML page."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from ebmtraj.cli.common import Device, Json, Overwrite, Seed, print_json, progress, say


def report_command(
    runs: Annotated[
        list[str],
        typer.Argument(
            help="A run of any kind, or several of one kind; or a demo's folder, the results of a comparison, or a store."
        ),
    ],
    data: Annotated[
        str | None, typer.Option("--data", help="The store to show and measure on. [default: the one that the run names]")
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="The HTML page. [default: RUN/report.html; report.html here for several]")
    ] = None,
    pictures: Annotated[
        bool, typer.Option("--pictures/--no-pictures", help="Roll out, draw samples, carry out a plan and show it.")
    ] = True,
    seed: Seed = 0,
    device: Device = "auto",
    overwrite: Overwrite = False,
    json_: Json = False,
) -> None:
    """Write one HTML page on runs: how good they are, their training, rollouts in motion, settings, how to make them again.

    The page needs nothing else and can be sent on. Several runs of one kind are shown side by side. What `ebmtraj evaluate`
    or `plan` left in a run is shown; a transition model that nobody measured is measured quickly. Runs are only read.

    Example: ebmtraj report runs/hand runs/gaussian --data hand.zarr --out report.html
    """
    from ebmtraj.device import choose_device, use_threads
    from ebmtraj.errors import EbmtrajError

    where = choose_device(device)
    use_threads(1)
    first = Path(runs[0])
    from ebmtraj.report.report import is_store, run_report  # slow to import: what is wrong is said before
    from ebmtraj.report.report_results import DEMO_MARK, demo_report, find_results, results_report
    from ebmtraj.report.shown import Wanted

    found = find_results(first)
    demo = (first / DEMO_MARK).exists()
    store = not demo and found is None and is_store(runs[0])
    if len(runs) > 1 and (demo or store or found is not None):
        raise EbmtrajError(f"{first} is no run; give it a report of its own, or runs of one kind")
    facts: dict[str, Any]
    with progress() as bar:
        task = bar.add_task("reporting", total=None, note="")
        if demo:
            facts = {"out": str(demo_report(first, overwrite=overwrite, target=out))}
        elif found is not None:
            facts = results_report(found, out or found.with_suffix(".html"), overwrite=overwrite)
        elif store:
            from ebmtraj.report.card import data_card

            facts = data_card(runs[0], out or Path("card.html"), overwrite=overwrite)
        else:
            target = out or (first / "report.html" if len(runs) == 1 else Path("report.html"))
            facts = run_report(
                [Path(run) for run in runs],
                target,
                Wanted(data, pictures, seed, where),
                overwrite=overwrite,
                tell=lambda doing: bar.update(task, description=doing),
            )
    if json_:
        print_json(facts)
        return
    for one in facts.get("runs", []):
        say(f"{one['run']}: {one['summary']}")
    say(f"{facts['out']}: {Path(facts['out']).stat().st_size / 1e6:.1f} MB; open it in any browser")
