"""Whether short steps are of use to anybody. Pure: times are told.

Who comes while a step runs waits for its end, so steps are kept short; but shorter steps are more steps, each with its
fixed cost. They are worth it for an adapter that asks for little beside others that ask for much. Where all ask for alike,
or one alone is there, everybody waits for the whole queue, and that is the shorter the fewer the steps.
"""

from collections.abc import Mapping

from lorafleet_inference.engine.messages import AdapterKey

REMEMBERED_SECONDS = 60.0
"""An adapter is expected to ask again for so long after its last request."""
QUIET_PART = 0.25
"""An adapter is quiet that has less than this part of an equal share of the requests there are."""


class QuietAdapters:
    """Remembers whose requests there were lately; None is the base model."""

    def __init__(self) -> None:
        self._seen: dict[AdapterKey | None, float] = {}
        """When each last had a request, the longest ago first."""

    def observe(self, num_requests: Mapping[AdapterKey | None, int], now: float) -> frozenset[AdapterKey | None] | None:
        """Take note of how many requests of each adapter wait or run.

        Return those of them that are quiet, which are none where one is expected again; None where nobody is quiet. `now` in
        seconds of a clock that never goes back.
        """
        for adapter in num_requests:
            self._seen.pop(adapter, None)
            self._seen[adapter] = now
        while self._seen:
            adapter, when = next(iter(self._seen.items()))
            if now - when <= REMEMBERED_SECONDS:
                break
            del self._seen[adapter]
        if not num_requests or len(self._seen) < 2:
            return None
        share = sum(num_requests.values()) / len(self._seen)
        quiet = frozenset(adapter for adapter, number in num_requests.items() if number < QUIET_PART * share)
        return quiet if quiet or len(self._seen) > len(num_requests) else None
