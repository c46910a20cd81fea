"""One readable training loop: stages, EMA, validation, guard, checkpoint and exact resume."""

from __future__ import annotations

import abc
import copy
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from ebmtraj.datasets.windows import Batch, TransitionData
from ebmtraj.device import no_denormals
from ebmtraj.errors import DivergedError, EbmtrajError
from ebmtraj.runs import MetricsWriter, Run
from ebmtraj.training.checkpoint import load_tensors, save_tensors
from ebmtraj.training.guard import Guard, GuardConfig
from ebmtraj.training.spread import (
    Loss,
    Precision,
    any_of,
    backward,
    from_main,
    is_main,
    shared_loss,
    wait,
)


@dataclass(frozen=True)
class TrainingConfig:
    """How long and how to train; the budget is in steps, so that a run reproduces to the bit."""

    steps: int = 30_000  # optimiser steps, all stages together
    seconds: float | None = None  # instead of steps: time a few, then take as many as fit (written to the run as steps)
    episodes: int = 0  # of the training split, its first ones, for curves over the amount of data; 0: all
    batch: int = 512  # of all processes together
    accumulate: int = 1  # parts that a process works its share of a batch through in, which saves memory
    precision: Precision = "fp32"  # bf16: losses under bfloat16 autocast; validation and weights stay fp32
    learning_rate: float = 1e-3
    warmup: int = 200  # steps of linear warm-up
    constant: float = 0.4  # share of the steps before the cosine decay begins
    beta1: float = 0.9  # of Adam
    ema: float = 0.999  # decay of the averaged weights, which are the ones that are kept
    clip: float = 10.0  # bound on the gradient norm
    check_every: int = 500  # steps between validation, checkpoint and resume state
    log_every: int = 50
    validation: int = 8192  # validation transitions at most, always the same ones
    seed: int = 0
    threads: int = 1  # CPU threads; another number gives other bits
    guard: GuardConfig = field(default_factory=GuardConfig)

    def __post_init__(self) -> None:
        for name in ("steps", "batch", "learning_rate", "check_every", "log_every", "validation", "clip", "accumulate"):
            if getattr(self, name) <= 0:
                raise EbmtrajError(f"training.{name} = {getattr(self, name)} must be above 0")
        if self.threads < 0 or not 0 <= self.seed < 2**63:
            raise EbmtrajError(
                f"training: threads = {self.threads}, seed = {self.seed}; it needs threads >= 0 and seed < 2^63"
            )
        if self.precision not in ("fp32", "bf16"):
            raise EbmtrajError(f"training.precision = {self.precision!r}; use fp32 or bf16")
        if self.batch % self.accumulate:
            raise EbmtrajError(
                f"training: batch = {self.batch} is no multiple of accumulate = {self.accumulate}; change one of them"
            )
        if self.episodes < 0:
            raise EbmtrajError(f"training.episodes = {self.episodes} must be 0 (all of the split's) or above")
        if self.seconds is not None and not 0 < self.seconds < math.inf:
            raise EbmtrajError(f"training.seconds = {self.seconds} must be a number above 0")
        if not 0 <= self.ema < 1 or not 0 <= self.beta1 < 1 or not 0 <= self.constant <= 1:
            raise EbmtrajError(
                f"training: ema = {self.ema}, beta1 = {self.beta1}, constant = {self.constant}; "
                "it needs 0 <= ema < 1, 0 <= beta1 < 1 and 0 <= constant <= 1"
            )


@dataclass(frozen=True)
class Stage:
    """A part of the training with a loss and parameters of its own."""

    name: str
    share: float  # of all steps
    module: nn.Module  # whose parameters are trained
    loss: Loss
    finish: Callable[[TransitionData], None] | None = None  # called once with the training data when its weights are final
    beta1: float | None = None  # where it differs from the recipe's


class Trainable(nn.Module, abc.ABC):
    """What the loop needs of a model: its weights, its stages, and what its checkpoint must say."""

    spreads: ClassVar[bool] = True  # whether several processes may train it together

    @abc.abstractmethod
    def stages(self) -> list[Stage]:
        """The stages in order; shares sum to 1."""

    @abc.abstractmethod
    def header(self) -> dict[str, Any]:
        """JSON values for the checkpoint: enough to build and use the model years later."""

    def extra_state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """What a resume needs beside the weights, such as a replay buffer: nothing, unless a subclass says so."""
        return {}, {}

    def load_extra_state(self, tensors: dict[str, Tensor], numbers: dict[str, Any]) -> None:
        """The inverse of `extra_state`."""


@dataclass(frozen=True)
class Progress:
    """What a progress bar shows."""

    stage: str
    step: int
    steps: int
    loss: float
    validation: float | None


@dataclass
class _State:
    """Everything that changes while training, and so everything that a resume restores."""

    stage: int
    loss: nn.Module  # of this stage
    step: int  # steps done in this stage
    total: int  # steps done in all
    optimiser: torch.optim.Adam
    averaged: Trainable  # EMA of the model
    best: dict[str, Tensor]
    best_loss: float
    rate: float  # learning rate factor, lowered by the guard
    noise: torch.Generator
    seconds: float  # spent training so far


