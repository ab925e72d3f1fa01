"""Kernels launched one by one, each watched where the interpreter runs it."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import Any

import torch

if not torch.cuda.is_available():
    from support import checked_triton  # before any kernel

from lorafleet_inference.kernels.triton.launch import launching


@dataclass
class Launches:
    """What was launched. In the interpreter with the bytes, by kernel and argument; a tensor read by two kernels counts for each."""

    kernels: list[str] = field(default_factory=list)
    read: dict[tuple[str, str], int] = field(default_factory=dict)
    written: dict[tuple[str, str], int] = field(default_factory=dict)
    rounds: dict[str, int] = field(default_factory=dict)
    """By kernel, loads that a program waits for one after the other, at most."""
    programs: dict[str, int] = field(default_factory=dict)
    """By kernel, how many were launched."""
    early: list[bool] = field(default_factory=list)
    """Of each launch whether it may begin before the one ahead of it is done."""
    unfinished: dict[int, int] = field(default_factory=dict)
    """Ends by beginnings of what may be written still when a launch begins early: whatever was since the last that did not."""
    order: int | None = None

    def wrote(self, *tensors: torch.Tensor) -> None:
        """See something written that is no launch of a kernel."""
        self.unfinished |= {one.data_ptr(): one.data_ptr() + one.numel() * one.element_size() for one in tensors}

    def __call__(self, kernel: Any, grid: tuple[int, ...], args: Sequence[Any], constants: Mapping[str, Any]) -> None:
        name = kernel.fn.__name__
        self.kernels.append(name)
        args = _apart(args)
        by_storage: dict[int, tuple[str, torch.Tensor]] = {}
        for argument, one in zip(kernel.arg_names, args, strict=False):
            if isinstance(one, torch.Tensor) and one.numel():
                by_storage.setdefault(one.untyped_storage().data_ptr(), (argument, one))
        watched = dict(by_storage.values())
        self.early.append(bool(constants.get("launch_pdl")))
        if not self.early[-1]:
            self.unfinished.clear()
        unfinished = dict(self.unfinished) if self.early[-1] else None
        on_gpu = any(one.is_cuda for one in watched.values())
        with (
            nullcontext() if on_gpu else checked_triton.watching(self.order, unfinished=unfinished, **watched) as watch
        ):
            kernel[grid](*args, **constants)
        if watch is not None:
            self.rounds[name] = max(self.rounds.get(name, 0), watch.rounds)
            self.unfinished |= _written(watch.tensors.values())
            self.programs[name] = self.programs.get(name, 0) + watch.num_programs
        for argument, traffic in () if watch is None else watch.tensors.items():
            key = name, argument
            self.read[key] = self.read.get(key, 0) + traffic.read
            self.written[key] = self.written.get(key, 0) + traffic.written


def _written(tensors: Iterable["checked_triton.Traffic"]) -> dict[int, int]:
    """Return ends by beginnings of what was written, with what lies between."""
    found = {}
    for one in tensors:
        places = (one.writer >= 0).nonzero()[0]
        if places.size:
            found[one.begin + int(places[0]) * one.width] = one.begin + (int(places[-1]) + 1) * one.width
    return found


def _apart(args: Sequence[Any]) -> list[Any]:
    """Return arguments of which those that lie in one block with others of another width are tensors of their own.

    A step's block has numbers of 4 and of 8 bytes, which kernels read and never write.
    """
    widths: dict[int, set[int]] = {}
    for one in args:
        if isinstance(one, torch.Tensor):
            widths.setdefault(one.untyped_storage().data_ptr(), set()).add(one.element_size())
    return [
        one.clone() if isinstance(one, torch.Tensor) and len(widths[one.untyped_storage().data_ptr()]) > 1 else one
        for one in args
    ]


@contextmanager
def launches(order: int | None = None) -> Iterator[Launches]:
    """While this is open, launches are watched; `order`: the seed of the order of the programs of each."""
    seen = Launches(order=order)
    with launching(seen):
        yield seen
