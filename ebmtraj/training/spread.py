"""A batch worked through in parts: by several processes that `torchrun` started, one after the other, or both."""

from __future__ import annotations

import contextlib
import dataclasses
import os
from collections.abc import Callable, Iterator
from typing import Any, Literal

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from ebmtraj.errors import EbmtrajError

Precision = Literal["fp32", "bf16"]
Loss = Callable[[Any, torch.Generator], tuple[Tensor, dict[str, Tensor]]]


@contextlib.contextmanager
def joined(device: torch.device) -> Iterator[torch.device]:
    """Be one of the processes that `torchrun` started, if it did; gives the device of this one.

    Raises `EbmtrajError` where they can't find each other.
    """
    if not _started_together() or dist.is_initialized():
        yield device
        return
    if device.type == "cuda":
        device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
        torch.cuda.set_device(device)
    try:
        dist.init_process_group("nccl" if device.type == "cuda" else "gloo")
    except (RuntimeError, ValueError) as error:
        raise EbmtrajError(f"the processes of torchrun can't find each other: {str(error).splitlines()[0]}") from None
    try:
        yield device
    finally:
        dist.destroy_process_group()


def _started_together() -> bool:
    return int(os.environ.get("WORLD_SIZE", "1")) > 1


def processes() -> int:
    """How many processes train together."""
    return dist.get_world_size() if dist.is_initialized() else 1


def rank() -> int:
    """The number of this process among them, from 0 on; also before they have met and after they have parted."""
    if dist.is_initialized():
        return dist.get_rank()
    return int(os.environ.get("RANK", "0")) if _started_together() else 0


def is_main() -> bool:
    """Whether this process is the one that writes and speaks."""
    return rank() == 0


def wait() -> None:
    """Wait for all processes."""
    if processes() > 1:
        dist.barrier()


def from_main(number: float, device: torch.device) -> float:
    """The main process's number, so that all decide alike."""
    if processes() == 1:
        return number
    shared = torch.tensor(number, dtype=torch.float64, device=device)
    dist.broadcast(shared, src=0)
    return float(shared)


def any_of(fault: str | None, device: torch.device) -> str | None:
    """This process's fault or, where it has none and another has, that there is one."""
    if processes() == 1:
        return fault
    faults = torch.tensor(float(fault is not None), device=device)
    dist.all_reduce(faults)
    return fault or ("another process's share diverged" if float(faults) > 0 else None)


def check_parts(batch: int, accumulate: int, spreads: bool = True) -> None:
    """Raise `EbmtrajError` for a batch that can't be shared out evenly, and for a model that does not spread."""
    if processes() > 1 and not spreads:
        raise EbmtrajError("this model's replay buffer is one process's own; train it without torchrun")
    parts = accumulate * processes()
    if batch % parts:
        raise EbmtrajError(
            f"training.batch = {batch} can't be shared out among {processes()} processes x {accumulate} parts; give a "
            f"multiple of {parts}"
        )


class LossOf(nn.Module):
    """A loss as the forward pass of the module that it trains, which is what distributed training wraps."""

    def __init__(self, module: nn.Module, loss: Loss, precision: Precision, device: torch.device) -> None:
        super().__init__()
        self.module, self.loss = module, loss
        self.precision, self.device_type = precision, device.type

    def forward(self, batch: Any, noise: torch.Generator) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss `()` of a batch, and what is logged."""
        with torch.autocast(self.device_type, torch.bfloat16, enabled=self.precision == "bf16"):
            return self.loss(batch, noise)


def shared_loss(module: nn.Module, loss: Loss, precision: Precision, device: torch.device) -> nn.Module:
    """The loss of a module whose gradients are averaged over all processes."""
    own = LossOf(module, loss, precision, device)
    if processes() == 1:
        return own
    return DistributedDataParallel(own, device_ids=[device.index] if device.type == "cuda" else None)


def backward(loss_of: nn.Module, batch: Any, accumulate: int, noise: torch.Generator) -> tuple[Tensor, dict[str, Tensor]]:
    """Leave the gradient of the mean loss of a joint batch in the parameters; returns this process's loss `()` and logs.

    Every process draws the same batch and works through its rows k, k + n, ... of n = processes x `accumulate` parts, each
    part with noise of its own number: p processes give the gradients of one process that accumulates p parts.
    """
    parts = accumulate * processes()
    if parts == 1:
        loss, logs = loss_of(batch, noise)
        loss.backward()
        return loss, logs
    seed = int(torch.randint(2**62, (), generator=noise, device=noise.device))
    losses: list[Tensor] = []
    gathered: list[dict[str, Tensor]] = []
    for part in range(accumulate):
        number = rank() * accumulate + part
        own = torch.Generator(device=noise.device).manual_seed(seed + number)
        last = part == accumulate - 1
        alone = isinstance(loss_of, DistributedDataParallel) and not last
        with loss_of.no_sync() if alone else contextlib.nullcontext():  # type: ignore[operator]
            loss, logs = loss_of(rows_of(batch, slice(number, None, parts)), own)
            (loss / accumulate).backward()
        losses.append(loss.detach())
        gathered.append(logs)
    means = {name: torch.stack([logs[name].detach().float() for logs in gathered]).mean() for name in gathered[0]}
    return torch.stack(losses).mean(), means


def rows_of(batch: Any, rows: slice) -> Any:
    """Some rows of a batch of any kind."""
    own = {f.name: getattr(batch, f.name) for f in dataclasses.fields(batch)}
    picked: dict[str, Any] = {
        name: value[rows] if isinstance(value, Tensor) else value.rows(rows) if hasattr(value, "rows") else value
        for name, value in own.items()
    }
    return dataclasses.replace(batch, **picked)
