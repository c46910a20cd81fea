"""Every continual learner by name: to add one, write its class in a file of this folder and a line here.

The contract, which one test holds every entry to, is that of `Learner`: it observes tasks in turn and predicts at any time,
the same seed gives the same predictions, images of earlier tasks are kept only where it says so, and the shift of a test
image changes nothing in it.
"""

from __future__ import annotations

import dataclasses
import difflib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch

from ebmtraj.config import build, merge, to_plain
from ebmtraj.continual.contrastive import GatedEBM, LabelContrast, MaskedContrastive
from ebmtraj.continual.gaussians import ClassGaussian, NearestMean, TiltedGaussian
from ebmtraj.continual.learner import Learner
from ebmtraj.continual.masked import MaskedEBM, SeparateNets
from ebmtraj.continual.replay import Joint, Replay
from ebmtraj.continual.softmax import (
    EWC,
    FineTune,
    LearningWithoutForgetting,
    OnlineEWC,
    SynapticIntelligence,
)
from ebmtraj.continual.tasks import Problem
from ebmtraj.continual.vae import ConditionalVAE
from ebmtraj.errors import EbmtrajError


@dataclass(frozen=True)
class Entry:
    """A row of the tables: a learner with its settings."""

    learner: type[Learner]
    settings: Mapping[str, Any] = field(default_factory=dict)  # where they differ from its Config's
    title: str = ""  # where it differs from the learner's


LEARNERS: Mapping[str, Entry] = {
    "ebm": Entry(MaskedEBM),
    "ebm-shift": Entry(MaskedEBM, {"shift": True}, "masked EBM, stored shift"),
    "ebm-free": Entry(MaskedEBM, {"hold": False, "objective": "score"}, "masked EBM, no weights held"),
    "ebm-cd": Entry(MaskedContrastive),
    "paper-ebm": Entry(GatedEBM),
    "label-contrast": Entry(LabelContrast),
    "vae": Entry(ConditionalVAE),
    "fine-tune": Entry(FineTune),
    "ewc": Entry(EWC),
    "online-ewc": Entry(OnlineEWC),
    "si": Entry(SynapticIntelligence),
    "lwf": Entry(LearningWithoutForgetting),
    "separate": Entry(SeparateNets),
    "nearest-mean": Entry(NearestMean),
    "class-gaussian": Entry(ClassGaussian),
    "tilt": Entry(TiltedGaussian),
    "replay": Entry(Replay),
    "joint": Entry(Joint),
}


def entry_of(name: str) -> Entry:
    """The row registered under this name; raises `EbmtrajError` with the nearest one otherwise."""
    if name not in LEARNERS:
        close = difflib.get_close_matches(name, LEARNERS, n=1)
        hint = f"did you mean {close[0]}?" if close else f"use all or of {', '.join(LEARNERS)}"
        raise EbmtrajError(f"unknown learner {name!r}; {hint}")
    return LEARNERS[name]


def title_of(name: str) -> str:
    """What tables call it."""
    entry = entry_of(name)
    return entry.title or entry.learner.title


def settings_of(name: str, changes: Mapping[str, Any] | None = None) -> Any:
    """The Config of a row with these changes; raises `EbmtrajError` for one that it does not know, or of a wrong type."""
    entry = entry_of(name)
    default = to_plain(dataclasses.asdict(entry.learner.Config()))
    values = merge(merge(default, to_plain(entry.settings)), to_plain(changes or {}))
    return build(entry.learner.Config, values, f"learner {name}")


def make_learner(
    name: str,
    problem: Problem,
    seed: int = 0,
    changes: Mapping[str, Any] | None = None,
    device: torch.device | str = "cpu",
) -> Learner:
    """A fresh learner whose randomness comes from `seed`; raises `EbmtrajError` as `entry_of` and `settings_of`."""
    return entry_of(name).learner(problem, settings_of(name, changes), seed, device)
