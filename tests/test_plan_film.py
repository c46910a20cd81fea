"""Films of executed plans, and what stays when a machine can't draw them."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from commands import call
from PIL import Image

from ebmtraj.envs import render
from ebmtraj.envs.registry import PARTICLE_ID, make_batch
from ebmtraj.errors import EbmtrajError
from ebmtraj.report.plan_film import Shown, plan_film
from ebmtraj.trajectories.costs import parse_task
from ebmtraj.trajectories.execute import Execution
from ebmtraj.trajectories.terms.term import Path as Future

SMALL = [
    *("--set", "training.steps=4", "--set", "training.batch=8", "--set", "training.check_every=2"),
    *("--set", "network.width=8", "--set", "network.horizons=[2,8,12]", "--device", "cpu"),
]


def test_which_episodes_are_shown() -> None:
    names = [name for name in ("+x", "-x", "+y", "-y", "+z", "-z") for _ in range(4)]
    assert Shown.choose(24, names) == Shown((0, 4, 8, 12, 16, 20), tuple(f"about {n}" for n in dict.fromkeys(names)))
    assert Shown.choose(2, []) == Shown((0, 1), ("episode 1", "episode 2"))


def test_a_film_of_the_particle(tmp_path: Path) -> None:
    env = make_batch(PARTICLE_ID)
    way = torch.linspace(0.1, 0.9, 6)
    states = torch.stack((way, way, torch.full((6,), 0.9), torch.full((6,), 0.5)), dim=1).repeat(3, 1, 1)
    over = torch.zeros(3, 6, dtype=torch.bool)
    over[1, 3:] = True
    ahead = Future(states[:2, 0], states[:2, -1:], torch.tensor([4.0]))
    done = Execution(states, torch.zeros(3, 5, 2), over, [], 0.0, [ahead] * 5)
    task = parse_task("reach + obstacle centre=0.5,0.2 radius=0.1", env.state_fields)
    shown = Shown((0, 1), ("first", "second"))
    with Image.open(plan_film(done, shown, task, env, tmp_path / "a.gif", tile=100)) as film:
        assert film.n_frames == 3  # type: ignore[attr-defined]
        film.seek(2)
        one, two = np.split(np.asarray(film.convert("RGB")).astype(int)[:, : film.width // 2 * 2], 2, axis=1)
    assert (one != two).any()  # the second ended half-way
    orange = (np.abs(two - (213, 94, 0)).max(-1) < 60).sum()
    assert orange > (np.abs(one - (213, 94, 0)).max(-1) < 60).sum() + 20  # and says so
    with pytest.raises(EbmtrajError, match=r"\.mp4 or \.gif"):
        plan_film(done, shown, task, env, tmp_path / "a.avi")


def test_the_command_keeps_its_result_where_nothing_can_be_drawn(
    hand_store: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    run, film = tmp_path / "run", tmp_path / "film.gif"
    assert call(capfd, "train", "plan", "--data", hand_store, "--run", run, *SMALL, "--json")[0] == 0
    words = ["plan", run, "--task", "rotate axis=z", "--episodes", 2, "--steps", 2, "--device", "cpu", "--json"]
    assert ".mp4 or .gif" in call(capfd, *words, "--video", tmp_path / "film.avi")[2]
    assert not (run / "results.json").exists()  # said before any work

    def no_gl(*_: object) -> None:
        raise AttributeError("no OpenGL here")

    with monkeypatch.context() as patch:
        patch.setattr(render, "_gl_context", no_gl)
        code, out, err = call(capfd, *words, "--video", film)
    assert (code, err.count("\n")) == (2, 1)
    assert "cannot start OpenGL" in err
    assert json.loads(out)["episodes"] == 2
    assert len(json.loads((run / "results.json").read_text())["plans"]) == 1
    assert not film.exists()
    code, out, err = call(capfd, *words, "--video", film)
    if code and "cannot start OpenGL" in err:
        pytest.skip(err)
    assert code == 0, err
    assert json.loads(out)["video"] == str(film)
    with Image.open(film) as pages:
        assert pages.n_frames == 2  # type: ignore[attr-defined]
    assert "exists" in call(capfd, *words, "--video", film)[2]
