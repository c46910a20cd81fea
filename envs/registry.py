"""Environments by name: the fast hand and cube, and any Gymnasium id."""

from __future__ import annotations

import difflib
from typing import Any

import gymnasium

from ebmtraj.envs.batch import STATE_CHOICES, BatchEnv, GymBatch, HandCubeBatch, StateChoice
from ebmtraj.errors import EbmtrajError

HAND_CUBE_ID = "ebmtraj/HandCube-v0"
PARTICLE_ID = "ebmtraj/Particle-v0"
FAST_PATHS = {"hand-cube": HandCubeBatch, HAND_CUBE_ID: HandCubeBatch}


def register() -> None:
    """Make this package's environments known to Gymnasium; done at import, and harmless when repeated."""
    for name, entry in ((HAND_CUBE_ID, "hand_cube:HandCubeEnv"), (PARTICLE_ID, "particle:ParticleEnv")):
        if name not in gymnasium.registry:
            gymnasium.register(id=name, entry_point=f"ebmtraj.envs.{entry}")


def make_batch(env: str, threads: int = 1, state: StateChoice = "auto", **kwargs: Any) -> BatchEnv:
    """A batch of environments by name: `hand-cube`, or any Gymnasium id with Box observations and actions.

    `threads` serves the hand and cube; other environments step one after the other, with physical states or observations
    as `GymBatch` says. Of the hand and cube either is the same. Raises `EbmtrajError` for an unknown
    name, naming close ones, and for options that the environment does not take.
    """
    if state not in STATE_CHOICES:
        raise EbmtrajError(f"unknown state {state!r}; use one of {', '.join(STATE_CHOICES)}")
    if env in FAST_PATHS:
        if kwargs:
            raise EbmtrajError(f"hand-cube takes no option {sorted(kwargs)[0]!r}; leave it out")
        return FAST_PATHS[env](threads)
    if ":" not in env and env not in gymnasium.registry:  # "module:id" lets Gymnasium import the module that registers it
        raise EbmtrajError(f"unknown environment {env!r}; {_closest(env)}")
    return GymBatch(env, state, **kwargs)


def _closest(env: str) -> str:
    names = {name.lower(): name for name in [*FAST_PATHS, *gymnasium.registry]}
    close = [names[match] for match in difflib.get_close_matches(env.lower(), names, n=3, cutoff=0.6)]
    if close:
        return f"did you mean {' or '.join(close)}?"
    return "use hand-cube or a Gymnasium id such as Reacher-v5 ('module:id' imports the module that registers it)"


register()
