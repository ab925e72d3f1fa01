"""What the kernels of one step read beside tensors: one block of numbers, one copy to the device."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch

Int32s = np.ndarray[Any, np.dtype[np.int32]]
ALIGN = 4
"""Parts begin at multiples of 16 bytes, so that Triton compiles one variant of a kernel and not two."""


class Table(Protocol):
    """Numbers that kernels read."""

    @property
    def tensor(self) -> torch.Tensor:
        """int32, on the device."""


@dataclass(frozen=True, slots=True)
class Part(Table):
    """Numbers in the block of a step."""

    block: "StepBlock"
    begin: int
    shape: tuple[int, ...]

    @property
    def tensor(self) -> torch.Tensor:
        """int32, on the device; the first to ask for one sends the block."""
        sent = self.block.send()
        return sent[self.begin : self.begin + int(np.prod(self.shape))].view(self.shape)


class StepBlock:
    """Collects parts on the host and copies them to the device, once and without waiting."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._parts: list[tuple[int, Int32s]] = []
        self._length = 0
        self._sent: torch.Tensor | None = None

    def add(self, numbers: Int32s) -> Part:
        """Take part in the copy."""
        assert self._sent is None, "the block is on its way"
        part = Part(self, self._length, numbers.shape)
        self._parts.append((self._length, numbers))
        self._length += -(-numbers.size // ALIGN) * ALIGN
        return part

    def send(self) -> torch.Tensor:
        """Return the block on the device."""
        if self._sent is None:
            numbers = np.zeros(self._length, dtype=np.int32)
            for begin, part in self._parts:
                numbers[begin : begin + part.size] = part.reshape(-1)
            # torch keeps a pinned buffer until the copy from it is done, also when nothing refers to it any more
            host = torch.empty(self._length, dtype=torch.int32, pin_memory=self._device.type == "cuda")
            host.copy_(torch.from_numpy(numbers))
            self._sent = host.to(self._device, non_blocking=True)
        return self._sent


def table_of(lists: Sequence[Sequence[int] | Int32s]) -> Int32s:
    """Return a table [lists, longest, at least 1] with zeros behind the shorter ones; its rows are aligned."""
    longest = max((len(one) for one in lists), default=1)
    table = np.zeros((len(lists), max(ALIGN, -(-longest // ALIGN) * ALIGN)), dtype=np.int32)
    for at, one in enumerate(lists):
        table[at, : len(one)] = one
    return table
