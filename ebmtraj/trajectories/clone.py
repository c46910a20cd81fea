"""Behaviour cloning: the next action as a mixture of Gaussians, given the present and what came of it in hindsight.

Emmons et al. 2022; Ghosh et al. 2021.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ebmtraj.datasets.ahead import Window, Windows
from ebmtraj.datasets.coordinates import quaternion_conjugate, quaternion_log, quaternion_multiply
from ebmtraj.datasets.normaliser import Normaliser
from ebmtraj.datasets.windows import Batch, Past
from ebmtraj.errors import EbmtrajError
from ebmtraj.fields import Field, fields_to_json, slices, total_size
from ebmtraj.nets.mixture import Mixture, MixtureMLP, choose, pick
from ebmtraj.training.losses import mixture_nll
from ebmtraj.training.trainable import Stage, Trainable
from ebmtraj.trajectories.history import forgotten, present, present_size
from ebmtraj.trajectories.model import check_likelihood, check_network

LABELS = {"none": 0, "axis": 7, "goal": 4}  # what a policy is told beside the present: how many numbers
FARTHEST = 1.2  # rad: goals further away are seen from here, as `Reorient` does
UNIT = 0.5  # rad that a label counts as 1


@dataclass(frozen=True)
class CloneConfig:
    """A mixture density over the next actions, fitted by its likelihood.

    Raises `EbmtrajError` for a setting out of its range.
    """

    width: int = 256  # units of a hidden layer
    depth: int = 2  # hidden layers
    components: int = 1  # a Gaussian; more: a mixture of so many
    controls: int = 1  # actions before the present that are seen
    actions: int = 8  # the next ones, predicted together: a policy of single ones copies its last
    blind: float = 0.5  # share of the training examples whose past is hidden: a policy that copies it heeds no label
    horizons: tuple[int, ...] = (16,)  # steps ahead of which hindsight knows; a goal is any, an axis the last one's
    low: float = -4.0  # bounds of the log standard deviations
    high: float = 1.0  # the upper one
    spread: float = 0.5  # of the components' means before training, in standard deviations of the data

    def __post_init__(self) -> None:
        check_network(self.width, self.depth)
        check_likelihood(self.low, self.high)
        if min(self.components, self.controls, self.actions) < 1 or self.spread < 0:
            raise EbmtrajError(
                f"network: components = {self.components}, controls = {self.controls}, actions = {self.actions}, "
                f"spread = {self.spread}; it needs the first three >= 1 and spread >= 0"
            )
        if not 0 <= self.blind <= 1:
            raise EbmtrajError(f"network.blind = {self.blind}; give a share from 0 to 1")
        if not self.horizons or min(self.horizons) < 1 or list(self.horizons) != sorted(set(self.horizons)):
            raise EbmtrajError(f"network.horizons = {list(self.horizons)}; give rising numbers of steps, from 1 on")


class CloneModel(Trainable):
    """p(a_t ... a_t+W-1 | present, label).

    The label is nothing; `axis`, the signed axis of the six about which the body turned most over the last horizon and how
    far (Emmons et al. 2022: return-conditioned cloning); or `goal`, the rotation to where the body was at one of the
    horizons (Ghosh et al. 2021: hindsight relabelling).
    """

    def __init__(
        self,
        state_fields: Sequence[Field],
        action_fields: Sequence[Field],
        *,
        label: str,
        config: CloneConfig,
        environment: dict[str, Any],
    ) -> None:
        super().__init__()
        self.state_fields, self.action_fields = tuple(state_fields), tuple(action_fields)
        self.label, self.config, self.environment = label, config, environment
        self.normaliser = Normaliser(state_fields, action_fields)
        self.action_size = total_size(action_fields)
        if label != "none":
            self.orientation()
        self.net = MixtureMLP(
            present_size(self.normaliser, config.controls) + LABELS[label],
            config.actions * self.action_size,
            components=config.components,
            width=config.width,
            depth=config.depth,
            low=config.low,
            high=config.high,
            spread=config.spread,
        )

    def prepare(self, data: Windows) -> None:
        """Take the statistics of the training data before the first step."""
        self.normaliser.fit(data)

    def stages(self) -> list[Stage]:
        """Likelihood throughout."""
        return [Stage("likelihood", 1.0, self.net, self._loss)]

    def header(self) -> dict[str, Any]:
        """What a checkpoint must say so that `load_clone` gives this model back."""
        return {
            "kind": "clone",
            "label": self.label,
            "network": dataclasses.asdict(self.config),
            "environment": self.environment,
            "state_fields": fields_to_json(self.state_fields),
            "action_fields": fields_to_json(self.action_fields),
        }

    def orientation(self) -> slice:
        """Where the states hold the body's quaternion; raises `EbmtrajError` where they have none, or several."""
        found = [field.name for field in self.state_fields if field.kind == "quaternion"]
        if len(found) != 1:
            raise EbmtrajError(f"label {self.label!r} needs a state with one quaternion, not {len(found)}; use label none")
        return slices(self.state_fields)[found[0]]

    @torch.no_grad()
    def act(self, state: Tensor, past: Past, label: Tensor | None, pick_by: str, generator: torch.Generator) -> Tensor:
        """Actions `(B, W, A)` within their bounds, in states `(B, S)` under labels of `turn_label` or `goal_label`.

        `pick_by` weight takes the mean of the likeliest component, density that of the component whose mean is most
        likely under it, mean that of all, and sample draws.
        """
        mixture = self.net(self._seen(state, past, label))
        z = _picked(mixture, pick_by, generator).unflatten(-1, (self.config.actions, self.action_size))
        low, high = zip(*(limit for f in self.action_fields for limit in zip(*f.limits(), strict=True)), strict=True)
        actions = z * self.normaliser.action_scale + self.normaliser.action_mean
        return torch.minimum(torch.maximum(actions, actions.new_tensor(low)), actions.new_tensor(high))

    def _seen(self, state: Tensor, past: Past, label: Tensor | None) -> Tensor:
        seen = present(self.normaliser, state, past)
        return seen if label is None else torch.cat((seen, label), dim=-1)

    def _loss(self, batch: Batch, generator: torch.Generator) -> tuple[Tensor, dict[str, Tensor]]:
        assert isinstance(batch, Window)
        assert batch.past is not None
        with torch.no_grad():
            z = ((batch.actions - self.normaliser.action_mean) / self.normaliser.action_scale).flatten(1)
            past = forgotten(batch.past, self.config.blind, generator)
            seen = self._seen(batch.state, past, self._hindsight(batch, generator))
        mixture = self.net(seen)
        loss = mixture_nll(z, mixture.log_weight, mixture.mean, mixture.log_std).mean()
        return loss, {"validation": loss.detach()}

    def _hindsight(self, batch: Window, generator: torch.Generator) -> Tensor | None:
        """The label that the coming steps tell, `(B, L)`."""
        if self.label == "none":
            return None
        place, rows = self.orientation(), torch.arange(len(batch.state), device=batch.state.device)
        later = torch.full_like(rows, len(self.config.horizons) - 1)
        if self.label == "goal":
            later = torch.randint(len(self.config.horizons), rows.shape, generator=generator, device=rows.device)
        turn = rotation_to(batch.state[:, place], batch.ahead[rows, later][:, place])
        return goal_label(turn) if self.label == "goal" else turn_label(turn)


