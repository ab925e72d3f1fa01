"""CUDA as a device, and what there is of it. The one file that asks torch.cuda."""

# ruff: noqa: D102  what methods promise is said in interface.py

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch

from lorafleet_inference.device.graphs import OrderedGraphs
from lorafleet_inference.device.interface import Captured, Device, DeviceBytes, Event, Graphs, Order, Stream


def is_there() -> bool:
    """Whether there is a CUDA device that can be used."""
    return torch.cuda.is_available()


def count() -> int:
    """Return how many there are."""
    return torch.cuda.device_count()


def choose(rank: int | None = None) -> torch.device:
    """Have the calling thread use a device from now on, the first one where no rank is given, and return it."""
    if rank is not None:
        torch.cuda.set_device(rank)
    return torch.device("cuda", torch.cuda.current_device())


def capability(device: torch.device) -> tuple[int, int]:
    """Return the generation of a CUDA device, as (major, minor)."""
    return torch.cuda.get_device_capability(device)


@dataclass(frozen=True, slots=True)
class _Event(Event):
    event: torch.cuda.Event

    def wait(self, why: Order) -> None:  # noqa: ARG002  the reason is for the simulation
        self.event.synchronize()


@dataclass(frozen=True, slots=True)
class _Stream(Stream):
    stream: torch.cuda.Stream

    def mark(self) -> Event:
        event = torch.cuda.Event()  # type: ignore[no-untyped-call]
        event.record(self.stream)
        return _Event(event)

    def wait(self, event: Event, why: Order) -> None:  # noqa: ARG002
        assert isinstance(event, _Event)
        self.stream.wait_event(event.event)


class CudaDevice(Device):
    """As the interface says."""

    works_beside = True

    def __init__(self, device: torch.device) -> None:
        self._device = device

    def pinned(self, shape: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
        # torch keeps a pinned buffer until the copies from and to it are done, also when nothing refers to it any more
        return torch.empty(shape, dtype=dtype, pin_memory=True)

    def send(self, host: torch.Tensor) -> torch.Tensor:
        return host.to(self._device, non_blocking=True)

    def copy(self, target: torch.Tensor, source: torch.Tensor) -> None:
        target.copy_(source, non_blocking=True)

    def current(self) -> Stream:
        return _Stream(torch.cuda.current_stream(self._device))

    def stream(self) -> Stream:
        return _Stream(torch.cuda.Stream(self._device))  # type: ignore[no-untyped-call]

    @contextmanager
    def on(self, stream: Stream) -> Iterator[None]:
        assert isinstance(stream, _Stream)
        with torch.cuda.stream(stream.stream):
            yield

    def graphs(self) -> Graphs | None:
        return OrderedGraphs(self, _Recorder())

    def use_in_thread(self) -> None:
        torch.cuda.set_device(self._device)  # a new thread's is the first

    def check(self) -> None:
        torch.cuda.synchronize(self._device)

    def release_unused(self) -> None:
        torch.cuda.empty_cache()

    def bytes(self) -> DeviceBytes | None:
        return DeviceBytes(*torch.cuda.mem_get_info(self._device))

    def peak_bytes(self, compute: Callable[[], object]) -> int:
        torch.cuda.reset_peak_memory_stats(self._device)
        before = torch.cuda.memory_allocated(self._device)
        compute()
        return torch.cuda.max_memory_allocated(self._device) - before


class _Recorder:
    def __init__(self) -> None:
        self._pool = torch.cuda.graph_pool_handle()

    def __call__(self, compute: Callable[[], torch.Tensor], stream: Stream) -> Captured:
        assert isinstance(stream, _Stream)
        graph = torch.cuda.CUDAGraph()
        # what other threads do meanwhile, as they load adapters, is no part of it
        with torch.cuda.graph(graph, pool=self._pool, stream=stream.stream, capture_error_mode="thread_local"):
            output = compute()
        return _CudaGraph(graph, output)


@dataclass(frozen=True, slots=True)
class _CudaGraph(Captured):
    graph: torch.cuda.CUDAGraph
    output: torch.Tensor

    def replay(self) -> None:
        self.graph.replay()
