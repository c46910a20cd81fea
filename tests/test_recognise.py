"""Which energies are plain networks, and that their written-out gradients are autograd's."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.parametrizations import spectral_norm

from ebmtraj.samplers import analytic
from ebmtraj.samplers.backends import choose, gradient_of, value_and_gradient_of
from ebmtraj.samplers.langevin import LangevinConfig, langevin

torch.set_num_threads(1)
X = torch.randn(5, 4, generator=torch.Generator().manual_seed(0))


class Written(nn.Module):
    """A user's energy: layers, and a formula over them."""

    def __init__(self, formula: Callable[[Any, Tensor], Tensor], *activations: nn.Module, bias: bool = True) -> None:
        super().__init__()
        torch.manual_seed(0)
        sizes = [4, *[8] * len(activations), 1]
        layers: list[nn.Module] = []
        for i, activation in enumerate(activations):
            layers += [nn.Linear(sizes[i], sizes[i + 1], bias=bias), activation]
        self.net = nn.Sequential(*layers, nn.Linear(8, 1, bias=bias))
        self.formula, self.factor = formula, 3.0

    def forward(self, x: Tensor, context: None = None) -> Tensor:
        return self.formula(self, x)


def net(e: Any, x: Tensor) -> Tensor:
    return e.net(x).squeeze(-1)


def parts(e: Any, x: Tensor) -> Tensor:
    h = F.silu(e.net[0](x))
    return e.net[-1](torch.tanh(e.net[2](h)))[:, 0]


PLAIN: dict[str, Written] = {
    "relu": Written(net, nn.ReLU(), nn.ReLU()),
    "leaky": Written(net, nn.LeakyReLU(0.2), nn.SiLU()),
    "gelu": Written(net, nn.GELU(), nn.GELU("tanh")),
    "tanh": Written(net, nn.Tanh(), nn.Tanh(), nn.Tanh()),
    "sigmoid": Written(net, nn.Sigmoid(), nn.SiLU()),
    "softplus": Written(net, nn.Softplus(), nn.Softplus(beta=2.0)),
    "one layer": Written(net, nn.SiLU()),
    "no bias": Written(net, nn.SiLU(), nn.Tanh(), bias=False),
    "dropout": Written(net, nn.Sequential(nn.Dropout(0.5), nn.SiLU()), nn.Identity()),
    "a bowl": Written(lambda e, x: 0.5 * x.square().sum(-1) + net(e, x), nn.SiLU(), nn.SiLU()),
    "a valley": Written(lambda e, x: 1.0 - net(e, x) / 2 + e.factor * (x**2).sum(dim=1), nn.SiLU(), nn.SiLU()),
    "products": Written(lambda e, x: -(e.factor * e.net(x).flatten() - (2 * (x * x)).sum(-1)), nn.SiLU(), nn.SiLU()),
    "functions": Written(parts, nn.SiLU(), nn.SiLU()),
    "view": Written(lambda e, x: e.net(x).view(-1) - 0.1 * torch.square(x).sum(1), nn.SiLU(), nn.SiLU()),
}
PLAIN["dropout"].net = nn.Sequential(nn.Linear(4, 8), nn.Dropout(0.5), nn.SiLU(), nn.Identity(), nn.Linear(8, 1))
PLAIN["spectral norm"] = Written(net, nn.SiLU(), nn.SiLU())
for layer in (0, 2, 4):
    spectral_norm(PLAIN["spectral norm"].net[layer])
OTHER: dict[str, Written] = {
    "two networks": Written(lambda e, x: net(e, x) + net(e, 2 * x), nn.SiLU(), nn.SiLU()),
    "twice": Written(lambda e, x: net(e, x) + net(e, x), nn.SiLU(), nn.SiLU()),
    "a square": Written(lambda e, x: net(e, x).square(), nn.SiLU(), nn.SiLU()),
    "a skip": Written(lambda e, x: e.net[-1](F.silu(e.net[0](x)) + x.repeat(1, 2)).squeeze(-1), nn.SiLU()),
    "a branch": Written(lambda e, x: net(e, x) if x.sum() > 0 else net(e, -x), nn.SiLU(), nn.SiLU()),
    "a norm": Written(net, nn.LayerNorm(8), nn.SiLU()),
    "an argument": Written(lambda e, x: e.net[-1](F.softplus(e.net[0](x), beta=3.0)).squeeze(-1), nn.SiLU()),
    "of another input": Written(lambda e, x: net(e, x + 1), nn.SiLU(), nn.SiLU()),
    "a fourth power": Written(lambda e, x: net(e, x) + (x**4).sum(-1), nn.SiLU(), nn.SiLU()),
    "a bowl alone": Written(lambda e, x: 0.5 * x.square().sum(-1), nn.SiLU()),
    "a learnt factor": Written(lambda e, x: e.net[0].bias[0] * net(e, x), nn.SiLU(), nn.SiLU()),
}


@pytest.mark.parametrize("name", PLAIN)
@pytest.mark.parametrize("rows", [1, 5, 150])
def test_a_plain_network_is_known_and_its_gradient_right(name: str, rows: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(analytic, "BLOCK", 1)  # the least: blocks of 64 rows
    energy = PLAIN[name].eval()
    x = torch.randn(rows, 4, generator=torch.Generator().manual_seed(1))
    assert choose(energy, "auto", x, None).way == "plain"
    value, slope = value_and_gradient_of(energy)(x, None)
    expected_value, expected = value_and_gradient_of(energy, "autograd")(x, None)
    torch.testing.assert_close(value, expected_value, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(slope, expected, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(gradient_of(energy)(x, None), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", ["a valley", "tanh", "no bias"])
def test_a_chain_moves_by_it(name: str) -> None:
    config = LangevinConfig(steps=20, step_size=0.05)
    for settings in ({}, {"clip": 0.5}, {"scale": (0.5, 1.0, 2.0, 1.0)}, {"noise": 0.1, "record": True}):
        x, y = (
            langevin(
                PLAIN[name],
                X,
                dataclasses.replace(config, backend=backend, **settings),
                generator=torch.Generator().manual_seed(0),
            )[0]
            for backend in ("analytic", "autograd")
        )
        torch.testing.assert_close(x, y, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", OTHER)
def test_what_is_not_one_is_left_to_autograd(name: str) -> None:
    energy = OTHER[name].eval()
    assert choose(energy, "auto", X, None).way == "autograd"
    assert gradient_of(energy)(X, None).equal(gradient_of(energy, "autograd")(X, None))


def test_what_changes_is_seen() -> None:
    """Weights by every chain, and what the code holds as numbers, too."""
    energy = Written(lambda e, x: e.factor * net(e, x), nn.SiLU(), nn.SiLU()).eval()

    def both() -> tuple[Tensor, Tensor]:
        x, y = (
            langevin(energy, X, LangevinConfig(steps=5, backend=b), generator=torch.Generator().manual_seed(0))[0]
            for b in ("analytic", "autograd")
        )
        return x, y

    torch.testing.assert_close(*both())
    first = both()[0]
    with torch.no_grad():
        energy.net[0].weight.mul_(2)
    torch.testing.assert_close(*both())
    energy.factor = 20.0
    torch.testing.assert_close(*both())
    assert not torch.allclose(first, both()[0], atol=1e-3)
    energy.net[3] = nn.Tanh()  # another network altogether
    torch.testing.assert_close(*both())
    kept = gradient_of(energy)
    a = kept(X, None)
    b = a.clone()
    kept(2 * X, None)
    assert a.equal(b)  # what was given is the caller's own
