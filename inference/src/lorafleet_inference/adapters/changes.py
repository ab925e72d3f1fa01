"""A number that grows with every change, and waiting for it to grow."""

import asyncio

COALESCE_SECONDS = 0.02
"""Changes come in bursts: a waiter is told of a burst once."""


class Generation:
    """How often something has changed."""

    def __init__(self) -> None:
        self.number = 1
        self._changed = asyncio.Event()

    def bump(self) -> None:
        """Something has changed."""
        self.number += 1
        self._changed.set()
        self._changed = asyncio.Event()

    async def wait(self, after: int | None, wait_seconds: float) -> None:
        """Return at once if the number is not `after`, else when it changes or after the time."""
        if after != self.number or wait_seconds <= 0:
            return
        try:
            async with asyncio.timeout(wait_seconds):
                await self._changed.wait()
        except TimeoutError:
            return
        await asyncio.sleep(COALESCE_SECONDS)
