"""A process that has everything imported, and forks one command line after the other: what runs is the real `app.main`.

A command begun so costs no second of imports, which makes hundreds of kills affordable. Requests come as lines of JSON on
stdin, answers go to stdout; `harness.Zygote` is the other side.

A fault is one of
- {"at": "event", "number": n}: SIGKILL before the n-th time that the command opens a file below its folder for writing,
  renames, removes or makes something there; with "torn", a file that was about to be renamed is first cut to that share;
- {"at": "time", "seconds": s, "signal": name}: a signal after so many seconds; "victim": "worker" sends it to a worker;
- {"at": "write", "number": n, "errno": e}: from the n-th of those events on, the disk refuses with this error;
- {"at": "size", "bytes": b}: SIGKILL in the middle of the write that makes a file larger than so many bytes;
- {"at": "clock", "number": n, "seconds": s}: after n readings, the clocks of the day jump by so many seconds.
"""

from __future__ import annotations

import atexit
import contextlib
import gc
import json
import os
import resource
import signal
import sys
import threading
import time
from pathlib import Path
from typing import Any

WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
OTHERS = ("os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.truncate")


def preload() -> None:
    """Import what the commands import when they need it; no thread may come of it."""
    import importlib

    import ebmtraj

    root = Path(ebmtraj.__file__).parent
    folders = {"ebmtraj": root, **{f"ebmtraj.{name}": root.parent / name for name in ("envs", "datasets", "cli")}}
    for prefix, folder in folders.items():
        for path in sorted(folder.rglob("*.py")):
            inside = path.relative_to(folder).with_suffix("").parts
            if path.stem not in ("viewer", "__main__", "__init__") and inside[0] not in ("envs", "datasets", "cli"):
                with contextlib.suppress(ImportError):  # of a library that is not there
                    importlib.import_module(".".join([prefix, *inside]))
    for name in ("h5py", "minari", "matplotlib.backends.backend_agg", "scipy.optimize", "sklearn.datasets"):
        with contextlib.suppress(Exception):
            importlib.import_module(name)
    gc.collect()
    gc.freeze()  # what is never touched is never copied
    threads = len(os.listdir("/proc/self/task"))
    assert threads == 1, f"{threads} threads before a fork"


class Events:
    """Counts what a command does to files below its folder, and lets a fault happen at one of them."""

    def __init__(self, folder: str, fault: dict[str, Any]) -> None:
        self.folder, self.fault, self.count = folder, fault, 0

    def __call__(self, name: str, args: tuple[Any, ...]) -> None:
        if name == "open":
            if not (isinstance(args[2], int) and args[2] & WRITING):
                return
        elif name not in OTHERS:
            return
        path = args[0]
        if isinstance(path, int):
            return
        path = os.path.join(os.getcwd(), os.fsdecode(path))
        if not path.startswith(self.folder):
            return
        self.count += 1
        fault = self.fault
        if fault.get("at") == "event" and self.count == fault["number"]:
            share = fault.get("torn")
            if share is not None and name == "os.rename" and os.path.isfile(path):
                with open(os.open(path, os.O_RDWR), "r+b") as file:
                    file.truncate(int(share * os.path.getsize(path)))
            os.kill(os.getpid(), signal.SIGKILL)
        if fault.get("at") == "write" and fault["number"] <= self.count and name != "os.remove":
            raise OSError(fault["errno"], os.strerror(fault["errno"]), path)


def jump(number: int, seconds: float) -> None:
    """The clocks of the day go back (or ahead) after so many readings, as a correction of the system's clock makes them."""
    real, real_ns, left = time.time, time.time_ns, [number]

    def shifted() -> float:
        left[0] -= 1
        return real() + (seconds if left[0] < 0 else 0.0)

    time.time = shifted
    time.time_ns = lambda: real_ns() + (int(seconds * 1e9) if left[0] < 0 else 0)


