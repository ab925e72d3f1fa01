"""The CPU as a device: it does at once what it is asked, so that there is nothing to wait for."""

# ruff: noqa: D102  what methods promise is said in interface.py

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext

import torch

from lorafleet_inference.device.interface import Device, DeviceBytes, Event, Graphs, Order, Stream


class _Done(Event):
    def wait(self, why: Order) -> None: ...


class _AtOnce(Stream):
    def mark(self) -> Event:
        return _Done()

    def wait(self, event: Event, why: Order) -> None: ...


class HostDevice(Device):
    """As the interface says; of any device of torch that is no CUDA device."""

    works_beside = False

    def pinned(self, shape: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
        """Ordinary memory."""
        return torch.empty(shape, dtype=dtype)

    def send(self, host: torch.Tensor) -> torch.Tensor:
        """The same tensor."""
        return host

    def copy(self, target: torch.Tensor, source: torch.Tensor) -> None:
        target.copy_(source)

    def current(self) -> Stream:
        return _AtOnce()

    def stream(self) -> Stream:
        return _AtOnce()

    def on(self, stream: Stream) -> AbstractContextManager[None]:  # noqa: ARG002
        return nullcontext()

    def graphs(self) -> Graphs | None:
        return None

    def use_in_thread(self) -> None: ...

    def check(self) -> None: ...

    def release_unused(self) -> None: ...

    def bytes(self) -> DeviceBytes | None:
        return None

    def peak_bytes(self, compute: Callable[[], object]) -> int:
        compute()
        return 0
