"""How the API process gets memory from glibc: the texts of large requests go back to the system when they end.

By default glibc maps a block of 128 KiB or more for itself, until the first such block is freed; from then on blocks up to
that size, at last 32 MiB, come from the heaps of the threads, which keep what is freed. A few dozen requests of 12 MB, each
in another thread, left 300 MiB behind.
"""

import ctypes

MMAP_THRESHOLD_BYTES = 1 << 20
"""Blocks of so many bytes are mapped, and given back when they are freed. Tokens and events are far smaller."""
_M_MMAP_THRESHOLD = -3


def give_back_large_blocks() -> None:
    """Set it for the rest of the process, for all of its threads; nothing on other C libraries."""
    libc = ctypes.CDLL(None)
    if hasattr(libc, "gnu_get_libc_version"):
        libc.mallopt(_M_MMAP_THRESHOLD, MMAP_THRESHOLD_BYTES)
