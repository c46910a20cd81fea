"""What works on this machine, what is missing, and how to get it: each thing is tried, not looked up."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ebmtraj.collect import CollectConfig, collect
from ebmtraj.device import free_memory
from ebmtraj.envs.viewer import check_display
from ebmtraj.errors import EbmtrajError
from ebmtraj.runs import cores, machine, versions
from ebmtraj.trajectories.fit import load_recipe, train_transition

EXTRAS = {  # extra: (module, what for)
    "minari": ("minari", "Minari data sets in and out"),
    "lerobot": ("pyarrow", "LeRobot data sets out"),
    "video": ("imageio_ffmpeg", "mp4 films"),
    "ray": ("ray", "collection on a cluster"),
    "attacks": ("foolbox", "attacks on image classifiers"),
    "tensorboard": ("tensorboard", "training curves in TensorBoard"),
}
BACKENDS = ("egl", "osmesa", "glfw")
GIGABYTE = 1e9
LEAST_MEMORY, LEAST_DISK, LEAST_SHARED = 1.0, 1.0, 0.05  # GB
_APT = "on Debian or Ubuntu: apt install libegl1 libgl1-mesa-dri"


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at."""

    name: str
    ok: bool
    said: str
    mend: str = ""
    needed: bool = False  # whether the default path stops without it


def examine(on_check: Callable[[str], None] = lambda name: None) -> list[Finding]:
    """Try everything; takes some seconds."""
    found = []
    for name, look in _CHECKS.items():
        on_check(name)
        found += list(look())
    return found


def healthy(found: list[Finding]) -> bool:
    """Whether the default path works: collect, train and evaluate on this machine."""
    return all(one.ok for one in found if one.needed)


def _versions() -> Iterator[Finding]:
    said = ", ".join(f"{name} {version}" for name, version in versions().items())
    yield Finding("versions", sys.version_info >= (3, 11), said, "Python 3.11 or newer is needed", needed=True)


def _device() -> Iterator[Finding]:
    yield Finding("processor", True, f"{machine()['processor']}, {cores()} cores for this process")
    threads = torch.get_num_threads()
    busy = os.getloadavg()[0] if hasattr(os, "getloadavg") else 0.0
    free = busy < 0.8 * cores()
    yield Finding(
        "threads",
        free,
        f"torch uses {threads}, {busy:.1f} processes run on average",
        "" if free else "other work runs here; times will be longer",
    )
    if not torch.cuda.is_available():
        built = torch.version.cuda
        mend = "no driver or no GPU that this PyTorch knows (nvidia-smi tells)" if built else "this PyTorch is for CPUs only"
        yield Finding("GPU", False, "none; every default runs on a CPU", mend)
        return
    names = ", ".join(torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count()))
    try:
        worked = float((torch.ones(8, 8, device="cuda") @ torch.ones(8, 8, device="cuda")).sum()) == 512
        yield Finding("GPU", worked, f"{names}, CUDA {torch.version.cuda}")
    except RuntimeError as error:
        yield Finding("GPU", False, f"{names}: {str(error).splitlines()[0]}", "run with --device cpu, or mend the driver")


def _memory() -> Iterator[Finding]:
    free = free_memory(torch.device("cpu")) / GIGABYTE
    yield Finding(
        "memory", free >= LEAST_MEMORY, f"{free:.1f} GB free", f"at least {LEAST_MEMORY:g} GB is needed", needed=True
    )
    shared = Path("/dev/shm")
    if shared.is_dir():
        left = shutil.disk_usage(shared).free / GIGABYTE
        mend = "" if left >= LEAST_SHARED else "in a container give it more, such as docker run --shm-size 1g"
        yield Finding("shared memory", left >= LEAST_SHARED, f"{left:.2f} GB free", mend)
    left = shutil.disk_usage(Path.cwd()).free / GIGABYTE
    yield Finding(
        "disk", left >= LEAST_DISK, f"{left:.1f} GB free here ({Path.cwd()})", f"at least {LEAST_DISK:g} GB is needed"
    )


