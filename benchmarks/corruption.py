"""Damage one file at a time of a store, an image store, a run or a checkpoint, and hold every reader to it.

Each file is flipped by a bit, cut, emptied, zeroed in part, deleted, replaced by the same file of another or of an older
version, replaced by another file of its kind, and, where it is text, changed by a digit. After each damage all commands
that read it are run in this process through the real command line. A command may refuse, in one line with exit code 2, or
give what it gives of the undamaged file. Another result with exit code 0 is *silent*, anything else a *traceback*.

    python benchmarks/corruption.py --out docs/results/corruption.json
    python benchmarks/corruption.py --most 60                                # a draw of them, for a look
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import io
import json
import logging
import os
import random
import re
import shutil
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
from safetensors import safe_open

SEED = 0
TIMED = re.compile(  # what no two runs share, and seals over it
    r'"(?:[a-z_]*seconds|ms_per_step|[a-z_]*_ms)": [0-9.e+-]+|"sample_seconds": {[^}]*}|"(?:chain|sha256)": "[0-9a-f]+"'
)
TINY = "--set training.steps=20 --set training.batch=16 --set training.check_every=10 --set training.log_every=5"
TEXT = (".json", ".toml", ".jsonl")


@dataclass(frozen=True)
class Outcome:
    """What a command came to."""

    code: int
    out: str
    err: str
    digest: str  # of stdout and of the files it wrote, less what no two runs share


def run(words: list[str], outputs: tuple[Path, ...] = ()) -> Outcome:
    """A command of ebmtraj in this process; `outputs` are removed before, and part of the digest after."""
    from ebmtraj.cli import app

    for path in outputs:
        _remove(path)
    out, err = io.StringIO(), io.StringIO()
    with (
        mock.patch.object(sys, "argv", ["ebmtraj", *words]),
        contextlib.redirect_stdout(out),
        contextlib.redirect_stderr(err),
    ):
        try:
            app.main()
            code = 0
        except SystemExit as stop:
            code = int(stop.code or 0)
        except Exception as error:
            code = 70
            err.write(f"{type(error).__name__}: {error}")
    digest = hashlib.sha256(TIMED.sub("", out.getvalue()).encode())
    for path in outputs if code == 0 else ():
        for file in sorted(each for each in path.rglob("*") if each.is_file()) if path.is_dir() else [path] * path.exists():
            digest.update(_content(file))
    return Outcome(code, out.getvalue(), err.getvalue(), digest.hexdigest())


def _content(path: Path) -> bytes:
    """What counts in a file: arrays and headers rather than how long it took."""
    if path.suffix == ".npz":
        with np.load(path) as file:
            return b"".join(name.encode() + file[name].tobytes() for name in sorted(file.files))
    if path.suffix == ".safetensors":
        with safe_open(path, framework="numpy") as file:
            header = json.loads((file.metadata() or {})["header"])
            header = TIMED.sub("", json.dumps(header, sort_keys=True))
            return header.encode() + b"".join(
                name.encode() + file.get_tensor(name).tobytes() for name in sorted(file.keys())
            )
    if path.suffix in (".json", ".jsonl"):
        return TIMED.sub("", path.read_text()).encode()
    return path.read_bytes()


# What is damaged, and who reads it


@dataclass(frozen=True)
class Target:
    """A folder that is damaged, what can take a file's place, and the commands that read it."""

    name: str
    folder: Path
    others: tuple[Path, ...]  # the same folder of another seed, and as it was earlier
    readers: Callable[[Path], dict[str, tuple[list[str], tuple[Path, ...]]]]  # scratch folder -> words and outputs by name


