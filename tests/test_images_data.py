"""Image stores: official formats byte for byte, what is refused, splits, sprites, and the commands."""

from __future__ import annotations

import dataclasses
import gzip
import hashlib
import io
import json
import struct
import tarfile
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from commands import call

from ebmtraj.datasets import image_archives as archives
from ebmtraj.datasets.image_sources import SOURCES, load_source
from ebmtraj.datasets.image_writer import RawImages, write_images
from ebmtraj.datasets.images import ImageStore, open_images, stratified_splits
from ebmtraj.datasets.sprites import render_sprites, sprites
from ebmtraj.errors import EbmtrajError


def idx(values: np.ndarray) -> bytes:
    head = bytes((0, 0, 8, values.ndim)) + struct.pack(f">{values.ndim}I", *values.shape)
    return gzip.compress(head + values.astype(np.uint8).tobytes())


def put(root: Path, file: archives.OfficialFile, body: bytes) -> archives.OfficialFile:
    """Write a tiny file in the official format, and say what its hash is."""
    (root / file.name).write_bytes(body)
    return dataclasses.replace(file, md5=hashlib.md5(body).hexdigest())


@pytest.fixture
def drawn() -> tuple[np.ndarray, np.ndarray]:
    generator = np.random.default_rng(0)
    return generator.integers(0, 256, (30, 28, 28), np.uint8), np.arange(30) % 10


def mnist_files(root: Path, images: np.ndarray, labels: np.ndarray) -> list[archives.OfficialFile]:
    bodies = [idx(images), idx(labels), idx(images[:10]), idx(labels[:10])]
    return [put(root, file, body) for file, body in zip(archives.MNIST_FILES, bodies, strict=True)]


def test_idx_files_are_read_byte_for_byte(tmp_path: Path, drawn: tuple[np.ndarray, np.ndarray]) -> None:
    raw = archives.idx_images("mnist", mnist_files(tmp_path, *drawn), archives.DIGITS, tmp_path)
    assert (raw.pixels[:30, 0] == drawn[0]).all()
    assert (raw.pixels[30:, 0] == drawn[0][:10]).all()
    assert (raw.labels == np.concatenate([drawn[1], drawn[1][:10]])).all()
    assert (raw.split[30:] == 2).all()
    assert np.bincount(raw.split[:30]).tolist() == [27, 3]
    store = write_images(tmp_path / "m.zarr", raw)
    assert (store.read("test").pixels[:, 0] == drawn[0][:10].astype(np.float32) / 255).all()


@pytest.mark.parametrize(("layout", "size"), [(archives.CIFAR10, 3073), (archives.CIFAR100, 3074)])
def test_cifar_archives_are_read_from_memory(tmp_path: Path, layout: archives.CifarLayout, size: int) -> None:
    generator = np.random.default_rng(1)
    bodies = {name: generator.integers(0, 10, (4, size), np.uint8) for name in (*layout.train, layout.test)}
    file = put(tmp_path, archives.CIFAR10_FILE, cifar_archive(layout, {k: v.tobytes() for k, v in bodies.items()}))
    raw = archives.cifar_images("cifar10", file, layout, tmp_path)
    rows = np.concatenate(list(bodies.values()))
    assert (raw.pixels.reshape(len(rows), -1) == rows[:, -3072:]).all()
    assert (raw.labels == rows[:, -3073]).all()  # of CIFAR-100 the fine label, the second byte
    assert raw.classes[1] == "class1"
    assert not (tmp_path.parent / "evil.bin").exists()  # the archive's other member was not unpacked


def cifar_archive(layout: archives.CifarLayout, bodies: dict[str, bytes]) -> bytes:
    out = io.BytesIO()
    names = "\n".join(f"class{i}" for i in range(layout.classes)).encode() + b"\n\n"
    with tarfile.open(fileobj=out, mode="w:gz") as archive:
        for name, body in {**bodies, layout.names: names, "../../evil.bin": b"x"}.items():
            member = tarfile.TarInfo(f"{layout.folder}/{name}")
            member.size = len(body)
            archive.addfile(member, io.BytesIO(body))
    return out.getvalue()


def svhn_body(labels: np.ndarray, pixels: np.ndarray) -> bytes:
    from scipy.io import savemat

    out = io.BytesIO()
    savemat(out, {"X": pixels, "y": labels[:, None]})
    return out.getvalue()


