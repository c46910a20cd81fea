"""How fast a store is read: whole, in random windows, and while a model trains on it.

Reading is measured on one core: every thread of the process is bound to one processor, and blosc and torch are told to use
one thread. MB are 10^6 bytes of float32 numbers, not of compressed files. Of random windows there are two rates: `delivered`
counts what is in the windows, `decoded` counts every chunk that was decompressed for them, also the part of it that
belongs to other splits. Named peers draw the same kind of windows in the same run: one slice of the zarr array a window,
and Minari's HDF5 (written from the same store), once by slices of an episode with h5py and once by Minari's own reading.

Training runs the real `train` with the default model, with the data in memory and streamed, first with all processors as
a user has them, then bound to one. `share` is the time that the loop spends in drawing its batches; `waited` is the part
of it that was spent waiting for the reading thread, with the very first pool and without it.

    python benchmarks/reading.py --data hand.zarr --out docs/results/reading.json
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import importlib.util
import itertools
import json
import os
import platform
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numcodecs import blosc

from ebmtraj.datasets.shards import decode_rows
from ebmtraj.datasets.store import Store
from ebmtraj.datasets.stream import POOL_SPANS, SPAN_CHUNKS, RandomWindows, StreamedTransitions
from ebmtraj.datasets.window_index import WindowIndex
from ebmtraj.datasets.windows import Transitions
from ebmtraj.runs import machine, versions
from ebmtraj.trajectories import fit


def bind_to_one_core() -> int | None:
    """Bind all threads, present and future, to one processor; its number, or None where the system can't."""
    torch.set_num_threads(1)
    blosc.set_nthreads(1)
    if not hasattr(os, "sched_setaffinity"):
        return None
    core = max(os.sched_getaffinity(0))
    for thread in os.listdir("/proc/self/task"):  # zarr's threads may be running already; new ones inherit
        with contextlib.suppress(ProcessLookupError):
            os.sched_setaffinity(int(thread), {core})
    return core


class Clock:
    """Seconds since it was made: on the clock, and of the processor, which other programs hardly disturb."""

    def __init__(self) -> None:
        self._wall, self._cpu = time.perf_counter(), time.process_time()

    def rates(self, size: float) -> dict[str, float]:
        """MB/s for `size` bytes, by clock and by processor time."""
        wall, cpu = time.perf_counter() - self._wall, time.process_time() - self._cpu
        return {"mb_per_s": round(size / 1e6 / wall, 1), "mb_per_cpu_s": round(size / 1e6 / cpu, 1)}


