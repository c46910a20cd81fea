"""Whether increments are better modelled on the Gaussian's scale: asked of the data before training.

Chen & Gopinath 2000.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ebmtraj.datasets.normaliser import Normaliser
from ebmtraj.datasets.windows import TransitionData, spread_index
from ebmtraj.device import generator
from ebmtraj.nets.mlp import GaussianMLP
from ebmtraj.training.losses import gaussian_nll

ROWS = 32_768  # transitions that the question is put to
FEWEST = 5_000  # fewer can't tell
HELD_OUT = 4  # every fourth stretch of rows is held out
STRETCH = 64  # rows
COST = 1.02  # of the expectation's error
STEPS, BATCH, RATE = 300, 512, 4e-3


def better_gaussianised(normaliser: Normaliser, data: TransitionData, *, actions: bool) -> bool:
    """Whether held-out increments, given the state (and action), are better told on the Gaussian's scale.

    `normaliser` is one that gaussianises. One small Gaussian network is fitted to increments of both scales at once. The
    Gaussian's scale is better where it makes the increments likelier and its expectation, brought back, is off by hardly
    more (root mean square, plain scale). Joints that stick at random (a tendon's play) gain; dynamics that are smooth or
    nearly certain given the action, and limits that hold joints fast, lose by the map's kinks. With fewer than 5,000
    transitions the answer is yes.
    """
    if len(data) < FEWEST:
        return True
    context, plain = _rows(normaliser, data, actions)
    moves = plain.std(0) > 0
    if not bool(moves.any()):
        return True
    marginals = normaliser.marginals
    both = torch.cat((plain, marginals(plain)), dim=-1)
    held = torch.arange(len(both), device=both.device) // STRETCH % HELD_OUT == HELD_OUT - 1
    mean, log_std = _fitted(context[~held], both[~held], context[held])
    nll = 0.5 * ((both[held] - mean) * torch.exp(-log_std)).square() + log_std
    on_plain, on_scaled = nll.chunk(2, dim=-1)
    gain = (on_plain - on_scaled + marginals.log_slope(plain[held]))[:, moves].mean(0).sum()
    expected, on_scale = mean.chunk(2, dim=-1)
    error, back = (
        (guess - plain[held])[:, moves].square().mean(0).sqrt().sum() for guess in (expected, marginals.inverse(on_scale))
    )
    return bool((gain > 0) & (back < COST * error))


@torch.no_grad()
def _rows(normaliser: Normaliser, data: TransitionData, actions: bool) -> tuple[Tensor, Tensor]:
    """Contexts and increments of plain scale, `(R, C), (R, D)`."""
    batch = data.at(spread_index(data, ROWS))
    context = normaliser.context(batch.state, batch.action if actions else None)
    return context, normaliser.scaled(batch.state, batch.next_state)


def _fitted(context: Tensor, target: Tensor, asked: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and log standard deviation of targets `(R, D)` at the contexts asked `(Q, C)`, `(Q, D)` each."""
    with torch.random.fork_rng(devices=[]), torch.enable_grad():
        torch.manual_seed(0)
        net = GaussianMLP(context.shape[1], target.shape[1], depth=2, low=-6.0, high=2.0).to(context.device)
        optimiser = torch.optim.Adam(net.parameters(), RATE)
        noise = generator(0, context.device)
        for step in range(STEPS):
            for group in optimiser.param_groups:
                group["lr"] = RATE * (1 - step / STEPS)
            index = torch.randint(len(context), (BATCH,), generator=noise, device=context.device)
            mean, log_std = net(context[index])
            loss = gaussian_nll(target[index], mean, log_std, beta=0.5).mean()
            optimiser.zero_grad(set_to_none=True)
            loss.backward()
            optimiser.step()
    with torch.no_grad():
        mean, log_std = net(asked)
    return mean, log_std
