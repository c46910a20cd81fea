"""Every generator by name, and how one comes back from a run."""

from __future__ import annotations

import dataclasses
import difflib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from ebmtraj.config import build, merge, to_plain
from ebmtraj.device import weights_from
from ebmtraj.errors import EbmtrajError
from ebmtraj.generators.flow import GLF, FlowGenerator, VAEFlow
from ebmtraj.generators.glow import Glow
from ebmtraj.generators.model import Generator
from ebmtraj.generators.vae import VAE, TwoStageVAE
from ebmtraj.training.checkpoint import bounded, load_tensors, load_weights
from ebmtraj.training.run import read_run

GENERATORS: Mapping[str, type[Generator]] = {
    "vae": VAE,
    "glf": GLF,
    "glow": Glow,
    "flow": FlowGenerator,
    "two-stage": TwoStageVAE,
    "vae-flow": VAEFlow,
}


def generator_class(name: str) -> type[Generator]:
    """The class registered under this name; raises `EbmtrajError` with the nearest one otherwise."""
    if name not in GENERATORS:
        close = difflib.get_close_matches(name, GENERATORS, n=1)
        raise EbmtrajError(
            f"unknown generator {name!r}; " + (f"did you mean {close[0]}?" if close else f"use {', '.join(GENERATORS)}")
        )
    return GENERATORS[name]


def network_defaults(name: str, shape: Sequence[int]) -> dict[str, Any]:
    """The settings that a generator of such events has unless others are given."""
    cls = generator_class(name)
    usual: Any = cls.Config()
    return merge(to_plain(dataclasses.asdict(usual)), cls.point_defaults.get("network", {}) if len(shape) == 1 else {})


def make_generator(
    name: str,
    shape: Sequence[int],
    levels: int,
    *,
    network: Mapping[str, Any] | None = None,
    seed: int = 0,
    source: str = "recipe: network",
) -> Generator:
    """A fresh generator whose weights are drawn from `seed`; raises `EbmtrajError` for settings that it does not know."""
    cls = generator_class(name)
    config: Any = build(cls.Config, merge(network_defaults(name, shape), to_plain(network or {})), source)
    with weights_from(seed):
        return cls(shape, levels, config)


def load_generator(path: Path, device: torch.device | str = "cpu") -> tuple[Generator, dict[str, Any]]:
    """The generator of a run directory or checkpoint, frozen, and the checkpoint's header.

    Raises `EbmtrajError` where the run or file is missing, not finished, damaged, or no generator's.
    """
    path = Path(path)
    if path.is_file():
        header, tensors = load_tensors(path)
    else:
        path, header, tensors = read_run(path, "generator")
    if header.get("kind") != "generator":
        raise EbmtrajError(
            f"checkpoint {path} holds {header.get('kind')!r}, no generator with a latent space: ebmtraj train generator"
        )
    try:
        name, network = str(header["model"]), dict(header["network"])
        shape, levels = [int(size) for size in header["shape"]], int(header["levels"])
    except (KeyError, TypeError, ValueError) as error:
        raise EbmtrajError(f"checkpoint {path}: its header is damaged ({error})") from None
    with bounded(tensors, path):
        model = make_generator(name, shape, levels, network=network, source=f"checkpoint {path}: network")
    load_weights(model, tensors, path)
    return model.to(device).eval().requires_grad_(False), header
