"""Many hands at once for training: coarser physics, restarts from a pool of real starts, progress about an axis."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from ebmtraj.envs import hand_cube
from ebmtraj.envs.batch import HandCubeBatch
from ebmtraj.envs.physics import mujoco

Array = NDArray[np.float64]


class TrainingSimulator:
    """Control steps of 40 ms for any physics states (B, 62), with larger physics steps than the real environment's.

    A simulation that diverges counts as a dropped cube. Bit-identical for any number of threads.
    """

    def __init__(self, threads: int, timestep: float = 0.004) -> None:
        self.model = hand_cube.build_model(timestep)
        self.substeps = round(hand_cube.TIMESTEP * hand_cube.SUBSTEPS / timestep)
        self.threads = threads
        self._rollout = mujoco.rollout.Rollout(nthread=threads if threads > 1 else 0)
        self._data = [mujoco.MjData(self.model) for _ in range(threads)]

    def step(self, physics: Array, actions: NDArray[np.float32]) -> tuple[Array, NDArray[np.bool_]]:
        """Hold actions (B, 20) for 40 ms; return the physics states (B, 62) and which cubes have dropped (B,)."""
        batch = len(physics)
        controls = np.repeat(hand_cube.controls(self.model, actions)[:, None], self.substeps, axis=1)
        history = np.empty((batch, self.substeps, physics.shape[1]))
        self._rollout.rollout(
            [self.model] * batch,
            self._data,
            np.ascontiguousarray(physics),
            controls,
            nstep=self.substeps,
            state=history,
            chunk_size=max(1, batch // (self.threads * 32)),
            skip_checks=True,
        )
        after = history[:, -1].copy()
        broken = ~np.isfinite(after).all(axis=1)
        after[broken] = physics[broken]
        return after, hand_cube.dropped(after) | broken

    def close(self) -> None:
        """Stop the threads."""
        self._rollout.close()


def draw_starts(generators: Sequence[np.random.Generator], threads: int) -> Array:
    """Settled starts (B, 62) of the real environment, one a generator."""
    env = HandCubeBatch(threads)
    env.reset(generators)
    env.close()
    return env.physics_state


def quaternions(physics: Array) -> Array:
    """The cube's quaternions (..., 4), w x y z, of full physics states (..., 62)."""
    return physics[..., 28:32]


def rotation_between(before: Array, after: Array) -> Array:
    """World-frame rotation vectors (..., 3), radians, norm at most pi, that take quaternions (..., 4) into others."""
    pw, px, py, pz = np.moveaxis(after, -1, 0)
    qw, qx, qy, qz = np.moveaxis(before, -1, 0)
    w = pw * qw + px * qx + py * qy + pz * qz  # after times the conjugate of before
    xyz = np.stack(
        (
            -pw * qx + px * qw - py * qz + pz * qy,
            -pw * qy + px * qz + py * qw - pz * qx,
            -pw * qz - px * qy + py * qx + pz * qw,
        ),
        axis=-1,
    )
    sine = np.linalg.norm(xyz, axis=-1)
    angle = 2.0 * np.arctan2(sine, np.abs(w))
    scale = np.where(sine > 1e-9, angle / np.maximum(sine, 1e-9), 2.0) * np.where(w < 0, -1.0, 1.0)
    return scale[..., None] * xyz
