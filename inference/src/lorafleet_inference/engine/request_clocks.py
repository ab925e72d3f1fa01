"""How long requests waited for their first step. Pure: the clock is handed in."""

from collections.abc import Callable

import msgspec

from lorafleet_inference.engine.token_events import TokenEvent


class RequestClocks:
    """When requests came, and how long they waited, until it is told in their first event."""

    def __init__(self, now: Callable[[], float]) -> None:
        """`now`: seconds of any clock."""
        self._now = now
        self._submitted: dict[str, float] = {}
        self._waited: dict[str, float] = {}

    def submitted(self, request_id: str) -> None:
        """A request came."""
        self._submitted[request_id] = self._now()

    def scheduled(self, request_id: str) -> None:
        """It is in a step for the first time."""
        self._waited[request_id] = self._now() - self._submitted.pop(request_id)

    def stamp(self, event: TokenEvent) -> TokenEvent:
        """Return an event of a request, its first one with how long the request waited."""
        if event.finish is not None:
            self._submitted.pop(event.request_id, None)
        waited = self._waited.pop(event.request_id, None)
        return event if waited is None else msgspec.structs.replace(event, queue_seconds=waited)
