"""Collection: the same bits from the seed alone, whatever the workers, the blocks, kills and restarts."""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest

from ebmtraj import collect as collect_module
from ebmtraj.collect import CollectConfig, collect, episode_seed, simulate_block
from ebmtraj.datasets.store import Store
from ebmtraj.datasets.verify import verify
from ebmtraj.datasets.zarr_files import occupied
from ebmtraj.envs.batch import HandCubeBatch
from ebmtraj.errors import EbmtrajError

HAND = CollectConfig(env="hand-cube", episodes=24, steps=10, seed=7, block_episodes=8)
REACHER = CollectConfig(env="Reacher-v5", episodes=30, steps=20, seed=3, block_episodes=4)

TOYS = """
import os
import gymnasium
import numpy as np

class Ragged(gymnasium.Env):
    # Counts up; ends after a number of steps that its reset draws (1 to 12), or does worse.
    observation_space = gymnasium.spaces.Box(-np.inf, np.inf, (2,), np.float32)
    action_space = gymnasium.spaces.Box(-1.0, 1.0, (1,), np.float32)

    def __init__(self, fault="none"):
        self.fault = fault

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.t, self.end = 0, int(self.np_random.integers(1, 13))
        return self.observation(), {}

    def observation(self):
        return np.array([self.t, self.end], np.float32)

    def step(self, action):
        self.t += 1
        if self.fault == "crash":
            os._exit(9)
        observation = self.observation()
        if self.fault == "nan" and self.end == 7 and self.t == 3:
            observation[1] = np.nan
        return observation, 0.0, self.t >= self.end, False, {}

if "Ragged-v0" not in gymnasium.registry:
    gymnasium.register("Ragged-v0", entry_point=Ragged)
"""


@pytest.fixture
def ragged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[CollectConfig]:
    (tmp_path / "collect_toys.py").write_text(TOYS)
    monkeypatch.syspath_prepend(tmp_path)  # spawned workers take it over
    yield CollectConfig(env="collect_toys:Ragged-v0", episodes=30, steps=10, seed=1, block_episodes=8)
    gymnasium.registry.pop("Ragged-v0", None)
    sys.modules.pop("collect_toys", None)


def test_workers_and_blocks_do_not_change_the_content(tmp_path: Path) -> None:
    results = {}
    for name, config in {
        "one": HAND,
        "two": replace(HAND, workers=2),
        "four": replace(HAND, workers=4),
        "odd blocks": replace(HAND, block_episodes=5),
    }.items():
        told: list[tuple[int, int]] = []
        results[name] = collect(tmp_path / name, config, on_progress=lambda *counts, told=told: told.append(counts))
        assert told[0] == (0, 24)
        assert told[-1] == (24, 24)
        assert sorted(told) == told
    assert len({result.content_hash for result in results.values()}) == 1
    assert all((result.episodes, result.transitions) == (24, 240) for result in results.values())
    assert all(result.steps_per_second > 0 for result in results.values())
    assert [result.workers for result in results.values()] == [1, 2, 4, 1]
    assert all((result.open_loop_steps_per_second or 0) > result.steps_per_second for result in results.values())
    assert verify(tmp_path / "four") == {
        "ok": True,
        "complete": True,
        "content_hash": results["one"].content_hash,
        "bad_blocks": [],
    }
    assert multiprocessing.active_children() == []


def test_an_episode_is_a_function_of_its_seed_and_replays(tmp_path: Path) -> None:
    block = simulate_block(HAND, (3, 7))
    again = simulate_block(HAND, (6, 8))  # episode 6 in another place of another batch
    np.testing.assert_array_equal(block.state[3 * 11 :], again.state[:11])
    np.testing.assert_array_equal(block.action[3 * 10 :], again.action[:10])
    assert int(block.seed[3]) == episode_seed(7, 6) == int(again.seed[0])
    assert len({*block.seed.tolist(), *simulate_block(replace(HAND, seed=8), (3, 7)).seed.tolist()}) == 8

    env = HandCubeBatch()  # the stored actions lead through the stored states
    env.reset([collect_module._generator(episode_seed(7, 6), 0)])
    for step in range(10):
        state, _ = env.step(again.action[step : step + 1])
        np.testing.assert_array_equal(state[0], again.state[step + 1])
    env.close()


def test_attributes_say_where_the_data_come_from(tmp_path: Path) -> None:
    collect(tmp_path / "a", replace(HAND, episodes=2, policy_kwargs={"mode": "uniform"}))
    attributes = Store.open(tmp_path / "a").attributes
    assert attributes["env"] == "hand-cube"
    assert attributes["policy"]["mode"] == "uniform"
    assert attributes["control_timestep"] == pytest.approx(0.04)
    assert {"model_hash", "mujoco_version"} <= set(attributes["env_attributes"])
    assert (attributes["seed"], attributes["steps"]) == (7, 10)


