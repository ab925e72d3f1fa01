"""A new pod is ready only with what is in its first catalogue: that one waits a little for sources being resolved."""

from collections.abc import Iterable
from typing import Final

from lorafleet_operator.decide.diff import PodChange
from lorafleet_operator.decide.views import BaseKey, ObservedPod

MAX_WAIT_SECONDS: Final = 15.0
LOOK_SECONDS: Final = 0.5
"""How soon to look again while one waits."""


class FirstCatalogues:
    """Since when pods wait for their first catalogue."""

    def __init__(self) -> None:
        self._since: dict[BaseKey, dict[tuple[str, str], float]] = {}

    def forget(self, base: BaseKey) -> None:
        """A base is gone."""
        self._since.pop(base, None)

    def due(self, base: BaseKey, changes: Iterable[PodChange], *, is_resolving: bool, now: float) -> list[PodChange]:
        """Return the changes that pods are told now; `now` is on any clock that does not jump."""
        known = self._since.pop(base, {})
        if not is_resolving:
            return list(changes)
        due, since = [], {}
        for change in changes:
            boot = _boot(change.pod)
            began = known.get(boot, now)
            if change.pod.has_been_told or now - began >= MAX_WAIT_SECONDS:
                due.append(change)
            else:
                since[boot] = began
        if since:
            self._since[base] = since
        return due


def _boot(pod: ObservedPod) -> tuple[str, str]:
    assert pod.state is not None
    return pod.uid, pod.state.boot_id
