"""Time a Langevin step of all backends, of TorchEBM, plain torch and blackjax, interleaved in one process.

One core, one thread, 50 steps a chain, medians over rounds that visit every variant; on a GPU the same command times that,
too. The bound is the time that the gradient's products alone would take at the rate of a large product, measured beside.
blackjax (`pip install -e '.[peers]'`) is left out where it is missing.

    python benchmarks/sampler.py --out docs/results/sampler.json
"""

from __future__ import annotations

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")
if hasattr(os, "sched_setaffinity"):
    os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})  # one core for all

import argparse
import contextlib
import importlib.metadata
import importlib.util
import json
import statistics
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ebmtraj.envs.hand_cube import action_fields, state_fields
from ebmtraj.fields import slices, total_size
from ebmtraj.runs import machine, versions, write_json
from ebmtraj.samplers.anneal import Ladder
from ebmtraj.samplers.backends import explain
from ebmtraj.samplers.langevin import LangevinConfig, langevin
from ebmtraj.trajectories.residual import LADDER
from ebmtraj.trajectories.rollout import rollout
from ebmtraj.trajectories.transition import TiltedConfig, TiltedModel

STEPS, STEP, NOISE = 50, 0.005, 0.1
PEERS = ("torchebm", "blackjax", "jax")
OURS = ("auto", "autograd", "channels_last", "compiled", "bf16")


class Layers(nn.Module):
    """An MLP energy as a user would write it."""

    def __init__(self) -> None:
        super().__init__()
        pairs = ((62, 128), (128, 128), (128, 128))
        self.net = nn.Sequential(*(m for a, b in pairs for m in (nn.Linear(a, b), nn.SiLU())), nn.Linear(128, 1))

    def forward(self, x: Tensor, context: None = None) -> Tensor:
        """Energies `(B,)`."""
        return self.net(x).squeeze(-1)


class Images(nn.Module):
    """Four convolutions of 64 channels, the last three with stride 2."""

    def __init__(self) -> None:
        super().__init__()
        strided = (nn.Conv2d(64, 64, 3, stride=2, padding=1) for _ in range(3))
        self.layers = nn.ModuleList((nn.Conv2d(1, 64, 3, padding=1), *strided))
        self.output = nn.Linear(64, 1)

    def forward(self, x: Tensor, context: None = None) -> Tensor:
        """Energies `(B,)`."""
        for layer in self.layers:
            x = F.silu(layer(x))
        return self.output(x.sum((2, 3))).squeeze(-1)


class Workload(NamedTuple):
    """An energy, where chains start, and how often a multiplication is needed for a gradient."""

    make: Callable[[], nn.Module]
    shape: tuple[int, ...]
    products: int  # multiply-adds of one chain's gradient


PLAIN = 2 * (62 * 128 + 2 * 128 * 128 + 128)
CONVOLUTION = 2 * (784 * 9 * 64 + (196 + 49 + 16) * 9 * 64 * 64)
WORKLOADS = {
    "MLP 62-128-128-128-1, batch 128": Workload(Layers, (128, 62), PLAIN),
    "MLP 62-128-128-128-1, batch 4,096": Workload(Layers, (4096, 62), PLAIN),
    "convolutions 1x28x28, 4 layers of 64, batch 64": Workload(Images, (64, 1, 28, 28), CONVOLUTION),
}


def ours(energy: nn.Module, x: Tensor, backend: str) -> Callable[[], None]:
    """A chain of ours."""
    config = LangevinConfig(steps=STEPS, step_size=STEP, noise=NOISE, backend=backend)  # type: ignore[arg-type]
    noise = torch.Generator(x.device).manual_seed(0)
    return lambda: void(langevin(energy, x, config, generator=noise))


def plain(energy: nn.Module, x: Tensor) -> Callable[[], None]:
    """The loop that one writes without a library."""
    noise = torch.Generator(x.device).manual_seed(0)

    def run() -> None:
        y = x.clone()
        for _ in range(STEPS):
            y.requires_grad_(True)
            g = torch.autograd.grad(energy(y).sum(), y)[0]
            y = y.detach() - STEP * g + NOISE * torch.randn(y.shape, generator=noise, device=y.device)

    return run


