"""Runs a compiled function on torch's own threads.

torch's wheels for Linux work with GNU OpenMP, whose threads wait busily for a while after each operation. A second pool
of threads, such as Numba's, would fight them for the cores; so the kernels join torch's pool by the entry point that
GCC's `#pragma omp parallel` compiles to.
"""

import ctypes
import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import numpy as np
import torch

logger = logging.getLogger(__name__)
GNU_OPENMP = "libgomp.so.1"
Run = Callable[[int, "np.ndarray[tuple[int], np.dtype[np.int64]]"], None]


def team() -> Run:
    """Return what runs the function at an address, once on each thread of torch, all with the same array of numbers."""
    try:
        parallel = ctypes.CDLL(GNU_OPENMP).GOMP_parallel
    except (OSError, AttributeError):
        logger.warning("GNU OpenMP is not there: CPU kernels run on one thread")
        return _alone
    parallel.argtypes = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_uint, ctypes.c_uint]
    parallel.restype = None

    def run(address: int, numbers: "np.ndarray[tuple[int], np.dtype[np.int64]]") -> None:
        parallel(address, numbers.ctypes.data, torch.get_num_threads(), 0)

    return run


@contextmanager
def on_one_thread() -> Iterator[None]:
    """Let torch compute on the calling thread alone.

    A second thread that computes in parallel gets a team of its own; with more threads than cores OpenMP stops waiting
    busily, and from then on each operation of the first one waits for the system to wake its team.
    """
    before = torch.get_num_threads()  # also lets torch set up this thread, which would undo what follows
    try:
        openmp = ctypes.CDLL(GNU_OPENMP)
    except OSError:
        yield
        return
    openmp.omp_set_num_threads(1)
    try:
        yield
    finally:
        openmp.omp_set_num_threads(before)


def _alone(address: int, numbers: "np.ndarray[tuple[int], np.dtype[np.int64]]") -> None:
    ctypes.CFUNCTYPE(None, ctypes.c_void_p)(address)(numbers.ctypes.data)
