"""The policy that turns the cube on command, in numpy: sinusoidal gaits plus a small network that corrects them.

Its numbers do not depend on how episodes are batched, on threads or on the processor: features, weights and hidden units
are rounded to fixed binary fractions, so that every dot product is exact in float64 and no order of summation can change
it, and all else is plain arithmetic. `ebmtraj.policy` finds the gaits and trains the network.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from ebmtraj.envs import hand_cube
from ebmtraj.errors import EbmtrajError
from ebmtraj.runs import write_atomic

Array = NDArray[np.float64]

AXIS_NAMES = ("+x", "-x", "+y", "-y", "+z", "-z")  # world frame
AXES = np.repeat(np.eye(3), 2, axis=0) * np.array([[1.0], [-1.0]] * 3)
N_ACTIONS = hand_cube.ACTION_SIZE
GAIT_SIZE = 3 * N_ACTIONS + 1  # offset, sine, cosine, log frequency
OUTPUT_SIZE = N_ACTIONS + 1  # corrections of the joint targets, and of the gait's speed
BASE_OMEGA = 2.0 * np.pi / 25.0  # rad a control step: one cycle a second
MAX_OMEGA = 1.5

FORMAT, VERSION, KIND = "ebmtraj", 1, "hand-cube policy"
SHIPPED = "hand_cube_policy.safetensors"

FEATURE_BITS, WEIGHT_BITS = 14, 16  # binary places; with the limits below a sum of 512 products fits float64 exactly
FEATURE_LIMIT, WEIGHT_LIMIT = 64.0, 8.0
_CUBE_CENTRE = np.array([1.0, 0.87, 0.17])  # metres


def quantise(values: Array, bits: int, limit: float) -> Array:
    """Values of any shape, within +-`limit`, rounded to `bits` binary places."""
    return np.rint(np.clip(values, -limit, limit) * 2.0**bits) * 2.0**-bits


def gait_omega(gaits: Array) -> Array:
    """Phase advance a control step (rad) of gaits (..., 61)."""
    return quantise(np.minimum(BASE_OMEGA * np.exp(gaits[..., -1]), MAX_OMEGA), WEIGHT_BITS, MAX_OMEGA)


@dataclass
class Memory:
    """What the policy remembers of B episodes: row i belongs to episode i alone."""

    axis: NDArray[np.int64]  # (B,) index into AXES: the command
    cosine: Array  # (B,) of the gait's phase
    sine: Array  # (B,)
    output: Array  # (B, 21) the network's last output, within +-1
    previous: Array  # (B, 31) the last state; equal to the first one at the start

    @classmethod
    def start(cls, axis: NDArray[np.int64], phase: Array, states: NDArray[Any]) -> Memory:
        """Begin episodes with these commands (B,), phases (B,) in rad and states (B, 31)."""
        zeros = np.zeros((len(axis), OUTPUT_SIZE))
        cosine, sine = _turned(np.full(len(axis), -1.0), np.zeros(len(axis)), phase - np.pi)
        return cls(axis.copy(), cosine, sine, zeros, states.astype(np.float64))

    def put(self, rows: NDArray[Any], other: Memory) -> None:
        """Overwrite rows `(n,)` with those of another memory of n episodes."""
        for name in ("axis", "cosine", "sine", "output", "previous"):
            getattr(self, name)[rows] = getattr(other, name)


@dataclass(frozen=True)
class Body:
    """What the gaits and the network act through: the part that training and deployment share."""

    gaits: Array  # (6, 61)
    residual: float = 0.5  # half range of the network's correction of a joint target
    speed: float = 0.5  # largest relative correction of the gait's speed

    def observe(self, states: NDArray[Any], memory: Memory) -> tuple[Array, Array]:
        """Features (B, 128) for the network and the gait's joint targets (B, 20), of states (B, 31)."""
        state, previous = states.astype(np.float64), memory.previous
        joints, position, quaternion = state[:, :24], state[:, 24:27], state[:, 27:]
        gait = self.gaits[memory.axis]
        cosine, sine = memory.cosine[:, None], memory.sine[:, None]
        base = np.clip(gait[:, :20] + gait[:, 20:40] * sine + gait[:, 40:60] * cosine, -1.0, 1.0)
        command = np.eye(6)[memory.axis]
        turn = _small_rotation(previous[:, 27:], quaternion)
        features = np.concatenate(
            [
                (joints - _JOINT_MIDDLE) / _JOINT_HALF,
                8.0 * (joints - previous[:, :24]),
                25.0 * (position - _CUBE_CENTRE),
                100.0 * (position - previous[:, 24:27]),
                10.0 * turn,
                reduced_rotation(quaternion),
                memory.output,
                base,
                command,
                command * cosine,
                command * sine,
                cosine,
                sine,
            ],
            axis=1,
        )
        return quantise(features, FEATURE_BITS, 8.0), base

    def act(self, states: NDArray[Any], base: Array, output: Array, memory: Memory) -> NDArray[np.float32]:
        """Joint targets (B, 20) of the gait's targets `base` and the network's `output` (B, 21); advances the memory.

        The present `states` (B, 31) become its last ones.
        """
        output = np.clip(output, -1.0, 1.0)
        actions = np.clip(base + self.residual * output[:, :N_ACTIONS], -1.0, 1.0).astype(np.float32)
        angle = gait_omega(self.gaits)[memory.axis] * (1.0 + self.speed * output[:, -1])
        cosine, sine = _turned(memory.cosine, memory.sine, angle)
        memory.cosine, memory.sine, memory.output = cosine, sine, output
        memory.previous = states.astype(np.float64)
        return actions


