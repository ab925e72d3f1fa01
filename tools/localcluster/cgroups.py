"""The cgroup that holds a cluster's pods, in every hierarchy that the machine has."""

import contextlib
import os
import time
from pathlib import Path

from localcluster.errors import LocalClusterError

UNIFIED = Path("/sys/fs/cgroup/cgroup.controllers")


def hierarchies() -> list[Path]:
    """Return the mount points of the machine's cgroup hierarchies; one with version 2."""
    lines = Path("/proc/self/mounts").read_text().splitlines()
    mounts = [line.split() for line in lines]
    return [Path(fields[1]) for fields in mounts if fields[2] in {"cgroup", "cgroup2"}]


def make_cgroups(path: str) -> None:
    """Make the cgroup wherever kubelet looks for it."""
    for hierarchy in hierarchies():
        folder = hierarchy
        for part in Path(path).parts:
            if UNIFIED.exists() and hierarchy == UNIFIED.parent:
                delegate(folder)
            parent, folder = folder, folder / part
            folder.mkdir(exist_ok=True)
            for setting in ("cpuset.cpus", "cpuset.mems"):  # version 1 starts them empty, and then no process may enter
                if (folder / setting).exists() and not UNIFIED.exists():
                    (folder / setting).write_text((parent / setting).read_text())


def delegate(folder: Path) -> None:
    """Let the cgroup's children have every controller (version 2)."""
    for controller in (folder / "cgroup.controllers").read_text().split():
        with contextlib.suppress(OSError):
            (folder / "cgroup.subtree_control").write_text(f"+{controller}")


def remove_cgroups(path: str, timeout_seconds: float = 10) -> None:
    """Remove the cgroup and all below it; the last processes may still be leaving.

    Raises:
        LocalClusterError: they do not leave in time.
    """
    deadline = time.monotonic() + timeout_seconds
    while left := [hierarchy for hierarchy in hierarchies() if _remove(hierarchy / path)]:
        if time.monotonic() > deadline:
            raise LocalClusterError(f"cgroup {path} of {left[0]} is still in use; run `down` again.")
        time.sleep(0.05)
    for hierarchy in hierarchies():
        with contextlib.suppress(OSError):
            (hierarchy / path).parent.rmdir()


def _remove(folder: Path) -> bool:
    """Remove a tree of cgroups; True when something of it is left."""
    for current, _, _ in os.walk(folder, topdown=False):
        with contextlib.suppress(OSError):
            Path(current).rmdir()
    return folder.exists()
