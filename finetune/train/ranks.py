"""Several processes that train together, started by torchrun: each takes a share of a step's examples, all take the same step.

Gradients are added up once a step, so the shares may be of any size. The first process alone owns the job's folder and
decides; the others follow. With one process everything here does nothing.
"""

from __future__ import annotations

import os
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import distributed

from finetune import environment
from finetune.train.folder import TrainFolder

T = TypeVar("T")


def join(where: torch.device) -> int:
    """Meet the other processes, if there are any. Returns this one's number; 0 leads.

    Args:
        where: The device of this process.
    """
    rank, count = environment.ranks()
    if count > 1 and not distributed.is_initialized():
        from accelerate import PartialState

        PartialState(cpu=where.type == "cpu")
    return rank


def count() -> int:
    """How many processes train together."""
    return distributed.get_world_size() if distributed.is_initialized() else 1


def rank() -> int:
    """This process's number."""
    return distributed.get_rank() if distributed.is_initialized() else 0


def agreed(value: T) -> T:
    """What the first process says, in all of them. Every process has to ask."""
    if count() == 1:
        return value
    said: list[Any] = [value if rank() == 0 else None]
    distributed.broadcast_object_list(said, src=0)
    return said[0]  # type: ignore[no-any-return]


def anywhere(flag: bool, where: torch.device) -> bool:
    """Whether `flag` is true in any process."""
    if count() == 1:
        return flag
    seen = torch.tensor(int(flag), device=where)
    distributed.all_reduce(seen)
    return bool(seen.item())


def add_up(tensors: list[torch.Tensor]) -> None:
    """Replace each tensor by its sum over all processes; those of a kind travel together."""
    if count() == 1:
        return
    for kind in sorted({tensor.dtype for tensor in tensors}, key=str):
        of_kind = [tensor for tensor in tensors if tensor.dtype == kind]
        flat = torch.cat([tensor.flatten() for tensor in of_kind])
        distributed.all_reduce(flat)
        for tensor, summed in zip(of_kind, flat.split([tensor.numel() for tensor in of_kind]), strict=True):
            tensor.copy_(summed.view_as(tensor))


def gradients(model: Any) -> list[torch.Tensor]:
    """The gradients of everything that is trained; zero where a process had no example."""
    found = []
    for weight in model.parameters():
        if weight.requires_grad:
            weight.grad = torch.zeros_like(weight) if weight.grad is None else weight.grad
            found.append(weight.grad)
    return found


@contextmanager
def following() -> Iterator[TrainFolder]:
    """A folder that is thrown away, and no word: what a process has that does not lead."""
    with tempfile.TemporaryDirectory(prefix="llamaflow-rank-") as beside, Path(os.devnull).open("w") as nowhere:
        before, sys.stdout = sys.stdout, nowhere
        try:
            yield TrainFolder(Path(beside))
        finally:
            sys.stdout = before
