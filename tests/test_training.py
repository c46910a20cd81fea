"""Training: the losses' formulas, exact resume after a kill at any point, the guard, and what a checkpoint must be."""

from __future__ import annotations

import copy
import dataclasses
import json
import math
import multiprocessing
import os
import shutil
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from older import unseal_run
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from ebmtraj import runs
from ebmtraj.datasets.store import Store
from ebmtraj.datasets.windows import Batch, Transitions
from ebmtraj.energies.transition import ResidualEnergy
from ebmtraj.errors import DivergedError, EbmtrajError
from ebmtraj.runs import Run
from ebmtraj.training import losses
from ebmtraj.training.checkpoint import load_tensors, load_weights, save_tensors
from ebmtraj.training.guard import Guard, GuardConfig
from ebmtraj.training.loop import Result, _plan, _schedule, step_time, steps_within
from ebmtraj.training.settings import TrainingConfig
from ebmtraj.training.state import begin, load, save
from ebmtraj.training.trainable import Stage, Trainable
from ebmtraj.trajectories.fit import TransitionRecipe, load_recipe, train_transition
from ebmtraj.trajectories.registry import load_model, make_model

SMALL = ["training.batch=32", "training.check_every=10", "training.log_every=5", "training.warmup=5", "network.width=16"]


def recipe_for(store: Path, model: str = "dsm", *changes: str, actions: bool = False) -> TransitionRecipe:
    cd = (
        ["network.buffer=200", "network.keep=0.95", "network.sampler.steps=3", "network.rollout_steps=3"]
        if model == "cd"
        else []
    )
    dsm = ["network.base_share=0.25"] if model == "dsm" else []
    given = {"model": model, "actions": actions, "data": str(store)}
    return load_recipe(None, [*SMALL, *dsm, "training.steps=60", *cd, *changes], given)


def train(recipe: TransitionRecipe, path: Path, **options: Any) -> Result:
    return train_transition(recipe, path, device="cpu", **options)[0]


def best(path: Path) -> dict[str, Tensor]:
    return load_file(path / "checkpoints" / "best.safetensors")


def state(path: Path) -> dict[str, Tensor]:
    """All that a run ended in: weights, averages, optimiser, buffer, generator. The best weights may be early ones."""
    return load_file(path / "checkpoints" / "resume.safetensors")


