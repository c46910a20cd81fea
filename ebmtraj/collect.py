"""Collection: environments -> store, the only place where simulation meets storage.

Episode i is a function of (seed, i) and the recipe: not of the number of workers, the blocks or a restart.
"""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import numpy as np

from ebmtraj.datasets.blocks import EpisodeBlock, StoreRecipe, piece_offsets
from ebmtraj.datasets.store import Store
from ebmtraj.datasets.writer import StoreWriter, refuse_taken
from ebmtraj.datasets.zarr_files import as_url, is_vacant
from ebmtraj.envs.batch import BatchEnv, HandCubeBatch, StateChoice
from ebmtraj.envs.policies import Policy, make_policy
from ebmtraj.envs.registry import FAST_PATHS, make_batch
from ebmtraj.errors import EbmtrajError
from ebmtraj.locks import only_writer
from ebmtraj.parallel import Backend, Pool, open_pool

LIMIT_SHARE = 0.05  # of the collection's own steps are simulated again to find the open-loop limit,
LIMIT_STEPS = (4, 25)  # but no fewer and no more steps of a block than these
FUTURES_AT_ONCE = 256  # of re-simulated starts
FUTURE_ROUNDS = 20  # how often futures that ended too early are drawn again
REPLAY_STEPS = 10  # of a recorded episode must come out again,
REPLAY_TOLERANCE = 1e-3  # this closely: another processor may round otherwise, and motion with contacts is chaotic


@dataclass(frozen=True)
class CollectConfig:
    """What to simulate; `episodes`, `workers`, `backend`, `address` and `block_episodes` do not change an episode.

    Raises `EbmtrajError` for a number out of its range.
    """

    env: str = "hand-cube"  # a name of `envs.registry`, any Gymnasium id, or module:id
    env_kwargs: dict[str, Any] = field(default_factory=dict)  # options of the environment
    state: StateChoice = "auto"  # of a MuJoCo robot: physics (typed joint states) or observation; auto: physics
    episodes: int = 1000
    steps: int = 100  # limit of an episode's length
    seed: int = 0  # from which each episode's own is made
    policy: str = "random"  # a name of `envs.policies`, or module:function
    policy_kwargs: dict[str, Any] = field(default_factory=dict)  # options of the policy
    workers: int = 1  # processes; 1 simulates in this one, 0 takes all cores (of the cluster, with Ray)
    backend: Backend = "local"  # processes of this machine, or a Ray cluster
    address: str | None = None  # of a running Ray cluster; "auto" for the one that this machine belongs to
    block_episodes: int = 64  # simulated together, and stored all or none

    def __post_init__(self) -> None:
        for name, least in (("episodes", 1), ("steps", 1), ("seed", 0), ("workers", 0), ("block_episodes", 1)):
            value = getattr(self, name)
            if not isinstance(value, int) or isinstance(value, bool) or value < least:
                raise EbmtrajError(f"{name} is {value!r}; give a whole number of at least {least}")


@dataclass(frozen=True)
class CollectResult:
    """What the store holds now, and how fast this run filled it."""

    episodes: int
    transitions: int
    steps_per_second: float  # of the transitions that this run added
    content_hash: str
    terminated: int  # episodes that ended by themselves
    workers: int
    open_loop_steps_per_second: float | None  # what the simulator alone reaches on as many workers; None where unknown


def collect(
    path: str | Path,
    config: CollectConfig,
    *,
    overwrite: bool = False,
    resume: bool = False,
    on_progress: Callable[[int, int], None] | None = None,
) -> CollectResult:
    """Fill the store at `path` with `config.episodes` episodes; `on_progress` is told (episodes stored, episodes in all).

    Interrupted or killed at any moment, it leaves a store that `resume` completes to the same bits; a finished store is
    extended by a larger number of episodes. Raises `EbmtrajError` where a store exists and neither `overwrite` nor
    `resume` is given, where its recipe differs, or where a block's worker dies twice. With several workers, a script calls
    it below `if __name__ == "__main__":`.
    """
    if overwrite and resume:
        raise EbmtrajError("choose one of --resume and --overwrite: the first goes on with a store, the second replaces it")
    with only_writer(as_url(path), "store"):
        return _collect(path, config, overwrite, resume, on_progress)


