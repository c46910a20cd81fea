"""What a run makes, for a report: rollouts beside the truth, plans carried out, images, points."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ebmtraj.datasets.images import open_images
from ebmtraj.datasets.store import Store
from ebmtraj.datasets.windows import trajectories
from ebmtraj.device import generator, no_denormals
from ebmtraj.envs.pictures import make_picturer
from ebmtraj.envs.registry import make_batch
from ebmtraj.errors import EbmtrajError
from ebmtraj.generators.data import open_source
from ebmtraj.generators.registry import load_generator
from ebmtraj.generators.tilt_fit import load_tilt
from ebmtraj.images.draw import draw
from ebmtraj.images.registry import load_image_model
from ebmtraj.report import page, tilting
from ebmtraj.report.assess import assess, load_run
from ebmtraj.report.figures import frechet_chart
from ebmtraj.report.film import check_film, write_mp4
from ebmtraj.report.image_grid import image_grid
from ebmtraj.report.plan_film import Shown, plan_film
from ebmtraj.report.style import label_axis, new_figure
from ebmtraj.report.subject import Subject
from ebmtraj.report.tables import evaluation_table, rich_table, side_by_side
from ebmtraj.report.video import encode_gif, gif_pages, strip_page
from ebmtraj.trajectories.costs import parse_task
from ebmtraj.trajectories.execute import ExecuteConfig, execute
from ebmtraj.trajectories.planners import load_planner
from ebmtraj.trajectories.rollout import sample_futures
from ebmtraj.trajectories.stored import environment_of
from ebmtraj.trajectories.trial import make_trial, usual_task

STARTS, FUTURES = 200, 4  # of runs that nobody measured yet
COLUMNS = 5  # rollouts side by side in a film
IMAGES = 64
FILM_EPISODES, FILM_STEPS = 3, 60
Tell = Callable[[str], None]


@dataclass(frozen=True)
class Wanted:
    """What a report is asked for."""

    data: str | None = None  # in place of the store that a run names
    pictures: bool = True
    seed: int = 0
    device: torch.device | str = "cpu"


def shown(subjects: Sequence[Subject], wanted: Wanted, tell: Tell = lambda doing: None) -> list[str]:
    """The sections of a page on what runs of one kind make; what can't be shown is said instead."""
    done = [subject for subject in subjects if subject.header is not None]
    if not done:
        return []
    kind = done[0].kind
    if kind == "transition":
        return _transitions(done, wanted, tell)
    if kind in ("plan", "sequence"):
        return [part for one in done for part in _titled(one, len(done), _plans(one, wanted, tell))]
    makers = {"image": _images, "generator": _generated, "tilt": _tilted}
    if kind not in makers or not wanted.pictures:
        return []
    parts = ["<h2>Samples</h2>"]
    for one in done:
        tell(f"drawing samples of {one.name}")
        parts += _titled(one, len(done), _or_why(lambda one=one: makers[kind](one, wanted)))  # type: ignore[misc]
    return parts


def _titled(subject: Subject, count: int, parts: list[str]) -> list[str]:
    return [f"<h3>{page.text(subject.name)}</h3>", *parts] if count > 1 and parts else parts


def _or_why(make: Callable[[], list[str]]) -> list[str]:
    try:
        return make()
    except EbmtrajError as error:
        return [page.note(f"Nothing to show here: {error}")]


# rollouts


def _transitions(subjects: Sequence[Subject], wanted: Wanted, tell: Tell) -> list[str]:
    """Fréchet distance over time, the metrics as a table, and rollouts beside the truth."""
    store, why = _store(subjects[0], wanted)
    results = {one.name: dict(one.results) for one in subjects if "frechet_over_time" in one.results}
    if store is not None:
        try:
            for one in subjects:
                if one.name not in results:
                    tell(f"measuring {one.name}")
                    results[one.name] = _measured(one, store, results, wanted)
        except EbmtrajError as error:
            why = str(error)
    parts: list[str] = []
    if results:
        ordered = {one.name: results[one.name] for one in subjects if one.name in results}
        parts += _measures(ordered, store)
    if wanted.pictures and store is not None:
        tell("drawing rollouts")
        parts += ["<h2>Rollouts</h2>", *_or_why(lambda: _rollouts(subjects, store, wanted))]
    return parts + ([page.note(f"Not everything is shown: {why}")] if why else [])


