"""A run directory is never overwritten unasked, and no file of it is ever half-written."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from ebmtraj import runs
from ebmtraj.device import choose_device, generator
from ebmtraj.errors import EbmtrajError
from ebmtraj.runs import MetricsWriter, Run, read_json, write_atomic, write_json


def test_a_run_is_made_once(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "run"
    run = Run.create(path)
    run.config.write_text("a = 1\n")
    (run.samples / "old.npz").write_text("x")
    with pytest.raises(EbmtrajError, match="--resume"):
        Run.create(path)
    assert Run.open(path).config.read_text() == "a = 1\n"
    again = Run.create(path, overwrite=True)
    assert not again.config.exists()
    assert not list(again.samples.iterdir())


def test_what_is_not_a_run_is_left_alone(tmp_path: Path) -> None:
    folder = tmp_path / "mine"
    folder.mkdir()
    (folder / "thesis.tex").write_text("years of work")
    for overwrite in (False, True):
        with pytest.raises(EbmtrajError, match="not a run"):
            Run.create(folder, overwrite=overwrite)
    assert (folder / "thesis.tex").read_text() == "years of work"
    run = Run.create(tmp_path / "real")
    run.config.write_text("")
    (tmp_path / "link").symlink_to(run.path)
    (tmp_path / "file").write_text("x")
    for name in ("link", "file"):
        with pytest.raises(EbmtrajError, match="not a folder"):
            Run.create(tmp_path / name, overwrite=True)
    with pytest.raises(EbmtrajError, match="not a run"):
        Run.open(folder)
    with pytest.raises(EbmtrajError, match="does not exist"):
        Run.open(tmp_path / "none")
    assert Run.create(tmp_path / "real", overwrite=True)


def test_a_run_killed_before_its_recipe_was_written_can_begin_again(tmp_path: Path) -> None:
    run = Run.create(tmp_path / "run")
    write_json(run.path / "versions.json", {})
    assert Run.create(run.path).path == run.path
    (run.figures / "mine.png").write_text("x")
    with pytest.raises(EbmtrajError, match="not a run"):
        Run.create(run.path)


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a" / "file"
    write_atomic(path, "old")

    def full(handle: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(runs.os, "fsync", full)
    with pytest.raises(EbmtrajError, match="No space left"):
        write_atomic(path, "new")
    assert path.read_text() == "old"
    assert os.listdir(path.parent) == ["file"]


def test_json_is_strict(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_json(tmp_path / "x.json", {"a": float("nan")})
    assert not list(tmp_path.iterdir())
    (tmp_path / "y.json").write_text("{")
    with pytest.raises(EbmtrajError, match="can't be read as JSON"):
        read_json(tmp_path / "y.json")
    with pytest.raises(EbmtrajError, match="does not exist"):
        read_json(tmp_path / "none.json")


def test_metrics_drop_what_came_after_the_resume_state(tmp_path: Path) -> None:
    run = Run.create(tmp_path / "run")
    writer = MetricsWriter(run.metrics)
    for step in range(5):
        writer.write({"step": step})
        assert run.read_metrics()[-1] == {"step": step}  # a reader sees each row at once
    writer.close()
    with run.metrics.open("a") as file:
        file.write('{"step": 5, "lo')  # killed in mid-row
    assert [row["step"] for row in run.read_metrics()] == [0, 1, 2, 3, 4]
    writer = MetricsWriter(run.metrics, keep=3)
    assert writer.rows == 3
    writer.write({"step": 3, "again": True})
    assert writer.rows == 4
    writer.close()
    assert run.read_metrics() == [{"step": 0}, {"step": 1}, {"step": 2}, {"step": 3, "again": True}]
    MetricsWriter(run.metrics).close()
    assert run.read_metrics() == []


def test_devices() -> None:
    import torch

    assert choose_device("cpu") == torch.device("cpu")
    assert choose_device("auto").type in ("cpu", "cuda")
    with pytest.raises(EbmtrajError, match="unknown device 'gpu'"):
        choose_device("gpu")
    if not torch.cuda.is_available():
        with pytest.raises(EbmtrajError, match="--device cpu"):
            choose_device("cuda")
    assert torch.rand(3, generator=generator(4)).equal(torch.rand(3, generator=generator(4)))
    assert runs.versions().keys() >= {"python", "ebmtraj", "torch", "mujoco", "zarr"}
