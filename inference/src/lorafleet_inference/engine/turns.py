"""Whose turn on the device it is where adapters of running requests hold all of it. Pure: times are told.

An adapter whose requests have waited for `PATIENCE_SECONDS` may take the place of one that has been served more and that
has computed something new for as long since it came. So each stay is worth its load, and nobody waits for the longest
answer of the others.
"""

from collections.abc import Callable, Collection, Iterable

from lorafleet_inference.engine.messages import AdapterKey

PATIENCE_SECONDS = 5.0


class Turns:
    """Since when adapters wait for room, and since when others compute."""

    def __init__(self) -> None:
        self._waiting_since: dict[AdapterKey, float] = {}
        self._computing_since: dict[AdapterKey, float] = {}

    def observe(self, waiting: Iterable[AdapterKey], computing: Iterable[AdapterKey], now: float) -> None:
        """Take note of the adapters that wait for room, and of those that compute what they have not computed before."""
        self._waiting_since = {key: self._waiting_since.get(key, now) for key in waiting}
        self._computing_since = {key: self._computing_since.get(key, now) for key in computing}

    def is_overdue(self, key: AdapterKey, now: float) -> bool:
        """Whether an adapter has waited for so long that nobody may overtake it any more."""
        return now - self._waiting_since.get(key, now) >= PATIENCE_SECONDS

    def preemptible(
        self, key: AdapterKey, in_use: Collection[AdapterKey], service: Callable[[AdapterKey], float], now: float
    ) -> list[AdapterKey]:
        """Return the adapters whose places a waiting one may have, the most served first."""
        some = [
            other
            for other in in_use
            if now - self._computing_since.get(other, now) >= PATIENCE_SECONDS and service(other) > service(key)
        ]
        return sorted(some, key=service, reverse=True)
