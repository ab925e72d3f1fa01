"""Looks a name up in the API server once before it is called unknown: a watch tells of a change a moment after it is true."""

import asyncio
import logging
from collections import OrderedDict
from collections.abc import Awaitable, Callable
from typing import Final

from lorafleet_common.clock import monotonic
from lorafleet_common.kube.errors import KubeError
from lorafleet_gateway import metrics

logger = logging.getLogger(__name__)
FORGET_SECONDS: Final = 1.0
"""How long a look-up counts: the next request for the same name after that asks again."""
MAX_REMEMBERED: Final = 1000
PER_SECOND: Final = 20.0
BURST: Final = 40.0
"""Look-ups for all names together: made-up names must not become load on the API server."""

Find = Callable[[str], Awaitable[int]]
"""Look a name up, take in what is found, return how many objects that was."""


class Lookups:
    """At most one look-up for a name at a time and within a second, and a bounded number for all names."""

    def __init__(self, find: Find, clock: Callable[[], float] = monotonic) -> None:
        self._find = find
        self._clock = clock
        self._done: OrderedDict[str, tuple[float, bool]] = OrderedDict()
        self._running: dict[str, asyncio.Task[bool]] = {}
        self._tokens = BURST
        self._filled_at = clock()

    async def look_up(self, name: str) -> bool:
        """Look a name up unless that was just done; return whether the API server answered (now or just before).

        A name beyond the limit is not looked up: whether it exists is unknown.
        """
        self._forget()
        if name in self._done:
            return self._done[name][1]
        task = self._running.get(name)
        if task is None:
            if not self._take_token():
                metrics.LOOKUPS.of("limited").inc()
                return False
            task = self._running[name] = asyncio.create_task(self._run(name))
        return await asyncio.shield(task)

    async def close(self) -> None:
        """Wait for what runs; it ends by its own timeout."""
        await asyncio.gather(*self._running.values(), return_exceptions=True)

    async def _run(self, name: str) -> bool:
        try:
            num_found = await self._find(name)
            metrics.LOOKUPS.of("found" if num_found else "missing").inc()
            answered = True
        except KubeError as error:
            metrics.LOOKUPS.of("failed").inc()
            logger.warning("cannot look up the model %r: %s", name, error)
            answered = False
        finally:
            del self._running[name]
        self._done[name] = (self._clock() + FORGET_SECONDS, answered)
        if len(self._done) > MAX_REMEMBERED:
            self._done.popitem(last=False)
        return answered

    def _forget(self) -> None:
        now = self._clock()
        while self._done and next(iter(self._done.values()))[0] <= now:
            self._done.popitem(last=False)

    def _take_token(self) -> bool:
        now = self._clock()
        self._tokens = min(BURST, self._tokens + (now - self._filled_at) * PER_SECOND)
        self._filled_at = now
        if self._tokens < 1:
            return False
        self._tokens -= 1
        return True
