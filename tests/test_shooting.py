"""CEM and MPPI in learned dynamics: against known optima, known dynamics, and the data's own rollouts."""

from __future__ import annotations

import dataclasses
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from ebmtraj.datasets.windows import Past, Transitions
from ebmtraj.errors import EbmtrajError
from ebmtraj.fields import Field
from ebmtraj.trajectories.controllers.behaviour import Behaviour
from ebmtraj.trajectories.controllers.imagination import Dynamics, imagine
from ebmtraj.trajectories.controllers.search import best, coloured_noise, elite_moments, path_integral
from ebmtraj.trajectories.controllers.shooting import Shooting, ShootingConfig
from ebmtraj.trajectories.costs import OwnTerm, TaskCost, parse_task
from ebmtraj.trajectories.model import TransitionModel
from ebmtraj.trajectories.registry import make_model
from ebmtraj.trajectories.rollout import rollout
from ebmtraj.trajectories.terms.term import Path as Future
from ebmtraj.trajectories.window import WindowConfig, WindowModel

torch.set_num_threads(1)
STATE = (Field("place", 2, "position", "m", entries=("x", "v")),)
PUSH = (Field("push", 1, low=(-3.0,), high=(3.0,)),)
ENV: Any = SimpleNamespace(state_fields=STATE, action_fields=PUSH, env_id="cart")


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@dataclasses.dataclass(frozen=True)
class NoConfig:
    """Nothing to set."""


class Cart(TransitionModel):
    """Known dynamics in a model's place: x' = x + v / 2, v' = v + u / 2, for each of two members alike."""

    name, Config, members = "cart", NoConfig, 2

    def __init__(self) -> None:
        super().__init__(STATE, PUSH, actions=True, config=NoConfig())

    def stages(self) -> list[Any]:
        return []

    def sample_next(self, state: Tensor, action: Tensor | None, generator: Any, past: Past | None = None) -> Tensor:
        raise NotImplementedError

    def expected_move(self, state: Tensor, seen: Tensor) -> Tensor:
        return torch.stack((0.5 * seen[..., 1], 0.5 * seen[..., 2]), dim=-1)


def quadratic(path: Future, fields: Any) -> Tensor:
    """Be at rest at x = 0 with little push."""
    assert path.actions is not None
    weights = torch.tensor([1.0, 0.3])
    return (path.states.square() * weights).sum((1, 2)) + 0.2 * path.actions.square().sum((1, 2))


def lq_task() -> TaskCost:
    task = parse_task("reach goal=0,0", STATE)
    return dataclasses.replace(task, parts=(OwnTerm(STATE, function=quadratic, target="lq"),))


def optimum(start: Tensor, steps: int) -> tuple[float, float, Tensor]:
    """The least cost from a start `(2,)`, that of no push at all, and the actions of the least."""

    def cost(u: Tensor) -> Tensor:
        state, states = start, []
        for k in range(steps):
            state = state + 0.5 * torch.stack((state[1], u[k]))
            states.append(state)
        return quadratic(Future(start[None], torch.stack(states)[None], torch.arange(steps), u[None, :, None]), None)[0]

    zero = torch.zeros(steps)
    slope = torch.autograd.functional.jacobian(cost, zero)
    curve = torch.autograd.functional.hessian(cost, zero)
    u = -torch.linalg.solve(curve, slope)
    return float(cost(u)), float(cost(zero)), u


