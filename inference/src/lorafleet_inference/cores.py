"""CPU cores that a process may use."""

import os
from pathlib import Path

_QUOTA_FILE = Path("/sys/fs/cgroup/cpu.max")


def usable_cores() -> int:
    """Return how many cores this process may use, by affinity and by the quota of its cgroup."""
    cores = len(os.sched_getaffinity(0))
    if _QUOTA_FILE.is_file():
        quota, period = _QUOTA_FILE.read_text().split()
        if quota != "max":
            cores = min(cores, max(1, int(quota) // int(period)))
    return cores
