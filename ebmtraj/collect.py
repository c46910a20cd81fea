"""Collection: environments -> store, the only place where simulation meets storage.

Episode i is a function of (seed, i) and the recipe: not of the number of workers, the blocks or a restart.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from ebmtraj.datasets.blocks import EpisodeBlock, StoreRecipe
from ebmtraj.datasets.writer import StoreWriter
from ebmtraj.datasets.zarr_files import is_vacant
from ebmtraj.envs.batch import BatchEnv
from ebmtraj.envs.policies import Policy, make_policy
from ebmtraj.envs.registry import make_batch
from ebmtraj.errors import EbmtrajError

Blocks = Iterator[EpisodeBlock]
RETRIES = 1  # how often a block whose worker died is tried again


@dataclass(frozen=True)
class CollectConfig:
    """What to simulate; all but `episodes`, `workers` and `block_episodes` decides the content of an episode."""

    env: str = "hand-cube"
    env_kwargs: dict[str, Any] = field(default_factory=dict)
    episodes: int = 1000
    steps: int = 100  # limit of an episode's length
    seed: int = 0
    policy: str = "random"
    policy_kwargs: dict[str, Any] = field(default_factory=dict)
    workers: int = 1  # processes; 1 simulates in this one
    block_episodes: int = 64  # simulated together, and stored all or none

    def __post_init__(self) -> None:
        for name, least in (("episodes", 1), ("steps", 1), ("seed", 0), ("workers", 1), ("block_episodes", 1)):
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
    `resume` is given, where its recipe differs, or where a block's worker dies twice.
    """
    if overwrite and resume:
        raise EbmtrajError("choose one of --resume and --overwrite: the first goes on with a store, the second replaces it")
    env, policy = _simulator(config.env, _json(config.env_kwargs), config.policy, _json(config.policy_kwargs))
    recipe = store_recipe(config, env, policy)
    if resume and not is_vacant(path):  # a run that was killed before it made the store starts now
        writer = StoreWriter.resume(path, recipe)
    else:
        writer = StoreWriter.create(path, recipe, overwrite=overwrite)
    if writer.episodes > config.episodes:
        raise EbmtrajError(
            f"store {writer.path} holds {writer.episodes} episodes, more than the {config.episodes} asked for; "
            f"use --episodes {writer.episodes} or more, or another path"
        )
    before, started = writer.transitions, time.perf_counter()
    if on_progress:
        on_progress(writer.episodes, config.episodes)
    for block in _simulate(config, writer.episodes):
        writer.append_block(block)
        if on_progress:
            on_progress(writer.episodes, config.episodes)
    seconds = time.perf_counter() - started
    store = writer.finish()
    return CollectResult(
        episodes=store.episodes,
        transitions=store.transitions,
        steps_per_second=(store.transitions - before) / seconds if store.transitions > before else 0.0,
        content_hash=store.content_hash or "",
        terminated=int(store.terminated.sum()),
    )


def simulate_block(config: CollectConfig, first: int, last: int) -> EpisodeBlock:
    """Simulate episodes `first` to `last` - 1 side by side; a pure function, whatever the process.

    An episode ends at the step limit or with the state in which the environment terminates.
    """
    env, policy = _simulator(config.env, _json(config.env_kwargs), config.policy, _json(config.policy_kwargs))
    seeds = [episode_seed(config.seed, episode) for episode in range(first, last)]
    state = env.reset([_generator(seed, 0) for seed in seeds])
    policy.reset([_generator(seed, 1) for seed in seeds])
    batch = len(seeds)
    states = np.empty((batch, config.steps + 1, state.shape[1]), np.float32)
    actions: np.ndarray | None = None
    length = np.full(batch, config.steps, np.int64)
    running = np.ones(batch, np.bool_)
    states[:, 0] = state
    for step in range(config.steps):
        action = np.asarray(policy(state), np.float32)  # as stored, so that a replay is exact
        state, terminated = env.step(action)
        if actions is None:
            actions = np.empty((batch, config.steps, action.shape[1]), np.float32)
        actions[:, step], states[:, step + 1] = action, state
        length[running & terminated] = step + 1
        running &= ~terminated
        if not running.any():
            break
    assert actions is not None
    reached = np.arange(config.steps + 1) <= length[:, None]  # (B, T + 1)
    return EpisodeBlock(states[reached], actions[reached[:, 1:]], length, np.array(seeds, np.uint64), ~running)


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


