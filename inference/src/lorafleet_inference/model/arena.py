"""Memory of the host in which adapters lie: pinned at the start where a device copies from it, and given out in pages."""

import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import torch

from lorafleet_common.errors import ConfigError
from lorafleet_inference.device.interface import Device
from lorafleet_inference.engine.free_pages import FreePages, runs_of

SEGMENT_BYTES = 256 << 20
"""Of one allocation, at most: torch takes a power of two of pinned memory for each, which of 5 GiB would be 8."""


@dataclass(frozen=True, slots=True)
class HostPages:
    """Pages of the host that are somebody's."""

    runs: tuple[torch.Tensor, ...]
    """Each [pages that are neighbours, elements of a page], on the CPU, one after the other."""
    numbers: tuple[int, ...] = ()
    """Which of an arena they are; empty where they are an allocation of their own."""
    pages: tuple[torch.Tensor, ...] = field(init=False)
    """Each [elements of a page]."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "pages", tuple(page for run in self.runs for page in run))

    def __len__(self) -> int:
        return len(self.pages)

    @property
    def num_bytes(self) -> int:
        """Their size."""
        return sum(run.numel() * run.element_size() for run in self.runs)

    def copies(self, pages: Sequence[int], first: int = 0) -> Iterator[tuple[int, int, torch.Tensor]]:
        """Yield what has to be copied to `pages` of a device from as many here, from number `first` on.

        From which page one copy goes to before which, and what it is.
        """
        at, last = 0, first + len(pages)
        for run in self.runs:
            done, end_here = max(first - at, 0), min(last - at, len(run))
            if done < end_here:
                for begin, end in runs_of(pages[at + done - first : at + end_here - first]):
                    yield begin, end, run[done : done + end - begin]
                    done += end - begin
            at += len(run)

    def elements(self, begin: int, end: int) -> torch.Tensor:
        """Return elements of all pages, one after the other, from one to before another: a view [elements] of one run."""
        at = 0
        for run in self.runs:
            if begin < at + run.numel():
                assert end <= at + run.numel(), "no piece lies in two runs"
                return run.view(-1)[begin - at : end - at]
            at += run.numel()
        raise AssertionError("behind the last page")

    def are_neighbours(self, begin: int, end: int) -> bool:
        """Whether these elements lie in one run."""
        at = 0
        for run in self.runs:
            if begin < at + run.numel():
                return end <= at + run.numel()
            at += run.numel()
        return False

    def runs_of_elements(self, first: int) -> Iterator[tuple[int, int]]:
        """Yield where runs begin and end, in elements of all pages; of them what is not before page number `first`."""
        at = 0
        for run in self.runs:
            begin, end = max(at, first * run.shape[1]), at + run.numel()
            if begin < end:
                yield begin, end
            at = end


class Arena:
    """The memory of the host tier. Safe for several threads.

    Where the device is the CPU there is none, and all pages are allocations of their own: nothing has to be pinned there, and the
    heap keeps what is freed.
    """

    def __init__(
        self, num_bytes: int, page: int, dtype: torch.dtype, device: Device, segment_bytes: int = SEGMENT_BYTES
    ) -> None:
        """`page`: elements of one. `segment_bytes`: of one allocation, at most, but a page at least.

        Raises:
            ConfigError: so much memory cannot be pinned.
        """
        self._page, self._dtype, self._device = page, dtype, device
        self._segments = self._pinned(num_bytes, segment_bytes) if device.works_beside else []
        self._per_segment = len(self._segments[0]) if self._segments else 1
        self.num_pages = sum(map(len, self._segments))
        self._free = FreePages(self.num_pages)
        self._lock = threading.Lock()

    def _pinned(self, num_bytes: int, segment_bytes: int) -> list[torch.Tensor]:
        page_bytes = self._page * self._dtype.itemsize
        num_left, per_segment = num_bytes // page_bytes, max(1, segment_bytes // page_bytes)
        segments = []
        while num_left:
            count = min(per_segment, num_left)
            try:
                segments.append(self._device.pinned((count, self._page), self._dtype))
            except RuntimeError as error:  # what torch raises without memory
                raise ConfigError("--host-cache", f"{num_bytes} bytes of memory cannot be pinned: {error}") from error
            num_left -= count
        return segments

    @property
    def used_bytes(self) -> int:
        """Of the pages that are taken."""
        return (self.num_pages - len(self._free)) * self._page * self._dtype.itemsize

    def take(self, num_pages: int) -> HostPages:
        """Return pages, not set to anything: of the arena, or where it has too few, an allocation of their own.

        Raises:
            RuntimeError: there is no memory.
        """
        with self._lock:
            numbers = self._free.take(num_pages) if num_pages <= len(self._free) else ()
        if len(numbers) == num_pages:
            return HostPages(tuple(self._runs(numbers)), numbers)
        return HostPages((self._device.pinned((num_pages, self._page), self._dtype),))

    def give(self, pages: HostPages) -> None:
        """Take pages back that nobody reads or copies any more."""
        with self._lock:
            self._free.give(pages.numbers)

    def _runs(self, numbers: Sequence[int]) -> Iterator[torch.Tensor]:
        for begin, end in runs_of(numbers):
            at = begin
            while at < end:
                segment, first = divmod(at, self._per_segment)
                count = min(end - at, self._per_segment - first)
                yield self._segments[segment][first : first + count]
                at += count
