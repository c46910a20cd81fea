"""Data in and out: what leaves in another format comes back to the bit, read by the formats' own libraries."""

from __future__ import annotations

import json
import sys
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import minari
import numpy as np
import pyarrow.parquet as pq
import pytest
import zarr
from commands import call
from gymnasium import spaces
from minari.data_collector.episode_buffer import EpisodeBuffer

from ebmtraj.datasets.blocks import SPLITS, EpisodeBlock, StoreRecipe
from ebmtraj.datasets.interchange import lerobot as lerobot_module
from ebmtraj.datasets.interchange import source as source_module
from ebmtraj.datasets.interchange.described import Given, recipe_of
from ebmtraj.datasets.interchange.formats import EXPORTS, IMPORTS, export_store, import_store
from ebmtraj.datasets.interchange.stores import merge_stores, split_store
from ebmtraj.datasets.store import Store
from ebmtraj.datasets.verify import verify
from ebmtraj.datasets.writer import StoreWriter
from ebmtraj.errors import EbmtrajError
from ebmtraj.fields import Field

RECIPE = StoreRecipe(
    env="toy",
    control_timestep=0.04,
    state_fields=(
        Field("joint", 2, "angle", "rad", low=(-1.5, -2.0), high=(1.5, 2.0), entries=("a", "b")),
        Field("cube", 4, "quaternion", entries=("w", "x", "y", "z")),
    ),
    action_fields=(Field("torque", 2, unit="N m", low=(-1.0, -1.0), high=(1.0, 1.0)),),
    policy={"name": "smooth", "scale": 0.8},
    env_kwargs={"size": 3},
    env_attributes={"model_hash": "abc", "mujoco_version": "4.0.0"},
    action_noise="every 4th action random",
    seed=7,
    steps=40,
    split_seed=5,
)
EPISODES = 23


def make_block(first: int = 0, count: int = EPISODES) -> EpisodeBlock:
    """Episodes of different length whose content is a function of their number."""
    states, actions, lengths = [], [], []
    for episode in range(first, first + count):
        rng = np.random.default_rng(episode)
        lengths.append(int(rng.integers(1, 30)))
        states.append(rng.normal(size=(lengths[-1] + 1, 6)))
        actions.append(rng.uniform(-1, 1, size=(lengths[-1], 2)))
    length = np.array(lengths)
    seeds = np.arange(first, first + count, dtype=np.uint64) + np.uint64(2**63)
    return EpisodeBlock(np.concatenate(states), np.concatenate(actions), length, seeds, length < 16)


def fill(path: Path | str, block: EpisodeBlock, recipe: StoreRecipe = RECIPE) -> Store:
    writer = StoreWriter.create(path, recipe)
    writer.append_block(block)
    return writer.finish()


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Store:
    """A store of which everything reads, and writes, several blocks."""
    monkeypatch.setattr(source_module, "BLOCK_ROWS", 90)
    spans = Store.spans
    monkeypatch.setattr(Store, "spans", lambda self, rows=0: spans(self, 90))
    made = fill(tmp_path / "toy.zarr", make_block())
    assert len(list(made.spans())) > 3
    return made


def same(one: Store, other: Store) -> None:
    assert one.content_hash == other.content_hash
    assert recipe_of(one).attributes() == recipe_of(other).attributes()
    for a, b in zip(one.read_all(), other.read_all(), strict=True):
        np.testing.assert_array_equal(a, b)
    np.testing.assert_array_equal(one.splits, other.splits)
    assert verify(other.path)["ok"]


def one_line(result: tuple[int, str, str], *words: str) -> None:
    code, out, err = result
    assert (code, out) == (2, ""), err
    assert err.startswith("error: ")
    assert err.count("\n") == 1
    for word in words:
        assert word in err


# --- Round trips ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("form", "name"), [("minari", "toy-v0"), ("npz", "toy.npz")])
def test_round_trip_is_lossless(store: Store, tmp_path: Path, form: str, name: str) -> None:
    made = export_store(store.path, tmp_path / "out" / name, form)
    assert (made.episodes, made.transitions) == (EPISODES, store.transitions)
    back = import_store(made.path, str(tmp_path / "back.zarr"), form)
    assert back.content_hash == store.content_hash
    assert back.notes == ()
    same(store, Store.open(tmp_path / "back.zarr"))
    assert [each.name for each in (tmp_path / "out").iterdir()] == [name]  # nothing temporary is left


