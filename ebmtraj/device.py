"""Where and how numbers are computed: device, threads, seeds."""

from __future__ import annotations

import contextlib
import math
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from ebmtraj.errors import EbmtrajError

DEVICES = ("auto", "cpu", "cuda")


def choose_device(name: str = "auto") -> torch.device:
    """The device for `auto` (CUDA where there is one), `cpu`, `cuda` or `cuda:N`.

    Raises `EbmtrajError` where that device is not there.
    """
    kind = name.partition(":")[0]
    if kind not in DEVICES:
        raise EbmtrajError(f"unknown device {name!r}; use one of {', '.join(DEVICES)}")
    if kind == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if kind == "cuda":
        if not torch.cuda.is_available():
            raise EbmtrajError("device 'cuda' was asked for, but torch sees no CUDA device here; use --device cpu")
        try:
            device = torch.device(name)
        except RuntimeError:
            raise EbmtrajError(f"unknown device {name!r}; use cuda or cuda:N") from None
        if device.index is not None and device.index >= torch.cuda.device_count():
            raise EbmtrajError(f"device {name!r}: this machine has {torch.cuda.device_count()} CUDA device(s)")
        return device
    return torch.device("cpu")


def use_threads(count: int) -> None:
    """Let torch use `count` CPU threads (0 keeps its choice).

    The sum order of a matrix product depends on it, so a run that must reproduce to the bit fixes it.
    """
    if count > 0:
        torch.set_num_threads(count)


@contextlib.contextmanager
def no_denormals() -> Iterator[None]:
    """Take numbers below 1e-38 for 0 meanwhile, in this thread.

    They cost a CPU many times as much: a mixture whose components die trains four times slower with them.
    """
    torch.set_flush_denormal(True)
    try:
        yield
    finally:
        torch.set_flush_denormal(False)


def generator(seed: int, device: torch.device | str = "cpu") -> torch.Generator:
    """A generator on `device`, seeded."""
    return torch.Generator(device=device).manual_seed(seed)


def describe(device: torch.device) -> dict[str, Any]:
    """What a reader of a result must know of the device that made it."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu"
    return {"device": str(device), "device_name": name, "threads": torch.get_num_threads()}


def free_memory(device: torch.device) -> float:
    """Bytes that can still be had where the data would lie, as far as the system tells."""
    free = [math.inf]
    with contextlib.suppress(OSError, StopIteration, ValueError), open("/proc/meminfo", encoding="ascii") as file:
        free.append(1024 * int(next(line for line in file if line.startswith("MemAvailable")).split()[1]))
    with contextlib.suppress(OSError, StopIteration, ValueError):  # a container's own limit; "max" where there is none
        limit, used, parts = (Path(f"/sys/fs/cgroup/memory.{name}").read_text() for name in ("max", "current", "stat"))
        cached = next(line for line in parts.splitlines() if line.startswith("inactive_file")).split()[1]
        free.append(int(limit) - int(used) + int(cached))
    if len(free) == 1:
        with contextlib.suppress(OSError, ValueError, AttributeError):  # macOS: at least what there is in all
            free.append(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 2)
    if device.type == "cuda":
        free.append(torch.cuda.mem_get_info(device)[0])
    return min(free)


@contextlib.contextmanager
def weights_from(seed: int) -> Iterator[None]:
    """Draw a network's first weights from a seed, and leave the global generator of the CPU as it was."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        yield
