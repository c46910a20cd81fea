"""A trained run against held-out episodes: rollouts, metrics and what the pictures need."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ebmtraj.collect import resimulate
from ebmtraj.config import read_toml
from ebmtraj.datasets.store import Store
from ebmtraj.datasets.windows import Trajectories, trajectories
from ebmtraj.device import generator
from ebmtraj.envs.batch import HandCubeBatch
from ebmtraj.envs.registry import FAST_PATHS
from ebmtraj.errors import EbmtrajError
from ebmtraj.evaluation.evaluate import OneStep, evaluate_rollouts, one_step_times
from ebmtraj.fields import total_size
from ebmtraj.runs import Run, versions
from ebmtraj.trajectories.model import TransitionModel
from ebmtraj.trajectories.registry import load_model
from ebmtraj.trajectories.rollout import Terminates, sample_futures

SPREAD_TIMES, SPREAD_SAMPLES = 5, 19  # of each episode, and next states of each: the fewest whose 90 % interval is exact


@dataclass(frozen=True)
class Assessment:
    """Metrics of one run, and its rollouts `(N, samples, T+1, S)` beside the truth `(N, T+1, S)`."""

    results: dict[str, Any]
    samples: np.ndarray
    truth: np.ndarray


def load_run(
    path: Path, store: Store, device: torch.device | str = "cpu", network: Mapping[str, Any] | None = None
) -> tuple[TransitionModel, dict[str, Any]]:
    """The best model of a run, `network` as in `load_model`.

    Raises `EbmtrajError` where there is none, or its dimensions are not the store's.
    """
    Run.open(path)
    checkpoint = path / "checkpoints" / "best.safetensors"
    if not checkpoint.exists():
        raise EbmtrajError(f"run {path} has no finished checkpoint; finish it with ebmtraj train transition --resume")
    model, header = load_model(checkpoint, device, network)
    for label, mine, theirs in (
        ("state", model.state_fields, store.state_fields),
        ("action", model.action_fields, store.action_fields),
    ):
        if total_size(mine) != total_size(theirs) or [f.kind for f in mine] != [f.kind for f in theirs]:
            raise EbmtrajError(
                f"run {path} was trained on {label}s of {total_size(mine)} numbers ({', '.join(f.name for f in mine)}), "
                f"store {store.path} has {total_size(theirs)} ({', '.join(f.name for f in theirs)}); "
                "give the store it was trained on"
            )
    return model, header


def assess(
    path: Path,
    store: Store,
    *,
    steps: int = 100,
    samples: int = 4,
    starts: int | None = None,
    split: str = "test",
    seed: int = 0,
    device: torch.device | str = "cpu",
    simulator: np.ndarray | None = None,
    network: Mapping[str, Any] | None = None,
    quick: bool = False,
    on_step: Callable[[int, int], None] = lambda done, total: None,
) -> Assessment:
    """Roll a run out from held-out starts and measure it.

    Where the environment says in which states an episode terminates, true episodes and rollouts that come to one stay in it
    until `steps`; elsewhere true episodes that terminated are left out. The floor compares the same number of other true
    episodes (from the train split) with the truth. `simulator` are other
    true futures of the first starts, from `simulator_futures`; a model that is given the recorded actions is not compared
    with them. `network` are other settings than the run's own, as in `load_model`. `quick` leaves out what takes most of
    the time: C2ST, scores of one step, and penetration. Raises `EbmtrajError` where the run or store is not fit, or the
    model's rollouts are not finite.
    """
    model, header = load_run(path, store, device, network)
    terminates = _terminates(store)
    truth = trajectories(store, split, steps, limit=starts, hold=terminates is not None, device=device)
    other = _other_truth(store, split, truth, steps, hold=terminates is not None)
    recipe = read_toml(path / "config.toml")
    began = time.perf_counter()
    futures = sample_futures(
        model,
        truth.states[:, 0],
        steps,
        samples,
        actions=truth.actions if model.actions else None,
        terminates=terminates,
        generator=generator(seed, device),
        on_step=on_step,
    ).numpy()
    seconds = time.perf_counter() - began
    one_step = None if quick else _one_step(model, truth, other, terminates, seed, device)
    true_states = truth.states.cpu().numpy()
    mean, scale = model.normaliser.state_mean.cpu().numpy(), model.normaliser.state_scale.cpu().numpy()
    results = {
        "run": str(path),
        "data": str(store.path),
        "content_hash": store.content_hash,
        "trained_on": recipe.get("content_hash"),
        "versions": versions(),
        "model": header["model"],
        "actions": model.actions,
        "training_seconds": header.get("seconds"),
        "training_steps": header.get("steps"),
        "rollout_seconds": round(seconds, 3),
        "split": split,
        "seed": seed,
        "left_out_shorter_episodes": truth.shorter,
        "terminated": None if terminates is None else _terminated(terminates, futures, truth.states),
        **evaluate_rollouts(
            futures,
            true_states,
            None if other is None else other.states.cpu().numpy(),
            store.state_fields,
            mean,
            scale,
            one_step=one_step,
            simulator=None if model.actions else simulator,
            penetration=None if quick else _penetration(store),
            classifier=not quick,
            seed=seed,
        ),
    }
    return Assessment(results, futures, true_states)


def simulator_futures(
    store: Store, *, steps: int = 100, samples: int = 8, starts: int = 100, split: str = "test", workers: int = 0
) -> np.ndarray:
    """Other true futures (starts, samples, T+1, S) of the first starts that `assess` rolls out from; raises as `resimulate`.

    A core simulates about 14 futures of the hand of 100 steps a second; compute them once for all runs.
    """
    hold = _terminates(store) is not None
    episodes = trajectories(store, split, steps, limit=starts, hold=hold).episodes
    return resimulate(store, episodes, samples, steps=steps, hold=hold, workers=workers)


def _one_step(
    model: TransitionModel,
    truth: Trajectories,
    other: Trajectories | None,
    terminates: Terminates | None,
    seed: int,
    device: torch.device | str,
) -> OneStep:
    """Next states that the model samples from true states, after their true past if it sees any."""
    starts, steps = truth.states.shape[0], truth.states.shape[1] - 1
    times = one_step_times(starts, steps, seed)
    rows = np.arange(starts)[:, None]
    noise = generator(seed + 1, device)

    def sampled(at: np.ndarray, samples: int) -> np.ndarray:
        state = truth.states[rows, at].flatten(0, 1)
        action = truth.actions[rows, at].flatten(0, 1)[:, None] if model.actions else None
        past = truth.past(torch.from_numpy(at).to(state.device), model.history, actions=model.actions)
        futures = sample_futures(
            model, state, 1, samples, actions=action, past=past, terminates=terminates, generator=noise
        )[:, :, 1]
        return futures.view(*at.shape, samples, -1).numpy()  # (N, W, m, S)

    given = truth.actions[rows, times].cpu().numpy() if model.actions else None
    other_given = other.actions[rows, times].cpu().numpy() if model.actions and other is not None else None
    spread = np.moveaxis(sampled(times[:, :SPREAD_TIMES], SPREAD_SAMPLES), 2, 1)
    return OneStep(times, sampled(times, 1)[:, :, 0], spread, given, other_given)


def _environment(store: Store) -> HandCubeBatch | None:
    """The environment whose states the store holds, if it can say of any state what is true in it."""
    batch = FAST_PATHS.get(store.attributes.get("env") or "")
    if batch is None:
        return None
    env = batch(1)
    known = [(field.name, field.size) for field in env.state_fields] == [(f.name, f.size) for f in store.state_fields]
    return env if known else None


def _penetration(store: Store) -> Callable[[np.ndarray], np.ndarray] | None:
    """How deep the contacts of states overlap, where the environment can tell."""
    env = _environment(store)
    return None if env is None else env.penetration  # 60,000 states a second


def _terminates(store: Store) -> Terminates | None:
    """In which states an episode ends, where the environment can tell."""
    env = _environment(store)
    return None if env is None else lambda states: torch.from_numpy(env.terminates(states.cpu().numpy())).to(states.device)


def _terminated(terminates: Terminates, futures: np.ndarray, truth: Tensor) -> dict[str, float]:
    """Which share of rollouts (N, m, T+1, S) and true episodes (N, T+1, S) has terminated by the last step."""
    return {
        "model": float(terminates(torch.from_numpy(futures[:, :, -1]).flatten(0, 1)).float().mean()),
        "truth": float(terminates(truth[:, -1]).float().mean()),
    }


def _other_truth(store: Store, split: str, truth: Trajectories, steps: int, *, hold: bool) -> Trajectories | None:
    """As many true episodes of another split, or None where there are too few of them."""
    elsewhere = "train" if split != "train" else "test"
    try:
        other = trajectories(store, elsewhere, steps, limit=len(truth.states), hold=hold)
    except EbmtrajError:
        return None
    return other if len(other.states) == len(truth.states) else None
