"""What a caller can get wrong, each said in one line before or after a chain and never inside it."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ebmtraj.errors import DivergedError, EbmtrajError


def check_chain(x: Tensor, mask: Tensor | None, generator: torch.Generator) -> None:
    """Raise `EbmtrajError` where start `(B, *event)`, mask (broadcast to it) or generator do not fit the chain."""
    if x.dim() < 1 or not x.is_floating_point():
        raise EbmtrajError(f"sampler: the start is {x.dtype} of shape {tuple(x.shape)}; give floating-point (B, *event)")
    if mask is not None and not _broadcasts(mask, x):
        raise EbmtrajError(
            f"sampler: the mask has shape {tuple(mask.shape)}, which does not broadcast to the start's {tuple(x.shape)}"
        )
    if mask is not None and mask.device != x.device:
        raise EbmtrajError(f"sampler: the mask is on {mask.device} and the start on {x.device}; move one to the other")
    ours, theirs = generator.device, x.device
    if ours.type != theirs.type or (None not in (ours.index, theirs.index) and ours.index != theirs.index):
        raise EbmtrajError(
            f"sampler: the generator is on {ours} and the start on {theirs}; make it with torch.Generator({str(theirs)!r})"
        )


def _broadcasts(mask: Tensor, x: Tensor) -> bool:
    try:
        return torch.broadcast_shapes(mask.shape, x.shape) == x.shape
    except RuntimeError:
        return False


def check_scale(x: Tensor, scale: tuple[float, ...] | None) -> Tensor:
    """The preconditioner as a tensor `()` or `(*event,)`; raises `EbmtrajError` where x `(B, *event)` has another size."""
    if scale is None:
        return torch.ones((), dtype=x.dtype, device=x.device)
    if x.shape[1:].numel() != len(scale):
        raise EbmtrajError(f"sampler: scale has {len(scale)} entries for an event of {x.shape[1:].numel()}")
    return torch.tensor(scale, dtype=x.dtype, device=x.device).view(x.shape[1:])


def check_energy(energy: Any, values: Any, x: Tensor) -> None:
    """Raise `EbmtrajError` where what an energy returned for x `(B, *event)` is not one number a chain, `(B,)`."""
    shape = tuple(values.shape) if isinstance(values, Tensor) else type(values).__name__
    if shape != (len(x),):
        raise EbmtrajError(
            f"{name_of(energy)} returned {shape} for x of shape {tuple(x.shape)}; an energy returns one number a chain, "
            f"shape {(len(x),)}"
        )


def check_gradient(energy: Any, gradient: Any, x: Tensor) -> None:
    """Raise `EbmtrajError` where a closed-form gradient is not of x's shape `(B, *event)`."""
    shape = tuple(gradient.shape) if isinstance(gradient, Tensor) else type(gradient).__name__
    if shape != tuple(x.shape):
        raise EbmtrajError(f"{name_of(energy)}: its gradient has shape {shape} for x of shape {tuple(x.shape)}")


def rows(x: Tensor) -> Tensor:
    """Each chain's numbers in a row, `(B, *event) -> (B, N)`, also where an event is a single number."""
    return x.flatten(1) if x.dim() > 1 else x.unsqueeze(1)


def name_of(energy: Any) -> str:
    """What to call an energy in an error."""
    return f"energy {getattr(energy, '__name__', type(energy).__name__)}"


def check_finite(energy: Any, what: str, values: Tensor, step: int | None = None, unit: str = "step") -> None:
    """Raise `DivergedError` that names the first chain whose `values` `(B, ...)` are not finite, and the step."""
    bad = ~rows(values.isfinite()).all(1)
    if bool(bad.any()):
        chain = int(bad.nonzero()[0])
        where = "at the start" if step is None else f"at {unit} {step}"
        others = int(bad.sum()) - 1
        raise DivergedError(
            f"{name_of(energy)}: {what} of chain {chain} is not finite {where}"
            + (f", nor that of {others} more" if others else "")
            + "; take a smaller step_size, or bound the energy"
        )


class FirstFault:
    """The step at which each chain of x `(B, *event)` first met what must not be, gathered on the device.

    It is read once, at the end.
    """

    def __init__(self, x: Tensor, warmup: int = 0) -> None:
        self.warmup = warmup  # so many steps before the first, at -warmup, -warmup + 1, ...
        self.when = torch.full((len(x),), torch.iinfo(torch.int64).max, device=x.device)

    def see(self, bad: Tensor, step: int) -> None:
        """Note `bad` `(B,)` at this step."""
        self.when = torch.where(bad, self.when.clamp(max=step), self.when)

    def check(self, energy: Any, what: str, chains: int | None = None) -> None:
        """Raise `DivergedError` that names the chain which met it first, and when; rows are replicas of so many `chains`."""
        if not len(self.when):
            return
        step, chain = (int(number) for number in self.when.min(0))
        if step != torch.iinfo(torch.int64).max:
            at = f"step {step}" if step >= 0 else f"step {step + self.warmup} of the warm-up"
            raise DivergedError(
                f"{name_of(energy)}: {what} of chain {chain % (chains or len(self.when))} is not a number at {at}; "
                "look at the energy there, or take a smaller step_size"
            )