def equal(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(a[k].equal(b[k]) for k in a)


def timeless(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{k: v for k, v in row.items() if k != "seconds"} for row in rows]


# losses


def test_score_matching_is_the_weighted_denoising_error() -> None:
    """Karras et al. 2022: weight (1 + s^2) / s^2 times |D(x) - r|^2, with D(x) = x - s^2 grad E(x; s) of the full energy."""
    torch.manual_seed(0)
    energy = ResidualEnergy(4, 3, width=16).double()
    nn.init.normal_(energy.output.weight, std=0.3)
    r, context = torch.randn(50, 4, dtype=torch.float64), energy.prepare(torch.randn(50, 3, dtype=torch.float64))
    noise = losses.NoiseConfig(mean=-0.8, std=1.2)
    loss = losses.denoising_score_matching(energy, r, context, noise, torch.Generator().manual_seed(1))
    generator = torch.Generator().manual_seed(1)
    level = noise.draw(50, generator)
    x = r + level.unsqueeze(-1) * torch.empty_like(r).normal_(generator=generator)
    leaf = x.clone().requires_grad_()
    (slope,) = torch.autograd.grad(energy(leaf, context, level).sum(), leaf)
    denoised = x - level.unsqueeze(-1) ** 2 * slope
    expected = (1 + level**2) / level**2 * (denoised - r).square().mean(-1)
    torch.testing.assert_close(loss, expected, rtol=1e-4, atol=1e-6)
    levels = noise.draw(20_000, generator).log()
    assert levels.mean().item() == pytest.approx(-0.8, abs=0.03)
    assert levels.std().item() == pytest.approx(1.2, abs=0.03)


def test_gaussian_likelihood() -> None:
    z, mean = torch.randn(20, 3), torch.randn(20, 3)
    log_std = torch.randn(20, 3).requires_grad_()
    truth = -torch.distributions.Normal(mean, log_std.exp()).log_prob(z) - 0.5 * math.log(2 * math.pi)
    torch.testing.assert_close(losses.gaussian_nll(z, mean, log_std), truth.mean(-1))
    weighted = losses.gaussian_nll(z, mean, log_std, beta=1.0)
    torch.testing.assert_close(weighted, (truth * (2 * log_std).exp()).mean(-1))
    (slope,) = torch.autograd.grad(weighted.sum(), log_std)  # the weight itself carries no gradient
    torch.testing.assert_close(slope, ((2 * log_std).exp() - (z - mean).square()) / 3)


def test_contrastive_divergence() -> None:
    weight = torch.tensor(2.0, requires_grad=True)
    positive, negative = torch.tensor([1.0, 3.0]), torch.tensor([0.5, 0.5], requires_grad=True)
    loss, logs = losses.contrastive_divergence(lambda x: weight * x, positive, negative, alpha=0.5)
    assert loss.item() == pytest.approx(3.0 + 0.5 * ((4 + 36) / 2 + 1))
    assert {k: v.item() for k, v in logs.items()} == {"gap": 3.0, "energy_positive": 4.0, "energy_negative": 1.0}
    loss.backward()
    assert negative.grad is None  # the chain is no path for the gradient
    assert weight.grad is not None


# the schedule


def test_schedule_and_plan() -> None:
    config = TrainingConfig(warmup=10, constant=0.5)
    assert [_schedule(s / 100, s, config) for s in (0, 4, 9, 49)] == pytest.approx([0.1, 0.5, 1, 1])
    assert _schedule(0.75, 75, config) == pytest.approx(0.5)
    assert _schedule(1.0, 100, config) == pytest.approx(0.0)
    module = nn.Linear(1, 1)
    stages = [Stage(name, share, module, lambda b, g: (torch.zeros(()), {})) for name, share in (("a", 0.25), ("b", 0.75))]
    assert _plan(stages, 60) == [15, 45]
    assert _plan(stages, 2) == [1, 1]


# kill and resume


class Staged(Trainable):
    """A base, and then two stages on one network."""

    def __init__(self) -> None:
        super().__init__()
        self.base, self.net = nn.Linear(1, 1), nn.Linear(1, 1)

    def stages(self) -> list[Stage]:
        parts = (("base", 0.5, self.base), ("ratio", 0.25, self.net), ("likelihood", 0.25, self.net))
        return [Stage(name, share, module, lambda b, g: (torch.zeros(()), {})) for name, share, module in parts]

    def header(self) -> dict[str, Any]:
        return {}


def test_a_resume_trains_what_the_stage_shares_with_one_before(tmp_path: Path) -> None:
    path = tmp_path / "run" / "checkpoints" / "resume.safetensors"
    model, guard, cpu = Staged(), Guard(GuardConfig()), torch.device("cpu")
    late = begin(model, model.stages()[2], 2, TrainingConfig(), cpu)
    save(path, model, late, guard, runs.MetricsWriter(None))
    again = Staged()
    load(path, again, again.stages(), TrainingConfig(), guard, cpu)
    assert {name: p.requires_grad for name, p in again.named_parameters()} == {
        "base.weight": False,
        "base.bias": False,
        "net.weight": True,
        "net.bias": True,
    }


class Killer:
    """Ends this process with SIGKILL at the n-th call of what it stands before."""

    def __init__(self, inner: Any, after: int) -> None:
        self.inner, self.left = inner, after

    def __call__(self, *args: Any, **named: Any) -> Any:
        self.left -= 1
        if self.left < 0:
            os.kill(os.getpid(), signal.SIGKILL)
        return self.inner(*args, **named)


def train_and_die(recipe: TransitionRecipe, path: Path, where: str, after: int, poisoned: Tensor | None) -> None:
    """`where`: 'step' (the n-th optimiser step) or 'replace' (the n-th file is written, but not yet renamed)."""
    Transitions.sample = poison(poisoned)  # type: ignore[method-assign]
    if where == "step":
        killer = Killer(Transitions.sample, after)
        Transitions.sample = lambda *args: killer(*args)  # type: ignore[method-assign]
    else:
        runs.os.replace = Killer(os.replace, after)  # type: ignore[assignment]
    train(recipe, path)
    os._exit(0)


def killed_run(recipe: TransitionRecipe, path: Path, where: str, after: int, poisoned: Tensor | None = None) -> None:
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["ebmtraj.trajectories.fit", "test_training"])
    process = context.Process(target=train_and_die, args=(recipe, path, where, after, poisoned))
    process.start()
    process.join(60)
    assert process.exitcode == -signal.SIGKILL, f"exit code {process.exitcode}: not killed where it should have been"


