"""`ebmtraj train image` and `ebmtraj sample` as a user runs them."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from commands import call
from PIL import Image

from ebmtraj.datasets.images import CACHE

QUICK = ("--set", "training.steps=4", "--set", "training.batch=16", "--set", "training.check_every=2", "--set",
         "network.width=16")  # fmt: skip


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Trained in moments: of p(x | class), of p(x), and by the papers' objective."""
    from ebmtraj.images.fit import load_image_recipe, train_image

    folder = tmp_path_factory.mktemp("runs")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(CACHE, str(folder / "images"))
        quick = [word for word in QUICK if word != "--set"]
        for name, conditional in (("class", True), ("plain", False)):
            train_image(load_image_recipe(None, quick, {"conditional": conditional}), folder / name)
        pcd = [*quick[:-1], "network.channels=4", "network.sampler.steps=2", "network.sample_steps=4", "network.buffer=20"]
        train_image(load_image_recipe(None, pcd, {"model": "pcd"}), folder / "pcd")
    return {name: folder / name for name in ("class", "plain", "pcd")}


def test_train_image(capfd: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(CACHE, str(tmp_path / "images"))
    run = tmp_path / "run"
    code, out, err = call(capfd, "train", "image", "--data", "digits", "--run", run, "--conditional", *QUICK, "--json")
    assert code == 0, err
    said = json.loads(out)
    assert said["model"] == "dsm"
    assert said["conditional"] is True
    assert said["steps"] == 4
    assert Path(said["checkpoint"]).exists()
    code, out, err = call(capfd, "train", "image", "--run", run, "--conditional", *QUICK)
    assert (code, "use --resume" in err) == (2, True)
    code, out, err = call(capfd, "train", "image", "--run", run, "--conditional", *QUICK, "--resume", "--json")
    assert code == 0, err
    assert json.loads(out)["validation"] == said["validation"]


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (("--objective", "cd"), "unknown objective 'cd'; use one of dsm, pcd"),
        (("--model", "diffusion"), "unknown model 'diffusion'; use one of energy, "),
        (("--model", "field", "--objective", "pcd"), "drop it with --model field"),
        (("--data", "digit"), "neither a store nor a source"),
        (("--set", "network.with=3"), "did you mean width"),
        (("--set", "network.base=mixed"), "network: base = 'mixed'"),
        (("--set", "training.episodes=9999"), "has 1257 images"),
    ],
)
def test_train_image_says_what_is_wrong(
    words: tuple[str, ...], told: str, capfd: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(CACHE, str(tmp_path / "images"))
    code, _, err = call(capfd, "train", "image", "--run", tmp_path / "run", *words)
    assert code == 2, err
    assert told in err
    assert err.count("\n") == 1


def test_sample(capfd: pytest.CaptureFixture[str], runs: dict[str, Path], tmp_path: Path) -> None:
    out = tmp_path / "a.npz"
    code, said, err = call(capfd, "sample", runs["class"], "-n", 25, "--out", out, "--seed", 3, "--json")
    assert code == 0, err
    facts = json.loads(said)
    assert facts["shape"] == [25, 1, 8, 8]
    assert facts["seed"] == 3
    with np.load(out) as held:
        pixels, labels = held["pixels"], held["labels"]
    assert pixels.dtype == np.float32
    assert 0 <= pixels.min() <= pixels.max() <= 1
    assert set(labels.tolist()) == set(range(10))
    again, other = tmp_path / "b.npz", tmp_path / "c.npz"
    call(capfd, "sample", runs["class"], "-n", 25, "--out", again, "--seed", 3)
    call(capfd, "sample", runs["class"], "-n", 25, "--out", other, "--seed", 4)
    assert np.array_equal(np.load(again)["pixels"], pixels)
    assert not np.array_equal(np.load(other)["pixels"], pixels)
    code, said, err = call(capfd, "sample", runs["class"], "-n", 4, "--out", tmp_path / "d.npz", "--label", 7, "--json")
    assert code == 0, err
    assert np.load(tmp_path / "d.npz")["labels"].tolist() == [7] * 4


def test_sample_draws_a_grid_and_the_chain(capfd: pytest.CaptureFixture[str], runs: dict[str, Path], tmp_path: Path) -> None:
    grid, film = tmp_path / "grid.png", tmp_path / "chain.gif"
    code, _, err = call(capfd, "sample", runs["plain"], "-n", 9, "--out", grid, "--chain", film)
    assert code == 0, err
    with Image.open(grid) as picture, Image.open(film) as moving:
        assert picture.size == (3 * 66 - 2, 3 * 66 - 2)
        assert moving.n_frames > 10  # type: ignore[attr-defined]
    code, _, err = call(capfd, "sample", runs["pcd"], "-n", 9, "--out", tmp_path / "buffer.png", "--buffer")
    assert code == 0, err


@pytest.mark.parametrize(
    ("run", "words", "told"),
    [
        ("class", ("--label", "eleven"), "no such class; use 0 to 9"),
        ("class", ("--label", "10"), "no such class; use 0 to 9"),
        ("plain", ("--label", "1"), "trained without labels"),
        ("plain", ("--buffer",), "without a replay buffer; drop --buffer"),
        ("plain", ("--out", "x.jpg"), "ends in .npz or .png"),
        ("plain", ("--chain", "x.mp4"), "ends in .gif"),
        ("plain", ("--set", "sampler.stepz=1"), "stepz"),
        ("nowhere", (), "does not exist; train it first: ebmtraj train image"),
    ],
)
def test_sample_says_what_is_wrong(
    run: str, words: tuple[str, ...], told: str, capfd: pytest.CaptureFixture[str], runs: dict[str, Path], tmp_path: Path
) -> None:
    out = () if "--out" in words else ("--out", tmp_path / "out.npz")
    code, _, err = call(capfd, "sample", runs.get(run, tmp_path / run), "-n", 2, *out, *words)
    assert code == 2, err
    assert told in err
    assert err.count("\n") == 1
    assert not (tmp_path / "out.npz").exists()
