"""`ebmtraj collect`: simulate episodes into a store."""

from __future__ import annotations

import shlex
from dataclasses import replace
from typing import Annotated, Any

import typer

from ebmtraj.cli.common import Json, Overwrite, Recipe, Resume, Seed, Set, print_json, progress, say


def collect_command(
    store: Annotated[str, typer.Argument(help="Where the store goes: a folder, or any fsspec URL.")],
    env: Annotated[str | None, typer.Option(help="hand-cube, or any Gymnasium id with Box spaces.")] = None,
    episodes: Annotated[int | None, typer.Option(help="Episodes to collect. [default: 1000]")] = None,
    steps: Annotated[int | None, typer.Option(help="Control steps an episode at most. [default: 100]")] = None,
    policy: Annotated[
        str | None, typer.Option(help="Who acts: random, trained (turns the cube), or your own module:function.")
    ] = None,
    policy_mode: Annotated[str | None, typer.Option(help="Of the random policy: smooth or uniform.")] = None,
    action_rule: Annotated[
        str | None, typer.Option(help="none, every-4th-random (the paper's), or twice (its published code's).")
    ] = None,
    seed: Seed = 0,
    workers: Annotated[
        int | None, typer.Option(help="Processes; the content does not depend on it. [default: cores]")
    ] = None,
    recipe: Recipe = None,
    set_: Set = None,
    resume: Resume = False,
    overwrite: Overwrite = False,
    json_: Json = False,
) -> None:
    """Simulate episodes into a store.

    Episode i depends on the seed, i and the recipe only, so any number of workers gives the same content hash. Killed at any
    moment, it leaves a store that --resume completes to the same bits.

    Example: ebmtraj collect hand.zarr --env hand-cube --episodes 2000 --policy trained --action-rule every-4th-random
    """
    from ebmtraj.collect import CollectConfig, collect
    from ebmtraj.config import from_recipe
    from ebmtraj.runs import cores

    given: dict[str, Any] = {"env": env, "episodes": episodes, "steps": steps, "policy": policy, "workers": workers}
    defaults: dict[str, Any] = {"workers": cores(), "seed": seed}
    config = from_recipe(CollectConfig, recipe, set_ or [], defaults)
    changes = {key: value for key, value in given.items() if value is not None}
    options = {"mode": policy_mode, "action_rule": action_rule}
    options = {key: value for key, value in options.items() if value is not None}
    if options:
        changes["policy_kwargs"] = {**config.policy_kwargs, **options}
    config = replace(config, **changes)
    with progress() as bar:
        task = bar.add_task(f"collecting {config.env}", total=config.episodes, note="episodes")
        result = collect(
            store,
            config,
            overwrite=overwrite,
            resume=resume,
            on_progress=lambda done, total: bar.update(task, completed=done),
        )
    if json_:
        print_json(
            {
                "episodes": result.episodes,
                "transitions": result.transitions,
                "steps_per_second": round(result.steps_per_second, 1),
                "content_hash": result.content_hash,
                "terminated": result.terminated,
            }
        )
        return
    say(
        f"{store}: {result.episodes} episodes, {result.transitions} transitions, {result.terminated} ended early, "
        f"{result.steps_per_second:,.0f} steps/s, content hash {result.content_hash[:16]}"
    )
    say(f"next: ebmtraj train transition --data {shlex.quote(store)} --run runs/hand")