def _store(subject: Subject, wanted: Wanted) -> tuple[Store | None, str]:
    try:
        return Store.open(wanted.data or subject.data), ""
    except EbmtrajError as error:
        return None, f"{error}; give the store with --data"


def _measured(subject: Subject, store: Store, others: Mapping[str, Any], wanted: Wanted) -> dict[str, Any]:
    """Quick metrics of a run that nobody evaluated yet, on the starts of those that somebody did; nothing is kept."""
    like = next(iter(others.values()), None)
    longest = int(np.median(store.lengths[store.split("test")])) if len(store.split("test")) else 100
    settings = {key: like[key] for key in ("steps", "samples", "starts", "split", "seed")} if like else {}
    settings = {"steps": min(100, longest), "samples": FUTURES, "starts": STARTS, "seed": wanted.seed} | settings
    return assess(subject.path, store, quick=True, device=wanted.device, **settings).results


def _measures(results: Mapping[str, Mapping[str, Any]], store: Store | None) -> list[str]:
    first = next(iter(results.values()))
    about = (
        f"{first['starts']:,} held-out episodes ({first['split']}) x {first['steps']} steps, {first['samples']} futures each"
    )
    floor = first.get("floor_over_time")
    curves = {name: result["frechet_over_time"] for name, result in results.items()}
    panel = "action_conditional" if first.get("actions") else "unconditional"
    figure = frechet_chart(
        {panel: {**curves, **({"floor": floor} if floor else {})}}, None if store is None else store.control_timestep
    )
    parts = [
        "<h2>How far from the truth</h2>",
        page.captioned(page.chart(figure, "Fréchet distance over time"), f"{about}."),
    ]
    if len(results) == 1:
        parts.append(page.terminal_tables(evaluation_table(first)))
    else:
        rows, not_ranked = side_by_side(results)
        parts.append(page.terminal_tables(rich_table(rows, not_ranked=not_ranked)))
    protocols = {
        tuple(result.get(key) for key in ("starts", "steps", "samples", "split", "seed")) for result in results.values()
    }
    if len(protocols) > 1:
        parts.append(page.note("These were not measured alike: run ebmtraj evaluate on all of them with --overwrite."))
    hashes = {result.get("content_hash") for result in results.values()}
    if len(hashes) > 1:
        parts.append(page.note("These were measured on different stores."))
    if first["starts"] < 300:
        parts.append(page.note("Few starts make Fréchet distances read too high; compare them with the floor only."))
    return parts


def _rollouts(subjects: Sequence[Subject], store: Store, wanted: Wanted) -> list[str]:
    """A strip and a film of one held-out episode, true and rolled out; of one run several futures."""
    length = int(np.median(store.lengths))
    truth = trajectories(store, "test", min(100, length), limit=1, device=wanted.device)
    steps = truth.states.shape[1] - 1
    rows = {"truth": truth.states[0].cpu().numpy()}
    for one in subjects[: COLUMNS - 1]:
        model, _ = load_run(one.path, store, wanted.device)
        futures = sample_futures(
            model,
            truth.states[:, 0],
            steps,
            COLUMNS - 2 if len(subjects) == 1 else 1,
            actions=truth.actions if model.actions else None,
            generator=generator(wanted.seed, wanted.device),
        )[0].numpy()
        names = [one.name] if len(futures) == 1 else [f"future {i + 1}" for i in range(len(futures))]
        rows |= dict(zip(names, futures, strict=True))
    return rollout_pictures(rows, store, f"episode {int(truth.episodes[0])}")


