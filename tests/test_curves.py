"""Training curves for TensorBoard, read back by TensorBoard's own reader."""

from __future__ import annotations

import json
import shutil
import threading
import time
from pathlib import Path

import pytest
from commands import call

from ebmtraj.report import curves
from ebmtraj.report.curves import write_events
from ebmtraj.runs import Run

reader = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")

ROWS = [
    {"stage": "base", "step": 10, "loss": 2.0},
    {"stage": "base", "step": 20, "loss": 1.0, "validation": 1.5, "seconds": 3.0},
    {"stage": "energy", "step": 30, "loss": 9.0, "gap": -1.0},
    {"stage": "energy", "step": 20, "event": "rolled back", "why": "loss is not finite", "rate": 0.5},
    {"stage": "energy", "step": 40, "loss": 0.5},
]


@pytest.fixture
def run(tmp_path: Path) -> Run:
    made = Run.create(tmp_path / "runs" / "one")
    made.config.write_text("[training]\n")
    made.metrics.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    return made


def read(folder: Path) -> dict[str, list[tuple[int, float]]]:
    events = reader.EventAccumulator(str(folder))
    events.Reload()
    return {tag: [(one.step, one.value) for one in events.Scalars(tag)] for tag in events.Tags()["scalars"]}


def test_every_number_is_there_but_what_was_rolled_back(run: Run, tmp_path: Path) -> None:
    write_events([run], tmp_path / "logs")
    found = read(tmp_path / "logs" / "one")
    assert found == {
        "base/loss": [(10, 2.0), (20, 1.0)],
        "base/validation": [(20, 1.5)],
        "energy/loss": [(40, 0.5)],
    }


def test_runs_are_followed_until_they_are_finished(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(curves, "PAUSE", 0.05)
    worker = threading.Thread(target=write_events, args=([run], tmp_path / "logs"), kwargs={"follow": True})
    worker.start()
    time.sleep(0.2)
    with run.metrics.open("a") as file:
        file.write(json.dumps({"stage": "energy", "step": 50, "loss": 0.25}) + "\n")
    time.sleep(0.2)
    assert worker.is_alive()
    (run.checkpoints / "best.safetensors").write_bytes(b"done")
    worker.join(10)
    assert not worker.is_alive()
    assert read(tmp_path / "logs" / "one")["energy/loss"] == [(40, 0.5), (50, 0.25)]


def test_the_command(run: Run, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    other = tmp_path / "other" / "one"
    shutil.copytree(run.path, other)
    words = ("curves", run.path, other, "--tensorboard", tmp_path / "logs")
    code, out, err = call(capfd, *words, "--json")
    assert code == 0, err
    assert len({Path(path).name for path in json.loads(out)["written"]}) == 2  # two runs of one name, two folders
    code, out, err = call(capfd, "curves", run.path, "--json")
    assert code == 0, err
    assert json.loads(out)["written"] == [str(run.figures / "training.png")]
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "one").mkdir()
    (tmp_path / "mine" / "one" / "thesis.txt").write_text("do not delete")
    for wrong, said in (
        (words, "--overwrite"),
        (("curves", run.path), "--overwrite"),
        (("curves", run.path, other), "one run"),
        (("curves", run.path, "--follow"), "--tensorboard"),
        (("curves", run.path, "--out", tmp_path / "a.pdf"), ".png"),
        (("curves", tmp_path / "none"), "does not exist"),
        (("curves", run.path, "--tensorboard", tmp_path / "mine", "--overwrite"), "other files"),
    ):
        code, out, err = call(capfd, *wrong)
        assert (code, out) == (2, ""), wrong
        assert err.count("\n") == 1
        assert said in err
    assert call(capfd, *words, "--overwrite")[0] == 0


def test_without_the_library_the_extra_is_named(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    from ebmtraj.errors import EbmtrajError

    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    with pytest.raises(EbmtrajError, match=r"ebmtraj\[tensorboard\]"):
        write_events([run], tmp_path / "logs")