def torchebm(energy: nn.Module, x: Tensor, setting: str) -> Callable[[], None]:
    """The same chain by TorchEBM, with the model as it is, compiled, or under autocast."""
    from torchebm.core import BaseModel
    from torchebm.samplers.langevin_dynamics import LangevinDynamics

    inner = torch.compile(energy, dynamic=False) if setting == "compiled" else energy

    class Model(BaseModel):
        def __init__(self) -> None:
            super().__init__(device=x.device)
            self.inner = inner

        def forward(self, x: Tensor) -> Tensor:
            return self.inner(x)

    scale = NOISE / (2 * STEP) ** 0.5
    sampler = LangevinDynamics(Model(), step_size=STEP, noise_scale=scale, device=x.device)
    noise = torch.Generator(x.device).manual_seed(0)

    def run() -> None:
        with torch.autocast(x.device.type, torch.bfloat16, enabled=setting == "bf16"):
            sampler.sample(x=x, n_steps=STEPS, generator=noise)

    return run


def blackjax(energy: nn.Module, x: Tensor) -> Callable[[], None]:
    """The same chain of an MLP by blackjax, one compiled loop over all steps."""
    import blackjax
    import jax
    from jax import numpy as jnp

    weights = [jnp.asarray(p.detach().cpu().numpy()) for p in energy.parameters()]

    def mlp(x: Any) -> Any:
        for w, b in zip(weights[:-2:2], weights[1:-2:2], strict=True):
            x = jax.nn.silu(x @ w.T + b)
        return x @ weights[-2].T + weights[-1]

    gradient = jax.grad(lambda x, batch: -mlp(x).sum())
    sampler = blackjax.sgld(gradient)

    @jax.jit
    def chain(key: Any, x: Any) -> Any:
        # its step h moves by h grad and noise sqrt(2 h): to time it, any h will do
        return jax.lax.scan(lambda x, key: (sampler.step(key, x, None, STEP), None), x, jax.random.split(key, STEPS))[0]

    start, key = jnp.asarray(x.cpu().numpy()), jax.random.key(0)
    return lambda: void(chain(key, start).block_until_ready())


def void(_: Any) -> None:
    """Nothing."""


def variants(work: Workload, device: torch.device) -> dict[str, Callable[[], None]]:
    """All that can be timed here, by name; what is missing is left out."""
    torch.manual_seed(0)
    energy = work.make().to(device).requires_grad_(False)
    x = torch.randn(work.shape).to(device)
    print(explain(energy, x=x), flush=True)
    found: dict[str, Callable[[], None]] = {}
    for backend in (*OURS, *(["cuda_graph"] if device.type == "cuda" else [])):
        if backend != "channels_last" or x.dim() == 4:
            found[f"ebmtraj {backend}"] = ours(energy, x, backend)
    found["torch loop"] = plain(energy, x)
    with contextlib.suppress(ImportError):
        for setting in ("eager", "compiled", "bf16"):
            found[f"TorchEBM {setting}"] = torchebm(energy, x, setting)
    if device.type == "cpu" and x.dim() == 2:
        with contextlib.suppress(ImportError):
            found["blackjax"] = blackjax(energy, x)
    return found


def rate(device: torch.device) -> Callable[[], float]:
    """Multiply-adds a second of a large product, measured now."""
    a, b, c = (torch.randn(1024, 1024, device=device) for _ in range(3))
    return lambda: 1024**3 / seconds(lambda: void(torch.mm(a, b, out=c)), device)


def seconds(run: Callable[[], None], device: torch.device) -> float:
    """Of this process on a CPU, of the clock on a GPU."""
    if device.type == "cuda":
        torch.cuda.synchronize()
    clock = time.perf_counter if device.type == "cuda" else time.process_time
    began = clock()
    run()
    if device.type == "cuda":
        torch.cuda.synchronize()
    return clock() - began


