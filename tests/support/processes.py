"""Processes that processes have started."""

import os
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

_TICKS = os.sysconf("SC_CLK_TCK")


def descendants(process_id: int) -> list[int]:
    """Processes that a process has started, and theirs."""
    found: list[int] = []
    with suppress(OSError):
        for thread in Path(f"/proc/{process_id}/task").iterdir():
            for child in map(int, (thread / "children").read_text().split()):
                found += [child, *descendants(child)]
    return found


def core_seconds(process_ids: Iterable[int]) -> float:
    """Seconds of a core that these took so far, and those of their children that have ended and were waited for."""
    ticks = 0
    for process_id in process_ids:
        with suppress(OSError):
            fields = Path(f"/proc/{process_id}/stat").read_text().rpartition(")")[2].split()
            ticks += sum(map(int, fields[11:15]))
    return ticks / _TICKS
