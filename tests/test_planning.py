"""Windows that look ahead, the model that plans are made of, guidance, and plans carried out in the simulator."""

from __future__ import annotations

import dataclasses
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from commands import call
from torch import Tensor, nn

from ebmtraj.datasets.ahead import Windows
from ebmtraj.datasets.coordinates import quaternion_exp, quaternion_multiply
from ebmtraj.datasets.store import Store
from ebmtraj.datasets.windows import Past, Transitions
from ebmtraj.device import use_threads
from ebmtraj.errors import EbmtrajError
from ebmtraj.fields import Field
from ebmtraj.nets.ensemble import EnsembleMLP
from ebmtraj.policy import evaluate
from ebmtraj.runs import Run
from ebmtraj.training.checkpoint import load_tensors
from ebmtraj.training.loop import train
from ebmtraj.training.settings import TrainingConfig
from ebmtraj.trajectories.costs import TaskCost, parse_task
from ebmtraj.trajectories.execute import Execution, fresh_start
from ebmtraj.trajectories.measure import error, held_out_goals, kept, rotation_task, turned
from ebmtraj.trajectories.plan import PlannerConfig, plan
from ebmtraj.trajectories.terms.rotation import rotation_vectors
from ebmtraj.trajectories.terms.term import Path as Future
from ebmtraj.trajectories.window import PRIORS, WindowConfig, WindowModel

POSITION = (Field("place", 2, "position", "m", entries=("x", "y")),)
PUSH = (Field("push", 2, low=(-1.0, -1.0), high=(1.0, 1.0)),)
TINY = [
    *("--set", "training.steps=30", "--set", "training.check_every=10", "--set", "training.batch=16"),
    *("--set", "network.width=16", "--set", "network.horizons=[2,8,12]", "--device", "cpu"),
]


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def particle(episodes: int = 40, steps: int = 20, seed: int = 0) -> Transitions:
    """Episodes of a particle that an action moves by a tenth of it, x' = x + a / 10."""
    action = torch.rand(episodes, steps, 2, generator=seeded(seed)) * 2 - 1
    start = torch.randn(episodes, 1, 2, generator=seeded(seed + 1))
    state = torch.cat((start, start + 0.1 * action.cumsum(1)), dim=1)
    rows = torch.arange(episodes).unsqueeze(1) * (steps + 1) + torch.arange(steps)
    firsts = (torch.arange(episodes) * (steps + 1)).repeat_interleave(steps)
    flat = torch.arange(episodes * steps)
    return Transitions(state.flatten(0, 1), action.flatten(0, 1), rows.flatten(), flat, firsts=firsts, history=2)


def particle_windows(seed: int = 0) -> Windows:
    data, steps, episodes = particle(seed=seed), 20, 40
    starts = (torch.arange(episodes).unsqueeze(1) * steps + torch.arange(steps - 7)).flatten()
    lasts = (torch.arange(episodes) * (steps + 1) + steps).repeat_interleave(steps - 7)
    return Windows(data, starts, lasts, actions=4, horizons=(2, 4, 8))


def particle_model(prior: str = "energy", **changes: Any) -> WindowModel:
    config = WindowConfig(**{"actions": 4, "horizons": (2, 4, 8), "width": 32, "controls": 2} | changes)
    return WindowModel(POSITION, PUSH, prior=prior, config=config, environment={})


