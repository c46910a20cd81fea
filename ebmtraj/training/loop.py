"""One readable training loop: stages, EMA, validation, guard, checkpoint and exact resume."""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ebmtraj.device import no_denormals
from ebmtraj.errors import DivergedError
from ebmtraj.runs import MetricsWriter, Run
from ebmtraj.training.checkpoint import recipe_seal, save_tensors
from ebmtraj.training.guard import Guard
from ebmtraj.training.settings import TrainingConfig
from ebmtraj.training.spread import any_of, backward, from_main, is_main, wait
from ebmtraj.training.state import State, begin, load, save
from ebmtraj.training.trainable import Examples, Stage, Trainable


@dataclass(frozen=True)
class Progress:
    """What a progress bar shows."""

    stage: str
    step: int
    steps: int
    loss: float
    validation: float | None


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
    data: Examples,
    held_out: Examples,
    config: TrainingConfig,
    run: Run,
    *,
    resume: bool = False,
    on_progress: Callable[[Progress], None] = lambda progress: None,
) -> Result:
    """Train all stages of a model and leave its best averaged weights in it and in the run's checkpoints.

    Resumed from its last state on the same CPU, a killed run ends in the same bits as one that was not. Of processes that
    train together, each calls this; the main one writes. Raises `DivergedError`, an `EbmtrajError`, where training keeps
    diverging after the guard's retries.
    """
    device = data.device
    shares = model.stages()
    plan = _plan(shares, config.steps)
    guard = Guard(config.guard)
    checks = held_out.at(_fixed_index(len(held_out), config.validation, device))
    resume_path = run.checkpoints / "resume.safetensors"

    if resume and resume_path.exists():
        state, kept = load(resume_path, model, shares, config, guard, device)
        metrics = MetricsWriter(run.metrics if is_main() else None, keep=kept)
    else:
        state = begin(model, shares[0], 0, config, device)
        metrics = MetricsWriter(run.metrics if is_main() else None)
    data.seek(state.total * config.batch)
    good = save(resume_path, model, state, guard, metrics)
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
                    validation = from_main(_validate(state.averaged, state.stage, checks, device), device)
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
                if validation < state.best_loss or stage.keep == "last":
                    state.best_loss = validation
                    state.best = {k: v.clone() for k, v in state.averaged.state_dict().items()}
                if last:
                    state = _next_stage(model, shares, state, data, config, guard, device)
                good = save(resume_path, model, state, guard, metrics)
    finally:
        metrics.close()

    model.eval()
    header = model.header()
    seconds = time.perf_counter() - clock
    facts: dict[str, Any] = {"steps": state.total, "validation": state.best_loss, "seconds": round(seconds, 3)}
    if is_main():
        facts |= recipe_seal(run.path)
        save_tensors(run.checkpoints / "best.safetensors", model.state_dict(), {**header, **facts})
    wait()
    return Result(state.total, seconds, state.best_loss, guard.tries)


@no_denormals()
def step_time(
    model: Trainable,
    data: Examples,
    config: TrainingConfig,
    trial: int = 30,
    clock: Callable[[], float] = time.perf_counter,
) -> float:
    """Seconds of an optimiser step, all stages by their shares, timed on a copy of the model that is thrown away."""
    probe = copy.deepcopy(model)
    shares = probe.stages()
    cost = 0.0
    for number, stage in enumerate(shares):
        state = begin(probe, stage, number, config, data.device)
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
    state: State,
    data: Examples,
    config: TrainingConfig,
    steps: int,
    guard: Guard,
) -> tuple[Tensor, dict[str, Tensor]]:
    rate = stage.rate * config.learning_rate * state.rate * _schedule(state.step / steps, state.step, config)
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
    guard.watch(loss=loss, gradient_norm=norm, **{name: logs[name] for name in ("gap", "outermost") if name in logs})
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


def _validate(averaged: Trainable, stage: int, checks: Any, device: torch.device) -> float:
    """The stage's loss of the averaged weights on fixed examples with fixed noise, so that checks compare."""
    noise = torch.Generator(device=device).manual_seed(1234)
    was_training = averaged.training
    averaged.eval()
    try:
        loss, logs = averaged.stages()[stage].loss(checks, noise)
    except DivergedError:
        return math.nan
    finally:
        averaged.train(was_training)
    return float(logs.get("validation", loss).detach())


def _next_stage(
    model: Trainable,
    shares: Sequence[Stage],
    state: State,
    data: Examples,
    config: TrainingConfig,
    guard: Guard,
    device: torch.device,
) -> State:
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
    fresh = begin(model, shares[number], number, config, device)
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
) -> State:
    tries = guard.tries + 1
    if tries > config.guard.retries:
        metrics.write({"stage": stage, "step": reached, "event": "gave up", "why": fault})
        raise DivergedError(
            f"training diverged in stage {stage} ({fault}) and did so again after {config.guard.retries} roll-backs; "
            f"begin anew with a lower rate: --overwrite --set training.learning_rate={config.learning_rate / 4:g}"
        )
    state, _ = load(good, model, shares, config, guard, device)
    guard.tries = tries
    state.rate = config.guard.lower_rate**tries
    state.noise.manual_seed(config.seed + 1_000_003 * tries)
    metrics.write({"stage": stage, "step": state.total, "event": "rolled back", "why": fault, "rate": state.rate})
    save(good, model, state, guard, metrics)
    return state


def _plan(shares: Sequence[Stage], steps: int) -> list[int]:
    """Steps of each stage; every stage gets at least one."""
    counts = [max(1, round(stage.share * steps)) for stage in shares]
    counts[-1] = max(1, steps - sum(counts[:-1]))
    return counts


def _fixed_index(count: int, most: int, device: torch.device) -> Tensor:
    order = torch.randperm(count, generator=torch.Generator().manual_seed(0))
    return order[:most].to(device)
