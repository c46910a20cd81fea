"""Many calls of one function, answered in order: in this process, in processes of this machine, or on a Ray cluster.

At most two items a worker are under way, so that memory does not grow with their number. A worker that dies costs a retry.
"""

from __future__ import annotations

import abc
import contextlib
import multiprocessing
import os
import platform
import secrets
import signal
import sys
import threading
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import CancelledError, Future, ThreadPoolExecutor
from functools import lru_cache
from multiprocessing.connection import Connection
from typing import Any, Literal, TypeVar

from ebmtraj.errors import EbmtrajError
from ebmtraj.runs import cores, ctrl_c_later, versions

Item = TypeVar("Item")
Result = TypeVar("Result")
Name = Callable[[Any], str]  # what an item is called in an error
Backend = Literal["local", "ray"]

RETRIES = 1  # how often an item whose worker died is tried again
FAREWELL = 5.0  # s in which a worker ends by itself
PATIENCE = 20.0  # s in which one that was asked to in the middle of a call ends
SAME_ON_ALL_NODES = ("ebmtraj", "numpy", "scipy", "mujoco", "gymnasium", "gymnasium-robotics")


class Pool(abc.ABC):
    """Workers that call functions; a context manager that frees them."""

    workers: int

    @abc.abstractmethod
    def map(self, function: Callable[[Item], Result], items: Sequence[Item], name: Name = repr) -> Iterator[Result]:
        """`function` of every item, in the items' order.

        Raises what `function` raises, and `EbmtrajError` where the same item's worker dies twice.
        """

    @abc.abstractmethod
    def close(self) -> None:
        """End the workers; what they still compute is not wanted."""

    def __enter__(self) -> Pool:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def open_pool(workers: int = 0, backend: Backend = "local", address: str | None = None) -> Pool:
    """Workers on this machine or on a Ray cluster; 0 is as many as there are cores.

    With Ray, an `address` is that of a running cluster ("auto": the one that this machine belongs to); without one, Ray is
    started on this machine alone. Raises `EbmtrajError` where Ray is not installed or the cluster can't be reached.
    """
    if backend == "ray":
        return RayPool(workers, address)
    if backend != "local":
        raise EbmtrajError(f"unknown backend {backend!r}; use local (processes of this machine) or ray (a cluster)")
    if address is not None:
        raise EbmtrajError(f"address {address!r} is that of a Ray cluster; add --backend ray, or leave it out")
    return ProcessPool(workers or cores()) if (workers or cores()) > 1 else ThisProcess()


class ThisProcess(Pool):
    """No worker beside this process."""

    workers = 1

    def map(self, function: Callable[[Item], Result], items: Sequence[Item], name: Name = repr) -> Iterator[Result]:
        """As `Pool.map`, one after the other."""
        return map(function, items)

    def close(self) -> None:
        """Nothing to end."""


class ProcessPool(Pool):
    """Processes of this machine, which end when this one does.

    Each has a pipe of its own, so that the death of one is seen at once and disturbs no other. The standard library's pool
    has one for all the answers: where a worker is killed while it sends, its reader waits forever.
    """

    def __init__(self, workers: int) -> None:
        self.workers = workers
        self._threads: ThreadPoolExecutor | None = None  # each waits for one process
        self._mine = threading.local()  # a thread's own process, so that none waits for another's
        self._spare: list[_Worker] = []  # started, and not yet a thread's
        self._started: list[_Worker] = []
        self._lock = threading.Lock()

    def map(self, function: Callable[[Item], Result], items: Sequence[Item], name: Name = repr) -> Iterator[Result]:
        """As `Pool.map`; only the worker that has died starts anew.

        Raises `CancelledError` where the pool is closed meanwhile.
        """
        waiting = deque(items)
        flying: deque[Future[Result]] = deque()
        try:
            while waiting or flying:
                while waiting and len(flying) < 2 * self.workers:
                    flying.append(self._running(len(items)).submit(self._answer, function, waiting.popleft(), name))
                yield flying.popleft().result()
        finally:
            for future in flying:
                future.cancel()

    def _running(self, items: int) -> ThreadPoolExecutor:
        if self._threads is None:
            self._threads = ThreadPoolExecutor(min(self.workers, items))
            self._spare = [self._start() for _ in range(min(self.workers, items))]
        return self._threads

    def _answer(self, function: Callable[[Item], Result], item: Item, name: Name) -> Result:
        for _ in range(1 + RETRIES):
            worker = self._mine.worker = getattr(self._mine, "worker", None) or self._next()
            try:
                good, answer = worker.ask(function, item)
            except (EOFError, OSError):  # it has died, maybe in the middle of its answer
                self._mine.worker = None
                worker.end()
                continue
            if good:
                return answer
            raise answer
        raise EbmtrajError(_died(name(item), "worker process", 1 + RETRIES))

    def _next(self) -> _Worker:
        with contextlib.suppress(IndexError):
            return self._spare.pop()
        return self._start()

    def _start(self) -> _Worker:
        with self._lock:
            if self._threads is None:
                raise CancelledError
            self._started = [each for each in self._started if each.process.is_alive()]
            with ctrl_c_later():  # a process whose beginning is cut off complains with a traceback
                self._started.append(worker := _Worker())
        return worker

    def close(self) -> None:
        """As `Pool.close`."""
        with self._lock:
            threads, self._threads = self._threads, None
            started, self._started = self._started, []
        for worker in started:
            worker.finish()
        for worker in started:
            worker.give_up()
        if threads is not None:
            threads.shutdown(cancel_futures=True)
        for worker in started:
            worker.end()


