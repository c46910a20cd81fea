"""Controllers side by side: jobs that are killed and resumed, the same starts for all, a table, refusals in one line."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from commands import call
from PIL import Image
from test_controllers import NETWORK, QUICK

from ebmtraj.collect import CollectConfig, collect
from ebmtraj.datasets.store import Store
from ebmtraj.errors import DivergedError, EbmtrajError
from ebmtraj.report import compare_plans_run
from ebmtraj.report.compare_plans import (
    PlanComparison,
    choose_models,
    choose_plan_tasks,
    leaves,
    prepare_plans,
)
from ebmtraj.report.compare_plans_results import mean_and_se, plan_results
from ebmtraj.report.compare_plans_run import run_plan_jobs
from ebmtraj.report.compare_plans_table import markdown_plans, plans_figure
from ebmtraj.trajectories.controllers.registry import CONTROLLERS
from ebmtraj.trajectories.controllers.trainings import TRAININGS

TINY = {
    name: {
        "training": {"steps": 12, "check_every": 6, "log_every": 6, "batch": 16},
        "network": {"width": 16, "horizons": [2, 8]} if training.kind != "transition" else {"width": 16, "depth": 1},
    }
    for name, training in TRAININGS.items()
}


@pytest.fixture(scope="module")
def turning(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Episodes whose policy turns the cube."""
    path = tmp_path_factory.mktemp("data") / "turning.zarr"
    collect(path, CollectConfig(env="hand-cube", episodes=40, steps=30, seed=0, policy="trained"))
    return path


def tiny(store: Path, runs: Path, *models: str, **changes: Any) -> PlanComparison:
    settings = {"tasks": ("rotate", "reorient", "reorient-free"), "seeds": (0, 1), "episodes": 6, "steps": 3, **changes}
    return PlanComparison(str(store), models, runs=runs, changes={**TINY, **QUICK}, **settings)


