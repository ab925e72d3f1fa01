"""What is under way is mostly over before anybody has read it: a status that says no more than that waits a moment.

With hundreds of adapters applied at once, status writes are what the time goes to; those of the ones that answer go first.
"""

from collections.abc import Iterable
from typing import Final

from lorafleet_contract.reasons import Reason
from lorafleet_contract.resources import AdapterResource, AdapterStatus
from lorafleet_contract.rollout import RolloutPhase
from lorafleet_operator.decide.conditions import AVAILABLE, RECONCILING, condition_of
from lorafleet_operator.decide.views import BaseKey

WAIT_SECONDS: Final = 1.0
MAX_AT_ONCE: Final = 16
"""Statuses of this kind in one pass."""
UNDER_WAY: Final = frozenset({Reason.RESOLVING, Reason.LOADING})
Change = tuple[AdapterResource, AdapterStatus]


class Deferrals:
    """Since when statuses wait to be written."""

    def __init__(self) -> None:
        self._since: dict[BaseKey, dict[str, float]] = {}

    def forget(self, base: BaseKey) -> None:
        """A base is gone."""
        self._since.pop(base, None)

    def due(self, base: BaseKey, changes: Iterable[Change], *, now: float) -> list[Change]:
        """Return the statuses of a base that are written now; `now` is on any clock that does not jump."""
        known = self._since.pop(base, {})
        due, since, num_overdue = [], {}, 0
        for resource, status in changes:
            if not _can_wait(resource.status, status):
                due.append((resource, status))
                continue
            began = known.get(resource.metadata.uid, now)
            if now - began >= WAIT_SECONDS and num_overdue < MAX_AT_ONCE:
                num_overdue += 1
                due.append((resource, status))
            else:
                since[resource.metadata.uid] = began
        if since:
            self._since[base] = since
        return due


def _can_wait(before: AdapterStatus, after: AdapterStatus) -> bool:
    """Whether only progress is new: what answers, and whether, stays as it is."""
    progress = condition_of(after.conditions, RECONCILING)
    if progress is None or progress.reason not in UNDER_WAY:
        return False
    is_step = _phase(before) != _phase(after) or before.traffic != after.traffic
    return not is_step and _answering(before) == _answering(after)


def _phase(status: AdapterStatus) -> RolloutPhase | None:
    return status.rollout.phase if status.rollout is not None else None


def _answering(status: AdapterStatus) -> tuple[str | None, bool]:
    available = condition_of(status.conditions, AVAILABLE)
    return status.stable_revision, available is not None and available.status == "True"
