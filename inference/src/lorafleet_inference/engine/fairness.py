"""Fairness between adapters: a virtual counter of the service that each has had. Pure.

The adapter with the lowest counter goes first. Virtual time is the counter of the least served adapter that can be
served; it only grows, and no counter is below it. So idleness saves nothing up, and neither does waiting for a load; and
service of the past is no handicap for an adapter that comes back.
"""

from collections.abc import Iterable

from lorafleet_inference.engine.messages import AdapterKey

PROMPT_WEIGHT = 1.0
ANSWER_WEIGHT = 2.0
"""A decoded token costs about twice the time of a prompt token."""


class ServiceCounters:
    """Weighted tokens by adapter; None is the base model."""

    def __init__(self) -> None:
        self._served: dict[AdapterKey | None, float] = {}
        self.virtual_time = 0.0

    def of(self, adapter: AdapterKey | None) -> float:
        """Return the counter."""
        return max(self._served.get(adapter, 0.0), self.virtual_time)

    def charge(self, adapter: AdapterKey | None, num_tokens: int, weight: float) -> None:
        """Count service."""
        self._served[adapter] = self.of(adapter) + num_tokens * weight

    def advance(self, contending: Iterable[AdapterKey | None]) -> None:
        """Let virtual time follow the least served of the adapters that could be served in a step."""
        self.virtual_time = max(self.virtual_time, min(map(self.of, contending), default=0.0))

    def forget(self, adapter: AdapterKey) -> None:
        """An adapter is gone."""
        self._served.pop(adapter, None)
