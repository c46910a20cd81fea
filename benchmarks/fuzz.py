"""Fuzz four surfaces: recipes, command lines, importers, and checkpoints with expressions and tasks.

Two engines make the inputs: hypothesis, from what each surface is made of, and atheris (libFuzzer), which mutates bytes and
keeps those that reach new code of ebmtraj. An input may work or be refused: `EbmtrajError`, or exit code 2 with one line.
Anything else is a crash; more than 10 s is a hang. Each engine works in a process of its own on each surface.

    python benchmarks/fuzz.py --inputs 13000 --out docs/results/fuzz.json
    python benchmarks/fuzz.py --inputs 500 --surfaces recipes --engines hypothesis     # a look
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import json
import logging
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from unittest import mock

ENGINES = ("hypothesis", "atheris")
HANG = 10.0  # s
SEED = 0


class Draw:
    """Choices from bytes; zeros when there are no more."""

    def __init__(self, data: bytes) -> None:
        self._data, self._at = data, 0

    def byte(self) -> int:
        """From 0 to 255."""
        self._at += 1
        return self._data[self._at - 1] if self._at <= len(self._data) else 0

    def pick(self, options: Any) -> Any:
        """One of them."""
        return options[(self.byte() << 8 | self.byte()) % len(options)]

    def rest(self) -> bytes:
        """All bytes that are left."""
        left, self._at = self._data[self._at :], len(self._data)
        return left

    def text(self) -> str:
        """A short text."""
        size = self.byte() % 24
        part, self._at = self._data[self._at : self._at + size], self._at + size
        return part.decode("utf-8", "replace").replace("\0", "")


# Surfaces: each makes an input of bytes or by a hypothesis strategy, and tries it


class Surface:
    """What is fuzzed; `folder` is scratch of its own."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def close(self) -> None:
        """Leave everything else as it was."""

    def seeds(self) -> list[bytes]:
        """Inputs to begin with."""
        return []

    def decode(self, data: bytes) -> Any:
        """The input that bytes stand for."""
        raise NotImplementedError

    def strategy(self) -> Any:
        """The hypothesis strategy of inputs."""
        raise NotImplementedError

    def try_one(self, given: Any) -> None:
        """Feed it; raises what the product raises."""
        raise NotImplementedError


KEYS = [
    "training.steps",
    "training.seconds",
    "training.batch",
    "training.learning_rate",
    "training.guard.factor",
    "training.precision",
    "training.ema",
    "training.seed",
    "training.accumulate",
    "network.width",
    "network.depth",
    "network.sampler.steps",
    "network.space",
    "network.activation",
    "network",
    "model",
    "data",
    "actions",
    "stream",
    "prior",
    "condition",
    "label",
    "env",
    "episodes",
    "steps",
    "policy",
    "workers",
    "policy_kwargs.mode",
    "env_kwargs.x",
    "block_episodes",
    "row.name",
    "time",
    "content_hash",
    "conditional",
    "base",
    "sampler_of",
    "set",
]
VALUES = [
    "0",
    "1",
    "-1",
    "60",
    "1e3",
    "1e400",
    "-0.0",
    "nan",
    "inf",
    "-inf",
    "true",
    "false",
    "''",
    "'x'",
    '"dsm"',
    "[]",
    "[1]",
    "[[]]",
    "{}",
    "{a=1}",
    "1979-05-27",
    "07:32:00",
    "0x1F",
    "1_000",
    "9223372036854775808",
    "1e-320",
    "99999999999999999999",
    "'fp32'",
    "'energy'",
    '"\\u0000"',
    "'é'",
    "[1,'a']",
    "12345678901234567890.5",
    "0o7",
    "1979-05-27T07:32:00Z",
    "340282366920938463463374607431768211456",
    "'auto'",
    "'mdn'",
    "'icd'",
]