@pytest.fixture(scope="module")
def compared(turning: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    runs = tmp_path_factory.mktemp("compared") / "runs"
    store = Store.open(turning)
    jobs = prepare_plans(tiny(turning, runs, "ours", "hold", "simulator"), store)
    run_plan_jobs(jobs, workers=1)
    return runs, plan_results(jobs, store, command="ebmtraj compare plans --out docs/results/plans.json")


def test_results_hold_every_row(compared: tuple[Path, dict[str, Any]], turning: Path) -> None:
    _, results = compared
    rows = {(row["model"], row["task"], row["seed"]): row for row in results["rows"]}
    tasks = ("rotate", "reorient", "reorient-free")
    trained = {(model, task, seed) for model in ("ours",) for task in tasks for seed in (0, 1)}
    assert set(rows) == trained | {(model, task, 0) for model in ("hold", "simulator") for task in tasks}  # one is enough
    for row in rows.values():
        assert row["diverged"] is None
        assert 0 < row["ms_per_step"] < 1000
        assert np.isfinite(row["drop_rate"])
    assert rows["ours", "rotate", 0]["progress_rad_per_100"] != rows["ours", "rotate", 1]["progress_rad_per_100"]
    assert rows["ours", "reorient", 0]["hold_rad"] == 0.35
    assert rows["ours", "reorient-free", 0]["hold_rad"] == 0
    starts = {row["median_start_error_rad"] for row in rows.values() if row["task"] != "rotate"}
    assert len(starts) == 1  # the same starts and goals for all
    assert [(t["training"], t["seed"]) for t in results["trainings"]] == [
        ("window", 0),
        ("window", 1),
    ]
    told = results["protocol"]
    assert told["content_hash"] == Store.open(turning).content_hash
    assert told["rows"]["simulator"]["settings"]["rotate"]["horizon"] == 3
    assert told["trainings"]["window"]["network"]["width"] == 16
    assert "ebmtraj train plan --data" in told["trainings"]["window"]["command"]
    json.dumps(results, allow_nan=False)


def test_summary_pairs_the_starts(compared: tuple[Path, dict[str, Any]]) -> None:
    runs, results = compared
    said = results["summary"]["rotate"]

    def progress(model: str, seed: int) -> np.ndarray:
        outcome = json.loads((runs / "rotate" / model / f"seed-{seed}" / "outcome.json").read_text())
        return np.array(outcome["starts"]["progress"])

    ours = (progress("ours", 0) + progress("ours", 1)) / 2
    assert said["ours"]["progress"]["mean"] == pytest.approx(ours.mean())
    assert said["ours"]["progress"]["max"] == pytest.approx(max(progress("ours", 0).mean(), progress("ours", 1).mean()))
    less = progress("hold", 0) - ours
    assert said["hold"]["minus_ours"]["mean"] == pytest.approx(less.mean())
    assert said["hold"]["minus_ours"]["se"] == pytest.approx(less.std(ddof=1) / np.sqrt(6))
    assert "minus_ours" not in said["ours"]


def test_errors_of_means_within_strata() -> None:
    values = np.array([1.0, 3.0, 10.0, 14.0])
    mean, se = mean_and_se(values, ["+x", "+x", "-x", "-x"])
    assert mean == 7.0
    assert se == pytest.approx(np.sqrt(1.0**2 + 2.0**2) / 2)  # of the two means
    assert mean_and_se(values, []) == (7.0, pytest.approx(values.std(ddof=1) / 2))


def test_table_and_picture(compared: tuple[Path, dict[str, Any]], tmp_path: Path) -> None:
    _, results = compared
    lines = markdown_plans(results).splitlines()
    assert len({line.count("|") for line in lines}) == 1
    assert [line.split("|")[1].strip() for line in lines[2:]] == [
        f"**{CONTROLLERS['ours'].about}**",
        CONTROLLERS["hold"].about,
        f"{CONTROLLERS['simulator'].about}, privileged",
    ]
    with Image.open(plans_figure(results, tmp_path / "plans.png")) as image:
        assert image.width == 1800


def test_a_killed_comparison_goes_on_to_the_same_numbers(
    compared: tuple[Path, dict[str, Any]], turning: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store, plan = Store.open(turning), tiny(turning, tmp_path / "runs", "ours", "hold", tasks=("rotate",), seeds=(0,))
    measured, seen = compare_plans_run._measured, []

    def killed(job: Any) -> dict[str, Any]:
        if job.model == "hold":
            raise KeyboardInterrupt
        seen.append(job.label)
        return measured(job)

    jobs = prepare_plans(plan, store)
    monkeypatch.setattr(compare_plans_run, "_measured", killed)
    with pytest.raises(KeyboardInterrupt):
        run_plan_jobs(jobs, workers=1)
    with pytest.raises(EbmtrajError, match="is not done; run the comparison again with --resume"):
        plan_results(jobs, store)
    with pytest.raises(EbmtrajError, match="--resume to go on"):
        prepare_plans(plan, store)
    monkeypatch.setattr(compare_plans_run, "_measured", measured)
    monkeypatch.setattr(compare_plans_run, "_train", None)  # nothing is trained again
    jobs = prepare_plans(plan, store, resume=True)
    run_plan_jobs(jobs, workers=1)
    assert seen == ["ours rotate 0"]
    again = {row["model"]: row["progress_rad_per_100"] for row in plan_results(jobs, store)["rows"]}
    first = {row["model"]: row["progress_rad_per_100"] for row in compared[1]["rows"] if row["task"] == "rotate"}
    assert again["hold"] == first["hold"]
    with pytest.raises(EbmtrajError, match="begun with episodes = 6, not 12"):
        prepare_plans(dataclasses.replace(plan, episodes=12), store, resume=True)
    outcome = jobs[1][0].path / "outcome.json"
    done = json.loads(outcome.read_text())
    done.pop("sha256")  # nor seals
    done["asked"]["settings"].pop("reach")  # done before there was this setting
    outcome.write_text(json.dumps(done))
    prepare_plans(plan, store, resume=True)
    with pytest.raises(EbmtrajError, match=r"settings.reach = 0.9, not 0.5"):
        prepare_plans(dataclasses.replace(plan, changes={**plan.changes, "ours": {"reach": 0.5}}), store, resume=True)
    other = dataclasses.replace(plan, changes={**plan.changes, "ours": {"guidance": 1.0}})
    with pytest.raises(EbmtrajError, match=r"settings.guidance = 300.0, not 1.0"):
        prepare_plans(other, store, resume=True)


def test_a_training_that_diverges_is_told_in_its_rows(
    turning: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store, plan = Store.open(turning), tiny(turning, tmp_path / "runs", "bc", "hold", tasks=("rotate",), seeds=(0,))

    def wild(*_: Any, **__: Any) -> None:
        raise DivergedError("it ran away")

    monkeypatch.setattr(compare_plans_run.TRAININGS["clone"].__class__, "train", wild)
    jobs = prepare_plans(plan, store)
    run_plan_jobs(jobs, workers=1)
    results = plan_results(jobs, store)
    assert {row["model"]: row["diverged"] for row in results["rows"]} == {"bc": "clone: it ran away", "hold": None}
    assert results["summary"]["rotate"]["bc"]["progress"] is None
    assert "(1 diverged)" in markdown_plans(results)


def test_seconds_become_steps_once_for_all_seeds(turning: Path, tmp_path: Path) -> None:
    plan = tiny(turning, tmp_path / "runs", "bc", tasks=("rotate",), seconds=0.3)
    short = {"clone": {"training": {"batch": 16}, "network": TINY["clone"]["network"]}}
    jobs = prepare_plans(dataclasses.replace(plan, changes=short), Store.open(turning))
    run_plan_jobs(jobs, workers=1)
    steps = [(job.outcome() or {})["facts"]["train_steps"] for job in jobs[0]]
    assert steps == [json.loads((plan.runs / "budgets.json").read_text())["clone"]] * 2
    assert steps[0] > 5


def test_names_and_settings() -> None:
    assert choose_models("all", "hand-cube") == tuple(CONTROLLERS)
    assert "commanded" not in choose_models("all", "Ant-v5")
    assert choose_models("hold, ours,hold", "hand-cube") == ("hold", "ours")
    assert choose_plan_tasks("reorient,rotate") == ("reorient", "reorient-free", "rotate")
    assert leaves({"network": {"horizons": [2, 8], "x": True}, "label": "axis"}) == (
        "network.horizons=[2, 8]",
        "network.x=true",
        'label="axis"',
    )
    assert set(NETWORK) >= {training.kind for training in TRAININGS.values()}


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--models", "ourz"], "unknown model 'ourz'; did you mean ours?"),
        (["--models", ","], "names no model"),
        (["--tasks", "turn"], "unknown task 'turn'"),
        (["--episodes", "8"], "give a multiple of 6"),
        (["--episodes", "600"], "test episodes turn the cube by 0.5 to 1.5 rad, not 600"),
        (["--split", "train"], "use test, or validation"),
        (["--set", "ours.candidate=3"], "unknown key candidate; did you mean candidates"),
        (["--set", "our.candidates=3"], "unknown model 'our'"),
        (["--set", "candidates=3"], "say whose setting it is"),
        (["--out", "file.txt"], "ends in .json"),
        (["--resume", "--overwrite"], "choose one"),
    ],
)
def test_a_wrong_comparison_is_one_line(
    turning: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str], words: list[str], said: str
) -> None:
    place = [] if "--out" in words else ["--out", tmp_path / "p.json"]
    code, out, err = call(capfd, "compare", "plans", "--data", turning, *place, *words)
    assert (code, out) == (2, "")
    assert len(err.strip().splitlines()) == 1
    assert said in err
    assert not (tmp_path / "p").exists()


