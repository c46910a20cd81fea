"""Weights with all that is needed to use them, and the resume state; safetensors only, written atomically."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn

from ebmtraj.errors import EbmtrajError
from ebmtraj.runs import write_atomic

FORMAT, VERSION = "ebmtraj", 1


def save_tensors(path: Path, tensors: Mapping[str, Tensor], header: Mapping[str, Any]) -> None:
    """Write tensors with a JSON header; killed at any moment, the file is the old one or the new one."""
    values = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in tensors.items()}
    text = json.dumps({"format": FORMAT, "version": VERSION, **header}, allow_nan=False)
    write_atomic(path, save(values, metadata={"header": text}))


def load_tensors(path: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Header and tensors of a file; raises `EbmtrajError` where it is missing, damaged or not ours. Never unpickles."""
    if not path.is_file():
        raise EbmtrajError(f"checkpoint {path} does not exist")
    try:
        with safe_open(path, framework="pt", device="cpu") as file:
            metadata = file.metadata() or {}
            header = json.loads(metadata.get("header", "{}"))
            if header.get("format") != FORMAT:
                raise EbmtrajError(f"checkpoint {path} was not written by ebmtraj")
            if header.get("version") != VERSION:
                raise EbmtrajError(
                    f"checkpoint {path} has format version {header.get('version')}, this ebmtraj reads {VERSION}; "
                    "use the version of ebmtraj that wrote it"
                )
            return header, {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a mapping)
    except (SafetensorError, ValueError, AttributeError, OSError) as error:
        raise EbmtrajError(f"checkpoint {path} is damaged: {error}") from None


def load_weights(module: nn.Module, tensors: Mapping[str, Tensor], path: Path) -> None:
    """Put tensors into a module; raises `EbmtrajError` that names the first one that is missing or of another shape."""
    own = module.state_dict()
    for name, value in own.items():
        if name not in tensors:
            raise EbmtrajError(f"checkpoint {path} lacks the tensor {name}: it belongs to another model")
        if tensors[name].shape != value.shape:
            raise EbmtrajError(
                f"checkpoint {path}: {name} has shape {tuple(tensors[name].shape)}, the model needs "
                f"{tuple(value.shape)}: it was trained for other dimensions"
            )
    if extra := sorted(set(tensors) - set(own)):
        raise EbmtrajError(f"checkpoint {path} has the tensor {extra[0]}, which this model does not: another model's")
    if bad := next((n for n, t in tensors.items() if t.is_floating_point() and torch.isnan(t).any()), None):
        raise EbmtrajError(f"checkpoint {path}: {bad} holds NaN; train again")
    module.load_state_dict(dict(tensors))
