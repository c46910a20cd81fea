"""The official files of MNIST, Fashion-MNIST, CIFAR-10, CIFAR-100 and SVHN: found or downloaded, checked by hash, and read.

Every file's MD5 is the one its authors or torchvision publish. Nothing is unpacked to disk and nothing is unpickled: an
archive's members are read by their exact names.
"""

from __future__ import annotations

import gzip
import io
import math
import struct
import tarfile
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ebmtraj.datasets.blocks import Indices
from ebmtraj.datasets.image_writer import RawImages, check_labels
from ebmtraj.datasets.images import cache_folder, stratified_splits
from ebmtraj.errors import EbmtrajError

VALIDATION = 0.1  # of the official training images
_TOO_LONG = 400_000_000  # bytes in a header's shape that no official file has


@dataclass(frozen=True)
class OfficialFile:
    """A file as its authors give it out."""

    name: str
    md5: str
    url: str  # the folder that it is downloaded from, with a slash at its end


def find(source: str, file: OfficialFile, root: Path | None) -> Path:
    """The file in `root`, `root/source` or torchvision's folders there; else it is downloaded to the cache folder.

    Raises `EbmtrajError` that names the file where its hash is another than the published one or it can't be downloaded.
    """
    folder = cache_folder(root)
    for place in (folder, folder / source, *(folder / name / "raw" for name in ("MNIST", "FashionMNIST"))):
        path = place / file.name
        if path.is_file() and (place.name != "raw" or place.parent.name.lower() == source.replace("-", "")):
            check_hash(path, file)
            return path
    return _download(source, file, folder)


def check_hash(path: Path, file: OfficialFile) -> None:
    """Raise `EbmtrajError` where the file is not the published one."""
    import pooch

    try:
        found = pooch.file_hash(str(path), alg="md5")
    except OSError as error:
        raise EbmtrajError(f"can't read {path}: {error.strerror or error}") from None
    if found != file.md5:
        raise EbmtrajError(
            f"{path} is corrupt or another file under this name: its MD5 is {found}, the official file's {file.md5}; "
            f"remove it and get {file.url}{file.name}"
        )


def _download(source: str, file: OfficialFile, folder: Path) -> Path:
    import pooch

    pooch.get_logger().setLevel("WARNING")
    try:
        return Path(pooch.retrieve(file.url + file.name, f"md5:{file.md5}", file.name, folder / source))
    except Exception as error:  # no connection, a full disk or another hash: pooch and requests raise many kinds
        reason = " ".join(str(error).split())[:160]
        raise EbmtrajError(
            f"can't download {file.url}{file.name} ({type(error).__name__}: {reason}); "
            f"put that file in a folder and name it with --root"
        ) from None


# IDX: MNIST and Fashion-MNIST


def read_idx(path: Path, dimensions: int) -> NDArray[np.uint8]:
    """An IDX file of unsigned bytes, gzipped, with so many dimensions, in the shape of its header.

    Raises `EbmtrajError` where it is not one.
    """
    try:
        with gzip.open(path) as file:
            head = file.read(4 + 4 * dimensions)
            if len(head) < 4 + 4 * dimensions or head[:4] != bytes((0, 0, 8, dimensions)):
                raise EbmtrajError(f"{path} is not an IDX file of bytes with {dimensions} dimensions")
            shape = struct.unpack(f">{dimensions}I", head[4:])
            if math.prod(shape) > _TOO_LONG:
                raise EbmtrajError(f"{path}: its header says {' x '.join(map(str, shape))} bytes; it is corrupt")
            body = file.read(math.prod(shape) + 1)
    except (OSError, EOFError, zlib.error) as error:
        raise EbmtrajError(f"{path} can't be read as a gzip file: {error}") from None
    if len(body) != math.prod(shape):
        raise EbmtrajError(f"{path}: {len(body)} bytes follow a header of {' x '.join(map(str, shape))}; it is cut short")
    return np.frombuffer(body, np.uint8).reshape(shape)


def idx_images(source: str, files: Sequence[OfficialFile], classes: tuple[str, ...], root: Path | None = None) -> RawImages:
    """MNIST's four files: training images and labels, test images and labels (LeCun et al. 1998; Xiao et al. 2017).

    Raises `EbmtrajError` where one is missing or damaged.
    """
    paths = [find(source, file, root) for file in files]
    parts = []
    for images, labels in (paths[:2], paths[2:]):
        parts.append((read_idx(images, 3)[:, None], read_idx(labels, 1).astype(np.int64), labels))
    return _joined(source, parts, classes, files)


