"""Comparisons: rows, jobs that are killed and resumed, results with floors and a summary, refusals in one line."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from commands import call
from PIL import Image

from ebmtraj.datasets.store import Store
from ebmtraj.datasets.windows import Transitions
from ebmtraj.errors import EbmtrajError
from ebmtraj.report import compare
from ebmtraj.report.compare import Comparison, Job, choose_tasks, measure_speed, prepare, run_jobs, work
from ebmtraj.report.compare_figures import c2st_figure, median_curves
from ebmtraj.report.compare_results import comparison_results, summary
from ebmtraj.report.compare_rows import Row, choose_rows, known_rows, network_of, read_rows, recipe_of
from ebmtraj.report.compare_table import markdown_comparison
from ebmtraj.report.style import LOOKS
from ebmtraj.report.tables import HEADERS
from ebmtraj.trajectories.registry import MODELS, load_model

TINY = ("training.steps=30", "training.check_every=10", "training.batch=32", "network.width=16", "network.depth=1")
TIMES = ("ms_per_step", "train_seconds", "train_core_seconds", "evaluation_seconds")
ROWS = """
[[row]]
name = "ebm"
model = "ebm"
set = {tiny}
[[row]]
name = "fast"
sampler_of = "ebm"
set = ["network.sampler.ladder.levels=3"]
[[row]]
name = "wild"
model = "gaussian"
set = ["training.steps=60", "training.learning_rate=1e30", "training.check_every=20"]
[[row]]
name = "fc"
model = "fc"
set = {tiny}
"""


def rows_file(folder: Path, text: str = ROWS) -> Path:
    path = folder / "rows.toml"
    path.write_text(text.replace("{tiny}", json.dumps(TINY)), encoding="utf-8")
    return path


def tiny(store: Path, runs: Path, *rows: Row, **changes: Any) -> Comparison:
    chosen = rows or (Row("gaussian", "gaussian", TINY),)
    settings: dict[str, Any] = {"seconds": 1.0, "steps": 20, "samples": 3, "starts": 4, **changes}
    return Comparison(str(store), chosen, settings.pop("tasks", ("unconditional",)), (0,), runs, **settings)


# --- Rows ---------------------------------------------------------------------------------------------------------


def test_every_model_of_the_registry_has_a_row_a_look_and_a_header() -> None:
    rows = known_rows()
    assert {row.model for row in rows.values()} == set(MODELS)
    assert rows["ebm"].model == "dsm"
    assert set(rows) - {"ebm", "fc-delta"} == set(MODELS) - {"dsm"}
    for name in rows:
        assert name in LOOKS, f"report/style.py has no look for {name}"
        assert name in HEADERS, f"report/tables.py has no header for {name}"
    looks = [(LOOKS[name].color, LOOKS[name].dash) for name in rows]
    assert len(set(looks)) == len(looks)


def test_rows_become_recipes() -> None:
    recipe = recipe_of(known_rows()["fc-delta"], data="d", task="action-conditional", seed=3, seconds=7.0)
    assert (recipe.model, recipe.actions, recipe.network["space"]) == ("fc", True, "delta")
    assert (recipe.training.seconds, recipe.training.seed, recipe.training.threads) == (7.0, 3, 1)
    own = recipe_of(Row("long", "fc", ("training.seconds=9",)), data="d", task="unconditional", seed=0, seconds=7.0)
    assert own.training.seconds == 9.0
    steps = recipe_of(Row("steps", "fc", ("training.steps=5",)), data="d", task="unconditional", seed=0, seconds=7.0)
    assert (steps.training.seconds, steps.training.steps) == (None, 5)
    half = recipe_of(Row("half", "fc", time=0.5), data="d", task="unconditional", seed=0, seconds=7.0)
    assert half.training.seconds == 3.5


def test_names_and_files_choose_rows(tmp_path: Path) -> None:
    extra = read_rows(rows_file(tmp_path))
    assert [row.name for row in choose_rows("gaussian", extra)] == ["gaussian", "ebm", "fast", "wild", "fc"]
    assert [row.name for row in choose_rows("none", extra)] == list(extra)
    everything = {row.name: row for row in choose_rows("all", extra)}
    assert set(everything) == set(known_rows()) | set(extra)
    assert everything["fc"].set == TINY  # replaced


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('[[row]]\nname = "a"\nmodle = "mdn"', "unknown key modle; did you mean model"),
        ('[[rows]]\nname = "a"', "unknown key rows"),
        ('[[row]]\nname = "a"\nmodel = "mdm"', "did you mean mdn"),
        ('[[row]]\nname = "a/b"\nmodel = "mdn"', "names a folder"),
        ('[[row]]\nname = "a"\nmodel = "mdn"\n[[row]]\nname = "a"\nmodel = "fc"', "two rows"),
        ('[[row]]\nname = "a"\nmodel = "mdn"\nset = ["training.seed=3"]', "training.seed is the comparison's"),
        ('[[row]]\nname = "a"\nsampler_of = "b"', "'b' is not compared"),
        ('[[row]]\nname = "a"\nsampler_of = "ebm"\nmodel = "mdn"', "takes model and data"),
        ('[[row]]\nname = "a"\nsampler_of = "ebm"\nset = ["training.steps=3"]', "no part in sampling"),
        ('[[row]]\nname = "a"\nsampler_of = "ebm"\nset = ["network.sampler.step=3"]', "row a"),
        ('[[row]]\nname = "a"\nsampler_of = "ebm"\ntime = 0.5', "and its time"),
        ('[[row]]\nname = "a"\nmodel = "mdn"\ntime = 0', "time = 0.0 must be above 0"),
        ('[[row]]\nname = "a"\nmodel = "mdn"\ntime = 2\nset = ["training.seconds=3"]', "and alone"),
    ],
)
def test_wrong_rows_are_named(tmp_path: Path, text: str, said: str) -> None:
    with pytest.raises(EbmtrajError, match=said):
        choose_rows("ebm", read_rows(rows_file(tmp_path, text)))


def test_the_rows_of_the_ablations(hand_store: Path, tmp_path: Path) -> None:
    """Every row passes what a comparison checks before any work, and is another recipe than the default in its task."""
    rows = choose_rows("ebm", read_rows(Path(__file__).parent.parent / "docs" / "ablations.toml"))
    assert len(rows) >= 20
    assert {"network.base=false", "network.rotation=quaternion", "training.episodes=5000"} <= {
        s for r in rows for s in r.set
    }
    store, held = Store.open(hand_store), len(Store.open(hand_store).split("train"))
    fits = [row for row in rows if not any(setting.startswith("training.episodes") for setting in row.set)]
    assert len(fits) == len(rows) - 4
    tasks = ("unconditional", "action-conditional")
    jobs = prepare(tiny(hand_store, tmp_path / "runs", *fits, tasks=tasks), store)
    assert len(jobs) == 2 * len(fits)
    by = {task: {job.row.name: job.asked() for job in jobs if job.task == task} for task in tasks}
    for asked in by[tasks[1]].values():
        if asked.get("network", {}).get("history") == "auto":  # what that comes to where states have no velocities
            asked["network"]["history"] = 2
    for task, same in zip(tasks, ("history-0", "history-2"), strict=True):
        assert [name for name, asked in by[task].items() if asked == by[task]["ebm"]] == ["ebm", same]
    assert by[tasks[0]]["quarter-time"]["training"]["seconds"] == 0.25
    for row in {*rows} - {*fits}:
        asked = recipe_of(row, data="d", task=tasks[0], seed=0, seconds=1).training.episodes
        with pytest.raises(EbmtrajError, match=rf"^row {row.name}: training\.episodes = {asked}, but .* has {held};"):
            prepare(tiny(hand_store, tmp_path / "few", row), store)
    assert not (tmp_path / "few").exists()


def test_the_samplers_of_the_ablations_run(hand_store: Path, tmp_path: Path) -> None:
    path = tmp_path / "run"
    plan = tiny(hand_store, path, Row("ebm", "dsm", TINY))
    from ebmtraj.trajectories.fit import train_transition

    train_transition(Job(plan.rows[0], "unconditional", 0, plan).recipe(), path, device="cpu")
    state = Transitions.load(Store.open(hand_store), "train").at(torch.arange(64)).state
    rows = read_rows(Path(__file__).parent.parent / "docs" / "ablations.toml").values()
    draws: dict[str, torch.Tensor] = {}
    for row in (Row("ebm", sampler_of="ebm"), *(row for row in rows if row.sampler_of)):
        model, _ = load_model(path / "checkpoints" / "best.safetensors", network=network_of(row))
        z = model.normaliser.delta(state, model.sample_next(state, None, torch.Generator().manual_seed(0)))
        assert z.isfinite().all()
        assert 0.5 < z.std() < 1.5  # of increments of unit spread
        draws[row.name] = z
    same = [name for name, z in draws.items() if any(z.equal(other) for key, other in draws.items() if key != name)]
    assert same == ["ebm", "midpoint-4"]  # the default's four levels, by name
    assert len(draws) == 7


# --- Jobs ---------------------------------------------------------------------------------------------------------


def test_a_killed_job_goes_on_to_the_same_numbers(hand_store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = Store.open(hand_store)
    (whole,) = prepare(tiny(hand_store, tmp_path / "whole"), store)
    run_jobs([whole], store, workers=1)
    (killed,) = prepare(tiny(hand_store, tmp_path / "killed"), store)
    measure = compare.assess

    def kill(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(compare, "assess", kill)
    with pytest.raises(KeyboardInterrupt):
        work(killed)
    assert killed.outcome() is None
    monkeypatch.setattr(compare, "assess", measure)
    (again,) = prepare(tiny(hand_store, tmp_path / "killed"), store, resume=True)
    run_jobs([again], store, workers=1)
    numbers = [json.loads((job.path / "results.json").read_text()) for job in (whole, again)]
    for found in numbers:
        for key in ("run", "rollout_seconds", "training_seconds", "sha256"):
            found.pop(key)
    assert numbers[0] == numbers[1]
    monkeypatch.setattr(compare, "assess", kill)
    run_jobs([again], store, workers=1)  # done is done


def test_seconds_become_steps_once_for_all_seeds(hand_store: Path, tmp_path: Path) -> None:
    row = Row("gaussian", "gaussian", TINY[1:])  # without its own steps
    plan = tiny(hand_store, tmp_path / "runs", row, seconds=0.2, tasks=("action-conditional",))
    plan = dataclasses.replace(plan, seeds=(0, 1))
    store = Store.open(hand_store)
    jobs = prepare(plan, store)
    run_jobs(jobs, store, workers=1)
    steps = [(job.outcome() or {})["facts"]["train_steps"] for job in jobs]
    budgets = json.loads((plan.runs / "budgets.json").read_text())
    assert steps == [budgets["action-conditional/gaussian"]] * 2
    assert 10 < steps[0] < 100_000
    results = comparison_results(jobs, store, {})
    for row in results["rows"]:
        assert row["task"] == "action-conditional"
        assert np.isfinite(row["c2st_one_step"])
        assert row["diversity_ratio"] is None  # its futures follow the recorded actions


def test_what_a_resumed_comparison_may_not_change(hand_store: Path, tmp_path: Path) -> None:
    store, runs = Store.open(hand_store), tmp_path / "runs"
    plan = tiny(hand_store, runs)
    jobs = prepare(plan, store)
    with pytest.raises(EbmtrajError, match="--resume to go on"):
        prepare(plan, store)
    with pytest.raises(EbmtrajError, match="begun with samples = 3, not 4"):
        prepare(dataclasses.replace(plan, samples=4), store, resume=True)
    run_jobs(jobs, store, workers=1)
    prepare(dataclasses.replace(plan, seeds=(0, 1), rows=(*plan.rows, Row("fc", "fc"))), store, resume=True)  # more is fine
    other = dataclasses.replace(plan, rows=(Row("gaussian", "gaussian", (*TINY, "network.beta=0.1")),))
    with pytest.raises(EbmtrajError, match=r"network.beta = 0.5, not 0.1"):
        prepare(other, store, resume=True)
    outcome = jobs[0].path / "outcome.json"
    done = json.loads(outcome.read_text())
    done.pop("sha256")  # nor seals
    for part, key in (("network", "rotation"), ("training", "episodes")):  # done before there were these settings
        done["asked"][part].pop(key)
    outcome.write_text(json.dumps(done))
    prepare(plan, store, resume=True)
    turned = dataclasses.replace(plan, rows=(Row("gaussian", "gaussian", (*TINY, "network.rotation=body")),))
    with pytest.raises(EbmtrajError, match=r"network.rotation = 'world', not 'body'"):
        prepare(turned, store, resume=True)
    (runs / "comparison.json").unlink()
    with pytest.raises(EbmtrajError, match="holds no comparison"):
        prepare(plan, store, overwrite=True)


def test_data_that_can_not_be_compared_on(hand_store: Path, tmp_path: Path) -> None:
    from ebmtraj.collect import CollectConfig, collect

    one = tmp_path / "one.zarr"
    collect(one, CollectConfig(env="hand-cube", episodes=1, steps=20, seed=0))
    with pytest.raises(EbmtrajError, match="holds 1 episode"):
        prepare(tiny(one, tmp_path / "runs"), Store.open(one))
    store = Store.open(hand_store)
    with pytest.raises(EbmtrajError, match="fewer --steps"):
        prepare(tiny(hand_store, tmp_path / "runs", steps=21), store)
    with pytest.raises(EbmtrajError, match="--split train"):
        prepare(tiny(hand_store, tmp_path / "runs", split="train"), store)
    assert choose_tasks(None, store) == ("unconditional", "action-conditional")
    store.action_fields = ()
    assert choose_tasks(None, store) == ("unconditional",)
    with pytest.raises(EbmtrajError, match="holds no actions"):
        choose_tasks("action-conditional", store)
    # a store whose training episodes are those that judge
    store = Store.open(hand_store)
    shuffled = tmp_path / "copy.zarr"
    shutil.copytree(hand_store, shuffled)
    about = json.loads((shuffled / "zarr.json").read_text())
    about["attributes"]["split"]["seed"] = 1
    about["attributes"].pop("seal")
    (shuffled / "zarr.json").write_text(json.dumps(about))
    with pytest.raises(EbmtrajError, match=r"episodes that .* judges by"):
        prepare(tiny(hand_store, tmp_path / "runs", Row("few", "gaussian", TINY, data=str(shuffled))), store)
    assert not (tmp_path / "runs").exists()


def test_other_settings_of_a_trained_model(hand_store: Path, tmp_path: Path) -> None:
    plan = tiny(hand_store, tmp_path / "runs", Row("ebm", "dsm", TINY))
    job = Job(plan.rows[0], "unconditional", 0, plan)
    from ebmtraj.trajectories.fit import train_transition

    train_transition(job.recipe(), job.path, device="cpu")
    path = job.path / "checkpoints" / "best.safetensors"
    model, _ = load_model(path, network={"sampler": {"ladder": {"levels": 3}}})
    assert model.config.sampler.ladder.levels == 3
    assert model.config.sampler.ladder.sigma_max == load_model(path)[0].config.sampler.ladder.sigma_max
    with pytest.raises(EbmtrajError, match=r"unknown key sampler\.ladder\.level;"):
        load_model(path, network={"sampler": {"ladder": {"level": 3}}})
    with pytest.raises(EbmtrajError, match="has shape"):
        load_model(path, network={"width": 8})


# --- The command --------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def compared(hand_store: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("compare")
    rows = rows_file(folder)
    words = ["compare", "transitions", "--data", hand_store, "--models", "none", "--rows", rows, "--seeds", 2, "--steps", 20]
    words += [
        "--tasks",
        "unconditional",
        "--samples",
        3,
        "--starts",
        4,
        "--workers",
        1,
        "--out",
        folder / "transitions.json",
    ]
    words += ["--pictures", folder / "pictures"]
    import sys

    from ebmtraj.cli import app

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["ebmtraj", *map(str, words)])
        with pytest.raises(SystemExit) as stop:
            app.main()
        assert not stop.value.code
    return folder


def test_results_hold_every_row(compared: Path, hand_store: Path) -> None:
    results = json.loads((compared / "transitions.json").read_text())
    names = ("ebm", "fast", "wild", "fc")
    assert {(row["model"], row["task"], row["seed"]) for row in results["rows"]} == {
        (name, "unconditional", seed) for name in names for seed in (0, 1)
    }
    protocol = results["protocol"]
    assert protocol["content_hash"] == Store.open(hand_store).content_hash
    assert (protocol["steps"], protocol["samples"], protocol["starts"], protocol["split"]) == (20, 3, 4, "test")
    assert protocol["command"].startswith("ebmtraj compare transitions --data")
    assert protocol["rows"]["fast"]["sampler_of"] == "ebm"
    assert protocol["rows"]["ebm"]["network"]["width"] == 16
    for row in results["rows"]:
        if row["model"] == "wild":
            assert "diverged" in row["diverged"]
            assert row["fd100"] is None
            continue
        assert row["diverged"] is None
        for key in ("fd100", "fd_delta", "energy_score", "crps", "c2st_rollout", "c2st_one_step", "c2st_null", "coverage90"):
            assert np.isfinite(row[key]), key
        assert row["ms_per_step"] > 0
        assert row["train_steps"] == 30
        assert len(row["fd_over_time"]) == 21
        assert (row["diversity_ratio"] is not None) == (row["model"] != "fc") or row["diversity_ratio"] == 0
        assert row["coverage90"] == row["coverage90_one_step"] != row["coverage90_rollout"]  # three samples are too few
    by_key = {(row["model"], row["task"], row["seed"]): row for row in results["rows"]}
    ebm, fast = (by_key[name, "unconditional", 0] for name in ("ebm", "fast"))
    assert ebm["fd100"] != fast["fd100"]  # the same model, another sampler
    assert ebm["parameters"] == fast["parameters"]


def test_floor_and_summary_are_those_of_the_rows(compared: Path) -> None:
    results = json.loads((compared / "transitions.json").read_text())
    run = compared / "transitions" / "unconditional" / "ebm"
    measured = [json.loads((run / f"seed-{seed}" / "results.json").read_text()) for seed in (0, 1)]
    floor = results["floor"]["unconditional"]
    assert floor["fd100"] == measured[0]["floor"]
    assert floor["c2st_rollout"] == pytest.approx(np.median([each["c2st_null"] for each in measured]))
    rows = [row for row in results["rows"] if row["model"] == "ebm" and row["task"] == "unconditional"]
    assert [row["fd100"] for row in rows] == [each["frechet"] for each in measured]
    said = results["summary"]["unconditional"]["ebm"]
    assert said["fd100"]["median"] == pytest.approx(np.median([row["fd100"] for row in rows]))
    assert said["fd100"]["min"] == min(row["fd100"] for row in rows)
    assert (
        results["summary"]["unconditional"]["wild"] | {"seeds": 2, "diverged": 2, "fd100": None}
        == (results["summary"]["unconditional"]["wild"])
    )
    assert summary(results["rows"]) == results["summary"]
    assert set(median_curves(results)["unconditional"]) == {"ebm", "fast", "fc", "floor"}


def test_tables_keep_the_rows_that_lose(compared: Path) -> None:
    results = json.loads((compared / "transitions.json").read_text())
    lines = markdown_comparison(results, "unconditional").splitlines()
    assert [line.split("|")[1].strip() for line in lines[2:]] == ["EBM", "FC", "fast", "wild (2 of 2 diverged)", "floor"]
    assert len({line.count("|") for line in lines}) == 1
    said = {m: v["fd100"]["median"] for m, v in results["summary"]["unconditional"].items() if v["fd100"]}
    best = min(said, key=lambda name: said[name])
    column = [line.split("|")[2] for line in lines[2:]]
    labels = [line.split("|")[1].strip() for line in lines[2:]]
    assert [label for label, cell in zip(labels, column, strict=True) if "**" in cell] == [
        {"ebm": "EBM", "fc": "FC"}.get(best, best)
    ]


def test_pictures_of_a_comparison(compared: Path) -> None:
    for name in ("frechet.png", "c2st.png"):
        with Image.open(compared / "pictures" / name) as image:
            assert image.width == 1800
    with pytest.raises(EbmtrajError, match="no model was measured"):
        c2st_figure(
            {"protocol": {"tasks": ["unconditional"]}, "rows": [], "summary": {"unconditional": {}}, "floor": {}}, Path("x")
        )


def test_resuming_a_finished_comparison_measures_nothing_again(
    compared: Path, hand_store: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    before = json.loads((compared / "transitions.json").read_text())
    out = compared / "again.json"
    monkeypatch.setattr(compare, "work", None)
    words = [
        "compare",
        "transitions",
        "--data",
        hand_store,
        "--models",
        "none",
        "--rows",
        compared / "rows.toml",
        "--seeds",
        2,
    ]
    words += [
        "--tasks",
        "unconditional",
        "--steps",
        20,
        "--samples",
        3,
        "--starts",
        4,
        "--workers",
        1,
        "--runs",
        compared / "transitions",
        "--out",
        out,
    ]
    code, stdout, stderr = call(capfd, *words, "--resume", "--json")
    assert code == 0, stderr
    printed = json.loads(stdout)
    after = json.loads(out.read_text())
    assert printed["rows"] == after["rows"]
    for one, two in zip(before["rows"], after["rows"], strict=True):
        assert {k: v for k, v in one.items() if k not in TIMES} == {k: v for k, v in two.items() if k not in TIMES}
        assert all((one[key] is None) == (two[key] is None) for key in TIMES)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--models", "edn"], "unknown model 'edn'"),
        (["--models", "ebm,gausian"], "did you mean gaussian?"),
        (["--models", ","], "names no model"),
        (["--tasks", "conditional"], "unknown task 'conditional'"),
        (["--rows", "nowhere.toml"], "nowhere.toml does not exist"),
        (["--out", "file.txt"], "ends in .json"),
        (["--resume", "--overwrite"], "choose one"),
        (["--steps", "1000"], "ask"),
    ],
)
def test_a_wrong_comparison_is_one_line(
    hand_store: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str], words: list[str], said: str
) -> None:
    place = [] if "--out" in words else ["--out", tmp_path / "c.json"]
    code, stdout, stderr = call(capfd, "compare", "transitions", "--data", hand_store, *place, *words)
    assert (code, stdout) == (2, "")
    assert len(stderr.strip().splitlines()) == 1
    assert said in stderr or "fewer --steps" in stderr
    assert not (tmp_path / "c").exists()


def test_speed_leaves_out_what_diverged(hand_store: Path, tmp_path: Path) -> None:
    plan = tiny(hand_store, tmp_path / "runs")
    jobs = prepare(plan, Store.open(hand_store))
    assert measure_speed(jobs, Store.open(hand_store)) == {}
    with pytest.raises(EbmtrajError, match="is not done"):
        comparison_results(jobs, Store.open(hand_store), {})


def test_help_of_train_names_every_model() -> None:
    from ebmtraj.cli import train
    from ebmtraj.trajectories.registry import ENERGIES

    source = Path(train.__file__).read_text(encoding="utf-8")
    (said,) = (line for line in source.splitlines() if "energy, or a baseline:" in line)
    named = said.split("baseline:")[1].split(".")[0].replace(" ", "").split(",")
    assert named == [name for name in MODELS if name not in ENERGIES]