def make(work: Path) -> list[Target]:
    """The stores and runs, small enough that a command takes a fraction of a second."""
    store, other = work / "store.zarr", work / "other.zarr"
    collect = "--env ebmtraj/Particle-v0 --steps 8 --workers 1 --set block_episodes=10 --episodes {} --seed {}"
    _must(["collect", str(store), *collect.format(20, 1).split()])
    shutil.copytree(store, work / "earlier.zarr")
    with _before("ebmtraj.datasets.writer.StoreWriter.finish", lambda: shutil.copytree(store, work / "unfinished.zarr")):
        _must(["collect", str(store), *collect.format(40, 1).split(), "--resume"])
    _must(["collect", str(other), *collect.format(40, 2).split()])
    _images(work / "images.zarr", 0)
    _images(work / "images-other.zarr", 1)

    trained = {
        "transition": [
            "train",
            "transition",
            "--data",
            str(store),
            "--actions",
            "--model",
            "dsm",
            *_small("network.width=16"),
        ],
        "sequence": ["train", "sequence", "--data", str(store)],
        "image": ["train", "image", "--data", str(work / "images.zarr"), "--model", "pcd", *_small("network.width=4")],
        "generator": ["train", "generator", "--data", str(work / "images.zarr"), "--model", "vae"],
    }
    runs = {}
    for name, words in trained.items():
        runs[name] = [work / name, work / f"{name}-other", work / f"{name}-earlier"]
        _must([*words, "--run", str(work / f"{name}-other"), *TINY.split(), "--seed", "5"])
        with _interrupted(15):
            run([*words, "--run", str(work / name), *TINY.split()])
        shutil.copytree(work / name, work / f"{name}-earlier")
        _must([*words, "--run", str(work / name), *TINY.split(), "--resume"])
    scratch = work / "scratch"
    scratch.mkdir()

    def of_store(at: Path, model: Path) -> dict[str, tuple[list[str], tuple[Path, ...]]]:
        out, few = scratch / "out.npz", ["--data", str(at), "--steps", "4", "--samples", "2", "--json"]
        evaluate = ["evaluate", str(model), *few, "--quick", "--threads", "1", "--overwrite"]
        return {
            "rollout": (["rollout", str(model), *few, "--starts", "4", "--out", str(out)], (out,)),
            "evaluate": (evaluate, ()),
        }

    def store_readers(scratch: Path) -> dict[str, tuple[list[str], tuple[Path, ...]]]:
        npz, card, part, made = (scratch / name for name in ("e.npz", "card.html", "part.zarr", "made"))
        train = ["train", "transition", "--data", str(store), "--run", str(made), "--model", "gaussian", "--json"]
        return {
            "info": (["data", "info", str(store), "--json"], ()),
            "verify": (["data", "verify", str(store), "--json"], ()),
            "show": (["data", "show", str(store), "--episode", "3", "--json"], ()),
            "export": (["data", "export", str(store), str(npz), "--format", "npz", "--json"], (npz,)),
            "card": (["data", "card", str(store), "--out", str(card), "--json"], (card,)),
            "split": (["data", "split", str(store), str(part), "--split", "test", "--json"], (part,)),
            "train": ([*train, *TINY.split(), "--set", "training.steps=2"], (made,)),
            "train, streamed": ([*train, *TINY.split(), "--set", "training.steps=2", "--set", "stream=true"], (made,)),
            **of_store(store, work / "transition"),
        }

    def image_store_readers(scratch: Path) -> dict[str, tuple[list[str], tuple[Path, ...]]]:
        at, made = str(work / "images.zarr"), scratch / "made"
        return {
            "info": (["data", "info", at, "--json"], ()),
            "verify": (["data", "verify", at, "--json"], ()),
            "train": (
                ["train", "image", "--data", at, "--run", str(made), "--model", "gaussian", "--json"],
                (made,),
            ),
        }

    def transition_readers(scratch: Path) -> dict[str, tuple[list[str], tuple[Path, ...]]]:
        again = [*trained["transition"], "--run", str(work / "transition"), *TINY.split(), "--resume", "--json"]
        return {**of_store(store, work / "transition"), "train --resume": (again, ())}

    def unfinished_readers(scratch: Path) -> dict[str, tuple[list[str], tuple[Path, ...]]]:
        at = work / "transition-earlier"
        return {"train --resume": ([*trained["transition"], "--run", str(at), *TINY.split(), "--resume", "--json"], ())}

    def sequence_readers(scratch: Path) -> dict[str, tuple[list[str], tuple[Path, ...]]]:
        plan = [
            "plan",
            str(work / "sequence"),
            "--task",
            "reach",
            "--episodes",
            "2",
            "--steps",
            "2",
            "--json",
            "--overwrite",
        ]
        return {"plan": ([*plan, "--out", str(scratch / "plan.json"), "--set", "horizon=4", "--set", "levels=2"], ())}

    def image_readers(scratch: Path) -> dict[str, tuple[list[str], tuple[Path, ...]]]:
        npz = scratch / "s.npz"
        words = ["sample", str(work / "image"), "-n", "4", "--out", str(npz), "--json", "--set", "sampler.steps=2"]
        return {"sample": (words, (npz,)), "sample --buffer": ([*words, "--buffer"], (npz,))}

    def generator_readers(scratch: Path) -> dict[str, tuple[list[str], tuple[Path, ...]]]:
        tilt = ["tilt", str(work / "generator"), "--out", str(scratch / "tilt"), *TINY.split(), "--json", "--overwrite"]
        return {"tilt": (tilt, (scratch / "tilt" / "checkpoints" / "best.safetensors",))}

    return [
        Target("store", store, (other, work / "earlier.zarr", work / "unfinished.zarr"), store_readers),
        Target("image store", work / "images.zarr", (work / "images-other.zarr",), image_store_readers),
        Target("run", work / "transition", tuple(runs["transition"][1:]), transition_readers),
        Target("run to resume", work / "transition-earlier", tuple(runs["transition"][:2]), unfinished_readers),
        Target("planning run", work / "sequence", tuple(runs["sequence"][1:]), sequence_readers),
        Target("image run", work / "image", tuple(runs["image"][1:]), image_readers),
        Target("generator", work / "generator", tuple(runs["generator"][1:]), generator_readers),
    ]


