"""A handful of the faults of `make faults`, at fixed moments: nothing is lost, and what is said is one line."""

from __future__ import annotations

import errno
import random
from collections.abc import Iterator
from pathlib import Path

import pytest
from harness import Zygote, difference, left
from scenarios import SCENARIOS, make_inputs
from trials import Bench, Whole, faults_of

pytestmark = pytest.mark.skipif(not Path("/proc/self/environ").exists(), reason="needs Linux's /proc")
NAMES = ("collect", "train transition fc", "data import npz", "data export npz")


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bench]:
    root = tmp_path_factory.mktemp("faults")
    with Zygote(root / "zygote.log") as zygote:
        make_inputs(zygote, root / "inputs", {"collect hand.zarr", "data export hand.zarr hand.npz"})
        yield Bench(zygote, root)


@pytest.fixture(scope="module")
def wholes(bench: Bench) -> dict[str, Whole]:
    return {each.name: bench.undisturbed(each, times=1) for each in SCENARIOS if each.name in NAMES}


@pytest.mark.parametrize(
    ("name", "share", "torn"),
    [
        ("collect", 0.0, None),  # before there is anything
        ("collect", 0.5, 0.3),  # in the middle of a write
        ("train transition fc", 0.3, None),
        ("train transition fc", 0.97, 0.5),
        ("data import npz", 0.6, 0.9),
        ("data export npz", 0.99, 0.5),
    ],
)
def test_a_kill_loses_nothing(name: str, share: float, torn: float | None, bench: Bench, wholes: dict[str, Whole]) -> None:
    whole = wholes[name]
    fault = {"at": "event", "number": 1 + int(share * whole.events), **({} if torn is None else {"torn": torn})}
    row = bench.kill(whole, fault)
    assert row is not None, "it had ended before"
    assert row["wrong"] == []


def test_a_full_disk_is_one_line_and_loses_nothing(bench: Bench, wholes: dict[str, Whole]) -> None:
    for name, number in (("collect", 150), ("train transition fc", 20), ("data export npz", 3)):
        row = bench.refuse(wholes[name], number, errno.ENOSPC)
        assert (row["outcome"], row["wrong"]) == ("refused", [])


@pytest.mark.parametrize(("name", "code"), [("SIGINT", 130), ("SIGTERM", 143)])
def test_an_interruption_says_how_to_go_on(name: str, code: int, bench: Bench, wholes: dict[str, Whole]) -> None:
    whole = wholes["train transition fc"]
    bench.prepare(whole.scenario)
    fault = {"at": "time", "seconds": 0.5 * whole.seconds, "signal": name}
    done = bench.run([*whole.scenario.words.split(), "--set", "training.steps=100000"], fault)
    assert done.code == code
    assert done.errors.count("\n") == 1
    assert "; to go on: ebmtraj train transition" in done.errors
    assert done.errors.endswith(" --resume\n")


def test_a_clock_that_goes_back_changes_nothing(bench: Bench, wholes: dict[str, Whole]) -> None:
    row = bench.clock(wholes["train transition fc"], 2, -86_400.0, {"at": "event", "number": 20})
    assert (row["outcome"], row["wrong"]) == ("went through", [])


def test_the_harness_sees_what_is_lost(bench: Bench, wholes: dict[str, Whole]) -> None:
    """A bit that flips, a file that is too much, half a file: otherwise it could find nothing at all."""
    whole = wholes["train transition fc"]
    bench.prepare(whole.scenario)
    assert bench.run(whole.scenario.words.split()).code == 0
    assert difference(left(bench.folder), whole.files) == []
    best = bench.folder / "r" / "checkpoints" / "best.safetensors"
    content = bytearray(best.read_bytes())
    content[-3] ^= 1
    best.write_bytes(content)
    (bench.folder / "r" / ".x.partial").touch()
    assert difference(left(bench.folder), whole.files) == [
        "r/.x.partial: left over",
        "r/checkpoints/best.safetensors: differs",
    ]
    kinds = {(fault["at"], "torn" in fault) for trial in faults_of(whole, 8, random.Random(0)) for fault in trial}
    assert kinds == {("event", False), ("event", True), ("time", False)}
    export = wholes["data export npz"]
    bench.prepare(export.scenario)
    (bench.folder / "o.npz").write_bytes(b"half")
    assert bench.at_once(export)
