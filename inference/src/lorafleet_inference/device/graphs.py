"""What surrounds the capture of a computation, on any device that can capture."""

from collections.abc import Callable

import torch

from lorafleet_inference.device.interface import Captured, Device, Graphs, Order, Stream

Record = Callable[[Callable[[], torch.Tensor], Stream], Captured]
"""Captures what a computation asks of a stream, the current one, without doing it."""


class OrderedGraphs(Graphs):
    """Runs a computation once, then captures it, on a stream beside the one of steps."""

    def __init__(self, device: Device, record: Record) -> None:
        self._device, self._record = device, record
        self._stream = device.stream()

    def capture(self, compute: Callable[[], torch.Tensor]) -> Captured:
        """As `Graphs`."""
        self._stream.wait(self._device.current().mark(), Order.TABLES_SENT)
        with self._device.on(self._stream):
            compute()  # compiles kernels, chooses algorithms
            self._stream.mark().wait(Order.WARMED_UP)
            return self._record(compute, self._stream)