def test_a_store_of_another_environment(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "particle.zarr"
    collect(path, CollectConfig(env="ebmtraj/Particle-v0", episodes=20, steps=10, seed=0))
    words = ["compare", "plans", "--data", path, "--out", tmp_path / "p.json"]
    code, _, err = call(capfd, *words)
    assert code == 2
    assert "task term rotate: needs a field of kind quaternion, and the state has none" in err
    code, _, err = call(capfd, *words, "--models", "commanded")
    assert code == 2
    assert "commanded acts on hand-cube, and the store was collected on ebmtraj/Particle-v0; leave it out" in err


def test_the_command(turning: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "plans.json"
    words = ["compare", "plans", "--data", turning, "--models", "hold,random", "--tasks", "rotate", "--episodes", 6]
    words += ["--steps", 3, "--workers", 1, "--out", out, "--pictures", tmp_path / "pictures"]
    code, stdout, err = call(capfd, *words, "--json")
    assert code == 0, err
    printed, kept = json.loads(stdout), json.loads(out.read_text())
    assert printed["rows"] == kept["rows"]
    assert Path(printed["pictures"][0]).exists()
    assert kept["protocol"]["command"].startswith("ebmtraj compare plans --data")
    code, _, err = call(capfd, *words)
    assert code == 2
    assert "--resume to go on" in err
    code, _, err = call(capfd, *words, "--resume")
    assert code == 0, err
    assert "2 of them done" in err
