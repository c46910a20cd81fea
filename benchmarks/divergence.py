"""Plant divergence in trainings of every kind and see what the guard makes of it.

A fault is planted once, in the middle of a training: a batch of NaN or of huge numbers, a learning rate or weights far too
large, a poisoned optimiser, gradient, replay buffer or chain, a loss scaled for some steps. Two are planted again at every
try. Told is after how many steps it was detected, whether the training came to its end by itself, and to what validation
loss against the same training without the fault; where it stopped, whether in one line, with the last good state sound.

    python benchmarks/divergence.py --out docs/results/divergence.json
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import json
import logging
import math
import os
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple
from unittest import mock

import corruption
import torch
from torch import Tensor

STEPS, AT = 300, 101  # of each training; a fault is planted just after the guard has looked, its worst moment
WITHIN = 50  # steps in which it must be detected
SETTINGS = f"--set training.steps={STEPS} --set training.batch=32 --set training.check_every=100 --json"


class Step(NamedTuple):
    """What a fault can lay hands on: the arguments of the loop's step."""

    model: Any
    stage: Any
    state: Any
    data: Any


Fault = Callable[[Step], contextlib.AbstractContextManager[Any] | None]


def batch(value: float, rows: int = 1) -> Fault:
    """The batch of this step has `value` in some rows of every tensor of numbers."""

    def fault(step: Step) -> contextlib.AbstractContextManager[Any]:
        honest = type(step.data).sample

        def sample(self: Any, size: int, generator: torch.Generator) -> Any:
            return _spoilt(honest(self, size, generator), value, rows)

        return mock.patch.object(type(step.data), "sample", sample)

    return fault


def _spoilt(found: Any, value: float, rows: int) -> Any:
    if isinstance(found, Tensor) and found.is_floating_point():
        changed = found.clone()
        changed[:rows] = value
        return changed
    if dataclasses.is_dataclass(found) and not isinstance(found, type):
        values = {f.name: _spoilt(getattr(found, f.name), value, rows) for f in dataclasses.fields(found)}
        return dataclasses.replace(found, **values)
    return found


@torch.no_grad()
def weights(factor: float) -> Fault:
    """All weights of the stage are multiplied."""

    def fault(step: Step) -> None:
        for parameter in step.stage.module.parameters():
            parameter.data.mul_(factor)

    return fault


def one_weight(value: float) -> Fault:
    """One weight of the stage is this number."""

    def fault(step: Step) -> None:
        next(p for p in step.stage.module.parameters() if p.requires_grad).data.view(-1)[0] = value

    return fault


def rate(factor: float) -> Fault:
    """The learning rate of this step is multiplied."""

    def fault(step: Step) -> None:
        step.state.rate *= factor  # until it is rolled back

    return fault


def moments(first: float, second: float) -> Fault:
    """The optimiser's running means of the gradient and of its square are these numbers."""

    def fault(step: Step) -> None:
        for slot in step.state.optimiser.state.values():
            slot["exp_avg"].fill_(first)
            slot["exp_avg_sq"].fill_(second)

    return fault


def loss(factor: float) -> Fault:
    """The loss is multiplied, and so its gradient before it is clipped."""

    def fault(step: Step) -> contextlib.AbstractContextManager[Any]:
        honest = step.state.loss.loss

        def scaled(batch: Any, noise: torch.Generator) -> Any:
            value, logs = honest(batch, noise)
            return value * factor, logs

        return mock.patch.object(step.state.loss, "loss", scaled)

    return fault


def gradient(value: float) -> Fault:
    """One entry of the gradient is this number; the loss is as it was."""

    def fault(step: Step) -> contextlib.AbstractContextManager[Any]:
        parameter = next(p for p in step.stage.module.parameters() if p.requires_grad)
        handle = parameter.register_hook(lambda grad: torch.full_like(grad, value))
        return contextlib.closing(_Handle(handle))

    return fault


class _Handle:
    def __init__(self, handle: Any) -> None:
        self.handle = handle

    def close(self) -> None:
        """Let go of the hook."""
        self.handle.remove()


