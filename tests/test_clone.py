"""Cloned policies: labels of hindsight, a mixture that tells modes apart, runs, and the command."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch
from commands import call

from ebmtraj.datasets.ahead import Windows
from ebmtraj.datasets.coordinates import quaternion_exp, quaternion_multiply
from ebmtraj.datasets.windows import Past, Transitions
from ebmtraj.device import use_threads
from ebmtraj.errors import EbmtrajError
from ebmtraj.fields import Field
from ebmtraj.runs import Run
from ebmtraj.training.loop import train
from ebmtraj.training.settings import TrainingConfig
from ebmtraj.trajectories.clone import CloneConfig, CloneModel, goal_label, rotation_to, turn_label
from ebmtraj.trajectories.clone_fit import load_clone

BODY = (Field("turn", 4, "quaternion", entries=("w", "x", "y", "z")),)
PUSH = (Field("push", 2, low=(-1.0, -1.0), high=(1.0, 1.0)),)


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def spinner(episodes: int = 60, steps: int = 12, seed: int = 0) -> Windows:
    """A body that turns about x by a tenth of the first action and about z by a tenth of the second, in rad.

    In each episode, one of the two is held at +0.8 or -0.8, the other at 0.
    """
    which = torch.randint(4, (episodes,), generator=seeded(seed))
    force = torch.zeros(episodes, 2)
    force[torch.arange(episodes), which // 2] = torch.where(which % 2 == 0, 0.8, -0.8)
    action = force.unsqueeze(1).expand(-1, steps, -1)
    state = [quaternion_exp(0.1 * torch.randn(episodes, 3, generator=seeded(seed + 1)))]
    turn = torch.stack((0.1 * force[:, 0], torch.zeros(episodes), 0.1 * force[:, 1]), dim=1)
    for _ in range(steps):
        state.append(quaternion_multiply(quaternion_exp(turn), state[-1]))
    rows = torch.arange(episodes).unsqueeze(1) * (steps + 1) + torch.arange(steps)
    firsts = (torch.arange(episodes) * (steps + 1)).repeat_interleave(steps)
    flat = torch.arange(episodes * steps)
    data = Transitions(
        torch.stack(state, 1).flatten(0, 1), action.flatten(0, 1), rows.flatten(), flat, firsts=firsts, history=1
    )
    starts = (torch.arange(episodes).unsqueeze(1) * steps + torch.arange(steps - 3)).flatten()
    lasts = (torch.arange(episodes) * (steps + 1) + steps).repeat_interleave(steps - 3)
    return Windows(data, starts, lasts, actions=1, horizons=(4,))


def cloned(label: str, folder: Path) -> CloneModel:
    use_threads(1)
    config = CloneConfig(width=32, depth=1, components=2, actions=1, horizons=(4,))
    torch.manual_seed(0)
    model = CloneModel(BODY, PUSH, label=label, config=config, environment={})
    model.prepare(spinner())
    train(
        model,
        spinner(),
        spinner(seed=5),
        TrainingConfig(steps=400, learning_rate=1e-2, batch=64, warmup=20),
        Run.create(folder),
    )
    return model


@pytest.mark.parametrize("label", ["axis", "goal"])
def test_what_is_asked_is_done(label: str, tmp_path: Path) -> None:
    """From one state, with no past: the label alone tells which of four actions is meant."""
    model = cloned(label, tmp_path / "run")
    state = torch.tensor([[1.0, 0, 0, 0]]).repeat(4, 1)
    turn = 0.32 * torch.tensor([[1.0, 0, 0], [-1, 0, 0], [0, 0, 1], [0, 0, -1]])
    told = turn_label(turn) if label == "axis" else goal_label(turn)
    for by in ("weight", "density", "mean"):
        done = model.act(state, Past.unknown(state, 1, 2), told, by, seeded(0))[:, 0]
        torch.testing.assert_close(done, turn[:, [0, 2]] * 2.5, atol=0.15, rtol=0)


def test_told_nothing_it_takes_any_of_what_the_data_does(tmp_path: Path) -> None:
    model = cloned("none", tmp_path / "run")
    state = torch.tensor([[1.0, 0, 0, 0]]).repeat(400, 1)
    done = model.act(state, Past.unknown(state, 1, 2), None, "sample", seeded(0))[:, 0]
    assert done.abs().max() <= 1
    assert done.std(0).min() > 0.3
    assert done.mean(0).abs().max() < 0.4


def test_labels_of_rotations() -> None:
    half = math.sqrt(0.5)
    turn = rotation_to(torch.tensor([[1.0, 0, 0, 0]]), torch.tensor([[half, 0, -half, 0]]))
    torch.testing.assert_close(turn, torch.tensor([[0.0, -math.pi / 2, 0.0]]))
    assert turn_label(turn)[0].tolist() == pytest.approx([0, 0, 0, 1, 0, 0, math.pi])
    far = goal_label(torch.tensor([[0.0, 0.0, 3.0], [0.3, 0.0, 0.0], [0.0, 0.0, 0.0]]))
    torch.testing.assert_close(far, torch.tensor([[0, 0, 2.4, 2.4], [0.6, 0, 0, 0.6], [0, 0, 0, 0]]))


def test_bad_settings_are_named() -> None:
    with pytest.raises(EbmtrajError, match=r"network.blind = 1.5"):
        CloneConfig(blind=1.5)
    with pytest.raises(EbmtrajError, match="needs a state with one quaternion, not 0; use label none"):
        CloneModel((Field("x", 1),), PUSH, label="axis", config=CloneConfig(), environment={})


def test_the_command(hand_store: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    tiny = [
        *("--set", "training.steps=12", "--set", "training.check_every=6", "--set", "training.batch=16"),
        *("--set", "network.width=16", "--set", "network.horizons=[2,8]", "--device", "cpu"),
    ]
    words = ["train", "clone", "--data", hand_store, "--run", tmp_path / "run", "--label", "goal", *tiny]
    code, out, err = call(capfd, *words, "--json")
    assert code == 0, err
    assert json.loads(out)["steps"] == 12
    model, header = load_clone(tmp_path / "run")
    assert (model.label, header["kind"]) == ("goal", "clone")
    code, _, err = call(capfd, *words)
    assert code == 2
    assert "--resume" in err
    code, _, err = call(capfd, *words, "--resume", "--set", "network.width=8")
    assert code == 2
    assert "network.width = 16, not 8" in err
    code, _, err = call(capfd, "train", "clone", "--data", hand_store, "--run", tmp_path / "b", "--label", "gaol")
    assert code == 2
    assert "unknown label 'gaol'" in err
    code, _, err = call(capfd, "plan", tmp_path / "run", "--task", "reorient")
    assert code == 2
    assert "holds a clone model, which does not plan" in err
