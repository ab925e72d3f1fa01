"""How far the process is, and how many requests it is answering."""

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from enum import StrEnum

from lorafleet_gateway.metrics import IN_FLIGHT


class Phase(StrEnum):
    """How far the process is."""

    SERVING = "serving"
    LEAVING = "leaving"
    """Told to end: not ready any more; new requests are still answered, because whoever sends them has not heard yet."""
    DRAINING = "draining"
    """New requests are refused, running ones end."""


class State:
    """The phase, and the requests in flight."""

    def __init__(self) -> None:
        self.phase = Phase.SERVING
        self.num_in_flight = 0
        self._idle = asyncio.Event()
        self._idle.set()

    @contextmanager
    def request(self) -> Iterator[None]:
        """Count a request as in flight."""
        self.num_in_flight += 1
        IN_FLIGHT.set(self.num_in_flight)
        self._idle.clear()
        try:
            yield
        finally:
            self.num_in_flight -= 1
            IN_FLIGHT.set(self.num_in_flight)
            if not self.num_in_flight:
                self._idle.set()

    async def wait_idle(self) -> None:
        """Wait until nothing is in flight."""
        await self._idle.wait()
