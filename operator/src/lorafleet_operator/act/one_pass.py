"""One pass: the steps that it attempts, and what it has come to so far."""

import asyncio
from collections.abc import Awaitable, Iterable
from dataclasses import dataclass
from typing import Final

from lorafleet_common.kube.errors import KubeError
from lorafleet_operator.decide.outcome import Outcome
from lorafleet_operator.decide.views import BaseKey, Snapshot

MAX_PARALLEL_WRITES: Final = 16


@dataclass(slots=True)
class Pass:
    """What one pass has come to so far."""

    snapshot: Snapshot
    is_done: bool = True
    look_again_seconds: float | None = None
    failure: KubeError | None = None

    @property
    def key(self) -> BaseKey:
        """Of the base."""
        return self.snapshot.key

    def look_again(self, seconds: float) -> None:
        """The next pass is due then at the latest."""
        self.look_again_seconds = min(seconds, self.look_again_seconds or seconds)

    async def attempt(self, step: Awaitable[None]) -> bool:
        """Take one step; the API server's refusal ends the step and not the pass. Returns whether it was taken."""
        try:
            await step
        except KubeError as error:
            if self.failure is None or not self.failure.retryable:
                self.failure = error
            return False
        return True

    def outcome(self) -> Outcome:
        """Return what the pass came to."""
        failure = self.failure if self.failure is not None and self.failure.retryable else None
        return Outcome(self.is_done and failure is None, self.look_again_seconds, failure)


async def together(calls: Iterable[Awaitable[None]]) -> None:
    """Await all, a few at a time; what fails does not stop the others.

    Raises:
        KubeError: the first failure that trying again may mend; one that it does not mend has been logged.
    """
    slots = asyncio.Semaphore(MAX_PARALLEL_WRITES)

    async def one(call: Awaitable[None]) -> KubeError | None:
        async with slots:
            try:
                await call
            except KubeError as error:
                return error
        return None

    failures = [error for error in await asyncio.gather(*(one(call) for call in calls)) if error is not None]
    retryable = [error for error in failures if error.retryable]
    if retryable:
        raise retryable[0]
