"""Rows of the base's weights on the host, for adapters that are compared with them or measured against them.

They come a few at a time, through memory of the host tier, and take none of the device: also not where the base is quantised.
"""

import threading
from collections.abc import Iterator
from typing import Protocol, runtime_checkable

import torch

from lorafleet_inference.device.host import HostDevice
from lorafleet_inference.device.interface import Device, Order, Stream
from lorafleet_inference.kernels.packed import plain_weight
from lorafleet_inference.model.quantization.rows import RowsOnHost
from lorafleet_inference.model.quantization.weight import QuantizedWeight

PIECE_ELEMENTS = 1 << 19
"""Of a piece, about: in float32 it stays in a core's cache."""
Stored = torch.Tensor | QuantizedWeight


@runtime_checkable
class StoresRows(Protocol):
    """A module whose weight [out, in] is not one tensor of its own."""

    def stored(self) -> list[tuple[Stored, slice]]:
        """Return what the weight is made of, one below the other, and which rows of each."""


class BaseRows:
    """Reads them; several threads may."""

    def __init__(self, device: Device, stream: Stream, room: torch.Tensor | None, dtype: torch.dtype) -> None:
        """`stream`: on which they are copied; `room`: pinned, uint8, through which they come; `dtype`: of quantised ones."""
        assert (room is not None) == device.works_beside, "where the device is the host, nothing has to be copied"
        self._device, self._stream, self._room, self._dtype = device, stream, room, dtype
        self._lock = threading.Lock()

    def on_host(self, tensor: torch.Tensor) -> torch.Tensor:
        """Return a contiguous tensor of the device on the host, in ordinary memory; one of the host as it is."""
        if self._room is None or tensor.device.type == "cpu":
            return tensor
        made = torch.empty(tensor.shape, dtype=tensor.dtype, device="cpu")
        source, target = tensor.view(-1).view(torch.uint8), made.view(-1).view(torch.uint8)
        size = len(self._room)
        with self._lock, self._device.on(self._stream):
            for at in range(0, len(source), size):
                count = min(size, len(source) - at)
                self._device.copy(self._room[:count], source[at : at + count])
                self._device.current().mark().wait(Order.BASE_READ)
                target[at : at + count] = self._room[:count]
        return made

    def bias(self, module: torch.nn.Module) -> torch.Tensor | float:
        """Return a module's bias in float32, 0.0 where it has none."""
        bias = getattr(module, "bias", None)
        return self.on_host(bias.detach()).float() if isinstance(bias, torch.Tensor) else 0.0

    def pieces(self, module: torch.nn.Module) -> Iterator[tuple[int, torch.Tensor]]:
        """Yield the first row and rows [some, ..] of a weight, from its first one to its last.

        The rows may be the base's own memory: nobody writes to them.
        """
        if not isinstance(module, StoresRows):
            yield from ((at, self.on_host(piece)) for at, piece in in_pieces(plain_weight(module).detach()))
            return
        first = 0
        for one, rows in module.stored():
            begin, end = rows.start, rows.stop
            if isinstance(one, torch.Tensor):
                for at, piece in in_pieces(one.detach()[begin:end]):
                    yield first + at, self.on_host(piece)
            else:
                read, step = RowsOnHost(one, self.on_host), max(1, PIECE_ELEMENTS // one.shape[1])
                for at in range(begin, end, step):
                    yield first + at - begin, read.read(at, min(at + step, end), self._dtype)
            first += end - begin


def in_pieces(rows: torch.Tensor) -> Iterator[tuple[int, torch.Tensor]]:
    """Yield the first row and rows of pieces of a tensor, views."""
    step = max(1, PIECE_ELEMENTS // max(1, rows[:1].numel()))
    for at in range(0, len(rows), step):
        yield at, rows[at : at + step]


def of_host(dtype: torch.dtype) -> BaseRows:
    """Return what reads the rows of a model that is on the host."""
    return BaseRows(HostDevice(), HostDevice().stream(), None, dtype)