class Recipes(Surface):
    """A TOML recipe, --set overrides, and which command they are for."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        from ebmtraj.collect import CollectConfig
        from ebmtraj.config import from_recipe
        from ebmtraj.generators.fit import load_generator_recipe
        from ebmtraj.images.fit import load_image_recipe
        from ebmtraj.policy.train import PolicyConfig
        from ebmtraj.report.compare_rows import choose_rows, read_rows, recipe_of
        from ebmtraj.trajectories.clone_fit import load_clone_recipe
        from ebmtraj.trajectories.fit import load_recipe
        from ebmtraj.trajectories.plan_fit import load_plan_recipe
        from ebmtraj.trajectories.sequence_fit import load_sequence_recipe

        def rows(path: Path, overrides: list[str]) -> None:
            for row in choose_rows(",".join(overrides) or "none", read_rows(path)):
                recipe_of(row, data="x", task="unconditional", seed=0, seconds=1)

        loaders = (
            load_recipe,
            load_plan_recipe,
            load_sequence_recipe,
            load_clone_recipe,
            load_image_recipe,
            load_generator_recipe,
        )
        self.into: list[Callable[[Path, list[str]], object]] = [
            *(lambda path, sets, load=load: load(path, sets, {}) for load in loaders),
            lambda path, sets: from_recipe(CollectConfig, path, sets),
            lambda path, sets: from_recipe(PolicyConfig, path, sets),
            rows,
        ]

    def seeds(self) -> list[bytes]:
        """Recipes that are right."""
        texts = ['model = "mdn"\n[training]\nsteps = 5\n', '[[row]]\nname = "a"\nmodel = "fc"\nset = ["network.width=8"]\n']
        texts += [
            "[network]\nwidth = 16\n[training.guard]\nfactor = 3.0\n",
            'env = "hand-cube"\nepisodes = 3\n',
            "a = " + "[" * 3000,
        ]
        return [bytes((0, i, 1)) + text.encode() for i, text in enumerate(texts)]

    def decode(self, data: bytes) -> Any:
        """A loader, a text, and up to three overrides."""
        draw = Draw(data)
        into, sets = draw.pick(range(len(self.into))), []
        for _ in range(draw.byte() % 4):
            sets += [f"{draw.pick(KEYS)}={draw.pick(VALUES)}" if draw.byte() % 2 else draw.text()]
        lines = [f"{draw.pick(KEYS)} = {draw.pick(VALUES)}" for _ in range(draw.byte() % 4)]
        return into, "\n".join([*lines, ""]).encode() + draw.rest(), sets

    def strategy(self) -> Any:
        """Lines of keys and values, some of them noise."""
        from hypothesis import strategies as st

        key, value = st.sampled_from(KEYS) | st.text(max_size=8), st.sampled_from(VALUES) | st.text(max_size=8)
        pair = st.builds("{} = {}".format, key, value)
        table = st.builds(
            "[{}]".format, st.sampled_from(["training", "network", "training.guard", "row", "[row]", "network.sampler"])
        )
        text = st.lists(pair | table | st.text(max_size=20), max_size=6).map(
            lambda lines: "\n".join(lines).encode("utf-8", "replace")
        )
        sets = st.lists(st.builds("{}={}".format, key, value) | st.text(max_size=12), max_size=3)
        return st.tuples(st.integers(0, len(self.into) - 1), text | st.binary(max_size=60), sets)

    def try_one(self, given: Any) -> None:
        """Load it."""
        into, text, sets = given
        path = self.folder / "r.toml"
        path.write_bytes(text)
        self.into[into](path, sets)


SOUND = (  # lines that are right, for words to be added to
    "data info s.zarr",
    "data verify s.zarr --json",
    "data show s.zarr --episode 1",
    "data export s.zarr out.npz --format npz",
    "data split s.zarr new --split test",
    "data repair s.zarr new",
    "train transition --data s.zarr --run new",
    "train plan --data s.zarr --run new",
    "train image --data digits --run new",
    "rollout run --data s.zarr --steps 2 --out out.npz",
    "evaluate run --data s.zarr --steps 2 --samples 2 --quick --overwrite",
    "diagnose run --data s.zarr",
    "compose ring:1,0.2",
    "plan run --task reach",
    "collect new --env Reacher-v5 --episodes 2",
    "compare transitions --data s.zarr --out x.json",
    "policy evaluate --episodes 2",
)


class Arguments(Surface):
    """Words after `ebmtraj`; what would begin work stops there."""

    LONG = (  # where work begins
        "ebmtraj.collect.collect",
        "ebmtraj.training.run._train_run",
        "ebmtraj.images.fit.fit_closed",
        "ebmtraj.datasets.images.open_images",
        "ebmtraj.datasets.image_sources.load_source",
        "ebmtraj.policy.evaluate.evaluate_policy",
        "ebmtraj.policy.train.train_policy",
        "ebmtraj.report.compare_composition.sprite_judge",
        "ebmtraj.report.compare_composition_run.sprite_judge",
        "ebmtraj.report.compare_composition_run.run_composition_jobs",
        "ebmtraj.report.plane.sample_plane",
        "ebmtraj.report.doctor.examine",
        "ebmtraj.report.continual_robot.collect_behaviours",
        "ebmtraj.cli.demo.Shell",
        "ebmtraj.parallel.ThisProcess",
        "ebmtraj.parallel.ProcessPool",
    )

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        import typer

        from ebmtraj.cli import app

        self.app, self.command = app, typer.main.get_command(app.app)
        self.words: list[str] = []
        self.paths: list[list[str]] = []

        def walk(command: Any, path: list[str]) -> None:
            for name, inner in getattr(command, "commands", {}).items():
                walk(inner, [*path, name])
            if not getattr(command, "commands", {}):
                self.paths.append(path)
            for parameter in command.params:
                self.words += [option for option in parameter.opts if option.startswith("-")]

        walk(self.command, [])
        self.paths += [line.split() for line in SOUND]
        self.words = sorted(set(self.words) - {"--interactive"})
        os.chdir(folder)
        sys.path.insert(0, str(Path(__file__).parent))
        import corruption

        if not (folder / "s.zarr").exists():
            corruption._must(
                ["collect", "s.zarr", "--env", "ebmtraj/Particle-v0", "--steps", "4", "--workers", "1", "--episodes", "10"]
            )
            corruption._must(
                ["train", "transition", "--data", "s.zarr", "--run", "run", "--model", "gaussian", *corruption.TINY.split()]
            )
        self.run = corruption.run
        self.values = [
            *VALUES,
            *KEYS,
            "s.zarr",
            "run",
            "new",
            "x.npz",
            "-1",
            "cuda:9",
            "train",
            "test",
            "reach",
            "rotate axis=z",
        ]
        self.values += [
            "http://x/y",
            "foo://x",
            "",
            " ",
            "../..",
            "/",
            "digits",
            "ebm,fc",
            "a & b",
            "ring:1,0.2",
            "\x1b[0m",
            "training.steps=1",
        ]
        self.stops, self.stopped = contextlib.ExitStack(), dict[int, Any]()
        for name in self.LONG:
            self._stop(name)

    def close(self) -> None:
        """What was stopped works again, also in modules that were imported meanwhile and hold the stop by its name."""
        self.stops.close()
        for module in list(sys.modules.values()):
            for name, value in list(getattr(module, "__dict__", {}).items()):
                while id(value) in self.stopped:
                    value = self.stopped[id(value)][1]
                    setattr(module, name, value)

    def _stop(self, name: str) -> None:
        import importlib

        from ebmtraj.errors import EbmtrajError

        def stop(*args: Any, **kwargs: Any) -> Any:
            raise EbmtrajError("here work would begin")

        module, _, attribute = name.rpartition(".")
        found = importlib.import_module(module)
        if not hasattr(found, attribute):
            raise SystemExit(f"{name} is not there any more; mend the list of what takes long")
        self.stopped[id(stop)] = stop, getattr(found, attribute)
        self.stops.enter_context(mock.patch.object(found, attribute, stop))

    def decode(self, data: bytes) -> Any:
        """A command and up to seven words."""
        draw = Draw(data)
        words = list(draw.pick(self.paths))
        for _ in range(draw.byte() % 8):
            kind = draw.byte() % 8
            if kind < 4:
                words += [draw.pick(self.words), draw.pick(self.values)][: 1 + kind % 2]
            else:
                words.append(draw.pick(self.values) if kind < 7 else draw.text())
        return words

    def strategy(self) -> Any:
        """The same."""
        from hypothesis import strategies as st

        word = (
            st.sampled_from(self.words) | st.sampled_from(self.values) | st.text(max_size=10).filter(lambda t: "\0" not in t)
        )
        return st.builds(lambda path, words: [*path, *words], st.sampled_from(self.paths), st.lists(word, max_size=8))

    def try_one(self, given: Any) -> None:
        """Run it; raises where it ends in anything but success, or 2 with one line."""
        from ebmtraj.errors import EbmtrajError

        def invoke(standalone_mode: bool) -> Any:
            return self.command(prog_name="ebmtraj", standalone_mode=standalone_mode)

        with mock.patch.object(self.app, "app", invoke):
            found = self.run(list(given))
        lines = found.err.strip().splitlines()
        if found.code == 2 and (not lines or not lines[-1].startswith("error: ")) and "verify" not in given:
            raise AssertionError(f"exit code 2 without a line: {found.err[:200]!r}")
        if found.code not in (0, 2):
            raise AssertionError(f"exit code {found.code}: {found.err[-300:]!r}")
        for name in os.listdir(self.folder):
            if name not in ("s.zarr", "run", "corpus"):
                path = self.folder / name
                shutil.rmtree(path, ignore_errors=True) if path.is_dir() else path.unlink(missing_ok=True)
        if found.code == 2:
            raise EbmtrajError(lines[-1] if lines else "said in JSON")


class Importers(Surface):
    """A file of a source that is damaged or made up, and the reader of its format."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        import gzip
        import io
        import struct
        import tarfile

        import numpy as np
        import zarr
        from scipy.io import savemat

        sys.path.insert(0, str(Path(__file__).parent))
        import hostile

        from ebmtraj.datasets import dsprites, image_archives
        from ebmtraj.datasets.interchange.described import Given
        from ebmtraj.datasets.interchange.formats import IMPORTS
        from ebmtraj.datasets.interchange.source import _Checked

        made = folder / "made"
        made.mkdir(exist_ok=True)
        np.savez(made / "x.npz", state=np.zeros((5, 3)), action=np.zeros((4, 2)), length=[4], seed=[1], terminated=[True])
        np.savez_compressed(made / "y.npz", state=np.ones((2, 3, 2), "f4"), action=np.asfortranarray(np.ones((2, 2, 1))))
        if not (made / "b.zarr").exists():
            hostile.buffer()(made)
            hostile.hdf5(lambda group: group.create_dataset("observations", data=np.zeros((4, 3))))(made)
            three = zarr.create_group(made / "c.zarr", zarr_format=3)
            three.create_group("data").create_array("state", data=np.ones((9, 3)), chunks=(4, 3))
            three["data"].create_array("action", data=np.ones((9, 2), "f4"))
            three.create_group("meta").create_array("episode_ends", data=np.array([4, 9]))
        with gzip.open(made / "i.gz", "wb") as file:
            file.write(bytes((0, 0, 8, 3)) + struct.pack(">3I", 2, 3, 3) + bytes(18))
        with tarfile.open(made / "t.tar.gz", "w:gz") as archive:
            member = tarfile.TarInfo("a/x.bin")
            member.size = 30
            archive.addfile(member, io.BytesIO(bytes(30)))
        savemat(made / "m.mat", {"X": np.zeros((32, 32, 3, 2), np.uint8), "y": np.ones((2, 1))})
        (made / "d").mkdir(exist_ok=True)
        factors = np.tile([[1.0, 1, 0.5, 0, 0, 0]], (12, 1))
        np.savez(made / "d" / dsprites.FILE, imgs=np.zeros((12, 64, 64), np.uint8), latents_values=factors)
        self.made, self.sound = made, {p: p.read_bytes() for p in sorted(made.rglob("*")) if p.is_file()}
        self.files = list(self.sound)

        def check(form: str, path: Path) -> None:
            for _ in _Checked(IMPORTS[form](str(path), Given())).blocks():  # all that is checked before anything is written
                pass

        def reader(path: Path) -> Callable[[], object]:
            top = made / path.relative_to(made).parts[0]
            if top.name in ("x.npz", "y.npz"):
                return lambda: check("npz", top)
            if top.suffix == ".zarr":
                return lambda: check("diffusion-policy", top)
            if top.name == "m-v0":
                return lambda: check("minari", top)
            if top.name == "d":
                return lambda: dsprites.dsprites(made / "d", 10)
            if top.name == "m.mat":
                return lambda: image_archives.read_mat(top)
            if top.name == "i.gz":
                return lambda: image_archives.read_idx(top, 3)
            return lambda: image_archives.read_members(top, ["a/x.bin"])

        self.readers = {path: reader(path) for path in self.files}

    def decode(self, data: bytes) -> Any:
        """A file, and cuts, flips and insertions in it."""
        draw = Draw(data)
        file = draw.pick(self.files)
        content = bytearray(self.sound[file])
        for _ in range(1 + draw.byte() % 3):
            at = (draw.byte() << 16 | draw.byte() << 8 | draw.byte()) % max(1, len(content))
            kind = draw.byte() % 5
            if kind == 0:
                del content[at:]
            elif kind == 1:
                content[at : at + 1 + draw.byte() % 8] = draw.text().encode("utf-8", "replace")
            elif kind == 2 and content:
                content[at % len(content)] ^= 1 << draw.byte() % 8
            elif kind == 3:
                content[at : at + 4] = draw.pick(
                    [b"\xff" * 4, bytes(4), b"\x7f\xff\xff\xff", b"99999999999", b"-1", b"null", b"[[", b"NaN"]
                )
            else:
                content[at:at] = content[: draw.byte()]
        return file, bytes(content)

    def strategy(self) -> Any:
        """The same from random bytes, and files of noise."""
        from hypothesis import strategies as st

        noise = st.tuples(st.sampled_from(self.files), st.binary(max_size=200))
        return st.binary(min_size=12, max_size=60).map(self.decode) | noise

    def try_one(self, given: Any) -> None:
        """Read it; the file is sound again afterwards."""
        file, content = given
        file.write_bytes(content)
        try:
            self.readers[file]()
        finally:
            file.write_bytes(self.sound[file])


