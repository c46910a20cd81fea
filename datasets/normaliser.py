"""Statistics of the training data, and what they scale: states, actions and increments, and the range kept to."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn

from ebmtraj.datasets.coordinates import Increments, Rotation
from ebmtraj.datasets.marginals import Marginals
from ebmtraj.datasets.windows import Batch, TransitionData, spread_index
from ebmtraj.errors import EbmtrajError
from ebmtraj.fields import Field, slices, total_size

WIDENING = 0.1  # of the training data's range, by which rollouts may leave it on either side
LIMIT_MARGIN = 0.009  # of a field's range beyond its limits that rollouts may reach; from 0.01 on it counts as a violation
SOFT_SHARE = 1e-3  # of training states beyond that margin: then the simulator itself does not hold the limit
MARGINAL_ROWS = 131_072  # transitions whose quantiles are taken
MOMENT_ROWS = 1_000_000  # transitions whose statistics are taken at once; up to so many, they are the plain formulas' bits


def check_scaling(whiten: bool, gaussianise: bool | Literal["auto"]) -> None:
    """Raise `EbmtrajError` where increments should be brought to unit spread in two ways at once."""
    if whiten and gaussianise is True:
        raise EbmtrajError("network: whiten and gaussianise don't go together; set one of them to false")


class Normaliser(nn.Module):
    """Brings states, actions and increments to zero mean and unit spread, and knows the range of the training data.

    Increments may also be whitened (decorrelated), or gaussianised (see `Marginals`). All statistics are buffers, so they
    travel with the weights.
    """

    unbounded: Tensor  # (S,) whether an entry has no range to keep to
    state_mean: Tensor  # (S,), in the states' units, as the next three
    state_scale: Tensor  # (S,) standard deviation
    state_low: Tensor  # (S,)
    state_high: Tensor  # (S,)
    feature_mean: Tensor  # (F,) of what networks see of a state
    feature_scale: Tensor  # (F,)
    action_mean: Tensor  # (A,)
    action_scale: Tensor  # (A,)
    delta_mean: Tensor  # (D,) of increments
    delta_matrix: Tensor  # (D, D) brings increments to unit spread
    delta_inverse: Tensor  # (D, D) and back; 0 where nothing ever moved

    def __init__(
        self, state_fields: Sequence[Field], action_fields: Sequence[Field], *, rotation: Rotation = "world"
    ) -> None:
        super().__init__()
        self.increments = Increments(state_fields, rotation)
        free = [field.kind == "quaternion" or turns for field in state_fields for turns in field.turning()]
        self.register_buffer("unbounded", torch.tensor(free), persistent=False)
        s, a, d = total_size(state_fields), total_size(action_fields), self.increments.size
        for name, value in (
            ("state_mean", torch.zeros(s)),
            ("state_scale", torch.ones(s)),
            ("state_low", torch.full((s,), -torch.inf)),
            ("state_high", torch.full((s,), torch.inf)),
            ("feature_mean", torch.zeros(self.increments.feature_size)),
            ("feature_scale", torch.ones(self.increments.feature_size)),
            ("action_mean", torch.zeros(a)),
            ("action_scale", torch.ones(a)),
            ("delta_mean", torch.zeros(d)),
            ("delta_matrix", torch.eye(d)),
            ("delta_inverse", torch.eye(d)),
        ):
            self.register_buffer(name, value)
        self.marginals = Marginals(d)

    @torch.no_grad()
    def fit(
        self, data: TransitionData, *, whiten: bool = False, gaussianise: bool = False, chunk: int = MOMENT_ROWS
    ) -> Normaliser:
        """Take the statistics of training transitions, `chunk` at a time; a constant dimension keeps scale 1."""
        check_scaling(whiten, gaussianise)
        states, features, actions, deltas = _Moments(), _Moments(), _Moments(), _Moments(covariance=whiten)
        low, high = (torch.tensor(side, dtype=torch.float64, device=data.device) for side in self._limits())
        beyond = torch.zeros_like(low)
        for state, batch in data.pieces(chunk):
            check_kinds(self.increments.fields, state, batch)
            beyond += ((state < low) | (state > high)).sum(0)
            states.add(state)
            features.add(self.increments.features(state))
            if batch.action is not None:
                actions.add(batch.action)
            deltas.add(self._between(batch))
        self.state_mean, self.state_scale = states.mean.float(), states.scale().float()
        self.state_low, self.state_high = _bounds(states.low, states.high, low, high, beyond / states.count > SOFT_SHARE)
        self.feature_mean, self.feature_scale = features.mean.float(), features.scale().float()
        if actions.count:
            self.action_mean, self.action_scale = actions.mean.float(), actions.scale().float()
        self.delta_mean, scale = deltas.mean.float(), deltas.scale().float()
        moves = deltas.high > deltas.low
        if whiten:
            covariance = deltas.covariance + torch.diag(torch.where(moves, 1e-6 * scale.double() ** 2, 1.0))
            root = torch.linalg.cholesky(covariance)
            self.delta_inverse = root.T.float()
            self.delta_matrix = torch.linalg.inv(root).T.float()
        else:
            self.delta_matrix, self.delta_inverse = torch.diag(1 / scale), torch.diag(scale)
        self.delta_inverse = self.delta_inverse * moves  # what never moved in the data never moves in a rollout
        if gaussianise:
            some = data.at(spread_index(data, MARGINAL_ROWS))
            low, high = (((side - self.delta_mean) / scale).double() for side in (deltas.low, deltas.high))
            self.marginals.fit((self._between(some) - self.delta_mean) / scale, low, high)
        return self

    def _between(self, batch: Batch, rows: int = 200_000) -> Tensor:
        pairs = zip(batch.state.split(rows), batch.next_state.split(rows), strict=True)
        return torch.cat([self.increments.between(state, following) for state, following in pairs])

    def context(self, state: Tensor, action: Tensor | None = None, *, matrices: bool = True, bound: float = 6.0) -> Tensor:
        """What a model is given: normalised features of the state, then the action if there is one, `(B, C)`, clamped.

        With `matrices`, quaternions are seen as rotation matrices; without, the state is seen as it is.
        """
        if matrices:
            c = (self.increments.features(state) - self.feature_mean) / self.feature_scale
        else:
            c = self.normalise_state(state)
        if action is not None:
            c = torch.cat((c, (action - self.action_mean) / self.action_scale), dim=-1)
        return c.clamp(-bound, bound)

    def normalise_state(self, state: Tensor) -> Tensor:
        """`(..., S)` to zero mean and unit spread."""
        return (state - self.state_mean) / self.state_scale

    def restore_state(self, normal: Tensor) -> Tensor:
        """The inverse of `normalise_state`."""
        return normal * self.state_scale + self.state_mean

    def delta(self, state: Tensor, next_state: Tensor) -> Tensor:
        """Normalised increment z, `(B, S), (B, S) -> (B, D)`."""
        return self.marginals(self.scaled(state, next_state))

    def scaled(self, state: Tensor, next_state: Tensor) -> Tensor:
        """The increment before it is gaussianised, `(B, S), (B, S) -> (B, D)`."""
        return (self.increments.between(state, next_state) - self.delta_mean) @ self.delta_matrix

    def moving(self, *values: Tensor) -> tuple[Tensor, ...]:
        """Each of these `(..., D)` with 0 for what never moved in the data, of which a likelihood knows no bounds."""
        moves = (self.delta_inverse != 0).any(0)
        return tuple(torch.where(moves, value, 0.0) for value in values)

    def advance(self, state: Tensor, z: Tensor) -> Tensor:
        """The state that a normalised increment leads to, `(B, S), (B, D) -> (B, S)`; quaternions come out unit."""
        return self.increments.apply(state, self.marginals.inverse(z) @ self.delta_inverse + self.delta_mean)

    def clamp(self, state: Tensor) -> Tensor:
        """Keep a state `(..., S)` where training data can be: within their range, widened by a tenth of it, and the limits.

        The limits are the fields'. Quaternions come out unit, and angles that turn without end are left alone. Limits are
        kept to 0.9 % of their range, unless more than one in 1,000 training states passes them by more, as with MuJoCo's
        soft limits under strong motors: then to the furthest that the training data go.
        """
        bounded = torch.minimum(torch.maximum(state, self.state_low), self.state_high)
        return self.increments.project(torch.where(self.unbounded, state, bounded))

    def _limits(self) -> tuple[list[float], list[float]]:
        """The fields' limits, entry by entry, widened by `LIMIT_MARGIN`."""
        lows, highs = [], []
        for field in self.increments.fields:
            for low, high in zip(*field.limits(), strict=True):
                margin = LIMIT_MARGIN * (high - low) if math.isfinite(high - low) else 0.0
                lows.append(low - margin)
                highs.append(high + margin)
        return lows, highs


