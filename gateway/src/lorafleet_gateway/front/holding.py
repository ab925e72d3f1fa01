"""Requests that wait for a pod of a base which autoscaling lets go without: a bounded number, for a bounded time, in order.

How many wait, and how many have come, is told to the operator (`held` of the evidence): it starts a pod for them.
"""

import asyncio
import time
from collections import Counter, deque
from collections.abc import Callable, Set
from dataclasses import dataclass
from typing import Final

from lorafleet_contract.autoscaling import ScaleToZero
from lorafleet_contract.evidence import HeldRequests
from lorafleet_gateway import metrics
from lorafleet_gateway.errors import Draining, NoPodInTime
from lorafleet_gateway.fleet.pods import Fleet
from lorafleet_gateway.views import BaseKey

RELEASED: Final = "released"
TIMEOUT: Final = "timeout"
FULL: Final = "full"
CLIENT_LEFT: Final = "client_left"
DRAINING: Final = "draining"


@dataclass(frozen=True, slots=True, eq=False)
class _Waiting:
    """One request."""

    is_released: asyncio.Future[None]
    tried: Set[str]
    """Uids of pods that have refused it."""


class Holding:
    """The requests of all bases that wait."""

    def __init__(self, fleet: Fleet, told: Callable[[], None]) -> None:
        """`told` is called when there is something new to tell the operator."""
        self._fleet = fleet
        self._told = told
        self._queues: dict[BaseKey, deque[_Waiting]] = {}
        self._arrived: Counter[BaseKey] = Counter()
        self._is_ending = False
        fleet.on_change.append(self._release)

    def rows(self) -> list[HeldRequests]:
        """Return what the operator is told."""
        return [
            HeldRequests(
                namespace=key[0], base=key[1], num_held=len(self._queues.get(key, ())), num_arrived=self._arrived[key]
            )
            for key in sorted(self._arrived)
        ]

    async def wait(
        self, key: BaseKey, limits: ScaleToZero, *, label: str, tried: Set[str], seconds_before: float
    ) -> float:
        """Wait until a pod is ready that has not refused the request; return for how long.

        Args:
            key: the base.
            limits: its own.
            label: value of the label `base`.
            tried: uids of pods that have.
            seconds_before: for how long the request has waited already; 0: it has just come.

        Raises:
            NoPodInTime: there was none, or as many wait as may.
            Draining: this gateway ends.
        """
        if not seconds_before:
            self._arrived[key] += 1
            self._told()
        queue = self._queues.setdefault(key, deque())
        if self._is_ending:
            raise Draining("this gateway is going away")
        if len(queue) >= limits.max_held_requests:
            metrics.HOLDS.of(label, FULL).inc()
            raise NoPodInTime(f"no pod runs, one is asked for, and {len(queue)} requests wait for it already")
        waiting = _Waiting(asyncio.get_running_loop().create_future(), tried)
        began, result = time.perf_counter(), CLIENT_LEFT
        queue.append(waiting)
        metrics.HELD_REQUESTS.of(label).set(len(queue))
        try:
            async with asyncio.timeout(limits.hold_seconds - seconds_before):
                await waiting.is_released
            result = RELEASED
        except TimeoutError:
            result = TIMEOUT
            raise NoPodInTime(f"no pod was ready within {limits.hold_seconds} s") from None
        except Draining:
            result = DRAINING
            raise
        finally:
            queue.remove(waiting)
            seconds = time.perf_counter() - began
            metrics.HELD_REQUESTS.of(label).set(len(queue))
            metrics.HOLDS.of(label, result).inc()
            metrics.HOLD_SECONDS.of(label).observe(seconds)
            self._told()
        return seconds

    def refuse(self) -> None:
        """This gateway ends: whoever waits is told so, and may ask another one."""
        self._is_ending = True
        for queue in self._queues.values():
            for waiting in queue:
                if not waiting.is_released.done():
                    waiting.is_released.set_exception(Draining("this gateway is going away"))

    def _release(self, key: BaseKey) -> None:
        """Let those go for which a pod is ready, first those that came first."""
        if not (queue := self._queues.get(key)):
            return
        ready = {pod.endpoint.uid for pod in self._fleet.of(key) if pod.is_ready}
        for waiting in queue:
            if not waiting.is_released.done() and ready - waiting.tried:
                waiting.is_released.set_result(None)
