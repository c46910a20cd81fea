"""`ebmtraj score`: images of any file against a store, by our features and by those of a given network."""

from __future__ import annotations

import json
import zipfile
from pathlib import Path

import numpy as np
import pytest
from commands import call
from numpy.lib import format as npy

from ebmtraj.datasets.images import ImageStore, open_images
from ebmtraj.errors import EbmtrajError
from ebmtraj.evaluation.image_features import JudgeConfig, judge_of
from ebmtraj.evaluation.onnx_features import FeatureNetwork
from ebmtraj.report.score import read_images, score_images


@pytest.fixture(autouse=True)
def quick_judge(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ebmtraj.report.score.judge_of", lambda store: judge_of(store, JudgeConfig(steps=200)))


@pytest.fixture(scope="module")
def digits(tmp_path_factory: pytest.TempPathFactory) -> ImageStore:
    return open_images("digits", tmp_path_factory.mktemp("data"))


def test_real_images_score_the_floor_and_noise_does_not(
    digits: ImageStore, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    train, test = digits.read("train"), digits.read("test")
    np.savez(tmp_path / "real.npz", pixels=test.pixels, labels=test.labels)
    noise = np.random.default_rng(0).random(test.pixels.shape, np.float32)
    np.savez_compressed(tmp_path / "noise.npz", pixels=noise)
    np.savez_compressed(tmp_path / "copies.npz", pixels=train.pixels[: len(test.pixels)])
    found = {}
    for name in ("real", "noise", "copies"):
        code, out, err = call(capfd, "score", tmp_path / f"{name}.npz", "--data", digits.path, "--json")
        assert code == 0, err
        found[name] = json.loads(out)
    assert found["real"]["frechet"] == pytest.approx(0, abs=1e-6)
    assert found["real"]["classes"]["agreement"] > 0.95
    assert found["noise"]["frechet"] > 20 * found["noise"]["floor"]["frechet"]
    assert found["copies"]["memory"]["copying"] > 0.99
    assert found["copies"]["frechet"] < 3 * found["copies"]["floor"]["frechet"]
    code, _, err = call(capfd, "score", tmp_path / "noise.npz", "--data", digits.path)
    assert code == 0
    assert "Frechet" in err


@pytest.mark.parametrize(
    ("arrays", "said"),
    [
        ({"images": np.zeros((3, 1, 8, 8))}, "no array `pixels`"),
        ({"pixels": np.zeros((3, 1, 9, 9))}, "have shape (3, 1, 9, 9)"),
        ({"pixels": np.full((3, 1, 8, 8), 255)}, "from 0 to 1"),
        ({"pixels": np.full((3, 1, 8, 8), np.nan)}, "from 0 to 1"),
        ({"pixels": np.zeros((3, 1, 8, 8)), "labels": np.array([0, 1, 10])}, "from 0 to 9"),
        ({"pixels": np.array([{}])}, "pickled objects"),
    ],
)
def test_what_does_not_fit_is_one_line(
    digits: ImageStore, tmp_path: Path, capfd: pytest.CaptureFixture[str], arrays: dict, said: str
) -> None:
    np.savez(tmp_path / "x.npz", **arrays)
    code, _, err = call(capfd, "score", tmp_path / "x.npz", "--data", digits.path)
    assert code == 2
    assert err.count("\n") == 1
    assert said in err


def test_a_file_that_says_far_more_than_it_holds_is_refused(digits: ImageStore, tmp_path: Path) -> None:
    header = {"descr": "<f8", "fortran_order": False, "shape": (10**9, 1, 8, 8)}
    with zipfile.ZipFile(tmp_path / "bomb.npz", "w") as archive, archive.open("pixels.npy", "w") as file:
        npy.write_array_header_1_0(file, header)
    np.savez(tmp_path / "fine.npz", pixels=np.zeros((4, 1, 8, 8), np.uint8))
    assert read_images(tmp_path / "fine.npz", digits)[0].shape == (4, 1, 8, 8)
    (tmp_path / "text.npz").write_text("no zip")
    for name, said in (("bomb", "no recording"), ("text", "can't be read as npz"), ("none", "does not exist")):
        with pytest.raises(EbmtrajError, match=said):
            read_images(tmp_path / f"{name}.npz", digits)


def network(path: Path, shape: list[int | str], matrix: np.ndarray) -> None:
    """An ONNX file that flattens images and multiplies them by a matrix."""
    onnx = pytest.importorskip("onnx")
    helper, numbers = onnx.helper, onnx.numpy_helper
    nodes = [helper.make_node("Flatten", ["x"], ["flat"]), helper.make_node("MatMul", ["flat", "m"], ["y"])]
    ends = [helper.make_tensor_value_info(name, 1, size) for name, size in (("x", shape), ("y", ["N", matrix.shape[1]]))]
    graph = helper.make_graph(nodes, "features", ends[:1], ends[1:], [numbers.from_array(matrix, "m")])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    path.write_bytes(model.SerializeToString())


def test_features_are_those_of_the_network(digits: ImageStore, tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime")
    draws = np.random.default_rng(0)
    matrix = draws.normal(size=(3 * 16 * 16, 5)).astype(np.float32)
    network(tmp_path / "f.onnx", ["N", 3, 16, 16], matrix)
    found = FeatureNetwork(tmp_path / "f.onnx")
    x = draws.random((70, 3, 16, 16), np.float32)
    np.testing.assert_allclose(found.features(x), x.reshape(70, -1) @ matrix, rtol=1e-4, atol=1e-4)
    grey = np.full((2, 1, 8, 8), 0.5, np.float32)  # made colour and larger
    np.testing.assert_allclose(found.features(grey), np.full((2, 768), 0.5) @ matrix, rtol=1e-4, atol=1e-4)
    with pytest.raises(EbmtrajError, match="takes images of 3 channels"):
        found.features(np.zeros((1, 2, 8, 8), np.float32))
    np.savez(tmp_path / "real.npz", pixels=digits.read("test").pixels)
    scores = score_images(tmp_path / "real.npz", digits, features=tmp_path / "f.onnx")["features"]
    assert scores["frechet"] == pytest.approx(0, abs=1e-6)
    assert scores["floor"]["frechet"] > 1e-3
    assert (scores["size"], len(scores["digest"])) == (5, 16)


def test_what_is_no_network_of_features_is_refused(tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime")
    (tmp_path / "text.onnx").write_text("no network")
    network(tmp_path / "flat.onnx", ["N", 768], np.zeros((768, 2), np.float32))
    for name, said in (("none", "does not exist"), ("text", "can't be read as ONNX"), ("flat", "takes one array")):
        with pytest.raises(EbmtrajError, match=said):
            FeatureNetwork(tmp_path / f"{name}.onnx")
