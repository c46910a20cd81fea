"""What is wrong with what a user gives is said in one line, and nothing is written; what kills a run loses nothing."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import gymnasium
import minari
import numpy as np
import pytest
import zarr
from gymnasium import spaces
from minari.data_collector.episode_buffer import EpisodeBuffer
from zarr.storage import _local

from ebmtraj.cli import app
from ebmtraj.datasets.blocks import EpisodeBlock, StoreRecipe
from ebmtraj.datasets.interchange import minari as minari_module
from ebmtraj.datasets.store import Store
from ebmtraj.datasets.writer import StoreWriter
from ebmtraj.fields import Field

ROOT = Path(__file__).parents[1]
RECIPE = StoreRecipe(
    "toy", 0.1, (Field("x", 3),), (Field("u", 2, low=(-1.0, -1.0), high=(1.0, 1.0)),), {"name": "none"}, seed=1
)


def fill(path: Path | str) -> Store:
    """12 episodes of 5 steps."""
    rng = np.random.default_rng(0)
    writer = StoreWriter.create(path, RECIPE)
    for first in range(0, 12, 3):
        state, action = rng.normal(size=(18, 3)), rng.uniform(-1, 1, (15, 2))
        seeds = np.arange(first, first + 3, dtype=np.uint64)
        writer.append_block(EpisodeBlock(state, action, np.full(3, 5), seeds, np.zeros(3, bool)))  # type: ignore[arg-type]
    return writer.finish()


def call(capfd: pytest.CaptureFixture[str], *words: object) -> tuple[int, str, str]:
    """Run a command in this process: exit code, stdout, stderr."""
    capfd.readouterr()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["ebmtraj", *map(str, words)])
        try:
            app.main()
            code = 0
        except SystemExit as stop:
            code = int(stop.code or 0)
    output = capfd.readouterr()
    return code, output.out, output.err


def contents(folder: Path) -> dict[str, str]:
    """Every file and folder below, with a hash of what it holds."""
    return {
        str(each.relative_to(folder)): hashlib.sha256(each.read_bytes()).hexdigest() if each.is_file() else "folder"
        for each in folder.rglob("*")
        if "__pycache__" not in each.parts
    }


class Touches:
    """An object that leaves a file behind when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return Path.touch, (self.path,)


# --- Sources ------------------------------------------------------------------------------------------------------------


Make = Callable[[Path], object]


def npz(**arrays: Any) -> Make:
    """An npz file of these arrays; what is not given is right."""
    whole: dict[str, Any] = {"state": np.zeros((5, 3)), "action": np.zeros((4, 2)), **arrays}
    return lambda path: np.savez_compressed(path.with_suffix(""), **whole)


def garbled(path: Path) -> None:
    npz(state=np.random.default_rng(0).normal(size=(99, 3)), action=np.zeros((98, 2)))(path)
    data = bytearray(path.read_bytes())
    data[100:140] = b"\xff\x00" * 20  # inside the compressed states
    path.write_bytes(data)


def negative_shape(path: Path) -> None:
    header = "{'descr': '<f8', 'fortran_order': False, 'shape': (-5, 3), }".ljust(117) + "\n"
    with zipfile.ZipFile(path, "w") as file:
        for name in ("state", "action"):
            file.writestr(f"{name}.npy", b"\x93NUMPY\x01\x00\x76\x00" + header.encode())


def pickled(name: str) -> Make:
    return lambda path: npz(**{name: np.array([[Touches(path.with_name("unpickled"))]], object)})(path)


def buffer(ends: Any = (4, 9), fault: Callable[[Path], object] | None = None, **arrays: Any) -> Make:
    """A replay buffer of diffusion_policy; what is not given is right."""
    whole = {"state": np.zeros((9, 3)), "action": np.zeros((9, 2)), **arrays}

    def make(path: Path) -> None:
        root = zarr.create_group(path, zarr_format=2)
        data = root.create_group("data")
        for name, values in whole.items():
            data.create_array(name, data=np.asarray(values), chunks=(7, *np.shape(values)[1:]))
        root.create_group("meta").create_array("episode_ends", data=np.asarray(ends))
        if fault:
            fault(path)

    return make