def test_svhn_files_are_read_with_ten_as_zero(tmp_path: Path) -> None:
    pixels = np.random.default_rng(2).integers(0, 256, (32, 32, 3, 12), np.uint8)
    labels = np.arange(1, 13) % 10 + 1
    files = [put(tmp_path, file, svhn_body(labels, pixels)) for file in archives.SVHN_FILES]
    raw = archives.svhn_images("svhn", files, tmp_path)
    assert (raw.pixels[5].transpose(1, 2, 0) == pixels[..., 5]).all()
    assert (raw.labels[:12] == np.where(labels == 10, 0, labels)).all()
    bad = [put(tmp_path, file, svhn_body(labels + 3, pixels)) for file in archives.SVHN_FILES]
    with pytest.raises(EbmtrajError, match=r"train_32x32\.mat: label 10 of image 6 is out of range 0 to 9"):
        archives.svhn_images("svhn", bad, tmp_path)


def test_a_wrong_file_is_named(tmp_path: Path, drawn: tuple[np.ndarray, np.ndarray]) -> None:
    files = mnist_files(tmp_path, *drawn)
    load = partial(archives.idx_images, "mnist", files, archives.DIGITS, tmp_path)
    renamed = tmp_path / files[2].name
    right = renamed.read_bytes()
    renamed.write_bytes((tmp_path / files[0].name).read_bytes())
    with pytest.raises(EbmtrajError, match=r"t10k-images-idx3-ubyte\.gz is corrupt or another file under this name"):
        load()
    renamed.write_bytes(right[:-9])
    with pytest.raises(EbmtrajError, match="t10k-images-idx3-ubyte"):
        load()
    files[2] = put(tmp_path, files[2], right[:-9])  # a pinned file that is cut short: only its reader can say so
    with pytest.raises(EbmtrajError, match=r"t10k-images-idx3-ubyte\.gz can't be read as a gzip file"):
        load()
    files[2] = put(tmp_path, files[2], idx(drawn[1][:10]))
    with pytest.raises(EbmtrajError, match="is not an IDX file of bytes with 3 dimensions"):
        load()
    files[2] = put(tmp_path, files[2], idx(drawn[0][:10, :20, :20]))
    with pytest.raises(EbmtrajError, match=r"test images have shape \(1, 20, 20\), training images \(1, 28, 28\)"):
        load()
    files[2:] = [put(tmp_path, files[2], right), put(tmp_path, files[3], idx(np.full(10, 11)))]
    with pytest.raises(EbmtrajError, match="label 11 of image 0 is out of range 0 to 9"):
        load()
    files[3] = put(tmp_path, files[3], idx(np.zeros(9)))
    with pytest.raises(EbmtrajError, match="10 images, but labels of shape"):
        load()


@pytest.mark.parametrize("cut", [0, 500])
def test_a_cifar_archive_that_is_cut_short_is_named(tmp_path: Path, cut: int) -> None:
    bodies = {name: bytes(3073) for name in (*archives.CIFAR10.train, archives.CIFAR10.test)}
    if not cut:
        bodies[archives.CIFAR10.test] = bytes(3000)
    body = cifar_archive(archives.CIFAR10, bodies)
    file = put(tmp_path, archives.CIFAR10_FILE, body[: len(body) - cut])
    with pytest.raises(EbmtrajError, match=r"cifar-10-binary\.tar\.gz.*(no whole records|can't be read|no member)"):
        archives.cifar_images("cifar10", file, archives.CIFAR10, tmp_path)


def test_without_a_connection_the_file_to_get_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import pooch

    def refuse(*args: object, **more: object) -> None:
        raise ConnectionError("no route")

    monkeypatch.setattr(pooch, "retrieve", refuse)
    with pytest.raises(EbmtrajError, match=r"train-images-idx3-ubyte\.gz \(ConnectionError: no route\); put that file"):
        open_images("mnist", tmp_path)
    assert not list(tmp_path.glob("*.zarr"))


