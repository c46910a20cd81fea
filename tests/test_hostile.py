"""Files from elsewhere: no code in them runs, no link or path in them is followed, and no word of theirs is allocated."""

from __future__ import annotations

import ast
import gzip
import io
import os
import struct
import sys
import tarfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from ebmtraj.datasets import image_archives
from ebmtraj.datasets.bounds import FREE, RATIO, refuse_bomb
from ebmtraj.errors import EbmtrajError
from ebmtraj.runs import Run, refuse_links

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "benchmarks"))
import hostile  # noqa: E402

SOURCES = [path for name in ("ebmtraj", "envs", "datasets", "cli") for path in (ROOT / name).rglob("*.py")]
IMPORTS_BY_NAME = {  # where a module is imported by a name: a library's, or one that the user gives on the command line
    *("attacks.py", "onnx_features.py", "source.py", "costs.py", "policies.py"),
}


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store and runs to be made hostile, and the libraries that reading them takes."""
    path = tmp_path_factory.mktemp("sound").resolve() / "sound"
    path.mkdir()
    hostile.sound(path)
    hostile.warm(path)
    return path


@pytest.fixture(autouse=True)
def stay() -> Iterator[None]:
    """Tests here change the working folder."""
    here = Path.cwd()
    yield
    os.chdir(here)


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="needs Linux's /proc")
@pytest.mark.parametrize("name", hostile.cases())
def test_a_hostile_file_is_refused(name: str, sound: Path, tmp_path: Path) -> None:
    row = hostile.meet(name, hostile.cases()[name], sound, tmp_path.resolve() / "here")
    assert row["good"], row


def test_at_least_so_many() -> None:
    kinds = [case.kind for case in hostile.cases().values()]
    assert len(kinds) >= 50
    assert {kind: kinds.count(kind) >= 3 for kind in set(kinds)} == dict.fromkeys(
        ("pickle", "code", "traversal", "link", "bomb", "header"), True
    )


def test_nothing_loads_objects() -> None:
    """Beside what `test_structure` looks for: loaders that run code, and modules imported by a name from a file."""
    for path in SOURCES:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if not isinstance(node, ast.Call):
                continue
            called, words = ast.unparse(node.func), ast.unparse(node)
            assert called not in ("yaml.load", "yaml.unsafe_load", "__import__", "compile", "runpy.run_path"), (
                f"{path}: {words}"
            )
            assert "allow_pickle=True" not in words, f"{path}: {words}"
            assert "shell=True" not in words, f"{path}: {words}"
            assert called not in ("os.system", "os.popen"), f"{path}: {words}"
            assert not called.endswith((".extractall", ".extract")), f"{path}: {words}"
            if called == "importlib.import_module":
                assert path.name in IMPORTS_BY_NAME, f"{path}: {words}"


def test_archives_are_bounded_behind_their_hash(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Even where the hash were right."""
    path = tmp_path / "a.tar.gz"
    with tarfile.open(path, "w:gz") as archive:
        for name, kind in (("../evil", tarfile.REGTYPE), ("link.bin", tarfile.SYMTYPE), ("big.bin", tarfile.REGTYPE)):
            member = tarfile.TarInfo(name)
            member.type, member.linkname = kind, "/etc/passwd"
            member.size = 4000 if kind == tarfile.REGTYPE else 0
            archive.addfile(member, io.BytesIO(bytes(4000)))
    with pytest.raises(EbmtrajError, match=r"has no member link\.bin"):
        image_archives.read_members(path, ["link.bin"])
    assert not (tmp_path.parent / "evil").exists()
    monkeypatch.setattr(image_archives, "_TOO_LONG", 1000)
    with pytest.raises(EbmtrajError, match=r"big\.bin says that it has 4,000 bytes"):
        image_archives.read_members(path, ["big.bin"])
    idx = tmp_path / "i.gz"
    with gzip.open(idx, "wb") as file:
        file.write(bytes((0, 0, 8, 3)) + struct.pack(">3I", 20, 10, 10))
    with pytest.raises(EbmtrajError, match="it is corrupt"):
        image_archives.read_idx(idx, 3)


def test_the_bound_lets_recordings_through() -> None:
    refuse_bomb("x", 1, FREE)
    refuse_bomb("x", 10**9, RATIO * 10**9)
    with pytest.raises(EbmtrajError, match="say that they are"):
        refuse_bomb("x", 10**6, RATIO * 10**6 + 1)


def test_links_that_stay_inside_are_followed(tmp_path: Path) -> None:
    run = Run.create(tmp_path / "run")
    run.config.write_text("")
    (run.path / "again").symlink_to(run.samples)
    (tmp_path / "to-it").symlink_to(run.path)
    Run.open(tmp_path / "to-it")
    (run.path / "up").symlink_to("..")
    with pytest.raises(EbmtrajError, match="up is a link that leads out of it"):
        Run.open(run.path)
    (run.path / "up").unlink()
    (run.path / "nowhere").symlink_to(tmp_path / "nothing")
    with pytest.raises(EbmtrajError, match="nowhere is a link that leads out of it"):
        refuse_links(run.path, "run")


def test_a_pipe_is_no_recipe(tmp_path: Path) -> None:
    """Reading it would wait for ever."""
    run = Run.create(tmp_path / "run")
    os.mkfifo(run.config)
    with pytest.raises(EbmtrajError, match="has no config"):
        Run.open(run.path)
