"""How long an event loop stays with one thing."""

import asyncio
import time
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

T = TypeVar("T")


async def longest_turn(work: asyncio.Future[Any]) -> float:
    """CPU seconds of the longest turn of the event loop, in its own thread alone, while something is done."""
    longest, before = 0.0, time.thread_time()
    while not work.done():
        await asyncio.sleep(0)
        now = time.thread_time()
        longest, before = max(longest, now - before), now
    return longest


async def best_longest_turn(work: Callable[[], Coroutine[Any, Any, T]], *, below: float) -> tuple[float, T]:
    """The longest turn while something is done, and what comes of it; done up to three times until it is below a bound.

    A machine that does much else works more slowly, and hardly three times.
    """
    for _ in range(3):
        task = asyncio.ensure_future(work())
        longest = await longest_turn(task)
        if longest < below:
            break
    return longest, task.result()