def rollout_pictures(rows: Mapping[str, np.ndarray], store: Store, about: str) -> list[str]:
    """States {label: (T+1, S)} as a strip and a film, for a page; raises `EbmtrajError` where they can't be drawn."""
    where, seconds = environment_of(store), store.control_timestep
    steps = min(map(len, rows.values())) - 1
    moments = sorted({round(x) for x in np.linspace(0, steps, 5)})
    every = max(1, round(steps / 50))
    frames = list(range(0, steps + 1, every))
    with make_picturer(where["env"], where["env_kwargs"], (240, 240), samples=4, state=where["state"]) as picturer:
        drawn = {
            label: {step: picturer.frame(states[step]) for step in sorted({*moments, *frames})}
            for label, states in rows.items()
        }
    still = {label: np.stack([each[step] for step in moments]) for label, each in drawn.items()}
    moving = {label: np.stack([each[step] for step in frames]) for label, each in drawn.items()}
    pages = gif_pages(moving, [step * seconds for step in frames])
    strip = page.picture(strip_page(still, [step * seconds for step in moments]), "a strip of rollouts")
    return [
        page.captioned(strip, f"The truth ({about}, held out) and rollouts from its first state."),
        page.captioned(_film(pages, seconds * every, "rollouts in motion"), "The same in motion, in real time."),
    ]


def _film(pages: Sequence[Any], seconds: float, label: str) -> str:
    """Pages as an mp4 where it can be written, else as a GIF."""
    with tempfile.TemporaryDirectory() as folder, suppress(EbmtrajError):
        file = Path(folder) / "film.mp4"
        check_film(file)
        write_mp4(pages, file, 1 / seconds)
        return page.media(file, label).removeprefix("<figure>").removesuffix("</figure>")
    return page.image(encode_gif(pages, round(100 * seconds) * 10), label, "image/gif")


# plans


def _plans(subject: Subject, wanted: Wanted, tell: Tell) -> list[str]:
    """What plans came to so far, and a film of some."""
    parts = ["<h2>Plans</h2>"]
    plans = subject.results.get("plans", [])
    if plans:
        parts.append(plans_table(plans))
    films = [path for path in sorted(subject.path.glob("figures/*")) if path.suffix in page.MEDIA]
    parts += [page.media(path, path.stem, path.name) for path in films]
    if not wanted.pictures or films:
        return parts
    tell(f"carrying out plans of {subject.name}")
    return parts + _or_why(lambda: _executed(subject, wanted))


def plans_table(plans: Sequence[Mapping[str, Any]]) -> str:
    """One line a task that was carried out."""
    rows = []
    for plan in plans:
        turned = f"{plan['progress_rad_per_100']:.2f} ± {plan['progress_se']:.2f}" if "progress_rad_per_100" in plan else "-"
        reached = f"{plan['success_rate']:.0%}" if "success_rate" in plan else "-"
        off = f"{plan['rmse_rad']:.3g}" if "rmse_rad" in plan else "-"
        kept = ", ".join(f"{share:.0%}" for share in plan.get("kept", {}).values()) or "-"
        counts = (f"{plan['episodes']} x {plan['steps']}", f"{plan['drop_rate']:.0%}", f"{plan['ms_per_step']:.2f}")
        rows.append((plan["task"], counts[0], turned, reached, off, kept, *counts[1:]))
    head = (
        "task",
        "episodes x steps",
        "rad per 100 steps",
        "at the goal",
        "rad off",
        "constraint kept",
        "ended early",
        "ms a step",
    )
    used = [i for i in range(len(head)) if i < 2 or any(row[i] != "-" for row in rows)]
    return page.table([head[i] for i in used], [[row[i] for i in used] for row in rows])


