"""The state of a training: everything that changes, and so everything that a resume restores."""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from ebmtraj.errors import EbmtrajError
from ebmtraj.runs import MetricsWriter
from ebmtraj.training.checkpoint import load_tensors, recipe_seal, save_tensors
from ebmtraj.training.guard import Guard
from ebmtraj.training.settings import TrainingConfig
from ebmtraj.training.spread import is_main, shared_loss, wait
from ebmtraj.training.trainable import Stage, Trainable


@dataclass
class State:
    """Everything that changes while training, and so everything that a resume restores."""

    stage: int
    loss: nn.Module  # of this stage
    step: int  # steps done in this stage
    total: int  # steps done in all
    optimiser: torch.optim.Adam
    averaged: Trainable  # EMA of the model
    best: dict[str, Tensor]  # weights by name, of any shape
    best_loss: float
    rate: float  # learning rate factor, lowered by the guard
    noise: torch.Generator
    seconds: float  # spent training so far


def begin(model: Trainable, stage: Stage, number: int, config: TrainingConfig, device: torch.device) -> State:
    """The state before the first step of a stage."""
    noise = torch.Generator(device=device).manual_seed(config.seed)
    model.train()
    return State(
        stage=number,
        loss=shared_loss(stage.module, stage.loss, config.precision, device),
        step=0,
        total=0,
        optimiser=_optimiser(stage, config),
        averaged=_copy(model),
        best={k: v.clone() for k, v in model.state_dict().items()},
        best_loss=math.inf,
        rate=1.0,
        noise=noise,
        seconds=0.0,
    )


def _optimiser(stage: Stage, config: TrainingConfig) -> torch.optim.Adam:
    beta1 = config.beta1 if stage.beta1 is None else stage.beta1
    return torch.optim.Adam(stage.module.parameters(), lr=config.learning_rate, betas=(beta1, 0.999), foreach=True)


def _copy(model: Trainable) -> Trainable:
    averaged = copy.deepcopy(model)
    averaged.requires_grad_(False)
    return averaged


def save(path: Path, model: Trainable, state: State, guard: Guard, metrics: MetricsWriter) -> Path:
    """Write the whole state in one file; it is also what the guard rolls back to."""
    if not is_main():
        wait()
        return path
    metrics.sync()
    extra, numbers = model.extra_state()
    optimiser = state.optimiser.state_dict()
    tensors = {f"model.{k}": v for k, v in model.state_dict().items()}
    tensors |= {f"averaged.{k}": v for k, v in state.averaged.state_dict().items()}
    tensors |= {f"best.{k}": v for k, v in state.best.items()}
    tensors |= {f"adam.{i}.{k}": v for i, slots in optimiser["state"].items() for k, v in slots.items()}
    tensors |= {f"extra.{k}": v for k, v in extra.items()}
    tensors["noise"] = state.noise.get_state()
    header = {
        "kind": "resume",
        **recipe_seal(path.parent.parent),
        "stage": state.stage,
        "step": state.step,
        "total": state.total,
        "best_loss": None if state.best_loss == math.inf else state.best_loss,
        "rate": state.rate,
        "seconds": state.seconds,
        "rows": metrics.rows,
        "guard": guard.state(),
        "extra": numbers,
    }
    save_tensors(path, tensors, header)
    wait()
    return path


def load(
    path: Path,
    model: Trainable,
    shares: Sequence[Stage],
    config: TrainingConfig,
    guard: Guard,
    device: torch.device,
) -> tuple[State, int]:
    """The state that was saved last, and how many rows of metrics came before it; the model takes its weights.

    Raises `EbmtrajError` where it is damaged or does not fit the run.
    """
    header, tensors = load_tensors(path)

    def part(prefix: str) -> dict[str, Tensor]:
        return {k.removeprefix(prefix): v.to(device) for k, v in tensors.items() if k.startswith(prefix)}

    try:
        number = int(header["stage"])
        current = shares[min(number, len(shares) - 1)]
        for stage in shares[:number]:
            if stage.module is not current.module:
                stage.module.requires_grad_(False)
        state = begin(model, current, number, config, device)
        model.load_state_dict(part("model."))
        state.averaged.load_state_dict(part("averaged."))
        state.best, state.step, state.total = part("best."), header["step"], header["total"]
        state.best_loss = math.inf if header["best_loss"] is None else header["best_loss"]
        state.rate, state.seconds = header["rate"], header["seconds"]
        slots: dict[int, dict[str, Tensor]] = {}
        for name, value in part("adam.").items():
            index, key = name.split(".", 1)
            slots.setdefault(int(index), {})[key] = value.cpu() if key == "step" else value
        state.optimiser.load_state_dict({**state.optimiser.state_dict(), "state": slots})
        state.noise.set_state(tensors["noise"])
        model.load_extra_state(part("extra."), header["extra"])
        guard.load(header["guard"])
        return state, int(header["rows"])
    except (KeyError, RuntimeError, TypeError, ValueError) as error:
        first = str(error).splitlines()[0]
        raise EbmtrajError(f"resume state {path} does not fit this run ({first}); train anew with --overwrite") from None