def chains(value: float) -> Fault:
    """What the model keeps beside its weights, a replay buffer or persistent chains, is this number."""

    def fault(step: Step) -> None:
        tensors, numbers = step.model.extra_state()
        if not any(tensor.is_floating_point() for tensor in tensors.values()):
            raise SystemExit(f"{type(step.model).__name__} keeps nothing to poison")
        filled = {k: torch.full_like(t, value) if t.is_floating_point() else t for k, t in tensors.items()}
        step.model.load_extra_state(filled, numbers)

    return fault


class Planting(NamedTuple):
    """A training, a fault, for how many steps it lasts, and whether it comes again at every try."""

    command: str
    fault: Fault
    lasts: int = 1
    always: bool = False


TRANSITION = "train transition --data {s} --actions --model "
IMAGE = "train image --data {i} --set network.width=4 --model "
JEM = "train jem --data {i} --set network.width=4 --model "
GENERATOR = "train generator --data {i} --model "
PLANTINGS = {
    "dsm: a NaN in a batch": Planting(TRANSITION + "energy", batch(math.nan)),
    "dsm: weights times 1e4": Planting(TRANSITION + "energy", weights(1e4)),
    "cd: an infinite batch": Planting("train transition --data {s} --objective cd", batch(math.inf)),
    "cd: negatives from a poisoned buffer": Planting("train transition --data {s} --objective cd", chains(math.nan)),
    "icd: loss times 1e9 for 10 steps": Planting("train transition --data {s} --objective icd", loss(1e9), 10),
    "field: learning rate times 1e6": Planting(TRANSITION + "field", rate(1e6)),
    "fc: numbers of 1e9 in a batch": Planting(TRANSITION + "fc", batch(1e9, 8)),
    "gaussian: optimiser's moments are NaN": Planting(TRANSITION + "gaussian", moments(math.nan, math.nan)),
    "mdn: optimiser's moments 1e4 and 0": Planting(TRANSITION + "mdn", moments(1e4, 0.0)),
    "ensemble: an infinite weight": Planting(TRANSITION + "ensemble", one_weight(math.inf)),
    "edm: a NaN in a gradient": Planting(TRANSITION + "edm", gradient(math.nan)),
    "flow: learning rate times 1e5": Planting(TRANSITION + "flow", rate(1e5)),
    "gru: weights times 1e4": Planting(TRANSITION + "gru", weights(1e4)),
    "plan: a NaN in a batch": Planting("train plan --data {s}", batch(math.nan)),
    "sequence: gradients of 1e30": Planting("train sequence --data {s}", gradient(1e30), 3),
    "clone: learning rate times 1e6": Planting("train clone --data {s}", rate(1e6)),
    "images, dsm: weights times 1e4": Planting(IMAGE + "energy", weights(1e4)),
    "images, pcd: chains that exploded to 1e30": Planting(IMAGE + "energy --objective pcd", chains(1e30)),
    "images, pcd: the same, with the rate kept": Planting(
        IMAGE + "energy --objective pcd --set training.guard.lower_rate=1", chains(1e30)
    ),
    "jem: a NaN in a batch": Planting(JEM + "jem", batch(math.nan)),
    "vae: loss times 1e12 for 5 steps": Planting(GENERATOR + "vae", loss(1e12), 5),
    "glf: weights times 1e4": Planting(GENERATOR + "glf", weights(1e4)),
    "gaussian: a NaN in a batch at every try": Planting(TRANSITION + "gaussian", batch(math.nan), 1, True),
    "dsm: learning rate times 1e9 at every try": Planting(TRANSITION + "energy", rate(1e9), 1, True),
}


@contextlib.contextmanager
def planted(planting: Planting | None) -> Iterator[dict[str, Any]]:
    """Trainings in here have the fault; what is yielded says at which steps it was planted and detected."""
    from ebmtraj.training import loop

    step_of, roll_back = loop._step, loop._roll_back
    found: dict[str, Any] = {"planted": [], "detected": [], "why": []}

    def step(model: Any, stage: Any, state: Any, data: Any, *rest: Any) -> Any:
        at = state.total - AT
        due = planting is not None and 0 <= at < planting.lasts
        if not due or (found["detected"] and not planting.always):
            return step_of(model, stage, state, data, *rest)
        found["planted"].append(state.total)
        with planting.fault(Step(model, stage, state, data)) or contextlib.nullcontext():
            return step_of(model, stage, state, data, *rest)

    def rolled(fault: str, *rest: Any) -> Any:
        found["detected"].append(rest[7])  # the step that was reached
        found["why"].append(fault)
        return roll_back(fault, *rest)

    with mock.patch.object(loop, "_step", step), mock.patch.object(loop, "_roll_back", rolled):
        yield found


