"""How long an event loop stays with one thing."""

import asyncio
import time
from typing import Any


async def longest_turn(work: asyncio.Future[Any]) -> float:
    """CPU seconds of the longest turn of the event loop, in its own thread alone, while something is done."""
    longest, before = 0.0, time.thread_time()
    while not work.done():
        await asyncio.sleep(0)
        now = time.thread_time()
        longest, before = max(longest, now - before), now
    return longest
