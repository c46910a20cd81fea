"""`ebmtraj collect`: simulate episodes into a store."""

from __future__ import annotations

import contextlib
import shlex
import sys
from dataclasses import replace
from pathlib import PurePosixPath
from typing import Annotated, Any

import typer

from ebmtraj.cli import complete
from ebmtraj.cli.common import Json, Overwrite, Recipe, Resume, Seed, Set, print_json, progress, say
from ebmtraj.cli.dry import DryRun, refuse_resume, tell_estimate


def collect_command(
    store: Annotated[str, typer.Argument(help="Where the store goes: a folder, or any fsspec URL.")],
    env: Annotated[str | None, typer.Option(help="hand-cube, or any Gymnasium id with Box spaces.")] = None,
    state: Annotated[
        str | None,
        typer.Option(help="physics (a MuJoCo robot's joints), observation, or auto: physics where it can. [default: auto]"),
    ] = None,
    episodes: Annotated[int | None, typer.Option(help="Episodes to collect. [default: 1000]")] = None,
    steps: Annotated[int | None, typer.Option(help="Control steps an episode at most. [default: 100]")] = None,
    policy: Annotated[
        str | None,
        typer.Option(
            help="Who acts: random, trained (turns the cube), to-goal, or your own module:function.",
            autocompletion=complete.among(*complete.POLICIES),
        ),
    ] = None,
    policy_mode: Annotated[str | None, typer.Option(help="Of the random policy: smooth or uniform.")] = None,
    action_rule: Annotated[
        str | None,
        typer.Option(
            help="none, every-4th-random (the paper's), or twice (its published code's).",
            autocompletion=complete.among(*complete.ACTION_RULES),
        ),
    ] = None,
    seed: Seed = 0,
    workers: Annotated[
        int | None, typer.Option(help="Processes; the content does not depend on it. [default: all cores]")
    ] = None,
    backend: Annotated[
        str | None, typer.Option(help="local (processes of this machine) or ray (a cluster; needs the extra ray).")
    ] = None,
    address: Annotated[
        str | None,
        typer.Option(help="Of a running Ray cluster; auto: the one of this machine. [default: Ray on this machine alone]"),
    ] = None,
    recipe: Recipe = None,
    set_: Set = None,
    resume: Resume = False,
    overwrite: Overwrite = False,
    dry_run: DryRun = False,
    json_: Json = False,
) -> None:
    """Simulate episodes into a store.

    Episode i depends on the seed, i and the recipe only, so any number of workers gives the same content hash. Killed at any
    moment, it leaves a store that --resume completes to the same bits.

    On a cluster: `ray start --head` on the first machine, `ray start --address FIRST:6379` on the others, and
    --backend ray --address auto on any of them. Only this process writes the store.

    Example: ebmtraj collect hand.zarr --env hand-cube --episodes 2000 --policy trained --action-rule every-4th-random
    """
    from ebmtraj.collect import CollectConfig, collect
    from ebmtraj.config import from_recipe

    given: dict[str, Any] = {"env": env, "state": state, "episodes": episodes, "steps": steps, "policy": policy}
    given |= {"workers": workers, "backend": backend, "address": address}
    defaults: dict[str, Any] = {"workers": 0, "seed": seed}
    config = from_recipe(CollectConfig, recipe, set_ or [], defaults)
    changes = {key: value for key, value in given.items() if value is not None}
    options = {"mode": policy_mode, "action_rule": action_rule}
    options = {key: value for key, value in options.items() if value is not None}
    if options:
        changes["policy_kwargs"] = {**config.policy_kwargs, **options}
    config = replace(config, **changes)
    if dry_run:
        from ebmtraj.datasets.writer import refuse_taken
        from ebmtraj.report.estimate import estimate_collection

        refuse_resume(resume)
        refuse_taken(store, overwrite=overwrite)
        tell_estimate(estimate_collection(store, config), json_)
    # Ray tells of workers that died on stdout, which is for --json alone
    with progress() as bar, contextlib.redirect_stdout(sys.stderr):
        task = bar.add_task(f"collecting {config.env}", total=config.episodes, note="episodes")
        result = collect(
            store,
            config,
            overwrite=overwrite,
            resume=resume,
            on_progress=lambda done, total: bar.update(task, completed=done),
        )
    limit = result.open_loop_steps_per_second
    if json_:
        print_json(
            {
                "episodes": result.episodes,
                "transitions": result.transitions,
                "steps_per_second": round(result.steps_per_second, 1),
                "content_hash": result.content_hash,
                "terminated": result.terminated,
                "workers": result.workers,
                "open_loop_steps_per_second": limit and round(limit, 1),
                "of_open_loop_limit": limit and round(result.steps_per_second / limit, 3),
            }
        )
        return
    say(
        f"{store}: {result.episodes} episodes, {result.transitions} transitions, {result.terminated} ended early, "
        f"content hash {result.content_hash[:16]}"
    )
    if result.steps_per_second:
        rate = f"{result.steps_per_second:,.0f} steps/s with {result.workers} workers, their start included"
        of = f", {result.steps_per_second / limit:.0%} of MuJoCo's {limit:,.0f} without a policy or a store" if limit else ""
        say(rate + of)
    run = f"runs/{PurePosixPath(store).stem}"
    say(f"next: ebmtraj train transition --data {shlex.quote(store)} --run {shlex.quote(run)}")
