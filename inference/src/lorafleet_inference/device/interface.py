"""What a device is to everybody else, whether it is CUDA's, the CPU, or one that tests simulate.

Work that is asked of a device goes to the stream that is current on the asking thread, and is done later, in the order of that
stream. Between streams, and between a stream and the host, only what `Order` names is in order.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from enum import StrEnum
from typing import Protocol

import torch


class Order(StrEnum):
    """Why somebody waits. Tests take each of these waits away and see that something breaks."""

    RESULTS = "results"
    """The host reads what a step chose when it was copied; it also fills tables again, and gives away pages, only then."""
    FOLLOWED = "followed"
    """A rank whose results nobody reads says that a step is done when it is."""
    PAGES_LEFT = "pages-left"
    """An adapter is copied to pages when their zeros are there, and the steps that were submitted before the last one left."""
    ADAPTER_COPIED = "adapter-copied"
    """Requests of an adapter are computed, and its memory on the host is used again, when it was copied."""
    BASE_READ = "base-read"
    """Adapters are compared with rows of the base, and measured against them, when these were copied to the host."""
    TABLES_SENT = "tables-sent"
    """A step is run in order to be captured when the tables that it reads were copied."""
    WARMED_UP = "warmed-up"
    """Steps are computed when that run is done: it writes where they do."""


class Event(Protocol):
    """A point in a stream."""

    def wait(self, why: Order) -> None:
        """Keep the host until all is done that the stream had before this point."""


class Stream(Protocol):
    """Work in order."""

    def mark(self) -> Event:
        """Return the point behind all that the stream has now."""

    def wait(self, event: Event, why: Order) -> None:
        """Have what comes to this stream later done after an event of any stream. Keeps the host for nothing."""


class Captured(Protocol):
    """A captured computation."""

    output: torch.Tensor

    def replay(self) -> None:
        """Compute it again: on what lies at the same addresses now, into the same output."""


class Graphs(Protocol):
    """Captures computations. Their graphs share memory: the output of one is there until the next one is replayed."""

    def capture(self, compute: Callable[[], torch.Tensor]) -> Captured:
        """Compute something for the first time, then capture it; nothing else may use the device meanwhile."""


@dataclass(frozen=True, slots=True)
class DeviceBytes:
    """Memory of a device."""

    free: int
    total: int


class Device(ABC):
    """A device that computes, beside the host or as the host itself."""

    works_beside: bool
    """Whether it does what it is asked later, so that a copy takes pinned memory and reading a result takes waiting."""

    @abstractmethod
    def pinned(self, shape: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
        """Return memory of the host, not set to anything, that the device copies from and to by itself.

        Who keeps it must neither change nor read it before a copy is done; when it is dropped, it is only then used again.
        """

    @abstractmethod
    def send(self, host: torch.Tensor) -> torch.Tensor:
        """Return a copy of pinned memory on the device. Keeps the host for nothing."""

    @abstractmethod
    def copy(self, target: torch.Tensor, source: torch.Tensor) -> None:
        """Copy between the device and pinned memory, or on the device. Keeps the host for nothing."""

    @abstractmethod
    def current(self) -> Stream:
        """Return the stream of the calling thread."""

    @abstractmethod
    def stream(self) -> Stream:
        """Return a new stream."""

    @abstractmethod
    def on(self, stream: Stream) -> AbstractContextManager[None]:
        """While this is open, the calling thread's work goes to this stream."""

    @abstractmethod
    def graphs(self) -> Graphs | None:
        """Return what captures on this device; None where that gains nothing."""

    @abstractmethod
    def use_in_thread(self) -> None:
        """Have a new thread's work go to this device."""

    @abstractmethod
    def check(self) -> None:
        """Do all that was asked, and raise RuntimeError for what failed at it. In order to see errors, not for order."""

    @abstractmethod
    def release_unused(self) -> None:
        """Give back what the allocator keeps."""

    @abstractmethod
    def bytes(self) -> DeviceBytes | None:
        """Return the device's own memory; None where it has none of its own."""

    @abstractmethod
    def peak_bytes(self, compute: Callable[[], object]) -> int:
        """Return how much more memory a computation takes at its peak than before it; 0 where `bytes` is None."""
