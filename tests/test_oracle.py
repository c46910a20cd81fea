"""MALA, HMC and their diagnostics against an independent implementation, blackjax (extra `oracle`)."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from ebmtraj.samplers.diagnostics import effective_sample_size, split_chains, split_rhat
from ebmtraj.samplers.kernel import State, hamiltonian_step

blackjax: Any = pytest.importorskip("blackjax", reason="needs the extra `oracle`")
jax: Any = pytest.importorskip("jax")
jax.config.update("jax_enable_x64", True)
pytestmark = pytest.mark.filterwarnings("ignore")  # of libraries that are not ours
CHAINS, SCALE = 2000, (0.6, 1.5)


def log_density(x: Any) -> Any:
    """Two Gaussians that overlap, in 2-D, and a bend."""
    np_ = jax.numpy
    bent = np_.array([x[0], x[1] + 0.3 * x[0] ** 2])
    near, far = -0.5 * np_.sum((bent + 1) ** 2), -0.5 * np_.sum((bent - 1) ** 2) / 0.36
    return np_.logaddexp(math.log(0.4) + near, math.log(0.6) + far)


def target(x: Tensor) -> State:
    with torch.enable_grad():
        x = x.detach().requires_grad_(True)
        bent = torch.stack((x[:, 0], x[:, 1] + 0.3 * x[:, 0] ** 2), dim=-1)
        near, far = -0.5 * (bent + 1).square().sum(-1), -0.5 * (bent - 1).square().sum(-1) / 0.36
        value = -torch.logaddexp(math.log(0.4) + near, math.log(0.6) + far)
        return State(x.detach(), value.detach(), torch.autograd.grad(value.sum(), x)[0])


def tensor(values: Any) -> Tensor:
    return torch.from_numpy(np.array(values, dtype=np.float64))


def starts() -> Any:
    return jax.random.normal(jax.random.key(0), (CHAINS, 2), dtype=jax.numpy.float64)


def test_a_hmc_proposal_and_its_acceptance_are_blackjax_s() -> None:
    size, steps = 0.6, 4
    scale = torch.tensor(SCALE, dtype=torch.float64)
    kernel = blackjax.hmc(log_density, size, jax.numpy.array(SCALE) ** 2, steps)
    keys = jax.random.split(jax.random.key(1), CHAINS)
    new, info = jax.vmap(kernel.step)(keys, jax.vmap(kernel.init)(starts()))
    always = torch.full((CHAINS,), -math.inf, dtype=torch.float64)
    momentum = tensor(info.momentum) * scale  # theirs has the mass for its variance
    ours, proposal = hamiltonian_step(
        target,
        target(tensor(starts())),
        momentum,
        always,
        torch.tensor(size, dtype=torch.float64),
        leapfrog=steps,
        scale=scale,
    )
    torch.testing.assert_close(ours.x, tensor(info.proposal.position), rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(proposal.accept, tensor(info.acceptance_rate), rtol=1e-8, atol=1e-8)
    moved = torch.from_numpy(np.array(info.is_accepted))
    torch.testing.assert_close(torch.where(moved.unsqueeze(1), ours.x, tensor(starts())), tensor(new.position))
    assert 0.05 < (~moved).double().mean() < 0.95


def test_a_mala_proposal_and_its_acceptance_are_blackjax_s() -> None:
    """Their noise is worked out from where they went: x + s grad log p + sqrt(2 s) z."""
    size = 0.25
    kernel = blackjax.mala(log_density, size)
    keys = jax.random.split(jax.random.key(1), CHAINS)
    new, info = jax.vmap(kernel.step)(keys, jax.vmap(kernel.init)(starts()))
    moved = torch.from_numpy(np.array(info.is_accepted))
    before, after = target(tensor(starts())[moved]), tensor(new.position)[moved]
    momentum = (after - before.x + size * before.gradient) / (2 * size) ** 0.5
    always = torch.full((len(after),), -math.inf, dtype=torch.float64)
    ours, proposal = hamiltonian_step(target, before, momentum, always, torch.tensor((2 * size) ** 0.5, dtype=torch.float64))
    torch.testing.assert_close(ours.x, after, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(proposal.accept, tensor(info.acceptance_rate)[moved], rtol=1e-8, atol=1e-8)
    assert 0.05 < (~moved).double().mean() < 0.95


@pytest.mark.parametrize("rho", [0.9, 0.3, -0.4])
def test_diagnostics_are_blackjax_s(rho: float) -> None:
    z = torch.empty(800, 6, 3, dtype=torch.float64).normal_(generator=torch.Generator().manual_seed(0))
    states = [z[0]]
    for k in range(1, 800):
        states.append(rho * states[-1] + (1 - rho**2) ** 0.5 * z[k])
    chains = torch.stack(states) + 0.2 * torch.arange(6, dtype=torch.float64).view(1, 6, 1)
    halves = split_chains(chains).transpose(0, 1).numpy()
    ess = tensor(blackjax.diagnostics.effective_sample_size(jax.numpy.array(halves)))
    torch.testing.assert_close(effective_sample_size(chains), ess, rtol=0.02, atol=0)
    rhat = tensor(blackjax.diagnostics.potential_scale_reduction(jax.numpy.array(halves)))
    torch.testing.assert_close(split_rhat(chains, rank=False), rhat, rtol=2e-3, atol=0)
