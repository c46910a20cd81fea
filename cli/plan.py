"""`ebmtraj plan`: carry out a task in the simulator with plans from a learned energy."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Annotated, Any

import typer

from ebmtraj.cli.common import Device, Json, Overwrite, Seed, Set, print_json, progress, say


def plan_command(
    run: Annotated[
        Path,
        typer.Argument(help="A run of `ebmtraj train plan` or `sequence`, or of `train transition --actions` (dsm, fc)."),
    ],
    task: Annotated[
        str, typer.Option("--task", help='What to do: terms joined by " + ", such as "rotate axis=z + smooth".')
    ],
    episodes: Annotated[int, typer.Option(help="Fresh starts.", min=1)] = 48,
    steps: Annotated[
        int | None,
        typer.Option(help="Control steps an episode. [default: 100, for joint-pose at most what episodes have]", min=1),
    ] = None,
    seed: Seed = 0,
    set_: Set = None,
    data: Annotated[
        str | None, typer.Option("--data", help="Where the goals of reorient come from. [default: the run's own store]")
    ] = None,
    env_set: Annotated[
        list[str] | None,
        typer.Option("--env-set", help="An option of the simulator that the data did not have, e.g. obstacles=true."),
    ] = None,
    hold: Annotated[
        float, typer.Option(help="With reorient: within so many rad of the goal the last action is repeated.", min=0)
    ] = 0.35,
    out: Annotated[
        Path | None, typer.Option(help="Where to write the result. [default: it is added to RUN/results.json]")
    ] = None,
    own_code: Annotated[
        bool, typer.Option("--own-code", help="Allow terms module:function and environments module:id, which run code.")
    ] = False,
    video: Annotated[
        Path | None, typer.Option(help="Also a film, .mp4 or .gif: some episodes, each with a ghost of its plan.")
    ] = None,
    interactive: Annotated[
        bool, typer.Option("--interactive", help="Watch one episode in MuJoCo's viewer while it goes on.")
    ] = False,
    threads: Annotated[int, typer.Option(help="Threads of the simulator.", min=1)] = 1,
    device: Device = "auto",
    overwrite: Overwrite = False,
    json_: Json = False,
) -> None:
    """Add a task cost to a learned energy and carry out its plans in the simulator, planning anew at every step.

    With rotate, `progress_rad_per_100` is the turning along the axis until a drop; axis=all shares the episodes out among
    the six signed axes. The planner's settings need no training: --set candidates=1, guidance, reach, levels, every,
    prior=false (the Gaussian base alone).

    With reorient and no goal, starts are those of held-out episodes and goals where the cube came to in them, 0.5 to 1.5 rad
    away; `success_rate` counts episodes that end within 0.4 rad without a drop.

    With reach, `success_rate` counts episodes that end within 2 cm of the goal and touched no obstacle of the task. With
    joint-pose and no goal, starts are moments of held-out episodes and goals the joints so many --steps later; `rmse_rad` is
    what they are off at the end. when=end asks for the goal at the last step alone, and plans end there.

    Of a term that is a constraint (keep-straight, keep-range, keep-height, obstacle), `kept` is the share of steps after
    which it holds in the simulator, `kept_means` what counts as holding. Terms that work against each other need more room:
    --set reach=1.5. Of a term of your own (module:function with --own-code), `own` is its cost of what happened.

    Example: ebmtraj plan runs/plan --task "rotate axis=z + keep-straight finger=ring weight=2" --episodes 48 --seed 9000
    """
    from functools import cache

    from ebmtraj.config import parse_overrides, read_toml
    from ebmtraj.datasets.store import Store
    from ebmtraj.datasets.windows import USUAL_STEPS, usual_steps
    from ebmtraj.device import choose_device, no_denormals, use_threads
    from ebmtraj.envs.pictures import make_scenery
    from ebmtraj.envs.registry import make_batch, refuse_code
    from ebmtraj.envs.viewer import Viewer, check_display
    from ebmtraj.errors import EbmtrajError
    from ebmtraj.report.live import Live
    from ebmtraj.report.plan_film import Shown, check_can_show, plan_film
    from ebmtraj.runs import machine, read_json, versions, write_json
    from ebmtraj.trajectories.costs import parse_task
    from ebmtraj.trajectories.execute import ExecuteConfig, execute
    from ebmtraj.trajectories.planners import load_planner
    from ebmtraj.trajectories.trial import make_trial

    where = choose_device(device)
    use_threads(1)
    if out is not None and out.exists() and not overwrite:
        raise EbmtrajError(f"{out} exists; use --overwrite to replace it")
    if video is not None:
        check_can_show(video, overwrite)
    if interactive:
        check_display()
    store = cache(lambda: Store.open(data or read_toml(run / "config.toml").get("data", "")))
    if steps is None:
        steps = usual_steps(store(), "test") if "joint-pose" in task else USUAL_STEPS
    planner = load_planner(run, set_ or [], where, deadline=steps if "when=end" in task.split() else 0)
    cost = parse_task(task, planner.state_fields, own_code=own_code)
    if interactive and "axis=all" in task.split():
        raise EbmtrajError("--interactive shows one episode; choose one axis, such as axis=z")
    trial = make_trial(
        cost,
        ExecuteConfig(1 if interactive else episodes, steps, seed),
        store,
        hold=hold,
        device=where,
    )
    made, controller = planner.environment, planner.controller
    if made["env"] == "imported":
        raise EbmtrajError(
            f"run {run} was trained on data that names no simulator; import it with --env, a Gymnasium id, and train again"
        )
    refuse_code(made["env"], made["env_kwargs"], f"run {run}", own_code=own_code)
    shown = Shown.choose(trial.config.episodes, list(trial.names))
    env = make_batch(made["env"], threads, made["state"], **{**made["env_kwargs"], **parse_overrides(env_set or [])})
    viewer = None
    try:
        if interactive:
            viewer = Viewer(make_scenery(made["env"], made["env_kwargs"], made["state"]), env.control_timestep)
            controller = Live(controller, viewer)
        with progress() as bar, no_denormals():
            bar_task = bar.add_task("carrying out the plans", total=steps, note="")
            execution = execute(
                env,
                controller,
                trial.task,
                trial.config,
                start=trial.start,
                holds=trial.holds,
                watched=shown.rows if video is not None else (),
                device=where,
                on_step=lambda done: bar.update(bar_task, completed=done),
            )
        if viewer is not None:
            viewer.wait()
    finally:
        env.close()
        if viewer is not None:
            viewer.close()
    result = {"run": str(run), "task": task, **trial.result(execution)}
    whole = {**result, "planner": dataclasses.asdict(planner.settings), "machine": machine(), "versions": versions()}
    if out is not None:
        write_json(out, whole)
    else:  # one more line of what this run can do: nothing is lost
        before = read_json(run / "results.json").get("plans", []) if (run / "results.json").exists() else []
        write_json(run / "results.json", {"plans": [*before, whole]})
    if json_:
        print_json({**result, **({"video": str(video)} if video is not None else {})})
    else:
        _show(result, out or run / "results.json")
    if video is not None:  # last, so that a machine that can't draw keeps its result
        with progress() as bar:
            drawing = bar.add_task("drawing the film", total=None, note="")
            plan_film(
                execution,
                shown,
                trial.task,
                env,
                video,
                state=made["state"],
                on_page=lambda done, total: bar.update(drawing, completed=done, total=total),
            )
        if not json_:
            say(str(video))


def _show(result: dict[str, Any], where_to: Path) -> None:
    if "progress_rad_per_100" in result:
        axes = "  ".join(f"{name} {value:.2f}" for name, value in result["per_axis"].items())
        say(f"{result['progress_rad_per_100']:.2f} ± {result['progress_se']:.2f} rad per 100 steps   {axes}")
    if "rmse_rad" in result:
        say(f"{result['rmse_rad']:.4f} rad off the goal's joints, {result['start_rmse_rad']:.4f} at the start")
    if "median_distance_m" in result:
        clear = f", {result['clear_rate']:.1%} clear of obstacles" if "clear_rate" in result else ""
        say(
            f"{result['success_rate']:.1%} ± {result['success_se']:.1%} end within 2 cm of their goals{clear}, "
            f"median {100 * result['median_distance_m']:.1f} cm"
        )
    elif "success_rate" in result:
        say(
            f"{result['success_rate']:.1%} ± {result['success_se']:.1%} within 0.4 rad of their goals, "
            f"median error {result['median_error_rad']:.2f} rad"
        )
    for label, cost in result.get("own", {}).items():
        say(f"{label} came to {cost:.3f} ± {result['own_se'][label]:.3f} in the simulator, over whole episodes")
    for label, share in result.get("kept", {}).items():
        say(f"{label} kept {share:.1%} of the time ({result['kept_means'][label]})")
    say(f"{result['drop_rate']:.1%} dropped, {result['ms_per_step']:.2f} ms a step and episode; {where_to}")