def dataset(
    states: Any = None,
    actions: Any = None,
    fault: Callable[[Path], object] | None = None,
    space: Any = None,
    episodes: int = 2,
) -> Make:
    """A Minari data set; what is not given is right."""
    states = np.zeros((4, 3)) if states is None else states
    actions = np.zeros((3, 2), np.float32) if actions is None else actions

    def make(path: Path) -> None:
        one = EpisodeBuffer(
            observations=states,
            actions=actions,
            rewards=[0.0] * 3,
            terminations=[False, False, True],
            truncations=[False] * 3,
        )
        with pytest.MonkeyPatch.context() as patch, warnings.catch_warnings():
            warnings.simplefilter("ignore")  # it wants to be told more of the data
            patch.setenv("MINARI_DATASETS_PATH", str(path.parent))
            minari.create_dataset_from_buffers(
                f"{path.name}-v0",
                [one] * episodes,
                observation_space=spaces.Box(-np.inf, np.inf, (3,), np.float64),
                action_space=space or spaces.Box(-1, 1, (2,), np.float32),
                algorithm_name="a",
            )
        path.with_name(f"{path.name}-v0").rename(path)
        if fault:
            fault(path / "data")

    return make


def cut(pattern: str, keep: float) -> Callable[[Path], object]:
    """Cut the first file that matches."""

    def fault(folder: Path) -> None:
        file = next(each for each in sorted(folder.rglob(pattern)) if each.is_file())
        content = file.read_bytes()
        file.write_bytes(content[: int(keep * len(content))])

    return fault


def metadata(**changes: Any) -> Callable[[Path], object]:
    def fault(folder: Path) -> None:
        values = {**json.loads((folder / "metadata.json").read_text()), **changes}
        kept = {key: value for key, value in values.items() if value is not None}
        (folder / "metadata.json").write_text(json.dumps(kept))

    return fault


def with_nan(shape: tuple[int, int], value: float, where: tuple[int, int]) -> np.ndarray:
    values = np.zeros(shape, np.float32)
    values[where] = value
    return values


def fields(state: str) -> Make:
    """A JSON file for --fields."""
    return lambda path: path.write_text(f'{{"state_fields": {state}, "action_fields": [{{"name": "u", "size": 2}}]}}')


# --- The table ----------------------------------------------------------------------------------------------------------


class Case(NamedTuple):
    """A command that must fail; `{here}` is a folder of its own, `{toy}` a sound store, `{made}` what `make` made."""

    words: str
    said: tuple[str, ...]
    make: Make | None = None
    name: str = "made"  # of the file or folder that `make` makes


def importing(form: str, make: Make, *said: str, name: str = "made") -> Case:
    return Case(f"data import {{made}} {{here}}/new.zarr --format {form}", ("made", *said), make, name)


def of_npz(make: Make, *said: str) -> Case:
    return importing("npz", make, *said, name="made.npz")


def of_fields(state: str, *said: str) -> Case:
    words = "data import {npz} {here}/new.zarr --format npz --fields {made}"
    return Case(words, ("--fields", *said), fields(state), "made.json")