class _Worker:
    """A process that answers one call after the other."""

    def __init__(self) -> None:
        # Spawned, as a fork would copy the threads of zarr and of the simulator in a state that nobody knows.
        context = multiprocessing.get_context("spawn")
        self._pipe, theirs = context.Pipe()
        self.process = context.Process(target=_serve, args=(theirs,), daemon=True)
        self.process.start()
        theirs.close()  # so that the end of the process is the end of the pipe
        self._busy = False

    def ask(self, function: Callable[[Any], Any], item: Any) -> tuple[bool, Any]:
        """Whether the call went well, and its answer or what it raised; raises `EOFError` or `OSError` for a death."""
        self._busy = True
        self._pipe.send((function, item))
        answer: tuple[bool, Any] = self._pipe.recv()
        self._busy = False
        return answer

    def finish(self) -> None:
        """End the process: one that waits for a call ends by itself, and frees what libraries hold (locks of codecs)."""
        if self._busy:
            self.terminate()
        else:
            self._pipe.close()
            self.process.join(FAREWELL)

    def terminate(self) -> None:
        """Ask the process to end, and with it what it has started: a library's probe would complain of a broken pipe."""
        pid = self.process.pid
        if pid and hasattr(os, "killpg"):
            with contextlib.suppress(ProcessLookupError):  # it may not yet lead a group of its own
                os.killpg(pid, signal.SIGTERM)
        self.process.terminate()

    def give_up(self) -> None:
        """Kill a process that was asked to end in the middle of a call and does not, as a thread waits for its answer."""
        if self._busy:
            self.process.join(PATIENCE)
            if self.process.is_alive():
                self.process.kill()

    def end(self) -> None:
        """Make sure that the process is gone."""
        self.terminate()
        self.process.join(FAREWELL)
        if self.process.is_alive():  # inside a library that does not come back
            self.process.kill()
            self.process.join()
        self._pipe.close()


def _serve(pipe: Connection[Any, Any]) -> None:
    """A worker's life: leave Ctrl-C to the parent, and end when the parent is gone, also in the middle of a call."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    ended = threading.Event()

    def end(*_: Any) -> None:
        ended.set()
        sys.exit(1)  # which frees what libraries hold (locks of codecs)

    signal.signal(signal.SIGTERM, end)
    if hasattr(os, "setsid"):
        os.setsid()
    os.dup2(2, 1)  # stdout is the parent's alone: what a policy prints must not stand among --json
    parent = multiprocessing.parent_process()
    if parent is not None:
        threading.Thread(target=_end_with, args=(parent,), daemon=True).start()
    try:
        _answer(pipe, ended)
    except Exception:
        if not ended.is_set():
            raise
        sys.exit(1)  # a library that was being imported made another error of it: nothing to report


def _answer(pipe: Connection[Any, Any], ended: threading.Event) -> None:
    """Calls that come in, one after the other."""
    while not ended.is_set():
        try:
            function, item = pipe.recv()
        except EOFError:
            return
        try:
            answer = (True, function(item))
        except Exception as error:
            answer = (False, _sendable(error))
        try:
            pipe.send(answer)
        except Exception as error:  # an answer that can't be pickled
            pipe.send((False, RuntimeError(f"{type(answer[1]).__name__} can't be sent: {error}")))


def _sendable(error: Exception) -> Exception:
    """The error, or its text: one of another kind may be one that the other side can't make again."""
    return error if type(error) is EbmtrajError else RuntimeError(f"{type(error).__name__}: {error}")


def _end_with(parent: Any) -> None:
    parent.join()
    os._exit(1)


