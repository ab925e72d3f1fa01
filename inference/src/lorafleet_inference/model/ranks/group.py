"""The ranks of a model as a group that sums tensors. One process a rank."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Protocol

import torch
import torch.distributed as dist

JOIN_SECONDS = 1800.0
"""Ranks wait so long for each other: at the start, one may have to read its weights from a slow disk."""


class Group(Protocol):
    """What a rank asks of all. Each does so for the same things in the same order."""

    rank: int
    size: int

    def sum(self, partial: torch.Tensor) -> torch.Tensor:
        """Return the sum of what each rank has, the same bits on all of them; in the place of `partial`."""

    def least(self, number: int) -> int:
        """Return the least of the numbers that each rank has."""


class ProcessGroup(Group):
    """By torch.distributed: gloo between CPUs, NCCL between GPUs."""

    def __init__(self, rank: int, size: int, device: torch.device) -> None:
        self.rank, self.size = rank, size
        self._device = device

    def sum(self, partial: torch.Tensor) -> torch.Tensor:
        """As `Group`."""
        dist.all_reduce(partial)
        return partial

    def least(self, number: int) -> int:
        """As `Group`."""
        mine = torch.tensor([number], dtype=torch.int64, device=self._device)
        dist.all_reduce(mine, op=dist.ReduceOp.MIN)
        return int(mine.item())


@contextmanager
def process_group(rank: int, size: int, device: torch.device, store: Path, timeout_seconds: float) -> Iterator[Group]:
    """Join the group and leave it at the end. `store`: a file by which the ranks find each other, new for each group."""
    for name in ("GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME"):
        os.environ.setdefault(name, "lo")  # ranks are of one host, and nobody else may join
    dist.init_process_group(
        "nccl" if device.type == "cuda" else "gloo",
        store=dist.FileStore(str(store), size),  # type: ignore[attr-defined]
        rank=rank,
        world_size=size,
        timeout=timedelta(seconds=timeout_seconds),
    )
    try:
        group = ProcessGroup(rank, size, device)
        group.least(0)  # connects: what that takes of a device is taken before its memory is shared out
        yield group
    finally:
        dist.destroy_process_group()
