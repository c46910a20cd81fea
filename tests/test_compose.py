"""Composed energies against their formulas, grid integrals and samplers; expressions and their errors."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
from torch import Tensor

from ebmtraj.device import generator
from ebmtraj.energies.compose import And, Composed, Not, Or, Shifted, Term
from ebmtraj.energies.expression import Leaf, Node, build, leaves, numbers_of, parse
from ebmtraj.energies.image import ImageEnergy, MLPTilt
from ebmtraj.energies.image_base import UnitGaussian
from ebmtraj.energies.plane import PlaneMixture, grid_density, plane_energy, sampled_density, total_variation
from ebmtraj.errors import EbmtrajError
from ebmtraj.fields import Field
from ebmtraj.samplers.anneal import Ladder
from ebmtraj.samplers.langevin import LangevinConfig
from ebmtraj.samplers.mcmc import HMCConfig, MALAConfig
from ebmtraj.samplers.registry import SamplerConfig, sample
from ebmtraj.samplers.tempering import TemperingConfig
from ebmtraj.trajectories.costs import parse_task


def left() -> PlaneMixture:
    return plane_energy("gaussian", [-0.6, 0.2, 0.6])


def ring() -> PlaneMixture:
    return plane_energy("ring", [1.2, 0.3])


def quadratic(x: Tensor) -> Tensor:
    return (x - 0.5).square().sum(1)


COMPOSITIONS: dict[str, Composed] = {
    "and": left() & ring(),
    "or": left() | ring(),
    "not": left() & ~Term(ring()),
    "over": left() & (ring() - left()),
    "scaled": 2 * left() & ring() * 0.5,
    "tempered": (left() & ring()) / 2,
    "cost": left() & quadratic,
    "reflected": quadratic & (left() | ring()),
    "nested": (left() | ~ring()) & ~(ring() & left()) & (0.3 * left()),
    "shifted": Shifted(left(), -0.7) | Shifted(ring(), lambda level: 0.2 if level is None else 0.2 * level),
    "given": left().given(torch.zeros(1)) & ring(),
}


@pytest.mark.parametrize("name", COMPOSITIONS)
@pytest.mark.parametrize("level", [None, 0.7])
def test_gradients_are_those_of_the_energy(name: str, level: float | None) -> None:
    energy, x = COMPOSITIONS[name], torch.randn(7, 2, generator=generator(1)).requires_grad_(True)
    at = None if level is None else torch.tensor(level)
    value = energy(x, None, at)
    (wanted,) = torch.autograd.grad(value.sum(), x)
    with torch.no_grad():
        both = energy.value_and_gradient(x, None, at)
        torch.testing.assert_close(both[0], value)
        torch.testing.assert_close(both[1], wanted)
        torch.testing.assert_close(energy.gradient(x, None, at), wanted)


def test_operators_are_what_they_say() -> None:
    x = torch.randn(9, 2, generator=generator(2))
    a, b = left()(x), ring()(x)
    for energy, wanted in (
        (left() & ring(), a + b),
        (left() | ring(), -torch.log(torch.exp(-a) + torch.exp(-b))),
        (~left(), torch.log(1 + torch.exp(-a))),
        (left() - ring(), a - b),
        (3 * left(), 3 * a),
        (left() / 4, a / 4),
        (Not(left(), threshold=-1.0, sharpness=2.0), torch.log1p(torch.exp(2 * (-1 - a))) / 2),
        (And([left(), ring()], [0.2, 1.5]), 0.2 * a + 1.5 * b),
        (Or([left()]), a),
    ):
        torch.testing.assert_close(energy(x), wanted)


def test_a_negated_energy_is_bounded_where_its_opposite_is_not() -> None:
    far = torch.tensor([[50.0, 0.0]])
    assert (~left())(far).item() == pytest.approx(0, abs=1e-6)
    assert (-left()(far)).item() < -1000
    inside = (~left())(torch.tensor([[-0.6, 0.2]]))
    assert inside.item() == pytest.approx(torch.log1p(torch.exp(-left()(torch.tensor([[-0.6, 0.2]])))).item())


SAMPLERS: dict[str, SamplerConfig] = {
    "langevin": LangevinConfig(steps=400, step_size=0.02),
    "annealed": LangevinConfig(steps=20, step_size=0.15, ladder=Ladder(levels=12, sigma_max=4.0, sigma_min=0.05)),
    "mala": MALAConfig(steps=200, step_size=0.1),
    "hmc": HMCConfig(steps=60, step_size=0.15, leapfrog=4),
    "tempering": TemperingConfig(steps=80, step_size=0.4, temperatures=(1.0, 3.0)),
}
FIRST = [("or", "annealed"), ("and", "langevin"), ("and", "mala"), ("not", "hmc"), ("or", "tempering"), ("not", "annealed")]
REST = [pair for pair in itertools.product(("and", "or", "not"), SAMPLERS) if pair not in FIRST]


@pytest.mark.parametrize(("name", "sampler"), [*FIRST, *(pytest.param(*pair, marks=pytest.mark.slow) for pair in REST)])
def test_samplers_draw_the_density_of_the_grid(name: str, sampler: str) -> None:
    energy, start = COMPOSITIONS[name], 1.5 * torch.randn(4000, 2, generator=generator(3))
    x, _ = sample(energy, start, SAMPLERS[sampler], generator=generator(4))
    wanted = grid_density(energy, 12)
    exact = torch.multinomial(wanted.flatten(), 4000, replacement=True, generator=generator(5))
    floor = total_variation(torch.bincount(exact, minlength=144).double().view(12, 12) / 4000, wanted)
    assert total_variation(sampled_density(x, 12), wanted) < 2 * floor + 0.03


def test_a_context_of_its_own_stands_in_place_of_the_samplers() -> None:
    def energy(x: Tensor, context: Any) -> Tensor:
        return (x - context.reshape(-1, 1)).square().sum(1)

    x = torch.zeros(3, 2)
    both = Term(energy, context=torch.tensor([2.0])) & Term(energy)
    torch.testing.assert_close(both(x, torch.tensor(1.0)), torch.full((3,), 8.0 + 2.0))


def test_a_task_cost_of_paths_is_composed_like_any_energy() -> None:
    paths = torch.randn(5, 6, 3, generator=generator(6))

    def smooth(x: Tensor) -> Tensor:
        return x.diff(dim=1).square().sum((1, 2))

    def goal(x: Tensor) -> Tensor:
        return (x[:, -1] - 1).square().sum(1)

    energy = Term(smooth, event=(6, 3)) & 2 * Term(goal)
    torch.testing.assert_close(energy(paths), smooth(paths) + 2 * goal(paths))
    with pytest.raises(EbmtrajError, match=r"events of shape \(6, 2\); its parts take \(6, 3\)"):
        energy(torch.zeros(5, 6, 2))


def test_a_task_and_a_learned_prior_of_paths_are_sampled_together() -> None:
    """A random walk of 5 steps that is to end at a goal: the end is Gaussian, with mean and spread known."""
    fields = (Field("position", 2, "position", "m", low=(-9.0, -9.0), high=(9.0, 9.0)),)
    task = parse_task("reach goal=1,-0.5 when=end scale=0.5", fields)

    def walk(x: Tensor) -> Tensor:
        return x.diff(dim=1).square().sum((1, 2)) / (2 * 0.1)

    energy = Term(walk, event=(6, 2)) & 2 * task.energy()
    start, free = torch.zeros(4000, 6, 2), torch.ones(6, 2)
    free[0] = 0
    x, _ = sample(
        energy, start, HMCConfig(steps=80, step_size=0.15, leapfrog=10, jitter=0.5), mask=free, generator=generator(8)
    )
    prior, cost = 1 / (5 * 0.1), 2 * 2 / 0.5**2  # precisions of the end
    wanted = torch.tensor([1.0, -0.5]) * cost / (prior + cost)
    torch.testing.assert_close(x[:, -1].mean(0), wanted, atol=0.02, rtol=0)
    torch.testing.assert_close(x[:, -1].var(0), torch.full((2,), 1 / (prior + cost)), atol=0.006, rtol=0)
    assert x[:, 0].eq(0).all()


def test_energies_over_different_shapes_are_refused_in_one_line() -> None:
    other = Term(quadratic, event=(3,))
    for make in (lambda: left() & other, lambda: left() | other, lambda: left() - other, lambda: And([other, left()])):
        with pytest.raises(EbmtrajError, match="over different shapes") as caught:
            make()
        assert "\n" not in str(caught.value)
    with pytest.raises(EbmtrajError, match="is no energy"):
        left() & 3
    for weight in (-1, "2", float("nan")):
        with pytest.raises(EbmtrajError, match="weight"):
            left() * weight  # type: ignore[operator]


def test_conditional_image_energies_are_composed() -> None:
    torch.manual_seed(0)
    net = ImageEnergy(UnitGaussian(), MLPTilt((1, 4, 4), 3, width=16))
    with torch.no_grad():
        net.tilt.output.weight.normal_()
    x, level = torch.randn(6, 1, 4, 4, generator=generator(7)), torch.tensor(0.4)
    one, two = torch.tensor([1]), torch.arange(6) % 3
    both = net.given(one) & net.given(two)
    torch.testing.assert_close(both(x, None, level), net(x, one.expand(6), level) + net(x, two, level))
    wanted = net.gradient(x, one.expand(6), level) + net.gradient(x, two, level)
    torch.testing.assert_close(both.gradient(x, None, level), wanted)


def test_an_expression_is_read_by_precedence() -> None:
    tree = parse("a:1 & ~b:x,y | 2 * c / 4 & (d | e:0.5)")
    assert isinstance(tree, Node)
    assert tree.operator == "|"
    first, second = tree.parts
    assert isinstance(first, Node)
    assert [leaf.name for leaf in leaves(first)] == ["a", "b"]
    assert [leaf.value for leaf in leaves(tree)] == ["1", "x,y", "", "", "0.5"]
    assert isinstance(second, Node)
    assert second.operator == "&"
    assert isinstance(second.parts[0], Node)
    assert second.parts[0].operator == "*"
    values = {"a": 0.3, "b": -0.4, "c": 0.8, "d": 1.1, "e": -0.2}

    def energy(leaf: Leaf) -> Composed:
        return Term(lambda x: x[:, 0] * 0 + values[leaf.name])

    found = build(tree, energy)(torch.zeros(1, 1)).item()

    def soft(*each: float) -> float:
        return -torch.logsumexp(-torch.tensor(each), 0).item()

    left_side = values["a"] + torch.log1p(torch.exp(torch.tensor(0.4))).item()
    right_side = 2 * values["c"] / 4 + soft(values["d"], values["e"])
    assert found == pytest.approx(soft(left_side, right_side), abs=1e-5)


@pytest.mark.parametrize(
    ("text", "column", "says"),
    [
        ("", None, "empty"),
        ("a:1 &", 6, "missing at the end"),
        ("a:1 b:2", 5, "'b' is not expected"),
        ("(a:1 | b:2", 11, "opened in column 1"),
        ("a:1)", 4, "no bracket to close"),
        ("a: & b:1", 3, "value is missing"),
        ("a:1 && b:1", 6, "'&' is not expected"),
        ("a:1 / 0", 6, "temperature above 0"),
        ("a:1 & $b", 7, "'\\$' is not expected"),
        ("~", 2, "missing at the end"),
    ],
)
def test_a_typo_is_named_by_its_column(text: str, column: int | None, says: str) -> None:
    with pytest.raises(EbmtrajError, match=says) as caught:
        parse(text)
    assert "\n" not in str(caught.value)
    if column is not None:
        assert f"column {column}:" in str(caught.value)


def test_numbers_of_a_leaf() -> None:
    leaf = leaves(parse("gaussian:1,2.5,.5"))[0]
    assert numbers_of(leaf, ("x", "y", "std")) == [1, 2.5, 0.5]
    with pytest.raises(EbmtrajError, match="column 10: gaussian takes 2 numbers: gaussian:x,y"):
        numbers_of(leaf, ("x", "y"))
    with pytest.raises(EbmtrajError, match="std = 0 must be above 0"):
        plane_energy("gaussian", [0.0, 0.0, 0.0])
