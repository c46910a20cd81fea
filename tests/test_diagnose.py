"""`ebmtraj diagnose` on tiny real runs, and what it finds where the truth is known."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from commands import call
from torch import Tensor

from ebmtraj.report.diagnose import AtLevel, Probe, _found, notes
from ebmtraj.samplers.mcmc import MALAConfig, mala

torch.set_num_threads(1)
TINY = ["--set", "training.steps=30", "--set", "training.check_every=30", "--set", "training.log_every=10"]
TINY += ["--set", "training.batch=32", "--set", "network.width=16", "--device", "cpu"]
SHORT = ["--contexts", 6, "--chains", 2, "--steps", 32, "--device", "cpu"]


@pytest.fixture(scope="module")
def runs(hand_store: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    made = {}
    with pytest.MonkeyPatch.context() as patch:
        from ebmtraj.cli import app

        for name, words in {"dsm": ["--actions"], "cd": ["--objective", "cd"], "gaussian": ["--model", "gaussian"]}.items():
            made[name] = tmp_path_factory.mktemp("runs") / name
            command = ["ebmtraj", "train", "transition", "--data", hand_store, "--run", made[name], *words, *TINY]
            patch.setattr("sys.argv", [str(word) for word in command])
            with pytest.raises(SystemExit) as stop:
                app.main()
            assert not stop.value.code
    return made


@pytest.mark.parametrize("name", ["dsm", "cd"])
def test_a_run_is_diagnosed(name: str, runs: dict[str, Path], tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    picture = tmp_path / "d.png"
    code, out, err = call(capfd, "diagnose", runs[name], *SHORT, "--plot", picture, "--json")
    assert code == 0, err
    found: dict[str, Any] = json.loads(out)
    assert found["model"] == name
    assert found["plot"] == str(picture)
    assert picture.read_bytes().startswith(b"\x89PNG")
    assert (found["level"] is None) == (name == "cd")
    assert (found["own_step"] is None) == (name == "dsm")
    assert 0 < found["acceptance"] <= 1
    assert 0 < found["ess_per_step_min"] <= found["ess_per_step_median"]
    assert found["rhat_max"] >= found["rhat_median"] > 0.9
    code, out, err = call(capfd, "diagnose", runs[name], *SHORT)
    assert code == 0
    assert out == ""
    assert "split R-hat, greatest" in err
    again = json.loads(call(capfd, "diagnose", runs[name], *SHORT, "--json")[1])
    assert {k: v for k, v in again.items() if k not in ("seconds", "plot")} == {
        k: v for k, v in found.items() if k not in ("seconds", "plot")
    }
    code, _, err = call(capfd, "diagnose", runs[name], *SHORT, "--plot", picture)
    assert code == 2
    assert "exists; give another path or --overwrite" in err


def test_wrong_input_is_one_line(runs: dict[str, Path], tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    for words, said in (
        ([runs["gaussian"]], "model 'gaussian' has no energy to follow; diagnose one of dsm, cd"),
        ([runs["cd"], "--level", 0.1], "model 'cd' has no noise levels"),
        ([runs["dsm"], "--level", -1], "a noise level must be above 0"),
        ([runs["dsm"], "--plot", tmp_path / "d.pdf"], "ends in .png"),
        ([tmp_path / "none"], "does not exist"),
        ([runs["dsm"], "--data", tmp_path / "none.zarr"], "does not exist"),
    ):
        code, out, err = call(capfd, "diagnose", *words, *SHORT)
        assert code == 2
        assert said in err
        assert err.count("\n") == 1
        assert out == ""


def bowl(x: Tensor, context: Tensor) -> Tensor:
    return 0.5 * (x - context).square().sum(-1) + 100 * context[:, 0]


@pytest.mark.parametrize("spread", [1.0, 2.0, 0.5])
def test_draws_in_and_out_of_equilibrium_are_told_apart(spread: float) -> None:
    """Draws of spread s lie 8 (s^2 - 1) / 2 nats above a unit Gaussian's energy in 8-D, whatever the context's constant."""
    noise = torch.Generator().manual_seed(0)
    context = torch.randn(32, 8, generator=noise).repeat_interleave(8, dim=0)
    drawn = context + spread * torch.randn(256, 8, generator=noise)
    true = context + torch.randn(256, 8, generator=noise)
    probe = Probe(bowl, context, drawn, true, lambda x: x, None, 0.5)
    _, info = mala(bowl, drawn, MALAConfig(steps=200, step_size=0.8, record=True, keep=1), context=context, generator=noise)
    found = _found(info, probe, 8, 0.8, noise)
    expected = 4 * (spread**2 - 1)
    assert found.results["energy_of_draws"] == pytest.approx(expected, abs=0.6)
    assert found.results["energy_of_data"] == pytest.approx(0, abs=0.4)
    assert found.results["energy_deviation"] == pytest.approx(2, rel=0.1)  # of chi-square / 2 with 8 degrees
    assert found.results["own_step"]["acceptance"] > 0.8
    assert ("they look like samples of it" in notes(found.results)[0]) == (spread == 1)
    assert found.results["rhat_median"] < 1.05


def test_a_level_is_passed_on() -> None:
    class Tilt:
        def __call__(self, x: Tensor, context: None, level: Tensor) -> Tensor:
            return level * x.sum(-1)

        def gradient(self, x: Tensor, context: None, level: Tensor) -> Tensor:
            return level * torch.ones_like(x)

    at = AtLevel(Tilt(), 0.3, torch.device("cpu"))
    x = torch.ones(2, 5)
    torch.testing.assert_close(at(x, None), torch.full((2,), 1.5))
    torch.testing.assert_close(at.gradient(x, None), torch.full((2, 5), 0.3))