class Checkpoints(Surface):
    """A checkpoint with a changed header or bytes, and texts: expressions of energies and tasks."""

    WORDS = (
        "reach",
        "rotate",
        "axis=z",
        "axis=all",
        "axis=-x",
        "+",
        "&",
        "|",
        "~",
        "(",
        ")",
        "*",
        "/",
        ":",
        ",",
        "2",
        "0.5",
        "1e999",
        "nan",
        "ring:1,0.2",
        "gaussian:0,0,1",
        "weight=1",
        "weight=-1",
        "when=end",
        "joint-pose",
        "smooth",
        "keep-straight",
        "finger=ring",
        "obstacle",
        "goal=0.5,0.5",
        "goal=",
        "x",
        "y",
        "center=0.1,0.2",
        "radius=0.1",
        "a:b",
        "keep-range",
        "field=position",
        "low=0",
        "high=1",
        "-",
    )

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        sys.path.insert(0, str(Path(__file__).parent))
        import hostile

        from ebmtraj.energies.expression import parse
        from ebmtraj.fields import Field
        from ebmtraj.images.registry import load_image_model
        from ebmtraj.report.plane import plane_composition
        from ebmtraj.trajectories.costs import parse_task
        from ebmtraj.trajectories.planners import load_planner
        from ebmtraj.trajectories.registry import load_model

        if not (folder / "sound").exists():
            (folder / "sound").mkdir()
            hostile.sound(folder / "sound")
        at = folder / "sound"
        self.read: list[tuple[Path, Callable[[], object]]] = [
            (at / "run", lambda: load_model(at / "run" / "checkpoints" / "best.safetensors")),
            (at / "plan", lambda: load_planner(at / "plan", [])),
            (at / "image", lambda: load_image_model(at / "image")),
        ]
        self.sound = [(run / "checkpoints" / "best.safetensors").read_bytes() for run, _ in self.read]
        fields = (Field("position", 2, kind="position"), Field("goal", 2, kind="position"))
        self.texts: list[Callable[[str], object]] = [
            parse,
            lambda text: parse_task(text, fields),
            plane_composition,
        ]

    def decode(self, data: bytes) -> Any:
        """A text of words, or a checkpoint whose header's JSON or bytes are changed."""
        draw = Draw(data)
        if draw.byte() % 2:
            into = draw.pick(range(len(self.texts)))
            words = [draw.pick(self.WORDS) if draw.byte() % 4 else draw.text() for _ in range(draw.byte() % 12)]
            return "text", into, draw.pick([" ", "", "  "]).join(words)
        which = draw.pick(range(len(self.read)))
        raw = self.sound[which]
        size = int.from_bytes(raw[:8], "little")
        if draw.byte() % 4 == 0:  # bytes, header and all
            content = bytearray(raw[: 8 + size + 64])
            for _ in range(1 + draw.byte() % 3):
                content[(draw.byte() << 8 | draw.byte()) % len(content)] ^= 1 << draw.byte() % 8
            return "bytes", which, bytes(content) + raw[8 + size + 64 :]
        values = json.loads(raw[8 : 8 + size])
        header = json.loads(values["__metadata__"]["header"])
        for _ in range(1 + draw.byte() % 3):
            place: Any = header
            for _ in range(6):
                key = draw.pick(sorted(place)) if isinstance(place, dict) else draw.pick(range(len(place)))
                inner = place[key]
                if not isinstance(inner, dict | list) or not inner or draw.byte() % 4 == 0:
                    break
                place = inner
            place[key] = draw.pick(
                [None, 0, -1, 1e308, 10**9, "", "x", [], {}, [[]], True, 1.5, "dsm", "2", {"a": 1}, [1, "a"]]
            )
        values["__metadata__"] = {"header": json.dumps(header)}
        text = json.dumps(values).encode()
        return "bytes", which, len(text).to_bytes(8, "little") + text + raw[8 + size :]

    def strategy(self) -> Any:
        """The same from random bytes, and any text."""
        from hypothesis import strategies as st

        word = st.sampled_from(self.WORDS) | st.text(max_size=6)
        text = st.lists(word, max_size=12).map(" ".join) | st.text(max_size=30)
        texts = st.tuples(st.just("text"), st.integers(0, len(self.texts) - 1), text)
        return texts | st.binary(min_size=16, max_size=60).map(lambda data: self.decode(b"\0" + data))

    def try_one(self, given: Any) -> None:
        """Read or parse it."""
        kind, which, content = given
        if kind == "text":
            self.texts[which](content)
            return
        run, read = self.read[which]
        (run / "checkpoints" / "best.safetensors").write_bytes(content)
        read()


