"""One writer a folder: the second is refused in one line, a dead one holds nothing, readers never ask."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from commands import call

from ebmtraj import locks
from ebmtraj.datasets import image_writer
from ebmtraj.errors import EbmtrajError
from ebmtraj.locks import is_held, only_writer
from ebmtraj.runs import Run, clear, write_atomic

HOLD = """
import sys, fcntl, os
handle = os.open(sys.argv[1], os.O_RDONLY)
fcntl.flock(handle, fcntl.LOCK_EX)
print("held", flush=True)
sys.stdin.read()
"""
POINT = ("--env", "ebmtraj/Particle-v0", "--episodes", 6, "--steps", 5, "--workers", 1)
TINY = ("--model", "gaussian", "--set", "training.steps=8", "--set", "training.batch=8", "--device", "cpu")


@pytest.fixture(autouse=True)
def _hurry(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(locks, "PATIENCE", 0.2)


@contextmanager
def held(folder: Path) -> Iterator[subprocess.Popen[str]]:
    """Another process that writes this folder."""
    other = subprocess.Popen(
        [sys.executable, "-S", "-c", HOLD, folder], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    try:
        assert other.stdout is not None
        assert other.stdout.readline() == "held\n"
        yield other
    finally:
        other.kill()
        other.communicate()


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("locks")


@pytest.fixture(scope="module")
def store(place: Path) -> Path:
    from ebmtraj.collect import CollectConfig, collect

    collect(place / "s.zarr", CollectConfig(env="ebmtraj/Particle-v0", episodes=20, steps=5))
    return place / "s.zarr"


def test_the_second_writer_is_refused_and_readers_are_not(
    store: Path, place: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    new, run, trial = tmp_path / "new.zarr", tmp_path / "run", tmp_path / "trial"
    export = tmp_path / "s.npz"
    assert call(capfd, "collect", new, *POINT)[0] == 0
    assert call(capfd, "data", "export", store, export, "--format", "npz")[0] == 0
    train = ["train", "transition", "--data", store, "--run", run, *TINY]
    assert call(capfd, *train)[0] == 0
    closed = tmp_path / "closed"
    fit = ["train", "image", "--data", "digits", "--model", "gaussian", "--run", closed]
    assert call(capfd, *fit)[0] == 0
    policy = tmp_path / "policy"
    trial.mkdir()
    policy.mkdir()
    learn = ["continual", "--learners", "class-gaussian", "--seeds", 1, "--data", "digits", "--workers", 1]
    for folder, words in (
        (new, ["collect", new, *POINT, "--resume"]),
        (new, ["collect", new, *POINT, "--overwrite"]),
        (new, ["data", "import", export, new, "--format", "npz", "--resume"]),
        (run, [*train, "--resume"]),
        (run, [*train, "--overwrite"]),
        (closed, [*fit, "--overwrite"]),
        (policy, ["policy", "train", "--run", policy, "--resume"]),
        (trial, [*learn, "--out", tmp_path / "t.json", "--runs", trial]),
    ):
        before = {each: each.stat().st_mtime_ns for each in folder.rglob("*")}
        with held(folder) as other:
            code, out, err = call(capfd, *words)
            assert (code, out, err.count("\n")) == (2, "", 1), err
            assert f"{folder} is being written by process {other.pid} of " in err
            assert {each: each.stat().st_mtime_ns for each in folder.rglob("*")} == before
    with held(run), held(new):
        assert call(capfd, "data", "verify", new)[0] == 0
        out = tmp_path / "futures.npz"
        assert call(capfd, "rollout", run, "--data", store, "--steps", 2, "--out", out, "--device", "cpu")[0] == 0


def test_a_lock_of_a_dead_process_is_none(store: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "new.zarr"
    path.mkdir()
    with held(path) as other:
        assert is_held(path)
        other.send_signal(signal.SIGKILL)
        other.wait()
        assert not is_held(path)
        assert call(capfd, "collect", path, *POINT)[0] == 0


def test_a_writer_waits_for_one_that_is_about_to_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(locks, "PATIENCE", 10.0)
    with held(tmp_path) as other:
        monkeypatch.setattr(locks.time, "sleep", lambda seconds: (other.kill(), other.wait()))
        with only_writer(tmp_path, "run"):
            assert is_held(tmp_path)
    assert not is_held(tmp_path)


def test_a_folder_that_stays_empty_is_not_left(tmp_path: Path) -> None:
    with only_writer(tmp_path / "a" / "b", "run"):
        assert (tmp_path / "a" / "b").is_dir()
    assert list(tmp_path.iterdir()) == []
    with only_writer(tmp_path / "a" / "b", "run"):
        (tmp_path / "a" / "b" / "x").touch()
    assert (tmp_path / "a" / "b" / "x").exists()


def test_where_folders_can_not_be_locked_a_file_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As on NFS."""
    flock = locks.fcntl.flock

    def of_files(handle: int, how: int) -> None:
        if os.path.isdir(f"/proc/self/fd/{handle}"):
            raise OSError(errno.EBADF, os.strerror(errno.EBADF))
        flock(handle, how)

    monkeypatch.setattr(locks.fcntl, "flock", of_files)
    with only_writer(tmp_path / "run", "run"):
        with pytest.raises(EbmtrajError, match="is being written by process"), only_writer(tmp_path / "run", "run"):
            pass
        Run.create(tmp_path / "run")  # the file does not make it a folder of something else
    with only_writer(tmp_path / "run", "run"):
        pass
    monkeypatch.setattr(locks.fcntl, "flock", lambda handle, how: (_ for _ in ()).throw(OSError(errno.ENOSYS, "none")))
    with only_writer(tmp_path / "none", "run"), only_writer(tmp_path / "none", "run"):  # nothing can be known
        write_atomic(tmp_path / "none" / "x", "1")


