"""The contract of every pool of workers: order, bounded look-ahead, errors, and workers that die."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import subprocess
import sys
import threading
import time
import types
from collections.abc import Callable, Iterator
from concurrent.futures import CancelledError
from functools import partial
from pathlib import Path

import pytest

from ebmtraj import parallel
from ebmtraj.errors import EbmtrajError
from ebmtraj.parallel import Pool, ProcessPool, RayPool, ThisProcess, open_pool

MAKERS: dict[str, Callable[[], Pool]] = {
    "this process": ThisProcess,
    "processes": partial(ProcessPool, 2),
    "ray": partial(RayPool, 2),
}


@pytest.fixture(scope="module", params=[pytest.param(name, marks=[pytest.mark.slow] * (name == "ray")) for name in MAKERS])
def pool(request: pytest.FixtureRequest) -> Iterator[Pool]:
    with MAKERS[request.param]() as made:
        yield made


def slow_square(folder: Path, item: int) -> int:
    """Leaves a trace, so that the test sees what has been started; earlier items take longer."""
    (folder / str(item)).touch()
    time.sleep(0.02 * (3 - item % 4))
    return item * item


def refuse(item: int) -> int:
    raise EbmtrajError(f"item {item} is not for me")


class Two(Exception):
    """Can't be made again from its arguments."""

    def __init__(self, a: int, b: int) -> None:
        super().__init__("two at once")


def fail_oddly(item: int) -> int:
    raise Two(1, item)


def die_once(folder: Path, item: int) -> int:
    if item == 2 and not (folder / "died").exists():
        (folder / "died").touch()
        os.kill(os.getpid(), signal.SIGKILL)
    return item


def die(item: int) -> int:
    os.kill(os.getpid(), signal.SIGKILL)
    return item


def test_the_address_of_no_cluster_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    """With Ray played: the real one would find the cluster of another test on this machine."""

    def init(**options: object) -> None:
        raise ConnectionError(f"Could not find any\nrunning Ray instance at {options['address']}")

    played = types.SimpleNamespace(is_initialized=lambda: False, init=init, exceptions=types.ModuleType("ray.exceptions"))
    monkeypatch.setitem(sys.modules, "ray", played)  # type: ignore[arg-type]
    monkeypatch.setitem(sys.modules, "ray.exceptions", played.exceptions)
    said = (
        r"^can't reach Ray at auto \(ConnectionError: Could not find any running Ray instance at auto\); start it with `ray"
    )
    with pytest.raises(EbmtrajError, match=said):
        open_pool(2, "ray", "auto")


def test_answers_come_in_order_and_few_are_under_way(pool: Pool, tmp_path: Path) -> None:
    answers = pool.map(partial(slow_square, tmp_path), range(40))
    for item, answer in enumerate(answers):
        assert answer == item * item
        assert len(list(tmp_path.iterdir())) <= item + 1 + 2 * pool.workers
    assert item == 39
    assert list(pool.map(partial(slow_square, tmp_path), [])) == []


def test_errors_of_the_function_come_through(pool: Pool) -> None:
    with pytest.raises(EbmtrajError, match=r"^item 7 is not for me$"):
        list(pool.map(refuse, [7, 8, 9]))
    assert list(pool.map(abs, [-1, 2])) == [1, 2]  # and the pool goes on


def test_errors_that_can_not_be_sent_do_not_stop_the_pool(pool: Pool) -> None:
    with pytest.raises(Exception, match="two at once"):
        list(pool.map(fail_oddly, [1, 2, 3, 4]))
    if isinstance(pool, ProcessPool):
        with pytest.raises(Exception, match="pickle"):
            list(pool.map(lambda item: item, [1, 2, 3, 4]))
    assert list(pool.map(abs, range(-6, 0))) == [6, 5, 4, 3, 2, 1]


def test_a_worker_that_dies_costs_a_retry(pool: Pool, tmp_path: Path) -> None:
    if isinstance(pool, ThisProcess):
        pytest.skip("it would take the test along")
    assert list(pool.map(partial(die_once, tmp_path), range(6))) == list(range(6))
    assert (tmp_path / "died").exists()
    with pytest.raises(EbmtrajError, match=r"died 2 times while doing block [01] ") as caught:
        list(pool.map(die, [0, 1], lambda item: f"block {item}"))
    assert "\n" not in str(caught.value)


def test_a_ray_node_with_other_versions_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parallel, "_bits_depend_on", lambda: {"mujoco": "4.0.0"})
    with pytest.raises(EbmtrajError, match=r"has mujoco 4\.0\.0, this one 3\.3\.0; install the same versions"):
        parallel._on_node(abs, -1, {"mujoco": "3.3.0"})
    assert parallel._on_node(abs, -1, {"mujoco": "4.0.0"}) == 1


def test_ray_of_this_machine_leaves_no_key_behind() -> None:
    """In a process of its own, as the key is taken when Ray is imported."""
    program = """if __name__ == "__main__":
        import os
        from ebmtraj.parallel import open_pool
        for _ in range(2):
            with open_pool(1, "ray") as pool:
                assert os.environ["RAY_AUTH_MODE"] == "token"
                assert list(pool.map(abs, [-3])) == [3]
            assert not {"RAY_AUTH_MODE", "RAY_AUTH_TOKEN"} & {*os.environ}
    """
    env = {name: value for name, value in os.environ.items() if not name.startswith("RAY_A")}
    subprocess.run([sys.executable, "-c", program], env=env, check=True)


def test_requests_that_make_no_sense_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(EbmtrajError, match="unknown backend 'slurm'; use local"):
        open_pool(2, "slurm")  # type: ignore[arg-type]
    with pytest.raises(EbmtrajError, match="add --backend ray"):
        open_pool(2, "local", "auto")
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(EbmtrajError, match=r"install it: pip install 'ebmtraj\[ray\]'"):
        open_pool(2, "ray")


class Ends:
    """Asked to end while it is unpickled, as a worker while it imports a library that makes another error of it."""

    def __reduce__(self) -> tuple[Callable[[], None], tuple[()]]:
        return end_while_imported, ()


def end_while_imported() -> None:
    try:
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(10)
    except SystemExit as ended:
        raise ImportError("initialization failed") from ended


def cling(folder: Path, item: int) -> None:
    """Does not end when it is asked to."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    (folder / str(item)).touch()
    time.sleep(60)


def test_a_worker_that_does_not_end_is_killed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its thread would wait for the answer, and the pool for the thread."""
    monkeypatch.setattr(parallel, "PATIENCE", 0.2)
    pool = ProcessPool(1)

    def ask() -> None:
        with contextlib.suppress(CancelledError):
            list(pool.map(partial(cling, tmp_path), [0]))

    asked = threading.Thread(target=ask)
    asked.start()
    while not (tmp_path / "0").exists():
        time.sleep(0.01)
    began = time.monotonic()
    pool.close()
    asked.join()
    assert time.monotonic() - began < 30


def test_a_worker_that_is_asked_to_end_while_it_imports_says_nothing(capfd: pytest.CaptureFixture[str]) -> None:
    spawn = multiprocessing.get_context("spawn")
    ours, theirs = spawn.Pipe()
    worker = spawn.Process(target=parallel._serve, args=(theirs,))
    worker.start()
    ours.send((refuse, Ends()))
    worker.join(30)
    assert worker.exitcode == 1
    assert capfd.readouterr().err == ""
