"""The life of a process that runs somebody else's programs: one job at a time, with a limit of memory, and of CPU time for each.

Speaks `frames.py` on its standard input and output and says `READY` first. A job is its haste, then its data; each has one
answer. A job that takes too much CPU time ends the process by SIGPROF; whoever started it starts another one.
"""

import os
import resource
import signal
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from lorafleet_inference.text.frames import READY, read_frame, write_frame

HURRIED, WHOLE = b"\x01", b"\x00"
"""The first byte of a job: whether it is given up soon, since others wait for this process and another one takes it then."""


@dataclass(frozen=True, slots=True)
class Work:
    """What a process does with jobs; both take the data and whether it is hurried."""

    do: Callable[[bytes, bool], tuple[bytes, bool]]
    """Returns the answer, and whether the process ends with it, so that what was left in memory goes."""
    cpu_seconds: Callable[[bytes, bool], float]


def limit_cpu(seconds: float) -> None:
    """Let the process have so much more CPU time; 0: as much as it takes."""
    signal.setitimer(signal.ITIMER_PROF, seconds)


def serve(work: Work, *, max_memory_bytes: int) -> None:
    """Work until standard input ends; `max_memory_bytes`: beyond what the process needs before its first job."""
    out = os.fdopen(os.dup(sys.stdout.fileno()), "wb")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    limit = pages * resource.getpagesize() + max_memory_bytes
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    write_frame(out, READY)
    while (frame := read_frame(sys.stdin.buffer)) is not None:
        is_hurried, data = frame[:1] == HURRIED, frame[1:]
        limit_cpu(work.cpu_seconds(data, is_hurried))
        answer, is_last = work.do(data, is_hurried)
        limit_cpu(0)
        write_frame(out, answer)
        if is_last:
            return