@pytest.fixture(scope="session")
def whole_runs(hand_store: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[str, bool], Path]:
    """Runs that nobody interrupted."""
    found = {}
    for model in ("dsm", "cd"):
        for actions in (False, True):
            path = tmp_path_factory.mktemp("whole") / "run"
            train(recipe_for(hand_store, model, actions=actions), path)
            found[model, actions] = path
    return found


KILLS = [
    ("dsm", False, "step", 0),  # before the first step
    pytest.param("dsm", False, "step", 37, marks=pytest.mark.slow),
    ("dsm", True, "step", 14),  # the last step of the first stage
    pytest.param("dsm", True, "step", 15, marks=pytest.mark.slow),  # the first of the second
    pytest.param("dsm", True, "step", 59, marks=pytest.mark.slow),
    pytest.param("cd", False, "step", 23, marks=pytest.mark.slow),
    ("cd", True, "step", 41),
    # files, in order: versions, config, metrics, resume state at steps 0, 10, 15, 20 ... 60, then the weights
    ("dsm", False, "replace", 1),  # no recipe yet
    pytest.param("dsm", False, "replace", 3, marks=pytest.mark.slow),  # a recipe, but no resume state
    ("dsm", False, "replace", 5),  # the state between the stages is not there yet
    pytest.param("dsm", False, "replace", 6, marks=pytest.mark.slow),
    ("dsm", False, "replace", 11),  # trained, but no weights
    pytest.param("cd", True, "replace", 7, marks=pytest.mark.slow),
]


@pytest.mark.parametrize(("model", "actions", "where", "after"), KILLS)
def test_a_killed_run_ends_in_the_same_bits(
    model: str, actions: bool, where: str, after: int, hand_store: Path, whole_runs: dict[Any, Path], tmp_path: Path
) -> None:
    recipe, path = recipe_for(hand_store, model, actions=actions), tmp_path / "run"
    killed_run(recipe, path, where, after)
    assert not (path / "checkpoints" / "best.safetensors").exists()
    result = train(recipe, path, resume=True)
    whole = whole_runs[model, actions]
    assert result.steps == 60
    assert equal(best(path), best(whole))
    assert equal(state(path), state(whole))
    assert timeless(Run(path).read_metrics()) == timeless(Run(whole).read_metrics())
    header, other = (load_tensors(p / "checkpoints" / "best.safetensors")[0] for p in (path, whole))
    assert {**header, "seconds": 0} == {**other, "seconds": 0}


def test_a_run_killed_twice_and_resumed_when_done(hand_store: Path, whole_runs: dict[Any, Path], tmp_path: Path) -> None:
    recipe, path = recipe_for(hand_store, "cd"), tmp_path / "run"
    killed_run(recipe, path, "step", 12)
    for _ in range(2):  # the second time nothing is left to do
        train(recipe, path, resume=True)
        assert equal(best(path), best(whole_runs["cd", False]))
        assert equal(state(path), state(whole_runs["cd", False]))


def test_the_same_seed_gives_the_same_bits_and_another_others(
    hand_store: Path, whole_runs: dict[Any, Path], tmp_path: Path
) -> None:
    recipe = recipe_for(hand_store)
    torch.manual_seed(123)  # the global generator has no say
    train(recipe, tmp_path / "same")
    assert equal(best(tmp_path / "same"), best(whole_runs["dsm", False]))
    train(recipe_for(hand_store, "dsm", "training.seed=1"), tmp_path / "other")
    assert not equal(best(tmp_path / "other"), best(whole_runs["dsm", False]))