def test_windows_hold_what_the_store_does(hand_store: Path) -> None:
    store = Store.open(hand_store)
    windows = Windows.load(store, "train", actions=3, horizons=(1, 6), history=2)
    episodes = store.split("train")
    state, action = store.read_states(episodes), store.read_actions(episodes)
    assert len(windows) == sum(max(0, n - (3 if end else 6) + 1) for n, end in zip(*ends(store), strict=True))
    first_state = first_action = i = 0
    for length, terminated in zip(*ends(store), strict=True):
        for t in range(max(0, length - (3 if terminated else 6) + 1)):
            window = windows.at(torch.tensor([i]))
            np.testing.assert_array_equal(window.state[0], state[first_state + t])
            np.testing.assert_array_equal(window.actions[0], action[first_action + t : first_action + t + 3])
            for h, ahead in zip((1, 6), window.ahead[0], strict=True):
                np.testing.assert_array_equal(ahead, state[first_state + min(t + h, length)])
            assert window.past is not None
            assert window.past.valid[0].tolist() == [t > 1, t > 0]
            i += 1
        first_state, first_action = first_state + length + 1, first_action + length
    with pytest.raises(EbmtrajError, match="no train episode has the 500 steps"):
        Windows.load(store, "train", actions=3, horizons=(500,))


def ends(store: Store) -> tuple[Any, Any]:
    episodes = store.split("train")
    return store.lengths[episodes], store.terminated[episodes]


def test_what_terminated_stays_in_its_last_state() -> None:
    state, action = torch.arange(9.0).unsqueeze(1), torch.arange(7.0).unsqueeze(1)  # episodes of 5 and 2 steps
    data = Transitions(state, action, torch.tensor([0, 1, 2, 3, 4, 6, 7]), torch.arange(7))
    windows = Windows(data, torch.tensor([3]), torch.tensor([5]), actions=2, horizons=(1, 2, 30))
    window = windows.at(torch.tensor([0]))
    assert window.ahead.flatten().tolist() == [4, 5, 5]
    assert window.actions.flatten().tolist() == [3, 4]


def test_each_member_of_an_ensemble_is_a_network_of_its_own() -> None:
    net = EnsembleMLP(2, 3, 4, 5, width=8, depth=2)
    event, context = torch.randn(6, 3), torch.randn(6, 4)
    out = net(event, net.prepare(context))
    for k in range(2):
        layers = [net.input_event, net.input_context, *net.layers]
        (we, be), (wc, bc), *rest = [(layer.weight[k], layer.bias[k]) for layer in layers]
        h = event @ we + be + context @ wc + bc
        for weight, bias in rest:
            h = nn.functional.silu(h) @ weight + bias
        torch.testing.assert_close(out[k], h)
    assert not torch.allclose(out[0], out[1])


class Straight(nn.Module):
    """An outcome model whose expected place at each horizon is known: linear in the actions."""

    def __init__(self, matrix: Tensor) -> None:
        super().__init__()
        self.register_buffer("matrix", matrix)

    def prepare(self, context: Tensor) -> Tensor:
        return context.new_zeros((1, len(context), 1))

    def forward(self, event: Tensor, prepared: Tensor) -> Tensor:
        return (event @ self.matrix).unsqueeze(0)


def test_guidance_is_exact_for_a_gaussian_base_and_a_linear_cost() -> None:
    """There, exp(-g cost) times N(0, 1) is N(-g grad cost, 1), and so must the guided samples be."""
    torch.manual_seed(0)
    model = particle_model().eval()
    model.action_low.fill_(-math.inf)
    model.action_high.fill_(math.inf)
    matrix = 0.3 * torch.randn(8, 6)
    model.outcome = Straight(matrix)  # type: ignore[assignment]
    state, count = torch.randn(1, 2).repeat(4000, 1), 4000
    past = Past.unknown(state, 2, 2)
    slope = torch.zeros(6)
    slope[-2:] = torch.tensor([1.0, -2.0])  # the cost is x - 2 y at the last horizon

    def line(path: Future, fields: Any) -> Tensor:
        return (path.states[:, -1] - path.start) @ slope[-2:]

    task = parse_task("reach goal=0,0", POSITION)
    task = dataclasses.replace(task, parts=(own_term(line),))
    config = PlannerConfig(candidates=1, guidance=0.7, reach=9.0, prior=False, levels=60, sigma_max=50.0, sigma_min=0.01)
    plans = plan(model, state, past, task, config, generator=seeded(0))
    base = model.situation(state[:1], past.rows(slice(1))).base
    r = (model.normalised(plans.actions) - base.mean) / base.log_std.exp()
    expected = -0.7 * (matrix @ slope) * base.log_std.exp()[0]
    torch.testing.assert_close(r.mean(0), expected, atol=5 / count**0.5, rtol=0.02)
    torch.testing.assert_close(r.std(0), torch.ones(8), atol=0.06, rtol=0.0)
    config = dataclasses.replace(config, guidance=1e6, reach=0.5)
    plans = plan(model, state, past, task, config, generator=seeded(0))
    r = (model.normalised(plans.actions) - base.mean) / base.log_std.exp()
    away = 0.5 * expected / expected.square().mean().sqrt()  # half a standard deviation and no further
    torch.testing.assert_close(r.mean(0), away, atol=5 / count**0.5, rtol=0.02)


