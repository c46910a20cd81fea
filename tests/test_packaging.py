"""The package as it is installed: wheel and sdist, an environment of its own, beside another package named `datasets`."""

from __future__ import annotations

import os
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
LOOK = """
import datasets, ebmtraj, ebmtraj.datasets.store, ebmtraj.envs.registry, ebmtraj.cli.app
assert hasattr(datasets, "load_dataset"), datasets.__file__
print(ebmtraj.__file__)
"""


def run(*words: object, cwd: Path) -> str:
    done = subprocess.run([*map(str, words)], cwd=cwd, capture_output=True, text=True, env={**os.environ, "PYTHONPATH": ""})
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    return done.stdout


@pytest.mark.slow
@pytest.mark.timeout(1500)
def test_wheel_and_sdist_install_beside_hugging_face_datasets(tmp_path: Path) -> None:
    copy = tmp_path / "source"
    run("git", "clone", "-q", ROOT, copy, cwd=tmp_path)
    run(sys.executable, "-m", "venv", tmp_path / "venv", cwd=tmp_path)
    python = tmp_path / "venv" / "bin" / "python"
    run(python, "-m", "pip", "install", "-q", "build", cwd=tmp_path)
    run(python, "-m", "build", "--outdir", tmp_path / "dist", copy, cwd=tmp_path)
    (wheel,), (sdist,) = (tmp_path / "dist").glob("*.whl"), (tmp_path / "dist").glob("*.tar.gz")
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
    assert "ebmtraj/datasets/store.py" in names
    assert "ebmtraj/cli/recipes/demo.toml" in names
    assert any(name.endswith(".safetensors") for name in names)  # the shipped policy
    assert not [name for name in names if name.startswith(("tests/", "datasets/", "envs/", "cli/"))]
    with tarfile.open(sdist) as archive:
        assert any(name.endswith("/datasets/store.py") for name in archive.getnames())
    constraints = ROOT / "constraints.txt"
    run(python, "-m", "pip", "install", "-q", "-c", constraints, wheel, "datasets", cwd=tmp_path)
    assert str(tmp_path / "venv") in run(python, "-c", LOOK, cwd=tmp_path)
    script = tmp_path / "venv" / "bin" / "ebmtraj"
    assert run(script, "--version", cwd=tmp_path).strip() == "0.1.0"
    store = tmp_path / "r.zarr"
    run(script, "collect", store, "--env", "Reacher-v5", "--episodes", 20, "--steps", 10, "--workers", 1, cwd=tmp_path)
    words = ("train", "transition", "--data", store, "--run", tmp_path / "run", "--set", "training.steps=20")
    run(script, *words, cwd=tmp_path)
    assert (tmp_path / "run" / "checkpoints" / "best.safetensors").exists()
