"""Models that see the states before the present one: what they are given, what they learn of it, and their rollouts."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from ebmtraj.datasets.normaliser import Normaliser
from ebmtraj.datasets.store import Store
from ebmtraj.datasets.stream import StreamedTransitions
from ebmtraj.datasets.windows import Batch, Past, Trajectories, Transitions, trajectories
from ebmtraj.errors import EbmtrajError
from ebmtraj.fields import Field
from ebmtraj.nets.sequence import RecurrentMixture
from ebmtraj.report.assess import _one_step
from ebmtraj.runs import Run
from ebmtraj.training.loop import train
from ebmtraj.training.settings import TrainingConfig
from ebmtraj.training.trainable import Stage
from ebmtraj.trajectories.fit import load_recipe, train_transition
from ebmtraj.trajectories.history import forgotten, moves
from ebmtraj.trajectories.model import TransitionModel
from ebmtraj.trajectories.registry import load_model, make_model
from ebmtraj.trajectories.rollout import rollout, sample_futures

torch.set_num_threads(1)
STATE, ACTION = (Field("x", 2),), (Field("u", 1),)
VARIANTS: list[tuple[str, dict[str, Any]]] = [
    ("dsm", {"history": 3}),
    ("dsm", {"history": 3, "previous_control": True}),
    ("field", {"history": 3, "previous_control": True}),
    ("gru", {"history": 3}),
    ("ensemble", {"history": 3, "previous_control": True}),
    ("fc", {"history": 3, "previous_control": True, "space": "delta"}),
]


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


# the past


def test_a_past_moves_on_with_each_step() -> None:
    past = Past.unknown(torch.tensor([[5.0, 6.0]]), 3, 1)
    assert past.state.tolist() == [[[5, 6]] * 3]
    assert past.valid.tolist() == [[False] * 3]
    for i in range(4):
        past = past.push(torch.tensor([[5.0 + i, 6.0]]), torch.tensor([[10.0 * i]]))
        assert past.valid.sum() == min(i + 1, 3)
    assert past.state[0, :, 0].tolist() == [6, 7, 8]
    assert past.action is not None
    assert past.action[0, :, 0].tolist() == [10, 20, 30]
    short, long = past.recent(2), past.recent(5)
    assert short.state[0, :, 0].tolist() == [7, 8]
    assert short.valid.all()
    assert long.state[0, :, 0].tolist() == [6, 6, 6, 7, 8]
    assert long.valid.tolist() == [[False, False, True, True, True]]
    assert short.action is not None
    assert long.action is not None
    assert short.action[0, :, 0].tolist() == [20, 30]
    assert long.action[0, :, 0].tolist() == [0, 0, 10, 20, 30]
    assert Past.unknown(torch.zeros(2, 2), 2).push(torch.ones(2, 2), torch.ones(2, 1)).action is None


def test_the_past_of_trajectories_is_theirs() -> None:
    states = torch.arange(10.0).view(2, 5, 1)
    actions = -torch.arange(8.0).view(2, 4, 1)
    truth = Trajectories(states, actions, np.arange(2), 0)
    assert truth.past(torch.tensor([[0], [1]]), 0).state.shape == (2, 0, 1)
    past = truth.past(torch.tensor([[0, 1, 4], [3, 0, 2]]), 2, actions=True)
    assert past.state[..., 0].tolist() == [[0, 0], [0, 0], [2, 3], [6, 7], [5, 5], [5, 6]]
    assert past.valid.tolist() == [[False, False], [False, True], [True, True], [True, True], [False, False], [True, True]]
    assert past.action is not None
    assert past.action[..., 0].tolist() == [[0, 0], [0, 0], [-2, -3], [-5, -6], [0, 0], [-4, -5]]
    assert truth.past(torch.tensor([[0], [1]]), 2).action is None


def test_moves_are_the_increments_that_led_here() -> None:
    normaliser = Normaliser(STATE, ACTION)
    normaliser.delta_mean = torch.tensor([0.5, 0.0])
    normaliser.delta_matrix = torch.diag(torch.tensor([2.0, 1.0]))
    normaliser.action_mean = torch.tensor([1.0])
    past = Past(
        torch.tensor([[[9.0, 9.0], [0.0, 0.0], [1.0, 3.0]]]),
        torch.tensor([[[7.0], [3.0], [4.0]]]),
        torch.tensor([[False, True, True]]),
    )
    state = torch.tensor([[1.0, 99.0]])
    seen = moves(normaliser, state, past, controls=True)
    assert seen.tolist() == [[[0, 0, 0, 0], [1, 3, 2, 1], [-1, 6, 3, 1]]]  # clamped
    assert moves(normaliser, state, past).equal(seen[..., [0, 1, 3]])
    blurred = torch.stack([moves(normaliser, state, past, noise=0.2, generator=seeded(n)) for n in range(2000)])
    torch.testing.assert_close(blurred[:, 0, 1, :2].std(0), torch.full((2,), 0.2), rtol=0.1, atol=0)
    assert blurred[:, 0, 0].eq(0).all()
    assert blurred[..., 2].equal(seen[..., 3].expand(2000, -1, -1))
    with pytest.raises(EbmtrajError, match="has none"):
        moves(normaliser, state, Past(past.state, None, past.valid), controls=True)


def test_a_share_of_pasts_is_cut_short() -> None:
    valid = torch.ones(30_000, 4, dtype=torch.bool)
    valid[20_000:, :2] = False
    past = forgotten(Past(torch.zeros(30_000, 4, 1), None, valid), 0.4, seeded(0))
    left = past.valid[:20_000].sum(1)
    shares = torch.bincount(left, minlength=5) / 20_000
    torch.testing.assert_close(shares, torch.tensor([0.1, 0.1, 0.1, 0.1, 0.6]), rtol=0, atol=0.01)
    assert (past.valid <= valid).all()
    assert (past.valid[:, 1:] >= past.valid[:, :-1]).all()  # the latest remain


# the contract of a model with history


def variant(name: str, network: dict[str, Any], store: Path) -> TransitionModel:
    """A model with actions whose normaliser knows the data, not trained."""
    opened = Store.open(store)
    settings = {"width": 16, **network}
    model = make_model(name, opened.state_fields, opened.action_fields, actions=True, network=settings, seed=3)
    model.prepare(Transitions.load(opened, "train", actions=True, history=model.history))
    return model.eval()


@pytest.mark.parametrize(("name", "network"), VARIANTS)
def test_what_is_known_of_the_past_matters_and_stand_ins_do_not(
    name: str, network: dict[str, Any], hand_store: Path
) -> None:
    model = variant(name, network, hand_store)
    truth = trajectories(Store.open(hand_store), "test", 20)
    state, action = truth.states[:, 8], truth.actions[:, 8]
    past = truth.past(torch.full((4, 1), 8), 3, actions=True)
    assert past.action is not None
    with torch.no_grad():  # so that no weight hides what is seen
        for p in model.parameters():
            p.copy_(0.2 * torch.randn(p.shape, generator=seeded(0)))
    seeing = model.train()  # sampling sees no noise and forgets nothing, in whatever mode
    drawn = seeing.sample_next(state, action, seeded(1), past)
    assert drawn.equal(model.eval().sample_next(state, action, seeded(1), past))
    controls = name == "gru" or network.get("previous_control", False)
    for h in range(3):
        moved, acted = past.state.clone(), past.action.clone()
        moved[:, h] += 0.05
        acted[:, h] += 0.5
        assert not model.sample_next(state, action, seeded(1), dataclasses.replace(past, state=moved)).equal(drawn)
        other = model.sample_next(state, action, seeded(1), dataclasses.replace(past, action=acted))
        assert other.equal(drawn) is not controls
    valid = past.valid.clone()
    valid[:, :2] = False
    cut = dataclasses.replace(past, valid=valid)
    after_cut = model.sample_next(state, action, seeded(1), cut)
    assert not after_cut.equal(drawn)
    moved, acted = past.state.clone(), past.action.clone()
    moved[:, :2] = 7.0
    moved[..., 27:] = past.state[..., 27:]
    acted[:, :2] = 7.0
    assert model.sample_next(state, action, seeded(1), Past(moved, acted, valid)).equal(after_cut)
    none = dataclasses.replace(past, valid=torch.zeros_like(valid))
    assert model.sample_next(state, action, seeded(1)).equal(model.sample_next(state, action, seeded(1), none))


def test_previous_controls_need_actions_and_a_past(hand_store: Path, tmp_path: Path) -> None:
    changes = ["network.previous_control=true", "network.history=2"]
    recipe = load_recipe(None, changes, {"model": "dsm", "data": str(hand_store)})
    with pytest.raises(EbmtrajError, match="--actions") as caught:
        train_transition(recipe, tmp_path / "run", device="cpu")
    assert "\n" not in str(caught.value)


SMALL = ["training.steps=20", "training.batch=32", "training.check_every=5", "training.warmup=5", "network.width=16"]


@pytest.mark.parametrize("stream", ["false", "true"])
@pytest.mark.parametrize(
    ("name", "changes"),
    [("dsm", ["network.history=2", "network.previous_control=true"]), ("gru", ["network.learn=last"])],
)
def test_an_interrupted_run_ends_in_the_same_bits(
    name: str, changes: list[str], stream: str, hand_store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = load_recipe(
        None, [*SMALL, *changes, f"stream={stream}"], {"model": name, "data": str(hand_store), "actions": True}
    )
    train_transition(recipe, tmp_path / "whole", device="cpu")
    kind: Any = StreamedTransitions if stream == "true" else Transitions
    honest, left = kind.sample, [13]  # the state was written after the tenth step; three are lost

    def sample(self: Any, size: int, generator: torch.Generator) -> Batch:
        left[0] -= 1
        if left[0] < 0:
            raise KeyboardInterrupt
        batch = honest(self, size, generator)
        assert batch.past is not None
        return batch

    with monkeypatch.context() as patch:
        patch.setattr(kind, "sample", sample)
        with pytest.raises(KeyboardInterrupt):
            train_transition(recipe, tmp_path / "cut", device="cpu")
    train_transition(recipe, tmp_path / "cut", device="cpu", resume=True)
    for file in ("best", "resume"):
        whole, cut = (load_file(tmp_path / run / "checkpoints" / f"{file}.safetensors") for run in ("whole", "cut"))
        assert whole.keys() == cut.keys()
        assert all(whole[key].equal(cut[key]) for key in whole)
    model, _ = load_model(tmp_path / "cut" / "checkpoints" / "best.safetensors")
    assert model.history == (2 if name == "dsm" else 4)


# what is learnt


def alternating(count: int, history: int) -> Transitions:
    """Episodes of 5 steps of (1, -1) and back, plus noise of spread 0.2: the last move tells the next, no state does."""
    noise = seeded(0)
    sign = torch.where(torch.rand(count, 1, 1, generator=noise) < 0.5, 1.0, -1.0)
    turn = sign * torch.tensor([1.0, -1.0, 1.0, -1.0, 1.0]).view(1, 5, 1) * torch.tensor([1.0, -1.0])
    d = turn + 0.2 * torch.randn(count, 5, 2, generator=noise)
    start = 3 * torch.randn(count, 1, 2, generator=noise)
    states = torch.cat((start, start + d.cumsum(1)), dim=1)
    episode = torch.arange(count).repeat_interleave(5)
    t = torch.arange(5).repeat(count)
    rows = torch.arange(5 * count)
    return Transitions(
        states.flatten(0, 1), torch.zeros(5 * count, 1), 6 * episode + t, rows, firsts=6 * episode, history=history
    )


@pytest.mark.parametrize(
    ("name", "network"),
    [
        ("dsm", {"history": 1}),
        ("field", {"history": 2, "history_noise": 0.0}),
        ("gru", {}),
        pytest.param("gru", {"learn": "last"}, marks=pytest.mark.slow),
    ],
)
def test_learns_what_only_the_past_tells(name: str, network: dict[str, Any], tmp_path: Path) -> None:
    sizes: dict[str, Any] = {"width": 32, "depth": 2, "history": 3}
    sizes["gaussianise"] = False  # which closes the gap between the two moves: a network so small then mistakes 5 %
    model = make_model(name, STATE, ACTION, actions=False, network={**sizes, **network}, seed=0)
    data = alternating(2000, model.history)
    data.action = None
    model.prepare(data)
    config = TrainingConfig(steps=500, batch=256, learning_rate=5e-3, warmup=20, ema=0.98, check_every=250, log_every=250)
    train(model, data, data, config, Run.create(tmp_path / "run"))
    state = torch.zeros(1000, 2)
    past = model.no_past(state)
    before = state - torch.tensor([1.0, -1.0])
    seen = past.push(before, None)
    d = model.sample_next(state, None, seeded(0), seen)
    torch.testing.assert_close(d.mean(0), torch.tensor([-1.0, 1.0]), rtol=0, atol=0.1)
    assert (d[:, 0] < 0).float().mean() > 0.99
    blind = model.sample_next(state, None, seeded(0), past)
    assert (blind[:, 0] < 0).float().mean().item() == pytest.approx(0.5, abs=0.15)
    states = rollout(model, state[:, :], 8, generator=seeded(0))
    sign = (states[:, 1:] - states[:, :-1])[..., 0].sign()
    assert (sign[:, 1:] == -sign[:, :-1]).float().mean() > 0.98


def test_the_recurrent_unit_is_torch_s_and_begins_where_the_past_does() -> None:
    torch.manual_seed(0)
    net = RecurrentMixture(3, 2, 4, components=2, width=8, low=-5.0, high=2.0)
    own = nn.GRU(3, 8, batch_first=True)
    with torch.no_grad():
        own.weight_ih_l0.copy_(net.into.weight)
        own.bias_ih_l0.copy_(net.into.bias)
        own.weight_hh_l0.copy_(net.across.weight)
        own.bias_hh_l0.copy_(net.across.bias)
    x, known = torch.randn(5, 6, 3), torch.ones(5, 6, dtype=torch.bool)
    torch.testing.assert_close(net.states(x, known)[:, 1:], own(x)[0])
    assert net.states(x, known)[:, 0].eq(0).all()
    known[:, :2] = False
    torch.testing.assert_close(net.states(x, known)[:, 3:], own(x[:, 2:])[0])
    context = torch.randn(5, 2)
    mixture = net(x, known, context)
    torch.testing.assert_close(mixture, net.head(torch.cat((own(x[:, 2:])[0][:, -1], context), dim=-1)))


@pytest.mark.parametrize("actions", [False, True])
def test_a_window_teaches_every_step_of_it(actions: bool) -> None:
    """The loss is the mean of the last step's over all the windows that begin with it and end sooner."""
    model: Any = make_model("gru", STATE, ACTION, actions=actions, network={"width": 8, "history": 3, "learn": "every"})
    data = alternating(50, 3)
    data.action = torch.randn(len(data), 1, generator=seeded(1)) if actions else None
    model.prepare(data)
    index = torch.tensor([3, 9, 11, 15])  # times 3, 4, 1, 0 of their episodes: 3, 3, 1 and 0 states before
    loss, _ = model.train()._loss(data.at(index), seeded(0))
    model.eval()
    each = []
    for number in index.tolist():
        before = min(number % 5, 3)
        for back in range(before + 1):
            batch = data.at(torch.tensor([number - back]))
            past = batch.past
            assert past is not None
            age = torch.arange(3, 0, -1)
            past = dataclasses.replace(past, valid=past.valid & (age <= before - back))
            each.append(model._loss(dataclasses.replace(batch, past=past), seeded(0))[0])
    assert len(each) == 4 + 4 + 2 + 1
    torch.testing.assert_close(loss, torch.stack(each).mean())


