"""Memory of processes, as Linux counts it."""

import re
from pathlib import Path


def peak_bytes(pid: int | str = "self") -> int:
    """Return the sum over a process and all below it of the most memory that each has held."""
    own = re.search(r"VmHWM:\s+(\d+) kB", Path(f"/proc/{pid}/status").read_text())
    children = [
        child for task in Path(f"/proc/{pid}/task").iterdir() for child in (task / "children").read_text().split()
    ]
    return (int(own[1]) * 1024 if own else 0) + sum(peak_bytes(child) for child in children)
