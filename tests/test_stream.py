"""Streaming: windows come from one split, never cross an episode, are equally likely, and depend on (seed, n) alone."""

from __future__ import annotations

import itertools
import multiprocessing
import os
import signal
import threading
import time
import tracemalloc
from collections import Counter
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import zarr
from older import unseal_run
from safetensors.torch import load_file
from torch import Tensor

from ebmtraj.collect import CollectConfig, collect
from ebmtraj.datasets import writer as writing
from ebmtraj.datasets.blocks import EpisodeBlock, StoreRecipe
from ebmtraj.datasets.normaliser import Normaliser
from ebmtraj.datasets.shards import decode_rows
from ebmtraj.datasets.store import Store
from ebmtraj.datasets.stream import RandomWindows, StreamedTransitions
from ebmtraj.datasets.window_index import WindowIndex
from ebmtraj.datasets.windows import Transitions
from ebmtraj.errors import EbmtrajError
from ebmtraj.fields import Field
from ebmtraj.runs import Run
from ebmtraj.trajectories import fit
from ebmtraj.trajectories.fit import TransitionRecipe, load_recipe, train_transition

STATE = (Field("episode", 1), Field("t", 1), Field("turn", 4, "quaternion"))
ACTION = (Field("mark", 2),)
SMALL = {"span_chunks": 2, "pool_spans": 3}


def plant(path: Path, lengths: list[int], chunk: int = 8, shard: int = 32) -> Store:
    """Episodes whose rows say which episode and time they are, and so do the actions; in small chunks and shards."""
    recipe = StoreRecipe(
        env="planted", control_timestep=0.1, state_fields=STATE, action_fields=ACTION, policy={"name": "none"}
    )
    size = np.array(lengths)
    rng = np.random.default_rng(0)
    turn = rng.normal(size=(int((size + 1).sum()), 4))
    turn /= np.linalg.norm(turn, axis=1, keepdims=True)
    number, t = np.repeat(np.arange(len(size)), size + 1), np.concatenate([np.arange(n + 1) for n in size])
    state = np.column_stack((number, t, turn))
    action = state[t < size[number], :2]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(writing, "CHUNK_ROWS", chunk)
        patch.setattr(writing, "SHARD_ROWS", shard)
        made = writing.StoreWriter.create(path, recipe)
        made.append_block(
            EpisodeBlock(state, action, size, np.arange(len(size), dtype=np.uint64), np.zeros(len(size), bool))
        )
        return made.finish()


LENGTHS = [*np.random.default_rng(1).integers(1, 14, 60).tolist(), 70, 1, 1, 33]


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    return plant(tmp_path_factory.mktemp("planted") / "s.zarr", LENGTHS)


@pytest.fixture(autouse=True)
def no_thread_is_left() -> Iterator[None]:
    yield
    assert not [thread.name for thread in threading.enumerate() if thread.name.startswith("ebmtraj-reader")]


def starts_of(store: Store, split: str, length: int) -> set[tuple[int, int]]:
    return {(int(e), t) for e in store.split(split) for t in range(LENGTHS[e] - length + 1)}


# windows


