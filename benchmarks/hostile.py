"""Crafted files, each fed to the command that would read it: all must be refused in one line, fast, and in little memory.

Pickles, paths that climb, links, bombs, headers that lie, code named by a file. Each is made in a folder of its own, then
read in this process through the real command line; memory is the growth of the process's peak over what it held before.

    python benchmarks/hostile.py --out docs/results/hostile.json
"""

from __future__ import annotations

import argparse
import contextlib
import gzip
import io
import json
import logging
import os
import pickle
import resource
import shutil
import struct
import sys
import tarfile
import tempfile
import time
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple
from unittest import mock

import corruption
import numpy as np

MOST_MB, MOST_SECONDS = 200, 10
GIB = 2**30


class Case(NamedTuple):
    """A hostile file: what it is, how it is made below a folder, and the words of the command that meets it."""

    kind: str
    make: Callable[[Path], object]
    words: str  # {here}: the folder; {run}, {image}, {plan}, {store}: sound ones of its own


SAYS = {  # by the beginning of a case's name: what the refusal must say, so that it is for the right reason
    "npz: states are pickled": "holds pickled objects",
    "npz: a pickle": "state can't be read",
    "npz: a member": "holds no array 'state'",
    "npz: ": "say that they are",
    "policy: ": "is damaged",
    "recipe: a pickle": "can't be read as TOML",
    "recipe: nested": "can't be read as TOML",
    "fields: ": "not a JSON object",
    "buffer: the pickle": "holds no array data/state",
    "buffer: a chunk is": "link that leads out",
    "buffer: 8e11": "say that they are",
    "buffer: a chunk of": "a chunk of",
    "store: the pickle": "Unknown codec",
    "store: an environment": "code of your own",
    "store: a policy": "code of your own",
    "store: 1e11": "say that they are",
    "store: -1": "committed counts",
    "store: a chunk of": "a chunk of",
    "store: a field": "size 1000000000",
    "store: attributes nested": "RecursionError",
    "store: ": "link that leads out",
    "image store: ": "link that leads out",
    "run: an environment module": "imports a module",
    "run: an environment's": "is a path",
    "run: ": "link that leads out",
    "task: ": "--own-code",
    "network: ": "network",
    "tar: ": "MD5",
    "gzip: ": "MD5",
    "rows: ": "as it names a folder",
    "Minari: an external": "link to another file",
    "Minari: 24": "say that they are",
    "Minari: ": "lies in another file",
    "checkpoint: a network a million deep": "hidden layers",
    "checkpoint: a network": "a far larger model",
    "images: a network": "a far larger model",
    "plan: ": "a far larger model",
    "checkpoint: our": "header is damaged",
    "checkpoint: ": "is damaged",
    "images: ": "is damaged",
    "expression: ": "nested too deeply",
}