def _generator(seed: int, stream: int) -> np.random.Generator:
    """Stream 0 draws an episode's start, stream 1 its policy's noise."""
    return np.random.Generator(np.random.Philox(np.random.SeedSequence(seed, spawn_key=(stream,))))


@lru_cache(maxsize=2)  # a worker keeps its environments from block to block
def _simulator(env: str, env_kwargs: str, policy: str, policy_kwargs: str) -> tuple[BatchEnv, Policy]:
    batch = make_batch(env, threads=1, **json.loads(env_kwargs))
    return batch, make_policy(policy, batch.action_fields, **json.loads(policy_kwargs))


def _json(options: dict[str, Any]) -> str:
    try:
        return json.dumps(options, sort_keys=True, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise EbmtrajError(f"options {options!r} are not plain JSON values: {error}") from None


def _simulate(config: CollectConfig, start: int) -> Blocks:
    """Blocks of all episodes from `start` on, in order."""
    size, left = config.block_episodes, config.episodes - start
    if config.workers > 1:
        size = min(size, max(4, -(-left // (4 * config.workers))))  # so that no worker idles long at the end
    ranges = [(first, min(first + size, config.episodes)) for first in range(start, config.episodes, size)]
    workers = min(config.workers, len(ranges))
    if workers > 1:
        yield from _simulate_in_processes(config, ranges, workers)
    else:
        for first, last in ranges:
            yield simulate_block(config, first, last)


def _simulate_in_processes(config: CollectConfig, ranges: list[tuple[int, int]], workers: int) -> Blocks:
    """Two blocks a worker are on their way at any time, so that memory is bounded and no worker waits for the writer."""
    waiting = deque(ranges)
    flying: deque[tuple[tuple[int, int], Future[EpisodeBlock]]] = deque()
    pool = _pool(workers)
    deaths = 0  # since the last block came in
    try:
        while waiting or flying:
            try:
                while waiting and len(flying) < 2 * workers:
                    flying.append((waiting[0], pool.submit(simulate_block, config, *waiting[0])))
                    waiting.popleft()
                block = flying[0][1].result()
            except BrokenProcessPool:
                first, last = flying[0][0] if flying else waiting[0]
                deaths += 1
                if deaths > RETRIES:
                    raise EbmtrajError(
                        f"a worker process died {deaths} times while simulating episodes {first} to {last - 1} (killed, out "
                        "of memory or crashed); what is stored is whole: go on with --resume and fewer --workers"
                    ) from None
                waiting.extendleft(reversed([members for members, _ in flying]))
                flying.clear()
                pool.shutdown(wait=False, cancel_futures=True)
                pool = _pool(workers)
                continue
            deaths = 0
            flying.popleft()
            yield block
    finally:
        if waiting or flying:  # an error or Ctrl-C: whatever the workers still simulate is not wanted
            _terminate(pool)
        else:
            pool.shutdown()


def _pool(workers: int) -> ProcessPoolExecutor:
    # Spawned, as a fork would copy the threads of zarr and of the simulator in a state that nobody knows.
    return ProcessPoolExecutor(workers, multiprocessing.get_context("spawn"), initializer=_start_worker)


def _terminate(pool: ProcessPoolExecutor) -> None:
    processes = list((getattr(pool, "_processes", None) or {}).values())
    pool.shutdown(wait=False, cancel_futures=True)
    for process in processes:
        process.terminate()
    for process in processes:
        process.join()


def _start_worker() -> None:
    """Leave Ctrl-C to the parent, and end when the parent is gone: a killed parent can't end its workers."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent = multiprocessing.parent_process()
    if parent is not None:
        threading.Thread(target=_end_with, args=(parent,), daemon=True).start()


def _end_with(parent: Any) -> None:
    parent.join()
    os._exit(1)