SURFACES: dict[str, type[Surface]] = {
    "recipes": Recipes,
    "arguments": Arguments,
    "importers": Importers,
    "checkpoints": Checkpoints,
}


class Count:
    """What came of all inputs."""

    def __init__(self, surface: Surface) -> None:
        self.surface = surface
        self.tally = {"inputs": 0, "worked": 0, "refused": 0, "hangs": 0}
        self.crashes: dict[str, dict[str, Any]] = {}
        self.slowest = 0.0
        self.began = time.perf_counter()

    def take(self, given: Any) -> None:
        """Try an input, and note it where it is not refused as it should be."""
        from ebmtraj.errors import EbmtrajError

        self.tally["inputs"] += 1
        began = time.perf_counter()
        signal.setitimer(signal.ITIMER_REAL, HANG)
        try:
            self.surface.try_one(given)
            self.tally["worked"] += 1
        except EbmtrajError as error:
            self.tally["refused"] += 1
            if not str(error).strip():  # the command line makes one line of any message
                self._crash(AssertionError("no message"), given)
        except Hang as error:
            self.tally["hangs"] += 1
            self._crash(error, given)
        except (Exception, SystemExit) as error:
            self._crash(error, given)
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
        self.slowest = max(self.slowest, time.perf_counter() - began)

    def _crash(self, error: BaseException, given: Any) -> None:
        frames = traceback.extract_tb(error.__traceback__)
        place = " < ".join(f"{Path(f.filename).name}:{f.lineno}" for f in reversed(frames[-3:]))
        key = hashlib.sha256(f"{type(error).__name__} {place} {str(error)[:60]}".encode()).hexdigest()[:12]
        if key not in self.crashes and len(self.crashes) < 40:
            self.crashes[key] = {"error": f"{type(error).__name__}: {error}"[:400], "at": place, "input": repr(given)[:600]}
        self.tally["crashes"] = self.tally.get("crashes", 0) + 1

    def report(self) -> dict[str, Any]:
        """As JSON."""
        seconds = round(time.perf_counter() - self.began, 1)
        more = {
            "slowest_seconds": round(self.slowest, 3),
            "seconds": seconds,
            "distinct_crashes": list(self.crashes.values()),
        }
        return {"crashes": 0, **self.tally, **more}