def test_resume_refuses_another_recipe_and_names_the_key(
    hand_store: Path, whole_runs: dict[Any, Path], tmp_path: Path
) -> None:
    path = whole_runs["dsm", False]
    before = best(path)
    for change, words in (
        ("training.learning_rate=0.5", "training.learning_rate = 0.004, not 0.5"),
        ("network.sampler.ladder.levels=7", "network.sampler.ladder.levels = 4, not 7"),
    ):
        with pytest.raises(EbmtrajError, match=words):
            train(recipe_for(hand_store, "dsm", change), path, resume=True)
    with pytest.raises(EbmtrajError, match="actions = False, not True"):
        train(recipe_for(hand_store, actions=True), path, resume=True)
    with pytest.raises(EbmtrajError, match="--resume to go on"):
        train(recipe_for(hand_store), path)
    from ebmtraj.collect import CollectConfig, collect

    other = tmp_path / "other.zarr"
    collect(other, CollectConfig(env="hand-cube", episodes=20, steps=3, seed=1))
    with pytest.raises(EbmtrajError, match="content_hash"):
        train(dataclasses.replace(recipe_for(hand_store), data=str(other)), path, resume=True)
    assert equal(best(path), before)


def test_a_damaged_resume_state_is_named(hand_store: Path, tmp_path: Path) -> None:
    recipe, path = recipe_for(hand_store, "dsm", "training.steps=10"), tmp_path / "run"
    train(recipe, path)
    state = path / "checkpoints" / "resume.safetensors"
    whole = state.read_bytes()
    state.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(EbmtrajError, match=r"resume\.safetensors is damaged"):
        train(recipe, path, resume=True)
    state.write_bytes(whole)
    header, tensors = load_tensors(state)
    del tensors["noise"]
    save_tensors(state, tensors, {k: v for k, v in header.items() if k not in ("format", "version")})
    with pytest.raises(EbmtrajError, match="does not fit this run"):
        train(recipe, path, resume=True)


def test_metrics_hold_what_was_measured(whole_runs: dict[Any, Path]) -> None:
    for (model, _), path in whole_runs.items():
        rows = Run(path).read_metrics()
        assert [row["step"] for row in rows] == list(range(5, 61, 5))
        stages = [row["stage"] for row in rows]
        assert stages == (["base"] * 3 + ["energy"] * 9 if model == "dsm" else ["energy"] * 12)
        checked = [row["step"] for row in rows if "validation" in row]
        # checks count from a stage's start and come at its end; the number of a training batch is no validation
        assert checked == ([10, 15, 25, 35, 45, 55, 60] if model == "dsm" else [10, 20, 30, 40, 50, 60])
        last = [row["validation"] for row in rows if "validation" in row and row["stage"] == "energy"]
        header, _ = load_tensors(path / "checkpoints" / "best.safetensors")
        assert header["validation"] == min(last)
        assert all(math.isfinite(row["loss"]) for row in rows)
        assert json.loads((path / "versions.json").read_text())["torch"] == torch.__version__


def test_timing_leaves_the_model_alone(hand_store: Path) -> None:
    store = Store.open(hand_store)
    data = Transitions.load(store, "train")
    for name in ("dsm", "cd", "fc"):
        recipe = recipe_for(hand_store, name)
        network = {k: v for k, v in recipe.network.items() if v is not None}
        model = make_model(name, store.state_fields, store.action_fields, actions=False, network=network)
        model.prepare(data)
        model.eval()
        before, state = copy.deepcopy(model.state_dict()), torch.get_rng_state()
        extra = copy.deepcopy(model.extra_state())
        steps = steps_within(10.0, step_time(model, data, recipe.training, trial=5))
        assert 100 < steps < 10**6
        assert equal(before, model.state_dict())
        assert equal(extra[0], model.extra_state()[0])
        assert extra[1] == model.extra_state()[1]
        assert torch.get_rng_state().equal(state)
        assert not model.training
        assert all(p.requires_grad and p.grad is None for p in model.parameters())