@contextlib.contextmanager
def decoded_bytes(store: Store) -> Iterator[list[int]]:
    """Counts the bytes of all chunks that are decoded meanwhile."""
    count, honest = [0], Store.row_range
    sizes = {name: (store.chunk_rows(name), 4 * store._array(name).shape[1]) for name in ("state", "action")}

    @functools.wraps(honest)
    def row_range(self: Store, name: str, start: int, stop: int, **options: Any) -> Any:
        rows, width = sizes[name]
        count[0] += (-(-stop // rows) - start // rows) * rows * width
        return honest(self, name, start, stop, **options)

    Store.row_range = row_range  # type: ignore[method-assign]
    try:
        yield count
    finally:
        Store.row_range = honest  # type: ignore[method-assign]


def repeated(repeats: int, read: Callable[[], int]) -> dict[str, Any]:
    """Median rates of `read`, which returns how many bytes it read, after one run to warm up."""
    read()
    found = []
    for _ in range(repeats):
        clock = Clock()
        found.append(clock.rates(read()))
    return {key: statistics.median(run[key] for run in found) for key in found[0]} | {"repeats": repeats}


def whole_reads(store: Store, repeats: int) -> dict[str, Any]:
    """All of the store in one go, by `Store`, by its decoder alone, and by zarr's own slicing."""
    arrays = [store._array(name) for name in ("state", "action")]

    def by_store() -> int:
        return sum(part.nbytes for part in store.read_all())

    def by_decoder() -> int:
        return sum(rows.nbytes for array in arrays if (rows := decode_rows(array, 0, array.shape[0])) is not None)

    def by_zarr() -> int:
        return sum(np.asarray(array[:]).nbytes for array in arrays)

    return {
        "store_read_all": repeated(repeats, by_store),
        "decoder_alone": repeated(repeats, by_decoder),
        "peer_zarr": repeated(repeats, by_zarr),
    }


def random_windows(store: Store, length: int, batch: int, pools: dict[str, Any], repeats: int, seed: int) -> dict[str, Any]:
    """Batches of `RandomWindows` over one epoch of reading, from its start, so that no pool comes for free."""
    found = []
    for repeat in range(repeats):
        with (
            decoded_bytes(store) as decoded,
            RandomWindows(store, length=length, batch=batch, seed=seed + repeat, **pools) as it,
        ):
            delivered, clock = 0, Clock()
            for number in range(it.windows // batch):
                windows = it.batch(number)
                assert windows.actions is not None
                delivered += windows.states.nbytes + windows.actions.nbytes
            found.append({"delivered": clock.rates(delivered), "decoded": clock.rates(decoded[0])})
            facts = {"windows": it.windows, "delivered_over_decoded": round(delivered / decoded[0], 2)}
    rates = {
        kind: {key: statistics.median(run[kind][key] for run in found) for key in found[0][kind]}
        for kind in ("delivered", "decoded")
    }
    return {**rates, **facts, "batch": batch, "repeats": repeats}


def pools_alone(store: Store, pools: dict[str, Any], repeats: int, seed: int) -> dict[str, Any]:
    """Reading pool after pool of single steps and drawing nothing: what the background thread does."""
    found = []
    for repeat in range(repeats):
        with decoded_bytes(store) as decoded, RandomWindows(store, batch=1, seed=seed + repeat, **pools) as windows:
            clock, drawn = Clock(), 0
            while drawn < windows.windows:
                windows.reader.pool(drawn)
                drawn = windows.reader._turn(drawn).last
            found.append(clock.rates(decoded[0]))
    return {"decoded": {key: statistics.median(run[key] for run in found) for key in found[0]}, "repeats": repeats}


def peer_zarr_slices(store: Store, length: int, count: int, seed: int) -> dict[str, Any]:
    """One slice of the zarr arrays a window."""
    index = WindowIndex(store, "train", length)
    state, action = store._array("state"), store._array("action")
    numbers = np.random.default_rng(seed).integers(len(index), size=count)
    runs = index.single(np.sort(numbers))
    order = np.random.default_rng(seed).permutation(count)
    delivered, clock = 0, Clock()
    for row, step in zip(runs.state[order].tolist(), runs.action[order].tolist(), strict=True):
        delivered += np.asarray(state[row : row + length + 1]).nbytes + np.asarray(action[step : step + length]).nbytes
    return {"delivered": clock.rates(delivered), "windows": count}


def peer_minari(folder: Path, length: int, count: int, seed: int) -> dict[str, Any]:
    """Random episodes, and a window of each: slices by h5py, and whole episodes by Minari."""
    import h5py
    from minari.dataset.minari_storage import MinariStorage

    rng = np.random.default_rng(seed)
    found: dict[str, Any] = {}
    with h5py.File(folder / "data" / "main_data.hdf5") as file:
        lengths = np.array([file[f"episode_{i}/actions"].shape[0] for i in range(len(file))])
        long_enough = np.flatnonzero(lengths >= length)
        chosen = rng.choice(long_enough, count).tolist()
        starts = [int(rng.integers(lengths[i] - length + 1)) for i in chosen]
        delivered, clock = 0, Clock()
        for i, t in zip(chosen, starts, strict=True):
            episode = file[f"episode_{i}"]
            delivered += episode["observations"][t : t + length + 1].nbytes + episode["actions"][t : t + length].nbytes
        found["h5py_slices"] = {"delivered": clock.rates(delivered), "windows": count}
    storage = MinariStorage.read(folder / "data")
    delivered, clock = 0, Clock()
    for i, t in zip(chosen, starts, strict=True):
        (data,) = storage.get_episodes([i])
        delivered += data["observations"][t : t + length + 1].nbytes + data["actions"][t : t + length].nbytes
    found["minari_episodes"] = {"delivered": clock.rates(delivered), "windows": count}
    return found


def training(data: str, stream: bool, steps: int, pools: dict[str, Any], seed: int) -> dict[str, Any]:
    """Train the default model, and time every `sample` of the loop."""
    times: list[float] = []
    readers: list[Any] = []
    kept = Transitions.sample, StreamedTransitions.sample

    def timed(honest: Callable[..., Any]) -> Callable[..., Any]:
        def sample(self: Any, *arguments: Any) -> Any:
            began = time.perf_counter()
            batch = honest(self, *arguments)
            times.append(time.perf_counter() - began)
            if stream and not readers:
                readers.extend((self.reader, self.reader.waited))
            return batch

        return sample

    Transitions.sample, StreamedTransitions.sample = (timed(honest) for honest in kept)  # type: ignore[method-assign]
    streamed = functools.partial(StreamedTransitions, **pools)
    fit.StreamedTransitions = streamed  # type: ignore[misc, assignment]
    state = Store.open(data)._array("state").shape[1]
    changes = [f"training.steps={steps}", f"training.seed={seed}", f"stream={str(stream).lower()}"]
    try:
        with tempfile.TemporaryDirectory() as folder:
            recipe = fit.load_recipe(None, changes, {"data": data})
            began = time.perf_counter()
            result, _ = fit.train_transition(recipe, Path(folder) / "run")
            whole = time.perf_counter() - began
    finally:
        Transitions.sample, StreamedTransitions.sample = kept  # type: ignore[method-assign]
        fit.StreamedTransitions = StreamedTransitions  # type: ignore[misc]
    found: dict[str, Any] = {
        "steps": result.steps,
        "loop_seconds": round(result.seconds, 3),
        "seconds_before_the_loop": round(whole - result.seconds, 3),  # reading, statistics, validation data
        "sample_seconds": round(sum(times), 4),
        "share": round(sum(times) / result.seconds, 5),
        "share_after_the_first_batch": round(sum(times[1:]) / result.seconds, 5),
        "sample_median_ms": round(1e3 * statistics.median(times), 4),
        "sample_longest_ms_after_the_first": round(1e3 * max(times[1:]), 2),
        "mb_per_s_drawn": round(result.steps * recipe.training.batch * 8 * state / 1e6 / result.seconds, 1),
        "validation": result.validation,
    }
    if readers:
        reader, first = readers
        found["waited_seconds"] = {
            "with_the_first_pool": round(reader.waited, 4),
            "after_it": round(reader.waited - first, 4),
        }
    return found


def main() -> None:
    """Run, print, and write with --out."""
    parser = argparse.ArgumentParser(description="Reading rates of a store, and what training waits for data")
    parser.add_argument("--data", required=True, help="the store to read; nothing is written to it")
    parser.add_argument("--lengths", type=int, nargs="+", default=[1, 16, 50], help="steps a window")
    parser.add_argument("--batch", type=int, default=512)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--span-chunks", type=int, default=SPAN_CHUNKS)
    parser.add_argument("--pool-spans", type=int, help=f"default: {POOL_SPANS}, or less so that an epoch has four pools")
    parser.add_argument("--steps", type=int, default=1000, help="training steps; 0 leaves training out")
    parser.add_argument("--peer-windows", type=int, default=500, help="windows that each peer draws; 0 leaves them out")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, help="also write the figures as JSON")
    options = parser.parse_args()

    store = Store.open(options.data)
    spans = -(-int(store.state_offsets[-1]) // (options.span_chunks * store.chunk_rows("state")))
    pool_spans = options.pool_spans or min(POOL_SPANS, max(1, spans // 4))
    pools: dict[str, Any] = {"span_chunks": options.span_chunks, "pool_spans": pool_spans}
    facts = store.info()
    result: dict[str, Any] = {
        "command": " ".join(["python", "benchmarks/reading.py", *sys.argv[1:]]),
        "seed": options.seed,
        "machine": {**machine(), "load_before": os.getloadavg()[0], "system": platform.system()},
        "versions": versions(),
        "store": {key: facts[key] for key in ("episodes", "transitions", "raw_bytes", "content_hash")},
        "pools": {**pools, "spans_of_the_store": spans},
    }
    if options.steps:
        as_it_is = {
            name: training(options.data, stream, options.steps, pools, options.seed)
            for name, stream in (("memory", False), ("streamed", True))
        }
        result["training_all_cores"] = as_it_is
    core = bind_to_one_core()
    result["one_core"] = (
        "all threads bound to one processor" if core is not None else "one thread of blosc and torch; not bound"
    )
    if options.steps:
        result["training_one_core"] = {
            name: training(options.data, stream, options.steps, pools, options.seed)
            for name, stream in (("memory", False), ("streamed", True))
        }
    result["whole"] = whole_reads(store, options.repeats)
    result["pools_alone"] = pools_alone(store, pools, options.repeats, options.seed)
    result["random_windows"] = {
        str(length): random_windows(store, length, options.batch, pools, options.repeats, options.seed)
        for length in options.lengths
    }
    if options.peer_windows:
        peers = {
            str(length): {"zarr_slices": peer_zarr_slices(store, length, options.peer_windows, options.seed)}
            for length in options.lengths
        }
        if importlib.util.find_spec("minari") and importlib.util.find_spec("h5py") and store.complete:
            from ebmtraj.datasets.interchange.minari import export_minari

            with tempfile.TemporaryDirectory() as folder:
                export_minari(options.data, Path(folder) / "peer-v0")
                for length in options.lengths:
                    found = peer_minari(Path(folder) / "peer-v0", length, options.peer_windows, options.seed)
                    peers[str(length)].update(found)
        result["peers"] = peers
    show(result)
    if options.out:
        options.out.parent.mkdir(parents=True, exist_ok=True)
        options.out.write_text(json.dumps(result, indent=2) + "\n")


def show(result: dict[str, Any]) -> None:
    """The main figures as lines."""
    print(f"{result['machine']['processor']}, one core; MB/s by the clock (by processor time)")

    def line(name: str, rates: dict[str, float]) -> None:
        print(f"{name:44s}{rates['mb_per_s']:>11,.1f}{rates['mb_per_cpu_s']:>11,.1f}")

    for name, rates in result["whole"].items():
        line(f"whole, {name}", rates)
    line("pools alone, decoded", result["pools_alone"]["decoded"])
    for length, found in result["random_windows"].items():
        for kind in ("delivered", "decoded"):
            line(f"random windows of {length}, {kind}", found[kind])
        for name, peer in result.get("peers", {}).get(length, {}).items():
            line(f"random windows of {length}, peer {name}", peer["delivered"])
    for cores, mode in itertools.product(("training_all_cores", "training_one_core"), ("memory", "streamed")):
        if cores in result:
            found = result[cores][mode]
            print(
                f"{cores} {mode}: {found['share']:.2%} of {found['loop_seconds']:.1f} s in drawing batches, "
                f"waited {found.get('waited_seconds', {}).get('after_it', 0.0):.3f} s after the first pool"
            )


if __name__ == "__main__":
    main()