# CIFAR, binary version


def read_members(path: Path, names: Sequence[str]) -> list[bytes]:
    """Contents of these members of a gzipped tar, read in memory; raises `EbmtrajError` where one is missing or damaged."""
    found: dict[str, bytes] = {}
    try:
        with tarfile.open(path, "r:gz") as archive:
            for member in archive:
                if member.name in names and member.isfile():
                    if member.size > _TOO_LONG:
                        raise EbmtrajError(f"{path}: {member.name} says that it has {member.size:,} bytes; it is corrupt")
                    file = archive.extractfile(member)
                    found[member.name] = file.read() if file is not None else b""
    except (OSError, EOFError, tarfile.TarError, zlib.error) as error:
        raise EbmtrajError(f"{path} can't be read as a tar.gz: {error}") from None
    missing = [name for name in names if name not in found]
    if missing:
        raise EbmtrajError(f"{path} has no member {missing[0]}; get the binary version of the data")
    return [found[name] for name in names]


@dataclass(frozen=True)
class CifarLayout:
    """Where a CIFAR archive keeps its records: `label_bytes` bytes, the last of them the label, then 3 x 32 x 32 pixels."""

    folder: str
    train: tuple[str, ...]
    test: str
    names: str
    label_bytes: int
    classes: int


CIFAR10 = CifarLayout(
    "cifar-10-batches-bin", tuple(f"data_batch_{i}.bin" for i in range(1, 6)), "test_batch.bin", "batches.meta.txt", 1, 10
)
CIFAR100 = CifarLayout("cifar-100-binary", ("train.bin",), "test.bin", "fine_label_names.txt", 2, 100)


def cifar_images(source: str, file: OfficialFile, layout: CifarLayout, root: Path | None = None) -> RawImages:
    """CIFAR-10 or CIFAR-100, binary version, fine labels (Krizhevsky 2009).

    Raises `EbmtrajError` where the archive is missing or damaged.
    """
    path = find(source, file, root)
    members = [f"{layout.folder}/{name}" for name in (*layout.train, layout.test, layout.names)]
    *records, names = read_members(path, members)
    classes = tuple(line.strip() for line in names.decode("ascii", "replace").splitlines() if line.strip())
    if len(classes) != layout.classes:
        raise EbmtrajError(f"{path}: {members[-1]} names {len(classes)} classes, not {layout.classes}; it is corrupt")
    rows = [
        _cifar_records(body, layout.label_bytes, f"{path}: {name}") for body, name in zip(records, members, strict=False)
    ]
    train = np.concatenate(rows[:-1])
    parts = [
        (part[:, layout.label_bytes :].reshape(-1, 3, 32, 32), part[:, layout.label_bytes - 1].astype(np.int64), path)
        for part in (train, rows[-1])
    ]
    return _joined(source, parts, classes, [file])


def _cifar_records(body: bytes, label_bytes: int, what: str) -> NDArray[np.uint8]:
    size = label_bytes + 3 * 32 * 32
    if not body or len(body) % size:
        raise EbmtrajError(f"{what} holds {len(body)} bytes, which are no whole records of {size}; it is cut short")
    return np.frombuffer(body, np.uint8).reshape(-1, size)


# SVHN, format 2 (cropped digits)


def read_mat(path: Path) -> tuple[NDArray[np.uint8], Indices]:
    """Images (N, 3, 32, 32) and labels (N,) of an SVHN .mat, where 10 stands for the digit 0; raises `EbmtrajError`."""
    from scipy.io import loadmat

    try:
        found = loadmat(io.BytesIO(path.read_bytes()), variable_names=("X", "y"))
        pixels, labels = found["X"], found["y"].reshape(-1).astype(np.int64)
    except Exception as error:  # scipy raises many kinds on a damaged file
        raise EbmtrajError(f"{path} can't be read as SVHN's .mat: {type(error).__name__}: {str(error)[:120]}") from None
    if pixels.ndim != 4 or pixels.shape[:3] != (32, 32, 3) or pixels.dtype != np.uint8:
        raise EbmtrajError(f"{path}: X is {pixels.dtype} {pixels.shape}, not bytes of shape (32, 32, 3, N)")
    check_labels(labels - 1, pixels.shape[3], tuple("1234567890"), str(path))
    return np.ascontiguousarray(pixels.transpose(3, 2, 0, 1)), labels % 10


