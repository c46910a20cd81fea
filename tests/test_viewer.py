"""The viewer: what it says where there is no display, and what it shows where there is one (MuJoCo's window is played)."""

from __future__ import annotations

import contextlib
import time
from pathlib import Path
from typing import Any

import mujoco
import mujoco.viewer
import numpy as np
import pytest
import torch
from commands import call

from ebmtraj.envs import viewer
from ebmtraj.envs.pictures import make_scenery
from ebmtraj.envs.registry import make_batch
from ebmtraj.envs.scenery import Overlay
from ebmtraj.errors import EbmtrajError
from ebmtraj.report.live import Live
from ebmtraj.trajectories.control import Decision
from ebmtraj.trajectories.costs import parse_task
from ebmtraj.trajectories.execute import ExecuteConfig, execute
from ebmtraj.trajectories.terms.term import Path as Future


class Window:
    """What MuJoCo's handle is to us."""

    def __init__(self, model: mujoco.MjModel, data: mujoco.MjData, **_: Any) -> None:
        self.cam, self.user_scn, self.data = mujoco.MjvCamera(), mujoco.MjvScene(model, 500), data
        self.shown: list[tuple[np.ndarray, int]] = []
        self.texts: list[Any] = []
        self.open = True

    def is_running(self) -> bool:
        return self.open

    def lock(self) -> Any:
        return contextlib.nullcontext()

    def sync(self) -> None:
        self.shown.append((self.data.qpos.copy(), self.user_scn.ngeom))

    def set_texts(self, text: Any) -> None:
        self.texts.append(text[2])

    def close(self) -> None:
        self.open = False


@pytest.fixture
def window(monkeypatch: pytest.MonkeyPatch) -> list[Window]:
    made: list[Window] = []
    monkeypatch.setattr(viewer, "check_display", lambda *_: None)
    monkeypatch.setattr(mujoco.viewer, "launch_passive", lambda *a, **k: made.append(Window(*a, **k)) or made[-1])
    return made


def test_without_a_display_one_line_says_so(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(viewer.sys, "platform", "linux")
    for name in ("DISPLAY", "WAYLAND_DISPLAY"):
        monkeypatch.delenv(name, raising=False)
    code, out, err = call(capfd, "plan", tmp_path / "run", "--task", "rotate axis=z", "--interactive")
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert "needs a display" in err
    monkeypatch.setenv("DISPLAY", ":87")  # where nothing listens
    with pytest.raises(EbmtrajError, match="can't open a window on the display ':87'"):
        viewer.check_display()


class Still:
    """A controller that does nothing and plans to bend a finger."""

    def begin(self, *_: Any) -> None:
        pass

    def __call__(self, state: torch.Tensor, previous: torch.Tensor | None) -> Decision:
        later = state.clone().unsqueeze(1)
        later[..., 3] += 1.0
        return Decision(torch.zeros(1, 20), torch.zeros(1), Future(state, later, torch.tensor([16.0])))


def test_an_episode_is_shown_as_it_goes_on(window: list[Window]) -> None:
    env = make_batch("hand-cube")
    task = parse_task("rotate axis=z", env.state_fields).given("rotate", axis=torch.tensor([[0.0, 0.0, 1.0]]))
    with viewer.Viewer(make_scenery("hand-cube", {}), 0.02) as shown:
        began = time.perf_counter()
        done = execute(env, Live(Still(), shown), task, ExecuteConfig(1, 4, 0))
        assert time.perf_counter() - began > 3 * 0.02  # no faster than the robot
        (made,) = window
        assert len(made.shown) == 4
        for (qpos, ghosts), state in zip(made.shown, done.states[0], strict=False):
            np.testing.assert_allclose(qpos, state.numpy(), atol=1e-6)
            assert ghosts > 20  # fingers, cube and the ring of the turn
        assert made.texts[-1].startswith("step 3, turned ")
        made.open = False
        assert not shown.show(done.states[0, 0].numpy(), Overlay())
        assert len(made.shown) == 4


def test_rollouts_are_played_until_the_window_is_closed(window: list[Window]) -> None:
    from ebmtraj.cli.rollout import play

    env = make_batch("Reacher-v5", 1, "physics")
    env.close()
    rows = {"truth": np.zeros((3, 8), np.float32), "future 1": np.zeros((3, 8), np.float32)}
    rows["future 1"][:, 0] = 0.1 * np.arange(3)
    with viewer.Viewer(make_scenery("Reacher-v5", {}), 0.001) as shown:
        made = window[-1]
        sync = made.sync

        def sync_and_close() -> None:
            sync()
            if len(made.shown) == 8:  # two beyond one round
                made.open = False

        made.sync = sync_and_close  # type: ignore[method-assign]
        play(shown, rows)
    assert len(made.shown) == 8
    assert [qpos[0] for qpos, _ in made.shown[3:6]] == pytest.approx([0.0, 0.1, 0.2])
    assert made.texts[4] == "future 1, step 1 of 2"


def test_a_rollout_without_a_display_says_so_before_any_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    for name in ("DISPLAY", "WAYLAND_DISPLAY"):
        monkeypatch.delenv(name, raising=False)
    code, out, err = call(capfd, "rollout", tmp_path / "none", "--data", tmp_path / "none.zarr", "--interactive")
    assert (code, out) == (2, "")
    assert err == "error: --interactive needs a display, and there is none here; write a film instead: --gif futures.gif\n"
