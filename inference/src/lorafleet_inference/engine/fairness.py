"""Fairness between adapters: a virtual counter of the service that each has had. Pure.

The adapter with the lowest counter goes first. One that was idle starts level with the least served active one, so that
idleness saves nothing up.
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

    def of(self, adapter: AdapterKey | None) -> float:
        """Return the counter."""
        return self._served.get(adapter, 0.0)

    def charge(self, adapter: AdapterKey | None, num_tokens: int, weight: float) -> None:
        """Count service."""
        self._served[adapter] = self.of(adapter) + num_tokens * weight

    def activate(self, adapter: AdapterKey | None, active: Iterable[AdapterKey | None]) -> None:
        """An idle adapter has work again; `active` are the others that have some."""
        floor = min((self.of(other) for other in active), default=0.0)
        self._served[adapter] = max(self.of(adapter), floor)

    def forget(self, adapter: AdapterKey) -> None:
        """An adapter is gone."""
        self._served.pop(adapter, None)
