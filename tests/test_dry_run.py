"""`--dry-run`: nothing is written, what is wrong is said, and what is timed is of the size of the work itself."""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest
from commands import call

from ebmtraj.report.estimate import amount, duration
from ebmtraj.trajectories.fit import TRANSITION, load_recipe, train_transition


def told(capfd: pytest.CaptureFixture[str], *words: object) -> dict:
    code, out, err = call(capfd, *words, "--dry-run", "--json")
    assert code == 0, err
    facts = json.loads(out)
    assert facts["seconds"] > 0
    assert facts["makes"]
    assert facts["measured"]
    return facts


def test_trainings_and_collections_write_nothing(
    hand_store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("ebmtraj.report.estimate.step_time", lambda *settings: 0.01)
    few = ("--set", "training.batch=16", "--set", "training.steps=1000")
    facts = told(capfd, "train", "transition", "--data", hand_store, "--run", "run", *few)
    assert "1,000 optimiser steps of 16" in facts["makes"]
    assert facts["bytes"] > 100_000
    twice = told(
        capfd, "train", "transition", "--data", hand_store, "--run", "run", *few[:2], "--set", "training.steps=4000"
    )
    assert twice["seconds"] - facts["seconds"] == pytest.approx(3000 * 0.01, rel=0.5)
    seconds = told(
        capfd, "train", "transition", "--data", hand_store, "--run", "run", *few[:2], "--set", "training.seconds=30"
    )
    assert 20 < seconds["seconds"] < 45
    told(capfd, "train", "plan", "--data", hand_store, "--run", "run", *few, "--set", "network.horizons=[2,8]")
    facts = told(capfd, "collect", "new.zarr", "--env", "Reacher-v5", "--episodes", 200, "--steps", 20, "--workers", 2)
    assert "200 episodes, about 4,000 transitions, by 2 workers" in facts["makes"]
    assert list(tmp_path.iterdir()) == []
    code, _, err = call(capfd, "train", "transition", "--data", hand_store, "--run", "run", *few, "--dry-run")
    assert code == 0
    assert "nothing was written" in err


def test_the_estimate_is_of_the_size_of_the_training(hand_store: Path, tmp_path: Path) -> None:
    from ebmtraj.report.estimate import estimate_training

    recipe = load_recipe(None, ["training.batch=64", "training.steps=150"], {"data": str(hand_store)})
    estimate = estimate_training(TRANSITION, recipe, tmp_path / "run", device="cpu")
    began = time.perf_counter()
    train_transition(recipe, tmp_path / "run", device="cpu")
    took = time.perf_counter() - began
    assert took / 6 < estimate.seconds < 6 * took  # other work on the machine comes and goes
    written = sum(path.stat().st_size for path in (tmp_path / "run").rglob("*") if path.is_file())
    assert estimate.bytes == pytest.approx(written, rel=0.5)


def test_what_the_command_would_refuse_is_refused(
    hand_store: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "config.toml").write_text("")
    data = ("--data", hand_store)
    for words, said in (
        (("train", "transition", *data, "--run", tmp_path / "run"), "--overwrite"),
        (("train", "transition", *data, "--run", tmp_path / "new", "--set", "training.stepz=4"), "unknown key"),
        (("train", "transition", "--data", tmp_path / "none", "--run", tmp_path / "new"), "none"),
        (("train", "plan", *data, "--run", tmp_path / "run", "--resume"), "config.toml"),
        (("collect", hand_store, "--env", "hand-cube"), "exists"),
        (("collect", hand_store, "--resume"), "drop it, or --resume"),
        (("compare", "transitions", *data, "--out", tmp_path / "c.json", "--resume"), "drop it, or --resume"),
    ):
        code, out, err = call(capfd, *words, "--dry-run")
        assert (code, out) == (2, ""), (words, err)
        assert err.count("\n") == 1
        assert said in err or said == "config.toml", err


@pytest.mark.slow
@pytest.mark.timeout(1200)  # a step of composition takes seconds
@pytest.mark.parametrize(
    "words",
    [
        ("compare", "images", "--models", "energy,gaussian", "--seeds", 2),
        ("compare", "tilting", "--models", "swiss-roll"),
        ("compare", "composition", "--seeds", 1, "--steps", 20),
        ("continual", "--learners", "ebm,nearest-mean", "--seeds", 2),
        ("continual-robot", "--learners", "mixture", "--seeds", 1, "--episodes", 40, "--steps", 20),
        ("train", "jem"),
        ("train", "generator", "--data", "25-gaussians"),
        ("train", "image", "--model", "gmm"),
    ],
)
def test_every_other_long_command(
    words: tuple, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    told(capfd, *words, *(("--run", "run") if words[0] == "train" else ("--out", "out.json")))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_comparisons_of_the_hand(hand_store: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    out = ("--out", tmp_path / "out.json", "--data", hand_store, "--seeds", 2)
    facts = told(capfd, "compare", "transitions", *out, "--models", "ebm,fc", "--seconds", 10, "--workers", 2, "--steps", 10)
    assert "8 trainings, 2 at once" in facts["makes"]
    assert facts["seconds"] == pytest.approx(40)
    assert list(tmp_path.iterdir()) == []


def test_words() -> None:
    assert [duration(s) for s in (0.5, 42.4, 600, 7200)] == ["0.5 s", "42 s", "10 min", "2.0 h"]
    assert [amount(b) for b in (1500, 2_500_000, 3_000_000_000)] == ["2 kB", "2.5 MB", "3.0 GB"]