@pytest.mark.parametrize(
    ("settings", "gap"),
    [
        ({"method": "cem", "candidates": 128, "elites": 16, "rounds": 15, "momentum": 0.3}, 0.01),
        ({"method": "mppi", "candidates": 64, "rounds": 20, "temperature": 0.1, "spread": 0.4}, 0.03),
    ],
)
def test_searches_find_the_optimum_of_a_linear_quadratic_problem(settings: dict[str, Any], gap: float) -> None:
    config = ShootingConfig(**{"horizon": 8, "judge": 1, "every": 1, "spread": 1.0, "smooth": 0.3, "least": 0.01} | settings)
    controller = Shooting(Cart(), config)
    start = torch.tensor([[1.0, 0.0], [-0.5, 1.0], [0.2, -0.4]])
    controller.begin(ENV, start, lq_task(), seeded(0))
    first = controller(start, None)
    assert first.cost is not None
    assert first.path is not None
    for i in range(3):
        least, still, u = optimum(start[i], 8)
        assert least - 1e-4 <= float(first.cost[i]) < least + gap * (still - least)
        assert abs(float(first.action[i, 0] - u[0])) < 0.35
    # carried out in receding horizon, it comes to rest where it should
    state, action = start, first.action
    for _ in range(8):
        state = state + 0.5 * torch.stack((state[:, 1], action[:, 0]), 1)
        action = controller(state, action).action
    assert float(state.abs().max()) < 0.15


def test_path_integral_is_the_tilted_mean_of_a_gaussian() -> None:
    """exp(-c / lambda) times N(m, 1) has mean (1 + Q / lambda)^-1 (m + Q a / lambda) for c = (u - a) Q (u - a) / 2."""
    u = torch.randn(2, 200_000, 1, 2, generator=seeded(0)) + 0.5
    root = torch.tensor([[1.0, 0.4], [0.0, 0.7]])
    q, a = root @ root.T, torch.tensor([1.0, -2.0])
    off = u[:, :, 0] - a
    cost = 0.5 * ((off @ q) * off).sum(-1)
    for temperature in (0.5, 2.0):
        lam = temperature * cost.std(dim=1, unbiased=False).mean()
        expected = torch.linalg.solve(torch.eye(2) + q / lam, 0.5 + q @ a / lam)
        torch.testing.assert_close(path_integral(u, cost, temperature)[:, 0], expected.expand(2, 2), atol=0.03, rtol=0.0)
    cold = path_integral(u, 1e3 * cost, 1e-7)  # nothing but the best is left, in whatever unit
    torch.testing.assert_close(cold, best(u, cost)[0][:, 0])


def test_elites_and_noise() -> None:
    actions = torch.arange(6.0).view(1, 6, 1, 1)
    cost = torch.tensor([[3.0, 1.0, 9.0, 0.0, 7.0, 5.0]])
    elites, least = best(actions, cost, 3)
    assert elites.flatten().tolist() == [3, 1, 0]
    assert least.tolist() == [[0, 1, 3]]
    mean, std = elite_moments(elites, torch.full((1, 1, 1), 10.0), torch.full((1, 1, 1), 2.0), 0.25, 0.1)
    assert float(mean) == pytest.approx(0.25 * 10 + 0.75 * 4 / 3)
    assert float(std) == pytest.approx(0.25 * 2 + 0.75 * float(elites.std(unbiased=False)))
    assert float(elite_moments(elites[:, :1], mean, 0 * std, 0.0, 0.1)[1]) == pytest.approx(0.1)
    noise = coloured_noise((4000, 5, 2), 0.8, seeded(0), torch.device("cpu"))
    torch.testing.assert_close(noise.std(0), torch.ones(5, 2), atol=0.05, rtol=0.0)
    torch.testing.assert_close((noise[:, 1:] * noise[:, :-1]).mean((0, 2)), torch.full((4,), 0.8), atol=0.05, rtol=0.0)


def carts(history: int) -> Transitions:
    """Twenty episodes of the cart under random pushes."""
    action = torch.rand(20, 12, 1, generator=seeded(1)) * 2 - 1
    state = [torch.randn(20, 2, generator=seeded(2))]
    for t in range(12):
        state.append(state[-1] + 0.5 * torch.stack((state[-1][:, 1], action[:, t, 0]), 1))
    rows = torch.arange(20).unsqueeze(1) * 13 + torch.arange(12)
    firsts = (torch.arange(20) * 13).repeat_interleave(12)
    flat = torch.arange(240)
    return Transitions(
        torch.stack(state, 1).flatten(0, 1), action.flatten(0, 1), rows.flatten(), flat, firsts=firsts, history=history
    )


