"""Small instances of every command that writes, and the inputs that they share."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from harness import Zygote


@dataclass(frozen=True)
class Scenario:
    """A command that faults happen to. Its folder is the current one, and the inputs lie beside it."""

    name: str  # as a reader knows the command
    words: str
    resume: bool = True  # it has --resume; else the same command is given again, with --overwrite where it had ended
    ready: tuple[str, ...] = ()  # commands before it, done once a trial
    whole: tuple[str, ...] = ()  # files that are there as a whole or not at all, at every moment
    workers: bool = False  # it starts processes
    slow: bool = False  # not for the small suite


TRAIN = "--device cpu --set training.steps=40 --set training.check_every=10 --set training.log_every=5"
TRAIN += " --set training.batch=16 --set training.validation=32"
SMALL = "--set network.width=16"
PLAN = "--set network.width=8 --set network.horizons=[2,8,12]"
IMAGES = "--device cpu --set training.steps=6 --set training.check_every=2 --set training.log_every=1"
IMAGES += " --set training.batch=16 --set training.validation=32"
TILT = "--device cpu --set training.steps=20 --set training.check_every=5 --set network.pool=200 --set network.start=2"
TILT += " --set network.sampler.steps=4 --samples 60"
POLICY = "--threads 1 --set starts=8 --set gaits.seeds=1 --set gaits.population=4 --set gaits.elites=2 --set gaits.starts=1"
POLICY += " --set gaits.steps=4 --set gaits.generations=2 --set gaits.refine_starts=1 --set gaits.refine_generations=1"
POLICY += " --set ppo.iterations=3 --set ppo.batch=4 --set ppo.horizon=4 --set ppo.epochs=1 --set ppo.minibatch=8"
POLICY += " --set ppo.hidden=[8]"
HAND, POINT, DIGITS = "../inputs/hand.zarr", "../inputs/particle.zarr", "../inputs/digits.zarr"
COLLECT = "collect s.zarr --env hand-cube --episodes 24 --steps 8 --seed 3 --set block_episodes=4"

ROLLOUT = f"rollout ../inputs/fc --data {HAND} --steps 10 --device cpu"
LEARNERS = "class-gaussian,fine-tune,ebm"

INPUTS = (
    "collect hand.zarr --env hand-cube --episodes 24 --steps 20 --seed 0 --workers 1",
    "collect particle.zarr --env ebmtraj/Particle-v0 --episodes 24 --steps 12 --seed 0 --workers 1",
    "collect other.zarr --env hand-cube --episodes 12 --steps 20 --seed 5 --workers 1",
    "data images digits --out digits.zarr",
    "data export hand.zarr hand.npz --format npz",
    "data export hand.zarr hand-v0 --format minari",
    f"train transition --data hand.zarr --run fc --model fc {TRAIN}",
    f"train transition --data hand.zarr --run energy {TRAIN} --set network.width=16",
    f"train image --data digits.zarr --run field --model field {IMAGES}",
    f"train generator --data swiss-roll --run flow --model flow {TRAIN}",
)

SCENARIOS = (
    Scenario("collect", f"{COLLECT} --workers 1"),
    Scenario("collect, workers", f"{COLLECT} --workers 2", workers=True, slow=True),
    Scenario(
        "collect --overwrite",
        f"{COLLECT} --workers 1 --overwrite",
        ready=("collect s.zarr --env hand-cube --episodes 4 --steps 8 --seed 9 --workers 1",),
    ),
    Scenario(
        "train transition dsm", f"train transition --data {HAND} --run r --objective dsm --set network.width=16 {TRAIN}"
    ),
    Scenario("train transition cd", f"train transition --data {HAND} --run r --objective cd {TRAIN} {SMALL}"),
    Scenario("train transition fc", f"train transition --data {HAND} --run r --model fc {TRAIN}"),
    Scenario("train transition, streamed", f"train transition --data {HAND} --run r --model fc --set stream=true {TRAIN}"),
    Scenario(
        "train transition --overwrite",
        f"train transition --data {HAND} --run r --model fc {TRAIN} --overwrite",
        ready=(f"train transition --data {HAND} --run r --model gaussian {TRAIN}",),
    ),
    Scenario(
        "train plan", f"train plan --data {HAND} --run r {TRAIN} --set network.width=8 --set network.horizons=[2,8,12]"
    ),
    Scenario(
        "train sequence", f"train sequence --data ../inputs/particle.zarr --run r --set network.transition.width=8 {TRAIN}"
    ),
    Scenario("train clone", f"train clone --data {HAND} --run r {TRAIN}"),
    Scenario("train image dsm", f"train image --data {DIGITS} --run r {IMAGES}"),
    Scenario("train image pcd", f"train image --data {DIGITS} --run r --objective pcd {IMAGES}"),
    Scenario("train image, closed form", f"train image --data {DIGITS} --run r --model gaussian {IMAGES}"),
    Scenario("train jem", f"train jem --data {DIGITS} --run r {IMAGES}"),
    Scenario("train generator", f"train generator --data {DIGITS} --run r --model vae {IMAGES}"),
    Scenario("tilt", f"tilt ../inputs/flow --out t {TILT}"),
    Scenario("policy train", f"policy train --run r --seed 1 {POLICY}"),
    Scenario("data import npz", "data import ../inputs/hand.npz s.zarr --format npz"),
    Scenario("data import minari", "data import ../inputs/hand-v0 s.zarr --format minari"),
    Scenario("data merge", f"data merge {HAND} ../inputs/other.zarr s.zarr"),
    Scenario("data split", f"data split {HAND} s.zarr --split train"),
    Scenario("data images", "data images digits --out s.zarr", resume=False, whole=("s.zarr",)),
    Scenario("data export npz", f"data export {HAND} o.npz --format npz", resume=False, whole=("o.npz",)),
    Scenario("data export minari", f"data export {HAND} o-v0 --format minari", resume=False, whole=("o-v0",)),
    Scenario("data export lerobot", f"data export {HAND} o --format lerobot", resume=False, whole=("o",)),
    Scenario("data card", f"data card {HAND} --out c.html", resume=False, whole=("c.html",), slow=True),
    Scenario(
        "rollout", f"rollout ../inputs/fc --data {HAND} --steps 10 --out o.npz --device cpu", resume=False, whole=("o.npz",)
    ),
    Scenario(
        "evaluate",
        f"evaluate r --data {HAND} --steps 10 --samples 2 --quick --split train --device cpu --threads 1",
        resume=False,
        ready=(f"train transition --data {HAND} --run r --model fc {TRAIN}",),
        whole=("r/results.json",),
    ),
    Scenario("sample", "sample ../inputs/field -n 8 --out o.npz --device cpu", resume=False, whole=("o.npz",)),
    Scenario("sample png", "sample ../inputs/field -n 8 --out o.png --device cpu", resume=False, whole=("o.png",)),
    Scenario(
        "continual",
        f"continual --learners {LEARNERS} --seeds 1 --data {DIGITS} --set all.steps=8 --workers 1 --out c.json",
        whole=("c.json",),
    ),
    Scenario(
        "compare tilting",
        "compare tilting --models swiss-roll --seeds 1 --samples 60 --workers 1 --out c.json --data ../inputs/digits.zarr"
        " --set swiss-roll.training.steps=20 --set swiss-roll.training.check_every=10 --set swiss-roll.tilt.training.steps=8"
        " --set swiss-roll.tilt.network.pool=200 --set swiss-roll.tilt.network.start=2"
        " --set swiss-roll.tilt.network.sampler.steps=4",
        whole=("c.json",),
    ),
)


def make_inputs(zygote: Zygote, folder: Path, only: set[str] | None = None) -> None:
    """What the scenarios start from; `only`: how the commands that make the wanted ones begin."""
    for words in INPUTS:
        if only is None or any(words.startswith(each) for each in only):
            done = zygote.run(folder, words.split())
            if done.code:
                raise RuntimeError(f"{words}: exit code {done.code}: {done.errors[-500:]}")
