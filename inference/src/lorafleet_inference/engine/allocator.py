"""How the engine process gets memory from glibc.

A step on a CPU makes and frees tensors of many megabytes. By default each such tensor is given back to the system at
once, and the next one is mapped, cleared and faulted in again, 4 KiB at a time: up to a fifth of a step of prompts.
"""

from collections.abc import Mapping

TUNABLES = "GLIBC_TUNABLES"
_SETTINGS = {
    "hugetlb": 1,  # ask for large pages (madvise): fewer faults, and fewer misses when weights are read
    "mmap_threshold": 4 << 30,  # tensors come from the heap, which keeps what is freed, rather than from the system
    "trim_threshold": 16 << 30,
    "top_pad": 64 << 20,
}


def with_settings(environment: Mapping[str, str], device: str) -> dict[str, str]:
    """Return the environment variables to start an engine with: these settings, but on CUDA or where others are chosen.

    glibc reads them when a process starts; other C libraries do not know them.
    """
    if device == "cuda" or TUNABLES in environment:
        return dict(environment)
    return {**environment, TUNABLES: ":".join(f"glibc.malloc.{name}={value}" for name, value in _SETTINGS.items())}
