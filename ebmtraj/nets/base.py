"""An explicit Gaussian base, and room for what is learnt of its residual. The tilt: paper 004, equation 1."""

from __future__ import annotations

import abc
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from ebmtraj.nets.mlp import GaussianMLP


class Base(NamedTuple):
    """A diagonal Gaussian over normalised increments: mean and log standard deviation, both `(B, D)`."""

    mean: Tensor
    log_std: Tensor


class UnitGaussian(nn.Module):
    """In place of a trained base: mean 0 and log standard deviation 0 everywhere, `(B, inputs) -> (B, D), (B, D)`."""

    def __init__(self, outputs: int) -> None:
        super().__init__()
        self.outputs = outputs

    def forward(self, inputs: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and log standard deviation."""
        zero = inputs.new_zeros((*inputs.shape[:-1], self.outputs))
        return zero, zero


class TiltedBase(nn.Module, abc.ABC):
    """A Gaussian base over the normalised increment z, tilted by a noise-conditional model of its residual.

    The residual is r = (z - mu) / sigma; what tilts it sees mu and log sigma beside the context, unless `base_context` is
    false. The base's spread is made mild (half-way to its mean) and calibrated to unit residuals before the tilt is trained,
    so the tilt meets residuals of one scale everywhere. With `base` false nothing is learnt of it: mu is 0, sigma a constant
    of each dimension, and the tilt sees the context alone. A subclass makes the tilt, of `tilt_context` numbers, with
    `prepare`, `tilt_gradient` and `gradient` as a noise-conditional energy has them.
    """

    spread_mean: Tensor  # (D,) mean of log sigma
    spread_shift: Tensor  # (D,) what is added to log sigma

    def __init__(
        self,
        event: int,
        context: int,
        *,
        width: int,
        depth: int,
        mildness: float,
        bound: float,
        base: bool = True,
        base_context: bool = True,
    ) -> None:
        super().__init__()
        self.base_net = GaussianMLP(context, event, width=width, depth=depth) if base else UnitGaussian(event)
        self.mildness, self.bound = mildness, bound
        self.base_context = base and base_context
        self.tilt_context = context + 2 * event * self.base_context
        self.register_buffer("spread_mean", torch.zeros(event))
        self.register_buffer("spread_shift", torch.zeros(event))

    @property
    @abc.abstractmethod
    def tilt(self) -> Any:
        """The model of the residual."""

    def base(self, context: Tensor) -> Base:
        """The mild, calibrated base at this context, `(B, C)`."""
        mean, log_std = self.base_net(context)
        mild = self.spread_mean + self.mildness * (log_std - self.spread_mean)
        return Base(mean, mild + self.spread_shift)

    @torch.no_grad()
    def calibrate(self, z: Tensor, context: Tensor) -> None:
        """Set the mild spread's mean and the constant per dimension that gives residuals unit spread; freezes the base.

        Increments z `(N, D)`, normalised, and contexts `(N, C)`.
        """
        self.spread_mean.copy_(self.base_net(context)[1].mean(0))
        self.spread_shift.zero_()
        mean, log_std = self.base(context)
        r = (z - mean) * torch.exp(-log_std)
        self.spread_shift.copy_(r.clamp(-self.bound, self.bound).square().mean(0).sqrt().clamp_min(1e-3).log())
        self.base_net.requires_grad_(False)

    def residual(self, z: Tensor, base: Base) -> Tensor:
        """r = (z - mu) / sigma, clamped, `(B, D)`."""
        return ((z - base.mean) * torch.exp(-base.log_std)).clamp(-self.bound, self.bound)

    def increment(self, r: Tensor, base: Base) -> Tensor:
        """The inverse of `residual` within the clamp."""
        return base.mean + r * torch.exp(base.log_std)

    def prepare(self, context: Tensor, base: Base) -> Any:
        """What the tilt is given of a context `(B, C)`, once a chain: the context and, if it sees it, the base itself."""
        seen = torch.cat((context, base.mean, base.log_std), dim=-1) if self.base_context else context
        return self.tilt.prepare(seen)