def test_hand_round_trip_by_command(hand_store: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    truth = Store.open(hand_store)
    for form, name in (("minari", "hand-v0"), ("npz", "hand.npz"), ("lerobot", "hand")):
        code, out, err = call(capfd, "data", "export", hand_store, tmp_path / name, "--format", form, "--json")
        assert code == 0, err
        assert json.loads(out) == {
            "store": str(hand_store),
            "format": form,
            "out": str(tmp_path / name),
            "episodes": 20,
            "transitions": truth.transitions,
            "notes": [],
        }
        if form in IMPORTS:
            back = tmp_path / f"{form}.zarr"
            code, out, err = call(capfd, "data", "import", tmp_path / name, back, "--format", form, "--json")
            assert code == 0, err
            assert json.loads(out)["content_hash"] == truth.content_hash
            same(truth, Store.open(back))


def test_exports_are_the_same_bytes_each_time(store: Store, tmp_path: Path) -> None:
    for name in ("a.npz", "b.npz"):
        export_store(store.path, tmp_path / name, "npz")
    assert (tmp_path / "a.npz").read_bytes() == (tmp_path / "b.npz").read_bytes()


# --- Minari ---------------------------------------------------------------------------------------------------------


def test_minari_reads_the_export(store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path / "minari"))
    export_store(store.path, tmp_path / "minari" / "toy-v3", "minari")
    assert list(minari.list_local_datasets()) == ["toy-v3"]
    loaded = minari.load_dataset("toy-v3")
    assert (loaded.total_episodes, loaded.total_steps, loaded.id) == (EPISODES, store.transitions, "toy-v3")
    assert loaded.observation_space.shape == (6,)
    np.testing.assert_array_equal(loaded.observation_space.low, np.float32([-1.5, -2, *[-np.inf] * 4]))
    np.testing.assert_array_equal(loaded.action_space.high, np.float32([1, 1]))
    for i, episode in enumerate(loaded.iterate_episodes()):
        truth = store.episode(i)
        np.testing.assert_array_equal(episode.observations, truth.state)
        np.testing.assert_array_equal(episode.actions, truth.action)
        assert episode.observations.dtype == np.float32
        assert episode.terminations[-1] == truth.terminated
        assert episode.truncations[-1] != truth.terminated
        assert not episode.terminations[:-1].any()
        assert not episode.truncations[:-1].any()
    description = loaded.storage.metadata["description"]
    assert all(word in description for word in ("joint.a", "cube.w", "torque[1]", "N m", "w, x, y, z"))


def test_minari_name_without_a_version(store: Store, tmp_path: Path) -> None:
    made = export_store(store.path, tmp_path / "my data", "minari")
    assert minari.MinariDataset(tmp_path / "my data" / "data").id == "my-data-v0"
    assert "my-data-v0" in made.notes[0]


def minari_data(
    path: Path, states: list[Any], actions: list[Any], observation_space: spaces.Space[Any] | None = None, **more: Any
) -> Path:
    """A data set as Minari itself makes it."""
    buffers = []
    for state, action in zip(states, actions, strict=True):
        count = len(action)
        ended = [False] * (count - 1) + [True]
        buffers.append(
            EpisodeBuffer(
                observations=state,
                actions=action,
                rewards=[0.5] * count,
                terminations=more.get("terminations", ended),
                truncations=[False] * count,
            )
        )
    with pytest.MonkeyPatch.context() as patch, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it wants to be told more of the data
        patch.setenv("MINARI_DATASETS_PATH", str(path))
        minari.create_dataset_from_buffers(
            "ours/test-v0",
            buffers,
            observation_space=observation_space or spaces.Box(-np.inf, np.inf, (3,), np.float64),
            action_space=spaces.Box(-1, 1, (2,), np.float32),
            algorithm_name="a",
        )
    return path / "ours" / "test-v0"


def test_minaris_own_data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)
    lengths = (4, 1, 9)
    states = [rng.normal(size=(n + 1, 3)) for n in lengths]
    actions = [rng.uniform(-1, 1, size=(n, 2)).astype(np.float32) for n in lengths]
    folder = minari_data(tmp_path / "m", states, actions)
    made = import_store(str(folder), str(tmp_path / "s.zarr"), "minari", Given(control_timestep=0.05))
    read = Store.open(tmp_path / "s.zarr")
    np.testing.assert_array_equal(read.lengths, lengths)
    np.testing.assert_array_equal(read.read_all()[0], np.concatenate(states).astype(np.float32))
    np.testing.assert_array_equal(read.read_all()[1], np.concatenate(actions))
    assert read.terminated.all()
    assert read.control_timestep == 0.05
    assert read.action_fields == (Field("action", 2, low=(-1.0, -1.0), high=(1.0, 1.0)),)
    said = " ".join(made.notes)
    assert "float64" in said
    assert "rewards" in said
    assert "seed" in said
    # by id, from the local Minari folder
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path / "m"))
    again = import_store("ours/test-v0", str(tmp_path / "t.zarr"), "minari", Given(control_timestep=0.05))
    assert again.content_hash == made.content_hash


