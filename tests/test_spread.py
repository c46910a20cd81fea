"""A batch in parts gives the gradients of the whole, and several processes those of one."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from commands import call

from ebmtraj.datasets.ahead import Window
from ebmtraj.datasets.store import Store
from ebmtraj.datasets.windows import Past, Transitions
from ebmtraj.errors import EbmtrajError
from ebmtraj.training.checkpoint import load_tensors
from ebmtraj.training.settings import TrainingConfig
from ebmtraj.training.spread import LossOf, backward, rows_of
from ebmtraj.trajectories.registry import make_model

SMALL = ["training.steps=12", "training.batch=24", "training.check_every=6", "network.width=16"]


def words(store: Path, run: Path, *settings: str, model: str = "energy") -> list[str]:
    sets = [word for setting in (*SMALL, *settings) for word in ("--set", setting)]
    base = ["train", "transition", "--data", str(store), "--run", str(run), "--model", model]
    return [*base, *sets, "--device", "cpu", "--json"]


def gradients(store: Path, accumulate: int, model_name: str = "gaussian") -> list[torch.Tensor]:
    source = Store.open(store)
    data = Transitions.load(source, "train", actions=False)
    model = make_model(model_name, source.state_fields, source.action_fields, actions=False, network={"width": 16})
    model.prepare(data)
    stage = model.stages()[0]
    loss_of = LossOf(stage.module, stage.loss, "fp32", torch.device("cpu"))
    batch = data.at(torch.arange(24))
    backward(loss_of, batch, accumulate, torch.Generator().manual_seed(0))
    return [p.grad.clone() for p in stage.module.parameters() if p.grad is not None]


def test_parts_give_the_gradient_of_the_whole(hand_store: Path) -> None:
    whole = gradients(hand_store, 1)
    assert len(whole) > 2
    for accumulate in (2, 3, 24):
        for a, b in zip(whole, gradients(hand_store, accumulate), strict=True):
            torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-6)


def test_rows_of_every_kind_of_batch() -> None:
    x = torch.arange(12.0).view(6, 2)
    past = Past(x[:, None], None, torch.ones(6, 1, dtype=torch.bool))
    window = Window(x, None, x + 1, past, actions=x[:, None], ahead=x[:, None] + 2)
    part = rows_of(window, slice(1, None, 3))
    assert isinstance(part, Window)
    for value in (part.state, part.next_state - 1, part.past.state[:, 0], part.actions[:, 0], part.ahead[:, 0] - 2):  # type: ignore[union-attr]
        assert value.equal(x[[1, 4]])
    assert part.action is None


@pytest.mark.parametrize("kind", ["transition", pytest.param("plan", marks=pytest.mark.slow)])
def test_two_processes_train_what_one_does_in_two_parts(
    kind: str, hand_store: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    given = words(hand_store, tmp_path / "one")
    if kind == "plan":
        window = ["network.actions=2", "network.horizons=[1, 2]"]
        given = [
            "train",
            "plan",
            *given[2:6],
            *(w for s in (*SMALL, *window) for w in ("--set", s)),
            "--device",
            "cpu",
            "--json",
        ]
    assert call(capfd, *given, "--set", "training.accumulate=2")[0] == 0
    given[given.index(str(tmp_path / "one"))] = str(tmp_path / "two")
    done = torchrun(given)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["steps"] == 12  # one process speaks
    one, two = (load_tensors(tmp_path / run / "checkpoints" / "best.safetensors")[1] for run in ("one", "two"))
    for name, value in one.items():
        torch.testing.assert_close(two[name], value, rtol=1e-5, atol=1e-6, msg=name)
    assert json.loads((tmp_path / "two" / "versions.json").read_text())["processes"] == 2
    rows = [(tmp_path / run / "metrics.jsonl").read_text().count("\n") for run in ("one", "two")]
    assert rows[0] == rows[1] > 0


@pytest.mark.slow
def test_what_processes_can_not_train_together(hand_store: Path, tmp_path: Path) -> None:
    for settings, model, said in (
        (["training.batch=25"], "energy", "training.batch = 25 can't be shared out among 2 processes"),
        ([], "cd", "train it without torchrun"),
    ):
        done = torchrun(words(hand_store, tmp_path / "run", *settings, model=model))
        assert done.returncode != 0
        assert said in done.stderr
        assert done.stderr.startswith("error: ")  # torchrun's own report follows
        assert not (tmp_path / "run").exists()


def torchrun(given: list[str]) -> subprocess.CompletedProcess[str]:
    """Two processes on this machine, as `torchrun --standalone --nproc-per-node 2 -m -- ebmtraj ...`."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "--", "ebmtraj"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.run([*command, *given], capture_output=True, text=True, timeout=240, env=environment, check=False)


def test_bfloat16_trains(hand_store: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    code, out, err = call(capfd, *words(hand_store, tmp_path / "run", "training.precision=bf16"))
    assert code == 0, err
    tensors = load_tensors(tmp_path / "run" / "checkpoints" / "best.safetensors")[1]
    assert all(value.dtype != torch.bfloat16 for value in tensors.values())
    again = call(capfd, *words(hand_store, tmp_path / "fp32"))
    assert json.loads(out)["validation"] == pytest.approx(json.loads(again[1])["validation"], rel=0.02)


def test_settings_that_do_not_go(tmp_path: Path) -> None:
    with pytest.raises(EbmtrajError, match="batch = 10 is no multiple of accumulate = 3"):
        TrainingConfig(batch=10, accumulate=3)
    with pytest.raises(EbmtrajError, match="use fp32 or bf16"):
        TrainingConfig(precision="fp16")  # type: ignore[arg-type]
