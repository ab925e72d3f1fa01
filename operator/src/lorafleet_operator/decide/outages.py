"""All adapters of a base that cease to be Ready together are one Event, on the base, and so is their return. Pure."""

from collections.abc import Sequence
from dataclasses import dataclass

from lorafleet_contract.reasons import Reason
from lorafleet_contract.resources import AdapterResource, AdapterStatus
from lorafleet_operator.decide.conditions import READY, condition_of
from lorafleet_operator.decide.views import BaseKey

Event = tuple[str, str, str]
"""Type, reason, message."""


@dataclass(frozen=True, slots=True)
class Word:
    """What is said of the adapters of a base together."""

    quiet: frozenset[str] = frozenset()
    """Uids of the adapters of which nothing is said one by one."""
    event: Event | None = None
    """What is said on the base."""


class Outages:
    """Adapters that have been lost together and are not back yet."""

    def __init__(self) -> None:
        self._lost: dict[BaseKey, set[str]] = {}

    def judge(self, base: BaseKey, adapters: Sequence[tuple[AdapterResource, AdapterStatus]]) -> Word:
        """Return what is said of a base whose adapters have these statuses from now on."""
        lost = self._lost.pop(base, set())
        # most stay as they are: a status that is the same object says the same
        going = {
            adapter.metadata.uid
            for adapter, status in adapters
            if status is not adapter.status and _is_lost(adapter.status, status)
        }
        back, left = set[str](), set[str]()
        if lost:
            back = lost & {adapter.metadata.uid for adapter, status in adapters if _is_ready(status)}
            left = (lost & {adapter.metadata.uid for adapter, _ in adapters}) - back
        event: Event | None = None
        quiet = back | (going & left)
        if len(going) > 1 and not going <= left and not any(_is_ready(status) for _, status in adapters):
            left, quiet = left | going, quiet | going
            event = ("Warning", Reason.NO_READY_PODS, f"{len(going)} adapters are no longer Ready: no pod answers")
        elif back and not left:
            event = ("Normal", "Ready", "all adapters that were lost together are Ready again")
        if left:
            self._lost[base] = left
        return Word(frozenset(quiet), event)

    def forget(self, base: BaseKey) -> None:
        """A base is gone."""
        self._lost.pop(base, None)


def _is_lost(before: AdapterStatus, after: AdapterStatus) -> bool:
    return _is_ready(before) and not _is_ready(after) and _reason(after) == Reason.NO_READY_PODS


def _is_ready(status: AdapterStatus) -> bool:
    ready = condition_of(status.conditions, READY)
    return ready is not None and ready.status == "True"


def _reason(status: AdapterStatus) -> str:
    ready = condition_of(status.conditions, READY)
    return ready.reason if ready is not None else ""
