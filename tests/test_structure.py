"""The shape of the house: layers, packaging, and what must never be in the source."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
AT_ROOT = ("envs", "datasets", "cli")
LAYERS = (
    ("errors", "fields", "config", "device", "locks", "seal", "runs", "parallel"),
    ("nets", "samplers", "envs", "datasets"),
    ("energies",),
    ("training",),
    ("trajectories", "evaluation", "images", "continual", "generators", "policy"),
    ("collect", "report"),
    ("cli", "__main__"),
)
LAYER = {name: number for number, names in enumerate(LAYERS, start=1) for name in names}
STORAGE = ("blocks", "moments", "shards", "store", "verify", "writer", "zarr_files")
NO_TORCH = ("ebmtraj.envs.", *(f"ebmtraj.datasets.{name}" for name in STORAGE), "ebmtraj.collect")


def sources() -> dict[str, Path]:
    """Every module of the package by its dotted name."""
    found = {}
    for folder, prefix in ((ROOT / "ebmtraj", "ebmtraj"), *((ROOT / name, f"ebmtraj.{name}") for name in AT_ROOT)):
        for path in sorted(folder.rglob("*.py")):
            inside = path.relative_to(folder)
            if "__pycache__" in inside.parts or (prefix == "ebmtraj" and inside.parts[0] in AT_ROOT):
                continue
            parts = [*inside.with_suffix("").parts]
            if parts[-1] == "__init__":
                parts.pop()
            found[".".join([prefix, *parts])] = path
    return found


SOURCES = sources()


def imports(path: Path) -> Iterator[str]:
    """Dotted names of all that a module imports, wherever in it."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import; write ebmtraj.x"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def room(name: str) -> str | None:
    """The part of the house that a dotted name lies in; None for the package itself and for other packages."""
    parts = name.split(".")
    return parts[1] if parts[0] == "ebmtraj" and len(parts) > 1 and parts[1] != "__version__" else None


def faults_of(module: str, imported: list[str]) -> list[str]:
    own = room(module)
    if own is None:
        return [f"{module} imports {name}: the package's face imports no part of it" for name in imported if room(name)]
    found = []
    for name in imported:
        other = room(name)
        if other is None or other == own:
            continue
        if other not in LAYER or own not in LAYER:
            found.append(f"{module} imports {name}: no layer is known for {other if other not in LAYER else own}")
        elif LAYER[other] > LAYER[own]:
            found.append(f"{module} (layer {LAYER[own]}) imports {name} (layer {LAYER[other]})")
        elif LAYER[other] == LAYER[own] == 2:
            found.append(f"{module} imports {name}, which stands beside it")
    return found


def test_imports_go_down() -> None:
    assert len(SOURCES) > 30
    faults = [fault for module, path in SOURCES.items() for fault in faults_of(module, list(imports(path)))]
    assert not faults, "\n".join(faults)


@pytest.mark.parametrize(
    ("module", "imported", "bad"),
    [
        ("ebmtraj.samplers.x", "ebmtraj.energies.base.Energy", True),
        ("ebmtraj.samplers.x", "ebmtraj.nets.mlp.MLP", True),
        ("ebmtraj.samplers.x", "ebmtraj.samplers.anneal.Ladder", False),
        ("ebmtraj.energies.x", "ebmtraj.nets.mlp.MLP", False),
        ("ebmtraj.config", "ebmtraj.cli.app.main", True),
        ("ebmtraj.new.x", "ebmtraj.errors.EbmtrajError", True),
        ("ebmtraj.runs", "ebmtraj.__version__", False),
        ("ebmtraj", "ebmtraj.runs.Run", True),
    ],
)
def test_the_layer_rule_sees_a_fault(module: str, imported: str, bad: bool) -> None:
    assert bool(faults_of(module, [imported])) is bad


def test_simulation_and_storage_need_no_torch() -> None:
    for module, path in SOURCES.items():
        if module.startswith(NO_TORCH):
            found = [name for name in imports(path) if name.split(".")[0] == "torch"]
            assert not found, f"{module} imports {found}"
    code = "import sys, ebmtraj.collect, ebmtraj.envs.registry; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_packages_on_disk_are_the_packages_that_install() -> None:
    listed = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]
    found = {name.rpartition(".")[0] if path.name != "__init__.py" else name for name, path in SOURCES.items()}
    found |= {"ebmtraj", "ebmtraj.cli.recipes"}
    assert set(listed["packages"]) == found
    assert listed["packages"] == sorted(listed["packages"])
    assert listed["package-dir"] == {"ebmtraj": "ebmtraj", **{f"ebmtraj.{name}": name for name in AT_ROOT}}
    assert list((ROOT / "cli" / "recipes").glob("*.toml"))
    for name, path in SOURCES.items():
        if path.name == "__init__.py" and name != "ebmtraj":
            lines = path.read_text().strip().splitlines()
            assert len(lines) == 1, f"{path} holds more than a docstring"
            assert lines[0].startswith('"""')


@pytest.mark.parametrize("name", AT_ROOT)
def test_folders_at_the_root(name: str) -> None:
    assert not list((ROOT / name).rglob("__init__.py")), "a real package of that name must win over the folder"
    link = ROOT / "ebmtraj" / name
    assert link.is_symlink()
    assert os.readlink(link) == f"../{name}"


def test_the_package_works_without_its_links(tmp_path: Path) -> None:
    package = tmp_path / "ebmtraj"
    package.mkdir()
    for path in (ROOT / "ebmtraj").iterdir():
        if path.name not in AT_ROOT and path.name != "__pycache__":
            (package / path.name).symlink_to(path)
    (package / "__init__.py").unlink()
    (package / "__init__.py").write_text((ROOT / "ebmtraj" / "__init__.py").read_text())
    for name in AT_ROOT:
        (tmp_path / name).symlink_to(ROOT / name)
    code = f"import ebmtraj.datasets.store as s; assert s.__file__.startswith({str(tmp_path)!r}), s.__file__"
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_nothing_is_unpickled_or_evaluated() -> None:
    for module, path in SOURCES.items():
        names = {name.split(".")[0] for name in imports(path)}
        assert not names & {"pickle", "dill", "cloudpickle", "joblib", "marshal", "shelve"}, module
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call):
                call = ast.unparse(node.func)
                assert call not in ("eval", "exec", "torch.load", "torch.save", "np.save", "pickle.load"), (
                    f"{module}: {call}("
                )
                if call in ("np.load", "numpy.load"):
                    assert "allow_pickle=True" not in ast.unparse(node), f"{module}: {ast.unparse(node)}"
