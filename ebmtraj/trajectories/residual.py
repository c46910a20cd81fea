"""What models with an explicit base share: the base, then a noise-conditional model of its residual.

Paper 004, equation 1; Vincent 2011; Karras et al. 2022.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from ebmtraj.datasets.coordinates import Rotation
from ebmtraj.datasets.normaliser import check_scaling
from ebmtraj.datasets.windows import Batch, Past, TransitionData
from ebmtraj.errors import EbmtrajError
from ebmtraj.fields import Field
from ebmtraj.nets.base import TiltedBase
from ebmtraj.samplers.anneal import Ladder
from ebmtraj.samplers.langevin import LangevinConfig, langevin
from ebmtraj.training.losses import NoiseConfig
from ebmtraj.training.trainable import Stage
from ebmtraj.trajectories.history import check_history
from ebmtraj.trajectories.model import TransitionModel, check_network
from ebmtraj.trajectories.tilted import TiltedLosses

LADDER = Ladder(levels=4, sigma_max=20.0, sigma_min=0.02, spacing="angle", predictor="midpoint")


@dataclass(frozen=True)
class ResidualConfig:
    """An explicit base and a noise-conditional model of its residual.

    Raises `EbmtrajError` for a setting out of its range, and for a sampler without a ladder.
    """

    width: int = 256  # units of a hidden layer
    depth: int = 2  # hidden layers
    base: bool = True  # false: none is learnt, and all the training steps go to the model of the increment itself
    base_context: bool = True  # that model sees the base's mean and log standard deviation, too
    base_share: float = 0.3  # of the training steps, for the base, if there is one
    mildness: float = 0.5  # how much of the base's varying spread is kept; 1 keeps all, 0 none
    bound: float = 8.0  # residuals are clamped here
    beta: float = 1.0  # of the base's beta-NLL
    whiten: bool = False  # decorrelate the increments first
    gaussianise: bool | Literal["auto"] = "auto"  # or bring each one's distribution to a Gaussian's; auto: if that fits
    rotation: Rotation = "world"  # how a quaternion's change is written, see `Increments`
    history: int | Literal["auto"] = 0  # past states seen, as moves between them; auto: 2, or 0 where states have velocities
    previous_control: bool = False  # with the actions that were taken there; for models that are given actions
    history_noise: float = 0.1  # on those moves, in training: a rollout's own are not quite the data's
    forget: float = 0.1  # share of the training transitions whose past is cut short, as it is when a rollout begins
    noise: NoiseConfig = field(default_factory=lambda: NoiseConfig(mean=-0.4, std=1.6))
    sampler: LangevinConfig = field(default_factory=lambda: LangevinConfig(steps=0, ladder=LADDER))

    def __post_init__(self) -> None:
        check_network(self.width, self.depth)
        if not 0 < self.base_share < 1 or not 0 <= self.mildness <= 1 or self.bound <= 0 or self.beta < 0:
            raise EbmtrajError(
                f"network: base_share = {self.base_share}, mildness = {self.mildness}, bound = {self.bound}, "
                f"beta = {self.beta}; it needs 0 < base_share < 1, 0 <= mildness <= 1, bound > 0 and beta >= 0"
            )
        check_history(self.history, self.history_noise, self.forget, self.previous_control)
        check_scaling(self.whiten, self.gaussianise)
        if self.sampler.ladder is None:
            raise EbmtrajError("network.sampler: this model is sampled down a noise ladder; set network.sampler.ladder")


class ResidualModel(TiltedLosses, TransitionModel):
    """Fit the base by its likelihood, freeze it, train a model of its residual by score matching.

    A subclass makes `tilted` and names the second stage. With history, both see the moves that led to the state.
    """

    config: ResidualConfig
    training_defaults: ClassVar[dict[str, Any]] = {"learning_rate": 4e-3, "constant": 0.2}
    # Given the action, most of what is still open is how fast all moves, unless the state says it; with that, the base
    # knows most of the rest, and what it leaves is quickly sampled.
    action_defaults: ClassVar[dict[str, Any]] = {
        "base_share": 0.75,
        "history": "auto",
        "previous_control": True,
        "sampler": {"ladder": {"levels": 3}},
    }
    second: ClassVar[str]
    tilted: TiltedBase

    def __init__(
        self, state_fields: Sequence[Field], action_fields: Sequence[Field], *, actions: bool, config: ResidualConfig
    ) -> None:
        super().__init__(state_fields, action_fields, actions=actions, config=config)
        self.context_size += self.moves_size

    def prepare(self, data: TransitionData) -> None:
        """As every model; where no base is learnt, nothing but a constant spread is, here."""
        super().prepare(data)
        if not self.config.base:
            self._calibrate(data)

    def stages(self) -> list[Stage]:
        """The base, if there is one, then the model of its residual."""
        if not self.config.base:
            return [Stage(self.second, 1.0, self.tilted.tilt, self._residual_loss)]
        share = self.config.base_share
        return [
            Stage("base", share, self.tilted.base_net, self._base_loss, self._calibrate),
            Stage(self.second, 1 - share, self.tilted.tilt, self._residual_loss),
        ]

    def _coordinates(self, batch: Batch, generator: torch.Generator | None = None) -> tuple[Tensor, Tensor]:
        """Increment and context; with a generator, as training blurs and forgets the past."""
        return self.normaliser.delta(batch.state, batch.next_state), self.seen_of(batch, generator)

    @torch.no_grad()
    def sample_next(
        self, state: Tensor, action: Tensor | None, generator: torch.Generator, past: Past | None = None
    ) -> Tensor:
        """Draw a residual by the annealed sampler and put it on the base."""
        context = self.seen(state, action, past)
        base = self.tilted.base(context)
        prepared = self.tilted.prepare(context, base)
        ladder = self.config.sampler.ladder
        spread = (1 + (ladder.sigma_max if ladder else 0.0) ** 2) ** 0.5
        start = spread * torch.empty_like(base.mean).normal_(generator=generator)
        r, _ = langevin(self.tilted.tilt, start, self.config.sampler, context=prepared, generator=generator)
        bounded = r.clamp(-self.tilted.bound, self.tilted.bound)
        return self.normaliser.advance(state, self.tilted.increment(bounded, base))
