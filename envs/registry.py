"""Environments by name: the fast hand and cube, and any Gymnasium id."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from typing import Any

import gymnasium

from ebmtraj.envs.batch import STATE_CHOICES, BatchEnv, HandCubeBatch, StateChoice
from ebmtraj.envs.gym_batch import GymBatch
from ebmtraj.errors import EbmtrajError
from ebmtraj.fields import Described, total_size

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


def refuse_code(env: Any, env_kwargs: Any, where: str, *, own_code: bool = False) -> None:
    """Raise `EbmtrajError` where a file names an environment that runs code or reads files of its own choice.

    `where` is what names it, such as a run. `own_code`: the user has allowed it.
    """
    if not isinstance(env, str) or not isinstance(env_kwargs, Mapping):
        raise EbmtrajError(f"{where}: its environment {env!r} with {env_kwargs!r} is none; the file is damaged")
    if own_code:
        return
    if ":" in env:
        raise EbmtrajError(f"{where}: its environment {env!r} imports a module; if you trust it, allow that with --own-code")
    for key, value in env_kwargs.items():
        if isinstance(value, str) and ("/" in value or "\\" in value or ".." in value):
            raise EbmtrajError(
                f"{where}: its environment's {key} = {value!r} is a path; if you trust it, allow that with --own-code"
            )


def describe_vectors(env: str, state_size: int, action_size: int) -> Described | None:
    """What states and actions of these sizes are in this environment: its physics, or else its observations.

    None where it is unknown here or has no such vectors. Physics comes first where both would fit.
    """
    choices: tuple[StateChoice, ...] = ("physics", "observation")
    for state in choices:
        try:
            batch = make_batch(env, 1, "auto" if env in FAST_PATHS else state)
        except EbmtrajError:
            continue
        try:
            if (total_size(batch.state_fields), total_size(batch.action_fields)) == (state_size, action_size):
                names = ", ".join(f"{field.name} ({field.size})" for field in batch.state_fields)
                what = "positions and velocities of its joints" if state == "physics" else "observations"
                return Described(
                    tuple(batch.state_fields),
                    tuple(batch.action_fields),
                    batch.control_timestep,
                    {"state": state},
                    f"{what} of {env}: {names}",
                )
        finally:
            batch.close()
    return None


def _closest(env: str) -> str:
    names = {name.lower(): name for name in [*FAST_PATHS, *gymnasium.registry]}
    close = [names[match] for match in difflib.get_close_matches(env.lower(), names, n=3, cutoff=0.6)]
    if close:
        return f"did you mean {' or '.join(close)}?"
    return "use hand-cube or a Gymnasium id such as Reacher-v5 ('module:id' imports the module that registers it)"


register()
