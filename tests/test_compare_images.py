"""Comparisons of image models: a tiny real one of each table, resumed; what they measure; what is refused."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from commands import call
from threadpoolctl import threadpool_limits

from ebmtraj.datasets.images import ImageStore, open_images
from ebmtraj.evaluation.image_features import Judge, JudgeConfig, train_judge
from ebmtraj.images.data import ImageData
from ebmtraj.images.model import ImageModel
from ebmtraj.images.registry import make_image_model
from ebmtraj.report import compare_images_run, measure_images
from ebmtraj.report.compare_images import ROWS, ImageComparison, ImageJob
from ebmtraj.report.compare_images_table import SECTIONS, markdown_images
from ebmtraj.report.measure_images import Subject, draw, floor, generation, memory

QUICK = JudgeConfig(steps=150, batch=64)
TINY = ("--set", "all.training.steps=12", "--set", "all.training.check_every=6", "--set", "all.training.batch=16")


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    with threadpool_limits(1):
        yield


@pytest.fixture(scope="module")
def digits(tmp_path_factory: pytest.TempPathFactory) -> ImageStore:
    return open_images("digits", tmp_path_factory.mktemp("images"))


class Copier(ImageModel):
    """A model that hands out given images, whatever it is."""

    name = "copier"
    Config = JudgeConfig

    def __init__(self, pixels: np.ndarray, labels: np.ndarray | None) -> None:
        super().__init__((1, 8, 8), tuple("0123456789"), conditional=labels is not None, config=JudgeConfig())
        self.images, self.labels, self.drawn = torch.from_numpy(pixels), labels, 0

    def stages(self) -> list[Any]:
        return []

    def sample(self, count: int, generator: torch.Generator, labels: Any = None, *, watch: Any = None) -> torch.Tensor:
        if labels is None:
            self.drawn += count
            return self.images[torch.arange(self.drawn - count, self.drawn) % len(self.images)]
        return torch.stack([self.images[np.flatnonzero(self.labels == int(k))[i % 90]] for i, k in enumerate(labels)])


def test_real_images_score_as_the_floor_and_copies_are_seen(digits: ImageStore, judge: Judge) -> None:
    train, test = digits.read("train"), digits.read("test")
    real = floor(digits, judge, "test")["generation"]
    copies = Subject(Copier(train.pixels, train.labels), digits, judge)
    pixels, asked = draw(copies)
    found, said = generation(copies, pixels, asked), memory(copies, pixels)
    assert asked is not None
    assert np.ptp(np.bincount(asked)) <= 1
    assert found["agreement"] > 0.95
    assert found["frechet_test"] < 2 * real["frechet_test"]
    assert found["frechet"] < real["frechet_test"]
    assert said["nearest_samples"] == pytest.approx(0, abs=2e-3)
    assert said["copying"] > 0.99
    fresh = Subject(Copier(test.pixels, None), digits, judge, samples=360)
    pixels, asked = draw(fresh)
    assert asked is None
    assert memory(fresh, pixels)["copying"] == pytest.approx(0.5)
    assert generation(fresh, pixels, None)["spread"] == pytest.approx(real["spread"], rel=0.02)  # by judged classes


@pytest.fixture(scope="module")
def judge(digits: ImageStore) -> Judge:
    return train_judge(digits, QUICK)


@pytest.fixture
def quick_judge(judge: Judge, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(measure_images, "RESTORED", 3)
    monkeypatch.setattr(measure_images, "ATTACKED", 4)
    for place in ("ebmtraj.report.compare_images_run.judge_of", "ebmtraj.evaluation.image_features.judge_of"):
        monkeypatch.setattr(place, lambda *args, **more: judge)


@pytest.mark.usefixtures("quick_judge")
def test_a_comparison_is_made_resumed_and_tabled(
    digits: ImageStore, tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "images.json"
    words = ["compare", "images", "--data", digits.path, "--models", "energy,class-gaussian,gaussian-class", "--seeds", 1]
    words += ["--workers", 1, "--samples", 60, "--out", out, "--json", *TINY, "--set", "energy.network.base=unit"]
    code, said, err = call(capfd, *words, "--pictures", tmp_path / "pictures")
    assert code == 0, err
    results = json.loads(said)
    assert (tmp_path / "pictures" / "images.png").exists()
    assert json.loads(out.read_text())["summary"] == results["summary"]
    energy, gaussian = results["summary"]["energy"], results["summary"]["class-gaussian"]
    assert energy["training.steps"]["median"] == 12
    assert gaussian["generation.frechet"]["median"] < energy["generation.frechet"]["median"]
    assert results["summary"]["gaussian-class"]["generation.agreement"]["median"] > 0.9
    assert results["stability"] == {"model": "energy", "seeds": 1, "diverged": 0, "rolled_back": 0}
    assert energy["restoration.inpainting_mean"]["median"] < energy["restoration.inpainting_one"]["median"]
    assert "| median filter |" in markdown_images(results, SECTIONS["images"]["restoration"])
    table = markdown_images(results, SECTIONS["images"]["samples"])
    assert "| ten class Gaussians | **" in table
    assert table.count("\n") == 5  # header, rule, two models and the floor
    trained = {"rollbacks": 1, "steps": 1, "seconds": 1.0}
    monkeypatch.setattr(compare_images_run, "_train", lambda job: trained)
    code, said, err = call(capfd, *words, "--resume", "--stability", 3)  # what is done is not done again
    assert code == 0, err
    again = json.loads(said)
    assert again["summary"] == results["summary"]
    assert again["stability"] == {"model": "energy", "seeds": 3, "diverged": 0, "rolled_back": 2}
    added = {**compare_images_run.MEASURES["images"], "later": lambda subject: {"of": subject.model.name}}
    monkeypatch.setattr(compare_images_run, "MEASURES", {"images": added})  # a measure that came later
    code, said, err = call(capfd, *words, "--resume")
    assert code == 0, err
    assert [row["later.of"] for row in json.loads(said)["rows"]] == ["dsm", "class-gaussian", "class-gaussian"]
    assert json.loads(said)["summary"] == results["summary"]
    code, said, err = call(capfd, *words[:5], "energy,gmm,class-gaussian,gaussian-class", *words[6:], "--done-only")
    assert code == 0, err
    assert list(json.loads(said)["summary"]) == ["energy", "class-gaussian", "gaussian-class"]  # gmm was never trained
    assert "exists" in fault(capfd, *words)
    words[words.index("all.training.steps=12")] = "all.training.steps=13"
    assert "was begun with training.steps = 12, not 13" in fault(capfd, *words, "--resume")


def fault(capfd: pytest.CaptureFixture[str], *words: object) -> str:
    code, _, err = call(capfd, *words)
    assert code == 2
    return err.strip().splitlines()[-1]


def test_composed_class_energies_sample_what_they_say(
    digits: ImageStore, judge: Judge, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(measure_images, "COMPOSED", 80)
    monkeypatch.setattr(measure_images, "CORRECTORS", 0)
    settings = {"base": "gaussian", "components": 1}  # Gaussians of each class, whose tilt has not learnt anything yet
    model = make_image_model("dsm", digits.shape, digits.classes, conditional=True, network=settings, seed=0)
    assert measure_images.composition(Subject(Copier(digits.read("train").pixels, None), digits, judge)) == {}
    field = make_image_model("field", digits.shape, digits.classes, conditional=True, network={}, seed=0)
    assert measure_images.composition(Subject(field, digits, judge)) == {}
    model.prepare(ImageData.load(digits, "train", torch.device("cpu")))
    found = measure_images.composition(Subject(model.eval(), digits, judge))
    assert found["either"] > 0.9
    assert 0.3 < found["either_first"] < 0.7
    assert found["without_first"] <= 0.05
    assert found["without_rarest"] > 0.02


@pytest.mark.usefixtures("quick_judge")
def test_jem_rows_are_measured_as_classifiers(digits: ImageStore, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "jem.json"
    words = ["compare", "jem", "--data", digits.path, "--models", "class-gaussian,gaussian", "--seeds", 2, "--samples", 60]
    code, said, err = call(capfd, *words, "--workers", 1, "--out", out, "--json", *TINY)
    assert code == 0, err
    results = json.loads(said)
    assert [row["model"] for row in results["rows"]] == ["class-gaussian", "gaussian"]  # one seed is enough for these
    assert results["summary"]["class-gaussian"]["classes.accuracy"]["median"] > 0.9
    assert "classes.accuracy" not in results["summary"]["gaussian"]
    assert results["summary"]["gaussian"]["foreign.log_p.noise"]["median"] > 0.9
    attacked = results["summary"]["class-gaussian"]
    assert attacked["robustness.refine_0.lowest"]["median"] <= attacked["robustness.refine_0.pgd.0.2"]["median"]
    assert attacked["robustness.refine_0.l2.lowest"]["median"] <= attacked["robustness.refine_0.l2.pgd.0.5"]["median"]
    assert "| ten class Gaussians |" in markdown_images(results, SECTIONS["jem"]["robustness"])
    assert "refined" not in [name for name, s in SECTIONS["jem"].items() if "Gaussians" in markdown_images(results, s)]
    assert "ten class Gaussians" in markdown_images(results, SECTIONS["jem"]["log_p"])
    code, said, err = call(capfd, *words, "--workers", 1, "--out", out, "--json", *TINY, "--resume", "--attacked", 0)
    assert code == 0, err
    assert not [key for key in json.loads(said)["summary"]["class-gaussian"] if key.startswith("robustness")]  # not asked


def test_what_is_wrong_is_said_before_any_work(
    digits: ImageStore, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    words = ("compare", "images", "--data", digits.path, "--out", tmp_path / "x.json")
    assert "unknown row 'nope'" in fault(capfd, *words, "--models", "nope")
    assert "--split train" in fault(capfd, *words, "--models", "gaussian", "--split", "train")
    assert "say whose setting it is" in fault(capfd, *words, "--models", "gaussian", "--set", "steps=3")
    assert "unknown row" in fault(capfd, *words, "--models", "gaussian", "--set", "nope.training.steps=3")
    assert "row gaussian: recipe: network: unknown key flor" in fault(
        capfd, *words, "--models", "gaussian", "--set", "gaussian.network.flor=3"
    )
    assert "ends in .json" in fault(capfd, *words[:-1], tmp_path / "x.txt")
    assert not (tmp_path / "x").exists()


def test_every_row_is_a_model_with_settings_that_it_has(digits: ImageStore, tmp_path: Path) -> None:
    for kind in ("images", "jem"):
        comparison = ImageComparison(kind, digits.path, tuple(ROWS[kind]), (0,), tmp_path)
        for name, row in ROWS[kind].items():
            asked = ImageJob(name, 3, comparison).asked()
            assert (asked["model"], asked["training"]["seed"]) == (row.model, 3)
