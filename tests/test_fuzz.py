"""Whatever a recipe, a command line, a file or a checkpoint holds, it works or is refused: a draw of `make fuzz`'s inputs.

And what was found before, which stays: each of these once ended in a traceback, or would have run for ever.
"""

from __future__ import annotations

import importlib.util
import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from commands import call
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from safetensors.numpy import save_file

from ebmtraj.config import parse_overrides, read_toml
from ebmtraj.datasets.dsprites import FILE, dsprites
from ebmtraj.datasets.interchange.described import carried_values
from ebmtraj.energies.expression import parse
from ebmtraj.errors import EbmtrajError
from ebmtraj.fields import Field, fields_from_json
from ebmtraj.runs import read_json
from ebmtraj.training.checkpoint import load_tensors

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "benchmarks"))
import fuzz  # noqa: E402

DEEP = "[" * 100_000


@pytest.fixture(autouse=True)
def stay() -> Iterator[None]:
    """The surfaces change the working folder."""
    here, path = Path.cwd(), list(sys.path)
    yield
    os.chdir(here)
    sys.path[:] = path


@pytest.mark.parametrize("name", fuzz.SURFACES)
def test_inputs_work_or_are_refused(name: str, tmp_path: Path) -> None:
    surface = fuzz.SURFACES[name](tmp_path)
    count = fuzz.Count(surface)
    quiet = settings(
        max_examples=60, deadline=None, database=None, derandomize=True, suppress_health_check=list(HealthCheck)
    )

    @settings(quiet, phases=[Phase.generate])
    @given(surface.strategy() | st.binary(max_size=80).map(surface.decode))
    def examples(value: object) -> None:
        count.take(value)

    try:
        examples()
        for seed in surface.seeds():
            count.take(surface.decode(seed))
    finally:
        surface.close()
    found = count.report()
    assert found["inputs"] >= 40
    assert (found["crashes"], found["hangs"]) == (0, 0), found["distinct_crashes"]


def test_a_crash_would_be_seen(tmp_path: Path) -> None:
    class Broken(fuzz.Surface):
        def try_one(self, given: object) -> None:
            raise ZeroDivisionError

    count = fuzz.Count(Broken(tmp_path))
    count.take("x")
    assert count.report()["crashes"] == 1


# What was found


def test_nesting_is_refused(tmp_path: Path) -> None:
    for name, text in (("a.toml", f"a = {DEEP}"), ("b.toml", "[" + "a." * 5000 + "a]\n" * 2)):
        (tmp_path / name).write_text(text)
        with pytest.raises(EbmtrajError, match="can't be read as TOML"):
            read_toml(tmp_path / name)
    (tmp_path / "a.json").write_text(DEEP)
    with pytest.raises(EbmtrajError, match="can't be read as JSON"):
        read_json(tmp_path / "a.json")
    with pytest.raises(EbmtrajError, match="nested too deeply"):
        parse_overrides([f"a={DEEP}"])
    with pytest.raises(EbmtrajError, match="not a JSON object"):
        carried_values(DEEP, "x.npz")
    for text in ("(" * 10_000, "~" * 10_000 + "a", "2 * " * 10_000 + "a"):
        with pytest.raises(EbmtrajError, match="nested too deeply"):
            parse(text)
    path = tmp_path / "c.safetensors"
    save_file({}, path, metadata={"header": DEEP})
    with pytest.raises(EbmtrajError, match="is damaged"):
        load_tensors(path)


@pytest.mark.parametrize("size", [1.5, "2", 10**9, True, None])
def test_a_field_is_of_a_size_that_can_be(size: object) -> None:
    if size is True:  # as 1, which JSON tells from it and Python does not
        assert Field("x", True).size == 1
        return
    with pytest.raises(EbmtrajError, match=r"size|not a field"):
        fields_from_json([{"name": "x", "size": size}])


def test_an_archive_of_a_version_that_is_not_known(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    np.savez(tmp_path / "a.npz", state=np.zeros((2, 3, 1), np.float32), action=np.zeros((2, 2, 1), np.float32))
    content = bytearray((tmp_path / "a.npz").read_bytes())
    content[content.index(b"PK\x01\x02") + 6] = 255
    for name in ("a.npz", FILE):
        (tmp_path / name).write_bytes(content)
    code, _, err = call(capfd, "data", "import", tmp_path / "a.npz", tmp_path / "s.zarr", "--format", "npz")
    assert (code, err.count("\n"), "a.npz can't be read as npz: zip file version 25.5" in err) == (2, 1, True), err
    with pytest.raises(EbmtrajError, match=r"can't be read as dSprites: zip file version 25\.5"):
        dsprites(tmp_path, 10)


@pytest.mark.parametrize("value", [-8, 0, "x", None, 10**9, [1]])
def test_a_header_that_makes_no_model(value: object, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    from ebmtraj.images.registry import MODELS, load_image_model, make_image_model
    from ebmtraj.training.checkpoint import save_tensors

    model = make_image_model("pcd", (1, 8, 8), ("a", "b"), network={"width": 4})
    header = json.loads(json.dumps(model.header()))
    header["network"]["width"] = value
    save_tensors(tmp_path / "c.safetensors", model.state_dict(), header)
    with pytest.raises(EbmtrajError, match=r"c\.safetensors"):
        load_image_model(tmp_path / "c.safetensors")
    assert "pcd" in MODELS
    code, _, err = call(capfd, "sample", tmp_path / "c.safetensors", "--out", tmp_path / "s.npz")
    assert (code, err.count("\n")) == (2, 1)


def test_a_header_of_a_billion_layers_takes_no_memory(tmp_path: Path) -> None:
    """Found by atheris: a list of so many widths was made before a layer was counted."""
    from ebmtraj.fields import Field
    from ebmtraj.training.checkpoint import save_tensors
    from ebmtraj.trajectories.registry import load_model, make_model

    fields = (Field("position", 2, kind="position"),)
    model = make_model("gaussian", fields, fields, actions=False, network={"width": 4})
    header = json.loads(json.dumps(model.header()))
    header["network"]["depth"] = 10**9
    save_tensors(tmp_path / "c.safetensors", model.state_dict(), header)
    with pytest.raises(EbmtrajError, match="at most 1,000 hidden layers"):
        load_model(tmp_path / "c.safetensors")


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("atheris") is None, reason="needs atheris: pip install 'ebmtraj[fuzz]'")
def test_a_coverage_guided_fuzzer_finds_nothing(tmp_path: Path) -> None:
    import subprocess

    words = [sys.executable, str(ROOT / "benchmarks" / "fuzz.py"), "--inputs", "1500", "--engines", "atheris"]
    done = subprocess.run(
        [*words, "--out", str(tmp_path / "f.json")], capture_output=True, text=True, check=False, timeout=280
    )
    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads((tmp_path / "f.json").read_text())
    assert found["inputs"] == 6000
    assert all(row["corpus"] > 45 for row in found["rows"].values())  # inputs that reached new code were kept