def try_one(planting: Planting, work: Path, clean: dict[str, float]) -> dict[str, Any]:
    """Train with the fault, and once without it for each command."""
    from ebmtraj.training.checkpoint import load_tensors

    words = [*planting.command.format(s=work / "s.zarr", i=work / "i.zarr").split(), *SETTINGS.split()]
    if planting.command not in clean:
        with planted(None):
            done = corruption.run([*words, "--run", str(work / f"clean{len(clean)}")])
        if done.code:
            raise SystemExit(f"{planting.command}: {done.err}")
        clean[planting.command] = json.loads(done.out)["validation"]
    run = work / "planted"
    with planted(planting) as found:
        done = corruption.run([*words, "--run", str(run)], (run,))
    within = found["detected"][0] - found["planted"][0] if found["detected"] else None
    row: dict[str, Any] = {"detected_after": within, "why": found["why"][:1], "roll_backs": len(found["detected"])}
    row |= {"lasts": planting.lasts, "at_every_try": planting.always}
    _, state = load_tensors(run / "checkpoints" / "resume.safetensors")
    weights_kept = [t for k, t in state.items() if k.startswith(("model.", "averaged.")) and "normaliser" not in k]
    row["last_good_state_sound"] = all(bool(t.isfinite().all()) for t in weights_kept if t.is_floating_point())
    if done.code == 0:
        _, best = load_tensors(run / "checkpoints" / "best.safetensors")
        finite = all(bool(t.isfinite().all()) for k, t in best.items() if t.is_floating_point() and "normaliser" not in k)
        value, without = json.loads(done.out)["validation"], clean[planting.command]
        row |= {"ended": "recovered" if finite else "not finite", "validation": value, "validation_without": without}
    else:
        lines = [line for line in done.err.splitlines() if line.startswith("error: ")]
        row |= {
            "ended": "stopped" if done.code == 2 and len(lines) == 1 else "traceback",
            "said": done.err.strip().replace(f"{work}/", "")[:300],
        }
    return row


def main() -> None:
    """Plant, train, count, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, help="where the result goes; without it, it is printed")
    parser.add_argument("--only", default="", help="plantings whose name holds this")
    asked = parser.parse_args()
    logging.disable(logging.CRITICAL)
    from ebmtraj.runs import machine, versions, write_json

    torch.set_num_threads(1)
    began, rows, clean = time.perf_counter(), {}, {}
    out = asked.out.resolve() if asked.out else None
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder).resolve()
        os.chdir(work)
        corruption._must(
            ["collect", "s.zarr", "--env", "ebmtraj/Particle-v0", "--steps", "60", "--workers", "1", "--episodes", "40"]
        )
        corruption._images(work / "i.zarr", 0)
        for name, planting in PLANTINGS.items():
            if asked.only in name:
                rows[name] = try_one(planting, work, clean)
                if not out:
                    print(name, json.dumps(rows[name]), flush=True)
        os.chdir("/")
    ended = [row["ended"] for row in rows.values()]
    result = {
        "what": f"faults planted at step {AT} of trainings of {STEPS} steps, and what the guard made of them",
        "command": "python benchmarks/divergence.py",
        "plantings": len(rows),
        "detected": sum(row["detected_after"] is not None for row in rows.values()),
        "detected_within_50": sum(
            row["detected_after"] is not None and row["detected_after"] <= WITHIN for row in rows.values()
        ),
        "recovered": ended.count("recovered"),
        "stopped_in_one_line": ended.count("stopped"),
        "last_good_state_sound": sum(row["last_good_state_sound"] for row in rows.values()),
        "once": sum(not planting.always for name, planting in PLANTINGS.items() if name in rows),
        "rows": rows,
        "seconds": round(time.perf_counter() - began, 1),
        "machine": machine(),
        "versions": versions(),
    }
    if out:
        write_json(out, result)
    print(json.dumps({key: value for key, value in result.items() if key not in ("rows", "versions", "machine")}, indent=1))
    if result["detected_within_50"] < len(rows) or result["recovered"] < result["once"] or "traceback" in ended:
        raise SystemExit(1)


if __name__ == "__main__":
    main()