@pytest.mark.parametrize(("length", "split"), [(1, "train"), (3, "train"), (12, "train"), (2, "validation"), (5, "test")])
def test_windows_are_whole_and_of_the_split(store: Store, length: int, split: str) -> None:
    seen: Counter[tuple[int, int]] = Counter()
    with RandomWindows(store, split, length, batch=10, **SMALL) as windows:
        assert windows.windows == len(starts_of(store, split, length))
        for number in range(12 * windows.windows // 10):
            batch = windows.batch(number)
            assert batch.states.shape == (10, length + 1, 6)
            assert batch.actions is not None
            assert batch.actions.equal(batch.states[:, :-1, :2])  # the actions taken there
            assert (batch.states[:, :, 0] == batch.states[:, :1, 0]).all()  # one episode
            assert (batch.states[:, :, 1] - batch.states[:, :1, 1]).equal(torch.arange(length + 1.0).expand(10, -1))
            seen.update((int(e), int(t)) for e, t in batch.states[:, 0, :2].tolist())
    assert set(seen) == starts_of(store, split, length)


def test_every_window_is_equally_likely(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    epochs, rows = 300, {"state": store.rows("state", 0, 64), "action": store.rows("action", 0, 64)}
    monkeypatch.setattr(Store, "row_range", lambda self, name, start, stop: rows[name][start:stop])  # decoding takes long
    monkeypatch.setattr(Store, "chunk_rows", lambda self, name: 8)
    with RandomWindows(store, "train", 2, batch=16, seed=5, actions=False, **SMALL) as windows:
        assert windows.reader._pools >= 4
        assert len({windows.reader._turn(epoch * windows.windows).spans for epoch in range(4)}) > 1  # each epoch anew
        number = epochs * windows.windows // 16
        drawn = torch.cat([windows.batch(n).states[:, 0, :2] for n in range(number)])
    counts = Counter((int(e), int(t)) for e, t in drawn.tolist())
    assert set(counts) == starts_of(store, "train", 2)
    expected = len(drawn) / windows.windows
    z = np.array([(count - expected) / expected**0.5 for count in counts.values()])
    assert np.abs(z).max() < 4.5
    assert 0.8 < z.var() < 1.2  # as draws with replacement do, and not the same few windows again and again
    halves: Counter[bool] = Counter()
    for (episode, _), count in counts.items():  # nor is any part of the store favoured, short as its last span may be
        halves[episode < 30] += count
    share = sum(e < 30 for e, _ in counts) / len(counts)
    assert halves[True] / len(drawn) == pytest.approx(share, abs=0.005)


def test_a_batch_depends_on_seed_and_number_alone(store: Store) -> None:
    with (
        RandomWindows(store, "train", 3, batch=20, seed=1, **SMALL) as first,
        RandomWindows(store, "train", 3, batch=20, seed=1, **SMALL) as second,
        RandomWindows(store, "train", 3, batch=20, seed=2, **SMALL) as other,
    ):
        batches = [batch.states for batch, _ in zip(first, range(60), strict=False)]
        for number in (59, 3, 0, 31, 30):
            assert second.batch(number).states.equal(batches[number])
        assert not any(other.batch(n).states.equal(batches[n]) for n in range(60))
    assert not any(a.equal(b) for i, a in enumerate(batches) for b in batches[:i])


def test_a_batch_meets_many_places(tmp_path: Path) -> None:
    store = plant(tmp_path / "s.zarr", [9] * 400)
    with RandomWindows(store, "train", 1, batch=64, span_chunks=1, pool_spans=16) as windows:
        first, second = (windows.batch(n).states[:, 0, 0] for n in (0, 200))
        assert first.max() - first.min() > 200
        assert len(first.unique()) > 8
        assert not set(first.tolist()) >= set(second.tolist())


def test_every_chunk_of_a_pool_is_decoded_about_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = plant(tmp_path / "s.zarr", [10, 4, 20] * 100)
    needed = {
        name: len({row // 8 for e in store.split("train") for row in range(offsets[e], offsets[e + 1])})
        for name, offsets in (("state", store.state_offsets), ("action", store.action_offsets))
    }
    honest, read = Store.row_range, Counter[str]()

    def row_range(self: Store, name: str, start: int, stop: int, **options: Any) -> Any:
        read[name] += -(-stop // 8) - start // 8
        return honest(self, name, start, stop, **options)

    monkeypatch.setattr(Store, "row_range", row_range)
    with RandomWindows(store, "train", 1, batch=10, span_chunks=8, pool_spans=5) as windows:
        for number in range(windows.windows // 10):  # one epoch, and the first pool of the next
            windows.batch(number)
    for name, count in needed.items():
        assert count <= read[name] <= (count + 40) * 9 / 8


def test_memory_is_bounded(tmp_path: Path) -> None:
    store = plant(tmp_path / "s.zarr", [99] * 1000, chunk=512, shard=4096)
    raw = 100_000 * 32
    tracemalloc.start()
    try:
        with RandomWindows(store, "train", 10, batch=64, span_chunks=2, pool_spans=4) as windows:
            for number in range(0, 2 * windows.windows // 64, 4):
                windows.batch(number)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 0.35 * raw  # two pools, each of 4 % of the rows, with their windows' numbers


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"length": 71}, "no train episode has 71 steps"),
        ({"length": 0}, "at least one"),
        ({"split": "all"}, "unknown split"),
        ({"batch": 0}, "batch = 0"),
        ({"pool_spans": 0}, "pool_spans = 0"),
    ],
)
def test_what_can_not_be_drawn(store: Store, options: dict[str, Any], words: str) -> None:
    with pytest.raises(EbmtrajError, match=words):
        RandomWindows(store, **options)


# faults


def spoil(path: Path, how: str) -> None:
    if how == "nan":
        array: Any = zarr.open_group(str(path), mode="r+")["state"]
        array[int(Store.open(path).state_offsets[Store.open(path).split("train")[20]]), 1] = np.nan
        return
    shards = sorted((path / "state" / "c").iterdir(), key=lambda folder: int(folder.name))
    shard = shards[len(shards) // 2] / "0"
    if how == "missing":
        shard.unlink()
    else:
        content = bytearray(shard.read_bytes())
        for place in range(20, len(content), 60):  # in every chunk: not each holds rows of the split
            content[place] ^= 1
        shard.write_bytes(content)


@pytest.mark.parametrize("how", ["nan", "flip", "missing"])
@pytest.mark.timeout(20)
def test_a_damaged_store_is_named_from_the_thread(how: str, tmp_path: Path) -> None:
    store = plant(tmp_path / "s.zarr", LENGTHS)
    spoil(tmp_path / "s.zarr", how)
    words = {"nan": "state field t.* is nan", "flip": "can't be read", "missing": "missing or empty"}[how]
    with RandomWindows(store, "train", 1, batch=16, **SMALL) as windows:

        def read() -> None:
            for number in range(windows.windows // 16 + 1):
                windows.batch(number)

        for _ in range(2):  # it stays damaged
            with pytest.raises(EbmtrajError, match=words) as caught:
                read()
            assert "\n" not in str(caught.value)
    with closing(StreamedTransitions(store, "train")) as streamed, pytest.raises(EbmtrajError, match=words):
        Normaliser(STATE, ACTION).fit(streamed)


@pytest.mark.timeout(20)
def test_ctrl_c_while_waiting(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    honest = Store.row_range

    def slow(*args: Any, **options: Any) -> Any:
        time.sleep(0.2)
        return honest(*args, **options)

    monkeypatch.setattr(Store, "row_range", slow)
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        began = time.perf_counter()
        with RandomWindows(store, "train", 1, span_chunks=1, pool_spans=20) as windows:
            threading.Timer(0.1, os.kill, (os.getpid(), signal.SIGINT)).start()
            with pytest.raises(KeyboardInterrupt):
                windows.batch(0)
        assert time.perf_counter() - began < 1.5  # the request under way, and none after it
    finally:
        signal.signal(signal.SIGINT, before)
    with pytest.raises(EbmtrajError, match="closed"):
        windows.batch(0)


# transitions, as training sees them


def test_streamed_transitions_are_those_in_memory(store: Store) -> None:
    memory, streamed = Transitions.load(store, "train", actions=True), StreamedTransitions(store, "train", actions=True)
    assert len(memory) == len(streamed)
    index = torch.randperm(len(memory), generator=torch.Generator().manual_seed(0))[:50].repeat(2)
    pairs = [(memory.at(index), streamed.at(index))]
    for size in (10**6, 100, 7, 1):
        for (state, batch), (other, following) in zip(memory.pieces(size), streamed.pieces(size), strict=True):
            assert state.equal(other)
            pairs.append((batch, following))
    one = torch.Generator().manual_seed(3), torch.Generator().manual_seed(3)
    pairs += [(memory.sample(40, one[0]), streamed.sample(40, one[1])) for _ in range(5)]  # one pool holds all
    for ours, theirs in pairs:
        assert ours.action is not None
        assert theirs.action is not None
        assert ours.state.equal(theirs.state)
        assert ours.action.equal(theirs.action)
        assert ours.next_state.equal(theirs.next_state)
    for whiten in (False, True):
        fitted = [Normaliser(STATE, ACTION).fit(data, whiten=whiten, chunk=90).state_dict() for data in (memory, streamed)]
        assert equal(*fitted)
    plain = StreamedTransitions(store, "train")
    assert plain.at(index).action is None
    assert next(plain.pieces(9))[1].action is None
    for data in (streamed, plain):
        data.close()


@pytest.mark.parametrize("length", [1, 3, 12])
def test_a_transition_brings_the_states_before_it(store: Store, length: int) -> None:
    """Those of its episode, oldest first; where the episode begins later, stand-ins that are marked."""
    begins = torch.from_numpy(store.read_states(np.arange(64))[store.state_offsets[:64]])
    memory = Transitions.load(store, "train", actions=True, history=length)
    small = StreamedTransitions(store, "train", actions=True, history=length, **SMALL)
    large = StreamedTransitions(store, "train", actions=True, history=length)
    noise = torch.Generator().manual_seed(0)
    index = torch.arange(len(memory)).flip(0)
    batches = [data.at(index) for data in (memory, small)]
    batches += [data.sample(40, noise.manual_seed(n)) for n in range(60) for data in (memory, large, small)]
    back = torch.arange(length, 0, -1)
    for batch in batches:
        past = batch.past
        assert past is not None
        assert past.action is not None
        episode, t = batch.state[:, 0], batch.state[:, 1]
        assert past.state.shape == (len(t), length, 6)
        assert past.valid.equal(back <= t[:, None])
        assert (past.state[..., 0] == episode[:, None]).all()
        assert past.state[..., 1].equal((t[:, None] - back).clamp_min(0))
        assert past.state[~past.valid].equal(begins[past.state[~past.valid][:, 0].long()])
        assert past.action.equal(past.state[..., :2] * past.valid.unsqueeze(-1))  # the actions taken there
    for ours, theirs in [*itertools.pairwise(batches[:2]), *zip(batches[2::3], batches[3::3], strict=True)]:
        assert ours.past is not None
        assert theirs.past is not None
        assert ours.past.state.equal(theirs.past.state)
    assert {int(n) for batch in batches[4::3] for n in batch.state[:, 0]} >= {60, 63}  # also long episodes' later spans
    plain = StreamedTransitions(store, "train", history=length, **SMALL).at(index[:5]).past
    assert plain is not None
    assert plain.action is None
    for data in (memory, small):
        assert all(batch.past is None for _, batch in data.pieces(50))
    for data in (small, large):
        data.close()


def test_seeking_brings_back_the_same_batches(store: Store) -> None:
    data = StreamedTransitions(store, "train", **SMALL)
    noise = torch.Generator()

    def drawn(first: int, last: int) -> list[Tensor]:
        data.seek(first * 10)
        return [data.sample(10, noise.manual_seed(n)).state for n in range(first, last)]

    whole = drawn(0, 90)
    assert all(a.equal(b) for a, b in zip(drawn(37, 90), whole[37:], strict=True))
    assert all(a.equal(b) for a, b in zip(drawn(2, 30), whole[2:30], strict=True))
    data.close()


def test_window_numbers(store: Store) -> None:
    for length in (1, 4):
        index = WindowIndex(store, "train", length)
        rows = [store.state_offsets[e] + t for e, t in sorted(starts_of(store, "train", length))]
        assert [index.row(n) for n in range(len(index))] == rows
        for row in range(0, int(store.state_offsets[-1]) + 1, 5):
            assert index.before(row) == int(np.searchsorted(rows, row))


# training


def equal(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(a[k].equal(b[k]) for k in a)


def state(path: Path) -> dict[str, Tensor]:
    return load_file(path / "checkpoints" / "resume.safetensors")


def recipe_for(store: Path, model: str, *changes: str, actions: bool = False) -> TransitionRecipe:
    small = ["training.batch=32", "training.check_every=10", "training.warmup=5", "network.width=16", "training.steps=30"]
    cd = ["network.buffer=200", "network.sampler.steps=3", "network.rollout_steps=3"] if model == "cd" else []
    return load_recipe(None, [*small, *cd, *changes], {"model": model, "actions": actions, "data": str(store)})


@pytest.fixture(scope="module")
def chunked(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """20 episodes of 20 steps of the hand and cube in chunks of two rows, so that they make several pools."""
    path = tmp_path_factory.mktemp("chunked") / "hand.zarr"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(writing, "CHUNK_ROWS", 2)
        patch.setattr(writing, "SHARD_ROWS", 128)
        collect(path, CollectConfig(env="hand-cube", episodes=20, steps=20, seed=0))
    return path


@pytest.mark.parametrize(
    ("model", "actions"), [("dsm", False), ("dsm", True), ("cd", True), ("fc", True), ("gaussian", False)]
)
def test_every_model_trains_on_a_stream(model: str, actions: bool, hand_store: Path, chunked: Path, tmp_path: Path) -> None:
    for name, store, stream in (("a", hand_store, "false"), ("b", hand_store, "true"), ("c", chunked, "true")):
        recipe = recipe_for(store, model, f"stream={stream}", actions=actions)
        train_transition(recipe, tmp_path / name, device="cpu")
    assert equal(state(tmp_path / "a"), state(tmp_path / "b"))  # one pool holds all: the very same draws
    assert not equal(state(tmp_path / "a"), state(tmp_path / "c"))  # several pools: others
    weights = {k: v for k, v in state(tmp_path / "c").items() if v.is_floating_point() and "marginals" not in k}
    assert all(value.isfinite().all() for value in weights.values())
    last = [Run(tmp_path / name).read_metrics()[-1]["validation"] for name in "ac"]
    assert last[0] == pytest.approx(last[1], rel=0.2)


def train_and_die(recipe: TransitionRecipe, path: Path, after: int) -> None:
    honest, left = StreamedTransitions.sample, [after]

    def sample(self: StreamedTransitions, size: int, generator: torch.Generator) -> Any:
        left[0] -= 1
        if left[0] < 0:
            os.kill(os.getpid(), signal.SIGKILL)
        return honest(self, size, generator)

    StreamedTransitions.sample = sample  # type: ignore[method-assign]
    train_transition(recipe, path, device="cpu")


@pytest.mark.parametrize(("model", "after"), [("dsm", 17), pytest.param("cd", 28, marks=pytest.mark.slow)])
def test_a_killed_stream_ends_in_the_same_bits(model: str, after: int, chunked: Path, tmp_path: Path) -> None:
    recipe = recipe_for(chunked, model, "stream=true")
    train_transition(recipe, tmp_path / "whole", device="cpu")
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["ebmtraj.trajectories.fit", "test_stream"])
    process = context.Process(target=train_and_die, args=(recipe, tmp_path / "run", after))
    process.start()
    process.join(60)
    assert process.exitcode == -signal.SIGKILL
    train_transition(recipe, tmp_path / "run", device="cpu", resume=True)
    assert equal(state(tmp_path / "run"), state(tmp_path / "whole"))


def test_a_roll_back_goes_back_in_the_stream(chunked: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    honest, sought = StreamedTransitions.seek, []

    def seek(self: StreamedTransitions, drawn: int) -> None:
        sought.append(drawn)
        honest(self, drawn)

    monkeypatch.setattr(StreamedTransitions, "seek", seek)
    draw, calls = StreamedTransitions.sample, [0]

    def sample(self: StreamedTransitions, size: int, generator: torch.Generator) -> Any:
        calls[0] += 1
        batch = draw(self, size, generator)
        if calls[0] == 25:
            batch.next_state.fill_(torch.nan)  # a copy of what the pool holds
        return batch

    monkeypatch.setattr(StreamedTransitions, "sample", sample)
    result, _ = train_transition(recipe_for(chunked, "gaussian", "stream=true"), tmp_path / "run", device="cpu")
    assert result.rollbacks == 1
    assert sought == [0, 20 * 32]


def test_a_resume_never_changes_where_the_data_is(chunked: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    auto, path = recipe_for(chunked, "gaussian"), tmp_path / "run"
    assert auto.stream == "auto"
    with monkeypatch.context() as patch:
        patch.setattr(fit, "free_memory", lambda device: 1000)
        _, ran = train_transition(auto, path, device="cpu")
    assert ran.stream is True
    assert "stream = true\n" in (path / "config.toml").read_text()
    before = state(path)
    _, again = train_transition(auto, path, device="cpu", resume=True)  # now there is memory for it
    assert again.stream is True
    assert equal(state(path), before)
    with pytest.raises(EbmtrajError, match="stream = True, not False; drop that setting"):
        train_transition(recipe_for(chunked, "gaussian", "stream=false"), path, device="cpu", resume=True)
    _, plenty = train_transition(auto, tmp_path / "other", device="cpu")
    assert plenty.stream is False
    old = (tmp_path / "other" / "config.toml").read_text()
    (tmp_path / "other" / "config.toml").write_text(old.replace("stream = false\n", ""))  # begun before there was a choice
    unseal_run(tmp_path / "other")
    assert train_transition(auto, tmp_path / "other", device="cpu", resume=True)[1].stream is False
    assert 10**6 < fit.free_memory(torch.device("cpu")) < 10**14
    with pytest.raises(EbmtrajError, match="stream"):
        recipe_for(chunked, "gaussian", "stream=maybe")


# decoding without zarr


def test_decoding_gives_what_zarr_reads(store: Store, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    for name in ("state", "action"):
        array = store._array(name)
        whole = np.asarray(array[:])
        for _ in range(60):
            start, stop = np.sort(rng.integers(0, len(whole) + 1, 2)).tolist()
            rows = decode_rows(array, start, stop)
            assert rows is not None
            assert np.array_equal(rows, whole[start:stop])
    values = np.arange(60, dtype=np.float32).reshape(20, 3)
    for number, options in enumerate(({"shards": (16, 3)}, {"shards": (16, 3), "compressors": []}, {})):  # not our layout
        other = zarr.create_array(str(tmp_path / f"{number}.zarr"), data=values, chunks=(8, 3), **options)
        assert decode_rows(other, 3, 20) is None


@pytest.mark.parametrize("how", ["flip", "missing"])
def test_decoding_leaves_damage_to_zarr(how: str, tmp_path: Path) -> None:
    store = plant(tmp_path / "s.zarr", LENGTHS)
    assert decode_rows(store._array("state"), 0, 400) is not None
    spoil(tmp_path / "s.zarr", how)
    assert decode_rows(store._array("state"), 0, 400) is None