def _default_path() -> Iterator[Finding]:
    """Simulate two dozen episodes into a store, and train on it for some steps."""
    began = time.perf_counter()
    try:
        with tempfile.TemporaryDirectory() as folder:
            store = str(Path(folder) / "hand.zarr")
            collect(store, CollectConfig(env="hand-cube", episodes=24, steps=8, workers=1))
            tiny = ["training.steps=4", "training.check_every=4", "training.batch=16", "training.warmup=0"]
            train_transition(load_recipe(None, tiny, {"data": store}), Path(folder) / "run", device="cpu")
        said = f"24 episodes simulated and stored, a model trained and saved in {time.perf_counter() - began:.1f} s"
        yield Finding("collect and train", True, said, needed=True)
    except Exception as error:  # whatever it is, this is the place to say it
        said = f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
        mend = "install again into a new environment; --debug shows the traceback"
        yield Finding("collect and train", False, said, mend, needed=True)


def _drawing() -> Iterator[Finding]:
    """Draw one picture of the hand with each backend, each in a process of its own: a broken driver may end it."""
    working = []
    for backend in BACKENDS:
        words = [sys.executable, "-m", "ebmtraj.report.doctor", backend]
        try:
            done = subprocess.run(
                words, capture_output=True, text=True, timeout=60, env={**os.environ, "MUJOCO_GL": backend}
            )
            said = (done.stdout or done.stderr).strip().splitlines() or [f"exit code {done.returncode}"]
        except subprocess.TimeoutExpired:
            done, said = None, ["no answer in 60 s"]
        ok = done is not None and done.returncode == 0
        working += [backend] if ok else []
        yield Finding(f"OpenGL, {backend}", ok, said[-1][:200])
    if not working:
        yield Finding("pictures", False, "no backend draws; everything but pictures and films works", _APT)
    try:
        check_display()
        yield Finding("display", True, "a window can be opened: --interactive works")
    except EbmtrajError as error:
        yield Finding("display", False, str(error).partition(";")[0])


def _extras() -> Iterator[Finding]:
    for extra, (module, what) in EXTRAS.items():
        there = importlib.util.find_spec(module) is not None
        version = ""
        if there:
            distribution = {"imageio_ffmpeg": "imageio-ffmpeg"}.get(module, module)
            version = importlib.metadata.version(distribution)
        said = f"{module} {version}: {what}" if there else f"missing: {what}"
        yield Finding(f"extra {extra}", there, said, "" if there else f"pip install 'ebmtraj[{extra}]'")


_CHECKS: dict[str, Callable[[], Iterator[Finding]]] = {
    "versions": _versions,
    "device": _device,
    "memory and disk": _memory,
    "collect and train": _default_path,
    "drawing": _drawing,
    "extras": _extras,
}


def _draw_once(backend: str) -> None:
    """Draw one picture with this backend and say how long it took, or why it can't be."""
    from ebmtraj.envs.batch import HandCubeBatch
    from ebmtraj.envs.render import Renderer

    env = HandCubeBatch(1)
    env.reset([np.random.default_rng(0)])
    began = time.perf_counter()
    with Renderer("hand-cube", 128, 128) as renderer:
        picture: Any = renderer.frame(env.states[0])
        said = (time.perf_counter() - began) * 1e3
        began = time.perf_counter()
        renderer.frame(env.states[0])
    if picture.std() < 5:
        raise EbmtrajError(f"{backend} draws an empty picture")
    print(f"draws: {(time.perf_counter() - began) * 1e3:.0f} ms a picture of 128 x 128, {said:.0f} ms for the first")


if __name__ == "__main__":
    try:
        _draw_once(sys.argv[1])
    except Exception as error:  # each backend has its own kinds of failure
        reason = str(error).split("OpenGL to draw frames (")[-1].split("): on Debian")[0]
        print(" ".join((reason or type(error).__name__).split()))
        sys.exit(1)
