"""The commands as a user types them, at tiny size on real MuJoCo data, and what they say to wrong input."""

from __future__ import annotations

import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import zarr
from safetensors.numpy import load_file

from ebmtraj.cli import app

TINY = ["--set", "training.steps=40", "--set", "training.check_every=10", "--set", "training.log_every=5"]
TINY += ["--set", "training.batch=32", "--device", "cpu"]  # to the bit only there


def call(capfd: pytest.CaptureFixture[str], *words: object) -> tuple[int, str, str]:
    """Run a command in this process: exit code, stdout, stderr."""
    old = sys.argv
    sys.argv = ["ebmtraj", *map(str, words)]
    capfd.readouterr()
    try:
        app.main()
        code = 0
    except SystemExit as stop:
        code = int(stop.code or 0)
    finally:
        sys.argv = old
    output = capfd.readouterr()
    return code, output.out, output.err


def good(capfd: pytest.CaptureFixture[str], *words: object) -> Any:
    """Run with --json; it must succeed, and print one JSON object and nothing else on stdout."""
    code, out, err = call(capfd, *words, "--json")
    assert code == 0, err
    assert out.count("\n") == 1
    return json.loads(out)


def bad(capfd: pytest.CaptureFixture[str], *words: object) -> str:
    """Run what must fail: exit code 2, one line on stderr, nothing on stdout; the line."""
    code, out, err = call(capfd, *words)
    assert code == 2, (out, err)
    assert out == ""
    lines = err.strip().splitlines()
    assert len(lines) == 1, err
    assert lines[0].startswith("error: ")
    return lines[0]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cli")


@pytest.fixture(scope="module")
def store(place: Path) -> Path:
    path = place / "hand.zarr"
    words = [sys.executable, "-m", "ebmtraj", "collect", str(path), "--env", "hand-cube", "--episodes", "20"]
    words += ["--steps", "20", "--seed", "7", "--workers", "1", "--json"]
    done = subprocess.run(words, capture_output=True, text=True, check=True)
    facts = json.loads(done.stdout)
    assert done.stderr == ""  # no warnings
    assert facts["episodes"] == 20
    assert set(facts) >= {"episodes", "transitions", "steps_per_second", "content_hash"}
    return path


@pytest.fixture
def run(place: Path, store: Path, capfd: pytest.CaptureFixture[str]) -> Path:
    path = place / "run"
    if not path.exists():
        facts = good(capfd, "train", "transition", "--data", store, "--run", path, "--actions", *TINY)
        assert facts["steps"] == 40
    return path


def test_verify_agrees_with_collect_and_info(store: Path, capfd: pytest.CaptureFixture[str]) -> None:
    found = good(capfd, "data", "verify", store)
    assert found["ok"]
    assert found["bad_blocks"] == []
    info = good(capfd, "data", "info", store)
    assert info["content_hash"] == found["content_hash"]
    assert info["episodes"] == 20