@pytest.mark.parametrize("name", ["digits", "sprites"])
def test_sources_that_need_no_files(name: str, tmp_path: Path) -> None:
    store = open_images(name, tmp_path)
    again = write_images(tmp_path / "again.zarr", load_source(name))
    assert again.content_hash == store.content_hash
    assert store.verify()["ok"]
    splits = {split: store.read(split) for split in ("train", "validation", "test")}
    everything = np.concatenate([images.index for images in splits.values()])
    assert sorted(everything) == list(range(store.info()["images"]))
    for images in splits.values():
        assert images.pixels.dtype == np.float32
        assert images.pixels.shape[1:] == store.shape
        assert images.pixels.min() == 0.0
        assert images.pixels.max() == 1.0
        assert set(images.labels.tolist()) == set(range(len(store.classes)))


def test_digits_are_scikit_learns(tmp_path: Path) -> None:
    from sklearn.datasets import load_digits

    store, truth = open_images("digits", tmp_path), load_digits()
    assert store.info()["splits"] == {"train": 1257, "validation": 180, "test": 360}
    test = store.read("test")
    assert (test.pixels[:, 0] * 16 == truth.images[test.index]).all()
    assert (test.labels == truth.target[test.index]).all()
    assert np.ptp(np.bincount(test.labels)) <= 2


def test_splits_are_stratified_and_do_not_depend_on_others() -> None:
    labels = np.repeat(np.arange(3), (10, 20, 70))
    splits = stratified_splits(labels, (0.1, 0.2))
    assert [np.bincount(splits[labels == k], minlength=3).tolist() for k in range(3)] == [[7, 1, 2], [14, 2, 4], [49, 7, 14]]
    assert (stratified_splits(labels, (0.1, 0.2), seed=1) != splits).any()


def test_sprites_are_where_their_factors_say() -> None:
    raw = sprites(32, count=300)
    grid = (np.arange(32) + 0.5) / 32
    mass = raw.pixels[:, 0].astype(float)
    shape, scale, _, x, y = raw.factors.T
    round_ones = shape < 2  # a heart's centre of mass is not its centre
    centre_x = (mass.sum(1) @ grid) / mass.sum((1, 2))
    centre_y = (mass.sum(2) @ grid) / mass.sum((1, 2))
    assert np.abs(centre_x - 0.25 - 0.5 * x)[round_ones].max() < 0.02
    assert np.abs(centre_y - 0.25 - 0.5 * y)[round_ones].max() < 0.02
    area = mass.sum((1, 2)) / 255 / 32**2
    assert np.allclose(area[shape == 0], (0.32 * scale[shape == 0]) ** 2, rtol=0.12)
    assert np.allclose(area[shape == 1], np.pi * 0.22 * 0.12 * scale[shape == 1] ** 2, rtol=0.12)
    assert len(np.unique(raw.factors, axis=0)) == 300


@pytest.mark.parametrize("factors", [[[3, 1, 0, 0.5, 0.5]], [[0, 1, 0, 1.5, 0.5]], [[0, 0, 0, 0.5, 0.5]], [[0, 1, 0, 0.5]]])
def test_sprites_out_of_range_are_refused(factors: list[list[float]]) -> None:
    with pytest.raises(EbmtrajError, match=r"^sprites: "):
        render_sprites(factors, 16)


GOOD: dict[str, Any] = {
    "source": "x",
    "pixels": np.zeros((4, 1, 8, 8), np.uint8),
    "split": np.array([0, 0, 1, 2], np.int8),
    "labels": np.arange(4),
    "classes": tuple("abcd"),
}


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"pixels": np.zeros((4, 2, 8, 8), np.uint8)}, "2 channels"),
        ({"pixels": np.zeros((4, 1, 2, 8), np.uint8)}, "2 x 8 pixels"),
        ({"pixels": np.zeros((4, 1, 8, 8), np.float32)}, "expected bytes"),
        ({"pixels": np.full((4, 1, 8, 8), 9, np.uint8), "levels": 8}, "go up to 9, but white is 8"),
        ({"labels": np.array([0, 1, 2, 4])}, "label 4 of image 3 is out of range 0 to 3"),
        ({"labels": np.array([0, 1, -1, 3])}, "label -1 of image 2"),
        ({"labels": np.arange(3)}, "one label an image"),
        ({"classes": ()}, "names of their classes"),
        ({"split": np.array([0, 0, 1, 3], np.int8)}, "split"),
        ({"factors": np.zeros((4, 2), np.float32), "factor_names": ("a",)}, "factors have shape"),
    ],
)
def test_images_that_do_not_fit_are_refused(change: dict[str, object], said: str) -> None:
    RawImages(**GOOD)
    with pytest.raises(EbmtrajError, match=said):
        RawImages(**{**GOOD, **change})


