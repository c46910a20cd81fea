"""A free vector field on the energy's own base: the strongest opponent. Karras et al. 2022."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from ebmtraj.errors import EbmtrajError
from ebmtraj.fields import Field
from ebmtraj.nets.base import TiltedBase
from ebmtraj.nets.vector_field import Denoiser
from ebmtraj.trajectories.residual import ResidualConfig, ResidualModel


@dataclass(frozen=True)
class FieldConfig(ResidualConfig):
    """As the default energy (`dsm`), setting by setting.

    Raises `EbmtrajError` as that does, and for settings that only an energy has.
    """

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.sampler.backend == "autograd" or self.sampler.record:
            raise EbmtrajError("network.sampler: model field has no energy to differentiate or record; drop that setting")


class FieldTransition(TiltedBase):
    """The base of `TiltedTransition`, with a free denoiser of its residual in place of the energy."""

    def __init__(self, event: int, context: int, *, width: int, depth: int, **settings: Any) -> None:
        super().__init__(event, context, width=width, depth=depth, **settings)
        self.field = Denoiser(event, self.tilt_context, width=width, depth=depth)

    @property
    def tilt(self) -> Denoiser:
        """The residual's denoiser."""
        return self.field


class FieldModel(ResidualModel):
    """The model `dsm` in every respect but one: a network's output stands where the energy's gradient does."""

    name = "field"
    Config = FieldConfig
    second = "field"

    def __init__(
        self, state_fields: Sequence[Field], action_fields: Sequence[Field], *, actions: bool, config: FieldConfig
    ) -> None:
        super().__init__(state_fields, action_fields, actions=actions, config=config)
        self.tilted = FieldTransition(
            self.delta_size,
            self.context_size,
            width=config.width,
            depth=config.depth,
            mildness=config.mildness,
            bound=config.bound,
            base=config.base,
            base_context=config.base_context,
        )
