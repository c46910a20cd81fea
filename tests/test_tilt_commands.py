"""`ebmtraj train generator`, `ebmtraj tilt` and `ebmtraj compare tilting` as a user runs them."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from commands import call
from PIL import Image

from ebmtraj.datasets.images import CACHE
from ebmtraj.errors import EbmtrajError
from ebmtraj.generators.tilt_fit import load_tilt, tilt_recipe, train_tilt

QUICK = ("--set", "training.steps=40", "--set", "training.check_every=20")
TILT = ("--set", "training.steps=20", "--set", "training.check_every=10", "--set", "network.pool=500", "--set",
        "network.start=2", "--set", "network.sampler.steps=4", "--samples", "100")  # fmt: skip


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of named sources."""
    return tmp_path_factory.mktemp("images")


def test_a_plane_from_training_to_pictures(capfd: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    run = tmp_path / "roll"
    code, out, err = call(capfd, "train", "generator", "--data", "swiss-roll", "--run", run, *QUICK, "--json")
    assert code == 0, err
    assert json.loads(out)["model"] == "vae"
    code, out, err = call(capfd, "tilt", run, *TILT, "--json")
    assert code == 0, err
    said = json.loads(out)
    assert set(said["before"]) == set(said["after"]) == {"share", "sigmas", "count", "sliced_wasserstein"}
    assert said["train_seconds"] > 0
    assert said["objective"] == "both"
    names = {Path(path).name for path in said["pictures"]}
    assert names == {"before-after.png", "path.gif"}
    with Image.open(run / "tilt" / "figures" / "path.gif") as film:
        assert getattr(film, "n_frames", 1) > 1
    code, out, err = call(capfd, "tilt", run, *TILT)
    assert (code, "--overwrite" in err) == (2, True)
    # what is no generator, or no longer the one that was tilted
    code, out, err = call(capfd, "tilt", run / "tilt")
    assert (code, "no generator" in err) == (2, True), err
    code, out, err = call(
        capfd, "train", "generator", "--data", "swiss-roll", "--run", run, *QUICK, "--seed", 1, "--overwrite"
    )
    assert code == 0, err
    assert not (run / "tilt").exists()
    quick = [word for word in TILT[:-2] if word != "--set"]
    train_tilt(tilt_recipe(run, quick, objective="likelihood", method="mala"), tmp_path / "apart", device="cpu")
    assert load_tilt(tmp_path / "apart")[0].sample(20, torch.Generator().manual_seed(0)).shape == (20, 2)
    shutil.rmtree(run)
    call(capfd, "train", "generator", "--data", "swiss-roll", "--run", run, *QUICK, "--seed", 2)
    with pytest.raises(EbmtrajError, match="trained anew"):
        load_tilt(tmp_path / "apart")


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (("train", "generator", "--run", "x", "--model", "vea"), "did you mean vae"),
        (("train", "generator", "--run", "x", "--data", "swiss"), "toys are 25-gaussians"),
        (("train", "generator", "--run", "x", "--data", "swiss-roll", "--model", "glow"), "is for images"),
        (("train", "generator", "--run", "x", "--set", "network.latnet=3"), "did you mean latent"),
        (("tilt", "nowhere"), "does not exist"),
        (("tilt", "nowhere", "--split", "train"), "use test"),
        (("tilt", "nowhere", "--resume", "--overwrite"), "choose one"),
        (("compare", "tilting", "--models", "vea"), "unknown row 'vea'"),
        (("compare", "tilting", "--out", "x.txt"), ".json"),
        (("compare", "tilting", "--set", "network.width=3"), "unknown row"),
        (("compare", "tilting", "--set", "width=3"), "say whose setting it is"),
        (("compare", "tilting", "--models", "vae", "--set", "vae.network.widht=3"), "row vae"),
    ],
)
def test_bad_input_is_one_line(
    capfd: pytest.CaptureFixture[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    images: Path,
    words: tuple[str, ...],
    told: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv(CACHE, str(images))
    code, _, err = call(capfd, *words)
    assert code == 2, err
    assert told in err
    assert len(err.strip().splitlines()) == 1


def test_tilting_a_run_that_is_no_generator(
    capfd: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, images: Path
) -> None:
    monkeypatch.setenv(CACHE, str(images))
    code, _, err = call(capfd, "train", "image", "--data", "digits", "--model", "gaussian", "--run", tmp_path / "gaussian")
    assert code == 0, err
    code, _, err = call(capfd, "tilt", tmp_path / "gaussian")
    assert (code, "no generator with a latent space" in err) == (2, True), err


def test_a_small_comparison_goes_on_and_reports(
    capfd: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, images: Path
) -> None:
    monkeypatch.setenv(CACHE, str(images))
    quick = [
        word
        for row, more in (("vae", "network.width=16"), ("swiss-roll", "network.width=16"), ("energy", "network.width=16"))
        for change in ("training.steps=20", "training.check_every=10", more)
        for word in ("--set", f"{row}.{change}")
    ]
    for row in ("vae", "swiss-roll"):
        for change in ("training.steps=10", "training.check_every=5", "network.pool=200", "network.start=2",
                       "network.candidates=2", "network.sampler.steps=2", "network.chain.steps=2"):  # fmt: skip
            quick += ["--set", f"{row}.tilt.{change}"]
    out = tmp_path / "tilting.json"
    words = ("compare", "tilting", "--seeds", 1, "--samples", 60, "--workers", 1, "--out", out, *quick, "--json")
    monkeypatch.setattr("ebmtraj.report.compare_tilting_run.judge_of", _quick_judge)
    monkeypatch.setattr("ebmtraj.report.tilting.judge_of", _quick_judge)
    monkeypatch.setattr("ebmtraj.evaluation.image_features.judge_of", _quick_judge)
    code, said, err = call(capfd, *words, "--models", "swiss-roll")
    assert code == 0, err
    code, said, err = call(capfd, *words, "--models", "vae,energy,swiss-roll", "--resume", "--pictures", tmp_path / "made")
    assert code == 0, err
    found = json.loads(said)
    assert found["rows"] == json.loads(out.read_text())["rows"]
    by = {(row["model"], row["tilt"]): row for row in found["rows"]}
    assert set(by) == {
        ("vae", "none"),
        ("vae", "ratio"),
        ("vae", "likelihood"),
        ("energy", "none"),
        ("swiss-roll", "none"),
        ("swiss-roll", "both"),
    }
    assert sorted(path.relative_to(tmp_path / "made").as_posix() for path in (tmp_path / "made").rglob("*.*")) == [
        f"{row}/{name}" for row in ("swiss-roll", "vae") for name in ("before-after.png", "path.gif")
    ]
    ratio = by["vae", "ratio"]
    assert ratio["frechet_ratio"] == pytest.approx(ratio["frechet"] / by["vae", "none"]["frechet"], rel=1e-4)
    assert found["summary"]["vae"]["ratio"]["frechet"]["median"] == ratio["frechet"]
    assert found["floor"]["swiss-roll"]["share"] > 0.9
    code, _, err = call(capfd, *words, "--models", "vae", "--resume", "--set", "vae.network.beta=2")
    assert (code, "network.beta" in err) == (2, True), err
    _check_tables(found)


def _quick_judge(store, config=None, *, folder=None, device="cpu"):  # type: ignore[no-untyped-def]
    from ebmtraj.evaluation.image_features import JudgeConfig, train_judge

    return train_judge(store, JudgeConfig(steps=30))


def _check_tables(results: dict) -> None:  # type: ignore[type-arg]
    """Docs tables take such a file, and hold its numbers."""
    import importlib.util

    path = Path(__file__).parent.parent / "docs" / "tables_tilting.py"
    spec = importlib.util.spec_from_file_location("tables_tilting", path)
    assert spec is not None
    assert spec.loader is not None
    tables = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(tables)
    text = tables.images_table(results)
    assert f"{results['summary']['vae']['ratio']['frechet']['median']:.3f}" in text
    assert "energy on pixels" in text
    assert "Swiss roll" in tables.toys_table(results)
