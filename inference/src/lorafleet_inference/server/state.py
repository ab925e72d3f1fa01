"""Whether the pod takes requests, and how many it is answering."""

import asyncio
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from enum import StrEnum

from lorafleet_inference.errors import EngineNotReady, PodDraining

RETRY_SECONDS = 2.0


class Phase(StrEnum):
    """How far the process is."""

    STARTING = "starting"
    """The base model is being loaded."""
    SERVING = "serving"
    LEAVING = "leaving"
    """Told to end: not ready any more, new requests are still answered for the grace time."""
    DRAINING = "draining"
    """New requests are refused, running ones end."""
    FAILED = "failed"
    """The engine was lost."""


class PodState:
    """The phase, and the requests in flight; `on_change` is called when the phase has changed."""

    def __init__(self, on_change: Callable[[], None]) -> None:
        self._phase = Phase.STARTING
        self._on_change = on_change
        self.failure = ""
        """Why the phase is FAILED."""
        self.num_in_flight = 0
        self.num_begun = 0
        """Requests since the start, those in flight included."""
        self._idle = asyncio.Event()
        self._idle.set()

    @property
    def phase(self) -> Phase:
        """How far the process is."""
        return self._phase

    @phase.setter
    def phase(self, phase: Phase) -> None:
        self._phase = phase
        self._on_change()

    @property
    def is_leaving(self) -> bool:
        """Whether whoever routes should go elsewhere for good."""
        return self._phase in (Phase.LEAVING, Phase.DRAINING)

    @contextmanager
    def request(self) -> Iterator[None]:
        """Count a request as in flight.

        Raises:
            EngineNotReady: the base is not loaded yet, or the engine was lost.
            PodDraining: the pod is going away.
        """
        if self.phase is Phase.STARTING:
            raise EngineNotReady("the base model is still being loaded", retry_after_seconds=RETRY_SECONDS)
        if self.phase is Phase.FAILED:
            raise EngineNotReady("the engine of this pod was lost", retry_after_seconds=RETRY_SECONDS)
        if self.phase is Phase.DRAINING:
            raise PodDraining("this pod is going away", retry_after_seconds=RETRY_SECONDS)
        self.num_in_flight += 1
        self.num_begun += 1
        self._idle.clear()
        try:
            yield
        finally:
            self.num_in_flight -= 1
            if not self.num_in_flight:
                self._idle.set()

    async def drain(self, *, grace_seconds: float, timeout_seconds: float) -> bool:
        """Stop being ready; after the grace time refuse new requests; return whether all have ended in time."""
        if self.phase is not Phase.DRAINING:
            self.phase = Phase.LEAVING
            await asyncio.sleep(grace_seconds)
            self.phase = Phase.DRAINING
        return await self.wait_idle(timeout_seconds)

    async def wait_idle(self, timeout_seconds: float) -> bool:
        """Wait until nothing is in flight; False if something still is after the time."""
        try:
            async with asyncio.timeout(timeout_seconds):
                await self._idle.wait()
        except TimeoutError:
            return False
        return True
