"""Signals and refusals of the disk, where a whole command would be too much to show them."""

from __future__ import annotations

import dataclasses
import errno
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from commands import call

from ebmtraj import config as recipes
from ebmtraj.cli import app
from ebmtraj.errors import EbmtrajError
from ebmtraj.runs import MetricsWriter, ctrl_c_later


@pytest.fixture(autouse=True)
def heard() -> Iterator[None]:
    """Tests may be run where signals are ignored, as in the background of a shell."""
    before = {each: signal.getsignal(each) for each in (signal.SIGINT, signal.SIGTERM)}
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    yield
    for each, handler in before.items():
        signal.signal(each, handler)


class Full:
    """A file on a disk that is full: it takes nothing, and says so once more when it is closed."""

    name = "metrics.jsonl"

    def write(self, text: str) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    close = flush = lambda self: self.write("")


def test_a_log_that_can_not_be_written_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    log = MetricsWriter(tmp_path / "metrics.jsonl")
    assert log._file is not None
    log._file.close()
    log._file = Full()  # type: ignore[assignment]
    with pytest.raises(EbmtrajError, match=r"can't write metrics.jsonl: No space left on device"):
        log.write({"step": 1})
    log.close()  # says nothing more
    path_open = Path.open

    def refused(self: Path, mode: str = "r", **more: Any) -> Any:
        if mode == "a":
            raise OSError(errno.EROFS, os.strerror(errno.EROFS))
        return path_open(self, mode, **more)

    monkeypatch.setattr(Path, "open", refused)
    with pytest.raises(EbmtrajError, match=r"can't write .*metrics.jsonl: Read-only file system"):
        MetricsWriter(tmp_path / "metrics.jsonl")


def test_any_refusal_of_the_disk_is_one_line(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*args: Any, **more: Any) -> None:
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), "some/file")

    monkeypatch.setattr("ebmtraj.collect.collect", refuse)
    code, out, err = call(capfd, "collect", tmp_path / "s.zarr", "--env", "hand-cube")
    assert (code, out) == (2, "")
    assert err == "error: some/file: Permission denied; free the disk or mend the rights, then run the command again\n"


@pytest.mark.parametrize(
    ("number", "code", "said"), [(signal.SIGINT, 130, "interrupted"), (signal.SIGTERM, 143, "ended by SIGTERM")]
)
def test_what_is_said_of_an_interruption(
    number: signal.Signals, code: int, said: str, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def wait(*args: Any, **more: Any) -> None:
        os.kill(os.getpid(), number)
        time.sleep(5)

    def disguised(*args: Any, **more: Any) -> None:
        try:
            wait()
        except KeyboardInterrupt:
            raise ImportError("half imported") from None

    def dropped(*args: Any, **more: Any) -> None:
        class Last:
            def __del__(self) -> None:
                wait()

        Last()
        time.sleep(5)

    before = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM), sys.unraisablehook
    for how in (wait, disguised, dropped):
        monkeypatch.setattr("ebmtraj.collect.collect", how)
        for words, mend in (
            (["s.zarr"], "; to go on: ebmtraj collect s.zarr --resume"),
            (["s.zarr", "--overwrite"], "; to go on: ebmtraj collect s.zarr --resume"),
        ):
            assert call(capfd, "collect", *words) == (code, "", f"error: {said}{mend}\n")
            for each in (signal.SIGINT, signal.SIGTERM):
                assert signal.getsignal(each) == signal.SIG_DFL  # the second one ends it at once
                signal.signal(each, before[each == signal.SIGTERM])
    monkeypatch.setattr("ebmtraj.report.card.data_card", wait)
    assert call(capfd, "data", "card", "s.zarr") == (code, "", f"error: {said}\n")  # it has no --resume
    for each in (signal.SIGINT, signal.SIGTERM):
        signal.signal(each, before[each == signal.SIGTERM])
    assert sys.unraisablehook == before[2]


def test_what_is_ignored_stays_ignored(monkeypatch: pytest.MonkeyPatch) -> None:
    """As under nohup."""
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with app.interruptible() as came:
            os.kill(os.getpid(), signal.SIGINT)
            assert came == []
        assert signal.getsignal(signal.SIGINT) == signal.SIG_IGN
    finally:
        signal.signal(signal.SIGINT, before)


def write(number: signal.Signals, done: list[str]) -> None:
    with app.interruptible() as came, ctrl_c_later():
        os.kill(os.getpid(), number)
        assert came == []
        done.append("written")


def test_signals_wait_for_a_write() -> None:
    for number in (signal.SIGINT, signal.SIGTERM):
        done: list[str] = []
        before = {each: signal.getsignal(each) for each in (signal.SIGINT, signal.SIGTERM)}
        try:
            with pytest.raises(KeyboardInterrupt):
                write(number, done)
            assert done == ["written"]
        finally:
            for each, handler in before.items():
                signal.signal(each, handler)


def test_a_thread_leaves_signals_alone() -> None:
    found: list[Any] = []

    def work() -> None:
        with app.interruptible() as came, ctrl_c_later():
            found.append(came)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert found == [[]]


def test_a_resumed_sequence_model_says_the_same_of_itself(tmp_path: Path) -> None:
    """Its recipe, read back from a run, has no nulls; the checkpoint's header is the same to the byte."""
    from ebmtraj.collect import CollectConfig, collect
    from ebmtraj.datasets.store import Store
    from ebmtraj.trajectories.sequence_fit import SEQUENCE, SequenceRecipe, load_sequence_recipe

    collect(tmp_path / "s.zarr", CollectConfig(env="ebmtraj/Particle-v0", episodes=3, steps=4))
    store = Store.open(tmp_path / "s.zarr")
    new = load_sequence_recipe(None, ["network.transition.width=8"], {"data": str(store.path)})
    (tmp_path / "config.toml").write_text(recipes.to_toml(new))
    again = recipes.build(SequenceRecipe, recipes.read_toml(tmp_path / "config.toml"), "recipe")
    assert again.network != new.network
    headers = [SEQUENCE.fresh(dataclasses.replace(each), store).header() for each in (new, again)]
    assert str(headers[0]) == str(headers[1])
