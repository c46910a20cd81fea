"""What can go wrong with a plan: kills while its model is trained, and what a user may give."""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from commands import call
from torch import Tensor

from ebmtraj import runs
from ebmtraj.datasets.ahead import Windows
from ebmtraj.runs import Run
from ebmtraj.training.checkpoint import load_tensors
from ebmtraj.trajectories.plan_fit import load_plan_recipe, train_plan

SMALL = [
    *("training.steps=40", "training.check_every=10", "training.batch=16", "training.validation=32"),
    *("network.width=8", "network.horizons=[2,8,12]"),
]


def train(store: Path, path: Path, resume: bool = False) -> None:
    train_plan(load_plan_recipe(None, SMALL, {"data": str(store)}), path, device="cpu", resume=resume)


class Killer:
    """Ends this process with SIGKILL at the n-th call of what it stands before."""

    def __init__(self, inner: Any, after: int) -> None:
        self.inner, self.left = inner, after

    def __call__(self, *args: Any, **named: Any) -> Any:
        self.left -= 1
        if self.left < 0:
            os.kill(os.getpid(), signal.SIGKILL)
        return self.inner(*args, **named)


def train_and_die(store: Path, path: Path, where: str, after: int) -> None:
    """`where`: 'step' (the n-th optimiser step) or 'replace' (the n-th file is written, but not yet renamed)."""
    if where == "step":
        killer = Killer(Windows.sample, after)
        Windows.sample = lambda *args: killer(*args)  # type: ignore[method-assign]
    else:
        runs.os.replace = Killer(os.replace, after)  # type: ignore[assignment]
    train(store, path)
    os._exit(0)


@pytest.fixture(scope="module")
def whole(hand_store: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that nobody interrupted."""
    path = tmp_path_factory.mktemp("whole") / "run"
    train(hand_store, path)
    return path


def tensors(path: Path, name: str) -> dict[str, Tensor]:
    return load_tensors(path / "checkpoints" / f"{name}.safetensors")[1]


# stages end at steps 8 and 20 of 40; files, in order: versions, config, metrics, resume states, then the weights
KILLS = [("step", 8), ("replace", 5)]
MORE = [pytest.param(*each, marks=pytest.mark.slow) for each in (("step", 0), ("step", 33), ("replace", 1))]


@pytest.mark.parametrize(("where", "after"), [*KILLS, *MORE])
def test_a_killed_run_ends_in_the_same_bits(where: str, after: int, hand_store: Path, whole: Path, tmp_path: Path) -> None:
    path = tmp_path / "run"
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["ebmtraj.trajectories.plan_fit", "test_plan_faults"])
    process = context.Process(target=train_and_die, args=(hand_store, path, where, after))
    process.start()
    process.join(120)
    assert process.exitcode == -signal.SIGKILL, f"exit code {process.exitcode}: not killed where it should have been"
    assert not (path / "checkpoints" / "best.safetensors").exists()
    train(hand_store, path, resume=True)
    for name in ("best", "resume"):
        ours, theirs = tensors(path, name), tensors(whole, name)
        assert ours.keys() == theirs.keys()
        assert all(torch.equal(ours[key], value) for key, value in theirs.items())
    rows, others = ([{**row, "seconds": 0} for row in Run(p).read_metrics()] for p in (path, whole))
    assert rows == others


OWN = """
import torch
def nan(path, fields): return path.states[:, -1, 0] * float("nan")
def root(path, fields): return (path.states[:, -1, 0] * 0).sqrt()
def cut(path, fields): return torch.tensor(path.states.detach().numpy()[:, -1, 0])
def height(path, fields, above=0.2): return (above - path.states[:, -1, 26]).clamp_min(0)
"""


def test_bad_input_is_one_line(
    hand_store: Path, whole: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "own_costs_of_a_user.py").write_text(OWN)
    monkeypatch.syspath_prepend(tmp_path)
    other = tmp_path / "point.zarr"
    assert call(capfd, "collect", other, "--env", "ebmtraj/Particle-v0", "--episodes", 5, "--steps", 5)[0] == 0
    mine = "own_costs_of_a_user"
    for words, said in (
        (["--task", f"{mine}:height"], "allow it with --own-code"),
        (["--task", f"rotate + {mine}:nan", "--own-code"], f"{mine}:nan: its value is NaN or infinite"),
        (["--task", f"rotate + {mine}:root", "--own-code"], f"{mine}:root: its gradient is NaN or infinite"),
        (["--task", f"{mine}:cut", "--own-code"], "no gradient in the planned states"),
        (["--task", "reorient", "--data", other], "holds other states than those that the run"),
        (["--task", "joint-pose joints=FFJ3 goal=2"], "outside its range -0.349 to 0.349"),
        (["--task", "rotate weight=-2"], "weight = -2"),
        (["--task", "turn axis=z"], "unknown task term 'turn'"),
        (["--task", ""], "a term is missing"),
    ):
        code, out, err = call(capfd, "plan", whole, *words, "--episodes", 1, "--steps", 1, "--device", "cpu")
        assert (code, out, err.count("\n")) == (2, "", 1), err
        assert said in err
    assert not (whole / "results.json").exists()
    code, _, err = call(capfd, "plan", tmp_path / "none", "--task", "smooth")
    assert code == 2
    assert "train it first: ebmtraj train plan --run" in err
    task = ["--task", f"rotate + {mine}:height above=0.3 weight=2", "--own-code"]
    code, out, err = call(capfd, "plan", whole, *task, "--episodes", 1, "--steps", 1, "--device", "cpu", "--json")
    assert code == 0, err
    assert json.loads(out)["episodes"] == 1