def test_a_store_is_whole_or_not_there_and_damage_is_seen(tmp_path: Path) -> None:
    path = tmp_path / "x.zarr"
    raw = RawImages(**GOOD)
    store = write_images(path, raw)
    with pytest.raises(EbmtrajError, match="exists; use --overwrite"):
        write_images(path, raw)
    write_images(path, raw, overwrite=True)
    assert [entry.name for entry in tmp_path.iterdir()] == ["x.zarr"]
    with pytest.raises(EbmtrajError, match="unknown split"):
        store.read("all")
    import zarr

    label: Any = zarr.open_group(str(path), mode="r+")["label"]
    was, label[0] = label[0], 3
    assert [bad["array"] for bad in ImageStore.open(path).verify()["bad_blocks"]] == ["label"]
    with pytest.raises(EbmtrajError, match="array label is not the one that was written"):
        ImageStore.open(path).read("train")
    label[0] = was
    chunk = next(file for file in (path / "pixels" / "c").rglob("*") if file.is_file())
    chunk.write_bytes(chunk.read_bytes()[:-3])
    with pytest.raises(EbmtrajError, match="array pixels can't be read"):
        ImageStore.open(path).read("train")
    chunk.unlink()  # black images would stand in its place
    with pytest.raises(EbmtrajError, match="1 of 1 chunks of array pixels are missing"):
        ImageStore.open(path).read("train")
    assert [bad["array"] for bad in ImageStore.open(path).verify()["bad_blocks"]] == ["pixels"]
    other = tmp_path / "other.zarr"
    zarr.create_group(str(other), zarr_format=3)
    with pytest.raises(EbmtrajError, match="but not an image store"):
        open_images(other)
    with pytest.raises(EbmtrajError, match="not an image store; choose another path"):
        write_images(other, raw, overwrite=True)
    with pytest.raises(EbmtrajError, match="neither a store nor a source; sources are digits, mnist"):
        open_images("digit")


def test_every_source_says_what_it_is() -> None:
    assert {"digits", "mnist", "fashion-mnist", "cifar10", "cifar100", "svhn", "sprites", "hand-frames"} <= set(SOURCES)
    assert all(source.says for source in SOURCES.values())


def run(capfd: pytest.CaptureFixture[str], *words: object) -> dict[str, Any]:
    code, out, err = call(capfd, "data", *words, "--json")
    assert code == 0, err
    return json.loads(out)


def fault(capfd: pytest.CaptureFixture[str], *words: object) -> str:
    code, _, err = call(capfd, "data", *words)
    assert code == 2
    assert len(err.strip().splitlines()) == 1
    return err


def test_commands(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "digits.zarr"
    made = run(capfd, "images", "digits", "--out", out)
    assert made["splits"]["test"] == 360
    assert run(capfd, "info", out) == made
    assert run(capfd, "verify", out)["content_hash"] == made["content_hash"]
    assert "exists" in fault(capfd, "images", "digits", "--out", out)
    assert "--store" in fault(capfd, "images", "hand-frames", "--out", tmp_path / "f.zarr")
    assert "unknown image source" in fault(capfd, "images", "nope", "--out", tmp_path / "n.zarr")
    assert "--store goes with hand-frames" in fault(capfd, "images", "digits", "--store", out)


def test_hand_frames_show_the_states(tmp_path: Path, hand_store: Path, capfd: pytest.CaptureFixture[str]) -> None:
    from ebmtraj.datasets.store import Store
    from ebmtraj.envs.render import Renderer

    out = tmp_path / "frames.zarr"
    args = ("images", "hand-frames", "--store", hand_store, "--count", 30)
    made = run(capfd, *args, "--out", out)
    assert made["shape"] == [3, 32, 32]
    assert made["origin"]["store"] == Store.open(hand_store).content_hash
    frames = open_images(str(out)).read("train")
    with Renderer(width=128, height=128) as renderer:
        truth = renderer.frame(frames.factors[0]).reshape(32, 4, 32, 4, 3).mean((1, 3)).transpose(2, 0, 1) / 255
    assert np.abs(frames.pixels[0] - truth).max() < 0.005
    assert "32 or 64" in fault(capfd, *args, "--out", tmp_path / "g.zarr", "--size", 20)