class RayPool(Pool):
    """A Ray cluster, or Ray on this machine alone where no address is given."""

    def __init__(self, workers: int = 0, address: str | None = None) -> None:
        """Raises `EbmtrajError` where ray is missing, the cluster can't be reached or has no CPU to give."""
        self._ray = _import_ray(alone=address is None)
        self._ours = not self._ray.is_initialized()  # a notebook may have connected already
        if self._ours:
            self._connect(workers, address)
        processors = int(self._ray.cluster_resources().get("CPU", 0))
        if processors < 1:
            self.close()
            raise EbmtrajError("the Ray cluster has no CPU to give; start its nodes with --num-cpus of at least 1")
        self.workers = min(workers or processors, processors)

    def _connect(self, workers: int, address: str | None) -> None:
        # The user's own modules are looked for where this process finds them: all machines see the same folders, or a copy.
        own = [path for path in sys.path if path and not path.startswith((sys.prefix, sys.base_prefix))]
        environment = {"env_vars": {"PYTHONPATH": os.pathsep.join(own)}}
        options: dict[str, Any] = {"log_to_driver": False, "logging_level": "error", "runtime_env": environment}
        if address is None:
            options |= {"num_cpus": workers or cores(), "include_dashboard": False}
            options |= {"object_store_memory": 256 * 2**20}  # bytes; blocks of episodes are small, and few are under way
        try:
            with ctrl_c_later():  # in the middle of its start Ray hangs or crashes
                self._ray.init(address=address or "local", **options)
        except Exception as error:  # Ray raises many kinds
            mend = "start it with `ray start --head`, or leave out --address to use this machine alone"
            if address is None:
                mend = "use --backend local on this machine"
            raise EbmtrajError(f"can't reach Ray at {address or 'this machine'} ({_line(error)}); {mend}") from None

    def map(self, function: Callable[[Item], Result], items: Sequence[Item], name: Name = repr) -> Iterator[Result]:
        """As `Pool.map`; a node that is lost costs a retry as well."""
        ray = self._ray
        task = ray.remote(_on_node).options(num_cpus=1, max_retries=RETRIES)
        here = _bits_depend_on()
        waiting = deque(items)
        flying: deque[tuple[Item, Any]] = deque()
        done: set[Any] = set()
        try:
            while waiting or flying:
                running = [answer for _, answer in flying if answer not in done]
                if waiting and len(running) < self.workers and len(flying) < 2 * self.workers:
                    flying.append((waiting[0], task.remote(function, waiting.popleft(), here)))
                elif flying[0][1] not in done:
                    done.update(ray.wait(running, num_returns=1, fetch_local=False)[0])
                else:
                    item, answer = flying.popleft()
                    done.remove(answer)
                    yield self._get(answer, name(item))
        finally:
            for _, answer in flying:
                with contextlib.suppress(Exception):
                    ray.cancel(answer, force=True)

    def _get(self, answer: Any, what: str) -> Any:
        errors = self._ray.exceptions
        try:
            return self._ray.get(answer)
        except errors.RayTaskError as error:
            if isinstance(error.cause, EbmtrajError):
                raise error.cause from None
            reason = _line(error.cause or error)
            raise EbmtrajError(f"{what} failed on a Ray node ({reason}); is the same ebmtraj installed there?") from None
        except (errors.WorkerCrashedError, errors.OutOfMemoryError, errors.NodeDiedError):
            raise EbmtrajError(_died(what, "Ray worker", RETRIES + 1)) from None
        except errors.RayError as error:
            raise EbmtrajError(f"Ray could not do {what} ({_line(error)}); go on with --resume") from None

    def close(self) -> None:
        """As `Pool.close`; a cluster that others started goes on."""
        if self._ours:
            self._ray.shutdown()
            for name in _OUR_KEY:  # not for another cluster
                os.environ.pop(name, None)


_OUR_KEY: dict[str, str] = {}  # what was set in the environment for Ray on this machine alone


def _import_ray(alone: bool) -> Any:
    # Ray reads these when it is imported: no report of usage, no warning about a future default.
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_DEDUP_LOGS", "0")  # what it holds back would come out at exit
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    if alone and "RAY_AUTH_MODE" not in os.environ:
        # A key of its own, read once a process: Ray would write one to the home folder and ask for it on all clusters.
        if "ray" not in sys.modules:
            _OUR_KEY.update({"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32)})
        os.environ |= _OUR_KEY
    try:
        import ray
        import ray.exceptions
    except ImportError:
        raise EbmtrajError("--backend ray needs Ray; install it: pip install 'ebmtraj[ray]'") from None
    return ray


def _on_node(function: Callable[[Item], Result], item: Item, expected: Mapping[str, str]) -> Result:
    """Call on a node whose packages are those of the driver: with others the bits could be others."""
    for package, version in _bits_depend_on().items():
        if expected[package] != version:
            raise EbmtrajError(
                f"Ray node {platform.node()} has {package} {version}, this one {expected[package]}; "
                "install the same versions on all nodes (constraints.txt pins them)"
            )
    try:
        return function(item)
    except Exception as error:
        raise _sendable(error) from None


@lru_cache(maxsize=1)
def _bits_depend_on() -> dict[str, str]:
    found = versions()
    return {package: found.get(package, "none") for package in SAME_ON_ALL_NODES}


def _line(error: Exception) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split())[:200]


def _died(what: str, who: str, times: int) -> str:
    return (
        f"a {who} died {times} times while doing {what} (killed, out of memory, crashed, or a script "
        "without `if __name__ == '__main__':`); what is stored is whole: go on with --resume and fewer --workers"
    )