def _bounds(least: Tensor, most: Tensor, low: Tensor, high: Tensor, soft: Tensor) -> tuple[Tensor, Tensor]:
    """Where rollouts may be, both `(S,)`: of the range seen and the limits, and of which of these the data do not keep."""
    wide = WIDENING * (most - least)
    below = torch.maximum(least - wide, torch.where(soft, torch.minimum(least, low), low))
    above = torch.minimum(most + wide, torch.where(soft, torch.maximum(most, high), high))
    return _rounded(below, torch.inf), _rounded(above, -torch.inf)


def _rounded(values: Tensor, towards: float) -> Tensor:
    """In single precision, never on the other side of the values."""
    single = values.float()
    outside = (single.double() < values) if towards > 0 else (single.double() > values)
    return torch.where(outside, torch.nextafter(single, torch.full_like(single, towards)), single)


def check_kinds(fields: Sequence[Field], states: Tensor, batch: Batch) -> None:
    """Raise `EbmtrajError` where states `(R, S)` can't be what their fields say.

    A quaternion is unit; an angle is in radians, so that steps of more than a whole turn are rare; an entry with limits is
    hardly ever further beyond them than their range is wide.
    """
    for field, place in zip(fields, slices(fields).values(), strict=True):
        values = states[:, place]
        if field.kind == "quaternion":
            off = (values.norm(dim=-1) - 1).abs()
            if float(off.max()) > 0.01:
                norm = float(values[off.argmax()].norm())
                raise EbmtrajError(
                    f"state field {field.name!r} is said to be a quaternion, but has a norm of {norm:.3g}; scale it to 1, "
                    "or say that it is plain"
                )
        if field.kind == "angle":
            step = (batch.next_state[:, place] - batch.state[:, place]).abs()
            share = float((step > 2 * math.pi).double().mean(0).max())
            if share > 0.01:
                raise EbmtrajError(
                    f"state field {field.name!r} is said to be an angle in radians, but turns by more than a whole turn in "
                    f"{share:.0%} of the steps; convert it from degrees, or say that it is plain"
                )
        low, high = (torch.tensor(side, dtype=torch.float64, device=values.device) for side in field.limits())
        width = high - low
        far = ((values < low - width) | (values > high + width)).double().mean(0)
        if float(far.max()) > 0.01:
            entry = int(far.argmax())
            raise EbmtrajError(
                f"state field {field.name!r}: entry {field.entries[entry] if field.entries else entry} lies far beyond its "
                f"limits {float(low[entry]):g} to {float(high[entry]):g} in {float(far[entry]):.0%} of the states; mend the "
                "limits or the unit"
            )


