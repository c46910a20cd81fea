"""Rollouts of a robot that ebmtraj does not know, from a raw file to plans in its simulator, by the commands of the docs."""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import gymnasium
import pytest
from commands import call

from ebmtraj.datasets.store import Store
from ebmtraj.envs.registry import describe_vectors

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="module")
def rollouts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("own") / "rollouts.npz"
    subprocess.run([sys.executable, ROOT / "examples" / "own_rollouts.py", path, "20"], check=True)
    return path


SIZES = {"EPISODES": "20", "STEPS": "12", "TRIES": "2", "LENGTH": "3", "PICTURES": "--no-pictures"}


def check(folder: Path) -> None:
    plans = json.loads((folder / "plan" / "results.json").read_text())["plans"]
    assert [plan["episodes"] for plan in plans] == [2, 2]
    assert all(0 <= plan["success_rate"] <= 1 for plan in plans)
    assert plans[1]["own"]["own_cost:slowly"] > 0
    assert "reach when=end + own_cost:slowly" in (folder / "report.html").read_text()


def test_each_command_of_the_example(
    rollouts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(ROOT / "examples")
    (tmp_path / "rollouts.npz").symlink_to(rollouts)
    script = (ROOT / "examples" / "own_robot.sh").read_text()
    script = re.sub(r"\$\{(\w+):-[^}]*\}", lambda match: SIZES.get(match[1], match[0]), script)
    commands = [line for line in script.splitlines() if line.startswith("$ebmtraj ")]
    assert len(commands) == 5
    for command in commands:
        code, _, err = call(capfd, *shlex.split(command, comments=True)[1:])
        assert code == 0, (command, err)
    check(tmp_path)


@pytest.mark.slow
def test_the_example_runs_from_end_to_end(tmp_path: Path) -> None:
    environment = {**os.environ, **SIZES, "OUT": str(tmp_path), "PYTHON": sys.executable, "PYTHONPATH": str(ROOT)}
    environment["EBMTRAJ"] = f"{sys.executable} -m ebmtraj"
    done = subprocess.run(["sh", ROOT / "examples" / "own_robot.sh"], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    check(tmp_path)


def test_the_page_names_the_same_commands() -> None:
    script = (ROOT / "examples" / "own_robot.sh").read_text()
    page = (ROOT / "docs" / "own_robot.md").read_text()
    lines = [line for block in re.findall(r"```\n(.*?)```", page, re.DOTALL) for line in block.splitlines()]
    assert len(lines) <= 15
    for command in ("data import", "train sequence", "plan plan", "report plan"):
        assert f"ebmtraj {command}" in page
        assert f"$ebmtraj {command}" in script
    assert (ROOT / "examples" / "own_cost.py").read_text().split('"""\n')[-1].strip().splitlines()[-1].strip() in page


def test_the_simulator_says_what_the_numbers_are(rollouts: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    code, out, err = call(
        capfd, "data", "import", rollouts, tmp_path / "r.zarr", "--format", "npz", "--env", "Reacher-v5", "--json"
    )
    assert code == 0, err
    assert any("positions and velocities of its joints of Reacher-v5" in note for note in json.loads(out)["notes"])
    store = Store.open(tmp_path / "r.zarr")
    kinds = [(field.kind, field.size) for field in store.state_fields]
    assert kinds == [("angle", 2), ("position", 2), ("plain", 2), ("plain", 2)]
    assert store.control_timestep == pytest.approx(0.02)
    assert store.attributes["env_attributes"]["state"] == "physics"
    assert store.action_fields[0].low == (-1.0, -1.0)


def test_observations_are_told_from_physics_and_odd_sizes_are_left_plain(
    rollouts: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    env = gymnasium.make("Reacher-v5")
    size = env.observation_space.shape[0]  # type: ignore[index]
    env.close()
    seen = describe_vectors("Reacher-v5", size, 2)
    assert seen is not None
    assert seen.env_attributes == {"state": "observation"}
    assert [field.size for field in seen.state_fields] == [size]
    assert describe_vectors("Reacher-v5", 7, 2) is None
    assert describe_vectors("no-such-robot", 8, 2) is None
    hand = describe_vectors("hand-cube", 31, 20)
    assert hand is not None
    assert any(field.kind == "quaternion" for field in hand.state_fields)
    code, out, err = call(
        capfd, "data", "import", rollouts, tmp_path / "p.zarr", "--format", "npz", "--env", "no-such", "--json"
    )
    assert code == 0, err
    assert any("numbers are plain" in note for note in json.loads(out)["notes"])


def test_plans_without_a_simulator_say_what_is_missing(
    rollouts: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    store, run = tmp_path / "r.zarr", tmp_path / "run"
    assert call(capfd, "data", "import", rollouts, store, "--format", "npz")[0] == 0
    tiny = ("--set", "training.steps=4", "--set", "training.batch=8")
    code, _, err = call(capfd, "train", "plan", "--data", store, "--run", run, "--set", "network.width=8", *tiny)
    assert code == 0, err
    (tmp_path / "still.py").write_text("def still(path, state_fields):\n    return path.states.square().mean((1, 2))\n")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path)
        code, _, err = call(capfd, "plan", run, "--task", "still:still", "--own-code", "--episodes", 1, "--steps", 2)
    assert code == 2
    assert "names no simulator; import it with --env" in err