def fitted(name: str, history: int = 2, **network: Any) -> TransitionModel:
    network = {"history": history, "previous_control": history > 0, "width": 16, "depth": 2} | network
    model = make_model(name, STATE, PUSH, actions=True, network=network)
    model.prepare(carts(history))
    return model.eval().requires_grad_(False)


@pytest.mark.parametrize(
    ("history", "network"), [(0, {}), (0, {"space": "delta"}), (2, {"space": "delta", "matrices": True})]
)
def test_imagined_futures_are_the_models_own_rollouts(history: int, network: dict[str, Any]) -> None:
    model = fitted("fc", history, **network)
    data = carts(2)
    batch = data.at(torch.arange(5, 240, 12))
    assert batch.past is not None
    actions = torch.rand(20, 6, 1, generator=seeded(3)) * 2 - 1
    truth = rollout(model, batch.state, 6, actions=actions, past=batch.past, generator=seeded(0))
    dynamics = Dynamics(model)
    now = dynamics.begin(batch.state, batch.past)
    taken, states, times = imagine(dynamics, now, lambda t, s: actions[:, t], 6, judge=2)
    torch.testing.assert_close(taken, actions)
    assert times.tolist() == [2, 4, 6]
    torch.testing.assert_close(states[0], truth[:, 2::2], atol=1e-4, rtol=1e-4)


def test_each_member_imagines_a_future_of_its_own() -> None:
    model = fitted("ensemble", members=3)
    batch = carts(2).at(torch.arange(5, 240, 12))
    assert batch.past is not None
    assert batch.action is not None
    dynamics = Dynamics(model)
    now = dynamics.begin(batch.state, batch.past)
    after = dynamics.step(dynamics.step(now, batch.action), batch.action).state
    for k in range(3):
        one = fitted("ensemble", members=3)
        net: Any = one.net
        for layer in net.layers:  # every member made the k-th
            layer.weight.copy_(layer.weight[k].expand_as(layer.weight).clone())
            layer.bias.copy_(layer.bias[k].expand_as(layer.bias).clone())
        alone = Dynamics(one)
        alike = alone.step(alone.step(now, batch.action), batch.action).state
        torch.testing.assert_close(after[k], alike[0])
    assert not torch.allclose(after[0], after[1])
    few = Dynamics(model, 2)
    now = few.begin(batch.state, batch.past)
    torch.testing.assert_close(few.step(few.step(now, batch.action), batch.action).state, after[:2])
    with pytest.raises(EbmtrajError, match="members = 4; the model has 3"):
        Dynamics(model, 4)
    gaussian = make_model("gaussian", STATE, PUSH, actions=True, network={})
    with pytest.raises(EbmtrajError, match="imagine futures with fc or ensemble"):
        Dynamics(gaussian)


def window_model() -> WindowModel:
    config = WindowConfig(actions=4, horizons=(2, 4), width=16)
    return WindowModel(STATE, PUSH, prior="energy", config=config, environment={}).eval().requires_grad_(False)


@pytest.mark.parametrize("energy", [True, False])
def test_behaviour_is_drawn_from_the_prior_and_mutations_stay_near(energy: bool) -> None:
    torch.manual_seed(0)
    model = window_model()
    model.action_low.fill_(-torch.inf)
    model.action_high.fill_(torch.inf)
    model.tilted.tilt.output.weight.zero_()  # the energy adds nothing: draws must be the base's own
    state = torch.randn(1, 2).repeat(2000, 1)
    past = Past.unknown(state, 2, 1)
    prior = Behaviour(model, energy=energy, levels=20)
    base = model.situation(state[:1], past.rows(slice(1)).recent(1)).base
    drawn = prior.draw(state, past, seeded(0))
    assert drawn.shape == (2000, 4, 1)
    r = (model.normalised(drawn) - base.mean) / base.log_std.exp()
    torch.testing.assert_close(r.mean(0), torch.zeros(4), atol=0.09, rtol=0.0)
    torch.testing.assert_close(r.std(0), torch.ones(4), atol=0.1, rtol=0.0)
    near = drawn[:1].expand(2000, -1, -1)
    close = prior.draw(state, past, seeded(1), near, 0.01)
    torch.testing.assert_close(close, near, atol=0.08, rtol=0.0)
    far = prior.draw(state, past, seeded(1), near, 50.0)  # nothing of it is left
    far_r = (model.normalised(far) - base.mean) / base.log_std.exp()
    torch.testing.assert_close(far_r.mean(0), torch.zeros(4), atol=0.15, rtol=0.0)


