"""What is damaged is named and not believed, and what can be read of a damaged store is kept."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from commands import call

from ebmtraj.collect import CollectConfig, collect
from ebmtraj.datasets.repair import repair
from ebmtraj.datasets.store import Store
from ebmtraj.datasets.verify import verify
from ebmtraj.errors import EbmtrajError
from ebmtraj.runs import MetricsWriter, Run, read_json, write_json

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """24 episodes of the particle, of 6 steps each."""
    path = tmp_path_factory.mktemp("sound") / "s.zarr"
    collect(path, CollectConfig(env="ebmtraj/Particle-v0", episodes=24, steps=6, seed=3, block_episodes=6, workers=1))
    return path


@pytest.fixture
def store(sound: Path, tmp_path: Path) -> Path:
    """A copy to damage."""
    return Path(shutil.copytree(sound, tmp_path / "d.zarr"))


def flip(path: Path, at: int) -> None:
    data = bytearray(path.read_bytes())
    data[at] ^= 4
    path.write_bytes(data)


def episodes_of(path: Path) -> list[tuple[bytes, bytes, int, bool]]:
    opened = Store.open(path)
    found = (opened.episode(i) for i in range(opened.episodes))
    return [(each.state.tobytes(), each.action.tobytes(), each.seed, each.terminated) for each in found]


# reading


@pytest.mark.slow
def test_no_damage_goes_unnoticed(tmp_path: Path) -> None:
    """A few damages of each target; all of them, and more kinds, are tried by `make corruption`."""
    words = [sys.executable, str(ROOT / "benchmarks" / "corruption.py"), "--most", "5", "--seed", "7"]
    done = subprocess.run(words, capture_output=True, text=True, check=False, timeout=280)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    found = json.loads(done.stdout)
    assert found["mutations"] == 35
    assert (found["silent"], found["tracebacks"]) == (0, 0)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (
            lambda text: text.replace('"control_timestep": 0.05', '"control_timestep": 0.06'),
            "zarr.json is not what its seal",
        ),
        (lambda text: text.replace('"episodes": 24', '"episodes": 23'), "zarr.json is not what its seal"),
    ],
)
def test_edited_attributes_are_refused(change: Any, said: str, store: Path, capfd: pytest.CaptureFixture[str]) -> None:
    text = (store / "zarr.json").read_text()
    assert change(text) != text
    (store / "zarr.json").write_text(change(text))
    for words in (("info",), ("show",), ("verify",)):
        code, out, err = call(capfd, "data", *words, store)
        assert code == 2
        assert said in " ".join((out + err).split())


def test_a_shard_of_another_store_is_refused(store: Path, tmp_path: Path) -> None:
    """Its checksums are right; only the seal tells."""
    other = tmp_path / "o.zarr"
    collect(other, CollectConfig(env="ebmtraj/Particle-v0", episodes=24, steps=6, seed=4, block_episodes=6, workers=1))
    for name in ("state/c/0/0", "action/c/0/0", "episode/seed/c/0"):
        kept = (store / name).read_bytes()
        shutil.copy(other / name, store / name)
        with pytest.raises(EbmtrajError, match=f"{name} is (not the file that was written|damaged or of another store)"):
            Store.open(store).episode(3)
        (store / name).write_bytes(kept)
    assert verify(store)["ok"]


def test_a_store_from_before_seals_is_read(store: Path) -> None:
    values = json.loads((store / "zarr.json").read_text())
    del values["attributes"]["seal"]
    (store / "zarr.json").write_text(json.dumps(values))
    assert verify(store)["ok"]
    assert Store.open(store).info()["episodes"] == 24


def test_json_and_logs_notice_a_changed_digit(tmp_path: Path) -> None:
    path = tmp_path / "r.json"
    write_json(path, {"a": 12, "b": (1.5, None)})
    assert read_json(path) == {"a": 12, "b": [1.5, None]}
    write_json(path, read_json(path) | {"sha256": "of an older content"})
    assert read_json(path) == {"a": 12, "b": [1.5, None]}
    path.write_text(path.read_text().replace("12", "13"))
    with pytest.raises(EbmtrajError, match=r"r\.json is damaged, or was edited"):
        read_json(path)
    path.write_text('{"a": 13}')  # of before there were seals
    assert read_json(path) == {"a": 13}

    run = Run.create(tmp_path / "run")
    writer = MetricsWriter(run.metrics)
    for step in range(4):
        writer.write({"step": step, "loss": 0.5})
    writer.close()
    text = run.metrics.read_text()
    lines = text.splitlines(keepends=True)
    for bad, said in (
        (text.replace('"step": 2', '"step": 7'), "line 3"),
        (lines[0] + lines[2] + lines[3], "line 2"),
        (lines[0] + "{}\n" + lines[1], "line 2"),
        (lines[0] + "[1]\n" + lines[1], "line 2"),
    ):
        run.metrics.write_text(bad)
        with pytest.raises(EbmtrajError, match=f"{said}: damaged, or of another run"):
            run.read_metrics()
    run.metrics.write_text("".join(lines[:2]))
    with pytest.raises(EbmtrajError, match="holds 2 of the 3 rows"):
        MetricsWriter(run.metrics, keep=3)


# repair


def test_a_sound_store_is_left_alone(store: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    code, _, err = call(capfd, "data", "repair", store, tmp_path / "r.zarr")
    assert code == 0
    assert "all 24 episodes are sound; nothing to repair" in err
    assert not (tmp_path / "r.zarr").exists()


@pytest.mark.parametrize("name", ["episode/seed", "episode/length", "episode/block", "episode/terminated"])
def test_a_lost_column_costs_no_episode(name: str, store: Path, tmp_path: Path) -> None:
    before = episodes_of(store)
    shutil.rmtree(store / name)
    made = repair(store, tmp_path / "r.zarr")
    assert (made.kept, made.dropped) == (24, [])
    assert episodes_of(tmp_path / "r.zarr") == before
    assert made.content_hash == Store.open(store).content_hash
    assert verify(tmp_path / "r.zarr")["ok"]


def test_lost_digests_leave_what_the_seal_holds_for(store: Path, tmp_path: Path) -> None:
    before = episodes_of(store)
    shutil.rmtree(store / "episode" / "digest")
    made = repair(store, tmp_path / "r.zarr")
    assert (made.kept, made.dropped) == (24, [])
    assert episodes_of(tmp_path / "r.zarr") == before


def test_a_repair_drops_only_what_cannot_be_read(
    store: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """One chunk of states is damaged: the episodes in it go, all others stay, bit for bit."""
    from ebmtraj.datasets import writer

    monkeypatch.setattr(writer, "CHUNK_ROWS", 14)  # two episodes of 7 rows
    monkeypatch.setattr(writer, "SHARD_ROWS", 14 * 16)
    chunked = tmp_path / "c.zarr"
    collect(chunked, CollectConfig(env="ebmtraj/Particle-v0", episodes=24, steps=6, seed=3, block_episodes=6, workers=1))
    before = episodes_of(chunked)
    flip(chunked / "state" / "c" / "0" / "0", 40)  # in the first chunk that was written
    code, out, err = call(capfd, "data", "repair", chunked, tmp_path / "r.zarr", "--json")
    assert code == 0, err
    made = json.loads(out)
    assert (made["kept"], [gone["episodes"] for gone in made["dropped"]]) == (22, [[0, 1]])
    assert "state" in made["dropped"][0]["why"]
    assert episodes_of(tmp_path / "r.zarr") == before[2:]
    assert verify(tmp_path / "r.zarr")["ok"]
    assert not verify(chunked)["ok"]  # it is left as it is
    code, _, err = call(capfd, "data", "repair", chunked, tmp_path / "r.zarr")
    assert code == 2
    assert "exists" in err
    assert call(capfd, "data", "repair", chunked, chunked, "--overwrite")[0] == 2


def test_a_changed_number_costs_its_episode(store: Path, tmp_path: Path) -> None:
    import zarr

    before = episodes_of(store)
    group: Any = zarr.open_group(store, mode="r+")
    group["state"][7 * 5 + 2, 0] += 1e-3  # a well-formed write
    made = repair(store, tmp_path / "r.zarr")
    assert made.dropped == [{"episodes": [5, 5], "why": "content differs from its digest"}]
    assert episodes_of(tmp_path / "r.zarr") == before[:5] + before[6:]


def test_damaged_attributes(store: Path, tmp_path: Path) -> None:
    text = (store / "zarr.json").read_text()
    before = episodes_of(store)
    (store / "zarr.json").write_text(text.replace('"episodes": 24', '"episodes": 14', 1))  # covered by no content hash
    made = repair(store, tmp_path / "r.zarr")
    assert made.kept == 24
    assert episodes_of(tmp_path / "r.zarr") == before
    (store / "zarr.json").write_text(text.replace('"control_timestep": 0.05', '"control_timestep": 0.06', 1))
    with pytest.raises(EbmtrajError, match=r"recipe in zarr\.json is damaged, and nothing else says"):
        repair(store, tmp_path / "q.zarr")
    (store / "zarr.json").write_text(text)
    shutil.rmtree(store / "state")
    with pytest.raises(EbmtrajError, match="no episode can be read"):
        repair(store, tmp_path / "q.zarr")
    assert not (tmp_path / "q.zarr").exists()
    assert np.array_equal([len(each) for each in before], [4] * 24)
