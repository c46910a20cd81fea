"""Shared fixtures: one small real store for the whole run."""

from __future__ import annotations

from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def hand_store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """20 episodes of 20 steps of the simulated hand and cube under the random policy."""
    from ebmtraj.collect import CollectConfig, collect

    path = tmp_path_factory.mktemp("data") / "hand.zarr"
    collect(path, CollectConfig(env="hand-cube", episodes=20, steps=20, seed=0))
    return path