def _small(*settings: str) -> list[str]:
    return [word for each in settings for word in ("--set", each)]


def _images(path: Path, seed: int) -> None:
    from ebmtraj.datasets.image_writer import RawImages, write_images

    rng = np.random.default_rng(seed)
    labels = np.arange(80, dtype=np.int64) % 2
    split = np.repeat(np.arange(3, dtype=np.int8), (56, 8, 16))
    pixels = (rng.random((80, 1, 8, 8)) * 200 + 50 * labels[:, None, None, None]).astype(np.uint8)
    write_images(path, RawImages("noise", pixels, split, labels, ("dark", "bright")))


def _must(words: list[str]) -> None:
    done = run(words)
    if done.code:
        raise SystemExit(f"ebmtraj {' '.join(words)}: {done.err}")


@contextlib.contextmanager
def _before(name: str, act: Callable[[], object]) -> Iterator[None]:
    module, cls, method = name.rsplit(".", 2)
    owner = getattr(__import__(module, fromlist=[cls]), cls)
    kept = getattr(owner, method)

    def acted(*args: Any) -> Any:
        act()
        return kept(*args)

    with mock.patch.object(owner, method, acted):
        yield


@contextlib.contextmanager
def _interrupted(step: int) -> Iterator[None]:
    """A training that is interrupted at this step."""
    from ebmtraj.training import loop

    kept, done = loop._step, []

    def counted(*args: Any) -> Any:
        done.append(None)
        if len(done) > step:
            raise KeyboardInterrupt
        return kept(*args)

    with mock.patch.object(loop, "_step", counted):
        yield


# Damage


@dataclass(frozen=True)
class Damage:
    """One file and what becomes of it; None: it is deleted."""

    file: Path
    kind: str
    change: Callable[[bytes], bytes | None]
    note: str = ""