def test_two_that_write_the_same_file_write_it_one_after_the_other(tmp_path: Path) -> None:
    """The name of the temporary file is the same for both."""
    writer = (
        "import sys; from pathlib import Path; from ebmtraj.runs import write_atomic\n"
        "for i in range(60): write_atomic(Path(sys.argv[1]), sys.argv[2] * (20000 + i))"
    )
    path = tmp_path / "x"
    write_atomic(path, "a" * 20000)
    both = [subprocess.Popen([sys.executable, "-c", writer, path, letter], stderr=subprocess.PIPE) for letter in "ab"]
    seen = set()
    while any(each.poll() is None for each in both):
        content = path.read_text()
        seen.add((len(set(content)), len(content) >= 20000))
    assert [each.communicate()[1] for each in both] == [b"", b""]
    assert seen == {(1, True)}  # whole contents of one writer, always
    assert list(tmp_path.iterdir()) == [path]


def test_what_is_cleared_is_never_half_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Killed before its n-th step, `clear` leaves a run that can be told for one."""
    for steps in range(8):
        folder = tmp_path / str(steps)
        for name in ("checkpoints/best", "checkpoints/resume", "config.toml", "metrics.jsonl", "samples/x"):
            write_atomic(folder / name, name)
        left = [steps]
        rename = Path.rename

        def dying(self: Path, target: Path, left: list[int] = left, rename: object = rename) -> Path:
            left[0] -= 1
            if left[0] < 0:
                raise KeyboardInterrupt
            return rename(self, target)  # type: ignore[operator, no-any-return]

        with monkeypatch.context() as patch:
            patch.setattr(Path, "rename", dying)
            try:
                clear(folder, last="config.toml")
            except KeyboardInterrupt:
                assert (folder / "config.toml").exists()
                assert len(list((folder / "checkpoints").glob("*"))) in (0, 2)
                if (folder / "metrics.jsonl").exists() is False:
                    assert not (folder / "checkpoints").exists()  # so that no state is without its metrics
        Run.create(folder, overwrite=True)
        assert {each.name for each in folder.iterdir()} == {"checkpoints", "samples", "figures"}
        assert not list(folder.rglob("best"))


def test_who_waits_for_a_folder_that_is_taken_away_holds_the_new_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(locks, "PATIENCE", 20.0)
    folder, tries, found = tmp_path / "run", threading.Semaphore(0), []
    folder.mkdir()
    lock = locks._lock
    monkeypatch.setattr(locks, "_lock", lambda handle: (lock(handle), tries.release())[0])

    def wait() -> None:
        with only_writer(folder, "run"):
            found.append(is_held(folder))

    with held(folder) as other:
        waiting = threading.Thread(target=wait)
        waiting.start()
        tries.acquire()
        folder.rmdir()
        other.kill()
        waiting.join()
    assert found == [True]


def test_a_killed_image_store_is_cleared_away(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    dead, living = tmp_path / ".d.zarr.dead.partial", tmp_path / ".d.zarr.living.partial"
    for folder in (dead, living):
        folder.mkdir()
        (folder / "zarr.json").write_text("{}")
    with held(living):
        assert call(capfd, "data", "images", "digits", "--out", tmp_path / "d.zarr")[0] == 0
    assert {each.name for each in tmp_path.iterdir()} == {"d.zarr", living.name}
    assert image_writer.is_held(tmp_path / "d.zarr") is False
