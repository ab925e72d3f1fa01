"""A work queue of keys: each key at most once in it and at most once in work; backoff with jitter; adding later."""

import asyncio
import random
from collections import deque
from collections.abc import Hashable
from typing import Final, Generic, TypeVar

K = TypeVar("K", bound=Hashable)
FIRST_BACKOFF_SECONDS: Final = 0.2
MAX_BACKOFF_SECONDS: Final = 60.0


class WorkQueue(Generic[K]):
    """Keys that want work.

    A key added while it waits is the same work; a key added while it is in work comes again after that.
    """

    def __init__(self, *, seed: int | None = None) -> None:
        self._waiting: deque[K] = deque()
        self._queued: set[K] = set()
        self._in_work: set[K] = set()
        self._again: set[K] = set()
        self._failures: dict[K, int] = {}
        self._timers: dict[K, asyncio.TimerHandle] = {}
        self._wake = asyncio.Event()
        self._random = random.Random(seed)  # noqa: S311  jitter
        self._since: dict[K, float] = {}

    def __len__(self) -> int:
        return len(self._waiting)

    def oldest_age_seconds(self, now: float) -> float:
        """Return how long the key at the head has waited; `now` is the loop's time."""
        return now - self._since[self._waiting[0]] if self._waiting else 0.0

    def add(self, key: K) -> None:
        """Want work for a key now."""
        if key in self._in_work:
            self._again.add(key)
        elif key not in self._queued:
            self._queued.add(key)
            self._since[key] = asyncio.get_running_loop().time()
            self._waiting.append(key)
            self._wake.set()

    def add_after(self, key: K, delay_seconds: float) -> None:
        """Want work for a key later; of several wishes the earliest counts."""
        loop = asyncio.get_running_loop()
        when = loop.time() + delay_seconds
        timer = self._timers.get(key)
        if timer is not None:
            if timer.when() <= when:
                return
            timer.cancel()
        self._timers[key] = loop.call_at(when, self._fire, key)

    def retry(self, key: K) -> float:
        """Want work for a key after its backoff; return the delay in seconds."""
        failures = self._failures.get(key, 0)
        self._failures[key] = failures + 1
        backoff = min(FIRST_BACKOFF_SECONDS * 2.0 ** min(failures, 16), MAX_BACKOFF_SECONDS)
        delay = backoff * self._random.uniform(0.5, 1.0)
        self.add_after(key, delay)
        return delay

    def forget(self, key: K) -> None:
        """A success: the next failure starts with the first backoff."""
        self._failures.pop(key, None)

    async def get(self) -> K:
        """Return the next key, which is in work until `done`."""
        while not self._waiting:
            self._wake.clear()
            await self._wake.wait()
        key = self._waiting.popleft()
        self._queued.discard(key)
        self._since.pop(key, None)
        self._in_work.add(key)
        return key

    def done(self, key: K) -> None:
        """End the work on a key."""
        self._in_work.discard(key)
        if key in self._again:
            self._again.discard(key)
            self.add(key)

    def close(self) -> None:
        """Forget everything that was to come later."""
        for timer in self._timers.values():
            timer.cancel()
        self._timers.clear()

    def _fire(self, key: K) -> None:
        self._timers.pop(key, None)
        self.add(key)