def test_a_budget_in_seconds_becomes_steps(hand_store: Path, tmp_path: Path) -> None:
    recipe, path = recipe_for(hand_store, "gaussian", "training.seconds=0.3"), tmp_path / "run"
    result, ran = train_transition(recipe, path, device="cpu")
    assert ran.training.seconds is None
    assert result.steps == ran.training.steps
    assert result.seconds < 3
    assert f"steps = {result.steps}\n" in (path / "config.toml").read_text()
    assert train(recipe, path, resume=True).steps == result.steps  # the same command with --resume
    train(ran, tmp_path / "again")
    assert equal(best(tmp_path / "again"), best(path))  # the steps it wrote down give the same bits


# fewer episodes


class Seen(Exception):
    """Holds the training and validation data that a training was given, and the model."""


def given_data(recipe: TransitionRecipe, path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Any, Any, Any]:
    def look(model: Any, data: Any, held_out: Any, *_: Any, **__: Any) -> None:
        raise Seen(*(next(iter(each.pieces(10_000)))[0] for each in (data, held_out)), copy.deepcopy(model.normaliser))

    with monkeypatch.context() as patch:
        patch.setattr("ebmtraj.training.run.train", look)
        with pytest.raises(Seen) as seen:
            train(recipe, path)
    return seen.value.args  # type: ignore[return-value]


