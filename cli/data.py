"""`ebmtraj data`: look at a store, check it, and bring data in and out."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.table import Table

from ebmtraj.cli import complete
from ebmtraj.cli.common import Json, Overwrite, Resume, print_json, progress, say, stderr
from ebmtraj.cli.image_data import images_command

if TYPE_CHECKING:
    from ebmtraj.datasets.interchange.source import Progress, Transferred

app = typer.Typer(help="Look at a store of rollouts, check it, and bring data in and out.", no_args_is_help=True)
app.command("images")(images_command)
StorePath = Annotated[str, typer.Argument(help="The store: a folder, or any fsspec URL.")]


@app.command("info")
def info(store: StorePath, json_: Json = False) -> None:
    """Say what a store holds.

    Example: ebmtraj data info hand.zarr
    """
    from ebmtraj.datasets.images import ImageStore, is_image_store
    from ebmtraj.datasets.store import Store

    facts = ImageStore.open(store).info() if is_image_store(store) else Store.open(store).info()
    if json_:
        print_json(facts)
        return
    table = Table(title=str(store), title_justify="left", show_header=False)
    for key, value in facts.items():
        if key in ("state_fields", "action_fields"):
            value = ", ".join(f"{f['name']} ({f['size']}{', ' + f['unit'] if f.get('unit') else ''})" for f in value)
        elif isinstance(value, dict):
            value = "\n".join(f"{name}: {inner}" for name, inner in value.items())
        table.add_row(key.replace("_", " "), str(value))
    stderr.print(table)


@app.command("verify")
def verify_command(store: StorePath, json_: Json = False) -> None:
    """Recompute every hash of a store and name the blocks that are damaged; exit code 2 if there are any.

    Example: ebmtraj data verify hand.zarr
    """
    from ebmtraj.datasets.images import ImageStore, is_image_store
    from ebmtraj.datasets.verify import verify

    result = ImageStore.open(store, believe=True).verify() if is_image_store(store) else verify(store)
    if json_:
        print_json(result)
    elif result["ok"]:
        state = (
            "all blocks are sound" if result.get("complete", True) else "sound so far, but not complete: collect --resume"
        )
        say(f"{store}: {state}; content hash {str(result['content_hash'])[:16]}")
    else:
        for bad in result["bad_blocks"]:
            where = "" if "images" in bad else f"block {bad['block']}, episodes {bad['episodes']}: "
            say(f"{store}: {where}{bad['array']}: {bad['reason']}")
    if not result["ok"]:
        raise typer.Exit(2)


@app.command("repair")
def repair_command(
    store: StorePath,
    out: Annotated[str, typer.Argument(help="Where the repaired store goes: a folder, or any fsspec URL.")],
    overwrite: Overwrite = False,
    json_: Json = False,
) -> None:
    """Make a new store of what can be read of a damaged one, bit for bit, and say what was dropped.

    An episode is kept where it is what its digest says. The damaged store stays as it is; of a sound one nothing is made.

    Example: ebmtraj data repair hand.zarr hand-repaired.zarr
    """
    from ebmtraj.datasets.images import is_image_store
    from ebmtraj.datasets.repair import repair
    from ebmtraj.errors import EbmtrajError

    if is_image_store(store):
        raise EbmtrajError(f"{store} is an image store; make it again from its source: ebmtraj data images")
    with _shown() as report:
        made = repair(store, out, overwrite=overwrite, on_progress=report)
    if json_:
        print_json({"store": store, **asdict(made)})
        return
    if made.out is None:
        say(f"{store}: all {made.episodes} episodes are sound; nothing to repair, nothing was written")
        return
    for gone in made.dropped:
        first, last = gone["episodes"]
        say(f"dropped {f'episodes {first} to {last}' if last > first else f'episode {first}'}: {gone['why']}")
    say(f"{made.out}: {made.kept} of {made.episodes} episodes, content hash {str(made.content_hash)[:16]}")
    _say_notes(tuple(made.notes))


@app.command("export")
def export_command(
    store: StorePath,
    out: Annotated[str, typer.Argument(help="What to make: a folder (minari, lerobot) or a file (npz).")],
    form: Annotated[
        str,
        typer.Option("--format", help="minari, lerobot (v3.0) or npz.", autocompletion=complete.among(*complete.EXPORTS)),
    ],
    overwrite: Overwrite = False,
    json_: Json = False,
) -> None:
    """Write a store in a format that other libraries read.

    All are lossless. minari: the folder's name is the data set's id, so call it like hand-v0, and point
    MINARI_DATASETS_PATH to the folder around it. lerobot: an episode's last state, which has no frame there, stands in
    meta/episodes. npz: state (rows, S), action (rows, A), length, seed, terminated.

    Example: ebmtraj data export hand.zarr exports/hand-v0 --format minari
    """
    from ebmtraj.datasets.interchange.formats import export_store

    with _shown() as report:
        made = export_store(store, out, form, overwrite=overwrite, on_progress=report)
    if json_:
        print_json({"store": store, "format": form, "out": made.path, **_plain(made)})
        return
    say(f"{made.path}: {made.episodes} episodes, {made.transitions} transitions as {form}")
    _say_notes(made.notes)


@app.command("import")
def import_command(
    source: Annotated[str, typer.Argument(help="A Minari folder or id, a diffusion_policy zarr, or an npz file.")],
    store: Annotated[str, typer.Argument(help="Where the store goes: a folder, or any fsspec URL.")],
    form: Annotated[
        str,
        typer.Option("--format", help="minari, diffusion-policy or npz.", autocompletion=complete.among(*complete.IMPORTS)),
    ],
    env: Annotated[
        str | None,
        typer.Option(
            help="The environment that the data is of, such as a Gymnasium id: it says what the numbers are, and plans are "
            "carried out in it."
        ),
    ] = None,
    control_timestep: Annotated[float | None, typer.Option(help="Seconds a step. [default: the source's, or 1]")] = None,
    fields: Annotated[
        Path | None,
        typer.Option(help="A JSON file with state_fields and action_fields, as `data info --json` prints them."),
    ] = None,
    state_key: Annotated[str | None, typer.Option(help="Name of the states' array. [default: state]")] = None,
    action_key: Annotated[str | None, typer.Option(help="Name of the actions' array. [default: action]")] = None,
    resume: Resume = False,
    overwrite: Overwrite = False,
    json_: Json = False,
) -> None:
    """Make a store from data that you have.

    Everything is checked before anything is written; episodes of different length are kept. An npz holds `state` (episodes,
    T+1, S) and `action` (episodes, T, A), or flat arrays and `length`. Where --env names a simulator that is installed, it
    says what the numbers are if their count fits: qpos and qvel of a MuJoCo robot, or its observations. diffusion-policy has
    as many actions as states: the last action of each episode is dropped.

    Example: ebmtraj data import pusht.zarr pusht-store.zarr --format diffusion-policy --control-timestep 0.1
    """
    from ebmtraj.datasets.interchange.described import Given, read_fields
    from ebmtraj.datasets.interchange.formats import import_store
    from ebmtraj.envs.registry import describe_vectors

    state_fields, action_fields = read_fields(fields) if fields else (None, None)
    given = Given(env, control_timestep, state_fields, action_fields, state_key, action_key, describe_vectors)
    with _shown() as report:
        made = import_store(source, store, form, given, overwrite=overwrite, resume=resume, on_progress=report)
    _tell(made, json_, source=source, format=form)


@app.command("merge")
def merge_command(
    stores: Annotated[list[str], typer.Argument(help="Two stores or more, and last the one to make.")],
    resume: Resume = False,
    overwrite: Overwrite = False,
    json_: Json = False,
) -> None:
    """Make one store of several of the same environment; policies may differ and are all named in it.

    Example: ebmtraj data merge trained.zarr random.zarr both.zarr
    """
    from ebmtraj.datasets.interchange.stores import merge_stores

    with _shown() as report:
        made = merge_stores(stores[:-1], stores[-1], overwrite=overwrite, resume=resume, on_progress=report)
    _tell(made, json_, sources=stores[:-1])


@app.command("split")
def split_command(
    store: StorePath,
    out: Annotated[str, typer.Argument(help="Where the new store goes: a folder, or any fsspec URL.")],
    split: Annotated[str, typer.Option(help="train, validation or test.")],
    resume: Resume = False,
    overwrite: Overwrite = False,
    json_: Json = False,
) -> None:
    """Write one split of a store as a store of its own.

    Example: ebmtraj data split hand.zarr hand-test.zarr --split test
    """
    from ebmtraj.datasets.interchange.stores import split_store

    with _shown() as report:
        made = split_store(store, out, split, overwrite=overwrite, resume=resume, on_progress=report)
    _tell(made, json_, source=store, split=split)


@app.command("show")
def show_command(
    store: StorePath,
    episode: Annotated[int, typer.Option(help="Number of the episode.", min=0)] = 0,
    video: Annotated[str | None, typer.Option(help="Also render it: .gif, or .mp4 with the extra `video`.")] = None,
    tile: Annotated[int, typer.Option(help="Pixels a side of the video.", min=32, max=2048)] = 360,
    overwrite: Overwrite = False,
    json_: Json = False,
) -> None:
    """Show one episode: ranges of its fields, how far the cube turned, how it ended; and a video of it.

    Example: ebmtraj data show hand.zarr --episode 3 --video episode3.mp4
    """
    from ebmtraj.datasets.interchange.target import local_path
    from ebmtraj.datasets.store import Store
    from ebmtraj.errors import EbmtrajError

    target = None if video is None else local_path(video)
    opened = Store.open(store)
    from ebmtraj.report.card import turning_lines  # slow to import: what is wrong is said before
    from ebmtraj.report.film import check_film, film
    from ebmtraj.report.survey import episode_facts  # slow to import: what is wrong is said before

    if target is not None:
        check_film(target)
        if target.exists() and not overwrite:
            raise EbmtrajError(f"{target} exists; give another path or --overwrite")
    facts = {"store": store, **episode_facts(opened, episode)}
    if target is not None:
        film(
            opened.episode(episode).state,
            str(opened.attributes["env"]),
            target,
            label=f"episode {episode}",
            control_timestep=opened.control_timestep,
            tile=tile,
        )
        facts["video"] = str(target)
    if json_:
        print_json(facts)
        return
    title = f"{store}, episode {episode} ({facts['split']}): {facts['steps']} steps, {facts['seconds']:.2f} s"
    table = Table(title=title, title_justify="left")
    for name in ("", "field", "numbers", "unit", "lowest", "highest"):
        table.add_column(name, justify="right" if name in ("numbers", "lowest", "highest") else "left")
    for row in facts["fields"]:
        lowest, highest = (f"{row[key]:.4g}" for key in ("low", "high"))
        table.add_row(row["of"], row["field"], str(row["size"]), row["unit"], lowest, highest)
    stderr.print(table)
    for line in turning_lines(facts):
        say(line)
    say("ended by itself (terminated)" if facts["terminated"] else "went on to the step limit (not terminated)")
    if target is not None:
        say(f"{target}: {target.stat().st_size / 1e6:.1f} MB")


@app.command("card")
def card_command(
    store: StorePath,
    out: Annotated[str, typer.Option(help="The HTML page to write.")] = "card.html",
    overwrite: Overwrite = False,
    json_: Json = False,
) -> None:
    """Write a data card: one HTML page with fields, units, ranges, histograms, rotation, drops, frames and provenance.

    Example: ebmtraj data card hand.zarr --out hand.html
    """
    from ebmtraj.datasets.interchange.target import local_path

    page = local_path(out)
    from ebmtraj.report.card import data_card  # slow to import: what is wrong is said before

    with _shown() as report:
        facts = data_card(store, page, overwrite=overwrite, on_progress=report)
    if json_:
        print_json({"store": store, **facts})
        return
    say(f"{page}: {facts['episodes']} episodes, {facts['transitions']} transitions, {page.stat().st_size / 1e6:.1f} MB")


@contextmanager
def _shown() -> Iterator[Progress]:
    """A progress bar with one line a stage."""
    tasks: dict[str, Any] = {}
    with progress() as bar:

        def report(stage: str, done: int, total: int) -> None:
            if stage not in tasks:
                tasks[stage] = bar.add_task(stage, total=total, note="episodes")
            bar.update(tasks[stage], completed=done, total=total)

        yield report


def _plain(made: Any) -> dict[str, Any]:
    return {key: list(value) if isinstance(value, tuple) else value for key, value in asdict(made).items() if key != "path"}


def _tell(made: Transferred, json_: bool, **more: Any) -> None:
    if json_:
        print_json({**more, "store": made.path, **_plain(made)})
        return
    say(
        f"{made.path}: {made.episodes} episodes, {made.transitions} transitions, {made.terminated} ended early, "
        f"content hash {made.content_hash[:16]}"
    )
    _say_notes(made.notes)


def _say_notes(notes: tuple[str, ...]) -> None:
    for note in notes:
        say(f"note: {note}")
