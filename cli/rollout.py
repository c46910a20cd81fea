"""`ebmtraj rollout`: many futures from recorded states."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ebmtraj.cli import complete
from ebmtraj.cli.common import Data, Device, Json, Overwrite, Seed, print_json, progress, say

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from ebmtraj.envs.viewer import Viewer


def rollout_command(
    run: Annotated[Path, typer.Argument(help="A trained run.")],
    data: Data,
    out: Annotated[Path | None, typer.Option(help="The npz to write. [default: RUN/samples/rollouts.npz]")] = None,
    steps: Annotated[
        int | None,
        typer.Option(help="Control steps of each future. [default: as half of the episodes have, at most 100]", min=1),
    ] = None,
    samples: Annotated[int, typer.Option(help="Futures of each start.", min=1)] = 4,
    starts: Annotated[int | None, typer.Option(help="Starts to take, from the first. [default: all]", min=1)] = None,
    split: Annotated[
        str,
        typer.Option(
            help="Where starts come from: train, validation or test.", autocompletion=complete.among(*complete.SPLITS)
        ),
    ] = "test",
    gif: Annotated[Path | None, typer.Option(help="Also render the first start's truth and futures as a GIF.")] = None,
    interactive: Annotated[
        bool,
        typer.Option("--interactive", help="Watch the first start's truth and futures in MuJoCo's viewer."),
    ] = False,
    seed: Seed = 0,
    device: Device = "auto",
    overwrite: Overwrite = False,
    json_: Json = False,
) -> None:
    """Generate many futures from recorded states.

    The npz holds `states` (starts, samples, T+1, S), `truth` (starts, T+1, S), `actions` (starts, T, A) and `episodes`
    (starts,). A model with actions follows the recorded ones.

    --interactive needs a display; without one, --gif shows the same.

    Example: ebmtraj rollout runs/hand --data hand.zarr --steps 100 --samples 4 --out futures.npz
    """
    import io

    import numpy as np

    from ebmtraj.datasets.store import Store
    from ebmtraj.datasets.windows import trajectories, usual_steps
    from ebmtraj.device import choose_device, generator
    from ebmtraj.envs.pictures import make_picturer, make_scenery
    from ebmtraj.envs.viewer import Viewer, check_display
    from ebmtraj.errors import EbmtrajError
    from ebmtraj.report.assess import load_run
    from ebmtraj.report.video import gif as write_gif
    from ebmtraj.runs import write_atomic
    from ebmtraj.trajectories.rollout import sample_futures
    from ebmtraj.trajectories.stored import environment_of

    where = choose_device(device)
    target = out or run / "samples" / "rollouts.npz"
    if gif is not None and gif.suffix.lower() != ".gif":
        raise EbmtrajError(f"--gif {gif}: give a path that ends in .gif")
    if target.suffix.lower() != ".npz":
        raise EbmtrajError(f"--out {target}: give a path that ends in .npz")
    for path in (target, gif):
        if path is not None and path.exists() and not overwrite:
            raise EbmtrajError(f"{path} exists; give another path or --overwrite")
    if interactive:
        check_display("write a film instead: --gif futures.gif")
    store = Store.open(data)
    steps = steps or usual_steps(store, split)
    made = environment_of(store)
    model, _ = load_run(run, store, where)
    if gif is not None:  # before any work: can it be drawn?
        make_picturer(made["env"], made["env_kwargs"], (64, 64), state=made["state"]).close()
    scenery = make_scenery(made["env"], made["env_kwargs"], made["state"]) if interactive else None
    truth = trajectories(store, split, steps, limit=starts, device=where)
    with progress() as bar:
        task = bar.add_task("rolling out", total=None, note="steps")
        states = sample_futures(
            model,
            truth.states[:, 0],
            steps,
            samples,
            actions=truth.actions if model.actions else None,
            generator=generator(seed, where),
            on_step=lambda done, total: bar.update(task, completed=done, total=total),
        ).numpy()
    if not np.isfinite(states).all():
        raise EbmtrajError(f"run {run}: rollouts are not finite; the model diverged, train it again")
    true_states = truth.states.cpu().numpy()
    content = io.BytesIO()
    np.savez_compressed(
        content, states=states, truth=true_states, actions=truth.actions.cpu().numpy(), episodes=truth.episodes
    )
    write_atomic(target, content.getvalue())
    facts = {"run": str(run), "out": str(target), "starts": len(states), "samples": samples, "steps": steps, "seed": seed}
    facts |= {"shape": list(states.shape)}
    rows = {"truth": true_states[0], **{f"future {i + 1}": states[0, i] for i in range(min(samples, 4))}}
    if gif is not None:
        kwargs, kind = made["env_kwargs"], made["state"]
        write_gif(rows, made["env"], gif, control_timestep=store.control_timestep, env_kwargs=kwargs, state=kind)
        facts["gif"] = str(gif)
    if scenery is not None:
        with Viewer(scenery, store.control_timestep) as viewer:
            play(viewer, rows)
    if json_:
        print_json(facts)
        return
    say(f"{target}: {len(states)} starts x {samples} futures x {steps} steps" + (f"; {gif}" if gif else ""))


def play(viewer: Viewer, rows: Mapping[str, NDArray[np.float32]]) -> None:
    """Show each rollout {label: (T+1, S)} in turn, again and again until the window is closed."""
    while True:
        for label, states in rows.items():
            for step, state in enumerate(states):
                if not viewer.show(state):
                    return
                viewer.say(f"{label}, step {step} of {len(states) - 1}")