class Hang(BaseException):
    """An input took longer than it may."""


def worker(name: str, engine: str, inputs: int, folder: Path, report: Path) -> None:
    """Fuzz one surface with one engine."""
    logging.disable(logging.CRITICAL)
    if engine == "atheris":
        import atheris

        with atheris.instrument_imports(include=["ebmtraj"]):
            import ebmtraj.cli.app
            import ebmtraj.collect
            import ebmtraj.datasets.interchange.formats
            import ebmtraj.generators.fit
            import ebmtraj.images.fit
            import ebmtraj.report.compare_rows
            import ebmtraj.trajectories.clone_fit
            import ebmtraj.trajectories.planners  # noqa: F401
    import torch

    torch.set_num_threads(1)
    surface = SURFACES[name](folder)
    count = Count(surface)

    def late(*_: Any) -> None:
        raise Hang

    signal.signal(signal.SIGALRM, late)
    if engine == "hypothesis":
        from hypothesis import HealthCheck, Phase, given, seed, settings

        @seed(SEED)
        @settings(
            max_examples=inputs,
            deadline=None,
            database=None,
            phases=[Phase.generate],
            suppress_health_check=list(HealthCheck),
        )
        @given(surface.strategy())
        def examples(value: Any) -> None:
            count.take(value)

        examples()
        report.write_text(json.dumps(count.report()))
        return
    corpus = folder / "corpus"
    corpus.mkdir(exist_ok=True)
    rng = random.Random(SEED)
    for number, data in enumerate([*surface.seeds(), *(rng.randbytes(40) for _ in range(40))]):
        (corpus / f"seed{number}").write_bytes(data)

    def one(data: bytes) -> None:
        if count.tally["inputs"] >= inputs:
            report.write_text(json.dumps({**count.report(), "corpus": len(list(corpus.iterdir()))}))
            os._exit(0)
        count.take(surface.decode(data))

    flags = [
        sys.argv[0],
        str(corpus),
        f"-seed={SEED + 1}",
        "-timeout=60",
        "-verbosity=0",
        f"-artifact_prefix={folder}/",
        "-print_final_stats=0",
        "-max_len=200",
    ]
    atheris.Setup(flags, one, enable_python_coverage=True)
    atheris.Fuzz()