NEW = "--episodes 2 --steps 2 --workers 1"
CASES: dict[str, Case] = {
    # where things are
    **{
        f"{name} of an unknown scheme": Case(words, ("foo://bar/x", "unknown URL scheme 'foo'", "use a folder"))
        for name, words in {
            "collect": f"collect foo://bar/x --env Reacher-v5 {NEW}",
            "info": "data info foo://bar/x",
            "verify": "data verify foo://bar/x",
            "show": "data show foo://bar/x",
            "card": "data card foo://bar/x --out {here}/c.html",
            "export": "data export foo://bar/x {here}/o.npz --format npz",
            "train": "train transition --data foo://bar/x --run {here}/run --device cpu",
            "merge to": "data merge {toy} {toy} foo://bar/x",
            "split to": "data split {toy} foo://bar/x --split train",
            "npz": "data import foo://bar/x {here}/new.zarr --format npz",
            "minari": "data import foo://bar/x {here}/new.zarr --format minari",
            "buffer": "data import foo://bar/x {here}/new.zarr --format diffusion-policy",
        }.items()
    },
    "a scheme whose package is missing": Case("data info s3://bucket/x", ("s3://bucket/x", "s3fs")),
    "import to such a scheme": Case("data import {npz} s3://bucket/x --format npz", ("s3://bucket/x", "s3fs")),
    "a URL with one slash": Case("data info s3:/bucket/x", ("two slashes, s3://bucket/x",)),
    "collect to one slash": Case(f"collect file:/x --env Reacher-v5 {NEW}", ("two slashes, file://x",)),
    "no path": Case("data info ''", ("path of a store is empty",)),
    "collect to no path": Case(f"collect '' --env Reacher-v5 {NEW}", ("path of a store is empty",)),
    "npz at a URL": Case("data import s3://b/x.npz {here}/new.zarr --format npz", ("s3://b/x.npz is a URL", "an npz file")),
    "Minari at a URL": Case("data import s3://b/x {here}/new.zarr --format minari", ("s3://b/x is a URL", "Minari")),
    **{
        f"{form} to a URL": Case(f"data export {{toy}} s3://b/x.npz --format {form}", ("s3://b/x.npz", "local path"))
        for form in ("minari", "lerobot", "npz")
    },
    "export to nothing": Case("data export {toy} '' --format lerobot", ("path to write to is empty",)),
    "card to a URL": Case("data card {toy} --out s3://b/c.html", ("s3://b/c.html", "local path")),
    "film to a URL": Case("data show {toy} --video s3://b/c.gif", ("s3://b/c.gif", "local path")),
    "no folder": Case(f"collect {{npz}}/x --env Reacher-v5 {NEW}", ("can't write store", "Not a directory")),
    "export below a file": Case("data export {toy} {npz}/x.npz --format npz", ("can't write", "x.npz")),
    # what is imported
    "npz: no numbers in a state": of_npz(npz(state=np.zeros((5, 0))), "states have no numbers"),
    "npz: no numbers in an action": of_npz(npz(action=np.zeros((4, 0))), "actions have no numbers"),
    "npz: infinite action": of_npz(npz(action=with_nan((4, 2), np.inf, (1, 0))), "action[0]", "inf at step 1"),
    "npz: as many actions as states": of_npz(npz(action=np.zeros((5, 2))), "(5, 2)", "one state more than actions"),
    "npz: empty episodes": of_npz(npz(state=np.zeros((2, 3)), action=np.zeros((0, 2)), length=[0, 0]), "no episode"),
    "npz: no episodes": of_npz(npz(state=np.zeros((0, 3)), action=np.zeros((0, 2)), length=np.zeros(0, int)), "length"),
    "npz: complex": of_npz(npz(state=np.zeros((5, 3), complex)), "complex128", "only numbers"),
    "npz: records": of_npz(npz(state=np.zeros((5, 3), [("a", "f4")])), "only numbers"),
    "npz: garbled": of_npz(garbled, "state", "copy or make the file again"),
    "npz: negative shape": of_npz(negative_shape, "(-5, 3)"),
    **{
        f"npz: pickled {name}": of_npz(pickled(name), name, "plain numbers")
        for name in ("state", "action", "length", "seed")
    },
    "npz: a folder": of_npz(lambda path: path.mkdir(), "can't be read as npz"),
    "npz: empty file": of_npz(lambda path: path.touch(), "can't be read as npz"),
    "npz: no environment": Case("data import {npz} {here}/new.zarr --format npz --env ''", ("--env is empty",)),
    "buffer: infinite action": importing(
        "diffusion-policy", buffer(action=with_nan((9, 2), np.inf, (5, 1))), "episode 1", "action[1]", "inf at step 1"
    ),
    "buffer: empty": importing(
        "diffusion-policy", buffer(np.zeros(0, int), state=np.zeros((0, 3)), action=np.zeros((0, 2))), "episode_ends"
    ),
    "buffer: ends are not whole": importing("diffusion-policy", buffer([4.0, 9.0]), "episode_ends"),
    "buffer: ends are cut": importing(
        "diffusion-policy", buffer(fault=cut("meta/episode_ends/0", 0.05)), "meta/episode_ends", "can't be read"
    ),
    "buffer: a chunk is cut": importing(
        "diffusion-policy", buffer(state=np.ones((9, 3)), fault=cut("data/state/1.0", 0.5)), "data/state", "can't be read"
    ),
    "buffer: a text": importing("diffusion-policy", lambda path: path.write_text("no zarr"), "can't be opened"),
    "buffer: an npz": importing("diffusion-policy", npz(), "can't be opened", name="made.npz"),
    "buffer: an empty folder": importing("diffusion-policy", lambda path: path.mkdir(), "can't be opened"),
    "Minari: infinite action": importing(
        "minari", dataset(actions=with_nan((3, 2), np.inf, (1, 1))), "episode 0", "action[1]", "inf at step 1"
    ),
    "Minari: as many actions as states": importing("minari", dataset(np.zeros((3, 3))), "3 actions and 3 states"),
    "Minari: actions are no Box": importing(
        "minari", dataset(actions=np.array([0, 1, 0]), space=spaces.Discrete(2)), "Discrete", "only Box"
    ),
    "Minari: no episodes": importing("minari", dataset(episodes=0), "no episode"),
    "Minari: cut": importing("minari", dataset(fault=cut("*.hdf5", 0.7)), "can't be read"),
    "Minari: gone": importing("minari", dataset(fault=lambda at: (at / "main_data.hdf5").unlink()), "can't be read"),
    "Minari: no count": importing("minari", dataset(fault=metadata(total_episodes=None)), "total_episodes"),
    "Minari: count is a word": importing("minari", dataset(fault=metadata(total_episodes="many")), "total_episodes"),
    "Minari: more episodes said": importing("minari", dataset(fault=metadata(total_episodes=9)), "can't be read"),
    "Minari: a file": importing("minari", lambda path: path.write_text("x"), "no Minari data set"),
    "fields: a number for a name": of_fields('[{"name": 5, "size": 3}]', "names of fields are [5]"),
    "fields: a name twice": of_fields('[{"name": "a", "size": 1}, {"name": "a", "size": 2}]', "['a', 'a']"),
    "fields: half a size": of_fields('[{"name": "a", "size": 2.5}, {"name": "b", "size": 0.5}]', "size", "2.5"),
    "fields: limits are words": of_fields('[{"name": "a", "size": 3, "low": ["a", "b", "c"]}]', "low", "'a'", "finite"),
    "fields: limits are NaN": of_fields('[{"name": "a", "size": 3, "high": [NaN, 0, 0]}]', "high", "finite"),
    "fields: unknown key": of_fields('[{"name": "a", "size": 3, "colour": 1}]', "colour"),
    "fields: a quaternion of 3": of_fields('[{"name": "a", "size": 3, "kind": "quaternion"}]', "quaternion"),
    # stores
    "split by a fraction": Case("data split {toy} {here}/new.zarr --split 0.8", ("'0.8'", "train, validation, test")),
    "show of an empty store": Case(
        "data show {made}", ("no episode 0", "none yet"), lambda path: StoreWriter.create(path, RECIPE)
    ),
    "export of an empty store": Case(
        "data export {made} {here}/o.npz --format npz", ("not finished",), lambda path: StoreWriter.create(path, RECIPE)
    ),
    "training on an unfinished store": Case(
        "train transition --data {made} --run {here}/run",
        ("not finished", "--resume"),
        lambda path: StoreWriter.create(path, RECIPE),
    ),
    "merge with an unfinished store": Case(
        "data merge {toy} {made} {here}/m.zarr", ("not finished",), lambda path: StoreWriter.create(path, RECIPE)
    ),
    # policies
    "the trained policy elsewhere": Case(
        f"collect {{here}}/new.zarr --env Reacher-v5 --policy trained {NEW}", ("acts on hand-cube", "2 actions", "--policy")
    ),
    "a checkpoint that is none": Case(
        f"collect {{here}}/new.zarr --policy trained --set policy_kwargs.checkpoint={{npz}} {NEW}", ("given.npz", "damaged")
    ),
    "a policy that is missing": Case(
        f"collect {{here}}/new.zarr --env Reacher-v5 --policy json:missing {NEW}", ("no callable 'missing'",)
    ),
    "a policy of no module": Case(
        f"collect {{here}}/new.zarr --env Reacher-v5 --policy no_such_module:f {NEW}", ("can't be imported", "PYTHONPATH")
    ),
}


