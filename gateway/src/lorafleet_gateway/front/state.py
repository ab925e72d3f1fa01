"""How far the process is, how many requests it is answering, and what they hold of its memory."""

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from enum import StrEnum

from lorafleet_gateway.errors import Draining, Full, Overloaded
from lorafleet_gateway.front.bodies import SHARE, Bodies, Turn
from lorafleet_gateway.metrics import IN_FLIGHT


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
        self._num_promised = 0
        self.model: str | None = None
        """Which it counts for; None: that is not known yet."""

    def count_for(self, model: str) -> None:
        """Count the request as one of a model.

        Raises:
            Overloaded: the model has its share of the requests in flight, or of the memory for bodies.
        """
        self._state.count_for(model, self._num_bytes)
        self.model = model

    def take(self, num_bytes: int) -> None:
        """Take room for bytes that have arrived.

        Raises:
            Overloaded: all bodies together would be too large.
        """
        num_promised = min(num_bytes, self._num_promised)
        self._state.bodies.take(num_bytes - num_promised)
        self._num_promised -= num_promised
        self._num_bytes += num_bytes

    @asynccontextmanager
    async def turn(self, num_bytes: int, least_bytes: int) -> AsyncIterator[Turn]:
        """Wait for the turn of a large body, and have room for so many bytes of it that arrive before the end, if there is so much.

        Raises:
            Overloaded: there is no room.
        """
        turn = await self._state.bodies.turn(num_bytes, least_bytes)
        self._num_promised = turn.num_bytes
        try:
            yield turn
        finally:
            num_unused, self._num_promised = self._num_promised, 0
            self._state.bodies.end(turn, num_unused)

    def give_back(self) -> None:
        """The body is let go."""
        num_bytes, self._num_bytes = self._num_bytes, 0
        self._state.bodies.give_back(num_bytes, self.model)


class State:
    """The phase, and the requests in flight."""

    def __init__(self, *, max_in_flight: int, max_held_bytes: int) -> None:
        self.phase = Phase.SERVING
        self.num_in_flight = 0
        self.bodies = Bodies(max_held_bytes)
        self._max_in_flight = max_in_flight
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
            raise Overloaded(f"{self._max_in_flight} requests are in flight in this gateway already", why=Full.REQUESTS)
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

    @property
    def num_held_bytes(self) -> int:
        """What bodies hold, and what is promised to those that arrive."""
        return self.bodies.num_bytes

    def count_for(self, model: str, num_bytes: int = 0) -> None:
        """Count a request that is in flight, with a body of so many bytes, as one of a model.

        A burst of one adapter fills up its own share, and leaves room for the others.

        Raises:
            Overloaded: the model has its share.
        """
        num_own, num_left = self._num_of[model], self._max_in_flight - self.num_in_flight + 1
        if num_own >= SHARE * num_left:
            raise Overloaded(
                f"{num_own} requests for this model are in flight in this gateway already, and {self.num_in_flight - 1} of all "
                f"models, of which there may be {self._max_in_flight}",
                why=Full.MODEL_REQUESTS,
            )
        self.bodies.count_for(model, num_bytes)
        self._num_of[model] += 1

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
