"""Flow matching over the increment. Lipman et al. 2023; Liu et al. 2023."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from ebmtraj.datasets.coordinates import Rotation
from ebmtraj.datasets.normaliser import check_scaling
from ebmtraj.datasets.windows import Batch, Past
from ebmtraj.errors import EbmtrajError
from ebmtraj.fields import Field
from ebmtraj.nets.mlp import TimeFeatures
from ebmtraj.nets.vector_field import VectorField
from ebmtraj.training.losses import TimeConfig, flow_matching
from ebmtraj.training.trainable import Stage
from ebmtraj.trajectories.model import TransitionModel, check_network


@dataclass(frozen=True)
class FlowConfig:
    """Flow matching along straight paths (Lipman et al. 2023; rectified flow, Liu et al. 2023).

    Raises `EbmtrajError` for a setting out of its range.
    """

    width: int = 256  # units of a hidden layer
    depth: int = 3  # hidden layers
    bound: float = 8.0  # increments are clamped here, in standard deviations
    whiten: bool = False  # decorrelate the increments first
    gaussianise: bool | Literal["auto"] = "auto"  # or bring each one's distribution to a Gaussian's; auto: if that fits
    rotation: Rotation = "world"  # how a quaternion's change is written, see `Increments`
    time: TimeConfig = field(default_factory=TimeConfig)  # times in training, from 0 to 1, no unit
    # of the flow's differential equation; midpoint is one order better than heun on a Gaussian's flow
    solver: Literal["midpoint", "heun", "euler"] = "midpoint"
    steps: int = 10  # of the solver; all but euler ask the network twice a step

    def __post_init__(self) -> None:
        check_network(self.width, self.depth)
        check_scaling(self.whiten, self.gaussianise)
        if self.bound <= 0 or self.steps < 1:
            raise EbmtrajError(f"network: bound = {self.bound}, steps = {self.steps}; it needs bound > 0 and steps >= 1")


class FlowModel(TransitionModel):
    """A velocity field that carries a unit Gaussian to the increments; sees what the energy sees."""

    name = "flow"
    Config = FlowConfig
    training_defaults: ClassVar[dict[str, Any]] = {"learning_rate": 4e-3, "constant": 0.2}
    config: FlowConfig

    def __init__(
        self, state_fields: Sequence[Field], action_fields: Sequence[Field], *, actions: bool, config: FlowConfig
    ) -> None:
        super().__init__(state_fields, action_fields, actions=actions, config=config)
        self.net = VectorField(self.delta_size, self.context_size, TimeFeatures(), width=config.width, depth=config.depth)

    def stages(self) -> list[Stage]:
        """Flow matching throughout."""
        return [Stage("flow", 1.0, self.net, self._loss)]

    def _loss(self, batch: Batch, generator: torch.Generator) -> tuple[Tensor, dict[str, Tensor]]:
        z = self.normaliser.delta(batch.state, batch.next_state).clamp(-self.config.bound, self.config.bound)
        context = self.net.prepare(self.context(batch.state, batch.action))
        loss = flow_matching(self.net, z, context, self.config.time, generator).mean()
        return loss, {"validation": loss.detach()}

    @torch.no_grad()
    def sample_next(
        self, state: Tensor, action: Tensor | None, generator: torch.Generator, past: Past | None = None
    ) -> Tensor:
        """Follow the flow from noise at time 0 to an increment at time 1."""
        context = self.net.prepare(self.context(state, action))
        x = state.new_empty(len(state), self.delta_size).normal_(generator=generator)
        z = integrate(lambda x, t: self.net(x, context, t), x, self.config.steps, self.config.solver)
        return self.normaliser.advance(state, z.clamp(-self.config.bound, self.config.bound))


def integrate(velocity: Callable[[Tensor, Tensor], Tensor], x: Tensor, steps: int, solver: str) -> Tensor:
    """Solve dx/dt = velocity(x, t) from t = 0 to 1 in equal steps, `(B, D) -> (B, D)`."""
    times = torch.linspace(0, 1, steps + 1, dtype=x.dtype, device=x.device)
    h = 1 / steps
    for k in range(steps):
        slope = velocity(x, times[k])
        if solver == "heun":
            slope = 0.5 * (slope + velocity(x + h * slope, times[k + 1]))
        elif solver == "midpoint":
            slope = velocity(x + 0.5 * h * slope, times[k] + 0.5 * h)
        x = x + h * slope
    return x