class Asked:
    """A prior that pushes by the imagined speed, and notes what it is asked."""

    length, most = 4, 0.1

    def __init__(self) -> None:
        self.states: list[Tensor] = []
        self.pasts: list[Past] = []

    def draw(self, state: Tensor, past: Past, generator: Any, near: Tensor | None = None, renoise: float = 0.0) -> Tensor:
        self.states.append(state)
        self.pasts.append(past)
        return self.most * (1 + torch.arange(len(state))).view(-1, 1, 1).expand(-1, 4, 1)


def test_a_priors_windows_are_drawn_along_the_imagined_future() -> None:
    config = ShootingConfig(horizon=8, judge=1, every=2, rounds=1, candidates=6, elites=2, keep=1)
    controller = Shooting(Cart(), config, window_model())
    asked = Asked()
    controller.prior = asked  # type: ignore[assignment]
    start = torch.tensor([[0.0, 0.0]])
    controller.begin(ENV, start, parse_task("reach goal=9,0", STATE), seeded(0))
    first = controller(start, None)
    assert len(asked.states) == 2  # two windows of four steps
    push = 0.1 * (1 + torch.arange(6.0))
    torch.testing.assert_close(asked.states[1], torch.stack((0.25 * 6 * push, 4 * 0.5 * push), 1))  # where those push to
    assert asked.pasts[1].action is not None
    torch.testing.assert_close(asked.pasts[1].action[:, -1, 0], push)
    assert float(first.action) == pytest.approx(0.6)  # the goal is far: the hardest push is best
    controller(start, first.action)
    asked.states.clear()
    asked.most = -0.05  # nothing new is good, so what is kept of the last plan goes on
    third = controller(torch.tensor([[0.3, 0.3]]), first.action)
    assert torch.equal(asked.states[0], torch.tensor([[0.3, 0.3]]).repeat(6, 1))
    assert float(third.action) == pytest.approx(0.6)
    assert third.path is not None
    assert third.path.actions is not None
    torch.testing.assert_close(third.path.actions[0, :, 0], torch.tensor([0.6] * 6 + [-0.05] * 2))  # the prior ends it


def test_a_plan_goes_on_where_the_last_one_was_left() -> None:
    config = ShootingConfig(
        method="mppi", horizon=6, judge=1, every=2, rounds=1, candidates=4, elites=1, keep=0, spread=1e-6
    )
    controller = Shooting(Cart(), config)
    start = torch.zeros(1, 2)
    controller.begin(ENV, start, lq_task(), seeded(0))
    controller._mean = torch.linspace(0, 1, 6).view(1, 6, 1)
    taken = [controller(start, None).action]
    for _ in range(5):
        taken.append(controller(start, taken[-1]).action)
    torch.testing.assert_close(torch.cat(taken)[:, 0], torch.linspace(0, 1, 6), atol=1e-4, rtol=0.0)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"candidates": 4, "elites": 5}, "elites"),
        ({"keep": 9}, "keep"),
        ({"horizon": 3}, "horizon = 3"),
        ({"rounds": 0}, "rounds = 0"),
        ({"spread": 0.0}, "spread"),
        ({"pessimism": -1.0}, "pessimism"),
        ({"momentum": 1.0}, "momentum"),
    ],
)
def test_settings_that_make_no_search_are_named(settings: dict[str, Any], said: str) -> None:
    with pytest.raises(EbmtrajError, match=said):
        ShootingConfig(**settings)