def test_minari_bad_data(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    def attempt(name: str, *more: Any, **kwargs: Any) -> tuple[int, str, str]:
        folder = minari_data(tmp_path / name, *more, **kwargs)
        return call(capfd, "data", "import", folder, tmp_path / "s.zarr", "--format", "minari")

    good, action = np.zeros((4, 3)), np.zeros((3, 2), np.float32)
    bad = good.copy()
    bad[2, 1] = np.nan
    one_line(attempt("nan", [good, bad], [action, action]), "episode 1", "state[1]", "nan at step 2")
    one_line(attempt("huge", [good + 1e300], [action]), "inf")
    one_line(attempt("fit", [good, good], [action, action[:1]]), "episode 1 has 1 actions and 4 states")
    one_line(attempt("wide", [np.zeros((4, 5))], [action]), "(4, 5)", "expected (steps, 3)")
    several = spaces.Dict({"a": spaces.Box(-1, 1, (3,)), "b": spaces.Box(-1, 1, (2,))})
    parts = {"a": np.zeros((4, 3)), "b": np.zeros((4, 2))}
    one_line(attempt("dict", [parts], [action], several), "space Dict", "only Box")
    image = spaces.Box(0, 255, (4, 5), np.float32)
    one_line(attempt("image", [np.zeros((4, 4, 5))], [action], image), "(4, 5)", "only vectors")
    one_line(attempt("on", [good], [action], terminations=[True, False, False]), "goes on after it terminated at step 0")
    assert not (tmp_path / "s.zarr").exists()
    one_line(call(capfd, "data", "import", tmp_path / "none", tmp_path / "s.zarr", "--format", "minari"), "none")


def test_minari_environment_is_never_made(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    folder = minari_data(tmp_path / "m", [np.zeros((2, 3))], [np.zeros((1, 2), np.float32)])
    file = folder / "data" / "metadata.json"
    values = json.loads(file.read_text())
    del values["observation_space"]
    values["env_spec"] = json.dumps({"id": "X-v0", "entry_point": "antigravity:geohash"})
    file.write_text(json.dumps(values))
    one_line(call(capfd, "data", "import", folder, tmp_path / "s.zarr", "--format", "minari"), "observation_space")
    assert "antigravity" not in sys.modules


# --- LeRobot --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("small", [False, True])
def test_lerobot_layout(store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, small: bool) -> None:
    if small:
        monkeypatch.setattr(lerobot_module, "FILE_MB", 0.004)
        monkeypatch.setattr(lerobot_module, "CHUNK_FILES", 2)
    out = tmp_path / "lerobot"
    export_store(store.path, out, "lerobot")
    info = json.loads((out / "meta" / "info.json").read_text())
    assert info["codebase_version"] == "v3.0"
    assert (info["total_episodes"], info["total_frames"], info["fps"]) == (EPISODES, store.transitions, 25)
    assert info["features"]["observation.state"]["names"][:3] == ["joint.a", "joint.b", "cube.w"]
    files = sorted((out / "data").glob("*/*.parquet"))
    assert (len(files) > 3) == small
    assert files[0] == out / "data" / "chunk-000" / "file-000.parquet"
    tables = {file: pq.read_table(file) for file in files}
    episodes = [
        row for file in sorted((out / "meta" / "episodes").glob("*/*.parquet")) for row in pq.read_table(file).to_pylist()
    ]
    assert [row["episode_index"] for row in episodes] == list(range(EPISODES))

    states, actions, index = [], [], 0
    for row, truth in zip(episodes, map(store.episode, range(EPISODES)), strict=True):
        assert (row["dataset_from_index"], row["dataset_to_index"]) == (index, index + row["length"])
        index += row["length"]
        file = out / info["data_path"].format(chunk_index=row["data/chunk_index"], file_index=row["data/file_index"])
        frames = tables[file].filter(np.equal(tables[file]["episode_index"], row["episode_index"])).to_pydict()
        assert frames["index"] == list(range(row["dataset_from_index"], row["dataset_to_index"]))
        assert frames["frame_index"] == list(range(row["length"]))
        np.testing.assert_allclose(frames["timestamp"], np.arange(row["length"]) / 25, rtol=1e-6)
        assert frames["next.done"][-1] == truth.terminated == row["ebmtraj/terminated"]
        assert frames["next.truncated"][-1] != truth.terminated
        assert not any(frames["next.done"][:-1] + frames["next.truncated"][:-1])
        states.append(np.float32([*frames["observation.state"], row["ebmtraj/final_state"]]))
        actions.append(np.float32(frames["action"]))
        assert (row["ebmtraj/seed"], row["ebmtraj/split"]) == (truth.seed, SPLITS[store.splits[row["episode_index"]]])
        np.testing.assert_allclose(row["stats/action/std"], actions[-1].astype(float).std(0), atol=1e-12)
    np.testing.assert_array_equal(np.concatenate(states), store.read_all()[0])
    np.testing.assert_array_equal(np.concatenate(actions), store.read_all()[1])

    first = pq.ParquetFile(files[0])
    assert str(first.schema_arrow.field("observation.state").type) == "fixed_size_list<element: float>[6]"
    assert first.metadata.num_row_groups == len(set(tables[files[0]]["episode_index"].to_pylist()))
    frames_of = np.concatenate([s[:-1] for s in states]).astype(float)
    stats = json.loads((out / "meta" / "stats.json").read_text())["observation.state"]
    for key, value in (("mean", frames_of.mean(0)), ("std", frames_of.std(0)), ("max", frames_of.max(0))):
        np.testing.assert_allclose(stats[key], value, rtol=1e-9)
    assert stats["count"] == [store.transitions]
    assert json.loads((out / "meta" / "ebmtraj.json").read_text())["content_hash"] == store.content_hash
    tasks = pq.read_table(out / "meta" / "tasks.parquet")
    assert tasks.to_pylist() == [{"task_index": 0, "task": "toy"}]
    assert json.loads(tasks.schema.metadata[b"pandas"])["index_columns"] == ["task"]


# --- diffusion_policy -----------------------------------------------------------------------------------------------


def buffer(path: Path, ends: list[int], zarr_format: Any = 2, **arrays: Any) -> Path:
    """A replay buffer as diffusion_policy writes it."""
    root = zarr.create_group(path, zarr_format=zarr_format)
    data, meta = root.create_group("data"), root.create_group("meta")
    for name, values in arrays.items():
        data.create_array(name, data=np.asarray(values), chunks=(7, *np.shape(values)[1:]))
    meta.create_array("episode_ends", data=np.asarray(ends, np.int64))
    return path


@pytest.mark.parametrize("kind", ["format 2", "format 3", "zip", "url"])
def test_diffusion_policy(tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ebmtraj.datasets.interchange.diffusion_policy.BLOCK_ROWS", 10)
    rng = np.random.default_rng(1)
    ends = [5, 6, 20, 33]  # the second episode has one row: no transition
    state, action = rng.normal(size=(33, 3)).astype(np.float32), rng.normal(size=(33, 2)).astype(np.float32)
    path: Any = buffer(tmp_path / "replay.zarr", ends, 3 if kind == "format 3" else 2, state=state, action=action)
    if kind == "zip":
        import shutil

        path = Path(shutil.make_archive(str(tmp_path / "replay.zarr"), "zip", path))
    elif kind == "url":
        path = path.as_uri()
    made = import_store(str(path), str(tmp_path / "s.zarr"), "diffusion-policy", Given(control_timestep=0.1))
    read = Store.open(tmp_path / "s.zarr")
    np.testing.assert_array_equal(read.lengths, [4, 13, 12])
    keep = np.delete(np.arange(33), 5)
    np.testing.assert_array_equal(read.read_all()[0], state[keep])
    np.testing.assert_array_equal(read.read_all()[1], np.delete(action, [4, 5, 19, 32], axis=0))
    np.testing.assert_array_equal(read.seeds, [0, 2, 3])  # their numbers in the source
    assert not read.terminated.any()
    said = " ".join(made.notes)
    assert "last action of each" in said
    assert "1 of 4 episodes have no transition" in said


def test_diffusion_policy_bad_data(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    state, action = np.zeros((9, 3)), np.zeros((9, 2))

    def attempt(name: str, ends: list[int], *options: str, **arrays: Any) -> tuple[int, str, str]:
        path = buffer(tmp_path / name, ends, **arrays)
        return call(capfd, "data", "import", path, tmp_path / "s.zarr", "--format", "diffusion-policy", *options)

    one_line(attempt("none", [9], action=action), "data/state", "data/action")
    one_line(attempt("image", [9], state=np.zeros((9, 4, 4)), action=action), "(9, 4, 4)")
    one_line(attempt("fit", [9], state=state, action=action[:8]), "8 actions do not fit 9 states")
    one_line(attempt("ends", [4, 8], state=state, action=action), "ends at row 8", "9 rows")
    one_line(attempt("order", [6, 4, 9], state=state, action=action), "ascending")
    nan = state.copy()
    nan[7, 2] = np.nan
    one_line(attempt("nan", [4, 9], state=nan, action=action), "episode 1", "state[2]", "step 3")
    text = np.array(["a"] * 9)
    one_line(attempt("text", [9], "--state-key", "words", words=text, action=action), "data/words")
    one_line(attempt("short", [1, 2], state=state[:2], action=action[:2]), "no episode with a transition")
    one_line(
        call(capfd, "data", "import", tmp_path / "no", tmp_path / "s", "--format", "diffusion-policy"), "does not exist"
    )
    assert not (tmp_path / "s.zarr").exists()


def test_pickled_chunks_are_refused(tmp_path: Path) -> None:
    path = buffer(tmp_path / "replay.zarr", [4], state=np.zeros((4, 3)), action=np.zeros((4, 2)))
    file = path / "data" / "state" / ".zarray"
    values = json.loads(file.read_text())
    values["filters"] = [{"id": "pickle", "protocol": 5}]
    file.write_text(json.dumps(values))
    with pytest.raises(EbmtrajError, match="pickle"):
        import_store(str(path), str(tmp_path / "s.zarr"), "diffusion-policy")


# --- npz ------------------------------------------------------------------------------------------------------------


def test_npz_of_a_user(tmp_path: Path) -> None:
    rng = np.random.default_rng(2)
    state, action = rng.normal(size=(4, 6, 3)).astype(np.float32), rng.normal(size=(4, 5, 2)).astype(np.float32)
    shapes = {
        "stacked": {"states": state, "actions": action},
        "fortran": {"states": np.asfortranarray(state), "actions": np.asfortranarray(action)},
        "flat": {"observations": state.reshape(-1, 3), "action": action.reshape(-1, 2), "length": np.full(4, 5)},
    }
    hashes = set()
    for name, arrays in shapes.items():
        np.savez_compressed(tmp_path / f"{name}.npz", **arrays)
        made = import_store(str(tmp_path / f"{name}.npz"), str(tmp_path / f"{name}.zarr"), "npz")
        hashes.add(made.content_hash)
        assert any("--control-timestep" in note for note in made.notes)
        np.testing.assert_array_equal(Store.open(made.path).read_all()[0], state.reshape(-1, 3))
    assert len(hashes) == 1
    np.savez(tmp_path / "one.npz", s=state[0], a=action[0])
    given = Given("my-env", 0.02, (Field("q", 3, "angle", "rad"),), (Field("u", 2),), "s", "a")
    import_store(str(tmp_path / "one.npz"), str(tmp_path / "one.zarr"), "npz", given)
    one = Store.open(tmp_path / "one.zarr")
    assert (one.episodes, one.transitions, one.attributes["env"]) == (1, 5, "my-env")
    assert one.state_fields == given.state_fields


def test_npz_fields_by_command(tmp_path: Path, store: Store, capfd: pytest.CaptureFixture[str]) -> None:
    """What `data info --json` prints says what the numbers of another file are."""
    np.savez(tmp_path / "a.npz", state=np.ones((3, 6)), action=np.ones((2, 2)))
    (tmp_path / "fields.json").write_text(call(capfd, "data", "info", store.path, "--json")[1])
    common = ("data", "import", tmp_path / "a.npz", tmp_path / "s.zarr", "--format", "npz")
    assert call(capfd, *common, "--fields", tmp_path / "fields.json", "--control-timestep", "0.1")[0] == 0
    assert Store.open(tmp_path / "s.zarr").state_fields == RECIPE.state_fields
    (tmp_path / "bad.json").write_text(
        '{"state_fields": [{"name": "x", "size": 2}], "action_fields": [{"name": "u", "size": 2}]}'
    )
    one_line(call(capfd, *common, "--overwrite", "--fields", tmp_path / "bad.json"), "6 numbers", "make up 2", "--fields")
    (tmp_path / "bad.json").write_text("[]")
    one_line(call(capfd, *common, "--overwrite", "--fields", tmp_path / "bad.json"), "bad.json")
    one_line(call(capfd, *common, "--overwrite", "--fields", tmp_path / "none.json"), "none.json")
    one_line(call(capfd, *common, "--overwrite", "--control-timestep", "-1"), "--control-timestep")


BAD_NPZ = {
    "nan": ({"state": [[0.0, np.nan], [0, 0]], "action": [[0.0]]}, ("state[1]", "nan at step 0")),
    "actions": ({"state": np.zeros((5, 2)), "action": np.zeros((5, 1))}, ("do not fit", "length")),
    "stacked": ({"state": np.zeros((2, 5, 2)), "action": np.zeros((2, 5, 1))}, ("do not fit",)),
    "mixed": ({"state": np.zeros((2, 5, 2)), "action": np.zeros((8, 1))}, ("(2, 5, 2)", "(8, 1)")),
    "vector": ({"state": np.zeros(5), "action": np.zeros((4, 1))}, ("(5,)",)),
    "image": ({"state": np.zeros((2, 5, 4, 4)), "action": np.zeros((2, 4, 1))}, ("(2, 5, 4, 4)",)),
    "text": ({"state": [["a"], ["b"]], "action": [[0.0]]}, ("<U1", "only numbers")),
    "lengths": ({"state": np.zeros((5, 2)), "action": np.zeros((4, 1)), "length": [2, 2]}, ("do not fit",)),
    "negative": ({"state": np.zeros((5, 2)), "action": np.zeros((4, 1)), "length": [5, -1]}, ("length",)),
    "seeds": ({"state": np.zeros((5, 2)), "action": np.zeros((4, 1)), "seed": [1, 2]}, ("seed",)),
    "nothing": ({"a": np.zeros((5, 2))}, ("'state'", "only a")),
    "carried": ({"state": np.zeros((5, 2)), "action": np.zeros((4, 1)), "ebmtraj": "[1"}, ("JSON",)),
    "carried fields": ({"state": np.zeros((5, 2)), "action": np.zeros((4, 1)), "ebmtraj": "{}"}, ("damaged",)),
}


@pytest.mark.parametrize("case", BAD_NPZ)
def test_npz_bad_data(tmp_path: Path, store: Store, capfd: pytest.CaptureFixture[str], case: str) -> None:
    """One line, and a store that was to be replaced is still there."""
    arrays, words = BAD_NPZ[case]
    np.savez(tmp_path / "bad.npz", **{name: np.asarray(value) for name, value in arrays.items()})
    one_line(call(capfd, "data", "import", tmp_path / "bad.npz", store.path, "--format", "npz", "--overwrite"), *words)
    assert Store.open(store.path).content_hash == store.content_hash


def test_npz_objects_are_never_unpickled(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    np.savez(tmp_path / "o.npz", state=np.array([[{}], [{}]], object), action=np.zeros((1, 1)))
    common = ("--format", "npz")
    one_line(call(capfd, "data", "import", tmp_path / "o.npz", tmp_path / "s.zarr", *common), "pickled objects")
    np.savez(tmp_path / "o.npz", state=np.zeros((2, 1)), action=np.zeros((1, 1)), length=np.array([{}], object))
    one_line(call(capfd, "data", "import", tmp_path / "o.npz", tmp_path / "s.zarr", *common), "length")
    (tmp_path / "o.npz").write_bytes(b"no zip")
    one_line(call(capfd, "data", "import", tmp_path / "o.npz", tmp_path / "s.zarr", *common), "o.npz")
    one_line(call(capfd, "data", "import", tmp_path / "none.npz", tmp_path / "s.zarr", *common), "none.npz")


def test_npz_flipped_byte_and_cut_file(store: Store, tmp_path: Path) -> None:
    out = tmp_path / "a.npz"
    export_store(store.path, out, "npz")
    data = bytearray(out.read_bytes())
    data[3000] ^= 1
    out.write_bytes(data)
    with pytest.raises(EbmtrajError, match=r"a\.npz"):
        import_store(str(out), str(tmp_path / "b.zarr"), "npz")
    out.write_bytes(data[: len(data) // 2])
    with pytest.raises(EbmtrajError, match=r"a\.npz"):
        import_store(str(out), str(tmp_path / "b.zarr"), "npz")
    assert not (tmp_path / "b.zarr").exists()


# --- Targets, formats, extras ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(("form", "name"), [("minari", "toy-v0"), ("lerobot", "toy"), ("npz", "toy.npz")])
def test_export_target(store: Store, tmp_path: Path, capfd: pytest.CaptureFixture[str], form: str, name: str) -> None:
    command = ("data", "export", store.path, tmp_path / "o" / name, "--format", form)
    assert call(capfd, *command)[0] == 0
    one_line(call(capfd, *command), "exists", "--overwrite")
    killed = tmp_path / "o" / f".{name}.partial"  # what a killed export leaves
    killed.mkdir()
    (killed / "data").write_text("half")
    assert call(capfd, *command, "--overwrite")[0] == 0
    # what isn't an export is never replaced, nor is anything when the new one fails
    other = tmp_path / "other.npz"
    other.mkdir()
    (other / "thesis.txt").write_text("years")
    one_line(call(capfd, "data", "export", store.path, other, "--format", form, "--overwrite"), "not a", "other.npz")
    assert (other / "thesis.txt").read_text() == "years"

    def fail(*_: Any, **__: Any) -> Any:
        raise OSError(28, "No space left on device")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Store, "rows", fail)
        one_line(call(capfd, *command, "--overwrite"), "No space left")
        one_line(call(capfd, "data", "export", store.path, tmp_path / "p" / name, "--format", form), "No space left")
    assert [each.name for each in (tmp_path / "o").iterdir()] == [name]
    assert list((tmp_path / "p").iterdir()) == []
    if form in IMPORTS:
        assert import_store(str(tmp_path / "o" / name), str(tmp_path / "b.zarr"), form).content_hash == store.content_hash
    one_line(call(capfd, "data", "export", store.path, f"s3://bucket/{name}", "--format", form), "local path")


@pytest.mark.parametrize(
    ("module", "form", "extra"),
    [("minari", "minari", "minari"), ("h5py", "minari", "minari"), ("pyarrow", "lerobot", "lerobot")],
)
def test_missing_extra(
    store: Store,
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    module: str,
    form: str,
    extra: str,
) -> None:
    monkeypatch.setitem(sys.modules, module, None)
    one_line(
        call(capfd, "data", "export", store.path, tmp_path / "x-v0", "--format", form), f"pip install 'ebmtraj[{extra}]'"
    )
    if form in IMPORTS:
        one_line(call(capfd, "data", "import", tmp_path, tmp_path / "s.zarr", "--format", form), f"ebmtraj[{extra}]")


def test_unknown_formats_and_schemes(store: Store, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    one_line(call(capfd, "data", "export", store.path, tmp_path / "x", "--format", "hdf"), "'hdf'", *EXPORTS)
    one_line(call(capfd, "data", "import", tmp_path / "x", tmp_path / "s.zarr", "--format", "lerobot"), *IMPORTS)
    for words in (
        ("export", "nope://a/b", tmp_path / "x.npz", "--format", "npz"),
        ("import", tmp_path / "x.npz", "nope://a/b", "--format", "npz"),
        ("import", "nope://a/b", tmp_path / "s.zarr", "--format", "diffusion-policy"),
        ("merge", "nope://a/b", store.path, tmp_path / "s.zarr"),
        ("split", store.path, "nope://a/b", "--split", "train"),
    ):
        one_line(call(capfd, "data", *words), "unknown URL scheme 'nope'")


def test_unfinished_store_is_not_exported(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    StoreWriter.create(tmp_path / "a.zarr", RECIPE).append_block(make_block())
    one_line(call(capfd, "data", "export", tmp_path / "a.zarr", tmp_path / "a.npz", "--format", "npz"), "not finished")


# --- Killed and resumed ---------------------------------------------------------------------------------------------


class Killed(BaseException):
    pass


@pytest.fixture
def killed_after(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Let `StoreWriter` die before the block whose number is put into the list."""
    left: list[int] = []
    append = StoreWriter.append_block

    def dying(self: StoreWriter, block: EpisodeBlock) -> None:
        if left:
            if left[0] == 0:
                raise Killed
            left[0] -= 1
        append(self, block)

    monkeypatch.setattr(StoreWriter, "append_block", dying)
    return left


@pytest.mark.parametrize("blocks", [0, 1, 3])
def test_killed_import_resumes_to_the_same_bits(
    store: Store, tmp_path: Path, killed_after: list[int], blocks: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    export_store(store.path, tmp_path / "a.npz", "npz")
    target = str(tmp_path / "b.zarr")
    killed_after.append(blocks)
    with pytest.raises(Killed):
        import_store(str(tmp_path / "a.npz"), target, "npz")
    killed_after.clear()
    assert not Store.open(target).complete
    with pytest.raises(EbmtrajError, match="exists"):
        import_store(str(tmp_path / "a.npz"), target, "npz")
    monkeypatch.setattr(source_module, "BLOCK_ROWS", 47)  # blocks that end elsewhere
    made = import_store(str(tmp_path / "a.npz"), target, "npz", resume=True)
    assert made.content_hash == store.content_hash
    same(store, Store.open(target))


def test_resume_from_another_source_is_refused(store: Store, tmp_path: Path, killed_after: list[int]) -> None:
    export_store(store.path, tmp_path / "a.npz", "npz")
    export_store(fill(tmp_path / "c.zarr", make_block(50)).path, tmp_path / "c.npz", "npz")
    killed_after.append(2)
    with pytest.raises(Killed):
        import_store(str(tmp_path / "a.npz"), str(tmp_path / "b.zarr"), "npz")
    killed_after.clear()
    with pytest.raises(EbmtrajError, match="other episodes"):
        import_store(str(tmp_path / "c.npz"), str(tmp_path / "b.zarr"), "npz", resume=True)


# --- Merge and split ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("scheme", ["", "file://", "memory://"])
def test_merge_and_split_on_any_url(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], scheme: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    spans = Store.spans
    monkeypatch.setattr(Store, "spans", lambda self, rows=0: spans(self, 200))
    root = f"{scheme}{tmp_path}"
    near = root if scheme == "memory://" else tmp_path
    first = fill(f"{near}/a.zarr", make_block(0, 15))
    second = fill(f"{near}/b.zarr", make_block(15, 10), replace(RECIPE, policy={"name": "random"}, seed=8))
    code, out, err = call(capfd, "data", "merge", f"{root}/a.zarr", f"{root}/b.zarr", f"{root}/both.zarr", "--json")
    assert code == 0, err
    both = Store.open(f"{root}/both.zarr")
    assert json.loads(out)["content_hash"] == both.content_hash
    whole = make_block(0, 25)
    np.testing.assert_array_equal(both.read_all()[0], whole.state)
    np.testing.assert_array_equal(both.read_all()[1], whole.action)
    np.testing.assert_array_equal(both.seeds, whole.seed)
    np.testing.assert_array_equal(both.terminated, whole.terminated)
    parts = both.attributes["policy"]["parts"]
    assert [part["content_hash"] for part in parts] == [first.content_hash, second.content_hash]
    assert [part["policy"]["name"] for part in parts] == ["smooth", "random"]
    assert both.attributes["env_attributes"] == RECIPE.env_attributes
    assert verify(both.path)["ok"]

    sizes = []
    for split in SPLITS:
        code, out, err = call(capfd, "data", "split", both.path, f"{root}/{split}.zarr", "--split", split, "--json")
        assert code == 0, err
        made, chosen = Store.open(f"{root}/{split}.zarr"), both.split(split)
        np.testing.assert_array_equal(made.read_all()[0], both.read_states(chosen))
        np.testing.assert_array_equal(made.read_all()[1], both.read_actions(chosen))
        np.testing.assert_array_equal(made.seeds, both.seeds[chosen])
        origin = made.attributes["env_attributes"]["part_of"]
        assert (origin["split"], origin["content_hash"]) == (split, both.content_hash)
        sizes.append(made.episodes)
    assert sum(sizes) == 25
    # and through another format and back, from and to such a URL
    export_store(both.path, tmp_path / "both.npz", "npz")
    assert import_store(str(tmp_path / "both.npz"), f"{root}/back.zarr", "npz").content_hash == both.content_hash


def test_merge_and_split_refuse(store: Store, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    other = fill(tmp_path / "b.zarr", make_block(30, 5)).path
    out = tmp_path / "m.zarr"
    one_line(call(capfd, "data", "merge", store.path, out), "two stores")
    one_line(call(capfd, "data", "merge", store.path, store.path, out), "episode 0", "the same")
    one_line(call(capfd, "data", "merge", store.path, other, other, "--overwrite"), "the store that is read")
    one_line(call(capfd, "data", "merge", store.path, other, store.path), "exists")
    for key, value in (
        ("env", "another"),
        ("control_timestep", 0.02),
        ("env_kwargs", {"size": 4}),
        ("action_fields", (Field("torque", 2, unit="N"),)),
    ):
        made = fill(tmp_path / f"{key}.zarr", make_block(40, 3), replace(RECIPE, **{key: value}))
        one_line(call(capfd, "data", "merge", store.path, made.path, out), key)
    made = fill(tmp_path / "model.zarr", make_block(40, 3), replace(RECIPE, env_attributes={"model_hash": "x"}))
    one_line(call(capfd, "data", "merge", store.path, made.path, out), "different models")
    one_line(call(capfd, "data", "split", store.path, out, "--split", "half"), "'half'", *SPLITS)
    one_line(call(capfd, "data", "split", store.path, store.path, "--split", "test", "--overwrite"), "that is read")
    single = fill(tmp_path / "single.zarr", make_block(60, 1))
    empty = next(name for name in SPLITS if not len(single.split(name)))
    one_line(call(capfd, "data", "split", single.path, out, "--split", empty), f"in the {empty} split")
    assert not out.exists()
    assert Store.open(store.path).content_hash == store.content_hash


def plainer(path: Path, store: Store) -> Store:
    """The store as it was before fields told of couplings and symmetry, with other episodes."""
    recipe = recipe_of(store)
    fields = tuple(replace(field, couplings=None, symmetry=None) for field in recipe.state_fields)
    block = store.read_block(0, 5)
    return fill(path, replace(block, state=block.state + np.float32(1e-3)), replace(recipe, state_fields=fields))


def test_couplings_and_symmetry_go_where_the_numbers_go(
    hand_store: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    fields = Store.open(hand_store).state_fields
    assert fields[0].couplings
    assert fields[2].symmetry == "cube"
    for name, split in (("a", "train"), ("b", "test")):
        assert call(capfd, "data", "split", hand_store, tmp_path / f"{name}.zarr", "--split", split)[0] == 0
    assert call(capfd, "data", "merge", tmp_path / "a.zarr", tmp_path / "b.zarr", tmp_path / "ab.zarr")[0] == 0
    for name in ("a", "ab"):
        assert Store.open(tmp_path / f"{name}.zarr").state_fields == fields
    # what a foreign file is told to hold
    (tmp_path / "fields.json").write_text(call(capfd, "data", "info", hand_store, "--json")[1])
    np.savez(tmp_path / "f.npz", state=np.ones((3, 31)), action=np.ones((2, 20)))
    common = ("data", "import", tmp_path / "f.npz", tmp_path / "f.zarr", "--format", "npz", "--fields")
    assert call(capfd, *common, tmp_path / "fields.json")[0] == 0
    assert Store.open(tmp_path / "f.zarr").state_fields == fields
    told = json.loads((tmp_path / "fields.json").read_text())
    told["state_fields"][0]["couplings"][1]["entries"] = [9, 24]
    (tmp_path / "fields.json").write_text(json.dumps(told))
    one_line(call(capfd, *common, tmp_path / "fields.json", "--overwrite"), "fields.json", "T_MFJ1c", "24")
    told["state_fields"][0]["couplings"] = None
    told["state_fields"][2]["symmetry"] = "brick"
    (tmp_path / "fields.json").write_text(json.dumps(told))
    one_line(call(capfd, *common, tmp_path / "fields.json", "--overwrite"), "fields.json", "brick", "'cube'")


def test_stores_whose_fields_tell_more_are_not_merged_with_plainer_ones(
    hand_store: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    plain = plainer(tmp_path / "plain.zarr", Store.open(hand_store))
    for pair in ((hand_store, plain.path), (plain.path, hand_store)):
        result = call(capfd, "data", "merge", *pair, tmp_path / "m.zarr")
        one_line(result, "state_fields.cube_quaternion.symmetry = ", "null", '"cube"', "the same fields")
    assert not (tmp_path / "m.zarr").exists()


def test_merge_resumes(store: Store, tmp_path: Path, killed_after: list[int]) -> None:
    other = fill(tmp_path / "b.zarr", make_block(30, 9)).path
    whole = merge_stores([store.path, other], tmp_path / "whole.zarr")
    killed_after.append(3)
    with pytest.raises(Killed):
        merge_stores([store.path, other], tmp_path / "m.zarr")
    killed_after.clear()
    assert merge_stores([store.path, other], tmp_path / "m.zarr", resume=True).content_hash == whole.content_hash
    part = split_store(store.path, tmp_path / "t.zarr", "train")
    assert split_store(store.path, tmp_path / "t.zarr", "train", overwrite=True).content_hash == part.content_hash