def main() -> None:
    """One process an engine and surface, then the sums."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--inputs", type=int, default=13_000, help="of each engine on each surface")
    parser.add_argument("--surfaces", default=",".join(SURFACES))
    parser.add_argument("--engines", default=",".join(ENGINES))
    parser.add_argument("--out", type=Path, help="where the result goes; without it, it is printed")
    parser.add_argument("--worker", nargs=2, help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.worker:
        worker(asked.surfaces, asked.engines, asked.inputs, Path(asked.worker[0]), Path(asked.worker[1]))
        return
    from ebmtraj.runs import machine, versions, write_json

    engines = [engine for engine in asked.engines.split(",") if _there(engine)]
    began, rows = time.perf_counter(), {}
    for name in asked.surfaces.split(","):
        for engine in engines:
            with _folder() as folder:
                report = folder.parent / f"{folder.name}.json"
                words = [
                    "--worker",
                    str(folder),
                    str(report),
                    "--surfaces",
                    name,
                    "--engines",
                    engine,
                    "--inputs",
                    str(asked.inputs),
                ]
                done = subprocess.run(
                    [sys.executable, __file__, *words],
                    check=False,
                    stdout=subprocess.DEVNULL,
                    stderr=subprocess.PIPE,
                    text=True,
                )
                if not report.exists():
                    raise SystemExit(f"{engine} on {name} ended with {done.returncode}: {done.stderr[-1500:]}")
                rows[f"{name}, {engine}"] = json.loads(report.read_text().replace(f"{folder}/", ""))
                report.unlink()
            print(f"{name}, {engine}: {json.dumps(rows[f'{name}, {engine}'])[:1500]}", file=sys.stderr, flush=True)
    total = {key: sum(row[key] for row in rows.values()) for key in ("inputs", "worked", "refused", "crashes", "hangs")}
    result = {
        "what": "inputs by engine and surface, and what came of them",
        "command": f"python benchmarks/fuzz.py --inputs {asked.inputs}",
        "seed": SEED,
        **total,
        "slowest_seconds": max(row["slowest_seconds"] for row in rows.values()),
        "rows": rows,
        "seconds": round(time.perf_counter() - began, 1),
        "machine": machine(),
        "versions": versions(),
    }
    if asked.out:
        write_json(asked.out, result)
    else:
        print(json.dumps({key: value for key, value in result.items() if key not in ("machine", "versions")}, indent=1))
    if total["crashes"] or total["hangs"]:
        raise SystemExit(1)


@contextlib.contextmanager
def _folder() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(dir="/dev/shm" if Path("/dev/shm").is_dir() else None) as made:
        folder = Path(made).resolve() / "fuzz"
        folder.mkdir()
        yield folder


def _there(engine: str) -> bool:
    import importlib.util

    if importlib.util.find_spec(engine) is not None:
        return True
    print(f"{engine} is not installed, so it is left out; pip install 'ebmtraj[fuzz]'", file=sys.stderr)
    return False


if __name__ == "__main__":
    main()
