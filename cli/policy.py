"""`ebmtraj policy`: train the policy that turns the cube, and measure any policy."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from ebmtraj.cli.common import Json, Overwrite, Recipe, Resume, Seed, Set, print_json, progress, say
from ebmtraj.cli.dry import DryRun, refuse_resume, tell_estimate

app = typer.Typer(help="The data policy: train it, measure it.", no_args_is_help=True)

Threads = Annotated[int | None, typer.Option(help="Threads of the simulator. [default: 2]", min=1)]


@app.command("train")
def train_command(
    run: Annotated[Path, typer.Option("--run", help="The run directory to make.")],
    seed: Annotated[int | None, typer.Option("--seed", help="Same seed, same bits on one machine.", min=0)] = None,
    threads: Threads = None,
    recipe: Recipe = None,
    set_: Set = None,
    resume: Resume = False,
    overwrite: Overwrite = False,
    dry_run: DryRun = False,
    json_: Json = False,
) -> None:
    """Train the policy that turns the cube of hand-cube: six gaits, then a network that corrects them.

    About half an hour on two cores, without a GPU. A killed run goes on with --resume after its last finished gait.

    Example: ebmtraj policy train --run runs/policy --seed 1
    """
    from ebmtraj.config import from_recipe
    from ebmtraj.policy.train import PolicyConfig, Progress, train_policy

    overrides = [*(set_ or [])]
    overrides += [f"{key}={value}" for key, value in (("seed", seed), ("threads", threads)) if value is not None]
    if recipe is None and resume and (run / "config.toml").exists():
        recipe = run / "config.toml"
    config = from_recipe(PolicyConfig, recipe, overrides)
    if dry_run:
        from ebmtraj.report.estimate import estimate_policy

        refuse_resume(resume)
        tell_estimate(estimate_policy(run, config, overwrite=overwrite), json_)
    with progress() as bar:
        task = bar.add_task("training the policy", total=None, note="")

        def show(now: Progress) -> None:
            bar.update(task, description=now.stage, completed=now.done, total=now.total, note=now.note)

        result = train_policy(run, config, resume=resume, overwrite=overwrite, on_progress=show)
    if json_:
        print_json(
            {"checkpoint": str(result.checkpoint), "seconds": round(result.seconds, 1), "gait_fitness": result.gait_fitness}
        )
        return
    say(f"{result.checkpoint}: trained in {result.seconds / 60:.0f} minutes")
    say(f"next: ebmtraj policy evaluate --checkpoint {result.checkpoint}")


@app.command("evaluate")
def evaluate_command(
    policy: Annotated[str, typer.Option(help="trained, random, or your own module:function.")] = "trained",
    checkpoint: Annotated[
        Path | None, typer.Option(help="A file made by policy train. [default: the shipped policy]")
    ] = None,
    episodes: Annotated[int, typer.Option(help="Fresh starts, equally many an axis.", min=1)] = 256,
    steps: Annotated[int, typer.Option(help="Control steps an episode.", min=1)] = 100,
    action_rule: Annotated[str, typer.Option(help="none, every-4th-random or twice.")] = "every-4th-random",
    seed: Seed = 0,
    threads: Threads = None,
    out: Annotated[
        Path | None, typer.Option(help="Also write the result here, for every action rule, with the machine.")
    ] = None,
    overwrite: Overwrite = False,
    json_: Json = False,
) -> None:
    """Measure how far a policy turns the cube about each commanded axis, and how often it drops it, beside random actions.

    Progress is the sum of the world-frame rotation vectors along the commanded axis until a drop, in rad per 100 steps; the
    command is fixed for an episode.

    Example: ebmtraj policy evaluate --episodes 256 --action-rule every-4th-random --json
    """
    from dataclasses import replace

    from ebmtraj.envs.policies import ACTION_RULES
    from ebmtraj.errors import EbmtrajError
    from ebmtraj.policy.evaluate import EvaluateConfig, evaluate_policy
    from ebmtraj.runs import machine, versions, write_json

    if action_rule not in ACTION_RULES:
        raise EbmtrajError(f"unknown action rule {action_rule!r}; use one of {', '.join(ACTION_RULES)}")
    if checkpoint is not None and policy != "trained":
        raise EbmtrajError(f"--checkpoint is for the trained policy; drop it with --policy {policy}")
    if out is not None and out.exists() and not overwrite:
        raise EbmtrajError(f"{out} exists; use --overwrite to replace it")
    config = EvaluateConfig(
        policy=policy,
        checkpoint=None if checkpoint is None else str(checkpoint),
        episodes=episodes,
        steps=steps,
        action_rule=action_rule,
        seed=seed,
        threads=threads or 2,
    )
    rules = [action_rule, *(rule for rule in ACTION_RULES if rule != action_rule)] if out is not None else [action_rule]
    results: dict[str, dict[str, Any]] = {}
    with progress() as bar:
        task = bar.add_task("evaluating", total=12 * len(rules), note="")
        for i, rule in enumerate(rules):

            def show(done: int, before: int = 12 * i) -> None:
                bar.update(task, completed=before + done)

            results[rule] = evaluate_policy(replace(config, action_rule=rule), show)
    if out is not None:
        write_json(out, {"command": _command(config, out), "machine": machine(), "versions": versions(), "rules": results})
    result = results[action_rule]
    if json_:
        print_json(result)
        return
    for name, row in ((policy, result), ("random", result["random"])):
        axes = "  ".join(f"{axis} {value:.2f}" for axis, value in row["per_axis"].items())
        say(f"{name:<12} {row['progress_rad_per_100']:.2f} rad per 100 steps, {row['drop_rate']:.1%} dropped   {axes}")


def _command(config: Any, out: Path) -> str:
    checkpoint = f" --checkpoint {config.checkpoint}" if config.checkpoint else ""
    return (
        f"ebmtraj policy evaluate --policy {config.policy}{checkpoint} --episodes {config.episodes} --steps {config.steps} "
        f"--action-rule {config.action_rule} --seed {config.seed} --threads {config.threads} --out {out}"
    )
