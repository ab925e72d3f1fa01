"""The engine as a process beside the API process. Imports no torch."""

import asyncio
import contextlib
import os
import sys
from collections.abc import Awaitable, Callable, Sequence
from typing import Protocol

from lorafleet_inference.config import EngineConfig
from lorafleet_inference.engine import allocator

PROGRAM = (sys.executable, "-m", "lorafleet_inference.engine.process")
"""Runs the engine; the number of its socket is appended."""


class EngineProcess(Protocol):
    """A process that runs the engine."""

    @property
    def pid(self) -> int:
        """Its id."""

    async def wait(self) -> int:
        """Wait for its end; return its status, negative for a signal."""

    def kill(self) -> None:
        """End it at once.

        Raises:
            ProcessLookupError: it has ended.
        """

    def send_signal(self, signal: int, /) -> None:
        """As `kill`, with another signal."""


RunEngine = Callable[[EngineConfig, bytes, int], Awaitable[EngineProcess]]
"""Starts it, with its configuration, what its standard input gives (StartEngine as JSON), and the number of its socket, of
which it has a copy when this returns."""


async def run_program(
    config: EngineConfig, start: bytes, number: int, program: Sequence[str] = PROGRAM
) -> EngineProcess:
    """Run it as a program, as `RunEngine`."""
    process = await asyncio.create_subprocess_exec(
        *program,
        str(number),
        stdin=asyncio.subprocess.PIPE,
        pass_fds=(number,),
        env=allocator.with_settings(os.environ, config.device),
    )
    assert process.stdin is not None
    with contextlib.suppress(ConnectionError):  # a process that died already is found by whoever waits for it
        process.stdin.write(start)
        process.stdin.close()
    return process
