"""The store: what goes in comes out, a kill at any write loses nothing committed, and damage is named, not read."""

from __future__ import annotations

import hashlib
import itertools
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr
from hypothesis import given, settings
from hypothesis import strategies as st

from ebmtraj.datasets import store as store_module
from ebmtraj.datasets import writer as writer_module
from ebmtraj.datasets.blocks import EpisodeBlock, StoreRecipe, episode_splits
from ebmtraj.datasets.store import Store
from ebmtraj.datasets.verify import verify
from ebmtraj.datasets.writer import StoreWriter
from ebmtraj.datasets.zarr_files import is_vacant
from ebmtraj.errors import EbmtrajError
from ebmtraj.fields import Field

RECIPE = StoreRecipe(
    env="toy",
    control_timestep=0.04,
    state_fields=(Field("joint", 2, "angle", "rad", entries=("a", "b")), Field("height", 1, "position", "m")),
    action_fields=(Field("torque", 2, low=(-1.0, -1.0), high=(1.0, 1.0)),),
    policy={"name": "random", "scale": 0.8},
    env_kwargs={"size": 3},
    env_attributes={"mujoco_version": "4.0.0"},
    seed=7,
    steps=40,
)


def make_block(first: int, count: int, lengths: list[int] | None = None) -> EpisodeBlock:
    """Episodes whose content is a function of their index."""
    states, actions, sizes = [], [], []
    for episode in range(first, first + count):
        rng = np.random.default_rng(episode)
        size = lengths[episode - first] if lengths else int(rng.integers(1, 30))
        states.append(rng.normal(size=(size + 1, 3)))
        actions.append(rng.uniform(-1, 1, size=(size, 2)))
        sizes.append(size)
    return EpisodeBlock(
        np.concatenate(states).astype(np.float32),
        np.concatenate(actions).astype(np.float32),
        np.array(sizes),
        np.arange(first, first + count, dtype=np.uint64) + np.uint64(2**63),
        np.array(sizes) < 16,
    )


def fill(path: Path | str, blocks: list[EpisodeBlock], recipe: StoreRecipe = RECIPE, *, overwrite: bool = False) -> Store:
    writer = StoreWriter.create(path, recipe, overwrite=overwrite)
    for block in blocks:
        writer.append_block(block)
    return writer.finish()


def small_shards(monkeypatch: pytest.MonkeyPatch) -> None:
    """So that a few episodes make several chunks and shards."""
    for name, value in (("CHUNK_ROWS", 32), ("SHARD_ROWS", 64), ("CHUNK_EPISODES", 4), ("SHARD_EPISODES", 8)):
        monkeypatch.setattr(writer_module, name, value)
    monkeypatch.setattr(store_module, "SHARD_ROWS", 64)
    monkeypatch.setattr(store_module, "SPAN_ROWS", 100)


def shard_files(path: Path, array: str) -> list[Path]:
    return sorted(file for file in (path / array / "c").rglob("*") if file.is_file())