def _collect(
    path: str | Path,
    config: CollectConfig,
    overwrite: bool,
    resume: bool,
    on_progress: Callable[[int, int], None] | None,
) -> CollectResult:
    if resume and not is_vacant(path):
        config = replace(config, state=_state_to_resume(path, config))
    env, policy = _made(config)
    recipe = store_recipe(config, env, policy)
    writer: StoreWriter | None = None
    if resume and not is_vacant(path):  # a run that was killed before it made the store starts now
        writer = StoreWriter.resume(path, recipe)
    else:
        refuse_taken(path, overwrite=overwrite)
    first, before = (writer.episodes, writer.transitions) if writer else (0, 0)
    if first > config.episodes:
        raise EbmtrajError(
            f"store {path} holds {first} episodes, more than the {config.episodes} asked for; "
            f"use --episodes {first} or more, or another path"
        )
    started = time.perf_counter()
    if on_progress:
        on_progress(first, config.episodes)
    with open_pool(config.workers, config.backend, config.address) as pool:
        ranges = _ranges(config, first, pool.workers)
        for block in pool.map(partial(simulate_block, config), ranges, _name):
            if writer is None:  # only now: a policy that fails, or workers that can't be had, must not cost what was there
                writer = StoreWriter.create(path, recipe, overwrite=overwrite)
            writer.append_block(block)
            if on_progress:
                on_progress(writer.episodes, config.episodes)
        seconds = time.perf_counter() - started
        assert writer is not None
        store = writer.finish()
        added = store.transitions - before
        workers = min(pool.workers, len(ranges))
        limit = None
        with contextlib.suppress(EbmtrajError):  # the store is complete, whatever becomes of the measurement
            limit = _limit(config, pool, workers, ranges[0], added) if ranges else None
    return CollectResult(
        episodes=store.episodes,
        transitions=store.transitions,
        steps_per_second=added / seconds if added else 0.0,
        content_hash=store.content_hash or "",
        terminated=int(store.terminated.sum()),
        workers=workers,
        open_loop_steps_per_second=limit,
    )


def simulate_block(config: CollectConfig, block: tuple[int, int]) -> EpisodeBlock:
    """Simulate the episodes from the first of `block` up to, not with, its second side by side; a pure function.

    An episode ends at the step limit or with the state in which the environment terminates. Raises `EbmtrajError` where
    environment or policy can't be made, or give what a store can't hold.
    """
    env, policy = _made(config)
    seeds = [episode_seed(config.seed, episode) for episode in range(*block)]
    starts, noise = ([_generator(seed, stream) for seed in seeds] for stream in (0, 1))
    states, actions, length, terminated = _simulate(env, policy, starts, noise, config.steps)
    reached = np.arange(config.steps + 1) <= length[:, None]  # (B, T + 1)
    return EpisodeBlock(states[reached], actions[reached[:, 1:]], length, np.array(seeds, np.uint64), terminated)


