"""Objective icd: contrastive divergence and the term that it leaves out."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from ebmtraj.datasets.store import Store
from ebmtraj.datasets.windows import Transitions
from ebmtraj.errors import EbmtrajError
from ebmtraj.training.objectives import held_energy, last_step, nearest_neighbour_entropy
from ebmtraj.trajectories.improved import ImprovedConfig, ImprovedPairModel
from ebmtraj.trajectories.transition import PairConfig, PairModel

torch.set_num_threads(1)
SMALL: dict[str, Any] = {"width": 16, "spectral": False, "scale": 3.0}


def trained(store: Path, cls: type[PairModel], config: PairConfig) -> tuple[PairModel, Tensor, dict[str, Tensor]]:
    """A model, the gradient of its loss on one batch, and its logs; two steps, so that the buffer is in use."""
    source = Store.open(store)
    data = Transitions.load(source, "train")
    torch.manual_seed(0)
    model = cls(source.state_fields, source.action_fields, actions=False, config=config)
    model.prepare(data)
    model.train()
    noise = torch.Generator().manual_seed(1)
    for _ in range(2):
        loss, logs = model._loss(data.sample(32, noise), noise)
    model.zero_grad()
    loss.backward()
    return model, torch.cat([p.grad.flatten() for p in model.energy.parameters() if p.grad is not None]), logs


def test_without_the_term_it_is_contrastive_divergence(hand_store: Path) -> None:
    _, plain, logs = trained(hand_store, PairModel, PairConfig(**SMALL))
    _, same, again = trained(hand_store, ImprovedPairModel, ImprovedConfig(**SMALL, kl=0.0))
    torch.testing.assert_close(same, plain, rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(again["gap"], logs["gap"], rtol=1e-3, atol=1e-4)
    _, other, told = trained(hand_store, ImprovedPairModel, ImprovedConfig(**SMALL, kl=1.0))
    assert (other - plain).norm() > 0.01 * plain.norm()
    assert {"kl", "entropy"} <= set(told) - set(again)


def test_the_term_s_gradient_goes_through_the_last_step_alone(hand_store: Path) -> None:
    """As a difference quotient of the negatives' energy, held, less their entropy along a move of the weights."""
    model, *_ = trained(hand_store, ImprovedPairModel, ImprovedConfig(**SMALL))
    model = model.double()
    first, second = (torch.randn(16, n, dtype=torch.float64) for n in (model.context_size, model.delta_size))
    bank = torch.randn(50, model.context_size + model.delta_size, dtype=torch.float64)
    weight = model.energy.net[2].weight
    held = {name: p.detach().clone() for name, p in model.energy.named_parameters()}

    def term(frozen: bool) -> Tensor:
        noise = torch.Generator().manual_seed(0)
        context = model.energy.prepare(first)
        moved = last_step(model.energy, second, model.config.sampler, context=context, generator=noise)
        if frozen:  # the energy as it was before the weights moved
            now = {name: p.detach().clone() for name, p in model.energy.named_parameters()}
            model.energy.load_state_dict(held)
            fooled = model.energy(moved.detach(), model.energy.prepare(first)).mean()
            model.energy.load_state_dict(now)
        else:
            fooled = held_energy(model.energy, moved, context.detach()).mean()
        return fooled - nearest_neighbour_entropy(torch.cat((first, moved), 1), bank)

    slope = torch.autograd.grad(term(False), weight)[0]
    direction, size = torch.randn_like(weight), 1e-5
    with torch.no_grad():
        ends = []
        for sign in (1, -1):
            weight += sign * size * direction
            ends.append(term(True))
            weight -= sign * size * direction
    torch.testing.assert_close((slope * direction).sum(), (ends[0] - ends[1]) / (2 * size), rtol=1e-4, atol=1e-8)
    assert slope.abs().max() > 0


@pytest.mark.parametrize("settings", [{"kl": -1.0}, {"entropy": -0.1}, {"bank": 0}, {"negatives": "pair"}])
def test_settings_that_it_can_t_have(settings: dict[str, Any]) -> None:
    with pytest.raises(EbmtrajError, match=f"network: .*{next(iter(settings))} = "):
        ImprovedConfig(**settings)
