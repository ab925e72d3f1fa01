"""The one way of a kernel to a device."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

Way = Callable[[Any, tuple[int, ...], Sequence[Any], Mapping[str, Any]], None]


def _run(kernel: Any, grid: tuple[int, ...], args: Sequence[Any], constants: Mapping[str, Any]) -> None:
    kernel[grid](*args, **constants)


_ways: list[Way] = [_run]


def launch(kernel: Any, grid: tuple[int, ...], args: Sequence[Any], constants: Mapping[str, Any]) -> None:
    """Launch a kernel on the device of its tensors.

    `constants`: its compile-time arguments, num_warps and num_stages. A grid with a 0 launches nothing.
    """
    if all(grid):
        # stated, because Triton's own choice changes between versions
        _ways[-1](kernel, grid, args, {**constants, "enable_fp_fusion": True})


@contextmanager
def launching(way: Way) -> Iterator[None]:
    """While this is open, `launch` does this instead: counts, or compiles for a device that is not there."""
    _ways.append(way)
    try:
        yield
    finally:
        _ways.pop()