class _Moments:
    """Mean, spread, range and covariance of columns in float64, merged chunk by chunk (Chan et al. 1979).

    A chunk that stays alone gives the bits of the plain formulas.
    """

    mean: Tensor
    std: Tensor
    low: Tensor
    high: Tensor
    largest: Tensor
    covariance: Tensor

    def __init__(self, *, covariance: bool = False) -> None:
        self.count = 0
        self._with_covariance = covariance

    def add(self, values: Tensor) -> None:
        """Take in further rows `(R, D)`."""
        wide = values.double()
        count, mean, std = len(wide), wide.mean(0), wide.std(0, unbiased=False)
        low, high, largest = values.amin(0), values.amax(0), wide.abs().amax(0)
        del wide
        z = (values - mean.float()).double() if self._with_covariance else mean.new_zeros((0, len(mean)))
        covariance = z.T @ z / count
        if self.count == 0:
            self.count, self.mean, self.std, self.covariance = count, mean, std, covariance
            self.low, self.high, self.largest = low, high, largest
            return
        self.count += count
        share, shift = count / self.count, mean - self.mean
        between = share * (1 - share)
        self.std = torch.sqrt(torch.lerp(self.std**2, std**2, share) + between * shift**2)
        self.covariance = torch.lerp(self.covariance, covariance, share) + between * torch.outer(shift, shift)
        self.mean = self.mean + share * shift
        self.low, self.high = torch.minimum(self.low, low), torch.maximum(self.high, high)
        self.largest = torch.maximum(self.largest, largest)

    def scale(self) -> Tensor:
        """Standard deviation per column `(D,)`, with 1 in place of a vanishing one."""
        tiny = 1e-6 * self.largest.clamp_min(1e-6)
        return torch.where(self.std <= tiny, torch.ones_like(self.std), self.std)