def test_episodes_end_where_the_environment_ends(tmp_path: Path, ragged: CollectConfig) -> None:
    result = collect(tmp_path / "a", ragged)
    store = Store.open(tmp_path / "a")
    ends = set()
    for index in range(30):
        episode = store.episode(index)
        end = int(episode.state[0, 1])
        ends.add(end)
        assert len(episode.action) == min(end, 10)
        assert episode.terminated == (end <= 10)
        np.testing.assert_array_equal(episode.state[:, 0], np.arange(min(end, 10) + 1))  # the last state is there
    assert {1, 10, 11} & ends
    assert min(ends) < 10 < max(ends)
    assert (
        result.terminated
        == store.terminated.sum()
        == (store.lengths < 10).sum()
        + ((store.lengths == 10) & (store.read_states(range(30))[store.state_offsets[:-1], 1] == 10)).sum()
    )
    again = collect(tmp_path / "b", replace(ragged, workers=2, block_episodes=3))
    assert again.content_hash == result.content_hash


def test_numbers_that_are_not_finite_stop_the_collection(tmp_path: Path, ragged: CollectConfig) -> None:
    with pytest.raises(EbmtrajError, match=r"state field observation\[1\] of episode \d+ is nan at step 3"):
        collect(tmp_path / "a", replace(ragged, env_kwargs={"fault": "nan"}))


def run_collecting(path: Path, config: CollectConfig) -> subprocess.Popen[str]:
    """`collect` in a process of its own, which prints the number of stored episodes as it goes."""
    program = f"""
        from ebmtraj.collect import CollectConfig, collect
        if __name__ == "__main__":
            collect({str(path)!r}, {config!r}, resume=True, on_progress=lambda done, of: print(done, flush=True))
    """
    script = path.with_suffix(".py")
    script.write_text(textwrap.dedent(program))
    return subprocess.Popen([sys.executable, script], stdout=subprocess.PIPE, text=True, preexec_fn=hear_ctrl_c)


def hear_ctrl_c() -> None:
    """A shell starts what runs in its background with Ctrl-C ignored, and that is inherited."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def test_sigkill_at_random_moments_then_resume(tmp_path: Path) -> None:
    expected = collect(tmp_path / "whole", REACHER).content_hash
    path = tmp_path / "killed"
    rng = np.random.default_rng()
    stored = []
    for _ in range(4):
        process = run_collecting(path, REACHER)
        assert process.stdout is not None
        for _ in range(int(rng.integers(1, 4))):  # zero stored, then somewhere in the next block
            process.stdout.readline()
        time.sleep(rng.uniform(0, 0.06))
        process.kill()
        process.communicate()
        if not occupied(str(path)):  # no block was ready yet, or its first file was half written
            continue
        store = Store.open(path)
        stored.append(store.episodes)
        assert store.episodes == 30 or store.episodes % 4 == 0
        assert verify(path)["ok"]
    assert stored == sorted(stored)
    assert stored
    assert collect(path, REACHER, resume=True).content_hash == expected
    assert verify(path)["ok"]
    again = collect(path, REACHER, resume=True)  # nothing left to do
    assert (again.content_hash, again.episodes, again.steps_per_second) == (expected, 30, 0.0)
    assert collect(path, replace(REACHER, episodes=31), resume=True).episodes == 31
    with pytest.raises(EbmtrajError, match="holds 31 episodes, more than the 30"):
        collect(path, REACHER, resume=True)


def test_a_killed_or_interrupted_parent_takes_its_workers_along(tmp_path: Path) -> None:
    config = replace(REACHER, episodes=4000, workers=2, block_episodes=8)
    for kind in (signal.SIGKILL, signal.SIGINT):
        process = run_collecting(tmp_path / kind.name, config)
        assert process.stdout is not None
        while int(process.stdout.readline()) < 8:
            pass
        children = Path(f"/proc/{process.pid}/task/{process.pid}/children")
        if not children.exists():
            process.kill()
            process.communicate()
            pytest.skip("needs Linux's /proc")
        pids = [int(pid) for pid in children.read_text().split()]
        assert len(pids) >= 2
        process.send_signal(kind)
        process.communicate(timeout=20)
        deadline = time.monotonic() + 10
        while any(Path(f"/proc/{pid}/cmdline").exists() and alive(pid) for pid in pids):
            assert time.monotonic() < deadline, "workers outlive their parent"
            time.sleep(0.02)
        assert verify(tmp_path / kind.name)["ok"]
        assert 8 <= Store.open(tmp_path / kind.name).episodes < 4000


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def test_a_killed_worker_costs_a_retry_and_nothing_else(tmp_path: Path) -> None:
    expected = collect(tmp_path / "a", REACHER).content_hash
    killed: list[int] = []

    def kill_one(done: int, total: int) -> None:
        children = multiprocessing.active_children()
        if done and not killed and children and children[0].pid:
            killed.append(children[0].pid)
            os.kill(children[0].pid, signal.SIGKILL)

    result = collect(tmp_path / "b", replace(REACHER, workers=2), on_progress=kill_one)
    assert killed
    assert result.content_hash == expected


def ray_workers() -> list[int]:
    """Processes in which Ray simulates at this moment."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            if (folder / "cmdline").read_bytes().startswith(b"ray::_on_node"):
                found.append(int(folder.name))
        except OSError:
            continue
    return found