@dataclass(frozen=True)
class Result:
    """What a training came to."""

    steps: int
    seconds: float
    validation: float
    rollbacks: int


@no_denormals()
def train(
    model: Trainable,
    data: TransitionData,
    held_out: TransitionData,
    config: TrainingConfig,
    run: Run,
    *,
    resume: bool = False,
    on_progress: Callable[[Progress], None] = lambda progress: None,
) -> Result:
    """Train all stages of a model and leave its best averaged weights in it and in the run's checkpoints.

    Resumed from its last state on the same CPU, a killed run ends in the same bits as one that was not. Of processes that
    train together, each calls this; the main one writes. Raises `EbmtrajError` where training keeps diverging after the
    guard's retries.
    """
    device = data.device
    shares = model.stages()
    plan = _plan(shares, config.steps)
    guard = Guard(config.guard)
    checks = held_out.at(_fixed_index(len(held_out), config.validation, device))
    resume_path = run.checkpoints / "resume.safetensors"

    if resume and resume_path.exists():
        state, kept = _load(resume_path, model, shares, config, guard, device)
        metrics = MetricsWriter(run.metrics if is_main() else None, keep=kept)
    else:
        state = _begin(model, shares[0], 0, config, device)
        metrics = MetricsWriter(run.metrics if is_main() else None)
    data.seek(state.total * config.batch)
    good = _save(resume_path, model, state, guard, metrics)
    clock = time.perf_counter() - state.seconds

    try:
        while state.stage < len(shares):
            stage, steps = shares[state.stage], plan[state.stage]
            fault = validation = None
            try:
                loss, logs = _step(model, stage, state, data, config, steps, guard)
            except DivergedError as error:  # a chain of the sampler that did not stay finite
                fault = str(error)
            last = state.step == steps
            if fault is not None or last or state.step % config.log_every == 0 or state.step % config.check_every == 0:
                fault = any_of(fault or guard.look(), device)
                if fault is None and (last or state.step % config.check_every == 0):
                    validation = from_main(_validate(state.averaged, state.stage, checks), device)
                    fault = None if math.isfinite(validation) else "the validation loss is not finite"
                if fault is not None:
                    state = _roll_back(fault, good, model, shares, config, guard, metrics, stage.name, state.total, device)
                    data.seek(state.total * config.batch)
                    continue
                state.seconds = time.perf_counter() - clock
                row: dict[str, Any] = {"stage": stage.name, "step": state.total, "loss": loss.item()}
                row |= {name: value.item() for name, value in logs.items() if name != "validation"}  # that of the batch
                if validation is not None:
                    row |= {"validation": validation, "seconds": round(state.seconds, 3)}
                metrics.write(row)
                on_progress(Progress(stage.name, state.total, sum(plan), row["loss"], validation))
            if validation is not None:
                if validation < state.best_loss:
                    state.best_loss = validation
                    state.best = {k: v.clone() for k, v in state.averaged.state_dict().items()}
                if last:
                    state = _next_stage(model, shares, state, data, config, guard, device)
                good = _save(resume_path, model, state, guard, metrics)
    finally:
        metrics.close()

    model.eval()
    header = model.header()
    seconds = time.perf_counter() - clock
    facts = {"steps": state.total, "validation": state.best_loss, "seconds": round(seconds, 3)}
    if is_main():
        save_tensors(run.checkpoints / "best.safetensors", model.state_dict(), {**header, **facts})
    wait()
    return Result(state.total, seconds, state.best_loss, guard.tries)