def _executed(subject: Subject, wanted: Wanted) -> list[str]:
    """A short film of a few episodes, planned for the last task or a usual one."""
    last = subject.results.get("plans", [{}])[-1]
    whole = subject.kind == "sequence"
    planner = load_planner(subject.path, [], wanted.device, deadline=FILM_STEPS if whole else 0)
    task = str(last.get("task") or usual_task(planner.state_fields, whole=whole))
    cost = parse_task(task, planner.state_fields, own_code=False)
    made = planner.environment
    trial = make_trial(
        cost,
        ExecuteConfig(FILM_EPISODES, FILM_STEPS, wanted.seed),
        lambda: Store.open(wanted.data or subject.data),
        device=wanted.device,
    )
    seen = Shown.choose(trial.config.episodes, list(trial.names))
    make_picturer(made["env"], made["env_kwargs"], (16, 16), state=made["state"]).close()  # before any work
    env = make_batch(made["env"], 1, made["state"], **made["env_kwargs"])
    try:
        with no_denormals(), tempfile.TemporaryDirectory() as folder:
            execution = execute(
                env,
                planner.controller,
                trial.task,
                trial.config,
                start=trial.start,
                holds=trial.holds,
                watched=seen.rows,
                device=wanted.device,
            )
            file = Path(folder) / "plan.mp4"
            try:
                check_film(file)
            except EbmtrajError:
                file = file.with_suffix(".gif")
            plan_film(execution, seen, trial.task, env, file, state=made["state"], tile=240)
            return [
                page.media(file, f"plans for {task}", f"Plans for {task!r}, carried out for this report from fresh starts.")
            ]
    finally:
        env.close()


# images and points


def _images(subject: Subject, wanted: Wanted) -> list[str]:
    """Samples beside real images; of a classifier its accuracy on the validation split."""
    model, _ = load_image_model(subject.path, wanted.device)
    store = open_images(wanted.data or subject.data)
    held = store.read("validation")
    parts = []
    if model.classifies and held.labels is not None and not subject.config.get("condition"):
        with torch.no_grad():
            logits = torch.cat([model.logits(part) for part in torch.from_numpy(held.pixels).to(wanted.device).split(256)])
        right = float((logits.argmax(1).cpu().numpy() == held.labels).mean())
        parts.append(page.tiles([(f"{right:.1%}", f"of {len(held.labels):,} validation images told right")]))
    real = page.captioned(page.picture(image_grid(held.pixels[:IMAGES]), "real images"), "Real images, held out.")
    try:
        pixels = draw(model, IMAGES, seed=wanted.seed).pixels
    except EbmtrajError as error:
        return [*parts, page.note(str(error))]
    about = "Samples, evenly of all classes." if model.conditional else "Samples."
    drawn = page.captioned(page.picture(image_grid(pixels), "samples"), about)
    return [*parts, f"<div class=side>{drawn}{real}</div>"]


def _generated(subject: Subject, wanted: Wanted) -> list[str]:
    model, _ = load_generator(subject.path, wanted.device)
    source = open_source(wanted.data or subject.data)
    held = source.read("validation").numpy()
    if source.toy is None:
        drawn = tilting.draw(model, IMAGES, wanted.seed)
        both = ((drawn, "Samples."), (held[:IMAGES], "Real images, held out."))
        figures = [page.captioned(page.picture(image_grid(pixels), label), label) for pixels, label in both]
        return [f"<div class=side>{''.join(figures)}</div>"]
    drawn = tilting.draw(model, tilting.DOTS, wanted.seed)
    figure, axes = new_figure(2, height=4.2)
    for axis, name, points in zip(axes, ("samples", "data, held out"), (drawn, held), strict=True):
        tilting.draw_density(axis, source.toy)
        axis.scatter(*points[: tilting.DOTS].T, s=2, color="#0072b2", linewidths=0, alpha=0.7)
        label_axis(axis, name, "", "")
    return [page.captioned(page.plot(figure, "samples and data"), "Points over the true density.")]


def _tilted(subject: Subject, wanted: Wanted) -> list[str]:
    """The pictures that `ebmtraj tilt` left, or the same made now."""
    kept = sorted(path for path in subject.path.glob("figures/*") if path.suffix in page.MEDIA)
    if kept:
        return [page.media(path, path.stem, path.stem.replace("_", " ")) for path in kept]
    tilt, _ = load_tilt(subject.path, device=wanted.device)
    source = open_source(wanted.data or subject.data)
    count = tilting.DOTS if source.toy is not None else IMAGES
    both = (tilting.draw(tilt.base, count, wanted.seed), tilting.draw(tilt, count, wanted.seed))
    with tempfile.TemporaryDirectory() as folder:
        made = tilting.pictures(tilt, both, source, Path(folder), wanted.seed)
        return [page.media(path, path.stem, path.stem.replace("_", " ")) for path in made]