class Touches:
    """An object that leaves a file behind when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return Path.touch, (self.path,)


def pickled(path: Path) -> bytes:
    """What leaves `unpickled` beside the file when it is loaded."""
    return pickle.dumps(Touches(path / "unpickled"))


# Archives of arrays


def npy(shape: tuple[int, ...], kind: str = "<f8") -> bytes:
    """The header of an npy file."""
    text = f"{{'descr': '{kind}', 'fortran_order': False, 'shape': {shape}, }}"
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", 118) + text.ljust(117).encode() + b"\n"


def npz(**members: bytes | tuple[bytes, int]) -> Callable[[Path], object]:
    """An npz of these members; (header, n): n bytes of zeros follow."""

    def make(here: Path) -> None:
        with zipfile.ZipFile(here / "x.npz", "w", zipfile.ZIP_DEFLATED) as archive:
            for name, content in members.items():
                head, zeros = content if isinstance(content, tuple) else (content, 0)
                with archive.open(name.replace("__", "/") + ".npy", "w", force_zip64=True) as file:
                    file.write(head)
                    for _ in range(zeros // 2**20):
                        file.write(bytes(2**20))

    return make


SMALL = {"state": npy((5, 3)) + bytes(120), "action": npy((4, 2)) + bytes(64)}
IMPORT_NPZ = "data import {here}/x.npz {here}/new.zarr --format npz"


def object_npz(here: Path) -> None:
    """States that are pickled objects."""
    np.savez(here / "x.npz", state=np.array([[Touches(here / "unpickled")]], object), action=np.zeros((0, 2)))


def text_npz(here: Path) -> None:
    """JSON that is nested 100,000 deep beside sound arrays."""
    np.savez(here / "x.npz", state=np.zeros((5, 3)), action=np.zeros((4, 2)), ebmtraj=np.array("[" * 100_000))


# zarr


def buffer(state: dict[str, Any] | None = None, ends: int = 9, fault: Callable[[Path], object] | None = None) -> Any:
    """A replay buffer of diffusion_policy, format 2; `state` replaces entries of the metadata of data/state."""

    def make(here: Path) -> None:
        import zarr

        root = zarr.create_group(here / "b.zarr", zarr_format=2)
        data = root.create_group("data")
        data.create_array("state", data=np.ones((9, 3)), chunks=(9, 3), compressors=None)
        data.create_array("action", data=np.zeros((9, 2)), chunks=(9, 2))
        root.create_group("meta").create_array("episode_ends", data=np.array([ends]))
        file = here / "b.zarr" / "data" / "state" / ".zarray"
        file.write_text(json.dumps({**json.loads(file.read_text()), **(state or {})}))
        if state and "shape" in state:
            other = here / "b.zarr" / "data" / "action" / ".zarray"
            other.write_text(json.dumps({**json.loads(other.read_text()), "shape": [state["shape"][0], 2]}))
        if fault:
            fault(here / "b.zarr" / "data" / "state")

    return make


IMPORT_ZARR = "data import {here}/b.zarr {here}/new.zarr --format diffusion-policy"


def edited_store(change: Callable[[dict[str, Any]], object], name: str = "zarr.json", seal: bool = True) -> Any:
    """A store of ours with another zarr.json; sealed anew, as somebody who knows how would."""

    def make(here: Path) -> None:
        from ebmtraj.datasets.zarr_files import with_seal

        file = here / "s.zarr" / name
        values = json.loads(file.read_text())
        change(values["attributes"] if name == "zarr.json" else values)
        if name == "zarr.json" and seal:
            parts = {key: value for key, value in values["attributes"]["seal"].items() if key != "attributes"}
            values["attributes"] = with_seal(values["attributes"], **parts)
        file.write_text(json.dumps(values))

    return make


def linked(inside: str) -> Callable[[Path], object]:
    """A file of a folder here that is a link to one outside of it."""

    def make(here: Path) -> None:
        file, outside = here / inside, here.parent / "outside"
        outside.mkdir(exist_ok=True)
        if file.is_dir():
            shutil.copytree(file, outside / file.name, dirs_exist_ok=True)
            shutil.rmtree(file)
        else:
            shutil.copy(file, outside / file.name)
            file.unlink()
        file.symlink_to(outside / file.name)

    return make


# checkpoints


def safetensors(header: bytes, body: bytes = b"", *, length: int | None = None, of: str = "run") -> Any:
    """A checkpoint in a run that is these bytes."""

    def make(here: Path) -> None:
        size = len(header) if length is None else length
        (here / of / "checkpoints" / "best.safetensors").write_bytes(struct.pack("<Q", size) + header + body)

    return make


def reheaded(change: Callable[[dict[str, Any]], object], of: str = "run") -> Any:
    """A run whose checkpoint has another header, with a sha256 that is right."""

    def make(here: Path) -> None:
        from ebmtraj.training.checkpoint import load_tensors, save_tensors

        path = here / of / "checkpoints" / "best.safetensors"
        header, tensors = load_tensors(path)
        change(header)
        save_tensors(path, tensors, {key: value for key, value in header.items() if key not in ("format", "version")})

    return make


def one_tensor(info: dict[str, Any], meta: str = "{}") -> bytes:
    """The header of a safetensors file with one tensor."""
    return json.dumps({"__metadata__": {"header": meta}, "x": info}).encode()


def written(name: str, content: bytes | str) -> Callable[[Path], object]:
    """A file of this content."""

    def make(here: Path) -> None:
        (here / name).parent.mkdir(parents=True, exist_ok=True)
        (here / name).write_bytes(content.encode() if isinstance(content, str) else content)

    return make


def hostile_module(then: Callable[[Path], object]) -> Callable[[Path], object]:
    """A module in the working folder that leaves a file behind when it is imported, and a file that names it."""

    def make(here: Path) -> None:
        (here / "evil.py").write_text(f"open({str(here / 'unpickled')!r}, 'w').close()\n")
        then(here)

    return make


def tar(here: Path) -> None:
    """CIFAR-10's archive with members that climb out, are links and are devices."""
    with tarfile.open(here / "cifar-10-binary.tar.gz", "w:gz") as archive:
        for name in ("../../evil", "/tmp/evil-of-ebmtraj", "cifar-10-batches-bin/data_batch_1.bin"):
            member = tarfile.TarInfo(name)
            if name.endswith("bin"):
                member.type, member.linkname = tarfile.SYMTYPE, "/etc/passwd"
                archive.addfile(member)
            else:
                member.size = 4
                archive.addfile(member, io.BytesIO(b"evil"))


