"""How far the process is, how many requests it is answering, and what they hold of its memory."""

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from enum import StrEnum

from lorafleet_gateway.errors import Draining, Overloaded
from lorafleet_gateway.metrics import HELD_BYTES, IN_FLIGHT


class Phase(StrEnum):
    """How far the process is."""

    SERVING = "serving"
    LEAVING = "leaving"
    """SIGTERM was received: /ready fails; new requests are still answered, because load balancers notice only later."""
    DRAINING = "draining"
    """New requests are refused, running ones end."""


class Room:
    """What one request holds of the memory for bodies."""

    def __init__(self, state: "State") -> None:
        self._state = state
        self._num_bytes = 0

    def take(self, num_bytes: int) -> None:
        """Take room for bytes that have arrived.

        Raises:
            Overloaded: all bodies together would be too large.
        """
        self._state.hold(num_bytes)
        self._num_bytes += num_bytes

    def give_back(self) -> None:
        """The body is let go."""
        self._state.hold(-self._num_bytes)
        self._num_bytes = 0


class State:
    """The phase, and the requests in flight."""

    def __init__(self, *, max_in_flight: int, max_held_bytes: int) -> None:
        self.phase = Phase.SERVING
        self.num_in_flight = 0
        self.num_held_bytes = 0
        self._max_in_flight = max_in_flight
        self._max_held_bytes = max_held_bytes
        self._idle = asyncio.Event()
        self._idle.set()

    @contextmanager
    def request(self) -> Iterator[Room]:
        """Count a request as in flight; yields the room for its body.

        Raises:
            Draining: the process is going away.
            Overloaded: too many are in flight.
        """
        if self.phase is Phase.DRAINING:
            raise Draining("this gateway is going away")
        if self.num_in_flight >= self._max_in_flight:
            raise Overloaded(f"{self._max_in_flight} requests are in flight in this gateway already")
        self._count(1)
        room = Room(self)
        try:
            yield room
        finally:
            room.give_back()
            self._count(-1)

    def hold(self, num_bytes: int) -> None:
        """Count bytes of bodies as held; negative ones as let go.

        Raises:
            Overloaded: there would be too many.
        """
        if num_bytes > 0 and self.num_held_bytes + num_bytes > self._max_held_bytes:
            raise Overloaded(f"this gateway holds {self.num_held_bytes} bytes of request bodies already")
        self.num_held_bytes += num_bytes
        HELD_BYTES.set(self.num_held_bytes)

    async def wait_idle(self) -> None:
        """Wait until nothing is in flight."""
        await self._idle.wait()

    def _count(self, change: int) -> None:
        self.num_in_flight += change
        IN_FLIGHT.set(self.num_in_flight)
        if self.num_in_flight:
            self._idle.clear()
        else:
            self._idle.set()