def rotation_to(now: Tensor, then: Tensor) -> Tensor:
    """World-frame rotation vectors (rad) that take quaternions `(B, 4)` into others, `(B, 3)`."""
    return quaternion_log(quaternion_multiply(then, quaternion_conjugate(now)))


def turn_label(turn: Tensor) -> Tensor:
    """Which of the six signed axes a rotation vector `(B, 3)` (rad) follows most, and how far, in half radians, `(B, 7)`."""
    along = torch.stack((turn, -turn), dim=-1).flatten(1)  # +x -x +y -y +z -z
    most, axis = along.max(dim=1)
    told = torch.nn.functional.one_hot(axis, 6).to(turn.dtype)
    return torch.cat((told, most.unsqueeze(1) / UNIT), dim=1)


def goal_label(turn: Tensor) -> Tensor:
    """A remaining rotation `(B, 3)`, no longer than 1.2 rad, and its length, `(B, 4)`."""
    size = turn.norm(dim=1, keepdim=True).clamp_min(1e-9)
    near = turn * (FARTHEST / size).clamp_max(1.0)
    return torch.cat((near, near.norm(dim=1, keepdim=True)), dim=1) / UNIT


def _picked(mixture: Mixture, pick_by: str, generator: torch.Generator) -> Tensor:
    if pick_by == "mean":
        return (mixture.log_weight.exp().unsqueeze(-1) * mixture.mean).sum(1)
    if pick_by == "sample":
        component = choose(mixture.log_weight, generator)
        mean, log_std = pick(mixture.mean, component), pick(mixture.log_std, component)
        return mean + torch.exp(log_std) * torch.empty_like(mean).normal_(generator=generator)
    score = mixture.log_weight - (mixture.log_std.sum(-1) if pick_by == "density" else 0.0)
    return pick(mixture.mean, score.argmax(-1))
