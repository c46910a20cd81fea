"""Numbers that are hard on a training: it trains, or says in one line what is wrong; and the guard on planted divergence."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from commands import call

from ebmtraj.datasets.blocks import EpisodeBlock, StoreRecipe
from ebmtraj.datasets.writer import StoreWriter
from ebmtraj.fields import Field
from ebmtraj.training.checkpoint import load_tensors

ROOT = Path(__file__).resolve().parents[1]
FIELDS = (Field("position", 2, kind="position"), Field("x", 2))
SMALL = "--set training.steps=12 --set training.batch=16 --set training.check_every=6 --set training.log_every=3 --json"
PLANS = "--set network.horizons=[1,2,4] --set network.actions=4"
KINDS = {
    "gaussian": "train transition --model gaussian",
    "dsm": "train transition --actions",
    "cd": "train transition --objective cd",
    "fc": "train transition --model fc --actions",
    "mdn": "train transition --model mdn",
    "field": "train transition --model field --actions",
    "flow": "train transition --model flow",
    "plan": f"train plan {PLANS}",
    "sequence": "train sequence",
    "clone": "train clone --set network.horizons=[1,2,4]",
}


def write(path: Path, kind: str, episodes: int = 20, steps: int = 8) -> Path:
    """A store of random walks with something odd about its numbers."""
    rng = np.random.default_rng(0)
    if kind == "a single episode":
        episodes = 1
    state = rng.normal(size=(episodes, steps + 1, 4)).cumsum(axis=1)
    action = rng.uniform(-1, 1, (episodes, steps, 2))
    if kind == "units of 1e9":
        state *= 1e9
    elif kind == "units of 1e-9":
        state *= 1e-9
    elif kind == "units of 1e30":
        state *= 1e30
    elif kind == "an offset of 1e8":
        state += 1e8  # of which float32 keeps steps of 8
    elif kind == "a field that never changes":
        state[..., 2:] = 0.5
    elif kind == "states that never change":
        state[:] = 0.25
    elif kind == "constant actions":
        action[:] = 0.7
    elif kind == "an outlier":
        state[3, 4] = 1e12
    recipe = StoreRecipe("toy", 0.1, FIELDS, (Field("u", 2, low=(-1.0, -1.0), high=(1.0, 1.0)),), {"name": "none"}, seed=1)
    writer = StoreWriter.create(path, recipe)
    rows = (state.reshape(-1, 4), action.reshape(-1, 2), np.full(episodes, steps))
    writer.append_block(EpisodeBlock(*rows, np.arange(episodes, dtype=np.uint64), np.zeros(episodes, bool)))  # type: ignore[arg-type]
    writer.finish()
    return path


ODD = (
    *("units of 1e9", "units of 1e-9", "units of 1e30", "an offset of 1e8", "a field that never changes"),
    *("states that never change", "constant actions", "an outlier", "a single episode"),
)


QUICK = ("gaussian", "dsm", "cd")


@pytest.mark.parametrize(
    "kinds", [QUICK, pytest.param(tuple(set(KINDS) - set(QUICK)), marks=pytest.mark.slow)], ids=["a", "b"]
)
@pytest.mark.parametrize("odd", ODD)
def test_odd_numbers_train_or_are_refused(
    odd: str, kinds: tuple[str, ...], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    store = write(tmp_path / "s.zarr", odd)
    trained = {}
    for kind, words in ((kind, KINDS[kind]) for kind in sorted(kinds)):
        run = tmp_path / kind
        code, out, err = call(capfd, *words.split(), "--data", store, "--run", run, *SMALL.split())
        assert code in (0, 2), f"{kind}: {err}"
        if code == 2:
            assert (out, err.count("\n")) == ("", 1), f"{kind}: {err}"
            assert "this should not happen" not in err
            assert "broken" not in err
        else:
            assert math.isfinite(json.loads(out)["validation"]), kind
            _, tensors = load_tensors(run / "checkpoints" / "best.safetensors")
            learnt = {name: t for name, t in tensors.items() if "normaliser" not in name and t.is_floating_point()}
            assert all(bool(t.isfinite().all()) for t in learnt.values()), kind
        trained[kind] = code == 0
    if odd == "a single episode":
        assert not any(trained.values())  # there is no validation split
    elif odd not in ("units of 1e30", "an outlier"):
        assert all(trained.values()), trained


def test_a_single_episode_says_what_to_do(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    store = write(tmp_path / "s.zarr", "a single episode")
    code, _, err = call(capfd, "train", "transition", "--data", store, "--run", tmp_path / "run")
    assert code == 2
    assert "collect at least 10 episodes" in err


@pytest.mark.parametrize("setting", ["network.sampler.step_size=1e20", "training.learning_rate=1e12"])
def test_an_exploding_energy_ends_in_one_line(setting: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    store = write(tmp_path / "s.zarr", "plain")
    words: list[Any] = [*KINDS["cd"].split(), "--data", store, "--run", tmp_path / "run", *SMALL.split(), "--set", setting]
    code, out, err = call(capfd, *words, "--set", "training.clip=1e30")
    if code == 0:  # the energy's bound held
        assert math.isfinite(json.loads(out)["validation"])
    else:
        assert (code, out, err.count("\n")) == (2, "", 1), err
        assert "diverged" in err or "step_size" in err


@pytest.mark.slow
def test_planted_divergence_is_detected_and_outlived(tmp_path: Path) -> None:
    words = [sys.executable, str(ROOT / "benchmarks" / "divergence.py"), "--out", str(tmp_path / "d.json")]
    done = subprocess.run(words, capture_output=True, text=True, check=False, timeout=280)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    found = json.loads((tmp_path / "d.json").read_text())
    assert found["plantings"] == found["detected_within_50"] >= 20
    assert found["recovered"] >= 18
    assert found["recovered"] + found["stopped_in_one_line"] == found["plantings"] == found["last_good_state_sound"]