def test_rollout_writes_states_of_the_promised_shape(
    run: Path, store: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "futures.npz"
    words = ("rollout", run, "--data", store, "--steps", 10, "--samples", 3, "--out", out, "--seed", 5)
    facts = good(capfd, *words)
    with np.load(out, allow_pickle=False) as file:
        states, truth, actions = file["states"], file["truth"], file["actions"]
    assert states.shape == (4, 3, 11, 31)  # 2 of 10 episodes are for the test
    assert list(states.shape) == facts["shape"]
    np.testing.assert_allclose(states[:, :, 0], np.repeat(truth[:, None, 0], 3, 1), atol=1e-6)
    np.testing.assert_allclose(np.linalg.norm(states[..., 27:], axis=-1), 1.0, atol=1e-5)
    assert actions.shape == (4, 10, 20)
    assert not np.array_equal(states[:, 0], states[:, 1])
    assert "exists" in bad(capfd, *words)  # never overwritten unasked
    good(capfd, *words, "--overwrite")
    with np.load(out, allow_pickle=False) as file:
        np.testing.assert_array_equal(file["states"], states)  # same seed, same bits


def test_evaluate_one_run_and_several(place: Path, run: Path, store: Path, capfd: pytest.CaptureFixture[str]) -> None:
    facts = good(capfd, "evaluate", run, "--data", store, "--steps", 10, "--samples", 2, "--overwrite")
    for key in ("frechet", "floor", "energy_score"):
        assert np.isfinite(facts[key])
    kept = json.loads((run / "results.json").read_text())
    assert {key: value for key, value in kept.items() if key != "sha256"} == facts
    assert "exists" in bad(capfd, "evaluate", run, "--data", store)
    good(capfd, "train", "transition", "--data", store, "--run", place / "fc", "--model", "fc", *TINY)
    both = good(
        *(capfd, "evaluate", run, place / "fc", "--data", store, "--steps", 10, "--samples", 2, "--overwrite"),
        *("--pictures", place / "pictures"),
    )
    assert both["runs"]["run"]["frechet"] == facts["frechet"]  # same seed, same bits
    assert both["runs"]["fc"]["diversity"] == 0  # one prediction, no spread
    assert (place / "pictures" / "frechet.png").stat().st_size > 1000
    if both["pictures_missing"] is None:
        assert (place / "pictures" / "rollouts.gif").stat().st_size > 1000


def test_human_output_names_the_next_command(store: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    code, out, err = call(
        capfd, "train", "transition", "--data", store, "--run", tmp_path / "g", "--model", "gaussian", *TINY
    )
    assert code == 0
    assert out == ""
    assert "next: ebmtraj evaluate" in err.replace("\n", "")


@pytest.mark.parametrize("objective", ["dsm", pytest.param("cd", marks=pytest.mark.slow)])
def test_a_killed_training_resumes_to_the_same_bits(
    objective: str, store: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    words = ["train", "transition", "--data", str(store), "--objective", objective, *TINY, "--set", "training.steps=400"]
    good(capfd, *words, "--run", tmp_path / "whole")
    killed = tmp_path / "killed"
    process = subprocess.Popen([sys.executable, "-m", "ebmtraj", *words, "--run", str(killed)])
    metrics = killed / "metrics.jsonl"
    deadline = time.time() + 60
    while time.time() < deadline and (not metrics.exists() or metrics.read_bytes().count(b"\n") < 7):
        time.sleep(0.01)
    os.kill(process.pid, signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL, "finished before it could be killed"
    good(capfd, *words[:4], "--run", killed, "--resume")  # under its own recipe; nothing need be said again
    a = load_file(tmp_path / "whole" / "checkpoints" / "best.safetensors")
    b = load_file(killed / "checkpoints" / "best.safetensors")
    assert a.keys() == b.keys()
    assert all(np.array_equal(a[name], b[name]) for name in a)


def hear_ctrl_c() -> None:
    """A shell starts what runs in its background with Ctrl-C ignored, and that is inherited."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


@pytest.mark.parametrize("command", [pytest.param("collect", marks=pytest.mark.slow), "train"])
def test_ctrl_c_says_how_to_go_on(command: str, store: Path, tmp_path: Path) -> None:
    words = {
        "collect": ["collect", str(tmp_path / "s.zarr"), "--episodes", "3000", "--workers", "1"],
        "train": [
            "train",
            "transition",
            "--data",
            str(store),
            "--run",
            str(tmp_path / "run"),
            "--set",
            "training.steps=100000",
        ],
    }[command]
    process = subprocess.Popen(
        [sys.executable, "-m", "ebmtraj", *words],
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=hear_ctrl_c,
    )
    sign = tmp_path / ("s.zarr/state" if command == "collect" else "run/metrics.jsonl")
    deadline = time.time() + 60
    while time.time() < deadline and not sign.exists():
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130
    assert errors.strip().splitlines() == [f"error: interrupted; to go on: ebmtraj {shlex.join(words)} --resume"]
    words += ["--resume", "--episodes", "40"] if command == "collect" else ["--resume", "--set", "training.steps=100000"]
    assert app.going_on([*words, "--overwrite"]) == f"ebmtraj {shlex.join([w for w in words if w != '--resume'])} --resume"


def test_each_long_command_knows_how_to_go_on() -> None:
    for words in (
        *("collect s.zarr", "train transition --run r", "train image --run r", "tilt r", "policy train --run r"),
        *("compare transitions --data d", "compare images", "continual", "continual-robot", "data import a b --format npz"),
    ):
        assert app.going_on(words.split()) == f"ebmtraj {words} --resume"
    assert app.going_on(["demo", "--out", "my demo"]) == "ebmtraj demo --out 'my demo' --overwrite"
    for words in ("evaluate r --data d", "data card s", "doctor", "policy evaluate"):
        assert app.going_on(words.split()) is None


@pytest.mark.parametrize("backend", [pytest.param("osmesa", marks=pytest.mark.slow), "nonsense"])
def test_a_rendering_backend_that_is_missing_stops_pictures_only(
    backend: str, run: Path, store: Path, tmp_path: Path
) -> None:
    words = [sys.executable, "-m", "ebmtraj", "evaluate", str(run), "--data", str(store), "--steps", "5", "--overwrite"]
    environment = {**os.environ, "MUJOCO_GL": backend}
    done = subprocess.run(
        [*words, "--pictures", str(tmp_path), "--json"], capture_output=True, text=True, env=environment, check=True
    )
    assert (tmp_path / "frechet.png").exists()
    missing = json.loads(done.stdout)["pictures_missing"]
    if backend == "nonsense" or missing is not None:  # where OSMesa is installed it draws
        assert "MUJOCO_GL" in missing
    assert "Traceback" not in done.stderr


def test_a_budget_in_seconds_becomes_steps(store: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    words = ("train", "transition", "--data", store, "--model", "fc", "--set", "training.seconds=1", "--run", tmp_path / "r")
    words += ("--device", "cpu")
    facts = good(capfd, *words)
    assert f"steps = {facts['steps']}\n" in (tmp_path / "r" / "config.toml").read_text()
    assert 0.2 < facts["seconds"] < 5
    # and the run's own recipe makes the same run again
    again = good(
        capfd, *words[:4], "--device", "cpu", "--recipe", tmp_path / "r" / "config.toml", "--run", tmp_path / "again"
    )
    assert again["validation"] == facts["validation"]


def test_demo_from_end_to_end(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    recipe = tmp_path / "tiny.toml"
    train = "".join(
        f'[train.{name}]\noptions = {options}\nset = ["training.steps=30", "training.batch=32"]\n'
        for name, options in (("ebm", []), ("fc", '["--model", "fc"]'), ("gaussian", '["--model", "gaussian"]'))
    )
    recipe.write_text(
        '[collect]\nenv = "hand-cube"\nepisodes = 20\nsteps = 10\noptions = ["--policy", "trained"]\n'
        f"[evaluate]\nsteps = 10\nsamples = 2\n{train}"
        '[plan]\ntask = "rotate axis=all"\nepisodes = 6\nsteps = 2\n'
        'set = ["training.steps=4", "training.batch=16", "network.width=8", "network.horizons=[2,8]"]\n'
    )
    out = tmp_path / "demo"
    results = good(capfd, "demo", "--out", out, "--recipe", recipe, "--workers", 2)
    written = json.loads((out / "results.json").read_text())
    assert written["frechet"] == results["frechet"]
    for panel in ("unconditional", "action_conditional"):
        assert set(written["frechet"][panel]) == {"ebm", "fc", "gaussian", "floor"}
    assert set(written["seconds"]) == {"collect", "train", "evaluate and plan", "total"}
    assert set(written["plan"]) >= {"progress_rad_per_100", "drop_rate", "per_axis", "training_seconds"}
    assert (out / "figures" / "plan.gif").exists() == (not written["pictures_missing"])
    assert written["versions"]["mujoco"]
    assert len(written["commands"]) == 11
    assert all(command.startswith("ebmtraj ") for command in written["commands"])
    assert (out / "frechet.png").exists()
    page = (out / "report.html").read_text(encoding="utf-8")
    assert results["report"] == str(out / "report.html")
    assert all(command.replace("'", "&#x27;") in page for command in written["commands"])
    assert "action_conditional/gaussian" in page
    assert "--overwrite" in bad(capfd, "demo", "--out", out, "--recipe", recipe)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("do not delete")
    assert "not a demo's" in bad(capfd, "demo", "--out", tmp_path / "mine", "--overwrite")
    assert (tmp_path / "mine" / "thesis.txt").exists()


def test_bad_input_is_one_line_and_changes_nothing(
    place: Path, run: Path, store: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    train = ("train", "transition", "--data", store, "--run", tmp_path / "new")
    weights = (run / "checkpoints" / "best.safetensors").read_bytes()
    for words, said in (
        (("collect", tmp_path / "x.zarr", "--episodes", -3), "episodes is -3"),
        (("collect", tmp_path / "x.zarr", "--env", "hand-cub"), "did you mean hand-cube"),
        (("collect", tmp_path / "x.zarr", "--env", "CartPole-v1", "--episodes", 2), "Box"),
        (("collect", store, "--episodes", 2), "--overwrite"),
        (("collect", tmp_path / "x.zarr", "--policy", "nobody"), "nobody"),
        (("collect", tmp_path / "x.zarr", "--set", "episode=3"), "did you mean episodes"),
        (("data", "info", tmp_path / "missing.zarr"), "does not exist"),
        (("data", "info", run), "not a trajectory store"),
        (("train", "transition", "--data", tmp_path / "missing.zarr", "--run", tmp_path / "new"), "does not exist"),
        ((*train, "--set", "training.step=3"), "did you mean training.steps"),
        ((*train, "--set", "network.widht=3"), "did you mean width"),
        ((*train, "--set", "training.steps=soon"), "training.steps"),
        ((*train, "--set", "training.steps=2.5"), "training.steps"),
        ((*train, "--set", "training.steps=-1"), "training.steps"),
        ((*train, "--set", "nonsense"), "key=value"),
        ((*train, "--recipe", tmp_path / "no.toml"), "does not exist"),
        ((*train, "--objective", "dms"), "dsm"),
        ((*train, "--model", "gausian"), "gaussian"),
        ((*train, "--device", "tpu"), "tpu"),
        ((*train, "--seed", 10**22), "--seed"),
        ((*train, "--resume", "--overwrite"), "--overwrite"),
        (("rollout", run, "--data", store, "--steps", 5, "--gif", tmp_path / "a.mp4"), ".gif"),
        (("evaluate", run, tmp_path / "no-run", "--data", store, "--steps", 5, "--overwrite"), "no-run"),
        (("demo", "--out", tmp_path / "d", "--recipe", run / "config.toml"), "unknown key"),
        (("train", "transition", "--data", store, "--run", run), "--resume"),
        (
            ("train", "transition", "--data", store, "--run", run, "--actions", "--resume", "--set", "training.batch=7"),
            "batch",
        ),
        (("rollout", run, "--data", store, "--steps", 500), "500 steps"),
        (("rollout", tmp_path / "no-run", "--data", store), "does not exist"),
        (("rollout", run, "--data", store, "--split", "tset"), "tset"),
        (("evaluate", run, "--data", store, "--steps", 0), "steps"),
        (("evaluate", run, "--datta", store), "--data"),
    ):
        line = bad(capfd, *words)
        assert said in line, line
        assert "Traceback" not in line
    assert not (tmp_path / "new").exists()
    assert not (tmp_path / "x.zarr").exists()
    assert (run / "checkpoints" / "best.safetensors").read_bytes() == weights


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("model", ["dsm", "cd", "fc", "gaussian"])
def test_everything_runs_on_a_gpu(model: str, store: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    cuda = [*TINY[:-1], "cuda"]
    objective = ("--objective" if model in ("dsm", "cd") else "--model", model)
    train = ("train", "transition", "--data", store, *objective, "--actions", "--run", tmp_path / "run", *cuda)
    good(capfd, *train)
    good(capfd, *train, "--resume")
    facts = good(capfd, "evaluate", tmp_path / "run", "--data", store, "--steps", 10, "--device", "cuda")
    assert np.isfinite(facts["frechet"])


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a CUDA device")
def test_cuda_without_a_device(store: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    words = ("train", "transition", "--data", store, "--run", tmp_path / "new", "--device", "cuda")
    assert "--device cpu" in bad(capfd, *words)


def test_a_checkpoint_of_other_dimensions(run: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    other = tmp_path / "reacher.zarr"
    good(capfd, "collect", other, "--env", "Reacher-v5", "--episodes", 20, "--steps", 12, "--workers", 1)
    assert "was trained on states of 31" in bad(capfd, "rollout", run, "--data", other, "--steps", 5)
    good(capfd, "train", "transition", "--data", other, "--run", tmp_path / "reacher", *TINY)  # the generic path, whole
    facts = good(capfd, "evaluate", tmp_path / "reacher", "--data", other, "--steps", 10)
    assert np.isfinite(facts["frechet"])


def test_damaged_stores_are_refused(store: Path, run: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    cut = tmp_path / "cut.zarr"
    shutil.copytree(store, cut)
    shard = max((p for p in (cut / "state").rglob("*") if p.is_file()), key=lambda p: p.stat().st_size)
    shard.write_bytes(shard.read_bytes()[:-100])
    assert "state" in bad(capfd, "train", "transition", "--data", cut, "--run", tmp_path / "new")
    no_actions = tmp_path / "no-actions.zarr"
    shutil.copytree(store, no_actions)
    shutil.rmtree(no_actions / "action" / "c")
    assert "action" in bad(capfd, "train", "transition", "--data", no_actions, "--run", tmp_path / "new")
    code, out, _ = call(capfd, "data", "verify", cut, "--json")
    assert code == 2
    assert not json.loads(out)["ok"]

    spoilt = tmp_path / "nan.zarr"
    shutil.copytree(store, spoilt)
    array = zarr.open_group(str(spoilt), mode="r+")["state"]
    assert isinstance(array, zarr.Array)
    array[5, 3] = np.nan
    line = bad(capfd, "train", "transition", "--data", spoilt, "--run", tmp_path / "new")
    assert "nan" in line.lower()
    assert not (tmp_path / "new").exists()

    foreign = tmp_path / "foreign"
    shutil.copytree(run, foreign)
    (foreign / "checkpoints" / "best.safetensors").write_bytes(b"\x80\x04not a tensor file")
    assert "best.safetensors" in bad(capfd, "rollout", foreign, "--data", store, "--steps", 5)