@no_denormals()
def step_time(
    model: Trainable,
    data: TransitionData,
    config: TrainingConfig,
    trial: int = 30,
    clock: Callable[[], float] = time.perf_counter,
) -> float:
    """Seconds of an optimiser step, all stages by their shares, timed on a copy of the model that is thrown away."""
    probe = copy.deepcopy(model)
    shares = probe.stages()
    cost = 0.0
    for number, stage in enumerate(shares):
        state = _begin(probe, stage, number, config, data.device)
        guard = Guard(config.guard)
        times = []
        for _ in range(trial):
            start = clock()
            loss, _ = _step(probe, stage, state, data, config, trial, guard)
            loss.item()
            times.append(clock() - start)
        cost += stage.share * sorted(times)[trial // 2]
    return cost


def steps_within(seconds: float, cost: float) -> int:
    """How many steps of `cost` seconds fit into `seconds`; validation and checkpoints take a twentieth."""
    return max(1, int(0.95 * seconds / cost))


def _step(
    model: Trainable,
    stage: Stage,
    state: _State,
    data: TransitionData,
    config: TrainingConfig,
    steps: int,
    guard: Guard,
) -> tuple[Tensor, dict[str, Tensor]]:
    rate = config.learning_rate * state.rate * _schedule(state.step / steps, state.step, config)
    for group in state.optimiser.param_groups:
        group["lr"] = rate
    batch = data.sample(config.batch, state.noise)
    state.optimiser.zero_grad(set_to_none=True)
    loss, logs = backward(state.loss, batch, config.accumulate, state.noise)
    norm = nn.utils.clip_grad_norm_(stage.module.parameters(), config.clip)
    state.optimiser.step()
    _average(state.averaged, model, min(config.ema, (1 + state.step) / (10 + state.step)))
    state.step += 1
    state.total += 1
    guard.watch(loss=loss, gradient_norm=norm, **{name: logs[name] for name in ("gap",) if name in logs})
    return loss.detach(), logs


def _schedule(progress: float, step: int, config: TrainingConfig) -> float:
    """Linear warm-up, constant, then cosine to 0."""
    warm = min(1.0, (step + 1) / max(1, config.warmup))
    if progress < config.constant or config.constant >= 1:
        return warm
    return warm * 0.5 * (1 + math.cos(math.pi * (progress - config.constant) / (1 - config.constant)))


@torch.no_grad()
def _average(averaged: Trainable, model: Trainable, decay: float) -> None:
    pairs = list(zip(averaged.parameters(), model.parameters(), strict=True))
    torch._foreach_lerp_([a for a, _ in pairs], [b for _, b in pairs], 1 - decay)
    for ours, theirs in zip(averaged.buffers(), model.buffers(), strict=True):
        ours.copy_(theirs)  # statistics and power-iteration vectors are not averaged


def _validate(averaged: Trainable, stage: int, checks: Batch) -> float:
    """The stage's loss of the averaged weights on fixed transitions with fixed noise, so that checks compare."""
    noise = torch.Generator(device=checks.state.device).manual_seed(1234)
    was_training = averaged.training
    averaged.eval()
    try:
        loss, logs = averaged.stages()[stage].loss(checks, noise)
    except DivergedError:
        return math.nan
    finally:
        averaged.train(was_training)
    return float(logs.get("validation", loss).detach())


def _begin(model: Trainable, stage: Stage, number: int, config: TrainingConfig, device: torch.device) -> _State:
    noise = torch.Generator(device=device).manual_seed(config.seed)
    model.train()
    return _State(
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


def _next_stage(
    model: Trainable,
    shares: Sequence[Stage],
    state: _State,
    data: TransitionData,
    config: TrainingConfig,
    guard: Guard,
    device: torch.device,
) -> _State:
    """Take the stage's best averaged weights, let it finish, and set up the next one."""
    model.load_state_dict(state.best)
    finish = shares[state.stage].finish
    if finish is not None:
        finish(data)
    guard.forget()
    number = state.stage + 1
    if number == len(shares):
        state.stage, state.step = number, 0
        return state
    fresh = _begin(model, shares[number], number, config, device)
    fresh.total, fresh.rate, fresh.noise, fresh.seconds = state.total, state.rate, state.noise, state.seconds
    return fresh


def _roll_back(
    fault: str,
    good: Path,
    model: Trainable,
    shares: Sequence[Stage],
    config: TrainingConfig,
    guard: Guard,
    metrics: MetricsWriter,
    stage: str,
    reached: int,
    device: torch.device,
) -> _State:
    tries = guard.tries + 1
    if tries > config.guard.retries:
        metrics.write({"stage": stage, "step": reached, "event": "gave up", "why": fault})
        raise DivergedError(
            f"training diverged in stage {stage} ({fault}) and did so again after {config.guard.retries} roll-backs; "
            f"begin anew with a lower rate: --overwrite --set training.learning_rate={config.learning_rate / 4:g}"
        )
    state, _ = _load(good, model, shares, config, guard, device)
    guard.tries = tries
    state.rate = config.guard.lower_rate**tries
    state.noise.manual_seed(config.seed + 1_000_003 * tries)
    metrics.write({"stage": stage, "step": state.total, "event": "rolled back", "why": fault, "rate": state.rate})
    _save(good, model, state, guard, metrics)
    return state


def _save(path: Path, model: Trainable, state: _State, guard: Guard, metrics: MetricsWriter) -> Path:
    """Write the whole state in one file; it is also what the guard rolls back to."""
    if not is_main():
        wait()
        return path
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


def _load(
    path: Path,
    model: Trainable,
    shares: Sequence[Stage],
    config: TrainingConfig,
    guard: Guard,
    device: torch.device,
) -> tuple[_State, int]:
    header, tensors = load_tensors(path)

    def part(prefix: str) -> dict[str, Tensor]:
        return {k.removeprefix(prefix): v.to(device) for k, v in tensors.items() if k.startswith(prefix)}

    try:
        number = int(header["stage"])
        for stage in shares[:number]:
            stage.module.requires_grad_(False)
        state = _begin(model, shares[min(number, len(shares) - 1)], number, config, device)
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


def _plan(shares: Sequence[Stage], steps: int) -> list[int]:
    """Steps of each stage; every stage gets at least one."""
    counts = [max(1, round(stage.share * steps)) for stage in shares]
    counts[-1] = max(1, steps - sum(counts[:-1]))
    return counts


def _fixed_index(count: int, most: int, device: torch.device) -> Tensor:
    order = torch.randperm(count, generator=torch.Generator().manual_seed(0))
    return order[:most].to(device)