@pytest.fixture(scope="module")
def toy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("faults") / "toy.zarr"
    fill(path)
    return path


@pytest.mark.parametrize("case", CASES)
def test_bad_input_is_one_line_and_writes_nothing(
    case: str, toy: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    words, said, make, name = CASES[case]
    monkeypatch.chdir(tmp_path)  # a path that is taken for a relative one would show here
    monkeypatch.setitem(sys.modules, "s3fs", None)
    here = {"here": tmp_path, "toy": toy, "made": tmp_path / name, "npz": tmp_path / "given.npz"}
    npz()(here["npz"])
    if make:
        make(here["made"])
    before = contents(tmp_path), contents(toy)
    code, out, err = call(capfd, *("" if word == "''" else word.format(**here) for word in words.split()))
    assert (code, out) == (2, ""), err
    assert err.startswith("error: ")
    assert err.count("\n") == 1, err
    for word in said:
        assert word in err
    assert (contents(tmp_path), contents(toy)) == before


# --- What was wrong once ------------------------------------------------------------------------------------------------


def test_a_path_may_be_relative(
    toy: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for form, name in (("minari", "deep/toy-v0"), ("npz", "deep/toy.npz"), ("lerobot", "deep/toy")):
        assert call(capfd, "data", "export", toy, name, "--format", form)[::2] == (
            0,
            f"{name}: 12 episodes, 60 transitions as {form}\n",
        )
    for form, name in (("minari", "deep/toy-v0"), ("npz", "deep/toy.npz")):
        code, out, err = call(capfd, "data", "import", name, f"{form}.zarr", "--format", form, "--json")
        assert code == 0, err
        assert json.loads(out)["content_hash"] == Store.open(toy).content_hash


def test_chunks_that_have_no_file_are_noted(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    buffer(state=np.ones((9, 3)), action=np.ones((9, 2)), fault=lambda at: (at / "data/state/1.0").unlink())(tmp_path / "b")
    words = ("data", "import", tmp_path / "b", tmp_path / "s.zarr", "--format", "diffusion-policy", "--json")
    code, out, err = call(capfd, *words)
    assert code == 0, err
    assert any("1 of 2 chunks of data/state have no file and are read as 0.0" in note for note in json.loads(out)["notes"])


def test_a_disk_too_small_for_minari_is_seen_before(
    toy: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """HDF5 brings the process down where the disk fills up under it."""
    words = ("data", "export", toy, tmp_path / "deep" / "toy-v0", "--format", "minari")
    with monkeypatch.context() as patch:
        patch.setattr(minari_module.shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(10**9, 10**9, 100_000))
        code, out, err = call(capfd, *words)
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert "it needs about 0.3 MB, and 0.1 MB are free" in err
    assert list(tmp_path.iterdir()) == []
    assert call(capfd, *words)[0] == 0
    size = sum(each.stat().st_size for each in tmp_path.rglob("*") if each.is_file())
    assert size < 341_820  # what was asked for


# --- Full and read-only disks -------------------------------------------------------------------------------------------


@pytest.fixture
def disk(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """A disk that takes so many writes more, and then answers with the error of this number."""
    left = [10**9, 0]
    put = _local._put

    def failing(*args: Any, **kwargs: Any) -> int:
        left[0] -= 1
        if left[0] < 0:
            raise OSError(left[1], os.strerror(left[1]))
        return put(*args, **kwargs)

    monkeypatch.setattr(_local, "_put", failing)
    return left


@pytest.mark.parametrize(("command", "number"), [("collect", 28), ("import", 28), ("import", 30)])
def test_a_disk_that_takes_no_more_leaves_a_store_to_resume(
    command: str, number: int, toy: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str], disk: list[int]
) -> None:
    words: list[object] = ["collect", "--env", "Reacher-v5", "--episodes", 20, "--steps", 5, "--workers", 1]
    words += ["--set", "block_episodes=4"]
    if command == "import":
        assert call(capfd, "data", "export", toy, tmp_path / "a.npz", "--format", "npz")[0] == 0
        words = ["data", "import", tmp_path / "a.npz", "--format", "npz"]
    at = 3 if command == "import" else 1  # where the store stands among the words
    code, out, err = call(capfd, *words[:at], tmp_path / "whole.zarr", *words[at:], "--json")
    assert code == 0, err
    writes, expected = 10**9 - disk[0], json.loads(out)["content_hash"]
    for survived in (0, writes // 2):
        path = tmp_path / f"{survived}.zarr"
        disk[:] = [survived, number]
        code, out, err = call(capfd, *words[:at], path, *words[at:])
        assert (code, out) == (2, "")
        assert err == f"error: can't write store {path}: {os.strerror(number)}; free the disk or mend the rights\n"
        assert not list(tmp_path.rglob("*.partial"))
        disk[0] = 10**9
        code, out, err = call(capfd, *words[:at], path, *words[at:], "--resume", "--json")
        assert code == 0, err
        assert json.loads(out)["content_hash"] == expected
        assert call(capfd, "data", "verify", path)[0] == 0


# --- Kills --------------------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/environ").exists(), reason="needs Linux's /proc")
def test_kills_at_random_moments_change_nothing(tmp_path: Path) -> None:
    words = [sys.executable, str(ROOT / "benchmarks" / "kills.py"), "--kills", "3", "--out", str(tmp_path / "kills.json")]
    done = subprocess.run([*words, "--", "--episodes", "96", "--steps", "50"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    result = json.loads((tmp_path / "kills.json").read_text())
    assert result["all_equal"]
    assert len(result["rows"]) == 3
    assert all(row["hash_equal"] and row["kills"] for row in result["rows"])


# --- A user's own policy --------------------------------------------------------------------------------------------------

POLICIES = """
import numpy as np
def short(s): return np.zeros((len(s), 1))
def flat(s): return np.zeros(2)
def nan(s): return np.full((len(s), 2), np.nan)
def far(s): return np.full((len(s), 2), 1.5)
def text(s): return np.full((len(s), 2), "0.5")
def unreal(s): return np.full((len(s), 2), 0.5 + 1j)
def nothing(s): return None
def raises(s): raise ValueError("one\\ntwo")
def exits(s): raise SystemExit(7)
def no_argument(): return 1
class Kind:
    def __call__(self, s): return np.zeros((len(s), 2))
"""


@pytest.mark.parametrize(
    ("name", "workers", "said"),
    [
        ("short", 1, "shape (4, 1)"),
        ("short", 2, "shape (4, 1)"),
        ("flat", 1, "shape (2,)"),
        ("nan", 1, "NaN or infinity"),
        ("far", 1, "1.5, outside the action bounds"),
        ("text", 1, "an array of <U3"),
        ("unreal", 1, "an array of complex128"),
        ("nothing", 1, "returned NoneType"),
        ("raises", 1, "ValueError: one two"),
        ("raises", 2, "ValueError: one two"),
        ("exits", 1, "SystemExit: 7"),
        ("exits", 2, "SystemExit: 7"),
        ("no_argument", 1, "TypeError"),
        ("Kind", 1, "is a class"),
    ],
)
def test_a_faulty_policy_is_one_line_and_costs_nothing(
    name: str, workers: int, said: str, tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not even the store that was to be replaced."""
    (tmp_path / "own_faulty.py").write_text(POLICIES)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.delitem(sys.modules, "own_faulty", raising=False)
    fill(tmp_path / "old.zarr")
    before = contents(tmp_path)
    words = ["--env", "Reacher-v5", "--episodes", 16, "--steps", 3, "--workers", workers, "--set", "block_episodes=4"]
    for target in (("new.zarr",), ("old.zarr", "--overwrite")):
        code, out, err = call(capfd, "collect", *target, *words, "--policy", f"own_faulty:{name}")
        assert (code, out, err.count("\n")) == (2, "", 1), err
        assert f"own_faulty:{name}" in err
        assert said in err
        assert contents(tmp_path) == before


def test_what_a_policy_prints_does_not_stand_among_the_json(tmp_path: Path) -> None:
    (tmp_path / "talking.py").write_text("def act(s):\n    print('hello')\n    return [[0.1, 0.1]] * len(s)\n")
    words = ["collect", "new.zarr", "--env", "Reacher-v5", "--episodes", "8", "--steps", "3", "--workers", "2", "--json"]
    words += ["--policy", "talking:act"]
    done = subprocess.run(
        [sys.executable, "-m", "ebmtraj", *words], cwd=tmp_path, capture_output=True, text=True, check=True
    )
    assert json.loads(done.stdout)["episodes"] == 8
    assert "hello" in done.stderr


def test_an_environment_that_fails_is_named(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    class Failing(gymnasium.Env[Any, Any]):
        observation_space = gymnasium.spaces.Box(-1.0, 1.0, (2,), np.float32)
        action_space = gymnasium.spaces.Box(-1.0, 1.0, (1,), np.float32)

        def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
            return np.zeros(2, np.float32), {}

        def step(self, action: Any) -> Any:
            raise ValueError("the motor is off")

    gymnasium.register("Failing-v0", entry_point=Failing)  # type: ignore[arg-type]
    try:
        code, out, err = call(
            capfd, "collect", tmp_path / "new.zarr", "--env", "Failing-v0", "--episodes", 2, "--workers", 1
        )
    finally:
        gymnasium.registry.pop("Failing-v0")
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert "Failing-v0 failed in step: ValueError: the motor is off" in err
