"""Plans: a window of actions drawn from the energy, guided by a task cost of what the actions are expected to lead to.

A cost added to an energy: paper 002; guided steps: Janner et al. 2022.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from ebmtraj.datasets.windows import Past
from ebmtraj.errors import EbmtrajError
from ebmtraj.samplers.anneal import Ladder
from ebmtraj.samplers.langevin import frozen
from ebmtraj.trajectories.costs import TaskCost
from ebmtraj.trajectories.terms.term import Path
from ebmtraj.trajectories.window import Situation, WindowModel


@dataclass(frozen=True)
class PlannerConfig:
    """How a plan is drawn; nothing here is trained, so all of it can be set anew for each task.

    Raises `EbmtrajError` for a setting out of its range.
    """

    candidates: int = 4  # windows drawn for each present, of which the one of the least expected cost is kept
    guidance: float = 300.0  # how strongly the task cost pulls at every noise level; 0: it only chooses among candidates
    reach: float = 0.9  # standard deviations of the base by which it pulls at most, root mean square over the window
    prior: bool = True  # false: the Gaussian base alone, without the energy
    levels: int = 8  # noise levels, one step each
    sigma_max: float = 5.0  # the first level, in standard deviations of the base's residual
    sigma_min: float = 0.05  # and the last
    every: int = 1  # control steps between plans

    def __post_init__(self) -> None:
        if min(self.candidates, self.every) < 1 or self.guidance < 0 or self.reach <= 0:
            raise EbmtrajError(
                f"planner: candidates = {self.candidates}, every = {self.every}, guidance = {self.guidance}, "
                f"reach = {self.reach}; it needs candidates >= 1, every >= 1, guidance >= 0 and reach > 0"
            )
        self.ladder()

    def ladder(self) -> Ladder:
        """The noise levels; raises `EbmtrajError` for settings that make none."""
        return Ladder(self.levels, self.sigma_max, self.sigma_min, predictor="euler")


class Plan(NamedTuple):
    """What is to be done, and what it is expected to come to."""

    actions: Tensor  # (B, W, A), within their bounds
    path: Path  # where they are expected to lead
    cost: Tensor  # (B,) of that path


@torch.no_grad()
def plan(
    model: WindowModel, state: Tensor, past: Past, task: TaskCost, config: PlannerConfig, *, generator: torch.Generator
) -> Plan:
    """The best of some windows of actions sampled down the noise levels, guided by the task, for presents `(B, S)`.

    At level s the residual's denoised estimate D = x - s^2 grad E(x; s) becomes D - s^2 / (1 + s^2) pull, and x moves on by
    a step of the probability flow. The pull is g grad cost(D), shortened to `reach`, with cost(D) that of the *expected*
    outcome of its actions: guiding by a sampled one would be optimistic luck. Where the prior is a Gaussian and the cost
    linear, that draws from exp(-g cost) times the prior as long as nothing is shortened. `task` may have options with a
    value for each present. Raises `EbmtrajError` where a term of the task is not finite.
    """
    count, many = len(state), config.candidates
    owner = torch.arange(count, device=state.device).repeat_interleave(many)
    situation, task = model.situation(state, past).repeated(many), task.rows(owner)
    sigmas = torch.cat((config.ladder().sigmas(state.device), state.new_zeros(1)))
    noise = torch.empty_like(situation.base.mean).normal_(generator=generator)
    x = noise * torch.sqrt(1 + sigmas[0] ** 2)
    with frozen(model):
        for k in range(config.levels):
            s = sigmas[k]
            score = model.tilted.tilt.gradient(x, situation.prior, s) if config.prior else x / (1 + s**2)
            denoised = x - s**2 * score
            if config.guidance > 0:
                pull = config.guidance * _slope(model, situation, task, denoised)
                size = pull.square().mean(-1, keepdim=True).sqrt().clamp_min(1e-12)
                denoised = denoised - s**2 / (1 + s**2) * pull * (config.reach / size).clamp_max(1.0)
            denoised = denoised.clamp(-model.tilted.bound, model.tilted.bound)
            x = denoised + sigmas[k + 1] / s * (x - denoised)
    actions, path, cost = _judged(model, situation, task, x)
    best = cost.view(count, many).argmin(1) + many * torch.arange(count, device=state.device)
    turned = None if path.turned is None else path.turned[best]
    chosen = Path(state, path.states[best], path.times, actions[best], turned)
    return Plan(actions[best], chosen, cost[best])


def _judged(model: WindowModel, situation: Situation, task: TaskCost, r: Tensor) -> tuple[Tensor, Path, Tensor]:
    """The actions of residuals `(B, W * A)`, where they are expected to lead, and the cost of that."""
    actions = model.restored(model.tilted.increment(r, situation.base))
    path = model.expected(situation, actions)
    return actions, path, task(path)


def _slope(model: WindowModel, situation: Situation, task: TaskCost, r: Tensor) -> Tensor:
    """Gradient of the expected cost in the residual, `(B, W * A)`."""
    with torch.enable_grad():
        r = r.detach().requires_grad_(True)
        cost = _judged(model, situation, task, r)[2]
        if not cost.requires_grad:
            raise EbmtrajError(
                f"task {task.text!r}: its cost has no gradient in the planned states, so it can guide nothing; compute "
                "it with torch alone, or choose among candidates by it: --set guidance=0"
            )
        slope = torch.autograd.grad(cost.sum(), r)[0]
    if not slope.isfinite().all():
        _refuse_slope(model, situation, task, r)
    return slope


def _refuse_slope(model: WindowModel, situation: Situation, task: TaskCost, r: Tensor) -> None:
    """Raise the one line that names the term whose gradient is not finite."""
    for label, part in zip(task.labels(), task.parts, strict=True):
        with torch.enable_grad():
            path = _judged(model, situation, task, r)[1]
            cost = part(path)
            if cost.requires_grad and not torch.autograd.grad(cost.sum(), r)[0].isfinite().all():
                raise EbmtrajError(
                    f"task term {label}: its gradient is NaN or infinite where its value is not, as a square root does at "
                    "0; mend that term or leave it out"
                )
    raise EbmtrajError(f"task {task.text!r}: its gradient is not finite; lower its weights")
