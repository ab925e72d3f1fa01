"""The numbers of a step on their way to the device: those of its batch and of its kernels are one block, and one copy."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch

from lorafleet_inference.device.devices import device_at

Int32s = np.ndarray[Any, np.dtype[np.int32]]
Numbers = np.ndarray[Any, np.dtype[Any]]
DTYPES = {np.dtype(np.int32): torch.int32, np.dtype(np.int64): torch.int64, np.dtype(np.float64): torch.float64}
"""Of what a block takes."""
WORD_BYTES = torch.int32.itemsize
ALIGN = 4
"""Parts begin at multiples of 16 bytes, so that Triton compiles one variant of a kernel and not two."""


class Table(Protocol):
    """Numbers of a step."""

    @property
    def tensor(self) -> torch.Tensor:
        """Of the dtype of the numbers, on the device."""


@dataclass(frozen=True, slots=True)
class Given(Table):
    """Numbers that are there already."""

    tensor: torch.Tensor


class Part(Table):
    """Numbers in the block of a step."""

    def __init__(self, block: "StepBlock", begin: int, numbers: Numbers) -> None:
        """`begin`: the word of the block that is their first."""
        self._block, self._begin = block, begin
        self._shape, self._dtype = numbers.shape, DTYPES[numbers.dtype]
        self._tensor: torch.Tensor | None = None

    @property
    def tensor(self) -> torch.Tensor:
        """On the device; the first to ask for one sends the block."""
        if self._tensor is None:
            num_words = int(np.prod(self._shape)) * self._dtype.itemsize // WORD_BYTES
            words = self._block.send()[self._begin : self._begin + num_words]
            self._tensor = words.view(self._dtype).view(self._shape)
        return self._tensor


class Block(Protocol):
    """Takes numbers to where a step is computed."""

    def add(self, numbers: Numbers) -> Table:
        """Take these, of int32, int64 or float64."""


class HostBlock(Block):
    """That is the CPU, where they are."""

    def add(self, numbers: Numbers) -> Table:
        """Return them as they are."""
        return Given(torch.from_numpy(numbers))


class StepBlock(Block):
    """Collects parts on the host and copies them to the device, once and without waiting."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._parts: list[tuple[int, Int32s]] = []
        self._length = 0
        self._sent: torch.Tensor | None = None

    def add(self, numbers: Numbers) -> Table:
        """Take part in the copy."""
        assert self._sent is None, "the block is on its way"
        part = Part(self, self._length, numbers)
        words = np.ascontiguousarray(numbers).reshape(-1).view(np.int32)
        self._parts.append((self._length, words))
        self._length += -(-words.size // ALIGN) * ALIGN
        return part

    def send(self) -> torch.Tensor:
        """Return the block on the device."""
        if self._sent is None:
            numbers = np.zeros(self._length, dtype=np.int32)
            for begin, part in self._parts:
                numbers[begin : begin + part.size] = part
            device = device_at(self._device)
            self._sent = device.send(device.pinned((self._length,), torch.int32).copy_(torch.from_numpy(numbers)))
        return self._sent


def table_of(lists: Sequence[Sequence[int] | Int32s]) -> Int32s:
    """Return a table [lists, longest, at least 1] with zeros behind the shorter ones; its rows are aligned."""
    longest = max((len(one) for one in lists), default=1)
    table = np.zeros((len(lists), max(ALIGN, -(-longest // ALIGN) * ALIGN)), dtype=np.int32)
    for at, one in enumerate(lists):
        table[at, : len(one)] = one
    return table