FEATURE_SIZE = 24 + 24 + 3 + 3 + 3 + 9 + OUTPUT_SIZE + N_ACTIONS + 18 + 2


def bend(x: Array) -> Array:
    """The hidden units' function, elementwise, of any shape: x above zero, x / (1 - x) below.

    Smooth like ELU, and the same on every machine.
    """
    return np.where(x > 0.0, x, x / (1.0 + np.abs(x)))


def forward(layers: Sequence[tuple[Array, Array]], features: Array) -> Array:
    """The network's output (B, 21) for features (B, F); each layer is a weight (in, out) and a bias (out,)."""
    hidden = features
    for weight, bias in layers[:-1]:
        hidden = quantise(bend(_product(hidden, weight) + bias), FEATURE_BITS, FEATURE_LIMIT)
    weight, bias = layers[-1]
    return quantise(_product(hidden, weight) + bias, FEATURE_BITS, FEATURE_LIMIT)


def _product(rows: Array, weight: Array) -> Array:
    """rows (B, in) @ weight (in, out), some rows at a time: BLAS starts threads for more, and workers fight over cores."""
    size = max(1, 2**18 // weight.size)
    return np.concatenate([rows[i : i + size] @ weight for i in range(0, max(len(rows), 1), size)])


def reduced_rotation(quaternion: Array) -> Array:
    """The cube's rotation matrix (B, 9), row by row, turned by the cube's own symmetries to be closest to the identity.

    The physics can't tell the 24 symmetric poses of a cube apart, and the policy should not either.
    """
    w, x, y, z = quaternion.T
    rows = [
        [1.0 - 2.0 * (y * y + z * z), 2.0 * (x * y - w * z), 2.0 * (x * z + w * y)],
        [2.0 * (x * y + w * z), 1.0 - 2.0 * (x * x + z * z), 2.0 * (y * z - w * x)],
        [2.0 * (x * z - w * y), 2.0 * (y * z + w * x), 1.0 - 2.0 * (x * x + y * y)],
    ]
    matrix = quantise(np.moveaxis(np.array(rows), -1, 0), FEATURE_BITS, 2.0)  # (B, 3, 3)
    # trace(R S) is exact: three rounded numbers are added, the rest are zeros
    traces = matrix.reshape(-1, 9) @ _SYMMETRIES.transpose(0, 2, 1).reshape(24, 9).T
    return (matrix @ _SYMMETRIES[traces.argmax(axis=1)]).reshape(-1, 9)


def _small_rotation(before: Array, after: Array) -> Array:
    """Rotation vectors (B, 3), to first order, that take quaternions (B, 4) into others; the same for q and -q."""
    aw, ax, ay, az = after.T
    bw, bx, by, bz = before.T
    xyz = np.stack(
        (
            -aw * bx + ax * bw - ay * bz + az * by,
            -aw * by + ax * bz + ay * bw - az * bx,
            -aw * bz - ax * by + ay * bx + az * bw,
        ),
        axis=1,
    )
    w = aw * bw + ax * bx + ay * by + az * bz
    return 2.0 * np.where(w < 0.0, -1.0, 1.0)[:, None] * xyz


def _turned(cosine: Array, sine: Array, angle: Array) -> tuple[Array, Array]:
    """The phase turned on by `angle` (within +-pi), by Taylor series: libraries differ in the last bit of a cosine."""
    square = angle * angle
    c, s = np.ones_like(angle), np.ones_like(angle)
    for k in range(12, 0, -1):
        c = 1.0 - c * square / ((2 * k - 1) * (2 * k))
        s = 1.0 - s * square / ((2 * k) * (2 * k + 1))
    s = s * angle
    return cosine * c - sine * s, sine * c + cosine * s


def _cube_symmetries() -> Array:
    """The 24 rotation matrices (24, 3, 3) that map a cube onto itself; the identity comes first."""
    found = []
    for order in ((0, 1, 2), (1, 2, 0), (2, 0, 1), (0, 2, 1), (1, 0, 2), (2, 1, 0)):
        for signs in np.ndindex(2, 2, 2):
            matrix = np.eye(3)[list(order)] * (1.0 - 2.0 * np.array(signs))[:, None]
            if np.linalg.det(matrix) > 0:
                found.append(matrix)
    return np.array(found)


_SYMMETRIES = _cube_symmetries()
_LIMITS = np.array(
    # joint ranges of the hand (rad), as in its model file; features only, so a constant keeps the import light
    [
        (-0.489, 0.14), (-0.698, 0.489),
        (-0.349, 0.349), (0.0, 1.571), (0.0, 1.571), (0.0, 1.571),
        (-0.349, 0.349), (0.0, 1.571), (0.0, 1.571), (0.0, 1.571),
        (-0.349, 0.349), (0.0, 1.571), (0.0, 1.571), (0.0, 1.571),
        (0.0, 0.785), (-0.349, 0.349), (0.0, 1.571), (0.0, 1.571), (0.0, 1.571),
        (-1.047, 1.047), (0.0, 1.222), (-0.209, 0.209), (-0.524, 0.524), (-1.571, 0.0),
    ]
)  # fmt: skip
_JOINT_MIDDLE, _JOINT_HALF = _LIMITS.mean(axis=1), 0.5 * (_LIMITS[:, 1] - _LIMITS[:, 0])


@dataclass(frozen=True)
class Checkpoint:
    """A trained policy as it lies on disk."""

    body: Body
    layers: tuple[tuple[Array, Array], ...]  # weight (in, out) and bias (out,)
    header: Mapping[str, Any]  # recipe, seed and versions it was made with
    sha256: str  # of the file


def save_checkpoint(path: Path, body: Body, layers: Sequence[tuple[Array, Array]], recipe: Mapping[str, Any]) -> None:
    """Write gaits, network and recipe as one safetensors file; killed at any moment, it is the old one or the new one.

    `layers` are weight `(in, out)` and bias `(out,)` of each.
    """
    header = {"format": FORMAT, "version": VERSION, "kind": KIND, "residual": body.residual, "speed": body.speed}
    tensors = {"gaits": np.ascontiguousarray(body.gaits, dtype=np.float64)}
    for i, (weight, bias) in enumerate(layers):
        tensors[f"weight.{i}"] = np.ascontiguousarray(weight, dtype=np.float32)  # 19 significant bits: nothing is lost
        tensors[f"bias.{i}"] = np.ascontiguousarray(bias, dtype=np.float32)
    text = json.dumps({**header, "recipe": dict(recipe)}, allow_nan=False)
    write_atomic(path, save(tensors, metadata={"header": text}))


def load_checkpoint(path: Path | None = None) -> Checkpoint:
    """The policy at `path`, or the one that ships with the package.

    Raises `EbmtrajError` where it is missing, damaged, of another kind or does not fit. Never unpickles.
    """
    if path is None:
        with resources.as_file(resources.files("ebmtraj.envs") / "data" / SHIPPED) as shipped:
            return load_checkpoint(shipped)
    if path.exists() and not path.is_file():
        raise EbmtrajError(f"policy {path} is no file; check the path")
    try:
        content = path.read_bytes()
        with safe_open(path, framework="numpy") as file:
            header = json.loads((file.metadata() or {}).get("header", "{}"))
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a mapping)
    except FileNotFoundError:
        raise EbmtrajError(f"policy {path} does not exist; make it with: ebmtraj policy train --run ...") from None
    except (SafetensorError, ValueError, OSError, RecursionError) as error:
        raise EbmtrajError(f"policy {path} is damaged: {error}") from None
    if not isinstance(header, dict) or header.get("format") != FORMAT or header.get("kind") != KIND:
        raise EbmtrajError(f"{path} is not a policy made by `ebmtraj policy train`; check the path")
    if header.get("version") != VERSION:
        raise EbmtrajError(f"policy {path} has format version {header.get('version')}, this ebmtraj reads {VERSION}")
    n = sum(name.startswith("weight.") for name in tensors)
    try:
        layers = tuple(
            (tensors[f"weight.{i}"].astype(np.float64), tensors[f"bias.{i}"].astype(np.float64)) for i in range(n)
        )
        gaits = tensors["gaits"].astype(np.float64)
        body = Body(gaits, float(header["residual"]), float(header["speed"]))
    except (KeyError, TypeError, ValueError) as error:
        raise EbmtrajError(f"policy {path} is damaged: {error}") from None
    sizes = [FEATURE_SIZE, *(len(bias) for _, bias in layers)]
    fits = gaits.shape == (6, GAIT_SIZE) and n > 0 and sizes[-1] == OUTPUT_SIZE
    if not fits or any(w.shape != (a, b) for (w, _), (a, b) in zip(layers, pairwise(sizes), strict=True)):
        raise EbmtrajError(f"policy {path} has tensors of other shapes than this ebmtraj needs; train it again")
    if not all(np.isfinite(t).all() for t in tensors.values()):
        raise EbmtrajError(f"policy {path} holds NaN or infinity; train it again")
    rounded = tuple((quantise(w, WEIGHT_BITS, WEIGHT_LIMIT), quantise(b, WEIGHT_BITS, WEIGHT_LIMIT)) for w, b in layers)
    return Checkpoint(body, rounded, header, hashlib.sha256(content).hexdigest())