def gz_bomb(here: Path) -> None:
    """MNIST's first file: 2 GB of zeros behind an honest header."""
    with gzip.open(here / "train-images-idx3-ubyte.gz", "wb", compresslevel=9) as file:
        file.write(bytes((0, 0, 8, 3)) + struct.pack(">3I", 2_000_000, 32, 32))
        for _ in range(256):
            file.write(bytes(2**20))


def hdf5(fault: Callable[[Any], object]) -> Callable[[Path], object]:
    """A Minari data set with something else for the observations of its second episode."""

    def make(here: Path) -> None:
        import h5py

        folder = here / "m-v0" / "data"
        folder.mkdir(parents=True)
        box = {"type": "Box", "dtype": "float64", "shape": [3], "low": [-9.0] * 3, "high": [9.0] * 3}
        action = {"type": "Box", "dtype": "float32", "shape": [2], "low": [-1.0] * 2, "high": [1.0] * 2}
        facts = {"observation_space": json.dumps(box), "action_space": json.dumps(action), "total_episodes": 2}
        facts |= {"total_steps": 6, "data_format": "hdf5", "dataset_id": "m-v0", "minari_version": "0.5.3"}
        (folder / "metadata.json").write_text(json.dumps(facts))
        with h5py.File(folder / "main_data.hdf5", "w") as file:
            for number in range(2):
                group = file.create_group(f"episode_{number}")
                group.attrs["id"], group.attrs["total_steps"] = number, 3
                for name, values in {
                    "observations": np.zeros((4, 3)),
                    "actions": np.zeros((3, 2), np.float32),
                    "rewards": np.zeros(3),
                    "terminations": np.zeros(3, bool),
                    "truncations": np.array([False, False, True]),
                }.items():
                    group.create_dataset(name, data=values)
            del file["episode_1/observations"]
            fault(file["episode_1"])

    return make


def virtual(group: Any) -> None:
    """Observations made of another file's."""
    import h5py

    layout = h5py.VirtualLayout(shape=(4, 3), dtype="f8")
    layout[:] = h5py.VirtualSource("/etc/other.h5", "x", shape=(4, 3))
    group.create_virtual_dataset("observations", layout)


def external(group: Any) -> None:
    """A link to an array of another file."""
    import h5py

    group["observations"] = h5py.ExternalLink("/etc/passwd", "/x")


def raw(group: Any) -> None:
    """Numbers that are the bytes of another file."""
    group.create_dataset("observations", (4, 3), "f8", external=[("/etc/passwd", 0, 96)])