@pytest.mark.parametrize("stream", ["false", "true"])
def test_training_on_the_first_episodes_alone(
    stream: str, hand_store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = Store.open(hand_store)
    few = recipe_for(hand_store, "gaussian", "training.episodes=1", f"stream={stream}")
    states, held_out, normaliser = given_data(few, tmp_path / "few", monkeypatch)
    first = torch.from_numpy(store.read_states(store.split("train")[:1]))
    assert states.equal(first)
    torch.testing.assert_close(normaliser.state_mean, first.mean(0), rtol=0, atol=1e-6)
    assert len(store.split("validation")) > 1
    assert held_out.equal(torch.from_numpy(store.read_states(store.split("validation"))))  # all of it
    every = recipe_for(hand_store, "gaussian", f"stream={stream}")
    assert given_data(every, tmp_path / "all", monkeypatch)[0].equal(
        torch.from_numpy(store.read_states(store.split("train")))
    )


def test_episodes_are_as_many_as_there_are_and_a_resumed_run_keeps_them(hand_store: Path, tmp_path: Path) -> None:
    held = len(Store.open(hand_store).split("train"))
    with pytest.raises(EbmtrajError, match=rf"training\.episodes = {held + 1}, but .* has {held}; give at most that many"):
        train(recipe_for(hand_store, "gaussian", f"training.episodes={held + 1}"), tmp_path / "run")
    assert not (tmp_path / "run").exists()
    with pytest.raises(EbmtrajError, match=r"training\.episodes = -1 must be"):
        recipe_for(hand_store, "gaussian", "training.episodes=-1")
    runs = {}
    for episodes, stream in ((2, "false"), (2, "true"), (held, "false"), (0, "false")):
        path = runs[episodes, stream] = tmp_path / f"{episodes}-{stream}"
        train(recipe_for(hand_store, "gaussian", f"training.episodes={episodes}", f"stream={stream}"), path)
    assert equal(best(runs[2, "false"]), best(runs[2, "true"]))
    assert equal(best(runs[held, "false"]), best(runs[0, "false"]))
    assert not equal(best(runs[2, "false"]), best(runs[0, "false"]))
    killed = recipe_for(hand_store, "gaussian", "training.episodes=2")
    killed_run(killed, tmp_path / "killed", "step", 12)
    with pytest.raises(EbmtrajError, match=r"begun with training\.episodes = 2, not 0"):
        train(recipe_for(hand_store, "gaussian"), tmp_path / "killed", resume=True)
    train(killed, tmp_path / "killed", resume=True)
    assert equal(best(tmp_path / "killed"), best(runs[2, "false"]))


def test_a_run_from_before_a_setting_is_resumed(hand_store: Path, whole_runs: dict[Any, Path], tmp_path: Path) -> None:
    shutil.copytree(whole_runs["dsm", False], tmp_path / "old")
    text = (tmp_path / "old" / "config.toml").read_text()
    new = ("rotation = ", "base = ", "base_context = ", "episodes = ")
    kept = [line for line in text.splitlines() if not line.startswith(new)]
    assert len(kept) == len(text.splitlines()) - len(new)
    (tmp_path / "old" / "config.toml").write_text("\n".join(kept))
    with pytest.raises(EbmtrajError, match=r"config\.toml is not the recipe that checkpoint"):
        train(recipe_for(hand_store), tmp_path / "old", resume=True)
    unseal_run(tmp_path / "old")
    train(recipe_for(hand_store), tmp_path / "old", resume=True)
    with pytest.raises(EbmtrajError, match=r"begun with network\.rotation = 'world', not 'body'"):
        train(recipe_for(hand_store, "dsm", "network.rotation=body"), tmp_path / "old", resume=True)


# the guard


def planted(monkeypatch: pytest.MonkeyPatch, at: set[int], value: float = math.nan) -> list[int]:
    """Make the Gaussian baseline's loss `value` at these calls of it in training; returns the count of calls."""
    from ebmtraj.trajectories.baselines.gaussian import GaussianModel

    honest, calls = GaussianModel._loss, [0]

    def loss(self: GaussianModel, batch: Any, generator: torch.Generator) -> Any:
        number, logs = honest(self, batch, generator)
        if torch.is_grad_enabled() and number.requires_grad:
            calls[0] += 1
            if calls[0] in at:
                number = number * value
        return number, logs

    monkeypatch.setattr(GaussianModel, "_loss", loss)
    return calls


@pytest.mark.parametrize("value", [math.nan, math.inf, 1e12])
def test_one_bad_step_is_rolled_back_and_logged(
    value: float, hand_store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = planted(monkeypatch, {33}, value)
    result = train(recipe_for(hand_store, "gaussian"), tmp_path / "run")
    assert result.rollbacks == 1
    assert result.steps == 60
    assert calls[0] == 60 + 5  # noticed at step 35, begun again from 30
    rows = Run(tmp_path / "run").read_metrics()
    (event,) = [row for row in rows if "event" in row]
    assert event["event"] == "rolled back"
    assert event["step"] == 30
    assert event["rate"] == 0.5
    assert "loss" in event["why"]
    assert all(math.isfinite(row["loss"]) for row in rows if "loss" in row)
    assert all(v.isfinite().all() for k, v in best(tmp_path / "run").items() if "low" not in k and "high" not in k)


def test_a_chain_that_diverges_is_rolled_back_at_once(
    hand_store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What a sampler says of a chain that is not finite goes into the metrics, and the training goes on."""
    from ebmtraj.trajectories.baselines.gaussian import GaussianModel

    calls, honest = [0], GaussianModel._loss

    def loss(self: GaussianModel, batch: Any, generator: torch.Generator) -> Any:
        calls[0] += self.training
        if calls[0] == 33 and self.training:
            raise DivergedError("gradient of chain 2 is not finite at step 3")
        return honest(self, batch, generator)

    monkeypatch.setattr(GaussianModel, "_loss", loss)
    result = train(recipe_for(hand_store, "gaussian"), tmp_path / "run")
    assert (result.rollbacks, result.steps) == (1, 60)
    (event,) = [row for row in Run(tmp_path / "run").read_metrics() if "event" in row]
    assert event["event"] == "rolled back"
    assert event["why"] == "gradient of chain 2 is not finite at step 3"


def test_a_roll_back_takes_new_noise_and_a_lower_rate(
    hand_store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[Tensor] = []
    honest = Transitions.sample

    def sample(self: Transitions, size: int, generator: torch.Generator) -> Any:
        batch = honest(self, size, generator)
        seen.append(batch.state)
        return batch

    monkeypatch.setattr(Transitions, "sample", sample)
    planted(monkeypatch, {1})
    recipe = recipe_for(hand_store, "gaussian", "training.steps=20", "training.guard.lower_rate=0.25")
    train(recipe, tmp_path / "run")
    assert not seen[0].equal(seen[5])  # step 1 again, on other transitions
    header, _ = load_tensors(tmp_path / "run" / "checkpoints" / "resume.safetensors")
    assert header["rate"] == 0.25
    assert header["guard"]["tries"] == 1


@pytest.mark.parametrize("model", ["gaussian", "dsm", "cd", "fc"])
def test_divergence_for_good_ends_in_one_clear_line(model: str, hand_store: Path, tmp_path: Path) -> None:
    wild = ["training.learning_rate=1e30", "training.guard.retries=2", "training.clip=1e30"]
    with pytest.raises(EbmtrajError) as caught:
        train(recipe_for(hand_store, model, *wild), tmp_path / "run")
    text = str(caught.value)
    assert "diverged" in text
    assert "after 2 roll-backs" in text
    assert "training.learning_rate" in text
    assert "\n" not in text
    events = [row for row in Run(tmp_path / "run").read_metrics() if "event" in row]
    assert [row["event"] for row in events] == ["rolled back", "rolled back", "gave up"]
    assert [row["rate"] for row in events[:2]] == [0.5, 0.25]
    assert not (tmp_path / "run" / "checkpoints" / "best.safetensors").exists()
    _, tensors = load_tensors(tmp_path / "run" / "checkpoints" / "resume.safetensors")
    assert all(t.isfinite().all() for k, t in tensors.items() if k.startswith("model.") and "normaliser" not in k)


def poison(poisoned: Tensor | None, seen: list[Tensor] | None = None) -> Any:
    """A `Transitions.sample` that gives NaN in place of this one batch, as long as the first noise seed is in use."""
    honest = Transitions.sample

    def sample(self: Transitions, size: int, generator: torch.Generator) -> Batch:
        batch = honest(self, size, generator)
        if seen is not None:
            seen.append(batch.state)
        if poisoned is not None and generator.initial_seed() == 0 and batch.state.equal(poisoned):
            return dataclasses.replace(batch, next_state=batch.next_state * math.nan)
        return batch

    return sample


@pytest.mark.parametrize("model", ["dsm", pytest.param("cd", marks=pytest.mark.slow)])
def test_a_roll_back_and_then_a_kill_end_in_the_same_bits(
    model: str, hand_store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe, seen = recipe_for(hand_store, model), []
    with monkeypatch.context() as patch:
        patch.setattr(Transitions, "sample", poison(None, seen))
        train(recipe, tmp_path / "probe")
    assert not any(a.equal(b) for i, a in enumerate(seen) for b in seen[:i])  # nor does a stage begin the stream anew
    monkeypatch.setattr(Transitions, "sample", poison(seen[37]))
    whole, path = tmp_path / "whole", tmp_path / "killed"
    assert train(recipe, whole).rollbacks == 1
    killed_run(recipe, path, "step", 52, seen[37])  # after the roll-back, between two checks
    assert [row["event"] for row in Run(path).read_metrics() if "event" in row] == ["rolled back"]
    assert train(recipe, path, resume=True).rollbacks == 1
    assert equal(best(path), best(whole))
    assert equal(state(path), state(whole))
    assert timeless(Run(path).read_metrics()) == timeless(Run(whole).read_metrics())
    assert not equal(state(whole), state(tmp_path / "probe"))


def test_guard() -> None:
    guard = Guard(GuardConfig(factor=10.0, floor=5.0, limit=1e4))
    assert guard.look() is None
    for size in (1.0, -1.0, 1.2):
        guard.watch(loss=torch.tensor(size), gap=torch.tensor(0.0))
    assert guard.look() is None
    assert guard.usual == pytest.approx({"loss": 1.2, "gap": 0.0})
    guard.watch(loss=torch.tensor(4.0), gap=torch.tensor(4.9))  # below the floor whatever is usual
    assert guard.look() is None
    for bad in (20.0, -20.0, math.nan, math.inf, -math.inf):
        before = dict(guard.usual)
        guard.watch(loss=torch.tensor(1.0))
        guard.watch(loss=torch.tensor(bad))
        guard.watch(loss=torch.tensor(1.0))  # what came after does not hide it
        fault = guard.look()
        assert fault is not None
        assert "loss" in fault
        assert guard.usual == before  # what is bad is never usual
        assert guard.look() is None
    copied = Guard(guard.config)
    copied.load(json.loads(json.dumps(guard.state())))
    assert (copied.usual, copied.tries) == (guard.usual, guard.tries)
    guard.forget()
    guard.watch(loss=torch.tensor(9e3))
    assert guard.look() is None  # a new stage has other sizes
    guard.forget()
    guard.watch(loss=torch.tensor(2e4))
    assert guard.look() is not None  # but there is a limit
    for bad_config in ({"factor": 1.0}, {"retries": -1}, {"lower_rate": 0.0}, {"lower_rate": 1.5}):
        with pytest.raises(EbmtrajError, match="guard"):
            GuardConfig(**bad_config)


# checkpoints


def expect(path: Path, words: str) -> None:
    with pytest.raises(EbmtrajError, match=words) as caught:
        load_model(path)
    assert "\n" not in str(caught.value)
    assert str(path) in str(caught.value)


def test_what_is_no_checkpoint_of_ours(whole_runs: dict[Any, Path], tmp_path: Path) -> None:
    good = whole_runs["dsm", False] / "checkpoints" / "best.safetensors"
    data = good.read_bytes()
    path = tmp_path / "x.safetensors"
    expect(path, "does not exist")
    for cut in (0, 4, 100, len(data) // 2, len(data) - 1):
        path.write_bytes(data[:cut])
        expect(path, "is damaged")
    path.write_bytes(b"\x80\x04}q\x00." * 100)  # a pickle
    expect(path, "is damaged")
    save_file({"a": torch.zeros(2)}, path)
    expect(path, "was not written by ebmtraj")
    save_file({"a": torch.zeros(2)}, path, metadata={"header": "[1]"})
    expect(path, "is damaged")
    save_file({"a": torch.zeros(2)}, path, metadata={"header": '{"format": "ebmtraj", "version": 99}'})
    expect(path, "version 99")
    expect(good.parent / "resume.safetensors", "not a transition model")


def test_a_checkpoint_of_another_model(whole_runs: dict[Any, Path], tmp_path: Path) -> None:
    header, tensors = load_tensors(whole_runs["dsm", False] / "checkpoints" / "best.safetensors")
    own = {k: v for k, v in header.items() if k not in ("format", "version")}
    path = tmp_path / "x.safetensors"
    name = "tilted.energy.output.bias"

    def write(tensors: dict[str, Tensor], **changes: Any) -> None:
        save_tensors(path, tensors, {**own, **changes})

    write({k: v for k, v in tensors.items() if k != name})
    expect(path, f"lacks the tensor {name}")
    write({**tensors, "extra": torch.zeros(1)})
    expect(path, "has the tensor extra")
    write({**tensors, name: torch.zeros(3)})
    expect(path, r"has shape \(3,\), the model needs \(31,\)")
    write({**tensors, name: torch.full_like(tensors[name], math.nan)})
    expect(path, f"{name} holds NaN")
    write(tensors, network={**own["network"], "width": 32})
    expect(path, "trained for other dimensions")
    write(tensors, network={**own["network"], "widht": 32})
    expect(path, "widht")
    write(tensors, network={**own["network"], "width": "32"})
    expect(path, "width")
    write(tensors, actions=True)
    expect(path, "trained for other dimensions")
    write(tensors, model="diffusion")
    with pytest.raises(EbmtrajError, match="unknown transition model 'diffusion'"):
        load_model(path)
    write(tensors, state_fields=[{"name": "x"}])
    with pytest.raises(EbmtrajError, match="not a field description"):
        load_model(path)
    write(tensors, state_fields=[{"name": "x", "size": 1}, {"name": "x", "size": 2}])
    with pytest.raises(EbmtrajError, match="field 'x' comes twice"):
        load_model(path)
    save_tensors(path, tensors, {k: v for k, v in own.items() if k != "network"})
    expect(path, "header is damaged")
    write(tensors)
    load_model(path)


def test_refused_weights_leave_the_module_alone(tmp_path: Path) -> None:
    module = nn.Linear(2, 2)
    before = copy.deepcopy(module.state_dict())
    for bad in ({"weight": torch.zeros(2, 2)}, {"weight": torch.zeros(2, 2), "bias": torch.full((2,), math.nan)}):
        with pytest.raises(EbmtrajError):
            load_weights(module, bad, tmp_path / "x")
        assert equal(module.state_dict(), before)
