"""Every model of images by name, and how one comes back from a checkpoint or run."""

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
from ebmtraj.images.baselines.densities import ClassGaussianModel, GaussianModel, MixtureModel
from ebmtraj.images.baselines.svm import SVMModel
from ebmtraj.images.baselines.vae import VAEModel
from ebmtraj.images.classifier import ClassifierModel, JointCDModel
from ebmtraj.images.concept import ConceptModel
from ebmtraj.images.field import FieldModel
from ebmtraj.images.joint import JointModel
from ebmtraj.images.model import ImageModel
from ebmtraj.images.noise_conditional import NoiseConditionalModel
from ebmtraj.images.pair import PairModel
from ebmtraj.images.pcd import PCDModel
from ebmtraj.training.checkpoint import bounded, load_tensors, load_weights
from ebmtraj.training.run import read_run

MODELS: dict[str, type[ImageModel]] = {
    "dsm": NoiseConditionalModel,
    "pcd": PCDModel,
    "concept": ConceptModel,
    "field": FieldModel,
    "jem": JointModel,
    "jem-cd": JointCDModel,
    "classifier": ClassifierModel,
    "vae": VAEModel,
    "gaussian": GaussianModel,
    "class-gaussian": ClassGaussianModel,
    "gmm": MixtureModel,
    "svm": SVMModel,
}
OF_FACTORS: dict[str, type[ImageModel]] = {"pair": PairModel}  # those that need images with factors, and `--condition`
ENERGIES = ("dsm", "pcd")  # the generative energies among them, by their objective
JOINT = ("jem", "jem-cd", "classifier")  # the joint classifiers among them, by their objective


def image_model_class(name: str) -> type[ImageModel]:
    """The class registered under this name; raises `EbmtrajError` with the nearest one otherwise."""
    if name in OF_FACTORS:
        return OF_FACTORS[name]
    if name not in MODELS:
        close = difflib.get_close_matches(name, MODELS, n=1)
        raise EbmtrajError(
            f"unknown image model {name!r}; " + (f"did you mean {close[0]}?" if close else f"use {', '.join(MODELS)}")
        )
    return MODELS[name]


def make_image_model(
    name: str,
    shape: Sequence[int],
    classes: Sequence[str],
    *,
    conditional: bool = False,
    network: Mapping[str, Any] | None = None,
    seed: int = 0,
    source: str = "recipe: network",
) -> ImageModel:
    """A fresh model whose weights are drawn from `seed`; raises `EbmtrajError` for settings that it does not know."""
    cls = image_model_class(name)
    default: Any = cls.Config()
    usual = merge(to_plain(dataclasses.asdict(default)), cls.conditional_defaults if conditional else {})
    config: Any = build(cls.Config, merge(usual, to_plain(network or {})), source)
    with weights_from(seed):
        return cls(shape, classes, conditional=conditional, config=config)


def load_image_model(
    path: Path, device: torch.device | str = "cpu", network: Mapping[str, Any] | None = None
) -> tuple[ImageModel, dict[str, Any]]:
    """The model of a run directory or checkpoint, ready to use, and the checkpoint's header.

    `network` changes settings of the header's, such as those of the sampler. Raises `EbmtrajError` where the run or file is
    missing, not finished, damaged, foreign or of other dimensions than these settings ask for.
    """
    path = Path(path)
    if path.is_file():
        header, tensors = load_tensors(path)
    else:
        path, header, tensors = read_run(path, "image")
    if header.get("kind") != "image":
        raise EbmtrajError(f"checkpoint {path} holds {header.get('kind')!r}, not a model of images: ebmtraj train image")
    try:
        name, conditional, trained = str(header["model"]), bool(header["conditional"]), dict(header["network"])
        shape, classes = [int(size) for size in header["shape"]], [str(each) for each in header["classes"]]
    except (KeyError, TypeError, ValueError) as error:
        raise EbmtrajError(f"checkpoint {path}: its header is damaged ({error})") from None
    with bounded(tensors, path):
        model = make_image_model(
            name,
            shape,
            classes,
            conditional=conditional,
            network=merge(to_plain(trained), network or {}),
            source=f"checkpoint {path}: network",
        )
    load_weights(model, tensors, path)
    return model.to(device).eval(), header
