"""The ranks of a model as a group that sums tensors. One process a rank."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any, Final, Protocol

import torch
import torch.distributed as dist

JOIN_SECONDS = 1800.0
"""Ranks wait so long for each other: at the start, one may have to read its weights from a slow disk."""
_SECONDS = timedelta(seconds=JOIN_SECONDS)


class Group(Protocol):
    """What a rank asks of all. Each does so for the same things in the same order."""

    rank: int
    size: int

    def sum(self, partial: torch.Tensor) -> torch.Tensor:
        """Return the sum of what each rank has, the same bits on all of them; in the place of `partial`."""

    def gather(self, part: torch.Tensor) -> list[torch.Tensor] | None:
        """Return what each rank has, in their order, on the first rank; None on the others."""

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

    def gather(self, part: torch.Tensor) -> list[torch.Tensor] | None:
        """As `Group`."""
        parts = [torch.empty_like(part) for _ in range(self.size)] if self.rank == 0 else None
        dist.gather(part, parts, dst=0)
        return parts

    def least(self, number: int) -> int:
        """As `Group`."""
        mine = torch.tensor([number], dtype=torch.int64, device=self._device)
        dist.all_reduce(mine, op=dist.ReduceOp.MIN)
        return int(mine.item())


Store = Any
"""One of torch.distributed, by which ranks find each other; torch exports their classes without saying so."""
FILE, TCP = "file://", "tcp://"
ANY_PORT: Final = 0


def serve_store(address: str, size: int) -> tuple[Store, int]:
    """Return what the ranks of several hosts find each other by, served by this process, and the port that it has."""
    store = dist.TCPStore(  # type: ignore[attr-defined]
        address, ANY_PORT, size, is_master=True, wait_for_workers=False, timeout=_SECONDS
    )
    return store, store.port


def store_of(url: str, size: int) -> Store:
    """Return what the ranks find each other by: a file of this host, or what the first rank serves."""
    if url.startswith(FILE):
        return dist.FileStore(url.removeprefix(FILE), size)  # type: ignore[attr-defined]
    address, _, port = url.removeprefix(TCP).rpartition(":")
    return dist.TCPStore(address, int(port), size, is_master=False, timeout=_SECONDS)  # type: ignore[attr-defined]


@contextmanager
def process_group(rank: int, size: int, device: torch.device, store: Store, *, is_one_host: bool) -> Iterator[Group]:
    """Join the group and leave it at the end. `store`: new for each group."""
    if is_one_host:
        for name in ("GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME"):
            os.environ.setdefault(name, "lo")  # nobody else may join
    dist.init_process_group(
        "nccl" if device.type == "cuda" else "gloo", store=store, rank=rank, world_size=size, timeout=_SECONDS
    )
    try:
        group = ProcessGroup(rank, size, device)
        group.least(0)  # connects: what that takes of a device is taken before its memory is shared out
        yield group
    finally:
        dist.destroy_process_group()
