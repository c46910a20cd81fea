"""Any transition model, tilted by an energy that is learnt as a density ratio: the trajectory's form of paper 004."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch import Tensor

from ebmtraj.config import build, merge, to_plain
from ebmtraj.datasets.coordinates import Rotation
from ebmtraj.datasets.windows import Batch, Past, TransitionData
from ebmtraj.energies.transition import PairEnergy
from ebmtraj.errors import EbmtrajError
from ebmtraj.fields import Field
from ebmtraj.samplers.start import resample_tilt
from ebmtraj.training.objectives import density_ratio
from ebmtraj.training.trainable import Stage
from ebmtraj.trajectories.baselines.diffusion import DiffusionModel
from ebmtraj.trajectories.baselines.ensemble import EnsembleModel
from ebmtraj.trajectories.baselines.flow import FlowModel
from ebmtraj.trajectories.baselines.gaussian import GaussianModel
from ebmtraj.trajectories.baselines.mixture import MixtureModel
from ebmtraj.trajectories.model import TransitionModel, check_network
from ebmtraj.trajectories.transition import TiltedModel

BASES: dict[str, type[TransitionModel]] = {
    model.name: model for model in (GaussianModel, EnsembleModel, MixtureModel, DiffusionModel, FlowModel, TiltedModel)
}


@dataclass(frozen=True)
class RatioConfig:
    """What is tilted, by which network, and among how many candidates a next state is chosen.

    Raises `EbmtrajError` for a setting out of its range, and for a model that can't be tilted.
    """

    of: str = "mdn"  # the model that is tilted
    base: dict[str, Any] = field(default_factory=dict)  # its settings, as `network` of its own recipe
    width: int = 256  # units of a hidden layer
    depth: int = 2  # hidden layers
    rotation: Rotation = "world"  # how a quaternion's change is written, see `Increments`
    share: float = 0.4  # of the training steps, for the tilt
    candidates: int = 8  # of the model, one of which is taken by its weight exp(-E)

    def __post_init__(self) -> None:
        check_network(self.width, self.depth)
        if self.of not in BASES:
            raise EbmtrajError(f"network.of = {self.of!r}; a model that can be tilted is one of {', '.join(BASES)}")
        if not 0 < self.share < 1 or self.candidates < 1:
            raise EbmtrajError(
                f"network: share = {self.share}, candidates = {self.candidates}; it needs 0 < share < 1 and candidates >= 1"
            )


class RatioModel(TransitionModel):
    """p(s' | s) in proportion to q(s' | s) exp(-E(s, s')), where q is another model of this folder, trained first.

    E tells true next states from q's own (`density_ratio`), so that exp(-E) comes to be their density ratio; a next state is
    drawn from q by sampling-importance resampling (`resample_tilt`). Neither asks for q's density. The tilt of a generator's
    latent space is learnt and sampled by the same two functions.
    """

    name = "ratio"
    Config = RatioConfig
    training_defaults: ClassVar[dict[str, Any]] = {"learning_rate": 2e-3, "constant": 0.2}
    config: RatioConfig

    def __init__(
        self, state_fields: Sequence[Field], action_fields: Sequence[Field], *, actions: bool, config: RatioConfig
    ) -> None:
        super().__init__(state_fields, action_fields, actions=actions, config=config)
        tilted: Any = BASES[config.of]
        usual = to_plain(dataclasses.asdict(tilted.Config()))
        own = merge(merge(usual, tilted.action_defaults if actions else {}), to_plain(config.base))
        own["rotation"] = config.rotation
        settings: Any = build(tilted.Config, own, "recipe: network.base")
        self.base: TransitionModel = tilted(state_fields, action_fields, actions=actions, config=settings)
        self.history = self.base.history
        self.config = dataclasses.replace(config, base=dataclasses.asdict(self.base.config))
        seen = self.context_size + self.base.moves_size
        self.energy = PairEnergy(seen + self.delta_size, width=config.width, depth=config.depth, spectral=False)

    def prepare(self, data: TransitionData) -> None:
        """Of the base; its scale of increments is the tilt's, too."""
        self.base.prepare(data)
        self.normaliser.load_state_dict(self.base.normaliser.state_dict())

    def stages(self) -> list[Stage]:
        """Those of the base, then the tilt."""
        rest = 1 - self.config.share
        first = [dataclasses.replace(stage, share=rest * stage.share) for stage in self.base.stages()]
        return [*first, Stage("tilt", self.config.share, self.energy, self._loss)]

    def header(self) -> dict[str, Any]:
        """As every model's, with what the base's settings came to."""
        header = super().header()
        header["network"]["base"] = self.base.header()["network"]
        return header

    def _loss(self, batch: Batch, generator: torch.Generator) -> tuple[Tensor, dict[str, Tensor]]:
        with torch.no_grad():
            seen = self.base.seen(batch.state, batch.action, batch.past)
            drawn = self.base.sample_next(batch.state, batch.action, generator, batch.past)
            real, false = (
                torch.cat((seen, self.normaliser.delta(batch.state, following)), dim=-1)
                for following in (batch.next_state, drawn)
            )
        loss, logs = density_ratio(self.energy, real, false)
        return loss, {"validation": loss.detach(), "accuracy": logs["accuracy"]}

    @torch.no_grad()
    def sample_next(
        self, state: Tensor, action: Tensor | None, generator: torch.Generator, past: Past | None = None
    ) -> Tensor:
        """One of several draws of the base, by its weight."""
        seen = self.base.seen(state, action, past)

        def tilt(following: Tensor, context: None) -> Tensor:
            return self.energy(torch.cat((seen, self.normaliser.delta(state, following)), dim=-1))

        chosen, _ = resample_tilt(
            tilt, lambda: self.base.sample_next(state, action, generator, past), self.config.candidates, generator=generator
        )
        return chosen
