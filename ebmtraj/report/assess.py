"""A trained run against held-out episodes: rollouts, metrics and what the pictures need."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ebmtraj.config import read_toml
from ebmtraj.datasets.store import Store
from ebmtraj.datasets.windows import Trajectories, trajectories
from ebmtraj.device import generator
from ebmtraj.errors import EbmtrajError
from ebmtraj.evaluation.evaluate import evaluate_rollouts
from ebmtraj.fields import total_size
from ebmtraj.runs import Run, versions
from ebmtraj.trajectories.model import TransitionModel
from ebmtraj.trajectories.registry import load_model
from ebmtraj.trajectories.rollout import sample_futures


@dataclass(frozen=True)
class Assessment:
    """Metrics of one run, and its rollouts `(N, samples, T+1, S)` beside the truth `(N, T+1, S)`."""

    results: dict[str, Any]
    samples: np.ndarray
    truth: np.ndarray


def load_run(path: Path, store: Store, device: torch.device | str = "cpu") -> tuple[TransitionModel, dict[str, Any]]:
    """The best model of a run; raises `EbmtrajError` where its dimensions are not the store's."""
    Run.open(path)
    checkpoint = path / "checkpoints" / "best.safetensors"
    if not checkpoint.exists():
        raise EbmtrajError(f"run {path} has no finished checkpoint; finish it with ebmtraj train transition --resume")
    model, header = load_model(checkpoint, device)
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
    on_step: Callable[[int, int], None] = lambda done, total: None,
) -> Assessment:
    """Roll a run out from held-out starts and measure it.

    The floor compares the same number of other true episodes (from the train split) with the truth. Raises `EbmtrajError`
    where the run or store is not fit, or the model's rollouts are not finite.
    """
    model, header = load_run(path, store, device)
    truth = trajectories(store, split, steps, limit=starts, device=device)
    other = _other_truth(store, split, truth, steps)
    recipe = read_toml(path / "config.toml")
    began = time.perf_counter()
    futures = sample_futures(
        model,
        truth.states[:, 0],
        steps,
        samples,
        actions=truth.actions if model.actions else None,
        generator=generator(seed, device),
        on_step=on_step,
    ).numpy()
    seconds = time.perf_counter() - began
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
        **evaluate_rollouts(futures, true_states, other, store.state_fields, mean, scale),
    }
    return Assessment(results, futures, true_states)


def _other_truth(store: Store, split: str, truth: Trajectories, steps: int) -> np.ndarray | None:
    """As many true episodes of another split, or None where there are too few of them."""
    elsewhere = "train" if split != "train" else "test"
    try:
        other = trajectories(store, elsewhere, steps, limit=len(truth.states)).states.cpu().numpy()
    except EbmtrajError:
        return None
    return other if len(other) == len(truth.states) else None
