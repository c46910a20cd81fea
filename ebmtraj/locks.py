"""One writer a folder: the kernel's lock on it, which ends with the process that holds it, however that dies."""

from __future__ import annotations

import contextlib
import errno
import os
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from ebmtraj.errors import EbmtrajError

try:
    import fcntl
except ImportError:  # Windows: no lock is taken
    fcntl = None  # type: ignore[assignment]

LOCK = ".lock"  # in a folder of a file system that locks no folders, such as NFS
PATIENCE = 2.0  # s; so long may a killed process and its workers take to be gone
_TAKEN = (errno.EWOULDBLOCK, errno.EACCES)


@contextlib.contextmanager
def only_writer(folder: str | Path, what: str) -> Iterator[None]:
    """Hold a folder against all other writers, in this process and others; readers don't ask.

    A folder that is not there is made, and taken away again where nothing came to lie in it. Nothing has to be removed
    after a kill: the lock is the kernel's. URLs and file systems without locks are not held. Raises `EbmtrajError`, naming
    `what` and who holds it, where another one writes.
    """
    path = Path(folder)
    if "://" in str(folder) or (path.exists() and not path.is_dir()):  # a file: the caller says what is wrong
        yield
        return
    made = _make(path)
    handle = -1
    try:
        handle = _taken(path, what)
        yield
    finally:
        for each in made:  # innermost first; one that holds something stays
            with contextlib.suppress(OSError):
                each.rmdir()
        if handle >= 0:
            os.close(handle)


@contextlib.contextmanager
def locked_file(path: Path) -> Iterator[BinaryIO]:
    """Open an empty file for writing, once no other process has it open so."""
    while True:
        with path.open("ab") as file:
            if fcntl is not None:
                with contextlib.suppress(OSError):  # a file system without locks
                    fcntl.flock(file, fcntl.LOCK_EX)
            if not _is_still(path, file.fileno()):
                continue  # the one before has renamed it
            file.truncate(0)  # what a kill left
            yield file
            return


def _is_still(path: Path, handle: int) -> bool:
    try:
        return os.path.samestat(os.stat(path), os.fstat(handle))
    except FileNotFoundError:
        return False


def is_held(folder: Path) -> bool:
    """Whether a living process writes a folder; False where that can't be known."""
    try:
        handle = os.open(folder, os.O_RDONLY)
    except OSError:
        return False
    try:
        return _lock(handle) in _TAKEN
    finally:
        os.close(handle)


def _make(path: Path) -> list[Path]:
    """Make a folder and those around it; those that were missing, innermost first. A fault comes up at the first write."""
    missing = [each for each in (path, *path.parents) if not each.exists()]
    with contextlib.suppress(OSError):
        path.mkdir(parents=True, exist_ok=True)
    return missing


def _taken(path: Path, what: str) -> int:
    """A handle whose lock is ours, or -1 where there is none to be had."""
    deadline = time.monotonic() + PATIENCE
    while True:
        _make(path)  # anew, where the one before has taken its empty folder away
        held = path
        try:
            handle = os.open(held, os.O_RDONLY)
        except OSError:
            return -1
        fault = _lock(handle)
        if fault not in (0, *_TAKEN):  # not of folders
            os.close(handle)
            held = path / LOCK
            try:
                handle = os.open(held, os.O_RDWR | os.O_CREAT, 0o666)
            except OSError:
                return -1
            fault = _lock(handle)
        if fault == 0:
            if _is_still(held, handle) or time.monotonic() > deadline:
                return handle
            os.close(handle)
            continue
        holder = _holder(handle)
        os.close(handle)
        if fault not in _TAKEN:
            return -1
        if time.monotonic() > deadline:
            who = f"process {holder} of {socket.gethostname()}" if holder else "another process"
            raise EbmtrajError(f"{what} {path} is being written by {who}; wait until that ends, or end it")
        time.sleep(0.1)


def _lock(handle: int) -> int:
    """Try to take the lock; 0, or the number of the error."""
    if fcntl is None:
        return errno.ENOTSUP
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        return error.errno or errno.ENOTSUP
    return 0


def _holder(handle: int) -> int | None:
    """The process that holds the lock, as far as the kernel tells."""
    number = os.fstat(handle).st_ino
    with contextlib.suppress(OSError, ValueError, IndexError):
        for line in Path("/proc/locks").read_text(encoding="ascii").splitlines():
            parts = line.split()  # 1: FLOCK ADVISORY WRITE 4321 fe:00:1234 0 EOF
            if parts[1] == "FLOCK" and parts[5].rsplit(":", 1)[1] == str(number) and int(parts[4]) > 0:
                return int(parts[4])
    return None
