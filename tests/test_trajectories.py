"""The contract of every transition model, and rollouts over many steps."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from ebmtraj.datasets.store import Store
from ebmtraj.datasets.windows import Past, Transitions, trajectories
from ebmtraj.energies.transition import TiltedPairEnergy
from ebmtraj.errors import EbmtrajError
from ebmtraj.fields import Field
from ebmtraj.samplers.backends import gradient_of
from ebmtraj.training.checkpoint import load_tensors, save_tensors
from ebmtraj.training.trainable import Stage
from ebmtraj.trajectories.fit import TransitionRecipe, load_recipe, train_transition
from ebmtraj.trajectories.model import TransitionModel
from ebmtraj.trajectories.registry import MODELS, load_model, make_model, model_class
from ebmtraj.trajectories.rollout import rollout, sample_futures

QUATERNION = slice(27, 31)  # of the hand's state: 24 joints, the cube's position, its quaternion
PAPER = [  # the paper's own setting of the energy, see `PairConfig`
    *("network.space=state", "network.negatives=pair", "network.matrices=false", "network.whiten=false"),
    *("network.scale=1.0", "network.prior=0.0", "network.start=uniform", "network.keep=0.95", "network.alpha=1.0"),
    *("network.beta1=0.0", "network.sampler.step_size=10.0", "network.sampler.noise=0.005"),
]
WHITEN = ["network.whiten=true", "network.gaussianise=false"]
CASES = [(name, actions) for name in MODELS for actions in (False, True)]


def recipe_for(store: Path, model: str, *changes: str, actions: bool = False) -> TransitionRecipe:
    small = ["training.steps=20", "training.batch=32", "training.check_every=10", "network.width=16"]
    cd = ["network.sampler.steps=3", "network.rollout_steps=5", "network.buffer=100"] if model in ("cd", "icd") else []
    return load_recipe(None, [*small, *cd, *changes], {"model": model, "actions": actions, "data": str(store)})


@pytest.fixture(scope="session")
def checkpoints(hand_store: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[str, bool], Path]:
    found = {}
    for name, actions in CASES:
        path = tmp_path_factory.mktemp("models") / "run"
        train_transition(recipe_for(hand_store, name, actions=actions), path, device="cpu")
        found[name, actions] = path / "checkpoints" / "best.safetensors"
    return found


@pytest.fixture(scope="module")
def some(hand_store: Path) -> tuple[Tensor, Tensor]:
    """States (4, 21, 31) and actions (4, 20, 20) of the test split."""
    found = trajectories(Store.open(hand_store), "test", 20)
    return found.states, found.actions


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize(("name", "actions"), CASES)
def test_contract(name: str, actions: bool, checkpoints: dict[Any, Path], some: tuple[Tensor, Tensor]) -> None:
    model, header = load_model(checkpoints[name, actions])
    assert (header["model"], header["actions"], model.actions, model.name) == (name, actions, actions, name)
    assert not model.training
    state, action = some[0][:, 3], some[1][:, 3] if actions else None
    before = {k: v.clone() for k, v in model.state_dict().items()}
    torch.manual_seed(0)
    rng = torch.get_rng_state()
    drawn = [model.sample_next(state, action, seeded(seed)) for seed in (1, 1, 2)]
    assert torch.get_rng_state().equal(rng)
    for following in drawn:
        assert following.shape == state.shape
        assert following.dtype == torch.float32
        assert not following.requires_grad
        assert following.isfinite().all()
        torch.testing.assert_close(following[:, QUATERNION].norm(dim=-1), torch.ones(4), rtol=0, atol=1e-5)
        assert ((following * state)[:, QUATERNION].sum(-1) > 0).all()  # the quaternion's sign is continuous
    assert drawn[0].equal(drawn[1])
    assert drawn[0].equal(drawn[2]) is (name == "fc")
    assert all(v.equal(model.state_dict()[k]) for k, v in before.items())  # sampling changes no weight
    # an element's sample is a function of it alone where nothing is drawn, and the action matters where there is one
    if name == "fc":
        torch.testing.assert_close(
            model.sample_next(state[1:2], None if action is None else action[1:2], seeded(1)), drawn[0][1:2]
        )
    if action is not None:
        assert not model.sample_next(state, -action, seeded(1)).equal(drawn[0])


@pytest.mark.parametrize(("name", "actions"), CASES)
def test_a_checkpoint_gives_the_same_samples_as_the_model_that_wrote_it(
    name: str, actions: bool, hand_store: Path, some: tuple[Tensor, Tensor], tmp_path: Path
) -> None:
    store = Store.open(hand_store)
    network = {k: v for k, v in recipe_for(hand_store, name).network.items() if v is not None}
    model = make_model(name, store.state_fields, store.action_fields, actions=actions, network=network, seed=5)
    model.prepare(Transitions.load(store, "train", actions=actions))
    model.eval()
    path = tmp_path / "x.safetensors"
    save_tensors(path, model.state_dict(), model.header())
    other, _ = load_model(path)
    assert other.header() == model.header()  # what was left to the data is settled there
    assert other.state_fields == model.state_fields
    assert other.action_fields == model.action_fields
    state, action = some[0][:, 0], some[1][:, 0] if actions else None
    assert other.sample_next(state, action, seeded(1)).equal(model.sample_next(state, action, seeded(1)))
    again = make_model(name, store.state_fields, store.action_fields, actions=actions, network=network, seed=5)
    different = make_model(name, store.state_fields, store.action_fields, actions=actions, network=network, seed=6)
    first = next(iter(dict(model.named_parameters())))
    assert dict(again.named_parameters())[first].equal(dict(model.named_parameters())[first])
    assert not dict(different.named_parameters())[first].equal(dict(model.named_parameters())[first])


def test_a_checkpoint_from_before_there_were_marginals(
    hand_store: Path, some: tuple[Tensor, Tensor], tmp_path: Path
) -> None:
    """The identity takes their place, and what its header does not say was as it then was."""
    old = ["network.gaussianise=false", "network.noise.mean=-0.8", "network.noise.std=1.2"]
    ladder = {"levels": 11, "sigma_max": 5.0, "sigma_min": 0.02, "rho": 7.0, "predictor": "heun"}
    old += [f"network.sampler.ladder.{key}={value}" for key, value in (*ladder.items(), ("spacing", "rho"))]
    train_transition(recipe_for(hand_store, "dsm", *old), tmp_path / "run", device="cpu")
    path = tmp_path / "run" / "checkpoints" / "best.safetensors"
    header, tensors = load_tensors(path)
    network = {k: v for k, v in header["network"].items() if k not in ("gaussianise", "history", "previous_control")}
    network["sampler"] = {**network["sampler"], "ladder": ladder}
    bare = {k: v for k, v in tensors.items() if "marginals" not in k}
    assert len(bare) < len(tensors)
    save_tensors(tmp_path / "old.safetensors", bare, {**header, "network": network})
    new, before = (load_model(each)[0] for each in (path, tmp_path / "old.safetensors"))
    state = some[0][:, 0]
    assert before.sample_next(state, None, seeded(0)).equal(new.sample_next(state, None, seeded(0)))
    save_tensors(tmp_path / "cut.safetensors", {**bare, "normaliser.marginals.low": torch.zeros(30)}, header)
    with pytest.raises(EbmtrajError, match=r"lacks the tensor normaliser\.marginals"):
        load_model(tmp_path / "cut.safetensors")


@pytest.mark.parametrize(
    ("name", "changes"),
    [
        ("cd", PAPER),
        ("cd", ["network.whiten=true", "network.spectral=false"]),
        ("dsm", [*WHITEN, "network.sampler.steps=1", "network.sampler.ladder.predictor=euler"]),
        ("fc", ["network.space=delta", "network.matrices=true", "network.spectral=false"]),
        ("gaussian", ["network.whiten=true", "network.beta=1.0"]),
        ("gaussian", ["network.gaussianise=true"]),
        (
            "dsm",
            ["network.gaussianise=false", *(f"network.sampler.ladder.{k}" for k in ("spacing=rho", "predictor=heun"))],
        ),
        ("ensemble", ["network.members=2", "network.bootstrap=false", "network.beta=0.0", "network.whiten=true"]),
        ("mdn", ["network.components=1", "network.low=-2.0", "network.high=1.0", *WHITEN]),
        ("edm", [*WHITEN, "network.ladder.predictor=euler", "network.ladder.levels=3"]),
        ("flow", [*WHITEN, "network.time.law=uniform", "network.solver=heun", "network.steps=3"]),
        ("flow", ["network.solver=euler", "network.depth=1"]),
        ("field", [*WHITEN, "network.sampler.steps=1", "network.sampler.ladder.predictor=none"]),
        ("field", ["network.history=2", "network.history_noise=0.0", "network.forget=0.0"]),
        ("dsm", ["network.history=1", "network.history_noise=0.3", "network.forget=1.0", "stream=true"]),
        ("gru", ["network.history=1", *WHITEN, "network.components=2", "network.forget=0.0"]),
        *((name, ["network.rotation=quaternion"]) for name in MODELS if name != "fc"),
        ("dsm", ["network.rotation=body", "network.history=1", "network.base=false"]),
        ("field", ["network.rotation=quaternion", "network.history=1", "network.base_context=false"]),
        ("field", ["network.base=false", "network.base_context=false"]),
        ("gru", ["network.learn=last", "network.history_noise=0.2", "network.depth=1", "stream=true"]),
    ],
)
def test_other_settings(
    name: str, changes: list[str], hand_store: Path, some: tuple[Tensor, Tensor], tmp_path: Path
) -> None:
    train_transition(recipe_for(hand_store, name, *changes), tmp_path / "run", device="cpu")
    model, _ = load_model(tmp_path / "run" / "checkpoints" / "best.safetensors")
    states = rollout(model, some[0][:, 0], 5, generator=seeded(0))
    assert states.isfinite().all()
    torch.testing.assert_close(states[..., QUATERNION].norm(dim=-1), torch.ones(4, 6), rtol=0, atol=1e-5)


def test_rotations_reach_the_increments(hand_store: Path, tmp_path: Path) -> None:
    """The coordinates are those asked for, before and after a checkpoint, and a checkpoint keeps its own."""
    store = Store.open(hand_store)
    data = Transitions.load(store, "train")
    batch = data.at(torch.arange(50))
    found = {}
    for rotation, size in (("world", 30), ("body", 30), ("quaternion", 31)):
        network = {k: v for k, v in recipe_for(hand_store, "dsm").network.items() if v is not None}
        network |= {"rotation": rotation, "gaussianise": False}
        model = make_model("dsm", store.state_fields, store.action_fields, actions=False, network=network)
        model.prepare(data)
        assert model.delta_size == size
        path = tmp_path / f"{rotation}.safetensors"
        save_tensors(path, model.state_dict(), model.header())
        other, _ = load_model(path)
        z = found[rotation] = other.normaliser.delta(batch.state, batch.next_state)
        assert z.equal(model.normaliser.delta(batch.state, batch.next_state))
        torch.testing.assert_close(other.normaliser.advance(batch.state, z), batch.next_state, rtol=0, atol=1e-4)
    assert found["world"][:, :27].equal(found["body"][:, :27])
    assert (found["world"] - found["body"]).abs().max() > 0.1
    with pytest.raises(EbmtrajError, match=r"trained with network\.rotation = 'world', not 'body'; drop that setting"):
        load_model(tmp_path / "world.safetensors", network={"rotation": "body"})
    header, tensors = load_tensors(tmp_path / "world.safetensors")
    header["network"].pop("rotation")  # from before there was a choice
    save_tensors(tmp_path / "old.safetensors", tensors, header)
    old, _ = load_model(tmp_path / "old.safetensors")
    assert old.normaliser.delta(batch.state, batch.next_state).equal(found["world"])
    assert load_model(tmp_path / "old.safetensors", network={"rotation": "world"})[0].delta_size == 30
    with pytest.raises(EbmtrajError, match="rotation = 'axis'"):
        recipe_for(hand_store, "dsm", "network.rotation=axis")


@pytest.mark.parametrize("spectral", [True, False])
@pytest.mark.parametrize("depth", [1, 3])
def test_the_pair_energy_s_two_forms_and_their_gradients_agree(spectral: bool, depth: int) -> None:
    torch.manual_seed(0)
    energy = TiltedPairEnergy(3, 4, prior=0.7, width=16, depth=depth, spectral=spectral, scale=20.0).double().eval()
    pair = torch.randn(8, 7, dtype=torch.float64)
    first, second = pair[:, :3], pair[:, 3:]
    context = energy.prepare(first).detach()
    torch.testing.assert_close(energy(second, context), energy(pair))
    torch.testing.assert_close(energy(pair), energy.tilt(pair) + 0.35 * second.square().sum(-1))
    whole, half = energy.gradient(pair), energy.gradient(second, context)
    torch.testing.assert_close(whole, gradient_of(energy, "autograd")(pair, None))
    torch.testing.assert_close(half, gradient_of(energy, "autograd")(second, context))
    torch.testing.assert_close(half, whole[:, 3:])
    assert energy.tilt(pair).std() > 0.1


@pytest.mark.parametrize(("name", "actions"), CASES)
def test_rollout(name: str, actions: bool, checkpoints: dict[Any, Path], some: tuple[Tensor, Tensor]) -> None:
    model, _ = load_model(checkpoints[name, actions])
    start, given = some[0][:, 0], some[1] if actions else None
    steps: list[int] = []
    states = rollout(model, start, 20, actions=given, generator=seeded(1), on_step=steps.append)
    assert states.shape == (4, 21, 31)
    assert steps == list(range(1, 21))
    torch.testing.assert_close(states[:, 0], start, rtol=0, atol=1e-6)
    assert states.equal(rollout(model, start, 20, actions=given, generator=seeded(1)))
    assert rollout(model, start, 0, actions=given, generator=seeded(1)).shape == (4, 1, 31)
    low, high = model.normaliser.state_low, model.normaliser.state_high
    after = states[:, 1:]
    assert (after >= low)[..., :27].all()
    assert (after <= high)[..., :27].all()
    torch.testing.assert_close(states[..., QUATERNION].norm(dim=-1), torch.ones(4, 21), rtol=0, atol=1e-5)
    assert ((states[:, 1:] * states[:, :-1])[..., QUATERNION].sum(-1) > 0).all()


class Drift(TransitionModel):
    """Goes one unit up in each step, and by the action; far beyond any data."""

    name = "drift"
    Config = dict

    def __init__(self, *, actions: bool) -> None:
        super().__init__((Field("x", 2),), (Field("u", 1),), actions=actions, config=None)

    def stages(self) -> list[Stage]:
        return []

    def sample_next(
        self, state: Tensor, action: Tensor | None, generator: torch.Generator, past: Past | None = None
    ) -> Tensor:
        assert past is None
        return state + 1 + (0 if action is None else action)


def test_a_rollout_is_the_model_step_by_step_within_bounds() -> None:
    start = torch.tensor([[0.0, 5.0], [1.0, 1.0]])
    states = rollout(Drift(actions=False), start, 3, generator=seeded(0))
    assert states.equal(start.unsqueeze(1) + torch.arange(4.0).view(1, 4, 1))
    actions = torch.tensor([[[10.0], [20.0], [30.0]], [[0.0], [0.0], [100.0]]])
    moved = rollout(Drift(actions=True), start, 2, actions=actions, generator=seeded(0))
    assert moved[:, :, 0].tolist() == [[0, 11, 32], [1, 2, 3]]
    model = Drift(actions=False)
    model.normaliser.state_low, model.normaliser.state_high = torch.tensor([0.0, 0.0]), torch.tensor([1.0, 10.0])
    bounded = rollout(model, start, 9, generator=seeded(0))
    assert bounded[0, -1].tolist() == [1.0, 10.0]
    held = rollout(Drift(actions=False), start, 4, terminates=lambda x: x[:, 0] >= 3, generator=seeded(0))
    assert held[:, :, 0].tolist() == [[0, 1, 2, 3, 3], [1, 2, 3, 3, 3]]
    for bad in (None, actions[:, :1]):
        with pytest.raises(EbmtrajError, match="takes actions: 2 steps"):
            rollout(Drift(actions=True), start, 2, actions=bad, generator=seeded(0))


def test_futures_belong_to_their_start_and_action_whatever_the_chunk() -> None:
    start = torch.tensor([[0.0, 0.0], [100.0, 0.0], [200.0, 0.0]])
    actions = torch.tensor([0.0, 10.0, 20.0]).view(3, 1, 1).expand(3, 4, 1)
    for chunk in (1, 2, 4, 100):
        told: list[tuple[int, int]] = []
        states = sample_futures(
            Drift(actions=True),
            start,
            4,
            2,
            actions=actions,
            generator=seeded(0),
            chunk=chunk,
            on_step=lambda done, total, told=told: told.append((done, total)),
        )
        assert states.shape == (3, 2, 5, 2)
        expected = torch.arange(5.0) * (1 + torch.tensor([0.0, 10.0, 20.0])).view(3, 1)
        assert states[:, 0, :, 0].equal(start[:, :1] + expected)
        assert states[:, 1].equal(states[:, 0])
        total = 4 * -(-6 // chunk)
        assert told == [(done, total) for done in range(1, total + 1)]


def test_futures_of_one_start_differ(checkpoints: dict[Any, Path], some: tuple[Tensor, Tensor]) -> None:
    model, _ = load_model(checkpoints["dsm", False])
    states = sample_futures(model, some[0][:2, 0], 3, 3, generator=seeded(0))
    assert states.shape == (2, 3, 4, 31)
    for i in range(2):
        torch.testing.assert_close(states[i, :, 0], some[0][i : i + 1, 0].expand(3, -1), rtol=0, atol=1e-6)
        assert not states[i, 0, 1].equal(states[i, 1, 1])


def test_registry() -> None:
    assert all(model_class(name).name == name for name in MODELS)
    assert all(dataclasses.is_dataclass(cls.Config) for cls in MODELS.values())
    with pytest.raises(EbmtrajError, match="did you mean gaussian"):
        model_class("gausian")
    with pytest.raises(EbmtrajError, match="unknown transition model 'x'"):
        model_class("x")


@pytest.mark.slow
def test_the_energy_beats_its_base_and_the_paper_s_baseline(hand_store: Path, tmp_path: Path) -> None:
    """One-step energy score on held-out transitions, in units of the increments' spread."""
    data = Transitions.load(Store.open(hand_store), "test")
    batch = data.at(torch.arange(len(data)))
    scores = {}
    for name in ("fc", "dsm"):
        recipe = recipe_for(hand_store, name, "training.steps=2000", "training.batch=256", "network.width=64")
        train_transition(recipe, tmp_path / name, device="cpu")
        model, _ = load_model(tmp_path / name / "checkpoints" / "best.safetensors")
        truth = model.normaliser.delta(batch.state, batch.next_state)
        a, b = (model.normaliser.delta(batch.state, model.sample_next(batch.state, None, seeded(s))) for s in (1, 2))
        near = 0.5 * ((a - truth).norm(dim=-1) + (b - truth).norm(dim=-1))
        scores[name] = (near - 0.5 * (a - b).norm(dim=-1)).mean().item()
    assert scores["dsm"] < 0.7 * scores["fc"], scores