def child(request: dict[str, Any]) -> None:
    """The life of a fork: never returns."""
    os.setsid()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)
    os.chdir(request["folder"])
    for name, handle in (("out", 1), ("errors", 2)):
        file = os.open(request[name], os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
        os.dup2(file, handle)
        os.close(file)
    null = os.open(os.devnull, os.O_RDONLY)
    os.dup2(null, 0)
    os.close(null)
    if request.get("user"):
        os.setgroups([])
        os.setgid(request["user"])
        os.setuid(request["user"])
    os.environ |= request.get("environment", {})
    fault = request.get("fault") or {}
    if fault.get("at") == "size":
        signal.signal(signal.SIGXFSZ, signal.SIG_DFL)  # its default ends the process in the middle of the write
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        resource.setrlimit(resource.RLIMIT_FSIZE, (fault["bytes"], fault["bytes"]))
    if fault.get("at") == "clock":
        jump(fault["number"], fault["seconds"])
    events = Events(os.path.realpath(request["folder"]) + os.sep, fault)
    sys.addaudithook(events)
    sys.argv = ["ebmtraj", *request["words"]]
    from ebmtraj.cli import app

    code: object = 0
    try:
        app.main()
    except SystemExit as stop:
        code = stop.code
    except BaseException:
        import traceback

        traceback.print_exc()
        code = 70
    with contextlib.suppress(OSError), open(request["events"], "w") as file:
        file.write(str(events.count))
    with contextlib.suppress(BaseException):  # what an exit does, but for taking all modules apart, which takes a second
        threading._shutdown()
        atexit._run_exitfuncs()
        sys.stdout.flush()
        sys.stderr.flush()
    os._exit(code if isinstance(code, int) else 1 if code else 0)


def workers_of(pid: int) -> list[int]:
    """Living worker processes of a fork."""
    found = []
    for each in Path(f"/proc/{pid}/task").glob("*/children"):
        with contextlib.suppress(OSError):
            found += [int(child) for child in each.read_text().split()]
    return [each for each in found if b"spawn_main" in _line(each)]


def _line(pid: int) -> bytes:
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    return b""


def family(pid: int) -> list[int]:
    """A process and all that it started."""
    found, new = [], [pid]
    while new:
        found += new
        more = []
        for each in new:
            for file in Path(f"/proc/{each}/task").glob("*/children"):
                with contextlib.suppress(OSError):
                    more += [int(child) for child in file.read_text().split()]
        new = more
    return found


def serve(request: dict[str, Any]) -> dict[str, Any]:
    """Fork, let the fault happen, wait."""
    began = time.monotonic()
    pid = os.fork()
    if pid == 0:
        child(request)
    fault, hit, known = request.get("fault") or {}, None, {pid}
    limit, hung = began + request.get("limit", 120), False
    while True:
        ended, status, _ = os.wait4(pid, os.WNOHANG)
        if ended:
            break
        now = time.monotonic()
        if fault.get("at") == "time" and hit is None and now - began >= fault["seconds"]:
            known |= set(family(pid))
            workers = workers_of(pid) if fault.get("victim") == "worker" else []
            if workers or fault.get("victim") != "worker":
                victim = workers[fault.get("which", 0) % len(workers)] if workers else pid
                os.kill(victim, getattr(signal, fault.get("signal", "SIGKILL")))
                hit = "worker" if workers else "parent"
        if now > limit:
            known |= set(family(pid))
            hung = True
            for each in known:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(each, signal.SIGKILL)
        time.sleep(0.002)
    seconds = time.monotonic() - began
    deadline = time.monotonic() + 20  # its workers see that it is gone
    while (left := [each for each in known - {pid} if _lives(each)]) and time.monotonic() < deadline:
        time.sleep(0.01)
    for each in left:
        with contextlib.suppress(ProcessLookupError):
            os.kill(each, signal.SIGKILL)
    code = os.waitstatus_to_exitcode(status)
    return {"code": code, "seconds": seconds, "hit": hit, "hung": hung, "outlived": len(left)}


def _lives(pid: int) -> bool:
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    return False


def main() -> None:
    """Serve until stdin ends."""
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    preload()
    print("ready", file=answers)
    for line in sys.stdin:
        request = json.loads(line)
        print(json.dumps(serve(request)), file=answers)


if __name__ == "__main__":
    main()
