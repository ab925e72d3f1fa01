"""An adapter in host memory: all of it lies in pages of the host tier, as it will lie in those of the device, and is copied from there."""

from bisect import bisect_right
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch

from lorafleet_inference.adapters.extra_tensors import ExtraTensor, Span
from lorafleet_inference.adapters.row_layout import ALIGN
from lorafleet_inference.device.interface import Device
from lorafleet_inference.engine.vocabulary import Vocabulary
from lorafleet_inference.model.arena import HostPages
from lorafleet_inference.model.slab import Slab

Where = tuple[str, str]
"""A module, and a part of what an adapter has there beside rows of A and B: a field of `Extra`."""


@dataclass(frozen=True, slots=True)
class HostTensor:
    """A tensor in the pages of the host, which on the device may lie in other runs of pages."""

    one: ExtraTensor
    spans: tuple[Span, ...]
    """In elements from the begin of the adapter's pages."""
    shape: tuple[int, ...] | None
    """None: the adapter has no such tensor, though it was reckoned with."""
    dtype: torch.dtype


@dataclass(frozen=True, slots=True)
class HostAdapter:
    """An adapter in host memory."""

    slab: Slab
    """Its rows come first in these pages; then what `SideLayout` and `AffineLayout` lay, in pages of their own; then `apart`."""
    vocabulary: Vocabulary | None = None
    """Where it is not the base's."""
    side_ranks: tuple[int, ...] = ()
    """At the sites of `SideLayout`; empty where nothing lies there."""
    affine: tuple[str, ...] = ()
    """Modules whose scale and offset `AffineLayout` lays."""
    apart: tuple[HostTensor, ...] = ()


class HostExtras:
    """What an adapter has beside rows of A and B, written to its pages of the host. Several threads may write different tensors."""

    def __init__(self, pages: HostPages, places: Mapping[Where, Sequence[Span]], dtype: torch.dtype) -> None:
        """`places`: where the elements of each tensor lie, one row after the other; `dtype`: of the pages."""
        self._pages, self._places, self.dtype = pages, places, dtype
        self.found: dict[Where, tuple[tuple[int, ...], torch.dtype]] = {}
        """Shape and dtype of what was written."""

    def write(self, module: str, part: str, tensor: torch.Tensor) -> None:
        """Write a tensor; numbers are brought to the dtype of the pages, ids stay what they are."""
        self.found[module, part] = tuple(tensor.shape), self.dtype if tensor.is_floating_point() else tensor.dtype
        self.write_from(module, part, 0, tensor)

    def num_elements(self, module: str, part: str) -> int:
        """Return the size of a tensor that was reckoned with."""
        return self._places[module, part][-1].end

    def laid(self, one: ExtraTensor, spans: tuple[Span, ...]) -> HostTensor:
        """Return a tensor that was reckoned with, as what was written."""
        shape, dtype = self.found.get((one.module, one.part), (None, self.dtype))
        return HostTensor(one, spans, shape, dtype)

    def note(self, module: str, part: str, shape: tuple[int, ...]) -> None:
        """Say that a tensor of numbers was written in pieces."""
        self.found[module, part] = shape, self.dtype

    def write_from(self, module: str, part: str, first: int, tensor: torch.Tensor) -> None:
        """Write some elements of a tensor, which are neighbours, from one on."""
        made = tensor if tensor.is_floating_point() else tensor.contiguous().view(self.dtype)
        flat, last = made.reshape(-1), first + made.numel()
        spans = self._places[module, part]  # what was not reckoned with has none
        assert last <= spans[-1].end, f"{part} of {module} was reckoned with as smaller"
        for span in spans[max(0, bisect_right(spans, first, key=lambda one: one.begin) - 1) :]:
            begin, end = max(first, span.begin), min(last, span.end)
            if begin >= end:
                break
            at = span.at + begin - span.begin
            self._pages.elements(at, at + end - begin).copy_(flat[begin - first : end - first])


def copies(
    pages: HostPages, tensors: Sequence[tuple[ExtraTensor, Sequence[Span], Sequence[Span]]], page: int
) -> Iterator[tuple[int, torch.Tensor]]:
    """Yield what has to be copied for tensors to lie on the device as they shall, in as few copies as there are runs of pages.

    `tensors`: each with its spans on the host and on the device. `page`: elements of one. Of each copy: to which element, and what.
    """
    at = begin = end = 0
    """Of the copy that grows: where it begins on the device, and begins and ends on the host."""
    for one, there, here in tensors:
        for source, target, count in _pieces(there, here, one.rows(page)[1]):
            # what lies between two tensors that lie alike is copied with them: less than rows begin apart
            is_behind = 0 <= source - end < ALIGN and target - at == source - begin
            if begin < end and is_behind and pages.are_neighbours(begin, source + count):
                end = source + count
                continue
            if begin < end:
                yield at, pages.elements(begin, end)
            at, begin, end = target, source, source + count
    if begin < end:
        yield at, pages.elements(begin, end)


def _pieces(there: Sequence[Span], here: Sequence[Span], width: int) -> Iterator[tuple[int, int, int]]:
    """Yield of one tensor from which element, to which, and how many. `width`: elements of a piece of the spans."""
    sources = iter(there)
    source = next(sources, None)
    for target in here:
        done = target.begin
        while done < target.end:
            assert source is not None, "both hold all of it"
            if done == source.end:
                source = next(sources, None)
                continue
            count = min(source.end, target.end) - done
            from_source = source.at + (done - source.begin) * width
            yield from_source, target.at + (done - target.begin) * width, count * width
            done += count


def copy_pages(device: Device, pool: torch.Tensor, pages: Sequence[int], host: HostPages, first: int) -> None:
    """Copy pages of the host from number `first` on to as many of the pool [pages, elements of a page]."""
    for begin, end, some in host.copies(pages, first):
        device.copy(pool[begin:end], some)


def spans_of_rows(page: int, width: int, first: int, number: int) -> list[Span]:
    """Return where the elements of some rows lie of which each page holds as many whole ones as fit, the `first` of them on."""
    fit, at = page // width, 0
    spans = []
    while at < number:
        of_page, slot = divmod(first + at, fit)
        count = min(fit - slot, number - at)
        spans.append(Span(of_page * page + slot * width, at * width, (at + count) * width))
        at += count
    return spans