def measure(name: str, work: Workload, device: torch.device, rounds: int) -> dict[str, Any]:
    """Medians of all variants of a workload, in ms a step, and their ratios."""
    runs, products = variants(work, device), rate(device)
    first = {}
    for key, run in runs.items():
        first[key] = seconds(run, device)
    many = max(1, round(0.03 / min(seconds(run, device) for run in runs.values())))  # chains a turn, of 30 ms at least
    times: dict[str, list[float]] = {key: [] for key in runs}
    bounds = []
    for _ in range(rounds):
        for key, run in runs.items():
            times[key].append(statistics.median(1e3 * seconds(run, device) / STEPS for _ in range(many)))
        bounds.append(1e3 * work.products * work.shape[0] / products())
    medians = {key: statistics.median(values) for key, values in times.items()}
    peers = [key for key in medians if key.startswith("TorchEBM")]
    best = min((key for key in peers if "bf16" not in key), key=medians.__getitem__, default=None)
    bound = statistics.median(bounds)
    rows = []
    for key, value in medians.items():
        row = {"variant": key, "ms_a_step": value, "least": min(times[key]), "most": max(times[key])}
        row |= {"first_call_seconds": first[key], "of_bound": value / bound}
        row["over_torchebm"] = medians[best] / value if best else None
        row["over_torchebm_eager"] = medians["TorchEBM eager"] / value if best else None
        row["over_blackjax"] = medians["blackjax"] / value if "blackjax" in medians else None
        rows.append(row)
        print(json.dumps(row), flush=True)
    return {
        "workload": name,
        "device": title(device),
        "bound_ms": bound,
        "best_torchebm_fp32": best,
        "rounds": rounds,
        "load": os.getloadavg()[0],
        "rows": rows,
    }


HEUN = Ladder(levels=11, sigma_max=5.0, sigma_min=0.02)
LADDERS = {"three midpoint steps (default)": LADDER, "ten Heun steps": HEUN}


def rollout_steps(device: torch.device, rounds: int, batch: int = 256, steps: int = 5) -> dict[str, Any]:
    """A rollout step of the default transition model of the hand and cube, ms; what it has learnt changes nothing here."""
    noise = torch.Generator(device).manual_seed(0)
    start = torch.zeros(batch, total_size(state_fields()), device=device)
    start[:, slices(state_fields())["cube_quaternion"].start] = 1.0
    runs: dict[str, Callable[[], None]] = {}
    for name, ladder in LADDERS.items():
        for backend in ("auto", "autograd", "bf16"):
            config = LangevinConfig(steps=0, ladder=ladder, backend=backend)  # type: ignore[arg-type]
            torch.manual_seed(0)
            network = TiltedConfig(sampler=config)
            model = TiltedModel(state_fields(), action_fields(), actions=False, config=network).to(device).eval()
            runs[f"{name}, {backend}"] = partial(roll, model, start, steps, noise)
    times: dict[str, list[float]] = {key: [] for key in runs}
    for _ in range(rounds + 1):
        for key, run in runs.items():
            times[key].append(1e3 * seconds(run, device) / steps)
    rows = [
        {"variant": key, "ms_a_step": statistics.median(t[1:]), "least": min(t), "most": max(t[1:])}
        for key, t in times.items()
    ]
    for row in rows:
        print(json.dumps(row), flush=True)
    return {"workload": f"rollout step of the transition energy, batch {batch}", "device": title(device), "rows": rows}


def roll(model: TiltedModel, start: Tensor, steps: int, noise: torch.Generator) -> None:
    """A rollout."""
    rollout(model, start, steps, generator=noise)


def title(device: torch.device) -> str:
    """The device's name."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else f"{machine()['processor']}, one core"


def main() -> None:
    """Measure, print, and write with --out."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--only", default="", help="workloads whose name holds this")
    parser.add_argument("--out", type=Path)
    given = parser.parse_args()
    torch.set_num_threads(1)
    torch.set_flush_denormal(True)
    devices = [torch.device("cpu")] + [torch.device("cuda")] * torch.cuda.is_available()
    results = []
    for name, work in WORKLOADS.items():
        if given.only in name:
            results += [measure(name, work, device, given.rounds) for device in devices]
            if len(devices) == 1:
                results.append({"workload": name, "device": "GPU", "rows": "not measured"})
    for device in devices:
        if given.only in "rollout":
            results.append(rollout_steps(device, given.rounds))
    if given.out:
        peers = {name: importlib.metadata.version(name) for name in PEERS if importlib.util.find_spec(name)}
        before = json.loads(given.out.read_text())["results"] if given.only and given.out.exists() else []
        done = {result["workload"] for result in results}
        results = [result for result in before if result["workload"] not in done] + results  # with --only, the others stay
        parts = ", a workload at a time with --only" if given.only else ""
        facts = {"command": f"python benchmarks/sampler.py --out {given.out}{parts}", "machine": machine()}
        facts |= {"versions": {**versions(), **peers}, "steps": STEPS}
        write_json(given.out, {**facts, "results": results})


if __name__ == "__main__":
    main()