@pytest.mark.parametrize("where", ["file", "memory"])
def test_round_trip(where: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    small_shards(monkeypatch)
    path = tmp_path / "a.zarr" if where == "file" else f"memory://{tmp_path.name}/a.zarr"
    assert is_vacant(path)
    whole = make_block(0, 25)
    fill(path, [make_block(0, 10), make_block(10, 1), make_block(11, 14)])
    assert not is_vacant(path)

    store = Store.open(path)
    state, action = store.read_all()
    np.testing.assert_array_equal(state, whole.state)
    np.testing.assert_array_equal(action, whole.action)
    assert state.dtype == action.dtype == np.float32
    assert state.flags.c_contiguous
    np.testing.assert_array_equal(store.lengths, whole.length)
    np.testing.assert_array_equal(store.seeds, whole.seed)
    np.testing.assert_array_equal(store.terminated, whole.terminated)
    assert (store.episodes, store.transitions) == (25, whole.length.sum())
    assert (store.state_fields, store.action_fields) == (RECIPE.state_fields, RECIPE.action_fields)
    assert store.complete
    for index in (0, 11, 24):
        episode = store.episode(index)
        single = make_block(index, 1)
        np.testing.assert_array_equal(episode.state, single.state)
        np.testing.assert_array_equal(episode.action, single.action)
        assert (episode.seed, episode.terminated) == (int(single.seed[0]), bool(single.terminated[0]))
    for chosen in ([3], [24, 0, 7, 7], [2, 3, 4], [], np.arange(0, 25, 3), [-1]):
        pieces = [make_block(int(i) % 25, 1) for i in chosen]
        expected = np.concatenate([np.empty((0, 3), np.float32), *(piece.state for piece in pieces)])
        np.testing.assert_array_equal(store.read_states(chosen), expected)
        expected = np.concatenate([np.empty((0, 2), np.float32), *(piece.action for piece in pieces)])
        np.testing.assert_array_equal(store.read_actions(chosen), expected)
    np.testing.assert_array_equal(store.read_states(slice(5, 9)), make_block(5, 4).state)
    with pytest.raises(EbmtrajError, match="25 episodes"):
        store.read_states([25])
    info = json.loads(json.dumps(store.info(), allow_nan=False))
    assert info["splits"] == {name: len(store.split(name)) for name in ("train", "validation", "test")}
    report = verify(path)
    assert report == {"ok": True, "complete": True, "content_hash": store.content_hash, "bad_blocks": []}
    if isinstance(path, Path):  # a plain zarr reader finds the rows too, and no more than those
        group: Any = zarr.open_group(path, mode="r")
        np.testing.assert_array_equal(group["state"][:], whole.state)
        assert group["episode/length"].shape == (25,)
        assert not list(path.rglob("*.partial"))


@given(lengths=st.lists(st.integers(1, 12), min_size=1, max_size=8), cuts=st.sets(st.integers(1, 7), max_size=3))
@settings(max_examples=8, deadline=None)
def test_content_hash_sees_episodes_not_blocks_or_chunks(lengths: list[int], cuts: set[int]) -> None:
    edges = sorted({0, len(lengths), *(cut for cut in cuts if cut < len(lengths))})
    whole = make_block(0, len(lengths), lengths)
    parts = [make_block(a, b - a, lengths[a:b]) for a, b in itertools.pairwise(edges)]
    with pytest.MonkeyPatch.context() as patch:
        url = f"memory://{hashlib.sha256(repr((lengths, edges)).encode()).hexdigest()}"
        for blocks, suffix in (([whole], "a"), (parts, "b")):
            fill(f"{url}/{suffix}", blocks, overwrite=True)
            small_shards(patch)
    hashes = [Store.open(f"{url}/{suffix}").content_hash for suffix in "ab"]
    assert hashes[0] == hashes[1] == verify(f"{url}/b")["content_hash"]


def test_digest_sees_every_number() -> None:
    block = make_block(3, 2)
    state = hashlib.sha256(block.state[: block.length[0] + 1].tobytes() + block.action[: block.length[0]].tobytes())
    for value in (block.length[0], block.seed[0], block.terminated[0]):
        state.update(value.tobytes())
    assert block.digests()[0].tobytes() == state.digest()
    for name in ("state", "action", "seed", "terminated"):
        values = getattr(block, name).copy()
        values[-1] = ~values[-1] if name == "terminated" else values[-1] + 1
        changed = replace(block, **{name: values}).digests()
        assert (changed[0] == block.digests()[0]).all()
        assert (changed[1] != block.digests()[1]).any()


@given(episodes=st.integers(0, 300), more=st.integers(0, 50), seed=st.integers(0, 5))
@settings(max_examples=50, deadline=None)
def test_split_is_balanced_and_independent_of_the_number_of_episodes(episodes: int, more: int, seed: int) -> None:
    splits = episode_splits(episodes, seed)
    np.testing.assert_array_equal(splits, episode_splits(episodes + more, seed)[:episodes])
    for start in range(0, episodes - episodes % 10, 10):
        assert np.bincount(splits[start : start + 10], minlength=3).tolist() == [7, 1, 2]


def test_split_order_differs_from_group_to_group_and_seed_to_seed() -> None:
    groups = episode_splits(1000).reshape(100, 10)
    assert len({tuple(group) for group in groups}) > 50
    assert (groups == 0).mean(axis=0) == pytest.approx(0.7, abs=0.15)
    assert (episode_splits(1000, 1) != episode_splits(1000, 0)).any()


def test_split_and_statistics_of_a_store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    small_shards(monkeypatch)
    store = fill(tmp_path / "a.zarr", [make_block(0, 17), make_block(17, 13)])
    parts = [store.split(name) for name in ("train", "validation", "test")]
    assert [len(part) for part in parts] == [21, 3, 6]
    assert sorted(np.concatenate(parts)) == list(range(30))
    with pytest.raises(EbmtrajError, match="unknown split 'val'"):
        store.split("val")

    train = [store.episode(int(i)) for i in parts[0]]
    state = np.concatenate([episode.state for episode in train]).astype(np.float64)
    delta = np.concatenate([np.diff(episode.state.astype(np.float64), axis=0) for episode in train])
    delta[:, :2] = np.angle(np.exp(1j * delta[:, :2]))
    assert np.abs(np.diff(state[:, 0])).max() > np.pi  # so that the wrap is put to the test
    action = np.concatenate([episode.action for episode in train]).astype(np.float64)
    for name, values in (("state", state), ("action", action), ("delta", delta)):
        found = store.statistics[name]
        assert found["count"] == len(values)
        for kind in ("mean", "std", "min", "max"):
            np.testing.assert_allclose(found[kind], getattr(values, kind)(axis=0), rtol=1e-9, atol=1e-12)


def test_a_kill_at_any_write_loses_nothing_committed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Fail at one file write after another; the store is whole up to its last block and resumes to the same hash."""
    small_shards(monkeypatch)
    blocks = [make_block(0, 3), make_block(3, 2)]
    ends = [0, 3, 5]
    from zarr.storage import _local

    put, left = _local._put, [10**9]

    def failing_put(*args: Any, **kwargs: Any) -> int:
        left[0] -= 1
        if left[0] < 0:
            raise OSError(28, "No space left on device")
        return put(*args, **kwargs)

    monkeypatch.setattr(_local, "_put", failing_put)
    expected = fill(tmp_path / "reference.zarr", blocks).content_hash
    writes = 10**9 - left[0]
    path = tmp_path / "a.zarr"
    seen = set()
    for survived in range(1, writes, 4):  # a stride for time's sake; all of them pass
        left[0] = survived
        with pytest.raises(EbmtrajError, match="No space left on device"):
            fill(path, blocks, overwrite=True)  # over the finished store of the round before
        left[0] = 10**9
        episodes = Store.open(path).episodes
        seen.add(episodes)
        opened = Store.open(path)
        assert not opened.complete or opened.content_hash == expected  # nothing left to do but to trim its arrays
        assert episodes in ends
        assert verify(path)["ok"]
        if episodes:
            np.testing.assert_array_equal(Store.open(path).read_all()[0], make_block(0, episodes).state)
        writer = StoreWriter.resume(path, RECIPE)
        for block in blocks[ends.index(episodes) :]:
            writer.append_block(block)
        assert writer.finish().content_hash == expected
        assert verify(path)["ok"]
    assert seen == set(ends)


def test_a_finished_store_can_be_extended(tmp_path: Path) -> None:
    path = tmp_path / "a.zarr"
    fill(path, [make_block(0, 4)])
    writer = StoreWriter.resume(path, RECIPE)
    writer.append_block(make_block(4, 3))
    assert not Store.open(path).complete
    assert Store.open(path).content_hash is None
    with pytest.raises(EbmtrajError, match="not finished"):
        _ = Store.open(path).statistics
    assert writer.finish().content_hash == fill(tmp_path / "b.zarr", [make_block(0, 7)]).content_hash


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"seed": 8}, "seed = 7, not 8"),
        ({"policy": {"name": "random", "scale": 0.5}}, "policy.scale = 0.8, not 0.5"),
        ({"env_attributes": {"mujoco_version": "3.3.0"}}, 'env_attributes.mujoco_version = "4.0.0", not "3.3.0"'),
        ({"split_seed": 1}, "split.seed = 0, not 1"),
        ({"steps": None}, "steps = 40, not null"),
        (
            {"state_fields": (replace(RECIPE.state_fields[0], unit="mm"), *RECIPE.state_fields[1:])},
            f'state_fields.{RECIPE.state_fields[0].name}.unit = "{RECIPE.state_fields[0].unit}", not "mm"',
        ),
        ({"action_fields": (Field("other", 99),)}, 'not [{"name": "other", "size": 99'),
    ],
)
def test_resume_refuses_another_recipe(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    fill(tmp_path / "a.zarr", [make_block(0, 1)])
    StoreWriter.resume(tmp_path / "a.zarr", RECIPE)
    with pytest.raises(EbmtrajError) as caught:
        StoreWriter.resume(tmp_path / "a.zarr", replace(RECIPE, **change))
    assert message in str(caught.value)


def damaged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Path, Store]:
    small_shards(monkeypatch)
    path = tmp_path / "a.zarr"
    return path, fill(path, [make_block(i, 3, [15, 15, 15]) for i in range(0, 15, 3)])  # 48 state rows a block


@pytest.mark.parametrize("array", ["state", "action"])
@pytest.mark.parametrize("damage", ["flip", "truncate", "empty", "missing"])
def test_damaged_shards_are_named(array: str, damage: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, _ = damaged(tmp_path, monkeypatch)
    shard = shard_files(path, array)[1]  # rows 64 to 127
    content = bytearray(shard.read_bytes())
    if damage == "missing":
        shard.unlink()
    else:
        content[40] ^= 1
        shard.write_bytes({"flip": content, "truncate": content[:-50], "empty": bytearray()}[damage])
    report = verify(path)
    assert not report["ok"]
    assert report["content_hash"] is None
    rows = 48 if array == "state" else 45
    touched = {64 // rows, 127 // rows}  # first and last block in that shard; a flipped byte hits its first chunk only
    assert {entry["block"] for entry in report["bad_blocks"]} == (
        {64 // rows, 95 // rows} if damage == "flip" else set(range(min(touched), max(touched) + 1))
    )
    for entry in report["bad_blocks"]:
        assert entry["array"] == array
        assert entry["episodes"] == [3 * entry["block"], 3 * entry["block"] + 2]
        assert "\n" not in entry["reason"]
    with pytest.raises(EbmtrajError, match=rf"a\.zarr: array {array}") as caught:
        Store.open(path).read_all()
    assert "\n" not in str(caught.value)
    np.testing.assert_array_equal(Store.open(path).episode(0).state, make_block(0, 1, [15]).state)  # the rest is there


@pytest.mark.parametrize("array", ["length", "seed", "terminated", "digest", "block"])
def test_damaged_episode_arrays_are_named(array: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, _ = damaged(tmp_path, monkeypatch)
    shard = shard_files(path, f"episode/{array}")[-1]
    content = bytearray(shard.read_bytes())
    content[3] ^= 1
    shard.write_bytes(content)
    report = verify(path)
    assert not report["ok"]
    assert f"episode/{array}" in json.dumps(report["bad_blocks"])
    shard.unlink()
    assert not verify(path)["ok"]


def test_changed_numbers_and_attributes_are_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, store = damaged(tmp_path, monkeypatch)
    group: Any = zarr.open_group(path, mode="r+")
    group["state"][100, 1] += 1.0  # a well-formed write, as a careless script would do
    report = verify(path)
    assert [entry["block"] for entry in report["bad_blocks"]] == [2]
    assert report["bad_blocks"][0]["episodes"] == [6, 6]
    group["state"][100, 1] = make_block(0, 15, [15] * 15).state[100, 1]
    assert verify(path)["content_hash"] == store.content_hash
    group.attrs["seed"] = 8
    report = verify(path)
    assert not report["ok"]
    assert report["bad_blocks"][0]["array"] == "attributes"


def test_numbers_that_are_not_finite_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, _ = damaged(tmp_path, monkeypatch)
    block = make_block(15, 3, [15, 15, 15])
    writer = StoreWriter.resume(path, RECIPE)
    for name, row, column, message in (
        ("state", 16 + 4, 1, "state field joint.b of episode 16 is nan at step 4"),
        ("action", 0, 1, r"action field torque\[1\] of episode 15 is nan at step 0"),
    ):
        values = getattr(block, name).copy()
        values[row, column] = np.nan
        with pytest.raises(EbmtrajError, match=message):
            writer.append_block(replace(block, **{name: values}))
    assert Store.open(path).episodes == 15
    group: Any = zarr.open_group(path, mode="r+")
    group["state"][4 * 16 + 2, 2] = np.inf
    with pytest.raises(EbmtrajError, match=r"state field height\[0\] of episode 4 is inf at step 2"):
        Store.open(path).read_states([4])
    assert [entry["block"] for entry in verify(path)["bad_blocks"]] == [1]


def test_blocks_of_wrong_shape_are_refused(tmp_path: Path) -> None:
    block = make_block(0, 2, [3, 4])
    for change, message in (
        ({"state": block.state[:-1]}, "state has shape"),
        ({"action": block.action[:, 0]}, "action has shape"),
        ({"seed": block.seed[:1]}, "seed has shape"),
        ({"length": np.array([0, 7])}, "at least one step"),
    ):
        with pytest.raises(EbmtrajError, match=message):
            replace(block, **change)
    writer = StoreWriter.create(tmp_path / "a.zarr", RECIPE)
    with pytest.raises(EbmtrajError, match="action has 1 columns"):
        writer.append_block(replace(block, action=block.action[:, :1]))
    with pytest.raises(EbmtrajError, match="holds no episodes"):
        writer.finish()


def test_overwrite_replaces_stores_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "a.zarr"
    fill(path, [make_block(0, 5)])
    with pytest.raises(EbmtrajError, match="--resume to go on with it or --overwrite"):
        StoreWriter.create(path, RECIPE)
    assert Store.open(path).episodes == 5
    writer = StoreWriter.create(path, replace(RECIPE, seed=9), overwrite=True)
    writer.append_block(make_block(5, 2))
    assert writer.finish().episodes == 2
    np.testing.assert_array_equal(Store.open(path).read_all()[0], make_block(5, 2).state)

    folder = tmp_path / "thesis"
    folder.mkdir()
    (folder / "chapter.txt").write_text("work of years")
    file = tmp_path / "file"
    file.write_text("more")
    other = tmp_path / "other.zarr"
    zarr.create_group(other, zarr_format=3, attributes={"mine": True})
    for taken in (folder, file, other):
        for overwrite in (False, True):
            with pytest.raises(EbmtrajError, match="not a trajectory store"):
                StoreWriter.create(taken, RECIPE, overwrite=overwrite)
        with pytest.raises(EbmtrajError, match="not a trajectory store"):
            Store.open(taken)
    assert (folder / "chapter.txt").read_text() == "work of years"
    assert zarr.open_group(other, mode="r").attrs.asdict() == {"mine": True}
    (tmp_path / "empty").mkdir()
    StoreWriter.create(tmp_path / "empty", RECIPE)


def test_what_cannot_be_opened_is_said_in_one_line(tmp_path: Path) -> None:
    with pytest.raises(EbmtrajError, match=r"no\.zarr does not exist; make it first"):
        Store.open(tmp_path / "no.zarr")
    with pytest.raises(EbmtrajError, match=r"no\.zarr does not exist; make it first"):
        verify(tmp_path / "no.zarr")
    assert not (tmp_path / "no.zarr").exists()
    for url in ("nosuchprotocol://a/b", "memory://nothing/here"):
        with pytest.raises(EbmtrajError) as caught:
            Store.open(url)
        assert "\n" not in str(caught.value)
        assert url in str(caught.value)

    path = tmp_path / "a.zarr"
    fill(path, [make_block(0, 5)])
    metadata = path / "zarr.json"
    good = metadata.read_text()
    for text, message in (
        (good.replace('"schema": 1', '"schema": 2'), "schema 2.*update ebmtraj"),
        (good[:200], "attributes are damaged"),
        (good.replace('"committed"', '"comitted"'), "attributes are damaged"),
    ):
        assert text != good
        metadata.write_text(text)
        for function in (Store.open, verify):
            with pytest.raises(EbmtrajError, match=message) as caught:
                function(path)
            assert "\n" not in str(caught.value)
    metadata.write_text(good)
    (path / "action" / "zarr.json").unlink()
    with pytest.raises(EbmtrajError, match="array action is missing or damaged"):
        Store.open(path).read_all()
    assert not verify(path)["ok"]


def test_recipes_must_be_plain(tmp_path: Path) -> None:
    with pytest.raises(EbmtrajError, match="not plain JSON"):
        StoreWriter.create(tmp_path / "a.zarr", replace(RECIPE, policy={"net": object()}))
    assert is_vacant(tmp_path / "a.zarr")
    StoreWriter.create(tmp_path / "a.zarr", replace(RECIPE, policy={"gains": np.arange(3), "k": np.float32(0.5)}))
    assert Store.open(tmp_path / "a.zarr").attributes["policy"] == {"gains": [0, 1, 2], "k": 0.5}