def hollow(group: Any) -> None:
    """Many numbers of which none is stored."""
    group.create_dataset("observations", (GIB, 3), "f8", chunks=(2**16, 3), compression="gzip")


IMPORT_MINARI = "data import {here}/m-v0 {here}/new.zarr --format minari"
ROLLOUT = "rollout {here}/run --data {here}/s.zarr --steps 2 --out {here}/r.npz"
SAMPLE = "sample {here}/image -n 2 --out {here}/r.npz"
PLAN = "plan {here}/plan --task reach --episodes 1 --steps 1"
INFO = "data info {here}/s.zarr"
TRAIN = "train transition --data {here}/s.zarr --run {here}/new --set training.steps=1"
DEEP = "[" * 100_000


def cases() -> dict[str, Case]:
    """All of them by name."""
    many = 10**11
    odd = {"dtype": "F32", "shape": [2**40], "data_offsets": [0, 4]}
    whole = {"format": "ebmtraj", "version": 1, "kind": "transition"}
    return {
        # pickles
        "npz: states are pickled": Case("pickle", object_npz, IMPORT_NPZ),
        "npz: a pickle for a member": Case(
            "pickle", lambda here: npz(**{**SMALL, "state": pickled(here)})(here), IMPORT_NPZ
        ),
        "checkpoint: a pickle": Case(
            "pickle",
            lambda here: (here / "run" / "checkpoints" / "best.safetensors").write_bytes(pickled(here)),
            ROLLOUT,
        ),
        "checkpoint: torch.save's zip": Case(
            "pickle",
            lambda here: __import__("torch").save(
                Touches(here / "unpickled"), here / "run" / "checkpoints" / "best.safetensors"
            ),
            ROLLOUT,
        ),
        "images: a pickle for a checkpoint": Case(
            "pickle",
            lambda here: (here / "image" / "checkpoints" / "best.safetensors").write_bytes(pickled(here)),
            SAMPLE,
        ),
        "policy: a pickle": Case(
            "pickle",
            lambda here: (here / "p.safetensors").write_bytes(pickled(here)),
            "collect {here}/new.zarr --episodes 2 --steps 2 --workers 1 --policy trained "
            "--set policy_kwargs.checkpoint={here}/p.safetensors",
        ),
        "recipe: a pickle": Case(
            "pickle", lambda here: (here / "r.toml").write_bytes(pickled(here)), TRAIN + " --recipe {here}/r.toml"
        ),
        "buffer: the pickle codec": Case(
            "pickle", buffer({"dtype": "|O", "filters": [{"id": "pickle", "protocol": 5}], "fill_value": None}), IMPORT_ZARR
        ),
        "store: the pickle codec": Case(
            "pickle",
            edited_store(
                lambda values: values.update(codecs=[{"name": "numcodecs.pickle", "configuration": {}}]), "state/zarr.json"
            ),
            "data show {here}/s.zarr",
        ),
        # code that a file names
        "store: an environment module:id": Case(
            "code",
            hostile_module(edited_store(lambda values: values.update(env="evil:X-v0"))),
            "evaluate {here}/run --data {here}/s.zarr --steps 2 --simulator --quick",
        ),
        "store: a policy module:function": Case(
            "code",
            hostile_module(edited_store(lambda values: values.update(policy={"name": "evil:policy"}))),
            "evaluate {here}/run --data {here}/s.zarr --steps 2 --simulator --quick",
        ),
        "run: an environment module:id": Case(
            "code", hostile_module(reheaded(lambda header: header["environment"].update(env="evil:X-v0"), "plan")), PLAN
        ),
        "run: an environment's option is a path": Case(
            "code",
            reheaded(
                lambda header: header["environment"].update(env="Ant-v5", env_kwargs={"xml_file": "../../evil.xml"}), "plan"
            ),
            PLAN,
        ),
        "task: code of one's own": Case("code", hostile_module(lambda here: None), PLAN.replace("reach", "evil:cost")),
        "network: code in a setting": Case(
            "code",
            reheaded(lambda header: header["network"].update(activation="__import__('os').system('true')")),
            ROLLOUT,
        ),
        # paths that climb and links
        "npz: a member ../../state": Case("traversal", npz(**{"..__..__state": SMALL["state"]}), IMPORT_NPZ),
        "tar: members climb out": Case("traversal", tar, "data images cifar10 --root {here} --out {here}/new.zarr"),
        "rows: a row is named ../../x": Case(
            "traversal",
            written("rows.toml", '[[row]]\nname = "../../x"\nmodel = "mdn"\n'),
            "compare transitions --data {here}/s.zarr --runs {here}/c --models none "
            "--rows {here}/rows.toml --seconds 1 --out {here}/c.json",
        ),
        "store: a shard is a link out": Case("link", linked("s.zarr/state/c/0/0"), "data show {here}/s.zarr"),
        "store: a folder is a link out": Case("link", linked("s.zarr/state"), INFO),
        "store: attributes are a link out": Case("link", linked("s.zarr/zarr.json"), INFO),
        "image store: a chunk is a link out": Case("link", linked("i.zarr/label/c/0"), "data info {here}/i.zarr"),
        "run: the checkpoint is a link out": Case("link", linked("run/checkpoints/best.safetensors"), ROLLOUT),
        "run: the recipe is a link out": Case("link", linked("run/config.toml"), ROLLOUT),
        "run: samples go out through a link": Case(
            "link", linked("run/samples"), ROLLOUT.replace(" --out {here}/r.npz", "")
        ),
        "buffer: a chunk is a link out": Case(
            "link", buffer(fault=lambda at: ((at / "0.0").unlink(), (at / "0.0").symlink_to("/etc/passwd"))), IMPORT_ZARR
        ),
        "Minari: an external link": Case("link", hdf5(external), IMPORT_MINARI),
        "Minari: another file's bytes": Case("link", hdf5(raw), IMPORT_MINARI),
        "Minari: a virtual array": Case("link", hdf5(virtual), IMPORT_MINARI),
        # bombs
        "npz: 256 MB of zeros": Case(
            "bomb", npz(state=(npy((2**25, 1)), GIB // 4), action=(npy((2**25 - 1, 1)), 0)), IMPORT_NPZ
        ),
        "npz: a header of 8e15 bytes": Case("bomb", npz(state=npy((10**15, 1)), action=npy((10**15 - 1, 1))), IMPORT_NPZ),
        "npz: lengths of 8e12 bytes": Case("bomb", npz(**SMALL, length=npy((10**12,), "<i8")), IMPORT_NPZ),
        "npz: a text of 256 MB": Case("bomb", npz(**SMALL, ebmtraj=(npy((), f"<U{GIB // 16}"), GIB // 4)), IMPORT_NPZ),
        "buffer: 8e11 numbers without a file": Case("bomb", buffer({"shape": [many, 3]}, ends=many), IMPORT_ZARR),
        "buffer: a chunk of 2 TB": Case("bomb", buffer({"chunks": [many, 3]}), IMPORT_ZARR),
        "store: 1e11 episodes": Case(
            "bomb",
            edited_store(lambda values: values["committed"].update(episodes=many, action_rows=many, state_rows=many)),
            INFO,
        ),
        "store: -1 episodes": Case("bomb", edited_store(lambda values: values["committed"].update(episodes=-1)), INFO),
        "store: a chunk of 1e12 rows": Case(
            "bomb",
            edited_store(
                lambda values: (
                    values["chunk_grid"]["configuration"].update(chunk_shape=[10**12, 4]),
                    values["codecs"][0]["configuration"].update(chunk_shape=[10**12, 4]),
                ),
                "state/zarr.json",
            ),
            "data show {here}/s.zarr",
        ),
        "store: a field of 1e9 numbers": Case(
            "bomb",
            edited_store(lambda values: values["state_fields"][0].update(size=10**9, low=None, high=None, entries=None)),
            INFO,
        ),
        "Minari: 24 GB of nothing": Case("bomb", hdf5(hollow), IMPORT_MINARI),
        "gzip: MNIST of 2 GB": Case("bomb", gz_bomb, "data images mnist --root {here} --out {here}/new.zarr"),
        # headers that lie
        "checkpoint: a header of 2^60 bytes": Case("header", safetensors(b"{}", length=2**60), ROLLOUT),
        "checkpoint: a header of 99 MB": Case("header", safetensors(b"{}", length=99_000_000), ROLLOUT),
        "checkpoint: a tensor of 4 TB": Case("header", safetensors(one_tensor(odd), bytes(4)), ROLLOUT),
        "checkpoint: tensors that overlap": Case(
            "header",
            safetensors(
                json.dumps({k: {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]} for k in "ab"}).encode(), bytes(4)
            ),
            ROLLOUT,
        ),
        "checkpoint: JSON nested 100,000 deep": Case(
            "header",
            safetensors(one_tensor({"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}, DEEP), bytes(4)),
            ROLLOUT,
        ),
        "checkpoint: our header, and nothing else": Case(
            "header",
            safetensors(one_tensor({"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}, json.dumps(whole)), bytes(4)),
            ROLLOUT,
        ),
        "checkpoint: a network a million wide": Case(
            "header", reheaded(lambda header: header["network"].update(width=1_000_000)), ROLLOUT
        ),
        "checkpoint: a network a million deep": Case(
            "header", reheaded(lambda header: header["network"].update(depth=1_000_000)), ROLLOUT
        ),
        "images: a network a million wide": Case(
            "header", reheaded(lambda header: header["network"].update(width=1_000_000), "image"), SAMPLE
        ),
        "plan: a network a million wide": Case(
            "header",
            reheaded(lambda header: header["network"].setdefault("transition", {}).update(width=1_000_000), "plan"),
            PLAN,
        ),
        "recipe: nested 100,000 deep": Case("header", written("r.toml", f"a = {DEEP}"), TRAIN + " --recipe {here}/r.toml"),
        "fields: nested 100,000 deep": Case(
            "header",
            lambda here: (npz(**SMALL)(here), written("f.json", DEEP)(here)),
            IMPORT_NPZ + " --fields {here}/f.json",
        ),
        "store: attributes nested 100,000 deep": Case(
            "header", written("s.zarr/zarr.json", '{"zarr_format": 3, "node_type": "group", "attributes": ' + DEEP), INFO
        ),
        "expression: 10,000 brackets": Case("header", lambda here: None, "compose " + "(" * 10_000 + "a --out {here}/r.npz"),
    }


def sound(at: Path) -> None:
    """The store and the runs that the hostile ones are made of."""

    corruption._must(f"collect {at}/s.zarr --env ebmtraj/Particle-v0 --steps 6 --workers 1 --episodes 20".split())
    corruption._images(at / "i.zarr", 0)
    corruption._must(
        [
            "train",
            "transition",
            "--data",
            f"{at}/s.zarr",
            "--run",
            f"{at}/run",
            "--model",
            "gaussian",
            *corruption.TINY.split(),
        ]
    )
    corruption._must(["train", "sequence", "--data", f"{at}/s.zarr", "--run", f"{at}/plan", *corruption.TINY.split()])
    small = ["--model", "pcd", "--set", "network.width=4"]
    corruption._must(["train", "image", "--data", f"{at}/i.zarr", "--run", f"{at}/image", *small, *corruption.TINY.split()])


def warm(at: Path) -> None:
    """Read the sound ones, too: what libraries take for that is not the hostile files'."""
    for words in (ROLLOUT, SAMPLE, PLAN, INFO):
        found = corruption.run(words.format(here=at).split(), (at / "r.npz",))
        if found.code:
            raise SystemExit(f"ebmtraj {words}: {found.err}")
    (at / "r.npz").unlink(missing_ok=True)


def meet(name: str, case: Case, made: Path, here: Path) -> dict[str, Any]:
    """Make a hostile file and have the command meet it."""

    shutil.copytree(made, here, symlinks=True)
    case.make(here)
    os.chdir(here)
    words = case.words.format(here=here).split()
    before = _status("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # the peak is counted anew
    began = time.perf_counter()
    with mock.patch.object(sys, "path", [str(here), *sys.path]):
        found = corruption.run(words)
    seconds = time.perf_counter() - began
    memory = (_status("VmHWM") - before) / 1024
    lines = [line for line in found.err.splitlines() if line.strip()]
    errors = [line for line in lines if line.startswith("error: ")]  # before it, a command may say what it is doing
    one_line = found.code == 2 and errors == lines[-1:] and "Traceback" not in found.err
    ran = (here / "unpickled").exists() or Path("/tmp/evil-of-ebmtraj").exists() or (here / "new.zarr" / "c").exists()
    expected = next(text for start, text in SAYS.items() if name.startswith(start))
    good = one_line and expected in lines[-1] and not ran and memory <= MOST_MB and seconds <= MOST_SECONDS
    said = (lines[-1] if lines else found.out).replace(str(here), ".")
    return {
        "kind": case.kind,
        "refused": one_line,
        "code_ran": ran,
        "extra_mb": round(max(0.0, memory), 1),
        "seconds": round(seconds, 2),
        "good": good,
        "said": said[:400],
    }


def _status(key: str) -> int:
    """kB of a line of this process's status."""
    text = Path("/proc/self/status").read_text()
    return int(next(line for line in text.splitlines() if line.startswith(key + ":")).split()[1])


def main() -> None:
    """Make, meet, count, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, help="where the result goes; without it, it is printed")
    parser.add_argument("--only", default="", help="cases whose name or kind holds this")
    asked = parser.parse_args()
    logging.disable(logging.CRITICAL)
    import torch

    from ebmtraj.runs import machine, versions, write_json

    torch.set_num_threads(1)
    out = asked.out.resolve() if asked.out else None
    rows: dict[str, dict[str, Any]] = {}
    home = Path.cwd()
    with tempfile.TemporaryDirectory() as folder, contextlib.ExitStack() as later:
        later.callback(os.chdir, home)
        work = Path(folder).resolve()
        sound(work / "sound")
        warm(work / "sound")
        limit = resource.getrlimit(resource.RLIMIT_AS)
        resource.setrlimit(resource.RLIMIT_AS, (1024 * _status("VmSize") + 6 * GIB, limit[1]))  # the machine lives on
        later.callback(resource.setrlimit, resource.RLIMIT_AS, limit)
        for number, (name, case) in enumerate(cases().items()):
            if asked.only in name or asked.only == case.kind:
                rows[name] = meet(name, case, work / "sound", work / str(number) / "here")
                if not rows[name]["good"]:
                    print(f"{name}: {json.dumps(rows[name])}", file=sys.stderr, flush=True)
                shutil.rmtree(work / str(number), ignore_errors=True)
    kinds = list(dict.fromkeys(row["kind"] for row in rows.values()))
    result = {
        "what": "crafted files, each met by the command that reads it",
        "command": "python benchmarks/hostile.py",
        "files": len(rows),
        "refused": sum(row["refused"] for row in rows.values()),
        "good": sum(row["good"] for row in rows.values()),
        "code_ran": sum(row["code_ran"] for row in rows.values()),
        "most_extra_mb": max((row["extra_mb"] for row in rows.values()), default=0),
        "most_seconds": max((row["seconds"] for row in rows.values()), default=0),
        "kinds": {kind: sum(row["kind"] == kind for row in rows.values()) for kind in kinds},
        "rows": rows,
        "machine": machine(),
        "versions": versions(),
    }
    if out:
        write_json(out, result)
    else:
        print(json.dumps({key: value for key, value in result.items() if key not in ("versions", "machine")}, indent=1))
    if result["good"] < result["files"]:
        raise SystemExit(1)


if __name__ == "__main__":
    main()
