"""What a trajectory store holds: blocks of episodes, the recipe they were made by, their digests and splits."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray

from ebmtraj.errors import EbmtrajError
from ebmtraj.fields import Field, fields_to_json

SCHEMA = 1
SPLITS = ("train", "validation", "test")
SPLIT_RULE = (
    "in each group of 10 consecutive episodes, ordered by sha256('{seed}/{episode}'), the first 7 are train, the next "
    "1 validation, the last 2 test"
)
DIGEST_RULE = "sha256 of an episode's state, action, length (int64), seed (uint64), terminated (uint8), little-endian"

Floats: TypeAlias = NDArray[np.float32]
Indices: TypeAlias = NDArray[np.int64]


@dataclass(frozen=True)
class EpisodeBlock:
    """Whole episodes, one after another: what is appended, and committed, at once.

    Raises `EbmtrajError` where the shapes do not fit each other.
    """

    state: Floats  # (sum(length + 1), S)
    action: Floats  # (sum(length), A); row t of an episode leads from its state t to its state t + 1
    length: Indices  # (E,) number of actions
    seed: NDArray[np.uint64]  # (E,) the number that each episode can be made again from
    terminated: NDArray[np.bool_]  # (E,) the episode ended by itself, not at the step limit

    def __post_init__(self) -> None:
        for name, kind in (
            ("state", "<f4"),
            ("action", "<f4"),
            ("length", "<i8"),
            ("seed", "<u8"),
            ("terminated", "?"),
        ):
            object.__setattr__(self, name, np.ascontiguousarray(getattr(self, name), dtype=kind))
        if self.length.ndim != 1 or len(self.length) == 0 or self.length.min() < 1:
            raise EbmtrajError(f"a block needs at least one episode of at least one step; lengths are {self.length}")
        rows = int(self.length.sum())
        for name, expected in (("state", rows + len(self.length)), ("action", rows)):
            value = getattr(self, name)
            if value.ndim != 2 or len(value) != expected:
                raise EbmtrajError(f"block: {name} has shape {value.shape}; these lengths need ({expected}, size)")
        for name in ("seed", "terminated"):
            if getattr(self, name).shape != self.length.shape:
                raise EbmtrajError(f"block: {name} has shape {getattr(self, name).shape}, length {self.length.shape}")

    def digests(self) -> NDArray[np.uint8]:
        """(E, 32) sha256 of each episode, as `DIGEST_RULE` states."""
        state_ends, action_ends = piece_offsets(self.length + 1), piece_offsets(self.length)
        out = np.empty((len(self.length), 32), np.uint8)
        for i in range(len(self.length)):
            digest = hashlib.sha256(self.state[state_ends[i] : state_ends[i + 1]].data)
            digest.update(self.action[action_ends[i] : action_ends[i + 1]].data)
            digest.update(self.length[i].tobytes() + self.seed[i].tobytes() + self.terminated[i].tobytes())
            out[i] = np.frombuffer(digest.digest(), np.uint8)
        return out


@dataclass(frozen=True)
class StoreRecipe:
    """What the content of a store is a function of; a store is resumed only with an equal one."""

    env: str  # the environment's id
    control_timestep: float  # s
    state_fields: tuple[Field, ...]  # what a state's numbers mean
    action_fields: tuple[Field, ...]  # and an action's
    policy: Mapping[str, Any]  # as the policy describes itself
    env_kwargs: Mapping[str, Any] = field(default_factory=dict)  # options of the environment
    env_attributes: Mapping[str, Any] = field(default_factory=dict)  # model hash, MuJoCo version, ...
    action_noise: str = "none beyond the policy's own"  # the rule by which actions are random beyond the policy
    seed: int = 0  # from which each episode's own is made
    steps: int | None = None  # limit of an episode's length, where there is one
    split_seed: int = 0  # of the draw of train, validation and test

    def identity(self) -> dict[str, Any]:
        """The part that goes into the content hash, as plain JSON values; raises `EbmtrajError` where one is none."""
        return _plain(
            {
                "schema": SCHEMA,
                "env": self.env,
                "env_kwargs": dict(self.env_kwargs),
                "control_timestep": self.control_timestep,
                "state_fields": fields_to_json(self.state_fields),
                "action_fields": fields_to_json(self.action_fields),
                "policy": dict(self.policy),
                "action_noise": self.action_noise,
                "seed": self.seed,
                "steps": self.steps,
            }
        )

    def attributes(self) -> dict[str, Any]:
        """All that a new store's attributes say of its origin; raises as `identity`."""
        return {
            **self.identity(),
            "env_attributes": _plain(dict(self.env_attributes)),
            "split": {"rule": SPLIT_RULE, "seed": self.split_seed},
        }


IDENTITY = (  # the keys of `StoreRecipe.identity`
    *("schema", "env", "env_kwargs", "control_timestep", "state_fields", "action_fields"),
    *("policy", "action_noise", "seed", "steps"),
)


class Episode(NamedTuple):
    """One recorded episode."""

    state: Floats  # (T + 1, S)
    action: Floats  # (T, A)
    seed: int
    terminated: bool


def episode_splits(episodes: int, seed: int = 0) -> NDArray[np.int8]:
    """(E,) index into `SPLITS` of each episode, as `SPLIT_RULE` states; it does not depend on how many there are."""
    splits = np.empty(-(-episodes // 10) * 10, np.int8)
    kinds = np.repeat(np.arange(3, dtype=np.int8), (7, 1, 2))
    for start in range(0, len(splits), 10):
        members = range(start, start + 10)
        splits[sorted(members, key=lambda i: hashlib.sha256(f"{seed}/{i}".encode()).digest())] = kinds
    return splits[:episodes]


def content_hasher(attributes: Mapping[str, Any]) -> hashlib._Hash:
    """A hash that has seen the recipe; the digests of all episodes follow."""
    identity = {key: attributes.get(key) for key in IDENTITY}
    return hashlib.sha256(json.dumps(identity, sort_keys=True, separators=(",", ":")).encode())


def piece_offsets(sizes: NDArray[Any]) -> Indices:
    """Where each of n consecutive pieces of sizes `(n,)` starts, and the end of the last, `(n + 1,)`."""
    return np.concatenate([[0], np.cumsum(sizes, dtype=np.int64)])


def column_name(fields: Sequence[Field], column: int) -> str:
    """Name of a column of a state or action vector."""
    for one in fields:
        if column < one.size:
            return f"{one.name}.{one.entries[column]}" if one.entries else f"{one.name}[{column}]"
        column -= one.size
    return f"[{column}]"


def _plain(value: Any) -> Any:
    """`value` as JSON gives it back; raises `EbmtrajError` where it can't."""
    try:
        return json.loads(json.dumps(value, allow_nan=False, default=_numpy_to_json))
    except (TypeError, ValueError) as error:
        raise EbmtrajError(f"recipe of the store is not plain JSON: {error}") from None


def _numpy_to_json(value: Any) -> Any:
    if isinstance(value, np.generic | np.ndarray):
        return value.tolist()
    raise TypeError(f"{value!r} is a {type(value).__name__}")
