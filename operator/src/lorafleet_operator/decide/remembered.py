"""Statuses that cannot have changed since the last pass are not made again. Pure.

Most adapters of a large base stand still in most passes: they were found to be as their status says, and nothing that a status
is made of is another one since. That is told by identity or by comparing little: pods say the same with the same objects.
"""

from collections.abc import Sequence, Set
from dataclasses import dataclass
from datetime import datetime

from lorafleet_contract.resources import AdapterStatus
from lorafleet_contract.rollout import RolloutEvidence
from lorafleet_operator.decide.adapter_status import adapter_status
from lorafleet_operator.decide.catalogue import AdapterRevisions
from lorafleet_operator.decide.entry_index import EntryIndex
from lorafleet_operator.decide.place import Placement
from lorafleet_operator.decide.views import BaseKey, ObservedPod

Given = tuple[AdapterRevisions, frozenset[str] | None, int | None]
"""All that the status of an adapter is made of, but the time, what pods say of it, and what is the same for all of its base."""


@dataclass(slots=True)
class _Base:
    """What was found of a base in its last pass."""

    pods: list[tuple[object, ...]]
    """What statuses say of each pod, and of all together."""
    said: list[EntryIndex]
    """What each pod said."""
    given: dict[str, Given]
    """Uid of an adapter whose status was right, and in which nothing waits for the time -> what it was made of."""


class Remembered:
    """Bases by key."""

    def __init__(self) -> None:
        self._bases: dict[BaseKey, _Base] = {}

    def forget(self, base: BaseKey) -> None:
        """A base is gone."""
        self._bases.pop(base, None)

    def begin(
        self, base: BaseKey, pods: Sequence[ObservedPod], placement: Placement, *, is_asleep: bool = False
    ) -> "Statuses":
        """Return the statuses of one pass."""
        standing: list[tuple[object, ...]] = [("asleep", is_asleep), *(pod.standing for pod in pods)]
        said = [pod.index for pod in pods]
        last, before, moved = self._bases.get(base), dict[str, Given](), set[str]()
        if last is not None and last.pods == standing:
            before = last.given
            for then, index in zip(last.said, said, strict=True):
                if then is not index:
                    moved.update(name for name, _ in index.since(then))
        now = self._bases[base] = _Base(standing, said, {})
        return Statuses(pods, placement, before, now.given, moved=moved, is_asleep=is_asleep)


class Statuses:
    """Makes the statuses of one pass."""

    def __init__(
        self,
        pods: Sequence[ObservedPod],
        placement: Placement,
        before: dict[str, Given],
        after: dict[str, Given],
        *,
        moved: Set[str],
        is_asleep: bool,
    ) -> None:
        self._pods = pods
        self._placement = placement
        self._is_asleep = is_asleep
        self._before = before
        self._after = after
        self._moved = moved
        """Served names of which some pod says another thing than in the last pass."""
        self.num_made = 0
        """Statuses that were not remembered."""

    def of(self, lineup: AdapterRevisions, now: datetime, *, window: RolloutEvidence | None = None) -> AdapterStatus:
        """Return the status of an adapter, as `adapter_status` makes it; the one that it has where that is the same."""
        adapter, name = lineup.intent.adapter, lineup.name
        given = (lineup, self._placement.pods.get(name), self._placement.missing.get(name))
        if window is None and name not in self._moved and self._before.get(adapter.metadata.uid) == given:
            self._after[adapter.metadata.uid] = given
            return adapter.status
        self.num_made += 1
        status = adapter_status(lineup, self._pods, self._placement, now=now, window=window, is_asleep=self._is_asleep)
        # of what goes on the time alone makes another status
        if status.rollout is None and status == adapter.status:
            self._after[adapter.metadata.uid] = given
        return status
