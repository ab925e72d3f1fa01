"""The program of a rank as a process of this host. Needs no torch."""

import subprocess
import sys
from collections.abc import Sequence
from typing import Protocol

PROGRAM = (sys.executable, "-m", "lorafleet_inference.engine.rank_process")
"""Runs a rank; the numbers of its pipes are appended."""


class RankProcess(Protocol):
    """A process that runs `run_rank`."""

    where: str
    """For messages: " on HOST"; empty on this host."""

    def wait(self, timeout_seconds: float) -> int | None:
        """Wait for its end; return its status, negative for a signal, or None when it goes on."""

    def kill(self) -> None:
        """End it."""


class RankProgram(RankProcess):
    """A process of this host."""

    where = ""

    def __init__(self, numbers: Sequence[int]) -> None:
        """`numbers`: of the files of its pipes (life, steps, loads), of which it has copies when this returns."""
        self._process = subprocess.Popen([*PROGRAM, *map(str, numbers)], pass_fds=numbers)  # noqa: S603  our own program

    def wait(self, timeout_seconds: float | None) -> int | None:
        """As `RankProcess`; None: as long as it takes."""
        try:
            return self._process.wait(timeout_seconds)
        except subprocess.TimeoutExpired:
            return None

    def kill(self) -> None:
        """As `RankProcess`."""
        self._process.kill()
