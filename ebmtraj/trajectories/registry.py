"""Every transition model by name, and how one comes back from a checkpoint."""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from ebmtraj.config import build, merge, to_plain
from ebmtraj.device import weights_from
from ebmtraj.errors import EbmtrajError
from ebmtraj.fields import Field, fields_from_json
from ebmtraj.training.checkpoint import bounded, load_tensors, load_weights
from ebmtraj.trajectories.baselines.diffusion import DiffusionModel
from ebmtraj.trajectories.baselines.ensemble import EnsembleModel
from ebmtraj.trajectories.baselines.feed_forward import FeedForwardModel
from ebmtraj.trajectories.baselines.field import FieldModel
from ebmtraj.trajectories.baselines.flow import FlowModel
from ebmtraj.trajectories.baselines.gaussian import GaussianModel
from ebmtraj.trajectories.baselines.mixture import MixtureModel
from ebmtraj.trajectories.baselines.sequence import SequenceModel
from ebmtraj.trajectories.improved import ImprovedPairModel
from ebmtraj.trajectories.model import TransitionModel
from ebmtraj.trajectories.ratio import RatioModel
from ebmtraj.trajectories.transition import PairModel, TiltedModel

MODELS: dict[str, type[TransitionModel]] = {
    "dsm": TiltedModel,
    "cd": PairModel,
    "icd": ImprovedPairModel,
    "fc": FeedForwardModel,
    "gaussian": GaussianModel,
    "ensemble": EnsembleModel,
    "mdn": MixtureModel,
    "edm": DiffusionModel,
    "flow": FlowModel,
    "field": FieldModel,
    "gru": SequenceModel,
    "ratio": RatioModel,
}
MARGINALS = "normaliser.marginals."
ENERGIES = ("dsm", "cd", "icd")  # the transition energies among them, by their objective


def model_class(name: str) -> type[TransitionModel]:
    """The class registered under this name; raises `EbmtrajError` with the nearest one otherwise."""
    if name not in MODELS:
        close = difflib.get_close_matches(name, MODELS, n=1)
        raise EbmtrajError(
            f"unknown transition model {name!r}; " + (f"did you mean {close[0]}?" if close else f"use {', '.join(MODELS)}")
        )
    return MODELS[name]


def make_model(
    name: str,
    state_fields: Sequence[Field],
    action_fields: Sequence[Field],
    *,
    actions: bool,
    network: dict[str, Any],
    seed: int = 0,
    source: str = "recipe: network",
) -> TransitionModel:
    """A fresh model whose weights are drawn from `seed`; raises `EbmtrajError` for settings that it does not know."""
    cls = model_class(name)
    config: Any = build(cls.Config, network, source)
    with weights_from(seed):
        return cls(state_fields, action_fields, actions=actions, config=config)


def load_model(
    path: Path, device: torch.device | str = "cpu", network: Mapping[str, Any] | None = None
) -> tuple[TransitionModel, dict[str, Any]]:
    """The model in a checkpoint, ready to sample, and the checkpoint's header.

    `network` changes settings of the header's, such as those of the sampler: `{"sampler": {"steps": 2}}`. Raises
    `EbmtrajError` where the file is missing, damaged, foreign or of other dimensions than these settings ask for.
    """
    header, tensors = load_tensors(path)
    if header.get("kind") != "transition":
        raise EbmtrajError(f"checkpoint {path} holds {header.get('kind')!r}, not a transition model")
    try:
        name, actions, trained = str(header["model"]), bool(header["actions"]), dict(header["network"])
        state_fields = fields_from_json(header["state_fields"])
        action_fields = fields_from_json(header["action_fields"])
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise EbmtrajError(f"checkpoint {path}: its header is damaged ({error})") from None
    turns, asked = trained.get("rotation", "world"), (network or {}).get("rotation")
    if asked not in (None, turns):  # whose sizes may be the same, and meaning another
        raise EbmtrajError(
            f"checkpoint {path} was trained with network.rotation = {turns!r}, not {asked!r}; drop that setting"
        )
    with bounded(tensors, path):
        model = make_model(
            name,
            state_fields,
            action_fields,
            actions=actions,
            network=merge(to_plain(trained), network or {}),
            source=f"checkpoint {path}: network",
        )
    if not any(name.startswith(MARGINALS) for name in tensors):  # trained before there were any: the identity
        tensors = {**model.normaliser.marginals.state_dict(prefix=MARGINALS), **tensors}
    load_weights(model, tensors, path)
    return model.to(device).eval(), header
