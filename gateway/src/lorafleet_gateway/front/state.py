"""How far the process is, how many requests it is answering, and what they hold of its memory."""

import asyncio
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from enum import StrEnum
from typing import Final

from lorafleet_gateway.errors import Draining, Overloaded
from lorafleet_gateway.metrics import HELD_BYTES, IN_FLIGHT

SHARE: Final = 4
"""A model may have so many times the requests in flight that are left for all: alone four fifths of what there may be, two that
want as many as they can get four ninths each, and one that has none always gets some."""


class Phase(StrEnum):
    """How far the process is."""

    SERVING = "serving"
    LEAVING = "leaving"
    """SIGTERM was received: /ready fails; new requests are still answered, because load balancers notice only later."""
    DRAINING = "draining"
    """New requests are refused, running ones end."""


class Room:
    """What one request has of what all share: a place in flight, and memory for its body."""

    def __init__(self, state: "State") -> None:
        self._state = state
        self._num_bytes = 0
        self.model: str | None = None
        """Which it counts for; None: that is not known yet."""

    def count_for(self, model: str) -> None:
        """Count the request as one of a model.

        Raises:
            Overloaded: the model has its share of the requests in flight.
        """
        self._state.count_for(model)
        self.model = model

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
        self._num_of: Counter[str] = Counter()
        """Requests in flight by model, of those whose model is known."""
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
            if room.model is not None:
                self._num_of[room.model] -= 1
                if not self._num_of[room.model]:
                    del self._num_of[room.model]
            self._count(-1)

    def count_for(self, model: str) -> None:
        """Count a request that is in flight as one of a model.

        A burst of one adapter fills up its own share, and leaves room for the others.

        Raises:
            Overloaded: the model has its share.
        """
        num_own, num_left = self._num_of[model], self._max_in_flight - self.num_in_flight + 1
        if num_own >= SHARE * num_left:
            raise Overloaded(
                f"{num_own} requests for this model are in flight in this gateway already, and {self.num_in_flight - 1} of all "
                f"models, of which there may be {self._max_in_flight}"
            )
        self._num_of[model] += 1

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