def svhn_images(source: str, files: Sequence[OfficialFile], root: Path | None = None) -> RawImages:
    """SVHN's cropped digits, train and test (Netzer et al. 2011).

    Raises `EbmtrajError` where a file is missing or damaged.
    """
    paths = [find(source, file, root) for file in files]
    return _joined(source, [(*read_mat(path), path) for path in paths], tuple("0123456789"), files)


def _joined(source: str, parts: Sequence[Any], classes: tuple[str, ...], files: Sequence[OfficialFile]) -> RawImages:
    """Official training images, a tenth of each class of which becomes validation, and the official test images."""
    for pixels, labels, path in parts:
        check_labels(labels, len(pixels), classes, str(path))
    (pixels, labels, _), (test_pixels, test_labels, path) = parts
    if pixels.shape[1:] != test_pixels.shape[1:]:
        raise EbmtrajError(f"{path}: test images have shape {test_pixels.shape[1:]}, training images {pixels.shape[1:]}")
    return RawImages(
        source=source,
        pixels=np.concatenate([pixels, test_pixels]),
        split=np.concatenate([stratified_splits(labels, (VALIDATION, 0.0)), np.full(len(test_labels), 2, np.int8)]),
        labels=np.concatenate([labels, test_labels]),
        classes=classes,
        origin={"files": {file.name: file.md5 for file in files}},
    )


_MNIST = "https://ossci-datasets.s3.amazonaws.com/mnist/"
_FASHION = "http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/"
_TORONTO = "https://www.cs.toronto.edu/~kriz/"
_STANFORD = "http://ufldl.stanford.edu/housenumbers/"
_IDX = ("train-images-idx3", "train-labels-idx1", "t10k-images-idx3", "t10k-labels-idx1")


def _idx_files(url: str, hashes: Sequence[str]) -> tuple[OfficialFile, ...]:
    return tuple(OfficialFile(f"{name}-ubyte.gz", md5, url) for name, md5 in zip(_IDX, hashes, strict=True))


MNIST_FILES = _idx_files(
    _MNIST,
    (
        "f68b3c2dcbeaaa9fbdd348bbdeb94873",
        "d53e105ee54ea40749a09fcbcd1e9432",
        "9fb629c4189551a2d022fa330f9573f3",
        "ec29112dd5afa0611ce80d1b7f02629c",
    ),
)
FASHION_FILES = _idx_files(
    _FASHION,
    (
        "8d4fb7e6c68d591d4c3dfef9ec88bf0d",
        "25c81989df183df01b3e8a0aad5dffbe",
        "bef4ecab320f06d8554ea6380940ec79",
        "bb300cfdad3c16e7a12a480ee83cd310",
    ),
)
CIFAR10_FILE = OfficialFile("cifar-10-binary.tar.gz", "c32a1d4ab5d03f1284b67883e8d87530", _TORONTO)
CIFAR100_FILE = OfficialFile("cifar-100-binary.tar.gz", "03b5dce01913d631647c71ecec9e9cb8", _TORONTO)
SVHN_FILES = (
    OfficialFile("train_32x32.mat", "e26dedcc434d2e4c54c9b2d4a06d8373", _STANFORD),
    OfficialFile("test_32x32.mat", "eb5a983be6a315427106f1b164d9cef3", _STANFORD),
)
DIGITS = tuple("0123456789")
FASHION = (
    *("T-shirt/top", "Trouser", "Pullover", "Dress", "Coat"),
    *("Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot"),
)

mnist: Callable[[Path | None], RawImages] = partial(idx_images, "mnist", MNIST_FILES, DIGITS)
fashion_mnist: Callable[[Path | None], RawImages] = partial(idx_images, "fashion-mnist", FASHION_FILES, FASHION)
cifar10: Callable[[Path | None], RawImages] = partial(cifar_images, "cifar10", CIFAR10_FILE, CIFAR10)
cifar100: Callable[[Path | None], RawImages] = partial(cifar_images, "cifar100", CIFAR100_FILE, CIFAR100)
svhn: Callable[[Path | None], RawImages] = partial(svhn_images, "svhn", SVHN_FILES)
