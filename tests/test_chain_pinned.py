"""The chain that published results were made with stays the same to the bit for the same generator."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from ebmtraj.energies.transition import PairEnergy, ResidualEnergy, TiltedPairEnergy
from ebmtraj.samplers import analytic
from ebmtraj.samplers.anneal import Ladder, predict
from ebmtraj.samplers.langevin import LangevinConfig, langevin

torch.set_num_threads(1)


def reference(
    gradient: Callable[..., Tensor],
    x: Tensor,
    config: LangevinConfig,
    context: Any,
    settle: Callable[[Tensor], Tensor],
    mask: Tensor | None,
    noise: torch.Generator,
) -> Tensor:
    """The chain written out, operation by operation, as it was when the results in docs/ were made."""
    scale = torch.ones((), dtype=x.dtype) if config.scale is None else torch.tensor(config.scale, dtype=x.dtype)

    def slope(x: Tensor, level: Tensor | None) -> Tensor:
        g = gradient(x, context) if level is None else gradient(x, context, level)
        g = g if mask is None else torch.where(mask.bool(), g, 0.0)
        return g if config.clip is None else g.clamp(-config.clip, config.clip)

    def step(x: Tensor, level: Tensor | None, growth: Tensor | float) -> Tensor:
        g = slope(x, level)
        epsilon = torch.empty_like(x).normal_(generator=noise)
        if config.noise is None:
            size = config.step_size * growth
            return settle(x - 0.5 * size * scale**2 * g + (size * config.temperature) ** 0.5 * scale * epsilon)
        return settle(x - config.step_size * growth * scale**2 * g + config.noise * scale * epsilon)

    x = settle(x)
    if config.ladder is None:
        for _ in range(config.steps):
            x = step(x, None, 1.0)
        return x
    sigmas = config.ladder.sigmas()
    for k, level in enumerate(sigmas):
        if k > 0 and config.ladder.predictor != "none":
            x = settle(predict(slope, x, sigmas[k - 1], level, config.ladder.predictor))
        for _ in range(config.steps):
            x = step(x, level, level**2)
    return x


PLAIN = LangevinConfig(steps=25, step_size=0.05)
PLAINS = {
    "proper": PLAIN,
    "tempered": dataclasses.replace(PLAIN, temperature=0.3),
    "relaxed": dataclasses.replace(PLAIN, noise=0.005, step_size=1.0),
    "clipped": dataclasses.replace(PLAIN, clip=0.01),
    "scaled": dataclasses.replace(PLAIN, scale=(0.2, 1.0, 3.0, 0.7, 1.1, 2.0)),
}
LADDERS = {
    "heun": LangevinConfig(steps=0, ladder=Ladder(levels=8)),
    "heun, corrected": LangevinConfig(steps=3, step_size=0.2, ladder=Ladder(levels=5)),
    "euler": LangevinConfig(steps=1, step_size=0.2, ladder=Ladder(levels=5, predictor="euler")),
    "corrector": LangevinConfig(steps=3, step_size=0.2, ladder=Ladder(levels=5, predictor="none")),
    "midpoint": LangevinConfig(steps=1, step_size=0.2, ladder=Ladder(levels=4, spacing="angle", predictor="midpoint")),
}


def slope_of(energy: nn.Module) -> Callable[..., Tensor]:
    """The closed form where there is one, else autograd."""

    def autograd(x: Tensor, *conditions: Any) -> Tensor:
        with torch.enable_grad():
            x = x.detach().requires_grad_(True)
            return torch.autograd.grad(energy(x, *conditions).sum(), x)[0]

    return getattr(energy, "gradient", autograd)


def energies() -> dict[str, tuple[nn.Module, Any]]:
    torch.manual_seed(0)
    residual = ResidualEnergy(6, 3, width=32, depth=2)
    nn.init.normal_(residual.output.weight, std=0.3)
    tilted = TiltedPairEnergy(3, 6, prior=1.0, width=32, depth=3, spectral=False, scale=2.0)
    with torch.no_grad():
        return {
            "residual": (residual, residual.prepare(torch.randn(9, 3))),
            "pair": (PairEnergy(6, width=32, spectral=False), None),
            "tilted": (tilted, tilted.prepare(torch.randn(9, 3))),
        }


CASES = [("residual", name, True) for name in LADDERS]
CASES += [(kind, name, False) for name in PLAINS for kind in ("pair", "tilted")]


@pytest.mark.parametrize("held", [False, True], ids=["free", "masked and clamped"])
@pytest.mark.parametrize(("kind", "name", "laddered"), CASES, ids=[f"{kind} {name}" for kind, name, _ in CASES])
def test_the_chain_is_the_same_to_the_bit(kind: str, name: str, laddered: bool, held: bool) -> None:
    config = (LADDERS if laddered else PLAINS)[name]
    energy, context = energies()[kind]
    if kind == "pair":  # whose gradient is otherwise written out, and added where the state lies
        config = dataclasses.replace(config, backend="autograd")
    elif kind == "residual":  # the chain is held to its bits given the same gradients; those in buffers are below
        energy.chain_gradient = None
    energy.requires_grad_(False)
    start = 2 * torch.randn(9, 6, generator=torch.Generator().manual_seed(1))
    mask = torch.tensor([True, False, True, True, False, True]) if held else None

    def clamp(x: Tensor) -> Tensor:
        return x.clamp(-1.5, 1.5)

    def settle(x: Tensor) -> Tensor:
        return x if mask is None else torch.where(mask, clamp(x), start)

    with torch.no_grad():
        noise = torch.Generator().manual_seed(2)
        expected = reference(slope_of(energy), start, config, context, settle, mask, noise)
    given = torch.Generator().manual_seed(2)
    for record in (False, True):
        given.manual_seed(2)
        x, _ = langevin(
            energy,
            start,
            dataclasses.replace(config, record=record),
            context=context,
            project=clamp if held else None,
            mask=mask,
            generator=given,
        )
        assert x.equal(expected)
        assert given.get_state().equal(noise.get_state())  # and what is drawn next from the same generator


@pytest.mark.parametrize("rows", [1, 9, 150])
@pytest.mark.parametrize("name", LADDERS)
def test_in_buffers_it_is_the_same_but_for_rounding(name: str, rows: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(analytic, "BLOCK", 1)  # the least: blocks of 64 rows
    energy, _ = energies()["residual"]
    with torch.no_grad():
        context = energy.prepare(torch.randn(rows, 3))
    start, found = 2 * torch.randn(rows, 6), []
    for buffers in (True, False):
        if not buffers:
            energy.chain_gradient = None
        noise = torch.Generator().manual_seed(2)
        x, _ = langevin(energy, start, LADDERS[name], context=context, generator=noise)
        found.append((x, noise.get_state()))
    (x, state), (expected, expected_state) = found
    assert state.equal(expected_state)
    torch.testing.assert_close(x, expected, rtol=1e-4, atol=1e-4)
    assert not torch.allclose(x, start, atol=0.1)


def test_buffers_hold_levels_one_by_one_and_for_all() -> None:
    energy, _ = energies()["residual"]
    with torch.no_grad():
        context, r = energy.prepare(torch.randn(9, 3)), torch.randn(9, 6)
        gradient = energy.chain_gradient(r, context)
        for level in (torch.tensor(0.1), torch.tensor(3.0), torch.tensor(0.1), torch.rand(9) + 0.1):
            torch.testing.assert_close(gradient(r, level), energy.gradient(r, context, level), rtol=1e-4, atol=1e-5)