@pytest.mark.slow
def test_ray_gives_the_same_content_also_when_a_worker_is_killed(tmp_path: Path) -> None:
    expected = collect(tmp_path / "a", HAND).content_hash
    killed: list[int] = []

    def kill_one(done: int, total: int) -> None:
        workers = ray_workers()
        if done and not killed and workers:
            os.kill(workers[0], signal.SIGKILL)
            killed.append(workers[0])

    result = collect(tmp_path / "b", replace(HAND, workers=2, backend="ray"), on_progress=kill_one)
    assert (result.content_hash, result.workers) == (expected, 2)
    assert killed
    assert result.open_loop_steps_per_second is not None
    assert verify(tmp_path / "b")["ok"]


@pytest.mark.slow
def test_a_ray_cluster_that_loses_a_node_gives_the_same_content(tmp_path: Path) -> None:
    config = replace(HAND, episodes=600, steps=20, workers=0, block_episodes=4)
    expected = collect(tmp_path / "a", config).content_hash
    env = {**os.environ, "RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": "5e" * 32, "RAY_ADDRESS": ""}
    ray = [str(Path(sys.executable).with_name("ray"))]
    options = ["--num-cpus", "2", "--disable-usage-stats"]
    head = [*ray, "start", "--head", "--port", "6399", "--include-dashboard", "false", *options]
    subprocess.run(head, env=env, check=True, stdout=subprocess.DEVNULL)
    join = [*ray, "start", "--address", "127.0.0.1:6399", "--block", *options]
    node = subprocess.Popen(join, env=env, stdout=subprocess.DEVNULL, start_new_session=True)
    try:
        time.sleep(10)  # until the second node has joined
        recipe = ["--episodes", "600", "--steps", "20", "--seed", "7", "--set", "block_episodes=4"]
        command = [sys.executable, "-m", "ebmtraj", "collect", str(tmp_path / "b"), *recipe]
        command += ["--backend", "ray", "--address", "auto", "--json"]
        process = subprocess.Popen(command, env=env, stdout=subprocess.PIPE, text=True)
        while not (tmp_path / "b").exists() or Store.open(tmp_path / "b").episodes < 100:
            assert process.poll() is None
            time.sleep(0.1)
        os.killpg(node.pid, signal.SIGKILL)
        assert Store.open(tmp_path / "b").episodes < 500
        result = json.loads(process.communicate()[0])
    finally:
        node.kill()
        subprocess.run([*ray, "stop", "--force"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, check=False)
    assert (result["workers"], result["content_hash"]) == (4, expected)


def test_a_block_that_kills_its_workers_is_an_error(tmp_path: Path, ragged: CollectConfig) -> None:
    with pytest.raises(EbmtrajError, match=r"died 2 times while doing episodes 0 to \d+ "):
        collect(tmp_path / "a", replace(ragged, env_kwargs={"fault": "crash"}, workers=2))
    assert not (tmp_path / "a").exists()


@pytest.mark.parametrize(
    ("key", "value"), [("episodes", 0), ("steps", -1), ("workers", -1), ("block_episodes", 0), ("episodes", True)]
)
def test_counts_must_be_positive(key: str, value: int) -> None:
    with pytest.raises(EbmtrajError, match=f"{key} is {value}"):
        replace(HAND, **{key: value})  # type: ignore[arg-type]


def test_bad_requests_leave_what_is_there(tmp_path: Path) -> None:
    path = tmp_path / "a"
    expected = collect(path, replace(REACHER, episodes=4)).content_hash
    requests: list[tuple[CollectConfig, dict[str, Any], str]] = [
        (REACHER, {}, "exists; use --resume"),
        (REACHER, {"overwrite": True, "resume": True}, "choose one"),
        (replace(REACHER, seed=4), {"resume": True}, "seed = 3, not 4"),
        (replace(REACHER, steps=21), {"resume": True}, "steps = 20, not 21"),
        (replace(REACHER, policy_kwargs={"scale": 0.5}), {"resume": True}, "policy.scale = 0.7, not 0.5"),
        (replace(REACHER, env="hand-cube"), {"resume": True}, "was made with"),
        (replace(REACHER, env="Reecher-v5"), {"overwrite": True}, "Reecher-v5"),
        (replace(REACHER, policy="expert"), {"overwrite": True}, "unknown policy 'expert'"),
        (replace(REACHER, policy_kwargs={"colour": 1}), {"overwrite": True}, "colour"),
        (replace(REACHER, env_kwargs={"size": {1, 2}}), {"overwrite": True}, "not plain JSON"),
    ]
    for config, how, message in requests:
        with pytest.raises(EbmtrajError, match=message) as caught:
            collect(path, config, **how)
        assert "\n" not in str(caught.value)
        assert verify(path)["content_hash"] == expected
    assert collect(path, replace(REACHER, episodes=5), overwrite=True).episodes == 5
    with pytest.raises(EbmtrajError, match="seed is -1"):
        CollectConfig(seed=-1)