# rollouts


@dataclass(frozen=True)
class TwoBack:
    history: int = 2


class Steady(TransitionModel):
    """Repeats the move before the last one, and goes one up where it does not know it; adds the action taken then."""

    name = "steady"
    Config = TwoBack

    def __init__(self, *, actions: bool) -> None:
        super().__init__((Field("x", 1),), (Field("u", 1),), actions=actions, config=TwoBack())

    def stages(self) -> list[Stage]:
        return []

    def sample_next(
        self, state: Tensor, action: Tensor | None, generator: torch.Generator, past: Past | None = None
    ) -> Tensor:
        assert past is not None
        assert past.length == 2
        move = torch.where(past.valid[:, :1], past.state[:, 1] - past.state[:, 0], 1.0)
        return state + move + (0 if past.action is None else past.action[:, 0])


def test_a_rollout_goes_on_from_its_past() -> None:
    start, noise = torch.tensor([[10.0], [20.0]]), seeded(0)
    states = rollout(Steady(actions=False), start, 3, generator=noise)
    assert states[..., 0].tolist() == [[10, 11, 12, 13], [20, 21, 22, 23]]
    past = Past(torch.tensor([[[0.0], [4.0], [7.0]], [[0.0], [0.0], [18.0]]]), None, torch.ones(2, 3, dtype=torch.bool))
    states = rollout(Steady(actions=False), start, 4, past=past, generator=noise)
    assert states[..., 0].tolist() == [[10, 13, 16, 19, 22], [20, 38, 40, 58, 60]]
    short = rollout(Steady(actions=False), start, 4, past=past.recent(1), generator=noise)
    assert short[..., 0].tolist() == [[10, 11, 14, 15, 18], [20, 21, 23, 24, 26]]
    futures = sample_futures(Steady(actions=False), start, 4, 3, past=past, generator=noise, chunk=2)
    assert futures.equal(states.unsqueeze(1).expand(-1, 3, -1, -1))

    actions = torch.tensor([[[1.0], [2.0], [3.0], [4.0]]] * 2)
    acting = dataclasses.replace(past, action=torch.tensor([[[900.0], [100.0], [200.0]]] * 2))
    first = acting.rows(slice(0, 1))
    acted = rollout(Steady(actions=True), start[:1], 3, actions=actions[:1], past=first, generator=noise)
    assert acted[0, :, 0].tolist() == [10, 10 + 3 + 100, 113 + 3 + 200, 316 + 103 + 1]
    plain = rollout(Steady(actions=True), start[:1], 3, actions=actions[:1], generator=noise)
    assert plain[0, :, 0].tolist() == [10, 11, 12, 13 + 1]
    for bad, words in (
        (first, "2 starts"),
        (past, "must have them too"),
        (dataclasses.replace(acting, action=acting.action[:, 1:]), "one a state"),  # type: ignore[index]
    ):
        with pytest.raises(EbmtrajError, match=words) as caught:
            rollout(Steady(actions=True), start, 3, actions=actions, past=bad, generator=noise)
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize("actions", [False, True])
def test_one_step_is_measured_after_the_true_past(actions: bool) -> None:
    states = torch.randn(6, 40, 1, generator=seeded(0))
    truth = Trajectories(states, torch.randn(6, 39, 1, generator=seeded(1)), np.arange(6), 0)
    model = Steady(actions=actions)
    found = _one_step(model, truth, None, None, 0, "cpu")
    for i in range(6):
        for w, t in enumerate(found.times[i].tolist()):
            move = states[i, t - 1] - states[i, t - 2] if t >= 2 else torch.ones(1)
            given = truth.actions[i, t - 2] if actions and t >= 2 else torch.zeros(1)
            torch.testing.assert_close(torch.from_numpy(found.following[i, w]), states[i, t] + move + given)
    over = _one_step(model, truth, None, lambda state: state[:, 0] > 0, 0, "cpu")  # what has terminated stays
    true = states[torch.arange(6)[:, None], torch.from_numpy(found.times)].numpy()
    np.testing.assert_array_equal(over.following, np.where(true > 0, true, found.following))
