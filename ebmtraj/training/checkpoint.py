"""Weights with all that is needed to use them, and the resume state; safetensors only, written atomically."""

from __future__ import annotations

import contextlib
import json
import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from ebmtraj.config import read_toml
from ebmtraj.errors import EbmtrajError
from ebmtraj.runs import refuse_links, write_atomic
from ebmtraj.seal import of_arrays, of_recipe

FORMAT, VERSION = "ebmtraj", 1


def save_tensors(path: Path, tensors: Mapping[str, Tensor], header: Mapping[str, Any]) -> None:
    """Write tensors of any shape with a JSON header and its sha256; killed at any moment, the file is the old or the new."""
    values = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in tensors.items()}
    text = json.dumps({"format": FORMAT, "version": VERSION, **header}, allow_nan=False)
    write_atomic(path, save(values, metadata={"header": text, "sha256": digest_of(text, values)}))


def digest_of(header: str, tensors: Mapping[str, Tensor]) -> str:
    """sha256 of a header and of tensors of any shape on the CPU: names, types, shapes and bytes."""
    flat = {name: tensor.contiguous().view(-1) for name, tensor in sorted(tensors.items())}
    kinds = [f"{name} {tensor.dtype} {tuple(tensor.shape)}" for name, tensor in sorted(tensors.items())]
    return of_arrays(((name, tensor.view(torch.uint8).numpy()) for name, tensor in flat.items()), "|".join([header, *kinds]))


def recipe_seal(run: Path) -> dict[str, str]:
    """What a checkpoint's header says of the recipe in its run's `config.toml`, where there is one."""
    path = run / "config.toml"
    return {"recipe": of_recipe(read_toml(path))} if path.is_file() else {}


def load_tensors(path: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Header and tensors, of any shape, of a file; never unpickles.

    Raises `EbmtrajError` where it is missing, damaged, not ours, or lies in a run whose recipe is not the one it was trained
    with.
    """
    if not path.is_file():
        raise EbmtrajError(f"checkpoint {path} does not exist")
    if path.parent.name == "checkpoints":  # whoever reads a run without opening it
        refuse_links(path.parent, f"run {path.parent.parent}")
    try:
        with safe_open(path, framework="pt", device="cpu") as file:
            metadata = file.metadata() or {}
            text = metadata.get("header", "{}")
            header = json.loads(text)
            if header.get("format") != FORMAT:
                raise EbmtrajError(f"checkpoint {path} was not written by ebmtraj")
            if header.get("version") != VERSION:
                raise EbmtrajError(
                    f"checkpoint {path} has format version {header.get('version')}, this ebmtraj reads {VERSION}; "
                    "use the version of ebmtraj that wrote it"
                )
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a mapping)
    except (SafetensorError, ValueError, AttributeError, OSError, RuntimeError, TypeError) as error:  # recursion, too
        raise EbmtrajError(f"checkpoint {path} is damaged: {' '.join(str(error).split())[:300]}") from None
    if metadata.get("sha256", digest := digest_of(text, tensors)) != digest:
        raise EbmtrajError(
            f"checkpoint {path} is damaged: its content is not what its sha256 says; restore it, or train anew: --overwrite"
        )
    _check_recipe(path, header)
    return header, tensors


def _check_recipe(path: Path, header: Mapping[str, Any]) -> None:
    """Raise `EbmtrajError` where a checkpoint in a run directory is not of that run's recipe."""
    own = recipe_seal(path.parent.parent) if path.parent.name == "checkpoints" else {}
    if own and header.get("recipe", own["recipe"]) != own["recipe"]:
        raise EbmtrajError(
            f"{path.parent.parent / 'config.toml'} is not the recipe that checkpoint {path} was trained with: one of them "
            "was edited, damaged or exchanged; restore it, or train anew with --overwrite"
        )


@contextlib.contextmanager
def bounded(tensors: Mapping[str, Tensor], path: Path) -> Iterator[None]:
    """While a model is built from a checkpoint's header: raise `EbmtrajError` before it grows far beyond its tensors.

    And for whatever else building it raises. Tensors may have any shape: their sizes are added up.
    """
    with _Bounded(sum(tensor.numel() for tensor in tensors.values()), path):
        try:
            yield
        except EbmtrajError as error:
            raise EbmtrajError(str(error) if str(path) in str(error) else f"checkpoint {path}: {error}") from None
        except Exception as error:  # numbers that no model has may fail anywhere in torch
            reason = " ".join(f"{type(error).__name__}: {error}".split())[:200]
            raise EbmtrajError(f"checkpoint {path}: its header makes no model ({reason}); it is damaged") from None


class _Bounded(TorchFunctionMode):
    """Adds up the sizes that tensors are made with."""

    RANGES = (torch.arange, torch.linspace)
    MADE = (torch.empty, torch.zeros, torch.ones, torch.full, torch.rand, torch.randn, torch.eye, *RANGES)

    def __init__(self, held: int, path: Path) -> None:
        super().__init__()
        self._left, self._path = 8 * held + 4_000_000, path

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """What torch calls instead of each of its functions."""
        if func in self.MADE:
            sizes = args[0] if args and isinstance(args[0], list | tuple) else args
            sizes = [size for size in sizes if isinstance(size, int)]
            self._left -= (max(sizes, default=0) if func in self.RANGES else math.prod(sizes)) + 100
            if self._left < 0:
                raise EbmtrajError(
                    f"checkpoint {self._path}: its header asks for a far larger model than its tensors make up"
                )
        return func(*args, **(kwargs or {}))


def load_weights(module: nn.Module, tensors: Mapping[str, Tensor], path: Path) -> None:
    """Put tensors of any shape into a module; raises `EbmtrajError` that names the first that is missing or does not fit."""
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