def own_term(function: Any) -> Any:
    from ebmtraj.trajectories.costs import OwnTerm

    return OwnTerm(POSITION, function=function, target="line")


@pytest.fixture(scope="module", params=list(PRIORS))
def trained(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> WindowModel:
    use_threads(1)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = particle_model(request.param)
    data = particle_windows()
    model.prepare(data)
    run = Run.create(tmp_path_factory.mktemp("particle") / "run")
    settings = TrainingConfig(steps=700, batch=128, learning_rate=4e-3, check_every=300, validation=256, ema=0.98)
    train(model, data, particle_windows(seed=5), settings, run)
    return model.requires_grad_(False)


def test_outcomes_are_those_of_the_system(trained: WindowModel) -> None:
    batch = particle_windows(seed=9).at(torch.arange(0, 500, 7))
    assert batch.past is not None
    path = trained.expected(trained.situation(batch.state, batch.past), batch.actions)
    assert path.times.tolist() == [2, 4, 8]
    truth = batch.state.unsqueeze(1) + 0.1 * batch.actions.cumsum(1)[:, [1, 3]]
    assert float((path.states[:, :2] - truth).square().mean().sqrt()) < 0.02  # what an action does is known ...
    spread = (batch.ahead[:, 2] - batch.ahead[:, 1]).std()  # ... and later, random ones are expected to do nothing
    assert float((path.states[:, 2] - truth[:, 1]).square().mean().sqrt()) < 0.4 * float(spread)


def test_turns_of_a_plan_are_those_of_its_states() -> None:
    torch.manual_seed(0)
    fields = (*POSITION, Field("turn", 4, "quaternion"))
    config = WindowConfig(actions=4, horizons=(2, 4), width=16)
    model = WindowModel(fields, PUSH, prior="energy", config=config, environment={})
    state = torch.cat((torch.randn(6, 2), quaternion_exp(torch.randn(6, 3))), dim=1)
    with torch.no_grad():
        situation = model.situation(state, Past.unknown(state, 1, 2))
        path = model.expected(situation, torch.rand(6, 4, 2))
    assert path.turned is not None
    assert float(path.turned.norm(dim=-1).max()) > 0.01
    torch.testing.assert_close(rotation_vectors(path._replace(turned=None), slice(2, 6)), path.turned, atol=1e-5, rtol=1e-4)


def test_guided_plans_do_the_task(trained: WindowModel) -> None:
    state = torch.zeros(6, 2)
    past = Past.unknown(state, 2, 2)
    angle = torch.arange(6) * math.pi / 3
    goal = torch.stack((angle.cos(), angle.sin()), dim=1)
    task = parse_task("reach goal=0,0", POSITION).given("reach", goal=goal)
    free, chosen, guided, base = (
        ends_of(trained, state, past, task, PlannerConfig(candidates=n, guidance=g, prior=prior))
        for n, g, prior in ((1, 0.0, True), (32, 0.0, True), (1, 0.3, True), (1, 0.3, False))
    )
    along = [float((end * goal).sum(1).mean()) for end in (free, chosen, guided, base)]
    assert abs(along[0]) < 0.1
    assert along[1] > 0.08
    assert min(along[2:]) > 0.15
    assert max(along) <= 0.4 * math.sqrt(2) + 1e-6  # actions stay within their bounds


def ends_of(model: WindowModel, state: Tensor, past: Past, task: TaskCost, config: PlannerConfig) -> Tensor:
    """Where plans really lead, `(B, 2)`, and the same again from the same seed."""
    plans, again = (plan(model, state, past, task, config, generator=seeded(1)) for _ in range(2))
    assert torch.equal(plans.actions, again.actions)
    assert float(plans.actions.abs().max()) <= 1
    torch.testing.assert_close(task(plans.path), plans.cost)
    return state + 0.1 * plans.actions.sum(1)


def test_the_best_candidate_is_kept(trained: WindowModel) -> None:
    state = torch.zeros(3, 2)
    past, task = Past.unknown(state, 2, 2), parse_task("reach goal=1,0", POSITION)
    costs = [
        plan(trained, state, past, task, PlannerConfig(candidates=n, guidance=0), generator=seeded(2)).cost for n in (1, 64)
    ]
    assert (costs[1] < costs[0]).all()


def test_turning_is_counted_until_the_drop() -> None:
    axis = torch.tensor([[0.0, 0.0, 1.0], [0.0, 0.0, -1.0], [1.0, 0.0, 0.0]])
    turn = quaternion_exp(torch.tensor([0.0, 0.0, 0.5]))
    q = [torch.tensor([[0.0, 1.0, 0.0, 0.0]]).repeat(3, 1)]
    for _ in range(10):  # 5 rad in all: more than the shortest way back
        q.append(-quaternion_multiply(turn.expand(3, 4), q[-1]))  # the sign of a quaternion says nothing
    over = torch.zeros(3, 11, dtype=torch.bool)
    over[0, 7:] = True
    done = Execution(torch.stack(q, 1), torch.zeros(3, 10, 1), over, [0.0] * 10, 0.0, [])
    torch.testing.assert_close(turned(done, axis, slice(0, 4)), torch.tensor([3.0, -5.0, 0.0]).double(), atol=1e-5, rtol=0)
    assert done.dropped.tolist() == [True, False, False]


def test_constraints_are_counted_until_the_drop() -> None:
    states = torch.zeros(2, 5, 2)
    states[0, 3:, 0] = 0.5  # in the disc for two of four steps
    states[1, 2:, 0] = 0.5  # and for the last of two, as it dropped after them
    over = torch.zeros(2, 5, dtype=torch.bool)
    over[1, 3:] = True
    done = Execution(states, torch.zeros(2, 4, 1), over, [], 0.0, [])
    found = kept(done, parse_task("reach goal=1,0 + obstacle centre=0.5,0 radius=0.1", POSITION))
    assert found["kept"] == {"obstacle": pytest.approx(3 / 6)}
    assert found["kept_se"] == {"obstacle": pytest.approx(0.0)}  # the same share in both
    assert found["kept_means"] == {"obstacle": "at least 0.1 m from the centre"}
    assert kept(done, parse_task("reach goal=1,0", POSITION)) == {}


def test_starts_are_those_that_policies_are_measured_on() -> None:
    assert fresh_start(3, 5).random() == evaluate._generator(3, 5, 0).random()
    assert fresh_start(3, 5).random() != fresh_start(3, 6).random()


def test_goals_are_where_held_out_episodes_came_to(hand_store: Path) -> None:
    store = Store.open(hand_store)
    with pytest.raises(EbmtrajError, match="not 50; give a store whose policy turns it"):
        held_out_goals(store, 50, 0, steps=20)
    goals = held_out_goals(store, 1, 0, split="train", steps=20)
    states = store.read_states(store.split("train")).reshape(-1, 21, 31)
    row = next(i for i, s in enumerate(states) if (s[0] == goals.start[0].numpy()).all())
    assert (states[row, :, 27:] == goals.quaternion[0].numpy()).all(1).any()
    assert 0.5 < float(error(goals.start, goals.quaternion, store.state_fields)) < 1.5


def test_axes_of_a_task() -> None:
    fields = (Field("turn", 4, "quaternion"),)
    _, axis, names = rotation_task(parse_task("rotate axis=all", fields), 12)
    assert names == [name for name in ("+x", "-x", "+y", "-y", "+z", "-z") for _ in range(2)]
    assert axis is not None
    assert axis[2].tolist() == [-1, 0, 0]
    assert axis[9].tolist() == [0, 0, 1]
    assert rotation_task(parse_task("rotate axis=-y", fields), 2)[1].tolist() == [[0, -1, 0]] * 2  # type: ignore[union-attr]
    _, axis, names = rotation_task(parse_task("rotate axis=3,0,4", fields), 1)
    assert names == ["3,0,4"]
    torch.testing.assert_close(axis, torch.tensor([[0.6, 0.0, 0.8]]))
    with pytest.raises(EbmtrajError, match="not a multiple of 6"):
        rotation_task(parse_task("rotate axis=all", fields), 8)


def test_commands(hand_store: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    run = tmp_path / "run"
    words = ["train", "plan", "--data", hand_store, *TINY, "--json"]
    code, out, err = call(capfd, *words, "--run", run)
    assert code == 0, err
    assert json.loads(out)["steps"] == 30
    best = load_tensors(run / "checkpoints" / "best.safetensors")[1]

    task = "rotate axis=all + smooth + keep-straight finger=ring"
    carry_out = ["plan", run, "--task", task, "--episodes", 6, "--steps", 3, "--json"]
    code, out, err = call(capfd, *carry_out)
    assert code == 0, err
    result = json.loads(out)
    assert set(result) >= {"progress_rad_per_100", "progress_se", "drop_rate", "ms_per_step", "per_axis"}
    assert list(result["per_axis"]) == ["+x", "-x", "+y", "-y", "+z", "-z"]
    assert result["progress_rad_per_100"] == pytest.approx(np.mean(list(result["per_axis"].values())))
    assert 0 <= result["kept"]["keep-straight"] <= 1
    (written,) = json.loads((run / "results.json").read_text())["plans"]
    assert {key: written[key] for key in result} == result
    again = json.loads(call(capfd, *carry_out)[1])
    assert {**again, "ms_per_step": 0} == {**result, "ms_per_step": 0}
    assert len(json.loads((run / "results.json").read_text())["plans"]) == 2
    assert "exists" in call(capfd, "plan", run, "--task", "smooth", "--out", run / "results.json")[2]

    for change, said in (
        (["--task", "rotate axis=w"], "unknown axis 'w'"),
        (["--task", "rotat"], "did you mean rotate?"),
        (["--task", "smooth weight=x"], "weight"),
        (["--task", "smooth", "--set", "candidates=0"], "candidates"),
        (["--task", "smooth", "--set", "guide=1"], "guid"),
    ):
        code, out, err = call(capfd, "plan", run, *change)
        assert (code, out, err.count("\n")) == (2, "", 1), err
        assert said in err
    assert "does not exist" in call(capfd, "plan", tmp_path / "none", "--task", "smooth")[2]
    assert "exists" in call(capfd, *words, "--run", run)[2]
    assert call(capfd, *words, "--run", run, "--resume")[0] == 0  # finished already: the same bits
    resumed = load_tensors(run / "checkpoints" / "best.safetensors")[1]
    assert all(torch.equal(resumed[name], value) for name, value in best.items())
    changed = call(capfd, *words, "--run", run, "--resume", "--set", "network.members=3")
    assert changed[0] == 2
    assert "network.members" in changed[2]


def test_a_transition_model_does_not_plan(hand_store: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    small = ["--set", "training.steps=4", "--set", "training.batch=8", "--set", "network.width=8", "--device", "cpu"]
    assert call(capfd, "train", "transition", "--data", hand_store, "--run", tmp_path / "r", *small, "--json")[0] == 0
    code, _, err = call(capfd, "plan", tmp_path / "r", "--task", "smooth")
    assert code == 2
    assert "does not plan" in err