class TrainedPolicy:
    """Turns the cube of `hand-cube` about a commanded world axis; the gait's phase starts at random.

    `axis` (such as "-y") holds the command; without it an episode starts with a random one and takes another with
    probability `switch_probability` each step, so that episodes hold all six directions. `checkpoint` is a file made by
    `ebmtraj policy train`, else the shipped one; `sha256` refuses any other file. Raises `EbmtrajError` for other
    environments' actions, an unknown axis, and files that do not fit.
    """

    BLOCK = 64  # steps of switches drawn at a time from each episode's generator; changing it changes the data

    def __init__(
        self,
        action_low: ArrayLike,
        action_high: ArrayLike,
        axis: str | None = None,
        switch_probability: float = 0.02,
        checkpoint: str | None = None,
        sha256: str | None = None,
    ) -> None:
        low, high = np.asarray(action_low), np.asarray(action_high)
        if low.shape != (N_ACTIONS,) or not ((low == -1.0).all() and (high == 1.0).all()):
            raise EbmtrajError(
                f"policy 'trained' acts on hand-cube ({N_ACTIONS} actions in [-1, 1]), not on an environment with "
                f"{low.size} actions; use --policy random or your own module:function"
            )
        if axis is not None and axis not in AXIS_NAMES:
            raise EbmtrajError(f"policy 'trained': unknown axis {axis!r}; use one of {', '.join(AXIS_NAMES)}")
        if not 0.0 <= switch_probability <= 1.0:
            raise EbmtrajError(f"policy 'trained': switch_probability is {switch_probability}; give a number from 0 to 1")
        self.axis, self.switch_probability, self.checkpoint = axis, float(switch_probability), checkpoint
        self._loaded = load_checkpoint(None if checkpoint is None else Path(checkpoint))
        if sha256 is not None and sha256 != self._loaded.sha256:
            raise EbmtrajError(
                f"policy 'trained': its file has sha256 {self._loaded.sha256[:12]}..., not {sha256[:12]}...: it was trained "
                "again; use the file that the data were made with"
            )
        self.reset([])

    def reset(self, generators: Sequence[np.random.Generator]) -> None:
        """Start one episode a generator."""
        self._generators = list(generators)
        axes = [int(g.integers(len(AXES))) for g in self._generators]
        self._phases = np.array([g.uniform(0.0, 2.0 * np.pi) for g in self._generators])
        if self.axis is not None:
            axes = [AXIS_NAMES.index(self.axis)] * len(axes)
        self._axes = np.array(axes, dtype=np.int64)
        self._switch = np.zeros((len(axes), self.BLOCK), dtype=np.int64)
        self._step = 0
        self._memory: Memory | None = None

    @property
    def commands(self) -> NDArray[np.int64]:
        """Index into `AXES` of each episode's present command, (B,)."""
        return (self._axes if self._memory is None else self._memory.axis).copy()

    def __call__(self, states: NDArray[np.float32]) -> NDArray[np.float32]:
        """Actions (B, 20), float32, for states (B, 31)."""
        if states.shape != (len(self._generators), hand_cube.STATE_SIZE):
            raise EbmtrajError(
                f"policy 'trained': states have shape {states.shape} for {len(self._generators)} episodes of "
                f"{hand_cube.STATE_SIZE} numbers; reset it first"
            )
        if self._memory is None:
            self._memory = Memory.start(self._axes, self._phases, states)
        if self.axis is None:
            self._command(self._memory)
        body = self._loaded.body
        features, base = body.observe(states, self._memory)
        return body.act(states, base, forward(self._loaded.layers, features), self._memory)

    def _command(self, memory: Memory) -> None:
        """Switch the commands whose time has come."""
        at = self._step % self.BLOCK
        if at == 0:
            for row, generator in zip(self._switch, self._generators, strict=True):
                chance = generator.random(self.BLOCK) < self.switch_probability
                row[:] = np.where(chance, generator.integers(1, len(AXES), self.BLOCK), 0)
        if self._step:
            memory.axis = (memory.axis + self._switch[:, at]) % len(AXES)
        self._step += 1

    def describe(self) -> dict[str, Any]:
        """JSON values that make this policy again."""
        return {
            "name": "trained",
            "axis": self.axis,
            "switch_probability": self.switch_probability,
            "checkpoint": self.checkpoint,
            "sha256": self._loaded.sha256,
        }
