"""Flows as generators: of the events themselves, or of the codes of an autoencoder (GLF, VAE + flow).

Dinh et al. 2017; Durkan et al. 2019; Xiao et al. 2019.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
import zuko
from torch import Tensor, nn

from ebmtraj.errors import EbmtrajError
from ebmtraj.generators.data import EventBatch, Events
from ebmtraj.generators.model import LOG_2PI, Generator
from ebmtraj.generators.vae import VAE, VAEConfig
from ebmtraj.nets.mlp import hidden_sizes
from ebmtraj.training.trainable import Stage

Logs = dict[str, Tensor]
Coupling = Literal["affine", "spline"]


@dataclass(frozen=True)
class FlowConfig:
    """Couplings and their networks."""

    coupling: Coupling = "affine"  # RealNVP (Dinh et al. 2017), or neural splines (Durkan et al. 2019)
    transforms: int = 8  # couplings
    width: int = 256  # units of a hidden layer
    depth: int = 2  # hidden layers

    def __post_init__(self) -> None:
        check_flow(self.transforms, self.width, self.depth)


def check_flow(transforms: int, width: int, depth: int) -> None:
    """Raise `EbmtrajError` for sizes below 1."""
    if min(transforms, width, depth) < 1:
        raise EbmtrajError(f"network: transforms = {transforms}, width = {width}, depth = {depth}; all must be above 0")


class VectorFlow(nn.Module):
    """A coupling flow of vectors with a unit Gaussian base, from zuko."""

    def __init__(self, size: int, coupling: Coupling, transforms: int, width: int, depth: int) -> None:
        super().__init__()
        flow = zuko.flows.NICE if coupling == "affine" else zuko.flows.NSF
        hidden = {"transforms": transforms, "hidden_features": hidden_sizes(width, depth)}
        if coupling == "spline":
            hidden["passes"] = 2  # couplings
        self.flow = flow(size, **hidden)

    def to_noise(self, x: Tensor) -> Tensor:
        """`(B, D)` -> `(B, D)`."""
        z: Tensor = self.flow().transform(x)
        return z

    def from_noise(self, z: Tensor) -> Tensor:
        """The inverse of `to_noise`."""
        x: Tensor = self.flow().transform.inv(z)
        return x

    def loss(self, x: Tensor) -> tuple[Tensor, Logs]:
        """-log p an entry of x `(B, D)`, without its constant, `()`."""
        loss = -self.flow().log_prob(x).mean() / x.shape[1] - 0.5 * LOG_2PI
        return loss, {"validation": loss.detach()}


class FlowGenerator(Generator):
    """x = f(z), one to one: z has as many entries as x. An energy looks at x, spread evenly over the step of its pixels."""

    name = "flow"
    Config: ClassVar[type] = FlowConfig
    config: FlowConfig
    training_defaults: ClassVar[Mapping[str, Any]] = {"steps": 800, "batch": 128, "check_every": 50}
    point_defaults: ClassVar[Mapping[str, Any]] = {
        "network": {"coupling": "spline", "transforms": 4, "width": 64},
        "training": {"steps": 2000, "batch": 256, "check_every": 250},
    }

    def __init__(self, shape: Sequence[int], levels: int, config: FlowConfig) -> None:
        super().__init__(shape, levels, config)
        self.latent = math.prod(self.shape)
        self.flow = VectorFlow(self.latent, config.coupling, config.transforms, config.width, config.depth)

    def stages(self) -> list[Stage]:
        """The likelihood throughout."""
        return [Stage("flow", 1.0, self.flow, self._loss)]

    def encode(self, x: Tensor, generator: torch.Generator) -> Tensor:
        """The latent of the event, spread evenly over the step of its pixels."""
        return self.flow.to_noise(self.view_of(x, generator))

    def decode(self, z: Tensor) -> Tensor:
        """The flow."""
        return self.event(self.view(z).view(-1, *self.shape))

    @property
    def view_shape(self) -> tuple[int, ...]:
        """Flat events."""
        return (self.latent,)

    def view(self, z: Tensor) -> Tensor:
        """The event in unit coordinates."""
        return self.flow.from_noise(z)

    def view_of(self, x: Tensor, generator: torch.Generator) -> Tensor:
        """The event in unit coordinates."""
        return self.unit(self.smooth(x, generator)).flatten(1)

    def _loss(self, batch: EventBatch, generator: torch.Generator) -> tuple[Tensor, Logs]:
        return self.flow.loss(self.view_of(batch.x, generator))


@dataclass(frozen=True)
class CodeFlowConfig(VAEConfig):
    """An autoencoder, and a flow of its codes."""

    coupling: Coupling = "affine"  # as in `FlowConfig`
    transforms: int = 4  # couplings
    flow_width: int = 256  # units of a hidden layer of theirs
    flow_depth: int = 2  # hidden layers of theirs
    jitter: float = 0.05  # added to codes of spread 1 while the flow is trained, which keeps it from spikes

    def __post_init__(self) -> None:
        super().__post_init__()
        check_flow(self.transforms, self.flow_width, self.flow_depth)


class VAEFlow(VAE):
    """A flow learns the codes of a variational autoencoder, and takes its prior's place (Xiao et al. 2019)."""

    name = "vae-flow"
    Config: ClassVar[type] = CodeFlowConfig
    training_defaults: ClassVar[Mapping[str, Any]] = {"steps": 4500, "batch": 128, "check_every": 100}
    point_defaults: ClassVar[Mapping[str, Any]] = {
        "network": {**VAE.point_defaults["network"], "coupling": "spline", "flow_width": 64},
        "training": {"steps": 6000, "batch": 256, "check_every": 500},
    }
    code_shift: Tensor
    code_scale: Tensor

    def __init__(self, shape: Sequence[int], levels: int, config: CodeFlowConfig) -> None:
        super().__init__(shape, levels, config)
        self.flow = VectorFlow(config.latent, config.coupling, config.transforms, config.flow_width, config.flow_depth)
        self.register_buffer("code_shift", torch.zeros(config.latent))
        self.register_buffer("code_scale", torch.ones(config.latent))

    def stages(self) -> list[Stage]:
        """One after the other."""
        return [
            Stage("autoencoder", 2 / 3, self.coder, self._loss, finish=self._measure),
            Stage("flow", 1 / 3, self.flow, self._flow_loss),
        ]

    def encode(self, x: Tensor, generator: torch.Generator) -> Tensor:
        """The flow's latent of a code."""
        return self.flow.to_noise(self.view_of(x, generator))

    def decode(self, z: Tensor) -> Tensor:
        """Flow, then decoder."""
        return self.event(self.coder.decoder(self.view(z) * self.code_scale + self.code_shift))

    def view(self, z: Tensor) -> Tensor:
        """The code, scaled to spread 1."""
        return self.flow.from_noise(z)

    def view_of(self, x: Tensor, generator: torch.Generator) -> Tensor:
        """The code of a real event."""
        return (self._code(x, generator) - self.code_shift) / self.code_scale

    def _code(self, x: Tensor, generator: torch.Generator) -> Tensor:
        return self.coder.draw(self.unit(x), generator)

    @torch.no_grad()
    def _measure(self, data: Events, most: int = 20_000) -> None:
        noise = torch.Generator(device=data.device).manual_seed(0)
        code = self._code(data.x[:most], noise)
        self.code_shift.copy_(code.mean(0))
        self.code_scale.copy_(code.std(0).clamp_min(1e-3))

    def _flow_loss(self, batch: EventBatch, generator: torch.Generator) -> tuple[Tensor, Logs]:
        with torch.no_grad():
            code = self.view_of(batch.x, generator)
            code = code + self.config.jitter * torch.empty_like(code).normal_(generator=generator)
        return self.flow.loss(code)


class GLF(VAEFlow):
    """Generative latent flow: a plain autoencoder, and a flow of its codes (Xiao et al. 2019; paper 004)."""

    name = "glf"

    def _loss(self, batch: EventBatch, generator: torch.Generator) -> tuple[Tensor, Logs]:
        x = self.unit(batch.x)
        loss = (x - self.coder.decoder(self.coder.moments(x)[0])).square().mean()
        return loss, {"validation": loss.detach()}

    def _code(self, x: Tensor, generator: torch.Generator) -> Tensor:
        return self.coder.moments(self.unit(x))[0]