def _simulate(
    env: BatchEnv,
    policy: Policy,
    starts: Sequence[np.random.Generator],
    noise: Sequence[np.random.Generator],
    steps: int,
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """States (B, T+1, S), actions (B, T, A), lengths (B,), who terminated (B,); rows behind an end mean nothing."""
    state = env.reset(starts)
    policy.reset(noise)
    batch = len(starts)
    states = np.empty((batch, steps + 1, state.shape[1]), np.float32)
    actions: np.ndarray | None = None
    length = np.full(batch, steps, np.int64)
    running = np.ones(batch, np.bool_)
    states[:, 0] = state
    for step in range(steps):
        action = np.asarray(policy(env.observations), np.float32)  # as stored, so that a replay is exact
        state, terminated = env.step(action)
        if actions is None:
            actions = np.empty((batch, steps, action.shape[1]), np.float32)
        actions[:, step], states[:, step + 1] = action, state
        length[running & terminated] = step + 1
        running &= ~terminated
        if not running.any():
            break
    assert actions is not None
    return states, actions, length, ~running


def resimulate(
    store: Store,
    episodes: Sequence[int] | np.ndarray,
    samples: int,
    *,
    steps: int | None = None,
    recorded: bool = False,
    hold: bool = False,
    workers: int = 1,
    own_code: bool = False,
) -> np.ndarray:
    """What else could have followed the starts of recorded episodes: same start, same policy, other noise of the policy.

    -> states (N, samples, T+1, S), float32; T is `steps` or else the store's limit. A pure function of the stored seeds, for
    any number of `workers`; with `recorded`, sample 0 is the recorded episode itself. Only futures of T steps count: one
    that terminates earlier is drawn again, or with `hold` stays in the state in which it did. Raises `EbmtrajError` where
    the store was not collected by this package, where environment or policy are the user's own code (`own_code` runs it),
    where the recorded start does not come out again, and where futures of T steps are too rare.
    """
    config = _config_of(store, steps, own_code)
    if samples < 1 or len(episodes) < 1:
        raise EbmtrajError(f"resimulate: {len(episodes)} episodes x {samples} samples; ask for one or more of each")
    chosen = np.asarray(episodes, np.int64)
    if chosen.min() < 0 or chosen.max() >= store.episodes:
        raise EbmtrajError(f"store {store.path} holds {store.episodes} episodes: there is no episode {chosen.max()}")
    _check_replay(store, config, int(chosen[0]))
    seeds = [int(seed) for seed in store.seeds[chosen]]
    size = max(1, FUTURES_AT_ONCE // samples)
    blocks = [tuple(seeds[first : first + size]) for first in range(0, len(seeds), size)]
    with open_pool(workers) as pool:
        parts = pool.map(
            partial(_futures, config, samples, recorded, hold), blocks, lambda block: f"{len(block)} starts again"
        )
        states = np.concatenate(list(parts))
    starts = store.read_states(chosen)[piece_offsets(store.lengths[chosen] + 1)[:-1]]
    if np.abs(states[:, 0, 0] - starts).max() > REPLAY_TOLERANCE:
        raise EbmtrajError(_another(store))
    return states


def _futures(config: CollectConfig, samples: int, recorded: bool, hold: bool, seeds: tuple[int, ...]) -> np.ndarray:
    """The first `samples` futures (B, samples, T+1, S) of each seed that last T steps, by the number of their noise.

    With `hold`, one that terminates earlier lasts in the state in which it did.
    """
    env, policy = _made(config)
    kept: list[list[np.ndarray]] = [[] for _ in seeds]
    number = [0 if recorded else 1] * len(seeds)  # of the next noise; 0 is the recorded one
    for _ in range(FUTURE_ROUNDS):
        tries = [(i, number[i] + j) for i in range(len(seeds)) for j in range(samples - len(kept[i]))]
        if not tries:
            break
        starts = [_generator(seeds[i], 0) for i, _ in tries]
        noise = [_generator(seeds[i], 1, *([n] if n else [])) for i, n in tries]
        states, _, length, terminated = _simulate(env, policy, starts, noise, config.steps)
        for row, (i, n) in enumerate(tries):
            number[i] = n + 1
            if length[row] == config.steps or (hold and terminated[row]):
                kept[i].append(states[row, np.minimum(np.arange(config.steps + 1), length[row])])
    short = sum(len(each) < samples for each in kept)
    if short:
        raise EbmtrajError(
            f"resimulate: of {short} in {len(seeds)} starts, hardly a future lasts {config.steps} steps; ask for fewer steps"
        )
    return np.array(kept)


def _config_of(store: Store, steps: int | None, own_code: bool) -> CollectConfig:
    """How the store's episodes were made; raises `EbmtrajError` where that can't be done again."""
    said = dict(store.attributes["policy"])
    env, name = store.attributes["env"], said.pop("name", "unknown")
    if not isinstance(env, str) or name in ("unknown", "merged"):
        raise EbmtrajError(f"store {store.path} does not say how its episodes were made; only a collected store does")
    for label, code in (("environment", env), ("policy", name)):
        if ":" in code and not own_code:
            raise EbmtrajError(f"store {store.path}: {label} {code} is code of your own; allow it with own_code=True")
    limit = store.attributes["steps"] if steps is None else steps
    kwargs = store.attributes["env_kwargs"]
    return CollectConfig(env, kwargs, _state_of(store), steps=limit, policy=name, policy_kwargs=said)


def _state_of(store: Store) -> StateChoice:
    """What the store's states are; it does not say where it was made before there was a choice, or there is none."""
    said = store.attributes.get("env_attributes", {}).get("state")
    return "physics" if said == "physics" else "observation"


def _state_to_resume(path: str | Path, config: CollectConfig) -> StateChoice:
    """The choice of the store that is gone on with; raises `EbmtrajError` where another one is asked for."""
    store = Store.open(path)
    had = _state_of(store)
    if config.state not in ("auto", had) and config.env == store.attributes["env"] and config.env not in FAST_PATHS:
        raise EbmtrajError(
            f"store {path} holds the {'physical state' if had == 'physics' else 'observations'} of {config.env}; "
            f"go on with --state {had}, or give another path"
        )
    return had


def _check_replay(store: Store, config: CollectConfig, index: int) -> None:
    """Raise `EbmtrajError` where a recorded episode's first steps do not come out again."""
    episode = store.episode(index)
    steps = min(len(episode.action), REPLAY_STEPS)
    env, policy = _made(config)
    again = _simulate(env, policy, [_generator(episode.seed, 0)], [_generator(episode.seed, 1)], steps)[0][0]
    if again.shape[1] != episode.state.shape[1] or np.abs(again - episode.state[: steps + 1]).max() > REPLAY_TOLERANCE:
        raise EbmtrajError(_another(store))


def _another(store: Store) -> str:
    made = store.attributes.get("env_attributes", {}).get("mujoco_version")
    return (
        f"store {store.path}: its episodes don't come out again here, so no other futures of their starts can be simulated; "
        f"use the versions that it was collected with{f' (MuJoCo {made})' if made else ''}"
    )


def open_loop_rate(config: CollectConfig, steps: int, block: tuple[int, int]) -> float | None:
    """Steps a second of the simulator alone, given the actions of a block's first `steps` steps beforehand.

    None where the environment can't run without coming back to Python. Raises `EbmtrajError` where environment or policy
    can't be made.
    """
    env, policy = _made(config)
    if not isinstance(env, HandCubeBatch):
        return None
    seeds = [episode_seed(config.seed, episode) for episode in range(*block)]
    env.reset([_generator(seed, 0) for seed in seeds])
    policy.reset([_generator(seed, 1) for seed in seeds])
    start, actions = env.physics_state, []
    for _ in range(steps):
        actions.append(np.asarray(policy(env.observations), np.float32))
        env.step(actions[-1])
    run = env.open_loop(start, np.stack(actions))
    began = time.perf_counter()
    run()
    return len(seeds) * steps / (time.perf_counter() - began)


def episode_seed(seed: int, episode: int) -> int:
    """The 64-bit number that episode `episode` of base seed `seed` is made from, and that is stored with it."""
    return int(np.random.SeedSequence(seed, spawn_key=(episode,)).generate_state(1, np.uint64)[0])


def store_recipe(config: CollectConfig, env: BatchEnv, policy: Policy) -> StoreRecipe:
    """What the store must say of where its content comes from."""
    described = policy.describe()
    return StoreRecipe(
        env=config.env,
        env_kwargs=config.env_kwargs,
        env_attributes=env.attributes(),
        control_timestep=env.control_timestep,
        state_fields=tuple(env.state_fields),
        action_fields=tuple(env.action_fields),
        policy=described,
        action_noise=described.get("action_rule", "none beyond the policy's own"),
        seed=config.seed,
        steps=config.steps,
    )


def _generator(seed: int, *stream: int) -> np.random.Generator:
    """Stream 0 draws an episode's start, stream 1 its policy's noise; streams (1, n) are other noise for the same start."""
    return np.random.Generator(np.random.Philox(np.random.SeedSequence(seed, spawn_key=stream)))


def _made(config: CollectConfig) -> tuple[BatchEnv, Policy]:
    return _simulator(config.env, _json(config.env_kwargs), config.state, config.policy, _json(config.policy_kwargs))


@lru_cache(maxsize=2)  # a worker keeps its environments from block to block
def _simulator(env: str, env_kwargs: str, state: StateChoice, policy: str, policy_kwargs: str) -> tuple[BatchEnv, Policy]:
    batch = make_batch(env, threads=1, state=state, **json.loads(env_kwargs))
    return batch, make_policy(policy, batch.action_fields, **json.loads(policy_kwargs))


def _json(options: dict[str, Any]) -> str:
    try:
        return json.dumps(options, sort_keys=True, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise EbmtrajError(f"options {options!r} are not plain JSON values: {error}") from None


def _ranges(config: CollectConfig, start: int, workers: int) -> list[tuple[int, int]]:
    """First episode and the one after the last of each block from `start` on."""
    size, left = config.block_episodes, config.episodes - start
    if workers > 1:
        size = min(size, max(4, -(-left // (4 * workers))))  # so that no worker idles long at the end
    return [(first, min(first + size, config.episodes)) for first in range(start, config.episodes, size)]


def _name(block: tuple[int, int]) -> str:
    return f"episodes {block[0]} to {block[1] - 1}"


def _limit(config: CollectConfig, pool: Pool, workers: int, block: tuple[int, int], added: int) -> float | None:
    """Steps a second that all workers together reach open loop; None where the environment has no such limit."""
    share = LIMIT_SHARE * added / workers / (block[1] - block[0])
    steps = int(min(config.steps, max(LIMIT_STEPS[0], min(LIMIT_STEPS[1], share))))
    rates = list(pool.map(partial(open_loop_rate, config, steps), [block] * workers, _name))
    known = [rate for rate in rates if rate is not None]
    return sum(known) if len(known) == workers else None
