"""A process that somebody else has started, as an event loop waits for it."""

import asyncio
import os
import signal
from collections.abc import Callable


class AwaitedProcess:
    """As far as `EngineProcess` goes. `file` is readable from its end on; `status` returns its exit status then."""

    def __init__(self, pid: int, file: int, status: Callable[[], int]) -> None:
        self.pid = pid
        self._file = file
        self._status = status
        self._ending: asyncio.Task[int] | None = None

    async def wait(self) -> int:
        """Wait for its end; return its status, negative for a signal. Several may wait, and give up."""
        if self._ending is None:
            self._ending = asyncio.create_task(self._end())
        return await asyncio.shield(self._ending)

    def kill(self) -> None:
        """End it at once."""
        self.send_signal(signal.SIGKILL)

    def send_signal(self, number: int, /) -> None:
        """Send it, unless its end is known."""
        if self._ending is not None and self._ending.done():
            raise ProcessLookupError
        os.kill(self.pid, number)

    async def _end(self) -> int:
        loop, ended = asyncio.get_running_loop(), asyncio.Event()
        loop.add_reader(self._file, ended.set)
        try:
            await ended.wait()
        finally:
            loop.remove_reader(self._file)
        return self._status()
