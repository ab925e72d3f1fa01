"""Runs a compiled function on torch's own threads.

torch's wheels for Linux work with GNU OpenMP, whose threads wait busily for a while after each operation. A second pool
of threads, such as Numba's, would fight them for the cores; so the kernels join torch's pool by the entry point that
GCC's `#pragma omp parallel` compiles to.
"""

import ctypes
import logging
from collections.abc import Callable

import numpy as np
import torch

logger = logging.getLogger(__name__)
Run = Callable[[int, "np.ndarray[tuple[int], np.dtype[np.int64]]"], None]


def team() -> Run:
    """Return what runs the function at an address, once on each thread of torch, all with the same array of numbers."""
    try:
        parallel = ctypes.CDLL("libgomp.so.1").GOMP_parallel
    except (OSError, AttributeError):
        logger.warning("GNU OpenMP is not there: CPU kernels run on one thread")
        return _alone
    parallel.argtypes = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_uint, ctypes.c_uint]
    parallel.restype = None

    def run(address: int, numbers: "np.ndarray[tuple[int], np.dtype[np.int64]]") -> None:
        parallel(address, numbers.ctypes.data, torch.get_num_threads(), 0)

    return run


def _alone(address: int, numbers: "np.ndarray[tuple[int], np.dtype[np.int64]]") -> None:
    ctypes.CFUNCTYPE(None, ctypes.c_void_p)(address)(numbers.ctypes.data)
