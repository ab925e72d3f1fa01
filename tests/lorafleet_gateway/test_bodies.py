"""What a large body costs: it is in memory once, while it arrives and while it is sent on."""

import tracemalloc
from collections.abc import AsyncIterator, Callable, Coroutine
from typing import Any

from lorafleet_gateway.front.body import _read
from lorafleet_gateway.front.state import State
from lorafleet_gateway.front.upstream import PIECE_BYTES, Pieces

NUM_BYTES = 16 << 20


class Arriving:
    """A body that comes in pieces of a socket's size."""

    async def iter_any(self) -> AsyncIterator[bytes]:
        for _ in range(NUM_BYTES >> 16):
            yield bytes(1 << 16)


class Writer:
    """Takes what is sent, and keeps none of it."""

    num_bytes = largest = 0

    async def write(self, piece: memoryview) -> None:
        self.num_bytes += len(piece)
        self.largest = max(self.largest, len(piece))


async def peak_of(work: Callable[[], Coroutine[Any, Any, Any]]) -> tuple[Any, int]:
    """What comes of it, and the most bytes that it had beyond what was there before."""
    tracemalloc.start()
    try:
        before = tracemalloc.get_traced_memory()[0]
        result = await work()
        return result, tracemalloc.get_traced_memory()[1] - before
    finally:
        tracemalloc.stop()


async def test_a_large_body_is_in_memory_once() -> None:
    state = State(max_in_flight=1, max_held_bytes=NUM_BYTES)
    with state.request() as room:
        body, peak = await peak_of(lambda: _read(Arriving(), None, NUM_BYTES, room))
        assert len(body) == state.num_held_bytes == NUM_BYTES
        assert peak < 1.3 * NUM_BYTES
        writer = Writer()
        _, peak = await peak_of(lambda: Pieces(body).write(writer))
        assert writer.num_bytes == NUM_BYTES
        assert writer.largest <= PIECE_BYTES
        assert peak < 0.1 * NUM_BYTES
