"""What is to be kept on a pod is told there at once; what all pods only have to know is told to them in rounds. Pure.

Every pod of a base knows every adapter of it, and few keep it. With many pods and changes one after the other, telling each pod
of each change would leave no time for the pods that somebody waits for: rounds gather what has come up meanwhile.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from lorafleet_contract.admin import CatalogueEntry, Residency
from lorafleet_contract.names import revision_of
from lorafleet_operator.decide.diff import PodChange, with_entries
from lorafleet_operator.decide.views import BaseKey, ObservedPod

SECONDS_PER_POD: Final = 0.01
"""Of a round, on the average: a write, its answer and the poll that follows are some milliseconds of a core."""
MAX_SECONDS: Final = 1.0
"""Of a round, however many pods there are."""


@dataclass(frozen=True, slots=True)
class Paced:
    """What pods are told now."""

    changes: tuple[PodChange, ...]
    """Those first that have something to keep."""
    wait_seconds: float | None = None
    """When what waits is due; None where nothing waits."""


class Rounds:
    """When each base may begin its next round.

    After a while without any a second round follows the first at once: a revision is told, and then named, without a pause.
    """

    def __init__(self) -> None:
        self._paid_until: dict[BaseKey, float] = {}

    def forget(self, base: BaseKey) -> None:
        """A base is gone."""
        self._paid_until.pop(base, None)

    def due(self, base: BaseKey, changes: Sequence[PodChange], *, fence: int, now: float) -> Paced:
        """Return what is told now; `fence` is of this leadership, `now` on any clock that does not jump."""
        first = [(change, _at_once(change, fence)) for change in changes]
        num_waiting = sum(change is not part for change, part in first)
        if num_waiting:
            price = min(MAX_SECONDS, num_waiting * SECONDS_PER_POD)
            paid_until = max(now, self._paid_until.get(base, now))
            if paid_until - now > price:
                return Paced(tuple(part for _, part in first if part is not None), paid_until - now - price)
            self._paid_until[base] = paid_until + price
        return Paced(tuple(change for change, _ in sorted(first, key=lambda pair: pair[1] is None)))


def _at_once(change: PodChange, fence: int) -> PodChange | None:
    """Return what of a change does not wait for a round: with what is to be kept also what makes room for it."""
    pod = change.pod
    if pod.state is None or pod.state.fence < fence:
        return change  # it is taken over, with all that there is
    moved = tuple(
        entry for entry in change.entries if _is_kept(pod, entry) is not (entry.residency is Residency.RESIDENT)
    )
    if not any(entry.residency is Residency.RESIDENT for entry in moved):
        return None
    return change if len(moved) == len(change.entries) else with_entries(change, moved)


def _is_kept(pod: ObservedPod, entry: CatalogueEntry) -> bool:
    known = pod.own(entry.name, revision_of(entry.digest))
    return known is not None and known.residency is Residency.RESIDENT