def damages(target: Target, rng: random.Random) -> Iterator[Damage]:
    """All single faults that are tried on a target."""
    files = sorted(each for each in target.folder.rglob("*") if each.is_file())
    for file in files:
        size = file.stat().st_size
        inside = file.relative_to(target.folder)
        yield Damage(file, "delete", lambda data: None)
        for keep in dict.fromkeys((0, size // 2, max(0, size - 1), max(0, size - rng.randrange(1, 40)))):
            yield Damage(file, "truncate", lambda data, keep=keep: data[:keep], f"to {keep}")
        for _ in range(8 if file.suffix in (*TEXT, ".safetensors") else 5):
            place = rng.randrange(8 * size) if size else 0
            yield Damage(file, "flip", lambda data, place=place: _flipped(data, place), f"bit {place}")
        if size > 64:
            start = rng.randrange(size - 64)
            yield Damage(file, "zero", lambda data, s=start: data[:s] + bytes(64) + data[s + 64 :], f"64 bytes from {start}")
        for other in target.others:
            if (other / inside).is_file() and (other / inside).read_bytes() != file.read_bytes():
                kind = "older version" if "earlier" in other.name or "unfinished" in other.name else "another's"
                yield Damage(file, kind, lambda data, at=other / inside: at.read_bytes(), other.name)
        alike = [each for each in files if each != file and each.suffix == file.suffix and each.name == file.name]
        for each in alike[:3]:
            yield Damage(file, "swap", lambda data, at=each.read_bytes(): at, str(each.relative_to(target.folder)))
        if file.suffix in TEXT:
            places = [m.start() for m in re.finditer(rb"[0-9]", file.read_bytes())]
            for place in rng.sample(places, min(8, len(places))):
                yield Damage(file, "digit", lambda data, at=place: _digit(data, at), f"at {place}")
        if file.suffix == ".safetensors":
            head = int.from_bytes(file.read_bytes()[:8], "little")
            for _ in range(6):
                place = 8 * rng.randrange(8, 8 + head) + rng.randrange(8)
                yield Damage(file, "flip", lambda data, place=place: _flipped(data, place), f"bit {place} of its header")


def _flipped(data: bytes, place: int) -> bytes:
    changed = bytearray(data)
    changed[place // 8] ^= 1 << place % 8
    return bytes(changed)


def _digit(data: bytes, at: int) -> bytes:
    return data[:at] + str((int(data[at : at + 1]) + 1) % 10).encode() + data[at + 1 :]


# The count


def judge(target: Target, damage: Damage, sound: dict[str, Outcome], scratch: Path) -> list[dict[str, Any]]:
    """What each reader makes of a damage; the target is sound again afterwards."""
    held = target.folder.with_name("held")
    _remove(held)
    shutil.copytree(target.folder, held)
    changed = damage.change(damage.file.read_bytes())
    if changed is None:
        damage.file.unlink()
    else:
        damage.file.write_bytes(changed)
    rows = []
    try:
        for name, (words, outputs) in target.readers(scratch).items():
            found = run(words, outputs)
            if name == "train --resume" or "evaluate" in words:  # these write where they read
                _restore_but(target.folder, held, damage.file)
            rows.append({"reader": name, **_verdict(target, damage, found, sound[name])})
    finally:
        _remove(target.folder)
        held.rename(target.folder)
    return rows


def _restore_but(folder: Path, held: Path, damaged: Path) -> None:
    kept = damaged.read_bytes() if damaged.exists() else None
    _remove(folder)
    shutil.copytree(held, folder)
    if kept is None:
        damaged.unlink()
    else:
        damaged.write_bytes(kept)


def _verdict(target: Target, damage: Damage, found: Outcome, sound: Outcome) -> dict[str, Any]:
    said, was = ((of.err + of.out).strip().replace(f"{Path.cwd()}/", "") for of in (found, sound))  # no temporary names
    if found.code == 0:
        same = found.digest == sound.digest
        return {"verdict": "same" if same else "silent", **({} if same else {"said": said[:400], "was": was[:400]})}
    lines = [line for line in found.err.splitlines() if line.strip()]
    if found.code != 2 or "Traceback" in said or (len(lines) != 1 and "verify" not in found.out and found.out.strip() == ""):
        return {"verdict": "traceback", "said": said[-400:]}
    inside = damage.file.relative_to(target.folder)
    names = {str(damage.file), str(inside), inside.name, *(str(inside.parent).split("/c")[0],)} - {".", "zarr.json"}
    if inside.name == "zarr.json":
        names |= {"attributes", "zarr.json"} if len(inside.parts) == 1 else {"zarr.json"}
    return {"verdict": "refused", "named": any(name in said for name in names), "said": said[:300]}


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def main() -> None:
    """Damage, read, count, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, help="where the result goes; without it, it is printed")
    parser.add_argument("--most", type=int, default=0, help="damages at most of each target, drawn at random; 0: all")
    parser.add_argument("--only", default="", help="a target's name")
    parser.add_argument("--seed", type=int, default=SEED)
    asked = parser.parse_args()
    logging.disable(logging.CRITICAL)
    import torch

    from ebmtraj.runs import machine, versions, write_json

    torch.set_num_threads(1)
    began, rng = time.perf_counter(), random.Random(asked.seed)
    out = asked.out.resolve() if asked.out else None
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder).resolve()
        os.chdir(work)
        targets = make(work)
        for target in targets:
            if asked.only not in ("", target.name):
                continue
            scratch = work / "scratch"
            sound = {}
            held = work / "sound"
            for name, (words, outputs) in target.readers(scratch).items():
                shutil.copytree(target.folder, held)
                sound[name] = run(words, outputs)
                again = run(words, outputs) if "--resume" not in words else sound[name]
                _remove(target.folder)
                held.rename(target.folder)
                if sound[name].code or again.digest != sound[name].digest:
                    raise SystemExit(f"{target.name}: {name} does not give the same twice: {sound[name]} {again}")
            tried = list(damages(target, rng))
            print(f"{target.name}: {len(tried)} damages, {len(sound)} readers", file=sys.stderr, flush=True)
            for damage in rng.sample(tried, asked.most) if 0 < asked.most < len(tried) else tried:
                file = str(damage.file.relative_to(target.folder))
                for row in judge(target, damage, sound, scratch):
                    rows.append({"of": target.name, "file": file, "kind": damage.kind, "note": damage.note, **row})
                    if row["verdict"] in ("silent", "traceback"):
                        print(json.dumps(rows[-1])[:600], file=sys.stderr, flush=True)
        os.chdir("/")
    result = {
        "what": "single faults of a store, an image store, runs and checkpoints, and what every reader makes of them",
        "command": f"python benchmarks/corruption.py{f' --most {asked.most}' if asked.most else ''}",
        "seed": asked.seed,
        **summary(rows),
        "seconds": round(time.perf_counter() - began, 1),
        "machine": machine(),
        "versions": versions(),
    }
    if out:
        write_json(out, result)
    print(json.dumps({key: value for key, value in result.items() if key not in ("versions", "machine")}, indent=1))
    if result["silent"] or result["tracebacks"]:
        raise SystemExit(1)


def summary(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Counts of damages and of readings."""
    mutations: dict[tuple[str, ...], list[dict[str, Any]]] = {}
    for row in rows:
        mutations.setdefault((row["of"], row["file"], row["kind"], row["note"]), []).append(row)
    by_target: dict[str, Any] = {}
    for name in dict.fromkeys(row["of"] for row in rows):
        of = [verdicts for (target, *_), verdicts in mutations.items() if target == name]
        readings = Counter(row["verdict"] for verdicts in of for row in verdicts)
        refused = [v for v in of if any(row["verdict"] == "refused" for row in v)]
        by_target[name] = {
            "damages": len(of),
            "kinds": dict(Counter(v[0]["kind"] for v in of)),
            "readers": list(dict.fromkeys(row["reader"] for v in of for row in v)),
            "readings": sum(readings.values()),
            **{verdict: readings[verdict] for verdict in ("refused", "same", "silent", "traceback")},
            "noticed": len(refused),
            "file_named": sum(any(row.get("named") for row in v) for v in refused),
        }
    bad = [row for row in rows if row["verdict"] in ("silent", "traceback")]
    unnamed = [row for row in rows if row["verdict"] == "refused" and not row["named"]]
    return {
        "mutations": len(mutations),
        "readings": len(rows),
        "silent": len({(r["of"], r["file"], r["kind"], r["note"]) for r in bad if r["verdict"] == "silent"}),
        "tracebacks": len({(r["of"], r["file"], r["kind"], r["note"]) for r in bad if r["verdict"] == "traceback"}),
        "refused_without_the_file": len(unnamed),
        "targets": by_target,
        "failures": bad[:200],
        "unnamed": [{key: row[key] for key in ("of", "file", "kind", "reader", "said")} for row in unnamed[:20]],
    }


if __name__ == "__main__":
    main()
